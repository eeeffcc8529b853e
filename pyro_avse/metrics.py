"""Scores of enhanced speech against clean speech: SI-SDR, SDR, PESQ, STOI and ESTOI, all by torchmetrics.

A score that cannot be had is NaN and has a reason; it is never 0 and never left out.
"""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from pyro_avse.typing import JSON, InputError

NAMES = ("si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "estoi")
SDR_TAPS = 512
"""Length of the distortion filter that BSS-eval's SDR forgives."""
LONGEST_PESQ = 20.0
"""Seconds. PESQ's reference code overruns its table of 50 utterances, each 0.2 s or more after
0.2 s of pause, and kills the process; a clip within this limit cannot hold so many."""
SHORTEST_STOI = 0.4
"""Seconds of speech: STOI's 30 frames, and ESTOI's."""


@dataclass(frozen=True)
class Scores:
    """The scores of one clip; higher is better."""

    si_sdr: float
    """dB. Scale-invariant SDR with the means kept (zero_mean=False), as the field reports it."""
    sdr: float
    """dB. BSS-eval's SDR: a distortion filter of 512 taps is forgiven; means kept."""
    pesq_wb: float
    """MOS-LQO of P.862.2, 1.0 to 4.64: wide-band, at 16 kHz."""
    pesq_nb: float
    """MOS-LQO of P.862.1, 1.0 to 4.55: narrow-band, mapped; older papers print the raw P.862."""
    stoi: float
    """Short-time objective intelligibility, up to 1, not extended."""
    estoi: float
    """Extended STOI, up to 1: it also hears noise that comes and goes."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a score is NaN, by its name."""

    def as_dict(self) -> JSON:
        """Ready for JSON: a missing score is None."""
        values = {name: getattr(self, name) for name in NAMES}
        return {
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "reasons": dict(self.reasons),
        }


def auc(
    detector: Float[np.ndarray, "frame"], truth: Bool[np.ndarray, "frame"]
) -> tuple[float, str]:
    """Area under the ROC curve of a detector, and why it is NaN, or "": P(detector is higher where true), a tie half.

    NaN, with a reason, where all or no frames are true, and for a detector that is not finite.
    """
    if truth.all() or not truth.any():
        return math.nan, f"{int(truth.sum())} of {len(truth)} frames are true"
    if not np.isfinite(detector).all():
        return math.nan, "the detector holds NaN or infinite values"
    import torch
    from torchmetrics.functional.classification import binary_auroc

    # ranks in place of values, which binary_auroc would take for logits outside of [0, 1]
    order = np.unique(detector, return_inverse=True)[1] / len(detector)
    area = binary_auroc(torch.from_numpy(order), torch.from_numpy(truth.astype(np.int64)))
    return float(area), ""


def share_without_lips(
    responsibilities: Float[np.ndarray, "component frame"], components_see: Sequence[bool]
) -> Float[np.ndarray, "frame"]:
    """r(alpha_n) of all components that do not look at the lips: what says that lips are bad.

    r(audio) where `components_see` is alike for all, or there are two.
    """
    blind = [k for k, sees in enumerate(components_see) if not sees]
    if not 0 < len(blind) < len(components_see):
        blind = [0]
    share: Float[np.ndarray, frame] = responsibilities[blind].sum(0)
    return share


class _Missing(Exception):
    """A score cannot be had; its text is the reason."""


def score(
    estimate: Float[np.ndarray, "sample"],
    reference: Float[np.ndarray, "sample"],
    sample_rate: int = 16000,
    only: Collection[str] | None = None,
) -> Scores:
    """All scores of one estimate (sample,) against the clean reference (sample,), or `only` those of `NAMES`.

    Missing, with a reason: every score of a silent or non-finite signal; SDR under 512 samples;
    PESQ at other rates than 16 kHz (narrow-band: or 8 kHz), under 0.25 s, over 20 s, or where it
    detects no utterance; STOI and ESTOI under 0.4 s of speech.
    Raises InputError where the two shapes differ or are not (sample,).
    """
    if estimate.shape != reference.shape or estimate.ndim != 1:
        raise InputError(
            f"estimate has shape {estimate.shape}, reference {reference.shape}:"
            " score one channel each, of the same length"
        )
    estimate, reference = _at_peak_1(estimate), _at_peak_1(reference)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    metrics: dict[str, Callable[[], float]] = {
        "si_sdr": lambda: _si_sdr(estimate, reference),
        "sdr": lambda: _sdr(estimate, reference),
        "pesq_wb": lambda: _pesq(estimate, reference, sample_rate, "wb"),
        "pesq_nb": lambda: _pesq(estimate, reference, sample_rate, "nb"),
        "stoi": lambda: _stoi(estimate, reference, sample_rate, extended=False),
        "estoi": lambda: _stoi(estimate, reference, sample_rate, extended=True),
    }
    for name, metric in metrics.items():
        try:
            if only is not None and name not in only:
                raise _Missing("it was not asked for")
            _refuse_unusable("estimate", estimate)
            _refuse_unusable("reference", reference)
            values[name] = metric()
            if not math.isfinite(values[name]):
                raise _Missing(f"it came out as {values[name]}")
        except _Missing as missing:
            values[name], reasons[name] = math.nan, str(missing)
    return Scores(**values, reasons=reasons)


def _at_peak_1(waveform: np.ndarray) -> np.ndarray:
    """float64 with peak 1: level-invariant metrics are so only far above their guards against 0.

    PESQ moves by under 1e-4 by this; what is silent or not finite stays so.
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform.astype(np.float64) / (peak if 0 < peak < math.inf else 1.0)


def _refuse_unusable(name: str, waveform: np.ndarray) -> None:
    if not np.isfinite(waveform).all():
        raise _Missing(f"the {name} holds NaN or infinite samples")
    if not waveform.any():
        raise _Missing(f"the {name} is silent")


# torchmetrics takes seconds to import, so each metric imports it when it is called.


def _si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    import torch
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(
        torch.from_numpy(estimate), torch.from_numpy(reference), zero_mean=False
    ).item()


def _sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    import torch
    from torchmetrics.functional.audio import signal_distortion_ratio

    if len(reference) < SDR_TAPS:
        raise _Missing(f"{len(reference)} samples are fewer than the {SDR_TAPS} taps of its filter")
    try:
        return signal_distortion_ratio(
            torch.from_numpy(estimate),
            torch.from_numpy(reference),
            filter_length=SDR_TAPS,
            zero_mean=False,
        ).item()
    except torch.linalg.LinAlgError as err:  # type: ignore[attr-defined]
        raise _Missing("the reference's autocorrelation is singular") from err


def _pesq(estimate: np.ndarray, reference: np.ndarray, sample_rate: int, mode: str) -> float:
    import torch
    from pesq import PesqError  # type: ignore[import-untyped]
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

    rates = (16000,) if mode == "wb" else (8000, 16000)
    if sample_rate not in rates:
        raise _Missing(f"{mode} PESQ takes {' or '.join(map(str, rates))} Hz, not {sample_rate}")
    seconds = len(reference) / sample_rate
    if seconds > LONGEST_PESQ:
        raise _Missing(f"the clip lasts {seconds:.1f} s, PESQ takes up to {LONGEST_PESQ:g} s")
    try:
        return perceptual_evaluation_speech_quality(
            torch.from_numpy(estimate), torch.from_numpy(reference), sample_rate, mode
        ).item()
    except PesqError as err:  # too short, or no utterance in it; its text comes as bytes
        text = err.args[0]
        raise _Missing(text.decode() if isinstance(text, bytes) else str(err)) from err
    except ValueError as err:  # its voice detection divides by a power of 0
        raise _Missing("the estimate has no power that PESQ hears") from err


def _stoi(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int, *, extended: bool
) -> float:
    import torch
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    too_short = f"it needs {SHORTEST_STOI} s of speech besides pauses"
    if len(reference) < SHORTEST_STOI * sample_rate:
        raise _Missing(too_short)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return short_time_objective_intelligibility(
                torch.from_numpy(estimate), torch.from_numpy(reference), sample_rate, extended
            ).item()
        except RuntimeWarning as err:
            raise _Missing(too_short) from err
