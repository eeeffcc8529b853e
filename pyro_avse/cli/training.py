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
    noise: Annotated[
        Path | None, typer.Option(help="Folder of recorded noises, for default/gabbay alone.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a speech prior from clean speech, a pipeline of them, a guide for noisy speech, or a rival.

    By several processes: torchrun --nproc-per-node 2 -m pyro_avse.cli train RECIPE ...
    """
    from pyro_avse.training.crew import crew_of_environment
    from pyro_avse.training.recipe import GuideRecipe, Recipe, RivalRecipe, load_recipe
    from pyro_avse.training.stages import train as run

    loaded, folders = load_recipe(recipe), [*data, *(more_data or [])]
    with crew_of_environment() as crew, progress_bar() as update:
        if isinstance(loaded, GuideRecipe | RivalRecipe):
            if isinstance(loaded, GuideRecipe):
                rounds = loaded.training.rounds
                text = "log q {valid_objective:.1f}, of the codes {valid_codes:.1f}"
            else:
                rounds, text = loaded.training.epochs, loaded.rival
                if loaded.rival == "gabbay":
                    text = "loss {train_loss:.3f}, on held-out clips {valid_loss:.3f}"

            def tell(row: dict[str, Any]) -> None:
                update((row["epoch"] + 1) / rounds, text.format(**row))

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
            noise=noise,
            resume=resume,
            device=device,
            progress=tell if first else None,
            crew=crew,
        )
    if first:
        say(f"wrote {out}/*/{weights.name}" if isinstance(loaded, dict) else f"wrote {weights}")
