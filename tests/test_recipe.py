"""Recipes: the bundled ones parse, and whatever would not be trained as written is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from pyro_avse.models import MODELS
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.rivals.find import RIVALS
from pyro_avse.training.recipe import (
    GuideRecipe,
    Recipe,
    RivalRecipe,
    load_recipe,
    recipes,
    split_source,
)
from pyro_avse.training.stages import build_prior
from pyro_avse.typing import InputError, couples_frames


@pytest.mark.parametrize("name", recipes())
def test_bundled_recipes_parse(name: str) -> None:
    """Every bundled recipe is of a known model, whose networks are those that it starts from weights."""
    loaded = load_recipe(name)
    if isinstance(loaded, GuideRecipe):
        assert loaded.prior in MODELS
        NoisyGuide(MODELS[loaded.prior](), **loaded.options)
        return
    if isinstance(loaded, RivalRecipe):
        assert loaded.rival in RIVALS
        return
    stages = {"": loaded} if isinstance(loaded, Recipe) else loaded
    for recipe in stages.values():
        networks = dict(MODELS[recipe.model](**recipe.options).named_modules())
        assert recipe.initialise.keys() <= networks.keys()


def test_there_is_a_default_recipe_of_every_model() -> None:
    """`default/NAME` trains NAME, and so does a stage of default/all unless it is dynamical; the paper's in `paper`."""
    papers = {"a_vae", "v_vae", "av_vae", "min_vae_v1", "min_vae_v2", "min_vae_v3", "vae_mm"}
    assert {f"default/{name}" for name in MODELS} <= set(recipes())
    framewise = {name for name, kind in MODELS.items() if not couples_frames(kind)}
    for regime, names in (("default", framewise), ("paper", papers)):
        assert {f"{regime}/{name}" for name in names} <= set(recipes())
        assert all(load_recipe(f"{regime}/{name}").model == name for name in names)
        stages = load_recipe(f"{regime}/all")
        assert all(stages[name].model == name for name in names)


def test_the_paper_says_how_its_models_are_trained() -> None:
    """Sec. IV-A: Adam at 1e-4, 100 epochs of batches of 128; IV-B: noise on a third of the frames of a noisy stage.

    MIN-VAEs, and what is fine-tuned for them, run all epochs; the rest stop early.
    """
    for name, recipe in load_recipe("paper/all").items():
        settings = recipe.training
        assert settings.epochs == (0 if recipe.model == "vae_mm" else 100)
        assert (settings.batch_size, settings.learning_rate) == (128, 1e-4)
        assert settings.schedule == "constant"
        to_the_end = name.startswith("min_vae") or "learned_prior" in recipe.options
        assert settings.patience == (100 if to_the_end else 20)
        noisy = 1 / 3 if name.endswith("_noisy") else 0
        assert recipe.data.noisy_fraction == pytest.approx(noisy, abs=1e-3)
        assert (name in ("a_vae_prior", "v_vae_prior", "a_vae_noisy")) == (
            "learned_prior" in recipe.options
        )


def test_a_file_is_read_and_the_rest_is_default(tmp_path: Path) -> None:
    """Keys are taken as written, an integer serves where a number is wanted, and the others keep their defaults."""
    path = tmp_path / "r.toml"
    path.write_text(
        'model = "v_vae"\nseed = 3\n[options]\nhidden = 8\n[initialise]\ndecoder = "a_vae"\n'
        '[data]\nnoise_floor_db = 0\n[training]\nschedule = "cosine"\nepochs = 2\n'
    )
    recipe, default = load_recipe(path), Recipe("v_vae")
    assert (recipe.model, recipe.seed, recipe.options) == ("v_vae", 3, {"hidden": 8})
    assert recipe.initialise == {"decoder": "a_vae"}
    assert recipe.data.noise_floor_db == 0.0
    assert isinstance(recipe.data.noise_floor_db, float)
    assert (recipe.training.schedule, recipe.training.epochs) == ("cosine", 2)
    assert recipe.training.learning_rate == default.training.learning_rate
    assert not recipe.half_precision
    assert build_prior(Recipe("a_vae", options={"hidden": 8})).decoder.hidden.out_features == 8


