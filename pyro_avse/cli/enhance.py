"""`pyro-avse enhance | demo`: a recording, or the bundled clip, in; speech out.

Heavy imports stand inside the commands.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_avse.cli.app import (
    DeviceOption,
    FaceOption,
    JsonFlag,
    SeedOption,
    ThreadsOption,
    app,
    print_table,
    progress_bar,
    say,
)
from pyro_avse.cli.pipes import PIPE, piped
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.errors import InputError


@app.command()
def enhance(
    noisy: Annotated[
        list[Path],
        typer.Argument(
            help="Sound or video, any format, rate and channels; several, into a folder; - for stdin."
        ),
    ],
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
        str | None,
        typer.Option(
            "--output", "-o", help="Sound or video to write; a folder/; - for .wav on stdout."
        ),
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
    guide: Annotated[
        str,
        typer.Option(
            help="Where the chains start: own, the guide that came with the model; none; or a guide's file."
        ),
    ] = "own",
    draws: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of what the speech may have been as well: OUTPUT_draw1.wav, OUTPUT_draw2.wav, ...",
        ),
    ] = 0,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            help=".npz to write how sure each frame and frequency is to; a .png goes beside."
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Clean speech, to score against.")] = None,
    channel: Annotated[
        str,
        typer.Option(help="auto (the one with the voice), all, first, mean, or an index from 0."),
    ] = "auto",
    iterations: Annotated[int | None, typer.Option(min=1, help="EM iterations at most.")] = None,
    track: Annotated[
        int, typer.Option(min=0, help="Of a video with more than one sound, from 0.")
    ] = 0,
    face: FaceOption = "auto",
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

    from pyro_avse.enhancement.file import enhance_file
    from pyro_avse.enhancement.many import enhance_many

    torch.set_num_threads(threads)  # those that wait for a busy core cost far more than they bring
    settings = {} if kernel is None else {"kernel": kernel}
    settings |= {"adapt": "robbins_monro"} if adapt else {}
    options: dict[str, Any] = {
        "model": model,
        "inference": inference,
        "settings": settings,
        "iterations": iterations,
        "noise_model": noise_model,
        "guide": None if guide == "none" else guide,
        "strength": strength,
        "draws": draws,
        "channel": channel,
        "track": track,
        "face": face,
        "block": block,
        "seed": seed,
        "device": device,
    }
    one: dict[str, Any] = {"lips": lips, "fps": fps, "reference": reference, "noise_out": noise_out}
    one["uncertainty"] = uncertainty
    if len(noisy) > 1 or (output or "").endswith("/"):
        folder = _folder(noisy, output, one)
        with progress_bar() as update:
            rows, refused = enhance_many(noisy, folder, report=say, progress=update, **options)
        for line in refused:
            say(f"error: {' '.join(line.split())}")
        say(f"wrote {len(rows)} of {len(noisy)} recordings into {folder}")
        if as_json:
            print(json.dumps({"rows": rows, "refused": refused}))
        if refused:
            raise typer.Exit(2)
        return
    if output == PIPE and as_json:
        raise InputError("--json and the sound would both be on stdout: name a file with -o")
    if output == PIPE and draws:
        raise InputError(
            f"--draws {draws} are files beside the output, which is stdout: name a file with -o"
        )
    target = None if output is None else Path(output)
    target = Path("stdin_enhanced.wav") if target is None and str(noisy[0]) == PIPE else target
    with piped(noisy[0], target, say) as (path, place, tell), progress_bar() as update:
        row = enhance_file(path, place, report=tell, progress=update, **one, **options)
        written = " and ".join(row["files"].values())
        factor = row["real_time_factor"]
        tell(f"wrote {written} in {row['seconds']:.1f} s ({factor:.2f} x real time)")
    if as_json:
        print(json.dumps(row))
    elif row["output"] is not None and output != PIPE:
        print_scores([row])


def _folder(noisy: list[Path], output: str | None, one: dict[str, Any]) -> Path:
    """Where several recordings go. Raises InputError for no folder, and what is of one recording alone."""
    if output is None or (not output.endswith("/") and not Path(output).is_dir()):
        raise InputError(f"{len(noisy)} recordings: name a folder for them, as -o enhanced/")
    if PIPE in map(str, noisy):
        raise InputError("stdin is one recording: give it alone")
    given = [name for name, value in one.items() if value is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is of one recording: give one, or none")
    return Path(output)


def print_scores(rows: list[dict[str, Any]]) -> None:
    """Scores of the mixture and of each row's output."""
    from pyro_avse.enhancement.measure import TITLES

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

    from pyro_avse.enhancement.demo import run_demo

    torch.set_num_threads(threads)
    rows = run_demo(out, seed=seed, device=device, report=say)
    if as_json:
        print(json.dumps({"rows": rows}))
    else:
        print_scores(rows)
