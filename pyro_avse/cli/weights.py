"""Commands about weights: `pyro-avse models | import-weights`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyro_avse.cli.app import JsonFlag, app, print_table, say
from pyro_avse.defaults import DEFAULT_MODEL
from pyro_avse.errors import InputError


@app.command()
def models(
    as_json: JsonFlag = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/models.md.")
    ] = False,
) -> None:
    """List the bundled models."""
    from pyro_avse.weights.cards import load_cards, markdown, megabytes, what

    if as_json and as_markdown:
        raise InputError("--json and --markdown are two forms of the list: give one of them")
    cards = load_cards()
    if as_markdown:
        print(markdown(), end="")
    elif as_json:
        print(json.dumps({"default": DEFAULT_MODEL, "models": cards}))
    else:
        rows = [
            [name, what(c), c["lips"], megabytes(c), "default" if name == DEFAULT_MODEL else ""]
            for name, c in cards.items()
        ]
        print_table(["name", "what it is", "lips", "MB", ""], rows)


@app.command()
def import_weights(
    file: Annotated[Path, typer.Argument(help="State dict by torch.save: A-VAE or MIN-VAE.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".safetensors file to write.")],
    hop: Annotated[int, typer.Option(help="Of the STFT trained on, in samples.")] = 533,
) -> None:
    """Make weights of the papers' public codes ours."""
    from pyro_avse.weights.import_weights import import_weights as run

    prior = run(file, output, hop=hop)
    say(
        f"wrote {output}: {type(prior).__name__}, {prior.num_freqs} frequencies, {prior.latent_dim} codes"
    )
