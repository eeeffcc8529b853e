"""A noisy recording in, speech and noise out: STFT, prior and inference scheme put together."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped

from pyro_avse.checkpoint import load_prior
from pyro_avse.data.audio import SAMPLE_RATE, Audio, audio_from_array, restore
from pyro_avse.data.lips import Lips, lips_from_array, lips_on_grid
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.inference import KERNELS, SCHEMES
from pyro_avse.inference.adaptation import Adaptation, DualAveraging, RobbinsMonro
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Kernel, Scheme, Separation, Spectrum

ADAPTATIONS = {"robbins_monro": RobbinsMonro, "dual_averaging": DualAveraging}


@dataclass(frozen=True)
class Enhanced:
    """What comes out of a recording; waveforms have its rate, length and level."""

    speech: Float32[np.ndarray, "sample"]
    noise: Float32[np.ndarray, "sample"]
    """The mixture minus the speech; at another rate than 16 kHz without what resampling drops of either."""
    sample_rate: int
    speech_16k: Float32[np.ndarray, "sample_16k"]
    """The speech at 16 kHz where the mixture's peak is 1, for scoring."""
    responsibilities: Float[np.ndarray, "component frame"]
    """r(alpha_n): row 0 is audio, the paper's pi_n; one row of ones for VAE-MM without lips, which is then A-VAE."""
    frame_times: Float[np.ndarray, "frame"]
    """Frame centres, in seconds."""
    objective: Float[np.ndarray, "iteration"]
    separation: Separation
    """All that the scheme returned, chains included, on its device."""


@dataclass(frozen=True)
class Recording:
    """A checked recording on the STFT's grid."""

    audio: Audio
    spectrum: Spectrum
    lips: torch.Tensor | None
    """One picture for each STFT frame; None where there are none or the prior does not look."""


class Enhancer:
    """A speech prior and an inference scheme, ready for recordings.

    Args:
        prior: any speech prior; it is put on `device`.
        inference: a scheme, such as `VEM()`.
        stft: the one that the prior was trained on.
        device: "cpu", "cuda", ..., or "auto" for the fastest at hand.
    """

    def __init__(
        self,
        prior: Any,
        inference: Scheme,
        *,
        stft: STFT | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.device = find_device(device)
        self.prior = prior.to(self.device).requires_grad_(False)
        self.inference = inference
        self.stft = STFT() if stft is None else stft

    def __call__(
        self,
        mixture: Shaped[np.ndarray, "sample"] | Audio,
        lips: Shaped[np.ndarray, "video_frame 67 67"] | Lips | None = None,
        fps: float | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        seed: int = 0,
    ) -> Enhanced:
        """Enhance one recording.

        Args:
            mixture: one channel at `sample_rate` and any level, or what `load_audio` returned.
            lips: grey mouth regions, uint8 or in [0, 1], at `fps` frames a second; or what `load_lips` returned.
            seed: of every random draw.

        Raises:
            InputError: sound or lips that cannot be used, lips missing where the prior needs them.
        """
        recording = self.prepare(mixture, lips, fps, sample_rate=sample_rate)
        return self.separate(recording, seed=seed)

    def prepare(
        self,
        mixture: Shaped[np.ndarray, "sample"] | Audio,
        lips: Shaped[np.ndarray, "video_frame 67 67"] | Lips | None = None,
        fps: float | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
    ) -> "Recording":
        """Check one recording and its lips and put both on the STFT's grid; arguments as for a call."""
        audio = mixture if isinstance(mixture, Audio) else audio_from_array(mixture, sample_rate)
        x = self.stft.analyse(torch.from_numpy(audio.waveform).to(self.device))
        if lips is None:
            if self.prior.requires_lips:
                raise InputError(
                    f"{type(self.prior).__name__} needs the lips: give --lips (lips=), or take a_vae"
                )
            return Recording(audio, x, None)
        if not isinstance(lips, Lips):
            if fps is None:
                raise InputError("lips without their frame rate: give fps")
            lips = lips_from_array(lips, fps)
        seen = lips_on_grid(lips, self.stft.frame_times(len(x)), len(audio.waveform) / SAMPLE_RATE)
        on_device = torch.from_numpy(seen).to(self.device) if self.prior.uses_lips else None
        return Recording(audio, x, on_device)

    def separate(self, recording: "Recording", *, seed: int = 0) -> Enhanced:
        """Speech and noise of a prepared recording, at its own rate, length and level."""
        audio, x = recording.audio, recording.spectrum
        prior = self.prior
        if recording.lips is None:
            prior = getattr(prior, "without_lips", prior)
        result = self.inference(prior, x, recording.lips, seed=seed)
        speech = self.stft.synthesise(result.speech, len(audio.waveform)).cpu().numpy()
        return Enhanced(
            speech=restore(speech, audio),
            noise=restore(audio.waveform - speech, audio),
            sample_rate=audio.sample_rate,
            speech_16k=speech,
            responsibilities=result.responsibilities.cpu().numpy(),
            frame_times=self.stft.frame_times(len(x)),
            objective=result.objective.cpu().numpy(),
            separation=result,
        )


def enhance(
    mixture: Shaped[np.ndarray, "sample"],
    lips: Shaped[np.ndarray, "video_frame 67 67"] | None = None,
    fps: float | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    model: str | Path = DEFAULT_MODEL,
    inference: str | Scheme = DEFAULT_INFERENCE,
    device: str = "auto",
    seed: int = 0,
) -> Enhanced:
    """Enhance one noisy recording with a bundled model.

    Args:
        mixture: one channel, (sample,), any level.
        lips: (video_frame, 67, 67) grey mouth regions, uint8 or in [0, 1]; None: without.
        fps: of the lips.
        sample_rate: of the mixture, in Hz.
        model: a bundled name or a weight file.
        inference: a name of `SCHEMES`, or a scheme with settings of its own.

    Returns:
        `Enhanced`, whose `.speech` is float32 of the mixture's length and level.

    Raises:
        InputError: in one line, what cannot be used and what to do.
    """
    prior, stft = load_prior(model)
    scheme = find_scheme(inference) if isinstance(inference, str) else inference
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    return enhancer(mixture, lips, fps, sample_rate=sample_rate, seed=seed)


def find_scheme(name: str, **settings: Any) -> Scheme:
    """The scheme of that name, with settings other than its defaults.

    Raises:
        InputError: no scheme of that name, or a setting that it has not.
    """
    return _called("inference scheme", SCHEMES, name, settings)


def find_kernel(name: str, **settings: Any) -> Kernel:
    """The kernel of that name, with tuning constants other than its defaults; "gibbs:pcn" is gibbs with pcn inside.

    Raises:
        InputError: no kernel of that name, or a constant that it has not.
    """
    name, _, inner = name.partition(":")
    if inner:
        settings["inner"] = find_kernel(inner)
    return _called("kernel", KERNELS, name, settings)


def find_adaptation(name: str, **settings: Any) -> Adaptation:
    """How step sizes are adapted, by its name in `ADAPTATIONS`. Raises InputError as `find_kernel`."""
    return _called("adaptation", ADAPTATIONS, name, settings)


def _called(
    kind: str, registry: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any]
) -> Any:
    if name not in registry:
        raise InputError(f"unknown {kind} {name!r}: known are {', '.join(registry)}")
    known = inspect.signature(registry[name]).parameters
    for setting in settings:
        if setting not in known:
            raise InputError(f"{name} has no setting {setting!r}: known are {', '.join(known)}")
    return registry[name](**settings)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(name)!r} cannot be used ({reason}): take cpu") from None
    return torch.device(name)
