"""`pyro-avse live`: sound that is still coming in, enhanced as it comes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pyro_avse.cli.app import SeedOption, ThreadsOption, app, say

LIVE_MODEL = "a_vae"
"""The bundled model with a causal guide."""


@app.command()
def live(
    source: Annotated[
        str,
        typer.Argument(help="Sound file; - for 16-bit samples on stdin; device for a microphone."),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="Sound file; - for stdout; device for a loudspeaker."),
    ],
    model: Annotated[str, typer.Option(help="Bundled name or weight file.")] = LIVE_MODEL,
    guide: Annotated[Path | None, typer.Option(help="A causal guide of it; else its own.")] = None,
    rate: Annotated[int, typer.Option(help="Of - and of devices, in Hz.")] = 16000,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
) -> None:
    """Enhance sound while it comes in, a quarter of a second later; a file has its number of samples."""
    import torch

    from pyro_avse.enhancement.ports import load_stream, open_sink, open_source, run
    from pyro_avse.files import refuse_inputs
    from pyro_avse.weights.checkpoint import weight_files

    torch.set_num_threads(threads)
    weights = {f"the file {path.name} of the model": path for path in weight_files(model)}
    refuse_inputs([Path(output)], {"the guide": guide} | weights)
    blocks = open_source(source, rate)
    stream = load_stream(model, guide, sample_rate=blocks.sample_rate, seed=seed)
    with open_sink(output, blocks.sample_rate, source) as sink:
        if output != "-":
            say(f"{source}: {blocks.sample_rate} Hz with {model}, {stream.delay:.2f} s later")
        row = run(stream, blocks, sink)
    say(
        f"wrote {row['samples']} samples in {row['seconds']:.1f} s of work ({row['real_time_factor']:.2f} x real time)"
    )
    sys.stdout.flush()
