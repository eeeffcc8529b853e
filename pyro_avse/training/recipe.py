"""Training recipes: a TOML file that says what is trained, on what, and how. Unknown keys are refused.

model = "min_vae_v3"            # a name of pyro_avse.models.MODELS
[options]                       # of the model's constructor
[initialise]                    # networks copied from trained weights: bundled ones, a file's, an earlier stage's
decoder = "a_vae"               # the network of that name
prior = "a_vae:audio_prior"     # or of another; dots lead inside a network: "decoder.hidden"
[training]
epochs = 30                     # 0: assembled from [initialise] and not trained

A pipeline is a file of stages, trained in order, each in a folder of its name. A stage is a recipe, changed where it
says so, and its [initialise] may name an earlier stage:

[[stage]]
name = "a_vae"
recipe = "paper/a_vae"          # bundled, or a file; or left out, and all of it written here

[[stage]]
name = "a_vae_prior"
recipe = "paper/a_vae_prior"
training.epochs = 20
"""

import math
import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pyro_avse.errors import closest
from pyro_avse.typing import JSON, InputError


@dataclass(frozen=True)
class Data:
    """What the frames are made of."""

    noise_floor_db: float = 40.0
    """Pink noise this many dB under each clip's peak; 0 adds none."""
    level_range_db: float = 0.0
    """Every frame of a minibatch is made quieter by up to this many dB, uniformly at random: at test time speech lies
    under the peak of the mixture."""
    tilt_db: float = 0.0
    """Every frame of a minibatch is tilted by up to this many dB an octave, up or down at random, its power kept: what
    microphones, rooms and voices differ by."""
    noisy_fraction: float = 0.0
    """Share of the training frames whose audio encoder hears noise: uniform on the power, 0 dB; the target is clean.
    None unless a recipe says so: the paper's third is in default/min_vae_v2, and in paper/all's noisy stages."""
    level: Literal["peak", "speech"] = "peak"
    """Every clip is brought to a peak of 1 or, as recordings are at test time, to a `speech_level` of 1."""
    augment_lips: float = 0.0
    """Strength of the random changes to the training lips (`data.lips.augment`); 0 none, 1 what cameras and faces
    differ by."""
    bad_lips: float = 0.0
    """Share of every clip's pictures that are made bad, in training and validation (`data.lips.corrupt`): by a patch,
    frozen or black, a clip by one of the three. What learns when lips are bad has to see some."""
    hop: int = 533
    """Samples from one STFT frame to the next; the window has 1024."""
    cut: float = 2.5
    """Seconds of speech that a prior which couples frames is trained on at once; of others no setting. `batch_size`
    then counts such cuts, and what is drawn for frames is drawn for cuts."""


@dataclass(frozen=True)
class Training:
    """How SVI runs."""

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lowers the learning rate to 2 % over all epochs."""
    responsibilities: Literal["step", "epoch"] = "step"
    """r(alpha_n): from each step's own draws, or a table refreshed after each epoch (the paper)."""
    kl_weight: float = 1.0
    """Of the divergence of z from its prior in the loss. `train_objective` in the log is minus that loss, which is the
    bound only where this is 1; `valid_elbo` is always the bound."""
    select: Literal["elbo", "enhancement"] = "elbo"
    """What the best epoch is the best in: the validation ELBO, or `valid_si_sdr`, what mixtures made of validation
    clips gain by it (`pyro_avse.training.selection`)."""
    patience: int = 20
    """Stop after this many epochs without a better one, never if it is `epochs`; the best epoch's weights are kept."""


