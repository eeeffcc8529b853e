"""Several voices in one recording, taken apart by the lips of the speakers. [Nguyen2021]

    separated = pyro_avse.separate(mixture, [lips_a, lips_b], fps=25, sample_rate=48000)
    separated.speech[0], separated.speech[1], separated.noise          # they sum to the mixture

A `Separator` is to several speakers what an `Enhancer` is to one, and takes its STFT, its front and its way back from
there: a separating guide (models/separating_guide.py) says whose voice is whose, `SpeakersEM` goes on from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped
from torch import Tensor

from pyro_avse.data.lips.lips import Lips, lips_from_array, lips_on_grid, mask_on_grid
from pyro_avse.data.media.audio import Audio, audio_from_array
from pyro_avse.data.media.blocks import Blocks
from pyro_avse.defaults import SAMPLE_RATE, SEPARATION_MODEL
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.long import fade_in
from pyro_avse.inference.speakers import SpeakersEM
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Separation
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import load_separating_guide

Waveform = Float32[np.ndarray, "sample"]
Voices = Float32[np.ndarray, "speaker sample"]
Pictures = Shaped[np.ndarray, "video_frame 67 67"] | Lips | None


@dataclass(frozen=True, repr=False)
class Separated:
    """What comes out of a recording of several speakers; waveforms have its rate, length and level."""

    speech: Float32[np.ndarray, "speaker sample"]
    """In the order of the lips."""
    recording: Float32[np.ndarray, "sample"]
    """As it came."""
    sample_rate: int
    speech_16k: Float32[np.ndarray, "speaker sample_16k"]
    """The speech at 16 kHz where the mixture's peak is 1, for scoring."""
    frame_times: Float[np.ndarray, "frame"]
    """Frame centres, in seconds."""
    objective: Float[np.ndarray, "iteration"]
    separation: Separation
    """All that `SpeakersEM` returned, on its device."""

    @property
    def noise(self) -> Float32[np.ndarray, "sample"]:
        """The recording minus all speech."""
        rest: np.ndarray = self.recording - self.speech.sum(0)
        return rest

    def __repr__(self) -> str:
        """A line, and one a speaker."""
        loud = [float(np.square(s, dtype=np.float64).mean()) for s in (*self.speech, self.noise)]
        total = sum(loud) or 1.0
        names = [f"speaker {j + 1}" for j in range(len(self.speech))] + ["noise"]
        seconds = self.speech.shape[-1] / self.sample_rate
        lines = [f"Separated: {seconds:.2f} s at {self.sample_rate} Hz"]
        return "\n".join(
            [
                *lines,
                *(
                    f"  {n:10s} {p / total:.0%} of the power"
                    for n, p in zip(names, loud, strict=True)
                ),
            ]
        )


@dataclass(frozen=True)
class SpeakersRecording:
    """A checked recording of several speakers on the STFT's grid."""

    sound: Recording
    lips: Tensor | None
    """(speaker, frame, 67, 67); None where nobody is seen."""
    lips_mask: Bool[Tensor, "speaker frame"] | None
    """False where there is no picture; None where each has one."""


class Separator:
    """A speech prior, a separating guide of it and a scheme, ready for recordings.

    Args:
        prior: any frame-wise speech prior; it is put on `device`.
        scheme: with settings of its own.
        speakers: J.
        stft: the one that the prior was trained on.
        guide: `load_separating_guide`'s; None: chains start at the prior's encoders.
        device: "cpu", "cuda", ..., or "auto" for the fastest at hand.

    Raises InputError for fewer than two speakers.
    """

    def __init__(
        self,
        prior: Any,
        scheme: SpeakersEM | None = None,
        *,
        speakers: int = 2,
        stft: STFT | None = None,
        guide: Any = None,
        device: str | torch.device = "auto",
    ) -> None:
        if speakers < 2:
            raise InputError(f"{speakers} speaker to separate: give two or more, or enhance")
        self.inference = SpeakersEM() if scheme is None else scheme
        self.enhancer = Enhancer(prior, self.inference, stft=stft, guide=None, device=device)
        self.guide = None if guide is None else guide.to(self.enhancer.device)
        self.speakers = speakers

    def __call__(
        self,
        mixture: Shaped[np.ndarray, "sample"] | Audio,
        lips: Sequence[Pictures],
        fps: float | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        seed: int = 0,
    ) -> Separated:
        """Separate one recording.

        Args:
            mixture: one channel at `sample_rate` and any level, or what `load_audio` returned.
            lips: of every speaker, grey mouth regions as `Enhancer` takes them, at `fps`; None: he is not seen.
            seed: of every random draw.

        Raises:
            InputError: sound or lips that cannot be used, of another number of speakers, or the same twice.
        """
        audio = mixture if isinstance(mixture, Audio) else audio_from_array(mixture, sample_rate)
        seen = [_checked(each, fps) for each in lips]
        refuse_alike(seen, [f"lips of speaker {j + 1}" for j in range(len(seen))])
        duration = len(audio.waveform) / SAMPLE_RATE
        return self.separate(self.place(audio, seen, 0.0, duration), seed=seed)

    def place(
        self, audio: Audio, lips: Sequence[Lips | None], start: float, duration: float
    ) -> SpeakersRecording:
        """As `Enhancer.place`, with the lips of every speaker. Raises InputError for those of another number."""
        speakers = self.speakers
        if len(lips) != speakers:
            raise InputError(
                f"lips of {len(lips)} speaker{'s' * (len(lips) != 1)} for {speakers}: give one pair of lips for each"
            )
        enhancer = self.enhancer
        sound = enhancer.hear(audio)
        frames = len(sound.spectrum)
        times = start + enhancer.stft.frame_times(frames)
        shown: list[np.ndarray] = []
        known = np.zeros((speakers, frames), bool)
        for j, each in enumerate(lips):
            if each is None:
                shown.append(np.zeros((frames, 67, 67), np.uint8))
                continue
            pictures = lips_on_grid(each, times, duration)
            if pictures.dtype != np.uint8:
                pictures = np.round(255 * pictures).astype(np.uint8)
            shown.append(pictures)
            seen = mask_on_grid(each, times)
            known[j] = True if seen is None else seen
        if not known.any():
            return SpeakersRecording(sound, None, None)
        on_device = torch.from_numpy(np.stack(shown)).to(enhancer.device)
        mask = None if known.all() else torch.from_numpy(known).to(enhancer.device)
        return SpeakersRecording(sound, on_device, mask)

    def separate(self, recording: SpeakersRecording, *, seed: int = 0) -> Separated:
        """The voices of a prepared recording, at its own rate, length and level."""
        enhancer, sound = self.enhancer, recording.sound
        result = self.inference.separate(
            enhancer.prior_of(replace(sound, lips=recording.lips)),
            sound.spectrum,
            recording.lips,
            speakers=self.speakers,
            lips_mask=recording.lips_mask,
            seed=seed,
            guide=self.guide,
        )
        found = [enhancer.restored(sound, speech) for speech in result.speech]
        return Separated(
            speech=np.stack([speech for _, speech in found]),
            recording=sound.audio.original,
            sample_rate=sound.audio.sample_rate,
            speech_16k=np.stack([speech for speech, _ in found]),
            frame_times=enhancer.stft.frame_times(len(sound.spectrum)),
            objective=result.objective.cpu().numpy(),
            separation=result,
        )


