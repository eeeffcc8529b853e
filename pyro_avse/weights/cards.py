"""The bundled models and their cards: what each is, what it was trained on, how it scores and where its limits are.

A bundled model is a card, weights/NAME.json, with its weights beside it, NAME.safetensors, or with `parts`: the bundled
weights that it is assembled from, by the submodule that each fills. To bundle another one, add its two files and print
docs/models.md anew: `pyro-avse models --markdown`. Nothing here loads torch.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyro_avse.defaults import DEFAULT_MODEL

FOLDER = Path(str(files("pyro_avse.weights") / "bundled"))
Card = dict[str, Any]

HEAD = f"""# Bundled models

Names that `--model` takes; {DEFAULT_MODEL} is the default of `enhance`. `pyro-avse train RECIPE` trains one anew. This
page is made of the cards pyro_avse/weights/bundled/NAME.json by `pyro-avse models --markdown`: change those.
"""
SCORES = {"si_sdr": 2, "sdr": 2, "pesq_nb": 3, "pesq_wb": 3, "stoi": 3, "estoi": 3}
"""Figures that a card may hold, with their decimals."""


def load_cards() -> dict[str, Card]:
    """Every bundled model's card by its name, with `bytes`, its weight file's size: 0 of what is assembled."""
    cards = {}
    for path in sorted(FOLDER.glob("*.json")):
        weights = path.with_suffix(".safetensors")
        size = weights.stat().st_size if weights.exists() else 0
        cards[path.stem] = {**json.loads(path.read_text(encoding="utf-8")), "bytes": size}
    return cards


def megabytes(card: Card) -> str:
    return f"{card['bytes'] / 1e6:.1f}" if card["bytes"] else "-"


def what(card: Card) -> str:
    """The card's summary, and what the model is assembled from, if it is."""
    parts = card.get("parts", {}).values()
    return card["summary"] + (f"; assembled from {' and '.join(parts)}" if parts else "")


def markdown() -> str:
    """docs/models.md: all models in one table, then scores, data with attributions, and limits."""
    cards = load_cards()
    bundle = [
        [name, what(c), c["lips"], megabytes(c), c["recipe"], str(c["seed"]), c["trained"]]
        for name, c in cards.items()
    ]
    sections = [
        HEAD,
        _table(["name", "what it is", "lips", "MB", "recipe", "seed", "trained"], bundle),
        "## Networks\n",
        _table(
            ["name", "equations", "L", "STFT: samples, hop", "numbers"],
            [
                [
                    name,
                    c["equations"],
                    str(c["latent_dim"]),
                    "{n_fft}, {hop}".format(**c["stft"]),
                    c["precision"],
                ]
                for name, c in cards.items()
            ],
        ),
        "## Guides\n\nNetworks that hear noise, of the model whose name they begin with: `guide` listens to a whole "
        "recording, `live` to\nthe past and 0.1 s ahead, `separate` to several speakers whose lips it sees. They "
        "learned from the data below, in\nnoise that the program itself draws.\n",
        _table(["file", "MB", "recipe"], _guides()),
        "## Scores\n\nImprovements, output minus input, over all mixtures of a table of [RESULTS.md](RESULTS.md).\n",
        *_scores(cards),
        "## Data\n",
        *_data(cards),
        "## Limits\n",
        _shared({name: card["limits"] for name, card in cards.items()}),
    ]
    return "\n".join(sections)


def _guides() -> list[list[str]]:
    """Files of guides, their sizes, and the recipes that train them."""
    rows = []
    for path in sorted(FOLDER.glob("*.*.safetensors")):
        model, kind = path.name.split(".")[:2]
        recipe = "separate" if kind == "separate" else "guide"
        recipe = f"default/{recipe}_{model}" + "_live" * (kind == "live")
        rows.append([path.name, f"{path.stat().st_size / 1e6:.1f}", recipe])
    return rows


def _scores(cards: dict[str, Card]) -> list[str]:
    """A table for each command, in which every model that it scored is a row."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for name, card in cards.items():
        for score in card["scores"]:
            found.setdefault((score["table"], score["command"]), {})[name] = score["figures"]
    lines = []
    for (table, command), rows in found.items():
        cells = [
            [name, *(f"{figures[key]:+.{digits}f}" for key, digits in SCORES.items())]
            for name, figures in rows.items()
        ]
        lines += [f'"{table}":\n\n    {command}\n', _table(["name", *SCORES], cells)]
    return lines


def _data(cards: dict[str, Card]) -> list[str]:
    """What each model was trained on, then where that comes from, each source once."""
    sources = {data["name"]: data for card in cards.values() for data in card.get("data", [])}
    origins = (
        f"- **{name}**: {source['attribution']} Licence: {source['licence']}.\n"
        for name, source in sources.items()
    )
    return [_shared({name: _used(card) for name, card in cards.items()}), "".join(origins)]


def _used(card: Card) -> str:
    if "data" not in card:
        return f"that of {' and '.join(card['parts'].values())}."
    return "; ".join(f"{data['name']}, {data['used']}" for data in card["data"]) + "."


def _shared(texts: dict[str, str]) -> str:
    """A line for each text, under the names of all models whose it is."""
    groups: dict[str, list[str]] = {}
    for name, text in texts.items():
        groups.setdefault(text, []).append(name)
    return "".join(f"- {', '.join(names)}: {text}\n" for text, names in groups.items())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