@dataclass(frozen=True)
class Recipe:
    """A training run; `train` takes one."""

    model: str
    seed: int = 0
    half_precision: bool = False
    """Store the final weights as float16."""
    quarter_precision: bool = False
    """Store their matrices as int8 with a scale a row, and the rest as float16 (`in_quarters`)."""
    options: JSON = field(default_factory=dict)
    initialise: dict[str, str] = field(default_factory=dict)
    """Network (a submodule's name) -> weights to start it from: a bundled name, a file or an earlier stage; and ":" and
    the network there, where it has another name. A submodule that is itself a model takes all of its weights."""
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class GuideTraining:
    """How a guide learns."""

    rounds: int = 60
    """A round is `steps` steps, a line of the log and a checkpoint."""
    steps: int = 40
    batch_size: int = 24
    """Recordings a step, of `frames` each; some steps have fewer of longer ones, some more of shorter ones."""
    frames: int = 120
    learning_rate: float = 2e-3
    """It falls to 2 % along a cosine."""
    hearing: float = 0.05
    """Of what the codes decode to, in the loss (`pyro_avse.training.amortise`)."""
    filter: float = 80.0
    """Of minus the SI-SDR of its Wiener filter, in the loss; of a guide that separates, of its filters' error."""
    wake: float = 0.0
    """The share of reweighted wake-sleep in the loss, from 0 to 1."""
    particles: int = 10
    """Draws of the guide a frame for it."""


@dataclass(frozen=True)
class GuideRecipe:
    """A training run of a guide for noisy speech; a TOML file whose first key is `prior`."""

    prior: str
    """A bundled name or a weight file; it stays as it is."""
    seed: int = 0
    half_precision: bool = False
    quarter_precision: bool = False
    """As in a prior's recipe."""
    start: str = ""
    """Another guide, whose networks it starts from where they fit: a file, or the bundled prior that it came with."""
    noise_floor_db: float = 40.0
    """As in [data] of a prior's recipe."""
    speeds: float = 0.0
    """Every clip is heard a second time at exp(U(-speeds, speeds)) times its speed, as if somebody else had spoken."""
    lips_dropped: float = 0.3
    """How often a recording's lips, or a speaker's, are taken away in training."""
    separates: bool = False
    """Whether it is to hear several speakers, and to tell them apart by their lips."""
    options: JSON = field(default_factory=dict)
    """Of `NoisyGuide`: hidden, layers, causal; of `SeparatingGuide`: hidden."""
    training: GuideTraining = field(default_factory=GuideTraining)


@dataclass(frozen=True)
class RivalTraining:
    """How the supervised rival learns."""

    epochs: int = 12
    """Every clip once in each, in a noise of its own; of a dictionary its updates."""
    batch_size: int = 8
    """Recordings a step, of 3 s each."""
    learning_rate: float = 1e-3
    """It falls to 2 % along a cosine."""


@dataclass(frozen=True)
class RivalRecipe:
    """A training run of a rival that is trained; a TOML file whose first key is `rival`."""

    rival: Literal["gabbay", "supervised_nmf"]
    """The second knows no noise: it takes `seed`, options and `training.epochs` alone."""
    noises: list[str] = field(default_factory=list)
    """The recordings that it learns, by their names without extension; of each the first half."""
    seed: int = 0
    own_voice: float = 0.2
    """How often the noise is the same speaker in another clip, as in the paper: the mouth alone tells which to keep."""
    snr_db: list[float] = field(default_factory=lambda: [-10.0, 10.0])
    """Lowest and highest, uniformly."""
    options: JSON = field(default_factory=dict)
    """Of `GabbayNet`; of a dictionary its `rank`."""
    training: RivalTraining = field(default_factory=RivalTraining)


Pipeline = dict[str, Recipe]
"""Stages by name, in the order in which they are trained."""


def load_recipe(name: str | Path) -> Recipe | Pipeline | GuideRecipe | RivalRecipe:
    """A recipe, a pipeline, a guide's or a rival's recipe from a file, or a bundled one by its name ("default/a_vae",
    "paper/all", "default/guide_a_vae", "default/gabbay").

    Raises:
        InputError: no such recipe; not TOML; an unknown key, or a value of the wrong kind; a stage without a name, or
            that starts from one that comes later.
    """
    content, source = _read(name)
    if "stage" in content:
        return parse_pipeline(content, source=source)
    if "prior" in content:
        return parse_guide_recipe(content, source=source)
    if "rival" in content:
        return parse_rival_recipe(content, source=source)
    return parse_recipe(content, source=source)


