"""A file in, a file out: what the command line, Python and an app call.

    row = enhance_file("noisy.mp4", "clean.mp4", noise_out="noise.wav")

Everything that can be refused is refused before any work: the recording, the places to write to, the scheme's settings.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.media.audio import Audio, load_audio
from pyro_avse.data.media.blocks import Blocks, opening
from pyro_avse.data.media.saving import check_holds, check_writable, save_together
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL, SAMPLE_RATE
from pyro_avse.enhancement.channels import Samples, measure_channels, open_channels
from pyro_avse.enhancement.enhanced import Enhanced, check_strength, mix
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.enhancement.long import Piece, measure_blocks, open_sound
from pyro_avse.enhancement.measure import measure, of_same_length
from pyro_avse.enhancement.seen import find_lips as find_lips
from pyro_avse.enhancement.uncertainty import UncertaintyFile, check_npz
from pyro_avse.files import check_place, kind_of, refuse_inputs, same_file
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError, Scheme
from pyro_avse.weights.checkpoint import load_prior, weight_files

Waveform = Float32[np.ndarray, "sample"]
TOLD = 0.04
"""Seconds, a picture's: sound that starts later than its pictures is told of from there on."""


def enhance_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    lips: str | os.PathLike[str] | None = None,
    fps: float | None = None,
    model: str = DEFAULT_MODEL,
    inference: str | Scheme = DEFAULT_INFERENCE,
    settings: JSON | None = None,
    iterations: int | None = None,
    noise_model: str | None = None,
    guide: str | os.PathLike[str] | None = "own",
    strength: float = 1.0,
    noise_out: str | os.PathLike[str] | None = None,
    draws: int = 0,
    uncertainty: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    channel: str | int = "auto",
    track: int = 0,
    face: str = "auto",
    block: float = 30.0,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, str], None] = lambda done, text: None,
    show: Callable[[Recording, Enhanced], None] = lambda recording, result: None,
) -> JSON:
    """Enhance a recording, or the sound of a video by the lips that it shows, into a file.

    Args:
        path: sound or video, any format, rate and channels.
        output: sound, or a video whose pictures are copied; None: PATH's stem and "_enhanced.wav", in this folder. It
            lies on the time line of PATH: silence stands in the gaps of its sound and, in a file of sound, before one
            that starts after the pictures.
        lips: .npz, .npy or .mat of mouths, or a video; None: those of `path`, if it is a video and the model looks.
        fps: of the lips, in frames a second, where their file does not say.
        model: a bundled name or a weight file.
        inference: a scheme, or its name with `settings` (as `build_scheme`), `iterations` and `noise_model`.
        guide: for noisy speech: "own", the one that came with the model if there is one; None; or a file of yours.
        strength: 0, the recording as it is, to 1.
        noise_out: sound; with `output` it sums to the recording.
        draws: of what the speech may have been as well, each a sound beside `output`: OUTPUT_draw1.wav, ...
        uncertainty: .npz of how sure every frame and frequency is, as `Uncertainty`; its figure goes beside, as .png.
        reference: clean speech, to score against.
        channel: "auto" (the first, unless the voice is on another), "first", "mean", "all" (each on its own; as many
            come out), or an index from 0.
        track: of a video with more than one sound, from 0; the others are copied.
        face: of a video with several, "left", "right", or a number from 0, counted from the left; "auto" is the one
            whose lips go with the sound.
        block: seconds; longer sound is enhanced in such blocks; 0: as a whole.
        report: told what is done, line by line.
        progress: told the fraction done, and a text, while lips are cut, after every EM iteration, or block.
        show: told what was prepared and what came of it, where the recording is not cut into blocks.

    Returns:
        What `measure` says: seconds (those in which lips are cut as well), iterations, scores if there is a reference;
        and "files", what was written.

    Raises:
        InputError: in one line, what cannot be used and what to do. Nothing is then written.
        Divergence: the chains or the objective left the finite.
    """
    noisy = Path(path)
    place = Path(f"{noisy.stem}_enhanced.wav" if output is None else output)
    places = Places(
        place,
        None if noise_out is None else Path(noise_out),
        noisy,
        track=track,
        draws=draw_names(place, draws),
        uncertainty=None if uncertainty is None else Path(uncertainty),
    )
    if fps is not None and lips is None:
        raise InputError("--fps is of --lips, which is not given: leave it out")
    check_strength(strength)
    if isinstance(inference, str):
        scheme = build_scheme(inference, settings or {}, iterations, noise_model)
    elif settings or iterations is not None or noise_model is not None:
        raise InputError("a scheme has its settings: give none beside it, or its name with them")
    else:
        scheme = inference
    name = inference if isinstance(inference, str) else type(inference).__name__
    if (draws or uncertainty) and not getattr(scheme, "has_draws", True):
        raise InputError(
            f"{name} ends with one code a frame: it has no draws and no uncertainty, take guided, ldem or mcem"
        )
    notes = places.check()
    refuse_inputs(places.files().values(), files_read(noisy, lips, reference, model, guide))
    channels: list[Audio | Blocks | None] = []
    if channel == "all":
        if reference is not None or draws or uncertainty:
            raise InputError(
                "--reference, --draws and --uncertainty are of one channel, not of all: name it"
            )
        channels = open_channels(noisy, block=block, track=track)
        live = [opened for opened in channels if opened is not None]
        audio = live[0]
        notes += [note for note in audio.notes if all(note in other.notes for other in live)]
    else:
        audio = open_sound(noisy, channel=channel, block=block, track=track)
        notes += audio.notes
    duration = audio.num_samples / audio.sample_rate
    places = replace(
        places,
        head=max(0, round(audio.delay * audio.sample_rate)),
        channels=max(1, len(channels)),
    )
    places.check_format(audio.sample_rate)
    if audio.delay > TOLD and kind_of(places.output) != "video":
        late = f"its sound starts {audio.delay:.2f} s after its pictures"
        notes.append(f"{noisy}: {late}: silence stands before it, so that it lies under them")
    if isinstance(audio, Blocks) and reference is not None:
        raise InputError(
            f"--reference with blocks, into which more than {block:g} s of sound is cut: add --block 0"
        )
    clean = None if reference is None else load_audio(reference)
    if clean is not None and isinstance(audio, Audio):
        clean = of_same_length(clean, audio)
    prior, stft = load_prior(model, guide=None if guide is None else os.fspath(guide))
    given = None if lips is None else Path(lips)
    begun, start = 0.0, time.perf_counter()

    def cutting(done: float, text: str) -> None:
        nonlocal begun
        begun = done / 2
        progress(begun, text)

    shown: Any = {"face": face, "track": track, "progress": cutting}
    shown["sound"] = lambda seconds: opening(audio, seconds)
    seen, said = find_lips(noisy, given, fps, prior, duration, audio.delay, **shown)
    cut = time.perf_counter() - start
    notes += said
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)

    def enhancing(done: float, text: str) -> None:
        progress(begun + (1 - begun) * done, text)

    told = None
    if channels:
        for note in notes:
            report(note)
        report(f"{noisy}: {duration:.2f} s, {len(channels)} channels with {model} and {name}")

        def write_all(pieces: Iterator[tuple[Samples, Samples]]) -> None:
            heard = ((mix(old, new, strength), old) for new, old in pieces)
            places.write_pieces(
                ([speech, old - speech] for speech, old in heard), audio.sample_rate
            )

        row = measure_channels(enhancer, channels, seen, write_all, seed=seed, progress=enhancing)
        row |= {"model": model, "inference": name}
    elif isinstance(audio, Blocks):
        for note in notes:
            report(note)
        told = places.doubt(duration, stft)

        def write(pieces: Iterator[Piece]) -> None:
            places.write_pieces(mixed(pieces, strength, told), audio.sample_rate)

        more: Any = {"draws": draws, "uncertain": told is not None, "seed": seed}
        row = measure_blocks(enhancer, audio, seen, write, progress=enhancing, **more)
        row |= {"model": model, "inference": name}
    else:
        recording = enhancer.prepare(audio, seen)
        for note in notes:  # not before what `prepare` refuses: a refusal stands alone
            report(note)
        report(f"{noisy}: {len(audio.waveform) / 16000:.2f} s with {model} and {name}")
        result, row = measure(
            enhancer, recording, model, name, clean, seed, strength=strength, progress=enhancing
        )
        show(recording, result)
        drawn = result.draws(draws, seed=seed) if draws else []
        whole = Piece(result.speech, result.recording, result, drawn)
        if uncertainty is not None:
            whole = replace(whole, uncertainty=result.uncertainty)
        told = places.doubt(duration, stft)
        places.write_pieces(mixed(iter([whole]), strength, told), result.sample_rate)
    if told is not None:
        places.draw_doubt(told)
    row["seconds"] += cut
    row["real_time_factor"] += cut / duration
    return row | {"files": {what: str(place) for what, place in places.files().items()}}


