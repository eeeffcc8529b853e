"""A recording of several speakers in, a folder of their voices out: what the command line and Python call.

    row = separate_file("talk.mp4", "voices")                             # the faces that it shows, left to right
    row = separate_file("mix.wav", "voices", lips=["a.npz", "b.npz"])

Everything that can be refused is refused before any work.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.lips.lips import Lips, check_length, fit_lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.blocks import Blocks
from pyro_avse.data.media.saving import check_writable, save_together
from pyro_avse.defaults import SEPARATION_MODEL
from pyro_avse.enhancement.long import open_sound
from pyro_avse.enhancement.separate import Separator, refuse_alike, separate_blocks
from pyro_avse.files import kind_of, make_folder, refuse_inputs, same_file
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import load_prior, weight_files
from pyro_avse.weights.guides import load_separating_guide

PathLike = str | os.PathLike[str]


def separate_file(
    path: PathLike,
    folder: PathLike,
    *,
    lips: Sequence[PathLike] = (),
    fps: float | None = None,
    model: str = SEPARATION_MODEL,
    guide: PathLike | None = "own",
    channel: str | int = "auto",
    block: float = 30.0,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, str], None] = lambda done, text: None,
) -> JSON:
    """Separate a recording into speaker_1.wav, speaker_2.wav, ... and noise.wav, which sum to it.

    Args:
        path: sound or video, any format, rate and channels.
        folder: where they are written; it is made.
        lips: a .npz, .npy, .mat or video for every speaker, in the order of the results; none: those of the faces that
            the video `path` shows, from left to right.
        fps: of the lips, in frames a second, where their files do not say.
        model: a bundled name or a weight file.
        guide: that separates: "own", the one that came with the model; None; or a file of yours.
        channel: "auto" (the first, unless the voice is on another), "first", "mean", or an index from 0.
        block: seconds; longer sound is separated in such blocks; 0: as a whole.
        report: told what is done, line by line.
        progress: told the fraction done, and a text; of blocks only.

    Returns:
        "files", what was written; "speakers"; "seconds" and "real_time_factor".

    Raises:
        InputError: in one line, what cannot be used and what to do. Nothing is then written.
        Divergence: the chains or the objective left the finite.
    """
    mixture, files = Path(path), [Path(one) for one in lips]
    if len(files) == 1:
        raise InputError(
            f"one pair of lips, {files[0]}: give --lips once for every speaker, or enhance the one (pyro-avse enhance)"
        )
    for j, one in enumerate(files):
        for other in files[:j]:
            if same_file(one, other):
                raise InputError(f"{one} is given twice: give each speaker his own lips")
    if not files and kind_of(mixture) != "video":
        raise InputError(f"{mixture} is no video: give --lips once for every speaker")
    if fps is not None and not files:
        raise InputError("--fps is of --lips, which are not given: leave it out")
    audio = open_sound(mixture, channel=channel, block=block)
    notes = list(audio.notes)
    duration = audio.num_samples / audio.sample_rate
    if files:
        seen = [_lips_of(one, fps, duration) for one in files]
        refuse_alike(seen, [str(one) for one in files])
    else:
        seen, said = _faces_of(mixture, duration)
        notes += said
    names = [f"speaker_{j + 1}.wav" for j in range(len(seen))]
    places = [Path(folder) / name for name in (*names, "noise.wav")]
    guide_name = None if guide is None else os.fspath(guide)
    given = {f"the lips of speaker {j + 1}": one for j, one in enumerate(files)}
    read = {f"the file {f.name} of the model": f for f in weight_files(model)}
    refuse_inputs(places, {"the recording": mixture} | given | read)
    prior, stft = load_prior(model, guide=None)
    separates = load_separating_guide(model, guide_name, prior, stft)
    separator = Separator(prior, speakers=len(seen), stft=stft, guide=separates, device=device)
    make_folder(Path(folder))
    for place in places:
        check_writable(place)
    for note in notes:
        report(note)
    report(f"{mixture}: {duration:.2f} s of {len(seen)} speakers with {model}")
    start = time.perf_counter()

    def parts() -> Iterator[Float32[np.ndarray, "part sample"]]:
        head = max(
            0, round(audio.delay * audio.sample_rate)
        )  # of sound that starts after its pictures
        yield np.zeros((len(places), head), np.float32)
        if not isinstance(audio, Blocks):
            found = separator.separate(separator.place(audio, seen, 0.0, duration), seed=seed)
            yield np.concatenate([found.speech, found.noise[None]])
            return
        blocks = separate_blocks(separator, audio, seen, seed=seed)
        for index, (speech, recording) in enumerate(blocks, start=1):
            yield np.concatenate([speech, (recording - speech.sum(0))[None]])
            progress(index / len(audio.spans), f"{index} of {len(audio.spans)} blocks")

    save_together(places, (list(part) for part in parts()), audio.sample_rate)
    seconds = time.perf_counter() - start
    return {
        "files": [str(place) for place in places],
        "speakers": len(seen),
        "seconds": seconds,
        "real_time_factor": seconds / duration,
    }


def _lips_of(path: Path, fps: float | None, duration: float) -> Lips:
    """Of one speaker, as long as the sound. Raises InputError, which names the file."""
    if kind_of(path) == "video":
        return fit_lips(load_lips(path, fps=fps), duration)
    lips = load_lips(path, fps=fps, longest=duration)
    try:
        check_length(len(lips.frames), lips.fps, duration)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return lips


def _faces_of(path: Path, duration: float) -> tuple[list[Lips], list[str]]:
    """The lips of every face in a video, and what to say of them. Raises InputError for fewer than two."""
    from pyro_avse.data.lips.watch import watch_faces  # OpenCV takes a while to load

    found = watch_faces(path, until=duration)
    watched = [one for one in found if one.lips.mask is None or one.lips.mask.any()]
    if len(watched) < 2:
        raise InputError(
            f"{path} shows {len(watched)} face{'s' * (len(watched) != 1)}: give --lips once for every speaker, or "
            "enhance the one (pyro-avse enhance)"
        )
    notes = [f"{path} shows {len(watched)} faces: speaker 1 is on the left"]
    notes += [note for one in watched for note in one.notes]
    return [fit_lips(one.lips, duration) for one in watched], notes
