"""The contracts: read this file first.

A *speech prior* is a mixture of K components, each a triple (latent prior, decoder, encoder); components may share any
of the three. Every model of the papers is one. A *target* is an unnormalised density over the latent codes z, a
*kernel* is a Markov transition that leaves it invariant, and a *scheme* (VEM, ...) alternates such an E-step with
updates of the noise model.

Shapes. Time runs down, and the component axis comes first of all:

    power, variances        (..., frame, freq)           lips   (..., frame, 67, 67)
    W (..., rank, freq)     H (..., frame, rank)         z      (chain, ..., frame, latent)
    log_variance            (component | 1, chain, ..., frame, freq)
    responsibilities        (component, ..., frame)      draws  (chain, draw, ..., frame, latent)

`...` are utterances: any number of leading axes, padded, with a frame mask. Component 0 is audio (the paper's
alpha_n = 1), component 1 visual or audio-visual, so `responsibilities[0]` is the paper's pi_n.

Units. `power` and all variances are |STFT|^2 of a waveform whose peak is 1; decoders return log-variance.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Complex, Float, Shaped
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.errors import InputError as InputError

Power = Float[Tensor, "*utterance frame freq"]
"""|STFT|^2, or a variance in that unit."""
Spectrum = Complex[Tensor, "*utterance frame freq"]
"""STFT coefficients."""
Lips = Shaped[Tensor, "*utterance frame 67 67"]
"""Grey mouth regions: uint8 in 0..255, or floating point in [0, 1]."""
Codes = Float[Tensor, "*batch frame latent"]
"""Latent codes z."""
Responsibilities = Float[Tensor, "component *utterance frame"]
"""r(alpha_n): sums to one over components."""
MixingWeight = Float[Tensor, "component *utterance"]
"""pi as a distribution over components; the paper's scalar pi is `mixing_weight[0]`."""
FrameMask = Bool[Tensor, "*utterance frame"]
"""True where a frame is sound, False where it is padding."""
StepSize = float | Float[Tensor, "*batch frame"]
"""A kernel's step size: one for all, or each frame's own (chain, ..., frame), as adaptation finds them."""