def files_read(
    noisy: Path,
    lips: str | os.PathLike[str] | None,
    reference: str | os.PathLike[str] | None,
    model: str,
    guide: str | os.PathLike[str] | None = None,
) -> dict[str, Path | None]:
    """What one call reads, by what it is, for `refuse_inputs`. Raises InputError for an unknown model."""
    given = {"the reference": reference, "the lips' file": lips, "the guide": guide}
    read = {what: None if path is None else Path(path) for what, path in given.items()}
    weights = {f"the file {path.name} of the model": path for path in weight_files(model)}
    return {"the recording": noisy} | read | weights


def mixed(
    pieces: Iterator[Piece], strength: float, doubt: UncertaintyFile | None
) -> Iterator[list[Waveform]]:
    """Speech at a strength, what was taken off, and the draws at that strength, piece by piece; uncertainty on its way
    into its file, which is whole when the last piece is.
    """
    for piece in pieces:
        speech = mix(piece.recording, piece.speech, strength)
        drawn = [mix(piece.recording, draw, strength) for draw in piece.draws]
        if doubt is not None and piece.uncertainty is not None:
            doubt.append(piece.uncertainty)
        yield [speech, piece.recording - speech, *drawn]
    if doubt is not None:
        doubt.finish()


def draw_names(output: Path, count: int) -> list[Path]:
    """Where draws go. Raises InputError for a count below 0."""
    if count < 0:
        raise InputError(f"draws is {count}: give 0 or more")
    suffix = ".wav" if kind_of(output) == "video" else output.suffix
    return [output.with_name(f"{output.stem}_draw{k}{suffix}") for k in range(1, count + 1)]


