"""`pyro-avse compare | diagnose | evidence`: schemes, kernels, models side by side; whether draws can be trusted.

Heavy imports stand inside the commands, so that --help is quick.
"""

import json
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_avse.cli.app import (
    DeviceOption,
    JsonFlag,
    SeedOption,
    SettingsOption,
    app,
    print_table,
    progress_bar,
    read_settings,
    say,
    split_names,
)
from pyro_avse.cli.verdict import print_diagnosis, print_weights
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.errors import Divergence, InputError

NoisyArgument = Annotated[Path, typer.Argument(help="Sound file, any format and rate.")]
LipsOption = Annotated[Path | None, typer.Option(help=".npz (lips, fps) or .npy of 67x67 mouths.")]
FpsOption = Annotated[
    float | None, typer.Option(help="Of the lips, where their file does not say.")
]
ModelOption = Annotated[str, typer.Option(help="Bundled name or weight file.")]
IterationsOption = Annotated[
    int | None, typer.Option(min=1, help="Of EM, at most, where --settings does not say.")
]
WarmupOption = Annotated[int, typer.Option(min=0, help="Steps of the long run thrown away.")]
ChainsOption = Annotated[int, typer.Option(min=2, help="Of the long run.")]


@app.command()
def compare(
    noisy: NoisyArgument,
    reference: Annotated[Path | None, typer.Option(help="Clean speech, to score against.")] = None,
    lips: LipsOption = None,
    fps: FpsOption = None,
    model: ModelOption = DEFAULT_MODEL,
    schemes: Annotated[str, typer.Option(help="Names, by commas.")] = "vem,collapsed_vem,mcem",
    models: Annotated[
        str | None,
        typer.Option(help="Rivals: names, module:function, NAME='CMD {noisy} {out}'; by commas."),
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(help="Names, as hmc or gibbs:pcn, by commas; else each scheme's own."),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt step sizes in the schemes too.")
    ] = False,
    iterations: IterationsOption = None,
    settings: SettingsOption = "{}",
    draws: Annotated[
        int, typer.Option(min=0, help="Of each chain of the long run for ESS; 0: none.")
    ] = 500,
    warmup: WarmupOption = 500,
    chains: ChainsOption = 4,
    html: Annotated[Path | None, typer.Option(help="Page to write, with players.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Put schemes and kernels side by side on one recording."""
    from pyro_avse.data.lips.open import load_lips
    from pyro_avse.data.media.audio import load_audio
    from pyro_avse.enhancement.file import files_read
    from pyro_avse.enhancement.find import find_kernel
    from pyro_avse.files import check_place, refuse_inputs, write_atomically
    from pyro_avse.lab.comparison import Clip, compare
    from pyro_avse.lab.page import TITLES, cells, comparison_page, input_cells, label
    from pyro_avse.rivals.find import find_rivals
    from pyro_avse.weights.checkpoint import load_prior

    if 0 < draws < 4:
        raise InputError(f"--draws {draws}: R-hat and ESS need at least 4, or give 0 for none")
    chosen = _schemes(split_names(schemes, "--schemes"), settings, iterations, {})
    moved = None
    if kernels is not None:
        moved = {name: find_kernel(name) for name in split_names(kernels, "--kernels")}
    rivals = [] if models is None else find_rivals(split_names(models, "--models"))
    if html is not None:
        check_place(html)
        refuse_inputs([html], files_read(noisy, lips, reference, model))
    clip = Clip(
        noisy.name,
        load_audio(noisy),
        None if reference is None else load_audio(reference),
        None if lips is None else load_lips(lips, fps=fps),
    )
    prior, stft = load_prior(model)
    found = compare(
        [clip],
        prior,
        chosen,
        moved,
        rivals=rivals,
        stft=stft,
        device=device,
        adapt=adapt,
        draws=draws,
        warmup=warmup,
        chains=chains,
        seed=seed,
        report=say,
    )
    if html is not None:
        write_atomically(html, comparison_page(found))
        say(f"wrote {html}")
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    print_table(TITLES, [input_cells(found), *(cells(row, 1) for row in found.rows)])
    for row in found.rows:
        own = row["diagnosed"] if row["kernel"] is None else None
        for note in (own and f"ESS/s of {own}", row["reason"]):
            if note:
                say(f"{label(row)}: {note}")


@app.command()
def diagnose(
    noisy: NoisyArgument,
    lips: LipsOption = None,
    fps: FpsOption = None,
    model: ModelOption = DEFAULT_MODEL,
    inference: Annotated[str, typer.Option(help="Inference scheme.")] = DEFAULT_INFERENCE,
    kernel: Annotated[
        str | None,
        typer.Option(help="What moves the chains, as hmc or gibbs:pcn; else the scheme's own."),
    ] = None,
    iterations: IterationsOption = None,
    settings: SettingsOption = "{}",
    draws: Annotated[int, typer.Option(min=1, help="Of each chain; four or more.")] = 1000,
    warmup: WarmupOption = 500,
    chains: ChainsOption = 4,
    superchains: Annotated[
        int | None,
        typer.Option(help="Groups of chains, each begun at one point: nested R-hat, of any draws."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for draws and figures.")] = Path("diagnosis"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Sample the posterior that a scheme ends with, and say which frames cannot be trusted."""
    import torch

    from pyro_avse.data.lips.open import load_lips
    from pyro_avse.data.media.audio import load_audio
    from pyro_avse.enhancement.enhancer import Enhancer
    from pyro_avse.files import make_folder
    from pyro_avse.inference import SCHEMES
    from pyro_avse.lab import diagnostics
    from pyro_avse.lab.advice import advice
    from pyro_avse.lab.draws_on_disk import load_draws, stream_chains
    from pyro_avse.lab.figures import diagnosis_figures
    from pyro_avse.lab.short_chains import check_superchains
    from pyro_avse.weights.checkpoint import load_prior

    if inference == "importance":
        print_weights(
            noisy,
            lips,
            fps,
            model,
            _schemes([inference], settings, iterations, {})[inference],
            seed=seed,
            device=device,
            as_json=as_json,
        )
        return
    if superchains is not None:
        check_superchains(chains, superchains)
    elif draws < diagnostics.LEAST_DRAWS:
        raise InputError(
            f"--draws {draws} has no R-hat and no ESS: take {diagnostics.LEAST_DRAWS} or more, or many short chains "
            "with --superchains"
        )
    movable = [n for n, make in SCHEMES.items() if "kernel" in signature(make).parameters]
    if inference in SCHEMES and inference not in movable:
        raise InputError(f"{inference} has no kernel to diagnose: take {', '.join(movable)}")
    more = {} if kernel is None else {"kernel": kernel}
    scheme = _schemes([inference], settings, iterations, more)[inference]
    audio = load_audio(noisy)
    seen = None if lips is None else load_lips(lips, fps=fps)
    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    recording = enhancer.prepare(audio, seen)
    make_folder(out)
    say(f"{noisy}: {inference}, whose posterior of z is then sampled")
    result = enhancer.separate(recording, seed=seed)
    separation = result.separation
    file = out / "draws.nc"
    rng = torch.Generator(device=separation.z.device).manual_seed(seed)
    try:
        with progress_bar() as update:
            stream_chains(
                scheme.kernel,
                separation.target,
                diagnostics.starting_points(separation, chains, superchains=superchains, rng=rng),
                file,
                draws=draws,
                warmup=warmup,
                adapt=diagnostics.adaptation_for(scheme.kernel),
                seed=rng,
                observed=recording.spectrum.abs().square(),
                model_name=model,
                progress=lambda drawn: update(drawn / draws, f"{drawn} of {draws} draws"),
            )
    except Divergence as error:
        raise Divergence(f"{error}; what was drawn is in {file}", error.partial) from None
    say("R-hat and effective draws of every frame")
    idata = load_draws(file)
    found = diagnostics.diagnose(idata, superchains)
    figures = {} if superchains else diagnosis_figures(idata, found, out)
    failing = [
        {"frame": frame, "time": float(result.frame_times[frame]), "reason": reason}
        for (frame,), reason in found.failures().items()
    ]
    name = type(scheme.kernel).__name__
    row = {
        "model": model,
        "inference": inference,
        "kernel": kernel or name,
        "chains": chains,
        "draws": draws,
        "warmup": warmup,
        "frames": len(found.rhat),
        **found.summary(),
        "thresholds": {
            "rhat": found.rhat_max,
            "ess": diagnostics.ESS_MIN,
            "acceptance": diagnostics.ACCEPTANCE_MIN,
            "divergences": diagnostics.DIVERGENCES_MAX,
        },
        "failing": failing,
        "advice": advice(found, draws),
        "files": {"draws": str(file), **figures},
    }
    if as_json:
        print(json.dumps(row))
        return
    print_diagnosis(row)


def _schemes(
    names: list[str], settings: str, iterations: int | None, more: dict[str, Any]
) -> dict[str, Any]:
    """The schemes of these names, by them; `more` is added to the settings of each."""
    from pyro_avse.enhancement.find import build_scheme

    chosen = read_settings(settings)
    for name in chosen:
        if name not in names:
            raise InputError(
                f"--settings for {name!r}, which is no scheme here: here are {', '.join(names)}"
            )
    return {name: build_scheme(name, chosen.get(name, {}) | more, iterations) for name in names}


@app.command()
def evidence(
    noisy: NoisyArgument,
    lips: LipsOption = None,
    fps: FpsOption = None,
    models: Annotated[
        str, typer.Option(help="Bundled names or weight files, by commas.")
    ] = "a_vae,min_vae_v2",
    inference: Annotated[str, typer.Option(help="Scheme that fits the noise.")] = DEFAULT_INFERENCE,
    particles: Annotated[int, typer.Option(min=2, help="A frame and component.")] = 32,
    moves: Annotated[int, typer.Option(min=1, help="Of each particle at each temperature.")] = 2,
    kernel: Annotated[
        str | None, typer.Option(help="What moves them, as mala or random_walk; else hmc.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Weigh models by the evidence of one recording, frame by frame, and ask what alpha really is."""
    from pyro_avse.data.lips.open import load_lips
    from pyro_avse.data.media.audio import load_audio
    from pyro_avse.enhancement.enhancer import Enhancer
    from pyro_avse.enhancement.find import find_kernel, find_scheme
    from pyro_avse.inference.evidence import check_kernel
    from pyro_avse.lab.evidence import weigh
    from pyro_avse.weights.checkpoint import load_prior

    mover = None if kernel is None else find_kernel(kernel)
    check_kernel(mover)
    audio = load_audio(noisy)
    seen = None if lips is None else load_lips(lips, fps=fps)
    ready = []
    for model in split_names(models, "--models"):
        prior, stft = load_prior(model)
        enhancer = Enhancer(prior, find_scheme(inference), stft=stft, device=device)
        ready.append((model, enhancer, enhancer.prepare(audio, seen)))
    found = weigh(ready, particles=particles, moves=moves, kernel=mover, seed=seed, report=say)
    first = next(iter(found.values()))
    rows = [weighed.row(model, first) for model, weighed in found.items()]
    if as_json:
        print(json.dumps(rows))
        return
    titles = {
        "log_evidence": "log evidence",
        "a_frame_over_first": "a frame, over the first",
        "common_noise": "at the first's noise",
        "common_a_frame_over_first": "a frame, over the first",
        "below_by": "above AIS by",
        "r_audio": "r(audio)",
        "r_audio_of_scheme": f"of {inference}",
        "alpha_away": "r away by",
    }
    table = [[row["model"], *(f"{row[key]:.2f}" for key in titles)] for row in rows]
    print_table(["", *titles.values()], table)
    say(
        "in nats; noise was fitted to the recording, so this is the model's likelihood at that noise"
    )
