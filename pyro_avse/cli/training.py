"""`pyro-avse train`: a speech prior from clean speech."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_avse.cli.app import DeviceOption, app, progress_bar, say


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Bundled name, as default/a_vae or paper/all (stages), or a TOML file."
        ),
    ],
    data: Annotated[list[Path], typer.Option(help="Corpus folders, one or more.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, log and curves.")],
    more_data: Annotated[
        list[Path] | None, typer.Argument(help="What follows --data after the first.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a speech prior from clean speech, all stages of a pipeline, or a guide for noisy speech.

    By several processes: torchrun --nproc-per-node 2 -m pyro_avse.cli train RECIPE ...
    """
    from pyro_avse.training.crew import crew_of_environment
    from pyro_avse.training.recipe import GuideRecipe, Recipe, load_recipe
    from pyro_avse.training.stages import train as run

    loaded, folders = load_recipe(recipe), [*data, *(more_data or [])]
    with crew_of_environment() as crew, progress_bar() as update:
        if isinstance(loaded, GuideRecipe):
            rounds = loaded.training.rounds

            def tell(row: dict[str, Any]) -> None:
                text = f"log q {row['valid_objective']:.1f}, of the codes {row['valid_codes']:.1f}"
                update((row["epoch"] + 1) / rounds, text)

        else:
            stages = {"": loaded} if isinstance(loaded, Recipe) else loaded
            epochs = [stage.training.epochs for stage in stages.values()]

            def tell(row: dict[str, Any]) -> None:
                r, stage = row["valid_responsibility"][0], row.get("stage", "")
                before = sum(epochs[: list(stages).index(stage)])
                update(
                    (before + row["epoch"] + 1) / sum(epochs),
                    f"{stage} ELBO {row['valid_elbo']:.1f} = {row['valid_reconstruction']:.1f} - KL "
                    f"{row['valid_kl']:.1f}, pi_n {r:.2f}".lstrip(),
                )

        first = crew.rank == 0
        weights = run(
            loaded,
            folders,
            out,
            resume=resume,
            device=device,
            progress=tell if first else None,
            crew=crew,
        )
    if first:
        say(f"wrote {out}/*/{weights.name}" if isinstance(loaded, dict) else f"wrote {weights}")