class SpeechPrior(Protocol):
    """A probabilistic program of clean speech: what `models/` implements (as an nn.Module).

    `model` and `guide` are the pair that SVI trains; `latent_prior`, `encode` and `log_variance` are the triple
    (p(z|k), q(z|k), sigma_k) that the test-time algorithms see.

    What only some priors have:

        options            the constructor's arguments, which weight files keep: every prior that is to be saved
        without_lips       the prior to take where there are no lips, if it is another one
        alternate          names of encoders that are trained in turn, one an epoch; the trainer sets `active_encoder`
        couples_frames     True: an utterance's frames depend on each other, and the prior is a `SequencePrior`
        switches            True: alpha_1:N is a Markov chain of matrix `transition` (`models/switching.py`)
    """

    num_components: int
    latent_dim: int
    num_freqs: int
    uses_lips: bool
    """Whether training needs lips."""
    requires_lips: bool
    """Whether enhancing without lips is refused."""
    components_see: tuple[bool, ...]
    """Of every component, whether its p(z_n | k, v_n) or decoder looks at the lips. Frames without a picture
    (`lips_mask`) leave those components out."""
    mixing_weight: Tensor
    """pi learned in training, (component,)."""

    def model(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        """The generative story, as a Pyro program with one plate "frame"."""

    def guide(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        """q(z|alpha) r(alpha), alpha enumerated in parallel.

        `encoder_power` is what the audio encoder sees (default `power`); `responsibilities` (component, frame) holds
        r(alpha_n) at a table, else it is the closed form (22).
        """

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """What the test-time algorithms need of the pictures, (..., frame, feature), computed once for a recording.

        `latent_prior` and `log_variance` take it in place of the pictures, and with one component `model`, `guide` and
        `encode` too: so they are trained. A prior in which these do not look at the lips returns what it was given.
        """

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """p(z_n | alpha_n = k, v_n): batch (component, ..., frame) or broadcasting to it, event (latent,)."""

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n, v_n, alpha_n = k): component k's encoder; the same batch and event."""

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """Where one chain starts: the mean of the encoder that hears or sees best at test time, (..., frame, latent).

        Several chains of a mixture start at the means of `encode` (`starting_codes`).
        """

    def log_variance(
        self, z: Codes, lips: Tensor | None
    ) -> Float[Tensor, "component *batch frame freq"]:
        """log sigma_k(z, v); the leading axis has length 1 where all components share one decoder."""


class SequencePrior(SpeechPrior, Protocol):
    """A prior under which frames depend on each other, through z_1:N, a decoder with memory, or alpha_1:N.

    `log_variance` is of the whole path z_1:N: what it says of a frame may depend on all of them. `model` and `guide`
    are of utterances, (..., frame, freq), with a plate for each utterance axis and none for the frames. `latent_prior`
    is there only where p(z_1:N) is a product of Gaussians even so.
    """

    couples_frames: bool
    """True."""

    def log_prior(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "component *batch frame"]:
        """log p(z_n | z_<n, v, alpha_n = k), (component, chain, ..., frame): over the frames it sums to the path's."""

    def latent_path(self, frames: tuple[int, ...], lips: Tensor | None) -> Any:
        """p(z_1:N | v) of utterances and frames (..., frame), to draw from: batch (...), event (frame, latent)."""

    def within(self, *, mask: FrameMask | None = None, past: Power | None = None) -> Any:
        """The same prior, its networks shared, in given utterances; what is None stays as it was.

        Args:
            mask: (..., frame), False where padding is: no other frame's density depends on the codes there.
            past: E|s_n|^2 as far as it is known, for priors that look at the frames before.
        """

    def draw_codes(
        self, power: Power, lips: Tensor | None, noise: Codes
    ) -> tuple[Codes, Float[Tensor, "*batch frame"]]:
        """Paths z of the encoder q(z_n | z_<n, s_1:N), each a function of its standard normal `noise`, and log q.

        `encode` is the same frame by frame, with the codes before at their means.
        """


class Target(Protocol):
    """An unnormalised log density over z, evaluated for all chains, utterances and frames at once.

    `event_dim` 1: frames are independent, so a kernel accepts per frame; 2: the utterance is one event, and log
    densities have no frame axis.

    Some kernels need more, and refuse a target that has it not (an attribute that is absent, or None):

        gaussian, log_likelihood(z)   the density is the Normal `gaussian` times a likelihood: pcn, elliptical_slice
        component_log_joint(z)        (component, chain, ..., frame), whose logsumexp is the density: gibbs
        components                    p(z | k), a Normal batched (component, 1, ..., frame): pcn inside gibbs
        proposal                      a Normal near the density, and wider: independence
        value_and_grad(z)             the density and its gradient, where that is faster than autograd: mala, ula, hmc
    """

    @property
    def event_dim(self) -> int: ...

    def log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """log of the unnormalised density of every frame's code, or, (chain, ...), of every utterance's path."""


@dataclass(frozen=True)
class State:
    """The least that the next step needs; a kernel that needs more has a subclass with more tensors."""

    z: Tensor
    """The codes, (chain, ..., frame, latent)."""
    log_density: Tensor
    """The target's log density at z, (chain, ..., frame)."""


@dataclass(frozen=True)
class Info:
    """Diagnostics of one step; nothing depends on them. A kernel that knows more has a subclass."""

    accepted: Tensor
    """Whether each frame's proposal was accepted, (chain, ..., frame), bool."""
    log_ratio: Tensor | None = None
    """The logarithm of the acceptance ratio, (chain, ..., frame); None where a kernel has none."""
    diverging: Tensor | None = None
    """Whether a trajectory left the region that its step size suits, (chain, ..., frame), bool; None: cannot."""


class Kernel(Protocol):
    """One Markov transition; a frozen dataclass whose fields are its tuning constants.

    `step` takes the state that its own `init` or `step` made, which may be a subclass of `State`. A kernel whose
    `step_size` can be adapted has a `target_acceptance`; one that proposes from `target.proposal` has `uses_guide`.
    """

    def init(self, target: Target, z: Tensor) -> State: ...

    def step(self, target: Target, state: Any, *, rng: torch.Generator) -> tuple[State, Info]: ...


@dataclass(frozen=True)
class Chains:
    """What `run_chains` drew."""

    draws: Float[Tensor, "chain draw *utterance frame latent"]
    log_density: Float[Tensor, "chain draw *utterance frame"]
    accepted: Bool[Tensor, "chain draw *utterance frame"]
    """Whether the step that led to each draw was accepted."""
    diverging: Bool[Tensor, "chain draw *utterance frame"] | None
    """Whether that step diverged; None for kernels that cannot."""
    acceptance_rate: Float[Tensor, "chain *utterance frame"]
    """Mean over all steps, warm-up included."""
    state: State
    """Where the chains stand: pass `state.z` on to continue them."""
    kernel: Kernel
    """What drew them, with the step sizes that adaptation found: pass it on with the state."""


@dataclass(frozen=True)
class Guess:
    """q(z, alpha, g, a, noise | x, v): what a guide for noisy speech believes of a recording; all factors independent.

    Every `Normal` is an `Independent` of its last axis.
    """

    codes: Independent
    """q(z_n | alpha_n = k, x, v), batch (component, ..., frame), event (latent,)."""
    responsibilities: Responsibilities
    """q(alpha_n = k | x, v)."""
    log_gain: Independent
    """q(log g), batch (...), event (1,): how much louder speech is than in training."""
    response: Independent
    """q(a) of the microphone's response, batch (...), event (term,)."""
    log_noise: Independent
    """q(log (W H)_n), batch (..., frame), event (freq,)."""


class GuideForNoise(Protocol):
    """An amortised posterior of noisy speech under one prior: what `models/guide.py` implements (as an nn.Module)."""

    def guess(
        self,
        power: Power,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
    ) -> Guess:
        """What the guide believes of a whole recording |x|^2, as the schemes hear it."""


@dataclass(frozen=True)
class SpeechPosterior:
    """What a scheme believes of speech, a mixture of complex Gaussians in every frame (`inference/uncertainty.py`):

    s_n | x_n ~ sum_rk w_rk N_c(G_rk x_n, G_rk V_b),   G_rk = V_s / (V_s + V_b)
    """

    mixture: Spectrum
    """x."""
    speech_variance: Float[Tensor, "component draw *utterance frame freq"]
    """V_s at draw r with component k; component axis 1 where all share a decoder."""
    noise_variance: Float[Tensor, "component draw *utterance frame freq"]
    """V_b, or broadcasting to it."""
    weights: Float[Tensor, "component draw *utterance frame"]
    """w_rk, which sum to one."""
    of_recording: bool = False
    """Whether draw r is one of the whole recording, its noise included; else frames are independent."""


@dataclass(frozen=True, repr=False)
class Separation:
    """What a scheme returns: speech and noise of a mixture, and how it got there."""

    speech: Spectrum
    responsibilities: Responsibilities
    mixing_weight: MixingWeight
    dictionary: Float[Tensor, "*utterance rank freq"]
    """W of (28)."""
    activations: Float[Tensor, "*utterance frame rank"]
    """H of (28)."""
    objective: Float[Tensor, "iteration *utterance"]
    """The scheme's own objective after every iteration; its docstring says which."""
    z: Float[Tensor, "chain *utterance frame latent"]
    """Where the chains stand; a scheme without chains has its estimate of z here."""
    target: Target
    """The posterior of z as it stood in the last E-step, for longer runs from `z` and diagnostics."""
    chains: Chains | None = None
    """Of the last E-step; None for a scheme that runs no chains."""
    gain: Float[Tensor, "*utterance frame"] | None = None
    """g_n of S17; None where the scheme holds it at 1."""
    log_response: Float[Tensor, "*utterance freq"] | None = None
    """log c_f, the microphone's response, by which speech's variance differs from training's; None: not fitted."""
    chains_disagree: Bool[Tensor, "*utterance frame"] | None = None
    """Frames whose chains' mean log densities lie more than 5 nats apart (`GAP` in inference/monte_carlo.py): they sat
    in different modes, and r(alpha_n) there says where they began. None where there are fewer than two chains."""
    posterior: SpeechPosterior | None = None
    """Of speech itself, around `speech`; None for a scheme that ends with one code a frame, and so knows no doubt."""

    def __repr__(self) -> str:
        """Five lines, whatever the shapes."""
        *utterances, frames, freqs = self.speech.shape
        chains = (
            "no chains"
            if self.chains is None
            else "{} chains of {} draws".format(*self.chains.draws.shape)
        )
        gain = "1" if self.gain is None else f"{self.gain.mean():.3g} on average"
        first, last = (self.objective[i].sum().item() for i in (0, -1))
        pi = ", ".join(
            f"{weight:.2f}"
            for weight in self.mixing_weight.reshape(len(self.mixing_weight), -1).mean(1)
        )
        return "\n".join(
            (
                f"Separation: {frames} frames of {freqs} frequencies"
                + f", {utterances} utterances" * bool(utterances),
                f"  noise      rank {self.dictionary.shape[-2]}, speech's gain {gain}",
                f"  pi         {pi}",
                f"  z          {chains}",
                f"  objective  {first:.6g} to {last:.6g} in {len(self.objective)} iterations",
            )
        )


class Scheme(Protocol):
    """An inference algorithm for x = s + b under any speech prior; a frozen dataclass of its settings."""

    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
        seed: int = 0,
    ) -> Separation: ...


def couples_frames(prior: Any) -> bool:
    """Whether it is a `SequencePrior`."""
    return bool(getattr(prior, "couples_frames", False))


def switches(prior: Any) -> bool:
    """Whether alpha_1:N is a Markov chain (`models/switching.py`), and frames are independent given it."""
    return bool(getattr(prior, "switches", False))


JSON = dict[str, Any]
"""What a JSON object, or a TOML table, becomes."""
