"""Random kills of what takes long: what is finished is there, whole, and what goes on ends in the same bytes.

    python benchmarks/kill.py --kills 200 --seed 1         # `make kill`

Four jobs take turns: training, a sweep, the enhancement of a long file, the cache of lips. Each is run once in peace.
Then it is started again and again, in a process of its own, and stopped at a random moment: by SIGKILL, or by the
signals after which the program itself cleans up. One that had ended by then does not count: it starts afresh, and
moments come earlier. After each kill, files that were whole before are whole, and after SIGINT, SIGTERM and SIGHUP
nothing half-written lies about. In the end the job runs in peace over what the kills left, and what it leaves is
compared with the first run's, byte for byte (of a sweep row for row, as rows hold seconds).
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import pyro_avse
from pyro_avse.cli.stopping import stopping
from pyro_avse.data.lips import watch as watching
from pyro_avse.data.lips.lips import Lips, read_lips
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.files import PART, check_place
from pyro_avse.inference import LDEM
from pyro_avse.metrics import score
from pyro_avse.models import AVAE
from pyro_avse.stft import STFT
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.results import load_results
from pyro_avse.training.recipe import Recipe, Training
from pyro_avse.training.stages import train
from pyro_avse.weights.checkpoint import save_prior
from pyro_avse.weights.tensors import load_tensors

QUICK = LDEM(iterations=1, chains=1, first_warmup=1, warmup=1, draws=1)
KILLS_OF_A_RUN = 6
"""Before a job may end in peace and starts afresh."""
TRIES = 20
"""To hit a job before it ends."""
EARLIER, LATER = 0.8, 1.05
"""By what the range of moments changes after a job that had ended, and after one that was hit: one in six ends."""


@dataclass(frozen=True)
class Job:
    """Something long."""

    name: str
    run: Callable[[Path], None]
    """Into a folder; goes on from what is there."""
    whole: Callable[[Path], Any]
    """What a folder holds that counts as finished. Raises where a file that is in place is not whole."""
    grows: Callable[[Any, Any], bool]
    """Whether nothing that was finished (first) is missing (second)."""


def make_jobs(folder: Path) -> list[Job]:
    rng, seconds = np.random.default_rng(0), np.arange(16000) / 16000
    corpus = folder / "corpus"
    for k, (split, name) in enumerate([("train", "a"), ("train", "b"), ("valid", "c")]):
        (corpus / split / "s1").mkdir(parents=True, exist_ok=True)
        opening = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * seconds + k)
        sound = opening * (np.sin(700 * seconds * (k + 1)) + 0.3 * rng.standard_normal(16000))
        soundfile.write(corpus / split / "s1" / f"{name}.flac", 0.2 * sound, 16000)
    weights, long = folder / "w.safetensors", folder / "long.wav"
    torch.manual_seed(0)
    save_prior(weights, AVAE(latent_dim=3, hidden=8), STFT())
    soundfile.write(long, 0.2 * np.tile(sound, 20), 16000)
    recipe = Recipe(
        "a_vae",
        options={"hidden": 8, "latent_dim": 3},
        training=Training(epochs=6, batch_size=32, learning_rate=1e-2),
    )

    def training(out: Path) -> None:
        train(recipe, [corpus], out, resume=True, device="cpu")

    def sweep(out: Path) -> None:
        evaluate(
            data=corpus,
            noises=["white", "pink"],
            snrs=[0.0, 5.0],
            models=[f"a_vae={weights}"],
            split="train",
            inference=["vem"],
            settings={"vem": {"iterations": 1, "warmup": 1, "draws": 1}},
            out=out,
        )

    def enhance(out: Path) -> None:
        options: dict[str, Any] = {"model": str(weights), "inference": QUICK, "block": 3}
        enhance_file(long, out / "s.wav", noise_out=out / "n.wav", **options)

    def lips(out: Path) -> None:
        os.environ["PYRO_AVSE_CACHE"] = str(out)
        frames = np.random.default_rng(0).integers(0, 255, (300, 67, 67), dtype=np.uint8)
        seen = watching.Watched(Lips(frames, 25.0), np.zeros((300, 5)), [], [])
        watching.watch = lambda *a, **k: seen  # type: ignore[assignment]  # no face is looked for
        watching.watch_cached(long)

    def bytes_of(out: Path) -> dict[str, bytes]:
        found = {
            str(p.relative_to(out)): p.read_bytes()
            for p in sorted(out.rglob("*"))
            if p.is_file() and not PART.fullmatch(p.name)
        }
        for path in out.rglob("*"):
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".wav":
                assert len(soundfile.read(path)[0]) == soundfile.info(long).frames, path
            elif path.suffix == ".npz":
                read_lips(path)
        return found

    def rows(out: Path) -> list[tuple[Any, ...]]:
        if not (out / "protocol.json").exists():
            return []
        frame = load_results(out)
        assert frame["key"].is_unique
        assert frame["failure"].isna().all()
        kept = frame[["key", "seed", "si_sdr_in", "si_sdr_out", "iterations"]].round(6)
        return sorted(map(tuple, kept.itertuples(index=False)))

    def named(before: Any, after: Any) -> bool:
        return set(before) <= set(after)

    return [
        Job("training", training, bytes_of, named),
        Job("sweep", sweep, rows, named),
        Job("enhance", enhance, bytes_of, named),
        Job("lips cache", lips, bytes_of, named),
    ]


def warm_up() -> None:
    """What every process would import anew."""
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pyro_avse.training.curves  # noqa: F401

    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    score(noise, noise)


def start(job: Job, out: Path) -> int:
    """The job in a process of its own, which ends as the command line does."""
    child = os.fork()
    if child:
        return child
    code = 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stopping() as stop:
        try:
            job.run(out)
        except BaseException:  # a library may make another error of Ctrl-C, as zipfile does
            code = 1 if stop.number is None else 130
            if code == 1:
                traceback.print_exc()
    os._exit(code)


def litter(out: Path) -> list[str]:
    return [p.name for p in out.rglob("*") if p.name.endswith(".part")]


class Campaign:
    """Kills of one job, and what they showed."""

    def __init__(self, job: Job, folder: Path, rng: np.random.Generator) -> None:
        self.job, self.folder, self.rng = job, folder, rng
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        out = self.fresh("peace")
        began = time.monotonic()
        _, status = os.waitpid(start(job, out), 0)
        assert status == 0, f"{job.name} fails in peace"
        self.seconds = self.range = time.monotonic() - began
        self.expected = job.whole(out)
        self.out, self.kills = self.fresh("killed"), 0

    def fresh(self, name: str) -> Path:
        out = self.folder / self.job.name / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        return out

    def kill(self) -> None:
        """Once, at a random moment of the job."""
        for _ in range(TRIES):
            if self.kills == KILLS_OF_A_RUN:
                self.peace()
            if self.hit():
                self.range *= LATER
                return
            self.range *= EARLIER
            self.peace()
        self.findings.append(f"ended before each of {TRIES} kills")

    def hit(self) -> bool:
        """One try; False where the job had ended before."""
        before = self.job.whole(self.out)
        number = self.rng.choice(
            [signal.SIGKILL] * 3 + [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        )
        child = start(self.job, self.out)
        time.sleep(self.rng.uniform(0.02, 1.0) * self.range)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        _, status = os.waitpid(child, 0)
        what = signal.Signals(number).name
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            what = "ended before"
        elif code not in (-number, 130):
            self.findings.append(f"{what}: exit {code}")
        self.counts[what] += 1
        self.kills += code != 0
        try:
            after = self.job.whole(self.out)
            if not self.job.grows(before, after):
                self.findings.append(f"{what}: something that was finished is gone")
        except Exception as error:
            self.findings.append(f"{what}: {type(error).__name__}: {error}")
        if code == 130 and litter(self.out) and not self.counts["SIGKILL"]:
            self.findings.append(f"{what}: litter {litter(self.out)}")
        return code != 0

    def peace(self) -> None:
        """The job over what the kills left: the first run's bytes, and no litter."""
        _, status = os.waitpid(start(self.job, self.out), 0)
        if status != 0:
            self.findings.append(f"cannot go on: status {status}")
        elif self.job.whole(self.out) != self.expected:
            self.findings.append("goes on to other bytes")
        for folder in (self.out, *filter(Path.is_dir, self.out.rglob("*"))):
            check_place(folder / "next")  # whoever writes there next
        if left := litter(self.out):
            self.findings.append(f"litter in the end: {left}")
        self.counts["compared"] += 1
        self.out, self.kills = self.fresh("killed"), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seed = int.from_bytes(os.urandom(3)) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {pyro_avse.__file__}", flush=True)
    began = time.monotonic()
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(seed)
        campaigns = [Campaign(job, Path(name), rng) for job in make_jobs(Path(name))]
        for k in range(arguments.kills):
            campaigns[k % len(campaigns)].kill()
        for campaign in campaigns:
            campaign.peace()
    findings = 0
    for campaign in campaigns:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(campaign.counts.items()))
        print(f"{campaign.job.name} ({campaign.seconds:.1f} s): {counts}")
        for finding in campaign.findings:
            print(f"  FAILED {finding}")
        findings += len(campaign.findings)
    print(f"{time.monotonic() - began:.0f} s, {arguments.kills} kills, {findings} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
