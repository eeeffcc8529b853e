"""What the page asks for, as files in a visitor's folder: one enhancement, or one EM step after the other.

It is `enhance_file` and `Enhancer`, with limits: the page takes recordings from strangers.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile
import torch

from pyro_avse.data.media.audio import Audio
from pyro_avse.data.media.container import opened
from pyro_avse.data.media.saving import save_audio, save_together
from pyro_avse.enhancement.demo import LIPS, mix_clip
from pyro_avse.enhancement.doubt import uncertainty_figure
from pyro_avse.enhancement.drawing import result_figure, spectrograms_above
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.file import Places, enhance_file
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.enhancement.long import open_sound
from pyro_avse.enhancement.many import output_names
from pyro_avse.enhancement.seen import find_lips
from pyro_avse.files import kind_of
from pyro_avse.inference import SCHEMES
from pyro_avse.inference.em import EM
from pyro_avse.plots import GREY, ORANGE, save_figure
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior

Told = Callable[[float, str], None]
OFFERED = tuple(name for name, scheme in SCHEMES.items() if issubclass(scheme, EM))  # type: ignore[arg-type]
"""The schemes that take EM steps: the others take minutes."""
MOST_STEPS = 12
"""Of the slider: those of a longer run are evenly apart."""


@dataclass(frozen=True)
class Outcome:
    """One enhancement, in files."""

    noisy: Path
    speech: Path
    noise: Path
    figure: Path
    doubt: Path | None
    """How sure it is; None of a scheme that draws nothing."""
    downloads: list[Path]
    """The speech as a sound and, of a video, under its pictures."""
    said: str
    """What was found, a line each."""


@dataclass(frozen=True)
class Step:
    """What one would have if the inference ended here."""

    iteration: int
    speech: Path
    noise: Path
    figure: Path


def bundled_clip(folder: Path) -> Path:
    """The demonstration's recording, written into `folder`; its lips are known by its name (`lips_of`)."""
    mixture, _ = mix_clip()
    path = folder / CLIP
    save_audio(path, mixture.peak * mixture.waveform, mixture.sample_rate)
    return path


CLIP = "bundled_clip.wav"


def lips_of(path: Path) -> Path | None:
    """The lips that belong to the bundled clip; None for a visitor's recording, whose video shows them or not."""
    return LIPS if path.name == CLIP else None


def enhance_upload(
    path: Path,
    folder: Path,
    *,
    model: str,
    scheme: str,
    strength: float,
    longest: float,
    progress: Told,
) -> Outcome:
    """Enhance a recording into `folder`.

    Raises:
        InputError: as `enhance_file`, and for more than `longest` seconds.
    """
    check_length(path, longest)
    shown: list[tuple[Recording, Enhanced]] = []
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line.replace(f"{path.parent}/", ""))
        progress(0.0, said[-1])

    speech, noise, noisy = (folder / f"{n}.wav" for n in ("enhanced", "noise", "noisy"))
    row = enhance_file(
        path,
        speech,
        noise_out=noise,
        lips=lips_of(path),
        model=model,
        inference=scheme,
        strength=strength,
        block=0,
        report=report,
        progress=progress,
        show=lambda recording, result: shown.append((recording, result)),
    )
    ((recording, result),) = shown
    (one, rate), (other, _) = (soundfile.read(p, dtype="float32") for p in (speech, noise))
    save_audio(noisy, one + other, rate)
    figure = folder / "figure.png"
    lips, mask = (
        None if t is None else t.cpu().numpy() for t in (recording.lips, recording.lips_mask)
    )
    save_figure(result_figure(result, lips, mask), figure)
    doubt: Path | None = folder / "doubt.png"
    try:
        uncertainty_figure([result.uncertainty], folder / "doubt.png")
    except InputError:  # a scheme without draws
        doubt = None
    said.append(f"{row['seconds']:.1f} s of work, {row['real_time_factor']:.2f} x real time")
    downloads = [speech, *_video(path, folder, result, strength)]
    return Outcome(noisy, speech, noise, figure, doubt, downloads, "\n".join(said))


