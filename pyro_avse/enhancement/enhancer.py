"""A noisy recording in, speech and noise out: STFT, prior and inference scheme put together.

Several at once: `Enhancer.batch`. One that is too long for memory: `pyro_avse.enhancement.long`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from torch.nn.utils.rnn import pad_sequence

from pyro_avse.data.lips.lips import Lips, lips_from_array, lips_on_grid, mask_on_grid
from pyro_avse.data.media.audio import Audio, audio_from_array, restore
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL, SAMPLE_RATE
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.find import find_device, find_scheme
from pyro_avse.enhancement.front import Parts, log_response, low_speech, split
from pyro_avse.enhancement.upper import top_gain, upper_speech
from pyro_avse.inference.em import Observation, observe
from pyro_avse.inference.nmf import Dictionary
from pyro_avse.models.heard import HeardThrough
from pyro_avse.stft import STFT
from pyro_avse.typing import (
    GuideForNoise,
    InputError,
    Scheme,
    Separation,
    Spectrum,
    SpeechPosterior,
    couples_frames,
)
from pyro_avse.weights.checkpoint import load_prior

if TYPE_CHECKING:
    from pyro_avse.enhancement.live import Stream


@dataclass(frozen=True)
class Recording:
    """A checked recording on the STFT's grid."""

    audio: Audio
    parts: Parts
    spectrum: Spectrum
    """Of `parts.heard`."""
    lips: torch.Tensor | None
    """One picture for each STFT frame; None where there are none or the prior does not look."""
    lips_mask: torch.Tensor | None = None
    """(frame,), False where there is no picture; None where each has one."""


