"""The command line: `pyro-avse enhance | demo | train`, and what `main` imports.

Progress and prose go to stderr, results to stdout. Anything wrong with the input is one line on stderr and exit code 2.
Heavy imports stand inside the commands, so that --help is quick.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.errors import InputError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Unsupervised audio-visual speech enhancement.",
)
data_app = typer.Typer(rich_markup_mode=None, help="Make training data, and look at it.")
app.add_typer(data_app, name="data")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of every random draw.")]
SettingsOption = Annotated[
    str, typer.Option(help='Of the schemes: {"vem": {"iterations": 50, "kernel": "hmc"}}.')
]
ThreadsOption = Annotated[
    int, typer.Option(min=1, help="Of the processor; more help where as many cores are idle.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto for the fastest at hand.")]


def main() -> None:
    """Run the command line; every refusal is one line and exit code 2."""
    import pyro_avse.cli_data  # registers its commands, as the next
    import pyro_avse.cli_inference
    import pyro_avse.cli_lab
    import pyro_avse.cli_weights  # noqa: F401

    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="pyro-avse", standalone_mode=False)
    except InputError as error:
        fail(str(error))
    except TyperException as error:
        fail(f"{error.format_message().rstrip('.')}: see pyro-avse --help")
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> None:
    say("error: " + " ".join(message.split()))
    sys.exit(2)


def say(message: str) -> None:
    print(f"pyro-avse: {message}", file=sys.stderr)


@app.command()
def enhance(
    noisy: Annotated[Path, typer.Argument(help="Sound or video, any format, rate and channels.")],
    lips: Annotated[
        Path | None, typer.Option(help=".npz (lips, fps), .npy of 67x67 mouths, or a video.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Of the lips, where their file does not say.")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled name or weight file.")] = DEFAULT_MODEL,
    inference: Annotated[str, typer.Option(help="Inference scheme.")] = DEFAULT_INFERENCE,
    kernel: Annotated[
        str | None,
        typer.Option(help="What moves the scheme's chains, as hmc or gibbs:pcn; else its own."),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Find each frame's step size in the warm-ups.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Sound or video to write.")
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            help="0: the recording as it is, 1: all that is found to be noise is taken off."
        ),
    ] = 1.0,
    noise_out: Annotated[
        Path | None,
        typer.Option(
            help="Sound to write what was taken off to: with the output it sums to the recording."
        ),
    ] = None,
    noise_model: Annotated[
        str | None,
        typer.Option(
            help="What is assumed of the noise: smooth (the default), or paper: bare NMF, a gain a frame."
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Clean speech, to score against.")] = None,
    channel: Annotated[str, typer.Option(help="first, mean, or an index from 0.")] = "first",
    iterations: Annotated[int | None, typer.Option(min=1, help="EM iterations at most.")] = None,
    block: Annotated[
        float, typer.Option(help="Seconds: longer sound is enhanced in such blocks; 0: as a whole.")
    ] = 30,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Enhance a noisy recording, or the sound of a video by the lips that it shows."""
    import torch

    from pyro_avse.checkpoint import load_prior
    from pyro_avse.data.audio import Blocks, load_audio
    from pyro_avse.data.lips import lips_from_array, load_lips
    from pyro_avse.data.saving import check_writable, save_audio
    from pyro_avse.data.utterance import kind_of
    from pyro_avse.enhancer import Enhancer, check_strength
    from pyro_avse.find import build_scheme
    from pyro_avse.long import open_sound
    from pyro_avse.measure import check_same_length, measure

    if fps is not None and lips is None:
        raise InputError("--fps is of --lips, which is not given: leave it out")
    check_strength(strength)
    torch.set_num_threads(threads)  # those that wait for a busy core cost far more than they bring
    output = Path(f"{noisy.stem}_enhanced.wav") if output is None else output
    settings = {} if kernel is None else {"kernel": kernel}
    settings |= {"adapt": "robbins_monro"} if adapt else {}
    scheme = build_scheme(inference, settings, iterations, noise_model)
    audio = open_sound(noisy, channel=channel, block=block)
    if isinstance(audio, Blocks) and reference is not None:
        raise InputError(
            f"--reference with blocks, into which more than {block:g} s of sound is cut: add --block 0"
        )
    if kind_of(output) == "video":
        from pyro_avse.data.video import check_video, copy_pictures

        check_video(output, noisy)
    else:
        check_writable(output)
    if noise_out is not None:
        check_writable(noise_out)
    for written in filter(None, (output, noise_out)):
        if written.exists() and written.samefile(noisy):
            raise InputError(f"{written} is the recording itself: name another file")
    if noise_out is not None and os.path.realpath(noise_out) == os.path.realpath(output):
        raise InputError(f"{noise_out} is the output too: name another file with --noise-out")
    prior, stft = load_prior(model)
    notes: list[str] = []
    seen, video = None, noisy if lips is None and prior.uses_lips else lips
    if video is not None and kind_of(video) == "video":
        from pyro_avse.data.watch import watch

        watched = watch(video)
        seen, notes = watched.lips, watched.notes
        seen = seen if fps is None else lips_from_array(seen.frames, fps)
    elif lips is not None:
        seen = load_lips(lips, fps=fps)
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    clean = None
    if isinstance(audio, Blocks):
        row = _enhance_blocks(enhancer, audio, seen, noisy, output, noise_out, strength, seed)
        row |= {"model": model, "inference": inference}
        for note in notes:
            say(note)
    else:
        recording = enhancer.prepare(audio, seen)
        clean = None if reference is None else load_audio(reference)
        if clean is not None:
            check_same_length(clean, audio)
        for note in notes:
            say(note)
        say(f"{noisy}: {len(audio.waveform) / 16000:.2f} s with {model} and {inference}")
        result, row = measure(enhancer, recording, model, inference, clean, seed, strength=strength)
        speech = result.mix(strength)
        if kind_of(output) == "video":
            copy_pictures(output, noisy, speech, result.sample_rate)
        else:
            save_audio(output, speech, result.sample_rate)
        if noise_out is not None:
            save_audio(noise_out, result.recording - speech, result.sample_rate)
    row["files"] = {"speech": str(output)}
    if noise_out is not None:
        row["files"]["noise"] = str(noise_out)
    say(f"wrote {output} in {row['seconds']:.1f} s ({row['real_time_factor']:.2f} x real time)")
    if as_json:
        print(json.dumps(row))
    elif clean is not None:
        print_scores([row])


