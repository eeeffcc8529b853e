"""A file in, a file out: what the command line, Python and an app call.

    row = enhance_file("noisy.mp4", "clean.mp4", noise_out="noise.wav")

Everything that can be refused is refused before any work: the recording, the places to write to, the scheme's settings.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.media.audio import Audio, Blocks, load_audio
from pyro_avse.data.media.saving import check_writable, save_pieces, save_together
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.enhancement.enhanced import Enhanced, check_strength, mix
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.enhancement.long import Piece, measure_blocks, open_sound
from pyro_avse.enhancement.measure import measure, of_same_length
from pyro_avse.enhancement.seen import find_lips as find_lips
from pyro_avse.files import kind_of, refuse_inputs
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
    reference: str | os.PathLike[str] | None = None,
    channel: str | int = "auto",
    track: int = 0,
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
        reference: clean speech, to score against.
        channel: "auto" (the first, unless the voice is on another), "first", "mean", or an index from 0.
        track: of a video with more than one sound, from 0; the others are copied.
        block: seconds; longer sound is enhanced in such blocks; 0: as a whole.
        report: told what is done, line by line.
        progress: told the fraction done, and a text, after every EM iteration, or block.
        show: told what was prepared and what came of it, where the recording is not cut into blocks.

    Returns:
        What `measure` says: seconds, iterations, scores if there is a reference; and "files", what was written.

    Raises:
        InputError: in one line, what cannot be used and what to do. Nothing is then written.
        Divergence: the chains or the objective left the finite.
    """
    noisy = Path(path)
    places = Places(
        Path(f"{noisy.stem}_enhanced.wav" if output is None else output),
        None if noise_out is None else Path(noise_out),
        noisy,
        track=track,
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
    notes = places.check()
    refuse_inputs([places.output, places.noise], files_read(noisy, lips, reference, model, guide))
    audio = open_sound(noisy, channel=channel, block=block, track=track)
    notes += audio.notes
    duration = audio.num_samples / audio.sample_rate
    places = replace(places, head=max(0, round(audio.delay * audio.sample_rate)))
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
    seen, said = find_lips(noisy, given, fps, prior, duration, audio.delay)
    notes += said
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    if isinstance(audio, Blocks):
        for note in notes:
            report(note)

        def write(pieces: Iterator[Piece]) -> None:
            places.write_pieces(mixed(pieces, strength), audio.sample_rate)

        row = measure_blocks(enhancer, audio, seen, write, seed=seed, progress=progress)
        row |= {"model": model, "inference": name}
    else:
        recording = enhancer.prepare(audio, seen)
        for note in notes:  # not before what `prepare` refuses: a refusal stands alone
            report(note)
        report(f"{noisy}: {len(audio.waveform) / 16000:.2f} s with {model} and {name}")
        result, row = measure(
            enhancer, recording, model, name, clean, seed, strength=strength, progress=progress
        )
        show(recording, result)
        speech = result.mix(strength)
        places.write(speech, result.recording - speech, result.sample_rate)
    return row | {"files": places.files()}


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


def mixed(pieces: Iterator[Piece], strength: float) -> Iterator[tuple[Waveform, Waveform]]:
    """Speech at a strength, and what was taken off, piece by piece."""
    for piece in pieces:
        speech = mix(piece.recording, piece.speech, strength)
        yield speech, piece.recording - speech


@dataclass(frozen=True)
class Places:
    """Where speech and noise go: sounds together, both whole or neither; a video before its noise."""

    output: Path
    noise: Path | None
    noisy: Path
    head: int = 0
    """Samples of silence before the sound, in files of sound: so much later than the pictures it starts."""
    track: int = 0
    """The sound of a video that is replaced."""

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
        return notes

    def write(self, speech: Waveform, noise: Waveform, sample_rate: int) -> None:
        """Both at once."""
        self.write_pieces(iter([(speech, noise)]), sample_rate)

    def write_pieces(self, pieces: Iterator[tuple[Waveform, Waveform]], sample_rate: int) -> None:
        """Piece by piece; into a video, as a whole."""
        if kind_of(self.output) == "video":
            from pyro_avse.data.media.copying import copy_pictures

            speech, noise = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            copy_pictures(self.output, self.noisy, speech, sample_rate, self.track)
            if self.noise is not None:
                save_pieces(self.noise, [self._silence(), noise], sample_rate)
            return
        both = chain([(self._silence(), self._silence())], pieces)
        if self.noise is None:
            save_together([self.output], ((speech,) for speech, _ in both), sample_rate)
        else:
            save_together([self.output, self.noise], both, sample_rate)

    def _silence(self) -> Waveform:
        return np.zeros(self.head, np.float32)

    def files(self) -> JSON:
        """By what is in them."""
        found = {"speech": str(self.output)}
        return found if self.noise is None else found | {"noise": str(self.noise)}
