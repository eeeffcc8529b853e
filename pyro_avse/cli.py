"""The command line: `pyro-avse enhance | demo | train`, and what `main` imports.

Progress and prose go to stderr, results to stdout. Anything wrong with the input is one line on stderr and exit code 2.
Heavy imports stand inside the commands, so that --help is quick.
"""

import json
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
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto for the fastest at hand.")]


def main() -> None:
    """Run the command line; every refusal is one line and exit code 2."""
    import pyro_avse.cli_data  # registers its commands, as the next
    import pyro_avse.cli_inference
    import pyro_avse.cli_lab  # noqa: F401

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
        str | None, typer.Option(help="What moves the scheme's chains; its own if not given.")
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Find each frame's step size in the warm-ups.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Sound or video to write.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Clean speech, to score against.")] = None,
    channel: Annotated[str, typer.Option(help="first, mean, or an index from 0.")] = "first",
    iterations: Annotated[int | None, typer.Option(min=1, help="EM iterations at most.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Enhance a noisy recording, or the sound of a video by the lips that it shows."""
    from pyro_avse.checkpoint import load_prior
    from pyro_avse.data.audio import check_writable, load_audio, save_audio
    from pyro_avse.data.lips import load_lips
    from pyro_avse.data.utterance import kind_of
    from pyro_avse.enhancer import Enhancer, find_kernel, find_scheme
    from pyro_avse.inference.adaptation import RobbinsMonro
    from pyro_avse.measure import check_same_length, measure

    output = Path(f"{noisy.stem}_enhanced.wav") if output is None else output
    settings: dict[str, Any] = {} if iterations is None else {"iterations": iterations}
    settings |= {} if kernel is None else {"kernel": find_kernel(kernel)}
    settings |= {"adapt": RobbinsMonro()} if adapt else {}
    audio = load_audio(noisy, channel=channel)
    if kind_of(output) == "video":
        from pyro_avse.data.video import check_video, copy_pictures

        check_video(output, noisy)
    else:
        check_writable(output)
    if output.exists() and output.samefile(noisy):
        raise InputError(f"{output} is the recording itself: name another file with -o")
    seen = None if lips is None else load_lips(lips, fps=fps)
    prior, stft = load_prior(model)
    notes: list[str] = []
    if lips is None and prior.uses_lips and kind_of(noisy) == "video":
        from pyro_avse.data.watch import watch

        watched = watch(noisy)
        seen, notes = watched.lips, watched.notes
    enhancer = Enhancer(prior, find_scheme(inference, **settings), stft=stft, device=device)
    recording = enhancer.prepare(audio, seen)
    clean = None if reference is None else load_audio(reference)
    if clean is not None:
        check_same_length(clean, audio)

    for note in notes:
        say(note)
    say(f"{noisy}: {len(audio.waveform) / 16000:.2f} s with {model} and {inference}")
    result, row = measure(enhancer, recording, model, inference, clean, seed)
    if kind_of(output) == "video":
        copy_pictures(output, noisy, result.speech, result.sample_rate)
    else:
        save_audio(output, result.speech, result.sample_rate)
    row["files"] = {"speech": str(output)}
    say(f"wrote {output} in {row['seconds']:.1f} s ({row['real_time_factor']:.2f} x real time)")
    if as_json:
        print(json.dumps(row))
    elif clean is not None:
        print_table([row])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Scores of the mixture and of each row's output."""
    from rich.console import Console
    from rich.table import Table

    names = ("si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "estoi")
    titles = ("SI-SDR dB", "SDR dB", "PESQ wb", "PESQ nb", "STOI", "ESTOI")
    table = Table("", *titles, "seconds")

    def cells(scores: dict[str, Any]) -> list[str]:
        return [
            "-" if scores[n] is None else f"{scores[n]:.{1 if n.endswith('sdr') else 2}f}"
            for n in names
        ]

    table.add_row("noisy", *cells(rows[0]["input"]), "")
    for row in rows:
        table.add_row(row["model"], *cells(row["output"]), f"{row['seconds']:.1f}")
    Console().print(table)
    for row in rows:
        for name, reason in {**row["input"]["reasons"], **row["output"]["reasons"]}.items():
            say(f"{row['model']}: no {name}: {reason}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sounds and the figure.")] = Path("demo"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Hear it work: a bundled clip of a synthetic talker in noise, enhanced by two models."""
    from pyro_avse.demo import run_demo

    rows = run_demo(out, seed=seed, device=device, report=say)
    if as_json:
        print(json.dumps({"rows": rows}))
    else:
        print_table(rows)


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
