"""Files whole: sound is enhanced wherever there is some, with lips where they are seen and without elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from pyro_avse.data.lips import watch as watching
from pyro_avse.data.lips.lips import Lips, fit_lips
from pyro_avse.data.lips.stillness import find_still, leave_out_still, say_stretches
from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.enhancement.measure import of_same_length
from pyro_avse.inference import VEM
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior
from tests.bright_faces import FindBright, faces

Make = Callable[..., Path]
QUICK = VEM(iterations=1, warmup=1, draws=1, noise=NoiseModel(2))
VOICE = 0.1 * np.random.default_rng(0).standard_normal(48000)


@pytest.fixture
def run(
    tmp_path: Path, tiny_prior: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[np.ndarray, list[str]]]:
    """run(path, output, ...): the sound that comes out, from the first picture on, and the notes."""
    monkeypatch.setattr(watching, "FaceFinder", FindBright)

    def enhance(
        path: Path, output: str = "o.wav", *, model: str = "min_vae_v2", **options: Any
    ) -> Any:
        weights, notes = tmp_path / f"{model}.safetensors", []
        if not weights.exists():
            save_prior(weights, tiny_prior(model), STFT())
        enhance_file(
            path,
            tmp_path / output,
            model=str(weights),
            inference=QUICK,
            report=notes.append,
            **options,
        )
        return [note.replace(str(path), "F") for note in notes[:-1]]

    return enhance


@pytest.mark.parametrize(
    ("hidden", "note"),
    [
        (slice(0, 40), "F: no face at 0.0-1.6 s: without lips there"),
        (slice(40, 75), "F: no face at 1.6-3.0 s: without lips there"),
        (slice(20, 60), "F: no face at 0.8-2.4 s: without lips there"),
        (slice(0, 75), "F: no face in all its 3.0 s; enhanced by its sound alone"),
        (slice(0), None),
    ],
)
def test_where_there_is_no_face_sound_goes_on_alone(
    tmp_path: Path, make_video: Make, run: Any, hidden: slice, note: str | None
) -> None:
    path = make_video(tmp_path / "a.mp4", faces(hidden=hidden), sound=VOICE)
    notes = run(path)
    assert [n for n in notes if "no face" in n] == ([] if note is None else [note])
    assert soundfile.info(tmp_path / "o.wav").frames == len(VOICE)


def test_a_model_that_needs_lips_says_so_before_any_work(
    tmp_path: Path, make_video: Make, run: Any
) -> None:
    path = make_video(tmp_path / "a.mp4", faces(hidden=slice(20, 60)), sound=VOICE)
    with pytest.raises(InputError, match=r"no lips at 0\.8-2\.4 s, which VVAE needs: take min_vae"):
        run(path, model="v_vae")
    path = make_video(tmp_path / "b.mp4", faces(hidden=slice(75)), sound=VOICE)
    with pytest.raises(InputError, match=r"VVAE needs the lips, but .*no face in all its 3.0 s"):
        run(path, model="v_vae")
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize(
    ("pictures", "first", "sound_at", "seconds", "note"),
    [
        (75, 0.0, 0.7, 3.0, "F: no pictures at 3.00-3.64 s: without lips there"),
        (75, 0.0, 0.0, 1.95, None),
        (62, 0.0, 0.0, 3.0, "F: no pictures at 2.48-3.00 s: without lips there"),
        (50, 1.0, 0.0, 3.0, "F: no pictures before 1.0"),
        (25, 0.0, 1.5, 1.5, "F: its pictures end before its sound begins; enhanced by its sound"),
        (
            1,
            0.0,
            0.0,
            3.0,
            "F: one picture alone is no lips: left out; enhanced by its sound alone",
        ),
    ],
)
def test_streams_of_unlike_extent(
    tmp_path: Path,
    make_video: Make,
    run: Any,
    pictures: int,
    first: float,
    sound_at: float,
    seconds: float,
    note: str | None,
) -> None:
    """The sound that there is, from when it is, whatever the pictures do; a file of sound begins with the pictures."""
    times, sound = first + np.arange(pictures) / 25, VOICE[: round(16000 * seconds)]
    path = make_video(tmp_path / "a.mkv", faces(pictures), times, sound=sound, sound_at=sound_at)
    notes = run(path)
    if note is None:
        assert not [n for n in notes if "picture" in n and "apart" not in n]
    else:
        # Matroska's stamps hold the encoder's delay too
        assert [n for n in notes if n.startswith(note[:20])], notes
        assert any(note.split(":")[-1] in n for n in notes), notes
    lasts = soundfile.info(tmp_path / "o.wav").duration
    assert lasts == pytest.approx(sound_at + seconds, abs=0.07)
    assert run(path, "o.mkv") is not None


def test_sound_without_pictures_is_sound(tmp_path: Path, run: Any) -> None:
    """A .mp4 of nothing but sound, and one with a cover."""
    for cover in (False, True):
        path = tmp_path / f"cover{cover}.mp4"
        with av.open(str(path), "w") as container:
            voice = container.add_stream("aac", rate=16000, layout="mono")
            if cover:
                stream = container.add_stream("mjpeg", rate=1)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
                stream.disposition = av.stream.Disposition.attached_pic
                picture = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray")
                container.mux(
                    [*stream.encode(picture.reformat(format="yuvj420p")), *stream.encode(None)]
                )
            frame = av.AudioFrame.from_ndarray(VOICE[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux([*voice.encode(frame), *voice.encode(None)])
        assert run(path) == ["F has no pictures: enhanced by its sound alone"]
        with pytest.raises(InputError, match=r"has no pictures to copy into .*: end it in \.wav"):
            run(path, "o.mp4")


def test_still_lips_are_left_out(tmp_path: Path, make_video: Make, run: Any) -> None:
    """Frozen, flat, of one picture, for a while: with their seconds; those that move stay."""
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 256, (75, 67, 67), dtype=np.uint8)
    frozen, flat, half, mended = (
        moving.copy(),
        np.full_like(moving, 128),
        moving.copy(),
        moving.copy(),
    )
    frozen[:] = moving[0]
    half[30:70] = moving[30]
    mended[:37], mended[37:] = moving[0], moving[1]  # an encoder mends its still picture once
    for frames, note, left in [
        (moving, None, 75),
        (moving.astype(np.float32) / 255, None, 75),
        (frozen, "the lips never move: left out", None),
        (mended, "the lips never move: left out", None),
        (flat, "the lips show nothing, each is of one grey: left out", None),
        (
            flat.astype(np.float32) / 255,
            "the lips show nothing, each is of one grey: left out",
            None,
        ),
        (moving[:1], "one picture alone is no lips: left out", None),
        (half, "the lips stand still at 1.2-2.8 s: left out there", 35),
    ]:
        found, said = leave_out_still(Lips(frames, 25.0))
        assert said == note
        shown = found and (len(found.frames) if found.mask is None else int(found.mask.sum()))
        assert shown == left
    masked = Lips(half, 25.0, np.arange(75) < 30)  # what is still is hidden already
    assert leave_out_still(masked) == (masked, None)
    assert not find_still(half[30:50], 25.0).any()  # lips may rest for less than a second
    soundfile.write(tmp_path / "a.wav", VOICE, 16000)
    np.savez(tmp_path / "l.npz", lips=frozen, fps=25)
    notes = run(tmp_path / "a.wav", lips=tmp_path / "l.npz")
    assert notes == [
        f"{tmp_path}/l.npz: the lips never move: left out; enhanced by its sound alone"
    ]
    video = make_video(tmp_path / "still.mp4", np.repeat(faces(1), 75, axis=0), sound=VOICE)
    assert run(video) == ["F: the lips never move: left out; enhanced by its sound alone"]


def test_stretches_in_words() -> None:
    where = np.array([1, 1, 0, 1, 0, 1, 0, 1, 0, 1], bool)
    assert say_stretches(where[:4], 10) == "0.0-0.2 s, 0.3-0.4 s"
    assert say_stretches(where, 10).endswith("0.7-0.8 s and 1 times more")


def test_lips_fit_their_sound() -> None:
    lips = Lips(np.ones((50, 67, 67), np.uint8), 25.0)
    assert fit_lips(lips, 1.0).frames.shape == (25, 67, 67)
    held = fit_lips(lips, 2.2)
    assert (len(held.frames), held.mask) == (50, None)
    longer = fit_lips(lips, 3.0)
    assert longer.mask is not None
    assert longer.mask.tolist() == [True] * 50 + [False] * 25


def test_a_reference_may_differ_by_a_few_samples() -> None:
    mixture = audio_from_array(VOICE, 16000)
    for extra in (-5, 0, 5):
        clean = audio_from_array(np.resize(VOICE, len(VOICE) + extra), 16000)
        assert len(of_same_length(clean, mixture).waveform) == len(VOICE)
    clean = audio_from_array(VOICE[:-200], 16000)
    with pytest.raises(InputError, match=r"2\.987 s, .* 3\.000 s \(47800 and 48000 samples"):
        of_same_length(clean, mixture)
