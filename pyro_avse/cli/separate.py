"""`pyro-avse separate`: a recording of several speakers in, a folder of their voices out.

Heavy imports stand inside the command.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyro_avse.cli.app import (
    DeviceOption,
    JsonFlag,
    SeedOption,
    ThreadsOption,
    app,
    progress_bar,
    say,
)
from pyro_avse.defaults import SEPARATION_MODEL


@app.command()
def separate(
    mixture: Annotated[Path, typer.Argument(help="Sound or video, any format, rate and channels.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for speaker_1.wav, speaker_2.wav, noise.wav."),
    ],
    lips: Annotated[
        list[Path] | None,
        typer.Option(
            help="Once for each speaker, in the order of the results; without, the faces of the video from the left."
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Of the lips, where their files do not say.")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled name or weight file.")] = SEPARATION_MODEL,
    guide: Annotated[
        str, typer.Option(help="That tells the voices apart: own, of the model; none; or a file.")
    ] = "own",
    channel: Annotated[
        str, typer.Option(help="auto (the one with the voice), first, mean, or an index from 0.")
    ] = "auto",
    block: Annotated[
        float, typer.Option(help="Seconds: longer sound is taken in such blocks; 0: as a whole.")
    ] = 30,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Take the voices of a recording apart by the lips of the speakers."""
    import torch

    from pyro_avse.enhancement.separate_file import separate_file

    torch.set_num_threads(threads)
    with progress_bar() as update:
        row = separate_file(
            mixture,
            output,
            lips=lips or [],
            fps=fps,
            model=model,
            guide=None if guide == "none" else guide,
            channel=channel,
            block=block,
            seed=seed,
            device=device,
            report=say,
            progress=update,
        )
    say(f"wrote {' and '.join(row['files'])} in {row['seconds']:.1f} s")
    if as_json:
        print(json.dumps(row))