REFUSED = {
    'model = "a_vae"\nseeds = 1': ["unknown key 'seeds'", "did you mean 'seed'?"],
    'model = "a_vae"\n[training]\nlerning_rate = 1': [
        "[training]",
        "did you mean 'learning_rate'?",
    ],
    'model = "a_vae"\n[data]\nzzz = 1': ["unknown key 'zzz'", "known are noise_floor_db"],
    'model = "a_vaee"': ["unknown model 'a_vaee'", "did you mean 'a_vae'?"],
    "seed = 1": ['lacks the key "model"'],
    "model = 3": ["model is 3", "expected str"],
    'model = "a_vae"\nseed = "1"': ["seed is '1'", "expected int"],
    'model = "a_vae"\nseed = true': ["seed is True", "expected int"],
    'model = "a_vae"\nseed = -1': ["seed is -1", "expected 0 or more"],
    'model = "a_vae"\nhalf_precision = 1': ["half_precision is 1", "expected bool"],
    'model = "a_vae"\n[training]\nepochs = 1.5': ["epochs is 1.5", "expected int"],
    'model = "a_vae"\n[training]\nepochs = 0': ["epochs is 0", "1 or more"],
    'model = "a_vae"\n[training]\nbatch_size = 0': ["batch_size is 0", "1 or more"],
    'model = "a_vae"\n[training]\npatience = 0': ["[training]: patience is 0", "1 or more"],
    'model = "a_vae"\n[data]\nnoisy_fraction = 1.5': ["[data]: noisy_fraction is 1.5", "0 to 1"],
    'model = "v_vae"\n[data]\naugment_lips = 3': ["[data]: augment_lips is 3.0", "from 0 to 2"],
    'model = "a_vae"\n[data]\nlevel = "loud"': ["'loud'", "peak, speech"],
    'model = "a_vae"\n[training]\nselect = "loss"': ["'loss'", "elbo, enhancement"],
    'model = "a_vae"\n[training]\nlearning_rate = 0': ["[training]: learning_rate is 0"],
    'model = "a_vae"\n[training]\nlearning_rate = -1e-3': ["learning_rate is -0.001"],
    'model = "a_vae"\n[training]\nlearning_rate = nan': ["learning_rate is nan"],
    'model = "a_vae"\n[training]\nlearning_rate = inf': ["learning_rate is inf"],
    'model = "a_vae"\n[training]\nschedule = "linear"': ["'linear'", "constant, cosine"],
    'model = "a_vae"\n[training]\nresponsibilities = 1': ["step, epoch"],
    'model = "a_vae"\ntraining = 5': ["training is a table", "[training]"],
    'model = "a_vae"\noptions = 5': ["options is 5", "expected dict"],
    'model = "a_vae"\n[initialise]\ndecoder = 3': ["initialise: decoder is 3", "expected str"],
    "stage = 5": ["stage is no list of tables", "[[stage]]"],
    "stage = []": ["stage is no list of tables"],
    'model = "a_vae"\n[[stage]]\nname = "a"': ["'model' beside [[stage]]"],
    '[[stage]]\nmodel = "a_vae"': ["[[stage]] 1: name is None"],
    '[[stage]]\nname = "../a"\nmodel = "a_vae"': ["name is '../a'", "for its folder"],
    '[[stage]]\nname = "a"\nmodel = "a_vae"\n[[stage]]\nname = "a"\nmodel = "v_vae"': [
        "[[stage]] 2: there is a stage 'a' already"
    ],
    '[[stage]]\nname = "a"\nrecipe = 5': ["recipe is 5", "expected str"],
    '[[stage]]\nname = "a"\nrecipe = "paper/none"': ["no recipe 'paper/none'"],
    '[[stage]]\nname = "a"\nrecipe = "paper/all"': ["paper/all is a pipeline: name a recipe"],
    '[[stage]]\nname = "a"\nrecipe = "paper/a_vae"\nsede = 1': ["(a): unknown key 'sede'"],
    '[[stage]]\nname = "a"\nrecipe = "paper/a_vae"\ntraining.epochs = "1"': ["epochs is '1'"],
    '[[stage]]\nname = "v"\nmodel = "v_vae"\ninitialise.decoder = "a:decoder"\n'
    '[[stage]]\nname = "a"\nmodel = "a_vae"': [
        "stage 'v' starts decoder from 'a:decoder'",
        "move it up",
    ],
    '[[stage]]\nname = "v"\nmodel = "v_vae"\ninitialise.decoder = "v"': ["no earlier stage"],
    "model: a_vae": ["not TOML"],
    'model = "a_vae"\nmodel = "v_vae"': ["not TOML"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_name_the_file_the_key_and_the_cure(text: str, tmp_path: Path) -> None:
    """A wrong key or value is refused in one line that names the file, the key and what would be right."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        load_recipe(path)
    message = str(refusal.value)
    named = [] if "no recipe" in message else [str(path)]
    assert all(part in message for part in [*named, *REFUSED[text]]), message
    assert "\n" not in message


def test_stages_are_recipes_with_changes(tmp_path: Path) -> None:
    """A stage's tables lie over its recipe's, key by key; without a recipe the stage is all there is."""
    path = tmp_path / "p.toml"
    path.write_text(
        '[[stage]]\nname = "one"\nmodel = "a_vae"\noptions.hidden = 8\n'
        '[[stage]]\nname = "two"\nrecipe = "default/min_vae_v2"\nseed = 3\n'
        'initialise.decoder = "one"\ntraining.epochs = 2\ndata.noisy_fraction = 0\n'
    )
    stages, base = load_recipe(path), load_recipe("default/min_vae_v2")
    assert list(stages) == ["one", "two"]
    assert stages["one"] == Recipe("a_vae", options={"hidden": 8})
    assert stages["two"] == replace(
        base,
        seed=3,
        initialise=base.initialise | {"decoder": "one"},
        training=replace(base.training, epochs=2),
        data=replace(base.data, noisy_fraction=0.0),
    )


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a_vae", ("a_vae", None)),
        ("a_vae:decoder", ("a_vae", "decoder")),
        ("runs/a.safetensors:decoder.hidden", ("runs/a.safetensors", "decoder.hidden")),
        ("runs/10:30/a.safetensors", ("runs/10:30/a.safetensors", None)),
    ],
)
def test_a_source_is_weights_and_perhaps_a_network(source: str, parts: tuple[str, str]) -> None:
    """What follows the last colon is a network, if it can be a name; a path may hold colons."""
    assert split_source(source) == parts


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file is not TOML."""
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("name", ["default/nothing", "no/such/file.toml", "x" * 300, "."])
def test_a_missing_recipe_is_refused(name: str) -> None:
    """What is neither a file nor a bundled name is refused with the names there are."""
    with pytest.raises(InputError, match=r"which is no file either: known are .*default/a_vae"):
        load_recipe(name)


@pytest.mark.parametrize(
    "options", [{"hiden": 8}, {"hidden": "big"}, {"hidden": -1}, {"hidden": 1.5}, {"features": 8}]
)
def test_options_that_the_model_does_not_take_are_refused(options: dict[str, object]) -> None:
    """[options] are checked by the model's constructor, whose refusal becomes the user's."""
    with pytest.raises(InputError, match=r"\[options\] of a_vae"):
        build_prior(Recipe("a_vae", options=options))