@dataclass(frozen=True)
class Places:
    """Where speech, noise and draws go: together, all whole or none."""

    output: Path
    noise: Path | None
    noisy: Path
    head: int = 0
    """Samples of silence before the sound, in files of sound: so much later than the pictures it starts."""
    track: int = 0
    """The sound of a video that is replaced."""
    channels: int = 1
    """Of what is written; pieces of several are (sample, channel)."""
    draws: list[Path] = field(default_factory=list)
    uncertainty: Path | None = None
    """An .npz; its figure stands beside it."""

    @property
    def figure(self) -> Path | None:
        return None if self.uncertainty is None else self.uncertainty.with_suffix(".png")

    def files(self) -> dict[str, Path]:
        """All that is written, by what is in it."""
        found = {"speech": self.output, "noise": self.noise}
        found |= {f"draw_{k}": path for k, path in enumerate(self.draws, 1)}
        found |= {"uncertainty": self.uncertainty, "figure": self.figure}
        return {what: path for what, path in found.items() if path is not None}

    def check(self) -> list[str]:
        """What will be left out, a line each.

        Raises InputError where something could not be written, or would be written over.
        """
        notes = []
        if kind_of(self.output) == "video":
            from pyro_avse.data.media.copying import check_video

            notes = check_video(self.output, self.noisy, self.track)
        else:
            check_writable(self.output)
        if self.noise is not None:
            check_writable(self.noise)
        if self.noise is not None and os.path.realpath(self.noise) == os.path.realpath(self.output):
            raise InputError(f"{self.noise} is the output too: name another file with --noise-out")
        for path in self.draws:
            check_writable(path)
            if self.noise is not None and same_file(path, self.noise):
                raise InputError(f"{path} is a draw too: name another file with --noise-out")
        if self.uncertainty is not None and self.figure is not None:
            check_npz(self.uncertainty)
            check_place(self.figure)
        return notes

    def check_format(self, sample_rate: int) -> None:
        """Raises InputError where a format does not have the rate, or so many channels."""
        sounds = [self.output, self.noise, *self.draws]
        for path in sounds:
            if path is not None and kind_of(path) != "video":
                check_holds(path, sample_rate, self.channels)

    def write_pieces(self, pieces: Iterator[list[Waveform]], sample_rate: int) -> None:
        """Speech, noise and draws piece by piece."""
        kept = slice(1 if self.noise is None else 0, None)  # of noise and draws
        places = [self.output, *([] if self.noise is None else [self.noise]), *self.draws]
        heads = [self._silence() for _ in range(2 + len(self.draws))]
        if kind_of(self.output) == "video":
            heads[0] = heads[0][:0]  # whose pictures come before its sound
        wanted = ([speech, *others[kept]] for speech, *others in chain([heads], pieces))
        pictures = (self.noisy, self.track)
        save_together(places, wanted, sample_rate, self.channels, pictures)

    def doubt(self, seconds: float, stft: STFT) -> UncertaintyFile | None:
        """The file of the uncertainty, for a recording that lasts so long; None where none is asked for."""
        if self.uncertainty is None:
            return None
        return UncertaintyFile(self.uncertainty, stft.num_frames(round(seconds * SAMPLE_RATE)))

    def draw_doubt(self, doubt: UncertaintyFile) -> None:
        """Its figure, beside it."""
        from pyro_avse.enhancement.doubt import uncertainty_figure

        assert self.figure is not None
        uncertainty_figure(doubt.shown, self.figure)

    def _silence(self) -> Waveform:
        shape = (self.head,) if self.channels == 1 else (self.head, self.channels)
        return np.zeros(shape, np.float32)