def _enhance_blocks(
    enhancer: Any,
    blocks: Any,
    lips: Any,
    noisy: Path,
    output: Path,
    noise_out: Path | None,
    strength: float,
    seed: int,
) -> dict[str, Any]:
    """Enhance a long recording into `output`, and what was taken off into `noise_out`; its row."""
    import numpy as np

    from pyro_avse.data.saving import save_audio, save_together
    from pyro_avse.data.utterance import kind_of
    from pyro_avse.enhancer import mix
    from pyro_avse.long import measure_blocks

    def write(pieces: Iterator[Any]) -> None:
        def pairs() -> Iterator[tuple[Any, ...]]:
            for piece in pieces:
                speech = mix(piece.recording, piece.speech, strength)
                yield (speech,) if noise_out is None else (speech, piece.recording - speech)

        if kind_of(output) == "video":
            from pyro_avse.data.video import copy_pictures

            speech, *noise = (np.concatenate(parts) for parts in zip(*pairs(), strict=True))
            copy_pictures(output, noisy, speech, blocks.sample_rate)
            if noise_out is not None:
                save_audio(noise_out, noise[0], blocks.sample_rate)
        else:
            paths = [output] if noise_out is None else [output, noise_out]
            save_together(paths, pairs(), blocks.sample_rate)

    with progress_bar() as update:
        return measure_blocks(enhancer, blocks, lips, write, seed=seed, progress=update)


def print_scores(rows: list[dict[str, Any]]) -> None:
    """Scores of the mixture and of each row's output."""
    from pyro_avse.measure import TITLES

    def cells(scores: dict[str, Any]) -> list[str]:
        return [
            "-" if scores[name] is None else f"{scores[name]:.{digits}f}"
            for name, (_, digits) in TITLES.items()
        ]

    table = [["noisy", *cells(rows[0]["input"]), ""]]
    table += [[row["model"], *cells(row["output"]), f"{row['seconds']:.1f}"] for row in rows]
    print_table(["", *(title for title, _ in TITLES.values()), "seconds"], table)
    for row in rows:
        for name, reason in {**row["input"]["reasons"], **row["output"]["reasons"]}.items():
            say(f"{row['model']}: no {name}: {reason}")


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    """To stdout, in full, whatever the terminal's width."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles)
    for row in rows:
        table.add_row(*row)
    wide = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, wide)).print(table)


def split_names(text: str, option: str) -> list[str]:
    """What stands between commas. Raises InputError where nothing does."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option} {text!r}: give one name or more, by commas")
    return names


def read_settings(text: str) -> dict[str, dict[str, Any]]:
    """Of --settings. Raises InputError where it is no JSON object of objects."""
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--settings is no JSON ({error}): give an object for every scheme"
        ) from None
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise InputError('--settings: give an object for every scheme, {"vem": {"iterations": 50}}')
    return settings


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sounds and the figure.")] = Path("demo"),
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Hear it work: a bundled clip of a synthetic talker in noise, enhanced by two models."""
    import torch

    from pyro_avse.demo import run_demo

    torch.set_num_threads(threads)
    rows = run_demo(out, seed=seed, device=device, report=say)
    if as_json:
        print(json.dumps({"rows": rows}))
    else:
        print_scores(rows)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Bundled name, as default/a_vae or paper/all (stages), or a TOML file."
        ),
    ],
    data: Annotated[list[Path], typer.Option(help="Corpus folders, one or more.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, log and curves.")],
    more_data: Annotated[
        list[Path] | None, typer.Argument(help="What follows --data after the first.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a speech prior from clean speech, or all stages of a pipeline."""
    from pyro_avse.recipe import Recipe, load_recipe
    from pyro_avse.training import train as run

    loaded = load_recipe(recipe)
    stages = {"": loaded} if isinstance(loaded, Recipe) else loaded
    epochs = [stage.training.epochs for stage in stages.values()]
    with progress_bar() as update:

        def show(row: dict[str, Any]) -> None:
            r, stage = row["valid_responsibility"][0], row.get("stage", "")
            before = sum(epochs[: list(stages).index(stage)])
            update(
                (before + row["epoch"] + 1) / sum(epochs),
                f"{stage} ELBO {row['valid_elbo']:.1f} = {row['valid_reconstruction']:.1f} - KL "
                f"{row['valid_kl']:.1f}, pi_n {r:.2f}".lstrip(),
            )

        weights = run(
            loaded, [*data, *(more_data or [])], out, resume=resume, device=device, progress=show
        )
    say(f"wrote {weights}" if "" in stages else f"wrote {out}/*/{weights.name}")


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that starts with its first update (fraction done, text), so that a refusal stands alone."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=1.0)

    def update(done: float, text: str) -> None:
        bar.start()
        bar.update(task, completed=done, description=text)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
