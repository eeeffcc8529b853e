"""What an epoch of training costs for every model, by its default recipe: processor seconds of one thread.

Processor time, because it does not count what else the machine does. Weights that a recipe starts from do not matter to
the time, and are left out.

    python benchmarks/training_time.py --data ../shared/data/grid [--models rvae dkf]
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.training.frames import load_frames
from pyro_avse.training.recipe import Recipe, load_recipe
from pyro_avse.training.stages import build_prior
from pyro_avse.training.svi import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a corpus with lips")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, valid = (
        load_frames(
            find_utterances(args.data, split), STFT(), with_lips=True, noise_floor_db=40, seed=0
        )
        for split in ("train", "valid")
    )
    print(f"{len(train)} frames an epoch, one thread\n")
    print(
        "| model | batch | ms a step | s an epoch | epochs | minutes in all |\n"
        + "| --- " * 6
        + "|"
    )
    for name in args.models:
        recipe = load_recipe(f"default/{name}")
        assert isinstance(recipe, Recipe)
        if recipe.training.epochs == 0:
            continue  # assembled
        trainer = Trainer(build_prior(replace(recipe, initialise={})), recipe, train, valid)
        seconds = []
        for _ in range(2):  # encoders that are trained in turn have each theirs
            start = time.process_time()
            trainer.run_epoch()
            seconds.append(time.process_time() - start)
        epoch, size = sum(seconds) / 2, recipe.training.batch_size
        steps = -(-len(train) // (size * max(1, trainer.cut)))  # of frames, or of cuts
        print(
            f"| {name} | {size} | {1000 * epoch / steps:.0f} | {epoch:.1f} | {recipe.training.epochs} | "
            f"{epoch * recipe.training.epochs / 60:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
