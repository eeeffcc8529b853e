"""`pyro-avse evaluate | report`: sweeps over clips, noises, SNRs, models and schemes, and their tables.

Heavy imports stand inside the commands, so that --help is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from pyro_avse.cli.app import (
    DeviceOption,
    SeedOption,
    SettingsOption,
    app,
    progress_bar,
    read_settings,
    say,
    split_names,
)
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.errors import InputError


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Corpus folder.")],
    noise: Annotated[
        str,
        typer.Option(help="white, pink, babble, recordings, folders, corpus (its own); by commas."),
    ],
    snr: Annotated[str, typer.Option(help="In dB, by commas: -5,0,5.")],
    models: Annotated[
        str,
        typer.Option(
            help="Bundled names, weight files, rivals (log_mmse, module:function), LABEL=ONE, NAME='CMD {noisy} {out}'."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results, new or to go on with.")],
    inference: Annotated[str, typer.Option(help="Schemes, or LABEL=SCHEME.")] = DEFAULT_INFERENCE,
    settings: SettingsOption = "{}",
    lips: Annotated[
        str, typer.Option(help="What models see: clean, patch, frozen, black, mixed; by commas.")
    ] = "clean",
    bad_lips: Annotated[float, typer.Option(help="Share of bad pictures, where not clean.")] = 1
    / 3,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    clips: Annotated[int | None, typer.Option(help="Only so many, of all speakers.")] = None,
    level: Annotated[
        str, typer.Option(help="Speech level of an SNR: over the whole clip, or active speech.")
    ] = "clip",
    seed: SeedOption = 0,
    batch: Annotated[
        int, typer.Option(min=1, help="Mixtures enhanced at once; draws differ with it.")
    ] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler: tcp://HOST:PORT.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Start dask here, with --jobs workers.")
    ] = False,
    device: DeviceOption = "cpu",
    retry: Annotated[bool, typer.Option("--retry", help="Do failed rows again.")] = False,
) -> None:
    """Enhance and score every clip in every noise at every SNR; goes on where it was stopped."""
    from pyro_avse.sweep.evaluation import evaluate as run

    if cluster and scheduler is not None:
        raise InputError("--cluster starts dask, --scheduler names one that runs: give one of them")
    with progress_bar() as update:
        frame = run(
            data,
            split_names(noise, "--noise"),
            _numbers(snr),
            split_names(models, "--models"),
            split_names(inference, "--inference"),
            out=out,
            split=split,  # type: ignore[arg-type]  # another is refused
            clips=clips,
            seed=seed,
            level=level,  # type: ignore[arg-type]  # another is refused
            settings=read_settings(settings),
            lips=split_names(lips, "--lips"),
            bad_lips=bad_lips,
            batch=batch,
            jobs=jobs,
            cluster="local" if cluster else scheduler,
            device=device,
            retry=retry,
            progress=lambda done, total: update(done / total, f"{done} of {total} rows"),
        )
    looped = sorted(frame[frame.noise_looped.fillna(False).astype(bool)].noise.unique())
    for name in looped:
        say(f"the noise {name} is shorter than some clips: it was looped")
    for reason, count in frame.failure.dropna().value_counts().items():
        say(f"{count} rows failed: {reason}")
    say(f"{len(frame)} rows in {out}: pyro-avse report {out} makes tables and figures of them")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder of pyro-avse evaluate.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; RESULTS/report.")] = None,
) -> None:
    """Tables, figures and a page with sounds, of a sweep that is finished or not."""
    from pyro_avse.sweep.report import make_report

    print(make_report(results, out))
    say(f"wrote {results / 'report' if out is None else out}/report.html, its tables and figures")


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in split_names(text, "--snr")]
    except ValueError:
        raise InputError(
            f"--snr {text!r}: give numbers of dB with commas, such as -5,0,5"
        ) from None