def _read(name: str | Path) -> tuple[JSON, str]:
    path = Path(name)
    if not os.path.isfile(path):
        bundled = files("pyro_avse.training") / "recipes" / f"{name}.toml"
        if not os.path.isfile(str(bundled)):
            raise InputError(
                f"no recipe {str(name)!r}, which is no file either{closest(str(name), recipes())}"
            )
        path = Path(str(bundled))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None


def recipes() -> list[str]:
    """Names of the bundled recipes."""
    root = Path(str(files("pyro_avse.training") / "recipes"))
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.toml"))


def parse_recipe(content: JSON, *, source: str) -> Recipe:
    """A recipe from TOML's tables; `source` names them in refusals."""
    from pyro_avse.models import MODELS  # loads torch: not needed to list recipes

    recipe = _parse(Recipe, content, source)
    if recipe.model not in MODELS:
        raise InputError(f"{source}: unknown model {recipe.model!r}{closest(recipe.model, MODELS)}")
    if recipe.training.batch_size < 1:
        raise InputError(f"{source} [training]: batch_size is 0: expected 1 or more")
    if recipe.data.noisy_fraction > 1:
        raise InputError(
            f"{source} [data]: noisy_fraction is {recipe.data.noisy_fraction}: expected a share from 0 to 1"
        )
    if recipe.data.bad_lips >= 1:
        raise InputError(
            f"{source} [data]: bad_lips is {recipe.data.bad_lips}: expected a share from 0 to less than 1"
        )
    if recipe.training.epochs > 0 and recipe.training.patience < 1:
        raise InputError(f"{source} [training]: patience is 0: expected 1 or more")
    if recipe.data.augment_lips > 2:
        raise InputError(
            f"{source} [data]: augment_lips is {recipe.data.augment_lips}: expected a strength from 0 to 2"
        )
    if recipe.training.epochs > 0 and recipe.training.learning_rate == 0:
        raise InputError(f"{source} [training]: learning_rate is 0: expected more, 1e-4 say")
    if recipe.training.epochs < 1 and not recipe.initialise:
        raise InputError(
            f"{source} [training]: epochs is 0: expected 1 or more, or [initialise] to assemble from"
        )
    return recipe


def parse_guide_recipe(content: JSON, *, source: str) -> GuideRecipe:
    """A guide's recipe from TOML's tables."""
    recipe: GuideRecipe = _parse(GuideRecipe, content, source)
    for key in ("rounds", "steps", "batch_size", "frames", "particles", "learning_rate"):
        if getattr(recipe.training, key) == 0:
            raise InputError(f"{source} [training]: {key} is 0: expected more")
    for name, share in (("wake", recipe.training.wake), ("lips_dropped", recipe.lips_dropped)):
        if share > 1:
            raise InputError(f"{source}: {name} is {share}: expected a share from 0 to 1")
    if recipe.speeds > 0.5 or (recipe.separates and recipe.speeds):
        raise InputError(
            f"{source}: speeds is {recipe.speeds}: expected 0 to 0.5 (0.6 to 1.65 times as fast), 0 of a guide that "
            "separates"
        )
    return recipe