def separate_blocks(
    separator: Separator, blocks: Blocks, lips: Sequence[Lips | None], *, seed: int = 0
) -> Iterator[tuple[Voices, Waveform]]:
    """Separate a recording block by block, as `enhance_blocks` enhances one: voices, and the recording as it came.

    Lips say in every block anew who is who. `lips` are of the whole recording; `seed` is that of the first block, the
    others count on from it.
    """
    duration = blocks.num_samples / blocks.sample_rate
    held = np.zeros((separator.speakers, 0), np.float32)
    ends = [start for start, _ in blocks.spans[1:]] + [blocks.num_samples]
    for index, (audio, (start, _), end) in enumerate(
        zip(blocks.read(), blocks.spans, ends, strict=True)
    ):
        speech = np.zeros((separator.speakers, audio.num_samples), np.float32)
        if audio.waveform.any():
            recording = separator.place(audio, lips, start / blocks.sample_rate, duration)
            speech = separator.separate(recording, seed=(seed + index) % 2**63).speech.copy()
        common, after = held.shape[1], audio.num_samples - (end - start)
        speech[:, :common] = held + fade_in(common) * speech[:, :common]
        yield speech[:, : end - start], audio.original[: end - start]
        held = (1 - fade_in(after)) * speech[:, end - start :]


def refuse_alike(lips: Sequence[Lips | None], names: Sequence[str]) -> None:
    """Raises InputError where two speakers have the same pictures."""
    for j, each in enumerate(lips):
        for i, other in enumerate(lips[:j]):
            if each is not None and other is not None and np.array_equal(each.frames, other.frames):
                raise InputError(
                    f"{names[i]} and {names[j]} show the same face: give each speaker his own"
                )


def _checked(lips: Pictures, fps: float | None) -> Lips | None:
    if lips is None or isinstance(lips, Lips):
        return lips
    if fps is None:
        raise InputError("lips without their frame rate: give fps")
    return lips_from_array(lips, fps)


def separate(
    mixture: Shaped[np.ndarray, "sample"],
    lips: Sequence[Pictures],
    fps: float | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    model: str | Path = SEPARATION_MODEL,
    guide: str | Path | None = "own",
    scheme: SpeakersEM | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Separated:
    """Separate the voices of one recording with a bundled model.

    Args:
        mixture: one channel, (sample,), any level.
        lips: of every speaker, (video_frame, 67, 67) grey mouth regions, uint8 or in [0, 1]; None: he is not seen.
        fps: of the lips.
        sample_rate: of the mixture, in Hz.
        model: a bundled name or a weight file.
        guide: that separates: "own", the one that came with the model; None; or a file of yours.
        scheme: with settings of its own.

    Returns:
        `Separated`, whose `.speech` is float32 (speaker, sample), in the order of `lips`, at the mixture's level.

    Raises:
        InputError: in one line, what cannot be used and what to do.
    """
    prior, stft = load_prior(model, guide=None)
    found = load_separating_guide(model, guide, prior, stft)
    separator = Separator(prior, scheme, speakers=len(lips), stft=stft, guide=found, device=device)
    return separator(mixture, lips, fps, sample_rate=sample_rate, seed=seed)