class Enhancer:
    """A speech prior and an inference scheme, ready for recordings.

    Args:
        prior: any speech prior; it is put on `device`.
        inference: a scheme, such as `VEM()`.
        stft: the one that the prior was trained on.
        guide: of noisy speech, where the scheme starts; "own": the one that `load_prior` loaded with the prior, if any;
            None: without.
        device: "cpu", "cuda", ..., or "auto" for the fastest at hand.
    """

    def __init__(
        self,
        prior: Any,
        inference: Scheme,
        *,
        stft: STFT | None = None,
        guide: GuideForNoise | Literal["own"] | None = "own",
        device: str | torch.device = "auto",
    ) -> None:
        self.device = find_device(device)
        self.prior = prior.to(self.device).requires_grad_(False)
        found: Any = getattr(prior, "noise_guide", None) if guide == "own" else guide
        self.guide: Any = found.to(self.device) if isinstance(found, torch.nn.Module) else found
        self.inference = inference
        self.stft = STFT() if stft is None else stft
        self.log_response = torch.from_numpy(log_response(self.stft.n_fft // 2 + 1)).float()

    def __call__(
        self,
        mixture: Shaped[np.ndarray, "sample"] | Audio,
        lips: Shaped[np.ndarray, "video_frame 67 67"] | Lips | None = None,
        fps: float | None = None,
        *,
        lips_mask: Bool[np.ndarray, "video_frame"] | None = None,
        sample_rate: int = SAMPLE_RATE,
        seed: int = 0,
        progress: Callable[[float, str], None] | None = None,
    ) -> Enhanced:
        """Enhance one recording.

        Args:
            mixture: one channel at `sample_rate` and any level, or what `load_audio` returned.
            lips: grey mouth regions, uint8 or in [0, 1], at `fps` frames a second; or what `load_lips` returned.
            lips_mask: False for video frames that show no mouth; there the sound alone counts. None: all do.
            seed: of every random draw.
            progress: as of `separate`.

        Raises:
            InputError: sound or lips that cannot be used, lips missing where the prior needs them.
        """
        recording = self.prepare(mixture, lips, fps, lips_mask=lips_mask, sample_rate=sample_rate)
        return self.separate(recording, seed=seed, progress=progress)

    def prepare(
        self,
        mixture: Shaped[np.ndarray, "sample"] | Audio,
        lips: Shaped[np.ndarray, "video_frame 67 67"] | Lips | None = None,
        fps: float | None = None,
        *,
        lips_mask: Bool[np.ndarray, "video_frame"] | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> "Recording":
        """Check one recording and its lips and put both on the STFT's grid; arguments as for a call."""
        audio = mixture if isinstance(mixture, Audio) else audio_from_array(mixture, sample_rate)
        if lips is not None and not isinstance(lips, Lips):
            if fps is None:
                raise InputError("lips without their frame rate: give fps")
            lips = lips_from_array(lips, fps, lips_mask)
        return self.place(audio, lips, 0.0, len(audio.waveform) / SAMPLE_RATE)

    def place(self, audio: Audio, lips: Lips | None, start: float, duration: float) -> "Recording":
        """Sound that begins at second `start` of a recording, on the STFT's grid, with what its lips show meanwhile.

        `lips` are of the whole recording, which lasts `duration` seconds. Raises InputError as `prepare`.
        """
        sound = self.hear(audio)
        if lips is None:
            if self.prior.requires_lips:
                raise InputError(
                    f"{type(self.prior).__name__} needs the lips: give --lips (lips=), or take a_vae"
                )
            return sound
        times = start + self.stft.frame_times(len(sound.spectrum))
        seen, known = lips_on_grid(lips, times, duration), mask_on_grid(lips, times)
        if not self.prior.uses_lips:
            return sound
        on_device = torch.from_numpy(seen).to(self.device)
        mask = None if known is None else torch.from_numpy(known).to(self.device)
        return replace(sound, lips=on_device, lips_mask=mask)

    def hear(self, audio: Audio) -> "Recording":
        """Sound alone, on the STFT's grid."""
        parts = split(audio.waveform, audio.level)
        x = self.stft.analyse(torch.from_numpy(parts.heard.astype(np.float32)).to(self.device))
        return Recording(audio, parts, x, None)

    def separate(
        self,
        recording: "Recording",
        *,
        seed: int = 0,
        dictionary: Dictionary | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> Enhanced:
        """Speech and noise of a prepared recording, at its own rate, length and level.

        Args:
            dictionary: where W starts, (rank, freq), for the schemes that take one (`vem`, `mcem`).
            progress: told the fraction done, and a text, after every EM iteration of the schemes that have them.
        """
        more: dict[str, Any] = {} if self.guide is None else {"guide": self.guide}
        if dictionary is not None:
            more["dictionary"] = dictionary
        if progress is not None and "progress" in signature(self.inference).parameters:
            more["progress"] = lambda state, total: progress(
                state.iteration / total, f"EM iteration {state.iteration} of {total}"
            )
        if recording.lips_mask is not None:
            more["lips_mask"] = recording.lips_mask
        prior = self.prior_of(recording)
        result = self.inference(prior, recording.spectrum, recording.lips, seed=seed, **more)
        return self.synthesise(recording, result)

    def batch(self, recordings: Sequence["Recording"], *, seed: int = 0) -> list[Enhanced]:
        """Several prepared recordings in one run of the scheme, as utterances padded to the longest.

        Neither padding nor another recording's sound enters into a recording's result, but all share one stream of
        random numbers: what is drawn for one depends on how many there are and how long the longest is. One recording
        alone is `separate` of it, to the last bit. Any scheme can; one that stops by itself goes on until all are done,
        and `nuts`, `auto_normal` take utterances one after the other, so that they gain little.

        Raises:
            InputError: none; some with lips and some without, or lips of two types: what stands in one tensor is alike.
            Divergence: in any of them.
        """
        kinds = {None if r.lips is None else r.lips.dtype for r in recordings}
        if len(kinds) != 1:
            found = ", ".join(sorted("no lips" if k is None else f"lips {k}" for k in kinds))
            raise InputError(f"a batch of {found or 'no recordings'}: give one or more of one kind")
        if len(recordings) == 1:
            return [self.separate(recordings[0], seed=seed)]
        lengths = torch.tensor([len(r.spectrum) for r in recordings], device=self.device)
        x = pad_sequence([r.spectrum for r in recordings], batch_first=True)
        seen = [r.lips for r in recordings if r.lips is not None]
        lips = pad_sequence(seen, batch_first=True) if seen else None
        mask = torch.arange(x.shape[1], device=self.device) < lengths[:, None]
        more: dict[str, Any] = {} if self.guide is None else {"guide": self.guide}
        if any(r.lips_mask is not None for r in recordings):
            shown = [
                torch.ones(len(r.spectrum), dtype=torch.bool, device=self.device)
                if r.lips_mask is None
                else r.lips_mask
                for r in recordings
            ]
            more["lips_mask"] = pad_sequence(shown, batch_first=True)
        prior = self.prior_of(recordings[0])
        result = self.inference(prior, x, lips, mask=mask, seed=seed, **more)
        return [
            self.synthesise(r, of_utterance(result, i, len(r.spectrum)))
            for i, r in enumerate(recordings)
        ]

    def stream(
        self,
        sample_rate: int = SAMPLE_RATE,
        *,
        guide: Any = None,
        scheme: Any = None,
        seed: int = 0,
    ) -> "Stream":
        """For sound that is still coming in, without lips: `push` its samples, and `flush` at the end.

        Args:
            sample_rate: of the samples, in Hz.
            guide: a causal one of this prior; None: `guide`, which then must be causal.
            scheme: `ldem` or `mcem` with its settings of a block of 0.1 s; None: `live_scheme()`.
            seed: of every random draw.

        Raises InputError for a guide that looks ahead, and a prior that needs lips or couples frames.
        """
        from pyro_avse.enhancement.live import Stream

        if self.prior.requires_lips:
            raise InputError(
                f"a stream has no lips, which {type(self.prior).__name__} needs: take a_vae"
            )
        if couples_frames(self.prior):
            raise InputError(
                f"a stream comes in by frames, and {type(self.prior).__name__} looks at whole recordings: take a_vae"
            )
        alone = getattr(self.prior, "without_lips", self.prior)
        found: Any = self.guide if guide is None else guide.to(self.device)
        return Stream(
            HeardThrough(alone, self.log_response.to(self.device)),
            found,
            scheme=scheme,
            stft=self.stft,
            sample_rate=sample_rate,
            seed=seed,
            device=self.device,
        )

    def prior_of(self, recording: "Recording") -> Any:
        """The prior, as it is heard through the front's high-pass."""
        prior = self.prior
        prior = getattr(prior, "without_lips", prior) if recording.lips is None else prior
        return HeardThrough(prior, self.log_response.to(self.device))

    def observe(self, recording: "Recording") -> Observation:
        """What the steps of a scheme are given of a recording, the guide's beliefs among it.

        scheme, observation = enhancer.inference, enhancer.observe(recording)
        state = scheme.init(observation, rng=rng)
        state = scheme.step(observation, state, rng=rng)        # as often as you like
        enhanced = enhancer.synthesise(recording, scheme.finish(observation, state, rng=rng))
        """
        prior, x, lips = self.prior_of(recording), recording.spectrum, recording.lips
        return observe(prior, x, lips, lips_mask=recording.lips_mask, guide=self.guide)

    def synthesise(self, recording: "Recording", result: Separation) -> Enhanced:
        """Waveforms of what a scheme returned, at the recording's rate, length and level."""
        audio, disagree = recording.audio, result.chains_disagree
        speech_16k, speech = self.restored(recording, result.speech)
        return Enhanced(
            speech=speech,
            recording=audio.original,
            sample_rate=audio.sample_rate,
            speech_16k=speech_16k,
            responsibilities=result.responsibilities.cpu().numpy(),
            chains_disagree=None if disagree is None else disagree.cpu().numpy(),
            frame_times=self.stft.frame_times(len(recording.spectrum)),
            objective=result.objective.cpu().numpy(),
            separation=result,
            restore=lambda spectrum: self.restored(recording, spectrum)[1],
            unit=recording.parts.level * audio.peak,
        )

    def restored(
        self, recording: "Recording", speech: Spectrum
    ) -> tuple[Float32[np.ndarray, "sample_16k"], Float32[np.ndarray, "sample"]]:
        """A spectrum of speech as a waveform at 16 kHz, and with its upper part at the recording's rate and level."""
        audio, parts = recording.audio, recording.parts
        heard = self.stft.synthesise(speech, len(audio.waveform)).cpu().numpy().astype(np.float64)
        low = low_speech(parts, heard, self.stft)
        waveform = parts.restore(heard, low).astype(np.float32)
        times = self.stft.frame_times(len(recording.spectrum))
        gain = top_gain(speech, recording.spectrum)
        return waveform, restore(waveform, audio) + upper_speech(audio, gain, times, parts.clicks)


def of_utterance(batch: Separation, index: int, frames: int) -> Separation:
    """One utterance of a separation with one utterance axis, cut to its frames.

    A target cannot be cut, and stays the batch's; chains are left out, as their kernel may hold step sizes of all.
    """
    return replace(
        batch,
        speech=batch.speech[index, :frames],
        responsibilities=batch.responsibilities[:, index, :frames],
        mixing_weight=batch.mixing_weight[:, index],
        dictionary=batch.dictionary[index],
        activations=batch.activations[index, :frames],
        objective=batch.objective[:, index],
        z=batch.z[:, index, :frames],
        gain=None if batch.gain is None else batch.gain[index, :frames],
        log_response=None if batch.log_response is None else batch.log_response[index],
        chains_disagree=(
            None if batch.chains_disagree is None else batch.chains_disagree[index, :frames]
        ),
        chains=None,
        posterior=batch.posterior and of_recording(batch.posterior, index, frames),
    )


def of_recording(batch: SpeechPosterior, index: int, frames: int) -> SpeechPosterior:
    """The same of a posterior."""
    return replace(
        batch,
        mixture=batch.mixture[index, :frames],
        speech_variance=batch.speech_variance[:, :, index, :frames],
        noise_variance=batch.noise_variance[:, :, index, :frames],
        weights=batch.weights[:, :, index, :frames],
    )


def enhance(
    mixture: Shaped[np.ndarray, "sample"],
    lips: Shaped[np.ndarray, "video_frame 67 67"] | None = None,
    fps: float | None = None,
    *,
    lips_mask: Bool[np.ndarray, "video_frame"] | None = None,
    sample_rate: int = SAMPLE_RATE,
    model: str | Path = DEFAULT_MODEL,
    inference: str | Scheme = DEFAULT_INFERENCE,
    guide: str | Path | None = "own",
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Enhanced:
    """Enhance one noisy recording with a bundled model.

    Args:
        mixture: one channel, (sample,), any level.
        lips: (video_frame, 67, 67) grey mouth regions, uint8 or in [0, 1]; None: without.
        fps: of the lips.
        lips_mask: False for video frames that show no mouth; None: all do.
        sample_rate: of the mixture, in Hz.
        model: a bundled name or a weight file.
        inference: a name of `SCHEMES`, or a scheme with settings of its own.
        guide: for noisy speech: "own", the one that came with the model if there is one; None; or a file of yours.
        progress: told the fraction done, and a text, after every EM iteration; `notebook_bar()` in a notebook.

    Returns:
        `Enhanced`, whose `.speech` is float32 of the mixture's length and level.

    Raises:
        InputError: in one line, what cannot be used and what to do.
    """
    prior, stft = load_prior(model, guide=guide)
    scheme = find_scheme(inference) if isinstance(inference, str) else inference
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    return enhancer(
        mixture,
        lips,
        fps,
        lips_mask=lips_mask,
        sample_rate=sample_rate,
        seed=seed,
        progress=progress,
    )
