"""What a guide that hears noise is worth: tables of the same schemes with it and without, at equal work.

    python benchmarks/guides.py --data ../shared/data                          # all tables
    python benchmarks/guides.py --data ../shared/data --only lips --every 3
    python benchmarks/guides.py --data ../shared/data --models runs/no_grid/weights.safetensors   # a prior of yours
    python benchmarks/guides.py --data ../shared/data --only minutes --guides runs/g1.safetensors runs/g5.safetensors

Recordings are near, far and white of benchmarks/robustness.py, every --every-th of them; no noise there has trained
anything. The bundled priors, and their guides, heard GRID's three speakers in training, in other sentences.

    schemes   ldem, mcem, vem and importance, each with its defaults, without the guide and with it; `guided`, which is
              made for it; and the guide alone: a Wiener filter by its codes' means and its noise, no sampling
    settings  `guided` with one thing changed at a time: the guide's share in the filter, the number of steps, where W H
              and the level start
    draws     of how many draws of the posterior 200 of importance's are worth, and how often `independence` accepts,
              proposing from the encoders at E|s|^2 and from the guide
    lips      GRID in near's noises at -15 to 5 dB, by the guide alone and by `guided`: the speaker's own lips,
              another speaker's, none
    minutes   the guides of --guides, each alone and in `guided`
    drawn     draws of the noise that guides are trained on, no voices among it, with speech of librispeech_valid at
              -5 dB, by the guide alone: with coefficients that are independent, as (28) has them, and with a sound's
    low       what of the recording below 60 Hz `guided` gives back: nothing, all, by the posterior mean, as it is
    live      near, in blocks of 0.1 s by the causal guide, beside the whole recording at once

Scores are means of SI-SDR in dB and of STOI; time is process time of one thread a second of sound.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from conditions import KINDS, NEAR, RATE, Case, grid_clips, mixture_of, other_voices, pictures

from pyro_avse.data.corpora.corpus import find_corpus
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.enhancement.front import best_gain
from pyro_avse.enhancement.live import live_scheme
from pyro_avse.enhancement.sounded import sounded_noise
from pyro_avse.inference import LDEM, monte_carlo
from pyro_avse.inference.em import observe
from pyro_avse.inference.guess import gain_of, guessed_gain, own_log_variance
from pyro_avse.metrics import score
from pyro_avse.models.drawn_noise import DrawnNoise, drawn_noise
from pyro_avse.stft import STFT
from pyro_avse.training import pairs
from pyro_avse.training.amortise import likeness
from pyro_avse.training.svi import seeded
from pyro_avse.typing import Separation
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import load_guide, own_guide

TABLES = ("schemes", "settings", "draws", "lips", "minutes", "drawn", "low", "live")
SCHEMES = ("guided", "ldem", "mcem", "vem", "importance")
MODELS = ("a_vae", "min_vae_v1", "min_vae_v2", "vae_mm")
SNRS = (-15.0, -10.0, -5.0, 0.0, 5.0)
Heard = Callable[[Case, np.ndarray], np.ndarray]
"""A mixture to its speech."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid, speech and noise")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names or weight files")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["near", "far", "white"])
    parser.add_argument("--guides", nargs="*", default=[], help="files, for minutes")
    parser.add_argument("--every", type=int, default=5, help="only every so many-th recording")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of GRID")
    args = parser.parse_args()
    args.clips, args.no_rivals = 3, True
    torch.set_num_threads(1)
    for table in args.only:
        for model in args.models:
            for number, row in enumerate(globals()[f"table_of_{table}"](args, model)):
                if number == 0:
                    print(f"\n{table}: {model}\n| {' | '.join(row)} |", flush=True)
                    print("| --- " * len(row) + "|", flush=True)
                print(f"| {' | '.join(row.values())} |", flush=True)


# --- tables: rows of each -------------------------------------------------------------------------------------------