def _video(path: Path, folder: Path, result: Enhanced, strength: float) -> list[Path]:
    """The pictures of a video over the speech; none of a sound."""
    (output,) = output_names([path], folder / "video")
    if kind_of(output) != "video":
        return []
    places = Places(output, None, path)
    places.check()
    speech = result.mix(strength)
    places.write_pieces(iter([[speech, result.recording - speech]]), result.sample_rate)
    return [output]


def check_length(path: Path, longest: float) -> None:
    """Refuse what lasts longer: by what its header says, before anything is decoded, and by what is in it.

    Raises InputError for it, and as `open_sound`.
    """
    seconds = 0.0
    with suppress(InputError), opened(path) as container:  # `open_sound` says it better
        seconds = (container.duration or 0) / 1e6
    if seconds <= longest:
        sound = open_sound(path, block=0)
        seconds = sound.num_samples / sound.sample_rate
    if seconds > longest:
        raise InputError(
            f"{path.name} lasts {seconds:.0f} s and this page takes {longest:g}: cut it, or use pyro-avse enhance"
        )


def em_steps(
    path: Path,
    folder: Path,
    *,
    model: str,
    scheme: str,
    longest: float,
    progress: Told,
    seed: int = 0,
) -> list[Step]:
    """What comes out of a recording after the start, and after its EM steps, in files in `folder`.

    Each is the scheme's last E-step from there, by the same random numbers. Raises InputError as `enhance_upload`.
    """
    check_length(path, longest)
    audio = open_sound(path, block=0)
    assert isinstance(audio, Audio)  # no blocks
    prior, stft = load_prior(model)
    seen, _ = find_lips(path, lips_of(path), None, prior, len(audio.waveform) / 16000, audio.delay)
    enhancer = Enhancer(prior, find_scheme(scheme), stft=stft)
    recording = enhancer.prepare(audio, seen)
    observation = enhancer.observe(recording)
    chosen: Any = enhancer.inference
    chosen = chosen.given(observation)
    rng = torch.Generator(device=enhancer.device).manual_seed(seed)
    state = chosen.init(observation, rng=rng)
    every = -(-chosen.iterations // MOST_STEPS)
    results: dict[int, Enhanced] = {}
    for iteration in range(1, chosen.iterations + 1):
        state = chosen.step(observation, state, rng=rng)
        if iteration % every and iteration != chosen.iterations:
            continue
        last = torch.Generator(device=enhancer.device).manual_seed(seed)
        found = chosen.finish(observation, state, rng=last)
        found = replace(found, objective=state.objective[None])
        results[iteration] = enhancer.synthesise(recording, found)
        progress(iteration / chosen.iterations, f"EM iteration {iteration} of {chosen.iterations}")
    progress(1.0, "drawing")
    return [_step(folder, iteration, results, audio) for iteration in results]


def _step(folder: Path, iteration: int, results: Mapping[int, Enhanced], audio: Audio) -> Step:
    """Sounds and figure of one of the results."""
    result = results[iteration]
    speech, noise, figure = (
        folder / f"{name}_{iteration}.{kind}"
        for name, kind in (("speech", "wav"), ("noise", "wav"), ("step", "png"))
    )
    save_together([speech, noise], [(result.speech, result.noise)], result.sample_rate)
    parts = {"recording": audio.waveform, "speech": result.speech_16k}
    parts["noise"] = audio.waveform - result.speech_16k
    axes = spectrograms_above([1.3] * 3 + [1.1], parts)
    axes[2].tick_params(labelbottom=True)
    objective = {k: float(r.objective[0]) / r.separation.speech.numel() for k, r in results.items()}
    axes[3].plot(list(objective), list(objective.values()), GREY, marker=".", ms=3, lw=1)
    axes[3].plot([iteration], [objective[iteration]], ORANGE, marker="o")
    axes[3].set(xlabel="EM iteration", ylabel="nats")
    axes[3].set_title("objective, for each coefficient of the STFT", fontsize=9)
    save_figure(axes[0].figure, figure)  # type: ignore[arg-type]
    return Step(iteration, speech, noise, figure)
