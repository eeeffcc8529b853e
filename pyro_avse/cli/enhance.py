"""`pyro-avse enhance | demo`: a recording, or the bundled clip, in; speech out.

Heavy imports stand inside the commands.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_avse.cli.app import (
    DeviceOption,
    JsonFlag,
    SeedOption,
    ThreadsOption,
    app,
    print_table,
    progress_bar,
    say,
)
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL


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
    guide: Annotated[
        str,
        typer.Option(
            help="Where the chains start: own, the guide that came with the model; none; or a guide's file."
        ),
    ] = "own",
    reference: Annotated[Path | None, typer.Option(help="Clean speech, to score against.")] = None,
    channel: Annotated[
        str, typer.Option(help="auto (the one with the voice), first, mean, or an index from 0.")
    ] = "auto",
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

    from pyro_avse.enhancement.file import enhance_file

    torch.set_num_threads(threads)  # those that wait for a busy core cost far more than they bring
    settings = {} if kernel is None else {"kernel": kernel}
    settings |= {"adapt": "robbins_monro"} if adapt else {}
    with progress_bar() as update:
        row = enhance_file(
            noisy,
            output,
            lips=lips,
            fps=fps,
            model=model,
            inference=inference,
            settings=settings,
            iterations=iterations,
            noise_model=noise_model,
            guide=None if guide == "none" else guide,
            strength=strength,
            noise_out=noise_out,
            reference=reference,
            channel=channel,
            block=block,
            seed=seed,
            device=device,
            report=say,
            progress=update,
        )
    written = " and ".join(row["files"].values())
    say(f"wrote {written} in {row['seconds']:.1f} s ({row['real_time_factor']:.2f} x real time)")
    if as_json:
        print(json.dumps(row))
    elif row["output"] is not None:
        print_scores([row])


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
