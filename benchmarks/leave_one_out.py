"""Lips of a speaker never seen: priors that learnt from the other speakers of GRID, with sound alone and with lips.

One speaker is held out, the models are trained on the others' clips by the default recipes, changed as a setting says,
and all are scored on the same mixtures of the speaker's clips. All learn from synthetic talkers besides, A-VAE from
spoken commands and LibriSpeech's excerpts too; the audio-visual models start from A-VAE, so that a row differs from
A-VAE's in what lips add. `a_vae, no LibriSpeech` shows what its 224 speakers are worth.

    python benchmarks/leave_one_out.py --data ../shared/data --synth runs/synth --hold-out s4 --out runs/leave_one_out

The setting "default" alone is what benchmarks/robustness.py enhances GRID with (--only default).

What is trained and scored in --out already is not done again; --only names some settings.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from prior_study import excerpt, folder_of, link
from scipy.stats import t as student

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.training.recipe import Recipe, load_recipe
from pyro_avse.training.stages import WEIGHTS, train

NOISES, SNRS = ("street_tram", "kitchen"), (-5.0, 0.0, 5.0)
COMMANDS, TALKERS = 20, 15
"""Minutes of both that are learnt from."""


@dataclass(frozen=True)
class Setting:
    """What is not as in the default recipes."""

    features: int = 512
    augment_lips: float = 0.0
    synth: float = TALKERS
    """Minutes of synthetic talkers beside the real ones; A-VAE has `TALKERS`."""


MODELS = ("v_vae", "av_vae", "min_vae_v1", "min_vae_v1_noisy", "min_vae_v2", "min_vae_v3", "vae_mm")
"""`_noisy`: with noise on the audio encoder's input in a third of the frames, as default/min_vae_v2."""
SETTINGS = {
    "lips as they are": Setting(),
    "lips changed": Setting(augment_lips=1.0),
    "default": Setting(256, augment_lips=1.0),
    "lips changed, 256 features, no talkers": Setting(256, augment_lips=1.0, synth=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with commands, grid and noise")
    parser.add_argument("--synth", type=Path, required=True, help="made by pyro-avse data synth")
    parser.add_argument("--hold-out", default="s4", help="a speaker")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--clips", type=int, default=5, help="of the speaker")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument(
        "--without-librispeech", action="store_true", help="train A-VAE without it too"
    )
    parser.add_argument("--no-scores", action="store_true", help="train, and no more")
    parser.add_argument("--inference", default=DEFAULT_INFERENCE, help="a scheme")
    parser.add_argument("--iterations", type=int, help="of the scheme, fewer than its default")
    args = parser.parse_args()
    torch.set_num_threads(1)

    out = args.out / args.hold_out
    corpus = without_speaker(args.data / "grid", args.hold_out, out / "data")
    commands = excerpt(args.data / "commands", COMMANDS, args.out / "data" / f"commands_{COMMANDS}")
    talkers = excerpt(args.synth, TALKERS, args.out / "data" / f"synth_{TALKERS}")
    heard = [corpus, commands, talkers]
    speech = librispeech(args.data, args.out / "data" / "librispeech")
    audio = train_once("a_vae", Setting(), {}, [*heard, speech], out)
    weights = {"a_vae": audio}
    if args.without_librispeech:
        weights["a_vae, no LibriSpeech"] = train_once(
            "a_vae", Setting(), {}, heard, out / "no_librispeech"
        )
    for name in args.only:
        setting = SETTINGS[name]
        corpora = [corpus]
        if setting.synth:
            corpora.append(
                excerpt(args.synth, setting.synth, args.out / "data" / f"synth_{setting.synth:g}")
            )
        stages = {"a_vae": audio}
        for model in args.models:
            stages[model] = train_once(model, setting, stages, corpora, folder_of(out, name))
            weights[f"{model}, {name}"] = stages[model]
    if args.no_scores:
        return
    rows = evaluate(
        corpus,
        [str(args.data / "noise" / f"{noise}.flac") for noise in NOISES],
        SNRS,
        [f"{label}={path}" for label, path in weights.items()],
        [args.inference],
        clips=args.clips,
        settings={args.inference: {"iterations": args.iterations}} if args.iterations else {},
        out=out / f"scores_{args.inference}",
    )
    print(table(rows[rows["model"].isin(list(weights))], list(weights)))


def without_speaker(corpus: Path, speaker: str, out: Path) -> Path:
    """Links: the others' train and valid clips as they are, and as test clips the speaker's own, none of them learnt
    from: valid, and of train what it lacks to five. GRID's test clips are left alone: recipes are chosen by this.
    """
    own = []
    for split in ("valid", "train"):
        for clip in find_utterances(corpus, split):  # type: ignore[arg-type]
            if clip.speaker != speaker:
                link(clip.audio, corpus, out)
            elif split == "valid" or len(own) < 5:
                own.append(clip.audio)
    for audio in own:
        link(audio, audio.parents[1], out / "test")
    return out


def librispeech(data: Path, out: Path) -> Path:
    """The excerpts of LibriSpeech as a corpus: links named as its splits."""
    for split, name in (("train", "librispeech"), ("valid", "librispeech_valid")):
        if not (out / split).is_symlink():
            out.mkdir(parents=True, exist_ok=True)
            (out / split).symlink_to((data / "speech" / name).resolve())
    return out


def train_once(
    model: str, setting: Setting, stages: dict[str, Path], corpora: list[Path], out: Path
) -> Path:
    """The weights of the default recipe, changed, and started from this study's earlier stages."""
    recipe = load_recipe(f"default/{model.removesuffix('_noisy')}")
    assert isinstance(recipe, Recipe)
    initialise = {}
    for network, source in recipe.initialise.items():
        weights, colon, name = source.partition(":")
        initialise[network] = f"{stages[weights]}{colon}{name}"
    data, options = recipe.data, recipe.options
    if model == "vae_mm":
        options = {"audio_visual": options["audio_visual"] | {"features": setting.features}}
    elif model != "a_vae":
        options = options | {"features": setting.features}
        data = replace(data, augment_lips=setting.augment_lips)
    if model.endswith("_noisy"):
        data = replace(data, noisy_fraction=0.333)
    recipe = replace(recipe, options=options, initialise=initialise, data=data)
    if not (out / model / WEIGHTS).is_file():
        train(recipe, corpora, out / model, resume=True)
    return out / model / WEIGHTS


def table(rows: pd.DataFrame, models: list[str]) -> str:
    """Mean improvements, a row a model, and by how much they are more than A-VAE's on the same mixtures."""
    keys = ["clip", "noise", "snr"]
    head = ["model", "SI-SDR", "STOI", "mean r(audio)", "SI-SDR less A-VAE's"]
    head += [f"at {snr:g} dB" for snr in SNRS] + ["STOI less A-VAE's"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    scores = ["si_sdr_improvement", "stoi_improvement"]
    audio = rows[rows["model"] == "a_vae"].set_index(keys)[scores]
    for model in models:
        own = rows[rows["model"] == model].set_index(keys)
        less = own[scores] - audio
        of_clips = less.groupby("clip").mean()  # clips are independent, their mixtures not
        half = student.ppf(0.975, len(of_clips) - 1) * of_clips.std() / len(of_clips) ** 0.5
        by_snr = less["si_sdr_improvement"].groupby("snr").mean()
        cells = [f"{own[scores[0]].mean():+.2f}", f"{own[scores[1]].mean():+.3f}"]
        cells.append(f"{own['audio_responsibility'].mean():.2f}")
        cells.append(f"{of_clips[scores[0]].mean():+.2f} ± {half[scores[0]]:.2f}")
        cells += [f"{by_snr[snr]:+.2f}" for snr in SNRS]
        cells.append(f"{of_clips[scores[1]].mean():+.3f} ± {half[scores[1]]:.3f}")
        lines.append("| " + " | ".join([model, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
