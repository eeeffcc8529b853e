"""Schemes and kernels side by side: the same clips, prior and seed; a row for each combination.

    compare([Clip("one", mixture, clean, lips)], prior, {"vem": VEM(), "mcem": MCEM()}, {"mala": MALA(), "hmc": HMC()})

A scheme that takes a kernel has a row for every kernel, another one a row. Quality and seconds are of the scheme as it
is used; one iteration before, untimed, loads what torch needs. Schemes start as their settings say: noise as
their `NoiseModel` says, by default alike for all; codes by the number of chains (`starting_codes`).

How well a kernel samples is measured apart, by a longer run of several chains: steps are adapted in the warm-up where
the kernel can be adapted, and only the draws after it are timed. All kernels of a scheme draw from one posterior, the
one that the scheme ended with (`Separation.target`) under the first kernel that served, and from the same starts
(`diagnostics.starting_points`); `independence` proposes from the guide that its own run of the scheme ended with. A
frame's ESS per second is the bulk ESS of its worst code over those seconds. It means something only where the chains
have mixed: those that have not have an ESS of about their number, however few their draws, so `unmixed` is the share of
frames whose R-hat is over its threshold.

A scheme with draws but no kernel of ours (`nuts`) is judged by its own draws, and `importance` by its own weights, over
all their seconds, warm-up and EM included: such a row is no match for a kernel's, and says so. One chain has no R-hat:
give `NUTS(mcem=MCEM(chains=4))`. A scheme with neither has no such numbers. Combinations that do not fit together are
rows with the reason. `iterations` counts what the objective has a value for: of `nuts` its draws, of `auto_normal`
Adam's steps.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import Audio
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.measure import check_same_length, measure
from pyro_avse.inference import KERNELS
from pyro_avse.inference.adaptation import RobbinsMonro
from pyro_avse.inference.proposal import ImportanceSeparation
from pyro_avse.lab.diagnostics import (
    LEAST_DRAWS,
    RHAT_MAX,
    Diagnosis,
    adaptation_for,
    diagnose,
    finite_or_none,
    sample_posterior,
    to_inference_data,
)
from pyro_avse.metrics import NAMES, Scores, score
from pyro_avse.rivals.find import Rival
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError, Kernel, Scheme, Separation

QUALITY = (*NAMES, *(f"{name}_improvement" for name in NAMES))
SAMPLING = ("ess_per_second_min", "ess_per_second_median", "rhat_max", "unmixed", "acceptance")
NUMBERS = (*QUALITY, "seconds", "iterations", *SAMPLING)
"""Of a row; a number that cannot be had is NaN and the row says why."""


@dataclass(frozen=True)
class Clip:
    """A recording to compare on."""

    name: str
    mixture: Audio
    clean: Audio | None = None
    """The same clip without noise; None: no scores."""
    lips: Lips | None = None


@dataclass(frozen=True)
class Trial:
    """One scheme with one kernel on one clip."""

    row: JSON
    """clip, scheme, kernel (None: the scheme takes none), `NUMBERS`, reason (what is missing, and why), diagnosed (what
    the sampling numbers are of)."""
    enhanced: Enhanced | None
    """None: it could not be had, it is a rival's, or this is not the first clip (many would not fit in memory)."""
    diagnosis: Diagnosis | None
    ess_per_second: np.ndarray | None
    """Of each frame."""
    speech: Float32[np.ndarray, "sample_16k"] | None = None
    """What came out, a rival's too; None where it could not be had, or this is not the first clip."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    clips: list[Clip]
    inputs: list[Scores | None]
    """Each clip's own scores."""
    trials: list[Trial]

    @property
    def rows(self) -> list[JSON]:
        """A row for each combination: means over the clips that have the number, and the worst R-hat of all.

        Besides the columns of `Trial.row`: `intervals` [low, high], 95 % by Student's t, where there are two clips or
        more; `counts`, from how many clips a mean is. What is missing is None.
        """
        import pandas as pd

        from pyro_avse.sweep.results import summarise

        frame = pd.DataFrame([trial.row for trial in self.trials])
        rows = []
        for (scheme, kernel), group in frame.groupby(
            ["scheme", "kernel"], sort=False, dropna=False
        ):
            means = summarise(group.assign(all=0), ["all"], NUMBERS).set_index("score")
            row: JSON = {"scheme": scheme, "kernel": kernel if isinstance(kernel, str) else None}
            row |= {name: finite_or_none(means["mean"][name]) for name in NUMBERS}
            row["rhat_max"] = finite_or_none(group["rhat_max"].max())
            row["intervals"] = {
                name: [float(means["low"][name]), float(means["high"][name])]
                for name in NUMBERS
                if np.isfinite(means["low"][name]) and name != "rhat_max"
            }
            row["counts"] = {name: int(means["n"][name]) for name in NUMBERS}
            for name in ("reason", "diagnosed"):
                row[name] = "; ".join(dict.fromkeys(group[name].dropna())) or None
            rows.append(row)
        return rows

    def as_dict(self) -> JSON:
        """Ready for JSON: {"clips": [...], "rows": [...]}."""
        clips = [
            {
                "name": clip.name,
                "seconds": len(clip.mixture.waveform) / SAMPLE_RATE,
                "input": None if scores is None else scores.as_dict(),
            }
            for clip, scores in zip(self.clips, self.inputs, strict=True)
        ]
        return {"clips": clips, "rows": self.rows}


