"""`pyro-avse lab posteriors`: kernels side by side on posteriors whose answers are known.

Heavy imports stand inside the command, so that --help is quick.
"""

import json
from typing import Annotated, Any

import typer

from pyro_avse.cli.app import JsonFlag, SeedOption, lab_app, print_table, say, split_names
from pyro_avse.errors import InputError, closest


@lab_app.command()
def posteriors(
    kernels: Annotated[str, typer.Option(help="Names, as hmc or gibbs:pcn, by commas.")] = "hmc",
    only: Annotated[
        str | None, typer.Option(help="Names of posteriors, by commas; else all.")
    ] = None,
    chains: Annotated[int, typer.Option(help="From draws of the prior.")] = 4,
    draws: Annotated[int, typer.Option(help="Of each chain.")] = 1000,
    warmup: Annotated[int, typer.Option(min=0, help="Steps thrown away.")] = 1000,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Run kernels on the library of posteriors, and say which of them get it right."""
    from pyro_avse.enhancement.find import find_kernel
    from pyro_avse.lab.posteriors import POSTERIORS, load, race
    from pyro_avse.lab.posteriors.race import check_counts

    chosen = list(POSTERIORS) if only is None else split_names(only, "--only")
    for name in chosen:
        if name not in POSTERIORS:
            raise InputError(f"unknown posterior {name!r}{closest(name, POSTERIORS)}")
    made = {name: find_kernel(name) for name in split_names(kernels, "--kernels")}
    check_counts(chains, draws)
    rows = []
    for posterior in map(load, chosen):
        for name, kernel in made.items():
            say(f"{posterior.name}: {name}")
            row: dict[str, Any] = {"posterior": posterior.name, "kernel": name}
            try:
                verdict = race(
                    kernel, posterior, chains=chains, draws=draws, warmup=warmup, seed=seed
                )
                rows.append(row | verdict.row())
            except InputError as refusal:
                say(str(refusal))
                rows.append(row | {"passes": False, "reason": f"refused: {refusal}"})
    if as_json:
        print(json.dumps(rows))
        return
    titles = {
        "ess_per_1000_evaluations": "ESS/1000 evaluations",
        "ess_per_second": "ESS/s",
        "r_hat": "R-hat",
        "mean_off": "mean off by",
        "stddev_off": "sd off by",
    }
    digits = {"r_hat": 3}
    table = [
        [
            row["posterior"],
            row["kernel"],
            *(_number(row.get(key), digits.get(key, 1)) for key in titles),
            (row["reason"] or "pass").partition(":")[0],
        ]
        for row in rows
    ]
    print_table(["", "kernel", *titles.values(), "verdict"], table)
    say("worst number of each; off by: standard errors from the reference, the run's and its own")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
