"""Runs too long for memory: chains drawn in blocks, each written to disk before the next.

The file is netCDF 4 (HDF5) with ArviZ's groups, so that `arviz.from_netcdf` opens it. It has its full length from the
start, NaN where nothing is drawn yet, each variable in one piece: a block is then written over NaN in place, and HDF5's
own structures stay as they are. Killed at whatever moment, the file opens, with all blocks but the last.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_avse.errors import Divergence, InputError
from pyro_avse.files import beside
from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.run import run_chains
from pyro_avse.lab.diagnostics import inference_groups
from pyro_avse.typing import Codes, Kernel, Power, Target

Groups = dict[str, Any]
"""xarray Datasets, by ArviZ's names."""


def stream_chains(
    kernel: Kernel,
    target: Target,
    z0: Codes,
    path: Path,
    *,
    draws: int,
    block: int = 100,
    warmup: int = 0,
    adapt: Adaptation | None = None,
    thin: int = 1,
    seed: int | torch.Generator = 0,
    observed: Power | None = None,
    model_name: str | None = None,
    progress: Callable[[int], None] = lambda drawn: None,
) -> None:
    """The draws of one `run_chains`, bit for bit, in the file `path`, with `block` of them in memory at a time.

    Args:
        path: an older file there is replaced once the first block is drawn.
        observed, model_name: as in `to_inference_data`.
        progress: told how many draws a chain are in the file.
        the others: as in `run_chains`.

    Raises:
        Divergence: as `run_chains`; what was drawn is in the file.
        InputError: as `run_chains`; the file cannot be written.
    """
    rng = seed
    if not isinstance(rng, torch.Generator):
        rng = torch.Generator(device=z0.device).manual_seed(rng)
    z = z0
    for start in range(0, draws, block):
        first, diverged = start == 0, None
        try:
            chains = run_chains(
                kernel,
                target,
                z,
                draws=min(block, draws - start),
                warmup=warmup if first else 0,
                adapt=adapt,
                thin=thin,
                seed=rng,
            )
        except Divergence as error:
            chains, diverged = error.partial, error
        z, kernel = chains.state.z, chains.kernel
        groups = inference_groups(chains, observed, model_name)
        try:
            if first:
                beside(path, partial(_start, path, groups, draws))
            else:
                _write_block(path, groups, start)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error}): choose another place") from None
        if diverged is not None:
            raise diverged
        progress(start + len(chains.draws[0]))


def load_draws(path: Path) -> Any:
    """ArviZ's object from a file of `stream_chains`; of a run that was interrupted, the draws that all chains have."""
    import arviz

    idata = arviz.from_netcdf(path)
    lp = idata["sample_stats"]["lp"]
    whole = lp.notnull().all([dim for dim in lp.dims if dim != "draw"])
    return idata.isel(draw=np.flatnonzero(whole))


def _start(path: Path, groups: Groups, draws: int, part: Path) -> None:
    """The file at its full length with its first block, in place once it is whole."""
    _create(part, groups, draws)
    _write_block(part, groups, 0)
    part.replace(os.path.realpath(path))


def _create(path: Path, groups: Groups, draws: int) -> None:
    """The file at its full length, what has no axis `draw` filled in."""
    import h5netcdf
    import h5py

    with h5netcdf.File(path, "w", locking=False) as file:
        for name, dataset in groups.items():
            group = file.create_group(name)
            group.attrs.update(dataset.attrs)
            grown = {"draw": draws} if "draw" in dataset.sizes else {}
            group.dimensions = {**dataset.sizes, **grown}
            for key, variable in dataset.variables.items():
                kind = variable.dtype
                if kind.kind == "b":  # which netCDF has not: xarray's way
                    kind = np.dtype("int8")
                elif kind.kind == "U":
                    kind = h5py.string_dtype()
                fill = np.nan if kind.kind == "f" else None
                made = group.create_variable(key, variable.dims, kind, fillvalue=fill)
                if variable.dtype.kind == "b":
                    made.attrs["dtype"] = "bool"
                if key == "draw":
                    made[...] = np.arange(draws)
                elif "draw" not in variable.dims:
                    made[...] = variable.values


def _write_block(path: Path, groups: Groups, start: int) -> None:
    """Draws from `start` on, lp last: where a draw has it, it has all else."""
    import h5py

    with h5py.File(path, "r+", locking=False) as file:
        for name in ("posterior", "sample_stats"):
            dataset = groups[name]
            drawn = [key for key in dataset.data_vars if "draw" in dataset[key].dims]
            for key in sorted(drawn, key=lambda key: key == "lp"):
                values = dataset[key].values
                file[name][key][:, start : start + values.shape[1]] = values