def table_of_schemes(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    cases = recordings(args, model)
    yield scored(args, cases, "recording", lambda case, mixture: mixture)
    yield scored(args, cases, "guide alone", alone(model))
    for name in args.schemes:
        for guide, title in ((None, name), ("own", f"{name} with guide")):
            if name == "guided" and guide is None:
                continue  # that is ldem
            yield scored(args, cases, title, enhanced(model, name, guide))


def table_of_settings(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    cases = recordings(args, model)
    for title, settings in (
        ("as it is", {}),
        ("filter: the model alone", {"filter_share": 0.0, "clear_share": 0.0}),
        (
            "filter: half and half, whatever the recording",
            {"filter_share": 0.5, "clear_share": 0.5},
        ),
        ("filter: the guide alone", {"filter_share": 1.0, "clear_share": 1.0}),
        (
            "filter: 0.9 of a recording without speech, 0.3 of one without noise",
            {"filter_share": 0.9, "clear_share": 0.3},
        ),
        ("W H starts at the guide's noise", {"noise": {"start": "guide"}}),
        ("as many steps and chains as ldem", asdict_of_ldem()),
    ):
        yield scored(args, cases, title, speech_of(enhancer_of(model, "guided", "own", settings)))
    believed = monte_carlo.guessed_level
    for title, level in (
        ("level starts as believed, louder too", lambda guess: guess.log_gain.mean.exp()),
        ("level starts as in training", lambda guess: torch.ones_like(guess.log_gain.mean)),
    ):
        monte_carlo.guessed_level = level
        yield scored(args, cases, title, enhanced(model, "guided", "own"))
    monte_carlo.guessed_level = believed


def asdict_of_ldem() -> dict[str, int | None]:
    names = ("iterations", "first_warmup", "warmup", "draws", "final_warmup", "final_draws")
    return {name: getattr(LDEM(), name) for name in (*names, "chains")}


def table_of_draws(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    cases = recordings(args, model)
    for guide in (None, "own"):
        worth, accepted = [], []
        for case in cases:
            mixture = mixture_of(case, args.data)[1]
            lips = seen_by(model, case)
            if lips is None and load_prior(model, guide=None)[0].uses_lips:
                continue  # its encoders look at them
            found = enhancer_of(model, "importance", guide)(mixture, lips).separation
            worth.append(float(found.effective_sample_size.mean()))
            chains = enhancer_of(model, "mcem", guide, {"kernel": "independence"})(mixture, lips)
            accepted.append(float(chains.separation.chains.acceptance_rate.mean()))
        yield {
            "proposal": "encoders" if guide is None else "guide",
            "of 200 draws": f"{np.mean(worth):.1f}",
            "accepted": f"{np.mean(accepted):.3f}",
        }


def table_of_lips(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    if not load_prior(model, guide=None)[0].uses_lips:
        return
    for lips in ("right", "another face", "none"):
        cases = [
            Case(
                "near",
                f"{snr:g} dB",
                clip.audio,
                noise,
                snr,
                place,
                clip.speaker,
                lips,
                others=other_voices(args.data, clip.audio),
            )
            for place, clip in enumerate(grid_clips(args))
            for noise in NEAR
            for snr in SNRS
        ]
        cases = [case for n, case in enumerate(cases) if (n // len(SNRS)) % args.every == 0]
        for title, run in (
            ("guide alone", alone(model)),
            ("guided", enhanced(model, "guided", "own")),
            ("ldem", enhanced(model, "ldem", None)),
        ):
            yield {"lips": lips} | scored(args, cases, title, run, by="condition")


def table_of_minutes(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    cases = recordings(args, model)
    for guide in args.guides:
        yield scored(args, cases, f"{guide} alone", alone(model, guide))
        yield scored(args, cases, f"{guide} in guided", enhanced(model, "guided", guide))


def table_of_drawn(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    for path in args.guides or [own_guide(model)]:
        prior, stft = load_prior(model, guide=path)
        clips = find_corpus(args.data / "speech" / "librispeech_valid").utterances
        speech = pairs.load_speech(clips, prior.noise_guide, stft)
        row = {"": str(path)}
        for title, kind in (("independent", independent), ("of a sound", sounded_noise)):
            with patch.multiple(pairs, BABBLES=0.0, sounded_noise=kind), torch.no_grad(), seeded(0):
                drawn = pairs.draw_pairs(
                    speech, utterances=200, num_frames=100, stft=stft, snr=(-5.0, -5.0)
                )
            row[title] = "{:.2f}, worst tenth {:.2f}".format(*filtered(prior, drawn))
        yield row


def independent(num_frames: int, stft: STFT, *, utterances: int, **options: Any) -> DrawnNoise:
    """As `sounded_noise`, but b as it is drawn."""
    return drawn_noise(num_frames, stft.n_fft // 2 + 1, utterances=utterances)


@torch.no_grad()
def filtered(prior: Any, drawn: pairs.Pairs) -> tuple[float, float]:
    """The SI-SDR of the guide's Wiener filter: of all recordings, and of the worst tenth at most."""
    guide = prior.noise_guide
    q = guide.read(guide.ear(drawn.power, drawn.seen, lips_mask=drawn.lips_mask))
    known = likeness(gain_of(q, own_log_variance(q, prior, drawn.features)), drawn)
    dB = 10 * (known / (1 - known)).log10()
    return float(dB.mean()), float(dB.quantile(0.1))


def table_of_low(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    cases = recordings(args, model)
    run = enhanced(model, "guided", "own")
    for title, where, instead in (
        ("nothing", "enhancer.low_speech", lambda parts, *_: np.zeros_like(parts.low)),
        ("all", "enhancer.low_speech", lambda parts, *_: parts.low),
        ("by the mean", "front.best_gain", lambda gains, p, *_: p @ gains),
        ("as it is", "front.best_gain", best_gain),
    ):
        with patch(f"pyro_avse.enhancement.{where}", instead):
            yield scored(args, cases, title, run)


def table_of_live(args: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    path = own_guide(model, causal=True)
    if path is None:
        return
    prior, stft = load_prior(model, guide=None)
    causal = load_guide(path, prior, stft, causal=True)
    online = Enhancer(prior, live_scheme(), stft=stft, guide=None, device="cpu")

    def live(case: Case, mixture: np.ndarray) -> np.ndarray:
        stream = online.stream(RATE, guide=causal)
        blocks = np.array_split(mixture, max(1, len(mixture) // 1600))
        heard = np.concatenate([*(stream.push(block) for block in blocks), stream.flush()])
        return heard[-len(mixture) :]

    cases = [case for case in recordings(args, model) if case.kind == "near"]
    yield scored(args, cases, "the whole recording", enhanced(model, "guided", "own"))
    yield scored(args, cases, "live", live)


# --- what is scored -------------------------------------------------------------------------------------------------


def recordings(args: argparse.Namespace, model: str) -> list[Case]:
    needed = load_prior(model, guide=None)[0].requires_lips
    return [
        case
        for kind in args.kinds
        for n, case in enumerate(KINDS[kind](args))
        if n % args.every == args.every // 2 and (not needed or pictures(case) is not None)
    ]


def enhancer_of(
    model: str, scheme: str, guide: str | None, settings: dict[str, Any] | None = None
) -> Enhancer:
    prior, stft = load_prior(model, guide=guide)
    return Enhancer(prior, build_scheme(scheme, settings or {}), stft=stft, device="cpu")


def seen_by(model: str, case: Case) -> Any:
    return pictures(case) if load_prior(model, guide=None)[0].uses_lips else None


def enhanced(model: str, scheme: str, guide: str | None) -> Heard:
    return speech_of(enhancer_of(model, scheme, guide))


def speech_of(enhancer: Enhancer) -> Heard:
    def run(case: Case, mixture: np.ndarray) -> np.ndarray:
        seen = pictures(case) if enhancer.prior.uses_lips else None
        speech: np.ndarray = enhancer(mixture, seen).speech
        return speech

    return run


def alone(model: str, guide: str = "own") -> Heard:
    """The Wiener filter at the means of the guide's q."""
    enhancer = enhancer_of(model, "ldem", guide)

    class Alone:
        def __call__(self, prior: Any, x: Any, lips: Any = None, **options: Any) -> Any:
            options.pop("seed")
            observation = observe(prior, x, lips, **options)
            believed = observation.guess
            N = believed.log_noise.mean.exp()
            return Separation(
                speech=guessed_gain(believed, prior, observation.v) * x,
                responsibilities=believed.responsibilities,
                mixing_weight=prior.mixing_weight,
                dictionary=torch.ones(1, x.shape[-1]),
                activations=N.mean(-1, keepdim=True),
                objective=torch.zeros(1),
                z=believed.codes.mean[:1],
                target=None,
            )

    enhancer.inference = Alone()
    return speech_of(enhancer)


def scored(
    args: argparse.Namespace, cases: list[Case], title: str, run: Heard, by: str = "kind"
) -> dict[str, Any]:
    rows = []
    for case in cases:
        clean, mixture = mixture_of(case, args.data)
        start = time.process_time()
        speech = run(case, mixture)
        spent = (time.process_time() - start) * RATE / len(clean)
        scores = score(np.asarray(speech, np.float64), clean, only=("si_sdr", "stoi"))
        rows.append((getattr(case, by), scores.si_sdr, scores.stoi, spent))
    means = pd.DataFrame(rows, columns=[by, "si_sdr", "stoi", "seconds"]).groupby(by, sort=False)
    cells = {k: f"{r.si_sdr:.2f} / {r.stoi:.3f}" for k, r in means.mean().iterrows()}
    return {"": title, **cells, "s/s": f"{np.mean([row[-1] for row in rows]):.3f}"}


if __name__ == "__main__":
    main()
