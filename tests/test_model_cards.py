"""The bundle: every model has a card that says what its file is, the page is the cards, VAE-MM is its two parts."""

import datetime
import fnmatch
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyro_avse.cli import main
from pyro_avse.defaults import DEFAULT_MODEL
from pyro_avse.models import MODELS
from pyro_avse.sweep.protocol import _model
from pyro_avse.training.recipe import load_recipe
from pyro_avse.training.stages import train
from pyro_avse.typing import InputError
from pyro_avse.weights import cards as model_cards
from pyro_avse.weights.bundle import bundle
from pyro_avse.weights.cards import FOLDER, SCORES, load_cards, markdown
from pyro_avse.weights.checkpoint import (
    bundled_weights,
    find_weights,
    load_prior,
    save_prior,
    weight_files,
)
from pyro_avse.weights.tensors import SCALE

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 30e6  # bytes
Run = Callable[..., tuple[int, str, str]]
every_card = pytest.mark.parametrize("name", load_cards())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("models", ...): exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return call


def lone_files(folder: Path, cards: dict[str, Any]) -> set[str]:
    """Files without their card, and cards without their file; what is assembled may have one."""
    expected = {f"{name}.json" for name in cards}
    expected |= {f"{name}.safetensors" for name, card in cards.items() if "parts" not in card}
    guides = {
        f"{name}.{kind}.safetensors" for name in cards for kind in ("guide", "live", "separate")
    }
    own = {f"{name}.safetensors" for name, card in cards.items() if "parts" in card}
    return {path.name for path in folder.iterdir() if path.name not in guides | own} ^ expected


def test_every_file_has_its_card_and_every_card_its_file() -> None:
    assert lone_files(FOLDER, load_cards()) == set()


def test_a_lone_file_and_a_lone_card_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above fails for either."""
    monkeypatch.setattr(model_cards, "FOLDER", tmp_path)
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "file.safetensors").touch()
    assert lone_files(tmp_path, load_cards()) == {"card.safetensors", "file.safetensors"}


def test_the_bundle_is_small_and_packaged() -> None:
    """At most 30 MB in all, each file under a pattern of the package's data, the default among them."""
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(sizes.values()) <= LIMIT, sizes
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["pyro_avse.weights"]
    for name in sizes:
        assert any(fnmatch.fnmatch(f"bundled/{name}", pattern) for pattern in patterns), name
    assert DEFAULT_MODEL in load_cards()


@every_card
def test_a_card_is_whole(name: str) -> None:
    """One line of summary, a date, data with attribution and licence, scores of tables in RESULTS.md, limits."""
    card = load_cards()[name]
    assert card["summary"].isprintable()
    assert "|" not in card["summary"] + card["equations"]
    datetime.date.fromisoformat(card["trained"])
    assert card["limits"].endswith(".")
    assert ("data" in card) != ("parts" in card)
    for data in card.get("data", []):
        assert set(data) == {"name", "used", "attribution", "licence"}
        assert all(data.values())
        assert data["attribution"].endswith(".")
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert card["scores"]
    for score in card["scores"]:
        assert set(score) == {"table", "command", "figures"}
        assert f"## {score['table']}" in results
        assert score["command"].startswith("pyro-avse ")
        assert list(score["figures"]) == list(SCORES)
        assert all(isinstance(figure, float) for figure in score["figures"].values())


@every_card
def test_a_card_says_what_its_file_is(name: str) -> None:
    """Model, sizes, STFT and precision are the file's; need of lips the class's; seed and parts the recipe's."""
    card, (prior, stft) = load_cards()[name], load_prior(name)
    assert type(prior) is MODELS[card["model"]]
    assert card["latent_dim"] == prior.latent_dim
    assert card["stft"] == {"n_fft": stft.n_fft, "hop": stft.hop}
    models = [file for file in weight_files(name) if file.suffixes == [".safetensors"]]  # no guide
    raw = [load_file(file).items() for file in models]
    stored = {str(t.dtype) for items in raw for key, t in items if not key.endswith(SCALE)}
    assert stored == {f"torch.{kind}" for kind in card["precision"].split(" and ")}
    needs = "needed" if prior.requires_lips else "optional" if prior.uses_lips else "none"
    assert card["lips"] == needs
    recipe = load_recipe(card["recipe"])
    assert (recipe.model, recipe.seed) == (card["model"], card["seed"])
    own = (FOLDER / f"{name}.safetensors").exists()
    assert own == (recipe.training.epochs > 0)
    if "parts" in card:
        assert recipe.initialise == card["parts"]