def compare(
    clips: Sequence[Clip],
    prior: Any,
    schemes: Mapping[str, Scheme],
    kernels: Mapping[str, Kernel] | None = None,
    *,
    rivals: Sequence[Rival] = (),
    stft: STFT | None = None,
    device: str | torch.device = "auto",
    adapt: bool = False,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 4,
    seed: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run every scheme with every kernel on every clip.

    Args:
        clips: one or more.
        prior, stft, device: as in `Enhancer`.
        schemes: by the names that they will have in the table.
        kernels: the same; None: each scheme keeps its own.
        rivals: as `find_rival` finds them; a row each, by their names, without a kernel.
        adapt: adapt step sizes in the schemes' E-steps too (Robbins-Monro), where scheme and kernel can.
        draws, warmup, chains: of the longer run for the sampling numbers; 0 draws: none.
        seed: of every scheme on every clip, and of every longer run.
        report: told in a line what comes next.

    Raises:
        InputError: a clip that cannot be used; a rival called as a scheme. What a scheme refuses is a row instead.
    """
    if 0 < draws < LEAST_DRAWS:
        raise InputError(
            f"{draws} draws have no R-hat and no ESS: take {LEAST_DRAWS} or more, or 0 for none"
        )
    if taken := [rival.name for rival in rivals if rival.name in schemes]:
        raise InputError(f"a rival is called as the scheme {taken[0]}: name it anew, NEW=...")
    combinations = combine(schemes, kernels, adapt=adapt)
    long_run = _LongRun(draws, warmup, chains, seed)
    done: list[tuple[Scores | None, list[Trial]]] = []
    for clip in clips:
        before = None
        if clip.clean is not None:
            check_same_length(clip.clean, clip.mixture)
            before = score(clip.mixture.waveform, clip.clean.waveform)
        trials = []
        firsts: dict[str, Separation] = {}
        for name, kernel_name, scheme in combinations:
            report(f"{clip.name}: {name}" + (f" with {kernel_name}" if kernel_name else ""))
            enhancer = Enhancer(prior, scheme, stft=stft, device=device)
            if not done:
                _rehearse(enhancer, clip)
            named = {"clip": clip.name, "scheme": name, "kernel": kernel_name}
            trial = _run(named, enhancer, clip, before, long_run, firsts)
            trials.append(trial if not done else replace(trial, enhanced=None, speech=None))
        for rival in rivals:
            report(f"{clip.name}: {rival.name}")
            trial = _ask(rival, clip, before)
            trials.append(trial if not done else replace(trial, speech=None))
        done.append((before, trials))
    every = [trial for _, trials in done for trial in trials]
    return Comparison(list(clips), [before for before, _ in done], every)


def combine(
    schemes: Mapping[str, Scheme], kernels: Mapping[str, Kernel] | None, *, adapt: bool
) -> list[tuple[str, str | None, Scheme]]:
    """(scheme's name, kernel's name or None, the scheme with that kernel)."""
    combinations: list[tuple[str, str | None, Scheme]] = []
    for name, scheme in schemes.items():
        settings = {field.name for field in fields(scheme)}  # type: ignore[arg-type]
        if "kernel" not in settings:
            combinations.append((name, None, scheme))
            continue
        own: Any = scheme
        for label, kernel in (kernels or {_name(own.kernel): own.kernel}).items():
            changed: dict[str, Any] = {"kernel": kernel}
            if adapt and "adapt" in settings and adaptation_for(kernel) is not None:
                changed["adapt"] = RobbinsMonro()
            combinations.append((name, label, replace(own, **changed)))
    return combinations


def _name(kernel: Kernel) -> str:
    names = {kind: name for name, kind in KERNELS.items()}
    return names.get(type(kernel), type(kernel).__name__)


@dataclass(frozen=True)
class _LongRun:
    """Settings of the run for the sampling numbers."""

    draws: int
    warmup: int
    chains: int
    seed: int

    def __call__(
        self, scheme: Any, own: Separation, first: Separation, seconds: float
    ) -> tuple[Diagnosis | None, np.ndarray, str]:
        """R-hat and the like, each frame's ESS a second, and what they are of, in words.

        `own` is this scheme's with this kernel, `first` the one whose posterior all of the scheme's kernels draw from.
        Raises InputError: why there are no such numbers.
        """
        if self.draws == 0:
            raise InputError("no draws were asked for")
        whole = "over all its seconds, warm-up and EM included: no match for a kernel's"
        if isinstance(own, ImportanceSeparation):
            ess = own.effective_sample_size.cpu().numpy()
            return None, ess / seconds, f"its own weights {whole}"
        if own.chains is None:
            raise InputError("no chains")
        chains, text = own.chains, f"its own draws {whole}"
        if hasattr(scheme, "kernel"):
            target: Any = first.target
            if getattr(own.target, "proposal", None) is not None:
                target = replace(target, proposal=own.target.proposal)  # type: ignore[attr-defined]
            chains, seconds = sample_posterior(
                replace(first, target=target),
                scheme.kernel,
                draws=self.draws,
                warmup=self.warmup,
                chains=self.chains,
                seed=self.seed,
            )
            text = f"{self.chains} chains of {self.draws} draws after {self.warmup}"
        diagnosis = diagnose(to_inference_data(chains))
        return diagnosis, diagnosis.ess_bulk / seconds, text


def _rehearse(enhancer: Enhancer, clip: Clip) -> None:
    """One iteration that nobody times: a scheme's first call pays for what torch loads and sets up."""
    scheme: Any = enhancer.inference
    short: dict[str, Any] = {}
    if hasattr(scheme, "iterations"):
        short = {"iterations": 1}
    elif hasattr(scheme, "mcem"):
        few = {name: 2 for name in ("warmup", "draws", "steps") if hasattr(scheme, name)}
        short = {"mcem": replace(scheme.mcem, iterations=1), **few}
    if short:
        once = Enhancer(
            enhancer.prior, replace(scheme, **short), stft=enhancer.stft, device=enhancer.device
        )
        with suppress(InputError):  # it will come again, and be a row
            once.separate(once.prepare(clip.mixture, clip.lips))


def _run(
    named: JSON,
    enhancer: Enhancer,
    clip: Clip,
    before: Scores | None,
    long_run: _LongRun,
    firsts: dict[str, Separation],
) -> Trial:
    """One row, and what it came from; `firsts` are each scheme's first results on this clip."""
    row: JSON = {**named, **dict.fromkeys(NUMBERS, np.nan), "reason": None, "diagnosed": None}
    recording = enhancer.prepare(clip.mixture, clip.lips)
    scheme, seed = enhancer.inference, long_run.seed
    try:
        enhanced, measured = measure(enhancer, recording, "", "", clip.clean, seed, before=before)
    except InputError as refusal:
        return Trial(row | {"reason": str(refusal)}, None, None, None)
    row |= {"seconds": measured["seconds"], "iterations": measured["iterations"]}
    reasons = _note_scores(row, measured["output"], before)
    diagnosis = ess_per_second = None
    try:
        own = enhanced.separation
        first = firsts.setdefault(named["scheme"], own)
        found = long_run(scheme, own, first, measured["seconds"])
        diagnosis, ess_per_second, row["diagnosed"] = found
        row["ess_per_second_min"] = ess_per_second.min()
        row["ess_per_second_median"] = np.median(ess_per_second)
        if diagnosis is not None:
            row["rhat_max"] = diagnosis.rhat.max()
            missing = np.isnan(diagnosis.rhat).any()
            row["unmixed"] = np.nan if missing else np.mean(diagnosis.rhat > RHAT_MAX)
            row["acceptance"] = diagnosis.acceptance.mean()
        if not np.isfinite(row["rhat_max"]):
            one = diagnosis is not None and diagnosis.chains < 2
            reasons.append(f"no R-hat: {'one chain' if one else 'a frame never moved'}")
    except InputError as refusal:
        reasons.append(f"no ESS: {refusal}")
    row["reason"] = "; ".join(reasons) or None
    return Trial(row, enhanced, diagnosis, ess_per_second, enhanced.speech_16k)


def _ask(rival: Rival, clip: Clip, before: Scores | None) -> Trial:
    """A rival's row; it samples nothing."""
    row: JSON = {"clip": clip.name, "scheme": rival.name, "kernel": None}
    row |= {**dict.fromkeys(NUMBERS, np.nan), "reason": None, "diagnosed": None}
    start = time.perf_counter()
    try:
        speech = rival(clip.mixture.waveform, clip.lips)
    except InputError as refusal:
        return Trial(row | {"reason": str(refusal)}, None, None, None)
    row["seconds"] = time.perf_counter() - start
    scores = None if clip.clean is None else score(speech, clip.clean.waveform).as_dict()
    row["reason"] = "; ".join(_note_scores(row, scores, before)) or None
    return Trial(row, None, None, None, speech)


def _note_scores(row: JSON, scores: JSON | None, before: Scores | None) -> list[str]:
    """Put scores and improvements into the row; why some are missing."""
    if scores is None:
        return ["no scores: no reference"]
    for name in NAMES:
        if scores[name] is not None:
            row[name] = scores[name]
            row[f"{name}_improvement"] = scores[name] - getattr(before, name)
    return [f"no {name}: {why}" for name, why in scores["reasons"].items()]
