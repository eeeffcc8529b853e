"""Sound that is still coming in: blocks in, blocks out, 0.27 s later.

    stream = Enhancer(prior, Guided(), guide=causal_guide).stream(sample_rate=16000)
    for block in microphone:                       # any number of samples
        play(stream.push(block))
    play(stream.flush())                           # as many samples came out as went in

Every two frames (67 ms) the window of the last 0.7 s is taken once more through the scheme's own E- and M-step. What it
knew is carried on: W, H, the gain, the microphone's response and the chains. The guide hears some frames ahead; the
newest ones wait until then. They start where it says: their codes, and H, at the dictionary W as it is, from the noise
that it hears. Then the window's newest frames are filtered and leave. What is done is the scheme's EM on a window that
slides; nothing depends on how samples were pushed.

The front (`pyro_avse.enhancement.front`) is the offline one as far as can be: its high-pass runs forwards, and
backwards over the 30 ms that are known after a frame; the level is that of the last 30 s; lone clicks stay. Memory is
constant. `Stream.delay` seconds pass at most between a sample and its enhanced one: a window, two frames, those that
the guide hears ahead, and 30 ms.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import soxr
import torch
from jaxtyping import Float32, Shaped

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.distributions import squared_magnitude
from pyro_avse.enhancement.blocks import AHEAD, LOW_CONTEXT, Overlap, Sound
from pyro_avse.enhancement.front import Parts, low_speech
from pyro_avse.inference.em import Observation
from pyro_avse.inference.guess import lengthened, louder
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.monte_carlo import MCEMState
from pyro_avse.inference.nmf import is_nmf_update_H
from pyro_avse.inference.run import unchecked
from pyro_avse.models.ear import Memory
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.typing import Guess, InputError

BLOCK, WINDOW = 2, 20
"""Frames that leave at once, and that are looked at."""
CHUNK = 0.01
"""Seconds that are resampled at a time."""


def live_scheme() -> Guided:
    """`guided` with what a block has time for. It leans on the guide: a frame passes through ten M-steps on its way
    through the window, in which a noise model that moves at full speed takes speech.
    """
    return Guided(
        iterations=1,
        first_warmup=1,
        warmup=1,
        final_warmup=1,
        final_draws=2,
        chains=1,
        exponent=0.1,
        filter_share=0.9,
        clear_share=0.9,
        noise=NoiseModel(start="guide"),
    )


class Stream:
    """One recording on its way through; `Enhancer.stream` makes it.

    Args:
        prior: as the front's filter lets it be heard.
        guide: causal, of that prior.
        scheme: `guided`, `ldem` or `mcem`, with its settings of a block.
        sample_rate: of the samples that are pushed, in Hz.
        seed: of every random draw.

    Raises:
        InputError: a guide that looks ahead; a scheme without chains that go on.
    """

    def __init__(
        self,
        prior: Any,
        guide: NoisyGuide,
        *,
        scheme: MCEM | None = None,
        stft: STFT | None = None,
        sample_rate: int = SAMPLE_RATE,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not getattr(guide, "causal", False):
            raise InputError(
                "a stream needs a guide that sees the past alone: train one with causal = true under [options]"
            )
        if sample_rate < 8000:
            raise InputError(f"a stream at {sample_rate} Hz: give it in Hz, 8000 or more")
        self.prior, self.guide, self.device = prior, guide, torch.device(device)
        self.scheme = live_scheme() if scheme is None else scheme
        if not isinstance(self.scheme, MCEM):
            raise InputError("a stream goes on with its chains: take ldem or mcem")
        self.stft = STFT() if stft is None else stft
        self.sample_rate = sample_rate
        self.rng = torch.Generator(device=self.device).manual_seed(seed)
        self.state: MCEMState | None = None
        self.level = 0.0
        self._pushed = self._given = 0
        self._flushed = False
        self._chunk = max(1, round(CHUNK * sample_rate))
        self._waiting = np.zeros(0)
        self._resamplers = None
        if sample_rate != SAMPLE_RATE:
            rates = ((sample_rate, SAMPLE_RATE), (SAMPLE_RATE, sample_rate))
            self._resamplers = [soxr.ResampleStream(a, b, 1, dtype="float64") for a, b in rates]
        self._sound = Sound(self.stft)
        self._memory: Memory | None = None
        self._unit = 1.0
        """Of what the memory heard."""
        self._guess: Guess | None = None
        self._spectra = torch.zeros(
            0, self.stft.n_fft // 2 + 1, dtype=torch.complex64, device=self.device
        )
        self._ahead = self._spectra
        """Frames that the guide has heard but does not speak of yet."""
        self._out = Overlap(self.stft)

    @property
    def delay(self) -> float:
        """Seconds between a sample and its enhanced one, at most."""
        resampling = 0 if self._resamplers is None else 0.02
        frames = BLOCK + self.guide.ear.ahead
        return (self.stft.n_fft + frames * self.stft.hop + AHEAD) / SAMPLE_RATE + CHUNK + resampling

    def push(
        self, samples: Shaped[np.ndarray, "sample"], sample_rate: int | None = None
    ) -> Float32[np.ndarray, "enhanced"]:
        """The next samples of one channel, floating point; what of the enhanced is done by now, perhaps nothing.

        Raises InputError for an empty block, another rate than the stream's, integers, NaN, and after `flush`.
        """
        if self._flushed:
            raise InputError("the stream was flushed: begin another one")
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise InputError(
                f"a block at {sample_rate} Hz in a stream of {self.sample_rate} Hz: resample it, or begin a new stream"
            )
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise InputError(
                f"a block of {samples.dtype} and shape {samples.shape}: give one channel of floating-point samples"
            )
        if len(samples) == 0:
            raise InputError("an empty block: push samples, or flush at the end")
        if not np.isfinite(samples).all():
            raise InputError("a block holds NaN or infinite samples: mend it")
        self._pushed += len(samples)
        self._waiting = np.concatenate([self._waiting, samples.astype(np.float64)])
        done = [np.zeros(0)]
        while len(self._waiting) >= self._chunk:
            chunk, self._waiting = np.split(self._waiting, [self._chunk])
            done.append(self._enhanced(chunk))
        return self._leave(np.concatenate(done))

    def flush(self) -> Float32[np.ndarray, "enhanced"]:
        """The rest: with what `push` returned, as many samples as were pushed."""
        if self._flushed:
            raise InputError("the stream was flushed already: begin another one")
        self._flushed = True
        missing = self._pushed - self._given
        done = [self._enhanced(self._waiting)] if len(self._waiting) else []
        silence = np.zeros(self._chunk)
        while sum(map(len, done)) < missing:
            done.append(self._enhanced(silence))
        rest = np.concatenate([np.zeros(0), *done])[:missing]
        return self._leave(rest)

    def _leave(self, done: np.ndarray) -> Float32[np.ndarray, "enhanced"]:
        self._given += len(done)
        return done.astype(np.float32)

    def _enhanced(self, chunk: np.ndarray) -> np.ndarray:
        """What a chunk at the stream's rate completes, at that rate."""
        if self._resamplers is None:
            return self._enhanced_16k(chunk)
        into, back = self._resamplers
        done = self._enhanced_16k(into.resample_chunk(chunk))
        return back.resample_chunk(done)

    def _enhanced_16k(self, samples: np.ndarray) -> np.ndarray:
        self._sound.add(samples)
        done = [np.zeros(0)]
        while (frames := self._sound.take_frames(BLOCK)) is not None:
            done.append(self._block(frames))
        return np.concatenate(done)

    @unchecked
    def _block(self, spectra: torch.Tensor) -> np.ndarray:
        """The enhanced samples that a block of frames completes."""
        self._ahead = torch.cat([self._ahead, spectra.to(self.device)])
        level = self._sound.level
        if level == 0:  # digital silence so far, or for as long as the level remembers
            due, self._ahead = self._ahead, self._ahead[:0]
            self._spectra, self.state, self._guess, self._memory = self._ahead, None, None, None
            return self._completed(torch.zeros_like(due))
        x_new = self._ahead[-len(spectra) :] / level
        if self._memory is not None:
            self._memory = self._memory.rescaled((self._unit / level) ** 2)
        self._unit = level
        guess, self._memory = self.guide.carry_on(squared_magnitude(x_new).float(), self._memory)
        count = guess.log_noise.mean.shape[-2]
        due, self._ahead = self._ahead.tensor_split([count])
        return self._completed(self._filtered(due, guess, level)) if count else np.zeros(0)

    def _completed(self, speech: torch.Tensor) -> np.ndarray:
        """The samples that the next frames of speech complete, what lies below the cutoff included."""
        heard = self._out.add(speech.cpu())
        return heard + self._low(len(heard)) if len(heard) else heard

    def _low(self, count: int) -> np.ndarray:
        """What of the newest `count` samples below the cutoff is speech's, by the last two seconds."""
        stop = self._out.speech.stop
        start = max(self._out.speech.start, stop - LOW_CONTEXT)
        if stop - start < 2 * self.stft.n_fft:
            return np.zeros(count)
        parts = Parts(self._sound.heard.get(start, stop), self._sound.low(start, stop), 1.0)
        found = low_speech(parts, self._out.speech.get(start, stop), self.stft)[-count:]
        self._sound.forget(start)
        return found

    def _filtered(self, spectra: torch.Tensor, guess: Guess, level: float) -> torch.Tensor:
        """Speech of the newest frames, in the recording's unit."""
        new = len(spectra)
        if self.state is not None and self._guess is not None:
            step = (self.level / level) ** 2
            self.state, self._guess = rescaled(self.state, step), louder(self._guess, step)
        self.level = level
        known = min(len(self._spectra), WINDOW - new)
        self._spectra = torch.cat([self._spectra[len(self._spectra) - known :], spectra])
        x = self._spectra / level
        self._guess = guess if self._guess is None else lengthened(self._guess, guess, known)
        power = squared_magnitude(x)
        observation = Observation(self.prior, x, power, None, None, guess=self._guess)
        self.state = self._start(observation, guess, known, new)
        for _ in range(self.scheme.iterations):
            self.state = self.scheme.step(observation, self.state, rng=self.rng)
        found = self.scheme.finish(observation, self.state, rng=self.rng)
        self.state = replace(self.state, z=found.z)
        return level * found.speech[-new:]

    def _start(self, observation: Observation, guess: Guess, known: int, new: int) -> MCEMState:
        """The state over the window: what was known of its frames, and what the guide says of the new ones."""
        ending = replace(
            observation, x=observation.x[-new:], power=observation.power[-new:], guess=guess
        )
        fresh = self.scheme.init(ending, rng=self.rng)
        if self.state is None:
            return fresh
        old, W = self.state, self.state.dictionary
        V = guess.log_noise.mean.exp()
        H = fresh.activations
        for _ in range(4):
            H = is_nmf_update_H(V, W, H, exponent=0.5)

        def joined(before: torch.Tensor, after: torch.Tensor, dim: int) -> torch.Tensor:
            return torch.cat([before.narrow(dim, before.shape[dim] - known, known), after], dim)

        gain = old.gain[-1:].expand(new)
        power = observation.power
        return replace(
            old,
            activations=joined(old.activations, H, 0),
            responsibilities=joined(old.responsibilities, fresh.responsibilities, 1),
            z=joined(old.z, fresh.z, 1),
            gain=joined(old.gain, gain, 0),
            speech_power=joined(old.speech_power, power[-new:], 0),
            kernel=self.scheme.kernel,
            iteration=1,
        )


def rescaled(state: MCEMState, power: float) -> MCEMState:
    """A state in a unit in which all powers are `power` times as large."""
    return replace(state, activations=state.activations * power, gain=state.gain * power)
