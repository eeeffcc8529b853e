"""Recipes: the bundled ones parse, and whatever would not be trained as written is refused."""

from pathlib import Path

import pytest

from pyro_avse.models import MODELS
from pyro_avse.recipe import Recipe, load_recipe, recipes
from pyro_avse.training import build_prior
from pyro_avse.typing import InputError


@pytest.mark.parametrize("name", recipes())
def test_bundled_recipes_parse(name: str) -> None:
    """Every bundled recipe is of a known model, whose networks are those that it starts from weights."""
    recipe = load_recipe(name)
    networks = dict(MODELS[recipe.model](**recipe.options).named_children())
    assert recipe.initialise.keys() <= networks.keys()


def test_there_is_a_default_recipe_of_every_model() -> None:
    """`default/NAME` trains the model NAME."""
    assert {f"default/{name}" for name in MODELS} <= set(recipes())
    assert all(load_recipe(f"default/{name}").model == name for name in MODELS)


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
    'model = "a_vae"\n[training]\nlearning_rate = -1e-3': ["learning_rate is -0.001"],
    'model = "a_vae"\n[training]\nlearning_rate = nan': ["learning_rate is nan"],
    'model = "a_vae"\n[training]\nlearning_rate = inf': ["learning_rate is inf"],
    'model = "a_vae"\n[training]\nschedule = "linear"': ["'linear'", "constant, cosine"],
    'model = "a_vae"\n[training]\nresponsibilities = 1': ["step, epoch"],
    'model = "a_vae"\ntraining = 5': ["training is a table", "[training]"],
    'model = "a_vae"\noptions = 5': ["options is 5", "expected dict"],
    'model = "a_vae"\n[initialise]\ndecoder = 3': ["initialise: decoder is 3", "expected str"],
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
    assert all(part in message for part in [str(path), *REFUSED[text]]), message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file is not TOML."""
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("name", ["default/nothing", "no/such/file.toml", "x" * 300, "."])
def test_a_missing_recipe_is_refused(name: str) -> None:
    """What is neither a file nor a bundled name is refused with the names there are."""
    with pytest.raises(InputError, match=r"give a file or one of .*default/a_vae"):
        load_recipe(name)


@pytest.mark.parametrize(
    "options", [{"hiden": 8}, {"hidden": "big"}, {"hidden": -1}, {"hidden": 1.5}, {"features": 8}]
)
def test_options_that_the_model_does_not_take_are_refused(options: dict[str, object]) -> None:
    """[options] are checked by the model's constructor, whose refusal becomes the user's."""
    with pytest.raises(InputError, match=r"\[options\] of a_vae"):
        build_prior(Recipe("a_vae", options=options))