def test_make_weights_trains_the_bundle() -> None:
    """What has a file is one of its priors, after those that it starts from; what has a guide one of its guided."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    order = {
        key: next(line for line in lines if line.startswith(f"{key} :=")).split()[2:]
        for key in ("PRIORS", "GUIDED")
    }
    own = {name for name in load_cards() if (FOLDER / f"{name}.safetensors").exists()}
    assert set(order["PRIORS"]) == own
    guides = {path.name.removesuffix(".guide.safetensors") for path in FOLDER.glob("*.guide.*")}
    assert set(order["GUIDED"]) == guides
    for name in own:
        sources = {
            s.split(":")[0] for s in load_recipe(load_cards()[name]["recipe"]).initialise.values()
        }
        assert sources <= set(order["PRIORS"][: order["PRIORS"].index(name)]), name


def test_what_is_bundled_is_what_it_learned_itself(tmp_path: Path) -> None:
    """Of what is assembled, its own; of any other model its file."""
    prior, stft = load_prior("switching")
    save_prior(tmp_path / "whole.safetensors", prior, stft, half=True)
    for name, weights in (
        ("switching", tmp_path / "whole.safetensors"),
        ("dkf", find_weights("dkf")),
    ):
        bundle(name, weights, tmp_path)
        file = f"{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (FOLDER / file).read_bytes()


def test_sources_are_cited_alike() -> None:
    """One attribution and licence of each source of data, for the page shows each once."""
    sources: dict[str, set[tuple[str, str]]] = {}
    for card in load_cards().values():
        for data in card.get("data", []):
            source = data["attribution"], data["licence"]
            sources.setdefault(data["name"], set()).add(source)
    assert {name: len(found) for name, found in sources.items()} == dict.fromkeys(sources, 1)
    assert "CC BY 4.0" in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_page_is_the_cards() -> None:
    """docs/models.md is what `pyro-avse models --markdown` prints."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == markdown(), "print it anew: pyro-avse models --markdown > docs/models.md"


def test_the_page_holds_what_the_cards_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of one's own: every entry is on the page, a source once, the same limits in one line."""
    score = {"table": "T", "command": "pyro-avse x", "figures": dict.fromkeys(SCORES, -0.1256)}
    source = {"name": "Corpus", "used": "all", "attribution": "By N. N.", "licence": "CC0"}
    card = {
        "model": "a_vae",
        "summary": "one",
        "equations": "(1)",
        "lips": "none",
        "recipe": "default/a_vae",
        "seed": 4,
        "trained": "2001-02-03",
        "latent_dim": 5,
        "stft": {"n_fft": 16, "hop": 8},
        "precision": "float16",
        "data": [source],
        "scores": [score],
        "limits": "Some.",
    }
    monkeypatch.setattr(model_cards, "FOLDER", tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
        (tmp_path / f"{name}.safetensors").write_bytes(b"0" * 1_260_000)
    whole = {key: card[key] for key in card if key != "data"} | {"parts": {"x": "a", "y": "b"}}
    (tmp_path / "both.json").write_text(json.dumps(whole))
    page = markdown().splitlines()
    for line in (
        "| a | one | none | 1.3 | default/a_vae | 4 | 2001-02-03 |",
        "| both | one; assembled from a and b | none | - | default/a_vae | 4 | 2001-02-03 |",
        "| b | (1) | 5 | 16, 8 | float16 |",
        "    pyro-avse x",
        "| b | -0.13 | -0.13 | -0.126 | -0.126 | -0.126 | -0.126 |",
        "- a, b: Corpus, all.",
        "- both: that of a and b.",
        "- **Corpus**: By N. N. Licence: CC0.",
        "- a, b, both: Some.",
    ):
        assert page.count(line) == 1, line


def test_the_list(run: Run) -> None:
    """A line a model, the default marked; --json holds the cards and sizes, --markdown the page; not both."""
    code, out, _ = run("models")
    assert code == 0
    for name, card in load_cards().items():
        lines = [
            line for line in out.splitlines() if f" {name} " in line and "assembled" not in line
        ]
        lines += [line for line in out.splitlines() if line.startswith(f"│ {name} ")]
        assert len(set(lines)) == 1
        assert card["summary"] in lines[0]
        assert ("default" in lines[0]) == (name == DEFAULT_MODEL)
    code, out, _ = run("models", "--json")
    found = json.loads(out)
    assert (code, found["default"]) == (0, DEFAULT_MODEL)
    assert found["models"] == load_cards()
    assert found["models"][DEFAULT_MODEL]["bytes"] == find_weights(DEFAULT_MODEL).stat().st_size
    assert run("models", "--markdown") == (0, markdown(), "")
    code, out, err = run("models", "--markdown", "--json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_vae_mm_comes_out_of_the_bundle(tmp_path: Path) -> None:
    """`--model vae_mm` is the file that `train default/vae_mm` assembles, and a sweep's digest is of both its parts."""
    weights = train("default/vae_mm", [], tmp_path / "vae_mm", device="cpu")
    (expected, its_stft), (found, stft) = load_prior(weights), load_prior("vae_mm")
    assert type(found) is type(expected)
    assert found.options == expected.options
    assert stft == its_stft
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in expected.state_dict().items())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in found.parameters())
    assert not found.training
    parts = [find_weights("a_vae"), find_weights("av_vae")]
    assert weight_files("vae_mm") == [*parts, FOLDER / "vae_mm.guide.safetensors"]
    digests = {_model(name)["digest"] for name in ("vae_mm", "a_vae", "av_vae")}
    assert _model("vae_mm")["weights"] == "vae_mm"
    assert len(digests) == 3


def test_what_is_assembled_has_no_file() -> None:
    """Nor can networks be copied from it by that name; the refusal says from what they can."""
    assert "vae_mm" in bundled_weights()
    with pytest.raises(InputError, match="assembled: name a_vae or av_vae"):
        find_weights("vae_mm")
