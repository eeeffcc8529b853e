"""`pyro-avse app`: a page to play with, in a browser."""

import signal
from typing import Annotated

import typer

from pyro_avse.cli.app import ThreadsOption, app, say
from pyro_avse.errors import InputError


@app.command("app")
def app_page(
    host: Annotated[
        str, typer.Option(help="Address to serve; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    longest: Annotated[float, typer.Option(help="Seconds that a recording may last.")] = 30,
    threads: ThreadsOption = 1,
) -> None:
    """Open a page to play with: drop a recording, hear and see what comes out. Ctrl-C ends it."""
    from pyro_avse.app.serving import serving

    if not longest > 0:
        raise InputError(f"--longest is {longest:g}: give more than 0")
    with serving(host, port, longest=longest, threads=threads) as address:
        say(f"open {address} in a browser; Ctrl-C ends it")
        signal.pause()