def parse_rival_recipe(content: JSON, *, source: str) -> RivalRecipe:
    """The supervised rival's recipe from TOML's tables."""
    recipe: RivalRecipe = _parse(RivalRecipe, content, source)
    named = all(isinstance(name, str) for name in recipe.noises) and bool(recipe.noises)
    if named != (recipe.rival == "gabbay"):
        raise InputError(
            f"{source}: noises is {recipe.noises!r}: gabbay has names of recordings, others none"
        )
    snrs = recipe.snr_db
    if len(snrs) != 2 or not all(type(x) in (int, float) for x in snrs) or not snrs[0] <= snrs[1]:
        raise InputError(
            f"{source}: snr_db is {snrs!r}: give the lowest and the highest, as [-10, 10]"
        )
    if recipe.own_voice > 1:
        raise InputError(f"{source}: own_voice is {recipe.own_voice}: expected a share from 0 to 1")
    for key in ("epochs", "batch_size", "learning_rate"):
        if getattr(recipe.training, key) == 0:
            raise InputError(f"{source} [training]: {key} is 0: expected more")
    return recipe


def parse_pipeline(content: JSON, *, source: str) -> Pipeline:
    """Stages from TOML's tables; `source` names them in refusals."""
    for key in content.keys() - {"stage"}:
        raise InputError(f"{source}: {key!r} beside [[stage]]: a pipeline holds stages alone")
    tables = content["stage"]
    if not (tables and isinstance(tables, list) and all(isinstance(t, dict) for t in tables)):
        raise InputError(f"{source}: stage is no list of tables: write [[stage]] above each")
    stages: Pipeline = {}
    for number, table in enumerate(tables, start=1):
        name = table.get("name")
        where = f"{source} [[stage]] {number}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(
                f"{where}: name is {name!r}: give letters, digits, _ or -, for its folder"
            )
        if name in stages:
            raise InputError(f"{where}: there is a stage {name!r} already: give it another name")
        changes = {key: value for key, value in table.items() if key not in ("name", "recipe")}
        base = (
            _read(_checked(table["recipe"], str, f"{where}: recipe"))[0]
            if "recipe" in table
            else {}
        )
        if "stage" in base:
            raise InputError(
                f"{where}: {table['recipe']} is a pipeline: name a recipe of one model"
            )
        stages[name] = parse_recipe(_merged(base, changes), source=f"{where} ({name})")
    for place, (name, recipe) in enumerate(stages.items()):
        for network, origin in recipe.initialise.items():
            if split_source(origin)[0] in list(stages)[place:]:
                raise InputError(
                    f"{source}: stage {name!r} starts {network} from {origin!r}, which is no earlier "
                    f"stage: move it up"
                )
    return stages


def split_source(source: str) -> tuple[str, str | None]:
    """A value of [initialise] as the weights' name and the network's: "a_vae:decoder" -> ("a_vae", "decoder")."""
    weights, colon, network = source.rpartition(":")
    if colon and all(part.isidentifier() for part in network.split(".")):
        return weights, network
    return source, None


def _merged(base: JSON, changes: JSON) -> JSON:
    """The tables of `base` with the values of `changes` in their places."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _parse(cls: type, content: JSON, where: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    values = {}
    for key, value in content.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{closest(key, known)}")
        kind = known[key].type
        if kind in (Data, Training, GuideTraining, RivalTraining):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {key} is a table: write [{key}]")
            values[key] = _parse(kind, value, f"{where} [{key}]")
        else:
            values[key] = _checked(value, kind, f"{where}: {key}")
    if cls is Recipe and "model" not in values:
        raise InputError(f'{where}: lacks the key "model"')
    return cls(**values)


def _checked(value: Any, kind: Any, where: str) -> Any:
    if choices := get_args(kind) if getattr(kind, "__origin__", None) is Literal else ():
        if value not in choices:
            raise InputError(f"{where} is {value!r}: take one of {', '.join(choices)}")
        return value
    plain = getattr(kind, "__origin__", kind)
    if plain is float and type(value) is int:
        value = float(value)
    if type(value) is not plain:
        raise InputError(f"{where} is {value!r}: expected {plain.__name__}")
    if plain in (int, float) and not 0 <= value < math.inf:  # also false for NaN
        raise InputError(f"{where} is {value!r}: expected 0 or more")
    if get_args(kind) == (str, str):
        for key, text in value.items():
            _checked(text, str, f"{where}: {key}")
    return value
