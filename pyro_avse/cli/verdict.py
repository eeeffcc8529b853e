"""What `pyro-avse diagnose` prints: numbers, the frames that fail, and a sentence.

Heavy imports stand inside the functions.
"""

import json
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from pyro_avse.cli.app import print_table, say


def print_diagnosis(row: dict[str, Any]) -> None:
    """Worst, median and threshold of every number, and the frames that fail."""
    limits = row["thresholds"]
    shown = (
        ("R-hat", "rhat", f"at most {limits['rhat']:.4g}", 3),
        ("bulk ESS", "ess_bulk", f"at least {limits['ess']}", 0),
        ("tail ESS", "ess_tail", f"at least {limits['ess']}", 0),
        ("acceptance", "acceptance", f"at least {limits['acceptance']}", 2),
    )
    rows = []
    for title, name, limit, digits in shown:
        values = [row[name]["worst"], row[name]["median"]]
        rows.append([title, *("-" if v is None else f"{v:.{digits}f}" for v in values), limit])
    rows.append(["divergences", str(row["divergences"]), "", f"at most {limits['divergences']}"])
    print_table(["", "worst frame", "median frame", "threshold"], rows)
    for _, group in groupby(enumerate(row["failing"]), _stretch):  # side by side, for one reason
        stretch = [frame for _, frame in group]
        first, last = stretch[0], stretch[-1]
        print(
            f"frames {first['frame']} to {last['frame']} ({first['time']:.2f} to "
            f"{last['time']:.2f} s): {first['reason']}"
        )
    print(f"{len(row['failing'])} of {row['frames']} frames fail")
    print(row["advice"])
    say(f"draws and figures are in {Path(row['files']['draws']).parent}")


def print_weights(
    noisy: Path,
    lips: Path | None,
    fps: float | None,
    model: str,
    scheme: Any,
    *,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Of importance sampling: k-hat and effective draws of every frame, and what they say."""
    from pyro_avse.data.lips.open import load_lips
    from pyro_avse.data.media.audio import load_audio
    from pyro_avse.enhancement.enhancer import Enhancer
    from pyro_avse.lab.advice import advice_on_weights
    from pyro_avse.lab.short_chains import K_MAX, pareto_k
    from pyro_avse.weights.checkpoint import load_prior

    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, scheme, stft=stft, device=device)
    seen = None if lips is None else load_lips(lips, fps=fps)
    recording = enhancer.prepare(load_audio(noisy), seen)
    found: Any = enhancer.separate(recording, seed=seed).separation
    k, worth = pareto_k(found.log_weights.cpu().numpy()), found.effective_sample_size.cpu().numpy()
    row = {
        "model": model,
        "inference": "importance",
        "draws": len(found.log_weights),
        "frames": len(k),
        "k_hat": k.tolist(),
        "effective_draws": worth.tolist(),
        "advice": advice_on_weights(k, worth),
    }
    if as_json:
        print(json.dumps(row))
        return
    rows = [
        ["k-hat", f"{k.max():.2f}", f"{median(k):.2f}", f"at most {K_MAX}"],
        ["effective draws", f"{worth.min():.0f}", f"{median(worth):.0f}", f"of {row['draws']}"],
    ]
    print_table(["", "worst frame", "median frame", "threshold"], rows)
    print(f"{int((~(k <= K_MAX)).sum())} of {len(k)} frames fail")
    print(row["advice"])


def _stretch(numbered: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    number, frame = numbered
    return frame["frame"] - number, frame["reason"]
