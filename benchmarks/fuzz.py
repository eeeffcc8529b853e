"""Mutated files of every kind through the front door: each is enhanced or refused in one line, soon, in little memory.

    python benchmarks/fuzz.py --files 2000 --seed 1        # `make fuzz`
    python benchmarks/fuzz.py --only 1:137                 # case 137 of seed 1 again, with its traceback

Real files (made here, of a second or so) have bits flipped, numbers made extreme, pieces cut, doubled and moved. The
priors are tiny and there is one EM iteration, so that inference is cheap. Cases run in processes that are started
anew when one dies, with a limit of memory; a case has `SECONDS` of processor time. Hypothesis draws arrays and
settings besides. Printed: cases by kind and by the stage at which they ended. The exit code is 1 where one ended in
anything but a result or an `InputError` of one line.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from fuzz_files import INSIDE, make_seeds, mutate, mutate_inside

import pyro_avse
from pyro_avse.data.lips.watch import watch
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.inference import LDEM
from pyro_avse.sweep.results import load_results
from pyro_avse.training.recipe import load_recipe
from pyro_avse.training.stages import build_prior
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior

SECONDS = 20
"""Processor time of a case; more is a finding."""
MEMORY = 3 * 2**30
"""Of a process, beyond what it has at its start."""
BATCH = 100
STAGES = ("refused", "read", "inferred", "written", "FAILED", "SLOW", "DIED")
"""In which order a case passes them; in capitals, what must not be."""
QUICK = LDEM(iterations=1, chains=1, first_warmup=1, warmup=1, draws=1)
READ_ALONE = ("json", "toml", "parquet")


class Slow(BaseException):
    pass


def run_case(kind: str, path: Path, seeds: dict[str, Path], rng: np.random.Generator) -> str:
    """The stage at which one mutated file ended. Raises what must not be raised."""
    folder, model = path.parent, str(seeds["safetensors"])
    stage = ["refused"]
    separate = Enhancer.separate

    def noted(self: Enhancer, *arguments: Any, **options: Any) -> Any:
        stage[0] = "inferred"
        return separate(self, *arguments, **options)

    Enhancer.separate = noted  # type: ignore[method-assign]
    lips: dict[str, Any] = {}
    try:
        if kind in ("wav", "flac", "ogg", "mp3", "mp4", "mkv", "webm"):
            if kind in ("mp4", "mkv", "webm") and rng.random() < 0.2:
                watch(path)
                return "read"
            out = folder / rng.choice(["o.wav", "o.mkv" if kind in ("mp4", "mkv") else "o.flac"])
            enhance_file(path, out, model=model, inference=QUICK, guide=None)
        elif kind in ("npz", "mat"):
            lips = {"lips": path, "model": str(seeds["safetensors"].with_name("lips.safetensors"))}
            enhance_file(seeds["wav"], folder / "o.wav", inference=QUICK, guide=None, **lips)
        elif kind == "safetensors":
            enhance_file(seeds["wav"], folder / "o.wav", model=str(path), inference=QUICK)
        elif kind == "toml":
            recipe = load_recipe(path)
            if not isinstance(recipe, dict) and hasattr(recipe, "model"):
                build_prior(recipe, {})
            return "read"
        elif kind == "json":
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            with contextlib.suppress(ValueError, RecursionError):
                settings = json.loads(text)
                if isinstance(settings, dict):
                    build_scheme("ldem", settings)
                    return "read"
        else:
            shutil.rmtree(folder / "results", ignore_errors=True)
            (folder / "results" / "parts").mkdir(parents=True)
            (folder / "results" / "protocol.json").write_text("{}")
            shutil.copy(path, folder / "results" / "parts" / "k.parquet")
            load_results(folder / "results")
            return "read"
        return "written" if stage[0] == "inferred" else stage[0]
    except InputError as refusal:
        check_line(refusal)
        return stage[0]
    finally:
        Enhancer.separate = separate  # type: ignore[method-assign]
        left = [p.name for p in folder.iterdir() if p.name.endswith(".part")]
        for name in ("o.wav", "o.flac", "o.mkv"):
            (folder / name).unlink(missing_ok=True)
        assert not left, left


def check_line(refusal: InputError) -> None:
    """A refusal is one line."""
    assert len(str(refusal).splitlines()) == 1, repr(str(refusal))


def one(seed: int, number: int, folder: Path, seeds: dict[str, Path]) -> tuple[str, str, str]:
    """(kind, stage, traceback or nothing) of a case."""
    rng = np.random.default_rng([seed, number])
    kinds = list(seeds)
    kinds += [kind for kind in kinds if kind not in READ_ALONE]  # twice as often
    kind = kinds[number % len(kinds)]
    path = folder / f"case.{kind}"
    inside = kind in INSIDE and rng.random() < 0.6
    path.write_bytes(
        mutate_inside(kind, seeds[kind], rng) if inside else mutate(seeds[kind].read_bytes(), rng)
    )

    def slow(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGPROF, slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind, run_case(kind, path, seeds, rng), ""
    except Slow:
        return kind, "SLOW", traceback.format_exc()
    except Exception:
        return kind, "FAILED", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def in_processes(
    numbers: list[int], case: Callable[[int], tuple[str, str, str]]
) -> Iterator[tuple[int, str, str, str]]:
    """Every case's outcome; a process that dies is a case that did."""
    left = list(numbers)
    while left:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _work(write, left[:BATCH], case)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                number, kind, stage, said = json.loads(line)
                left.remove(number)
                yield number, kind, stage, said
        _, status = os.waitpid(child, 0)
        if status != 0 and left:
            yield left.pop(0), "?", "DIED", f"status {status}"


def _work(write: int, numbers: list[int], case: Callable[[int], tuple[str, str, str]]) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of decoders, which talk
    with os.fdopen(write, "w") as lines:
        for number in numbers:
            lines.write(json.dumps([number, *case(number)]) + "\n")
            lines.flush()
    os._exit(0)


def arrays_and_settings(seed: int, examples: int, folder: Path, model: Path) -> Counter[str]:
    """What Hypothesis draws: recordings and lips in memory, and settings of every scheme."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from pyro_avse.inference import SCHEMES

    counts: Counter[str] = Counter()
    prior, stft = load_prior(model, guide=None)
    enhancer = Enhancer(prior, QUICK, stft=stft, device="cpu", guide=None)
    kinds = st.sampled_from([np.float32, np.float64, np.int16, np.int32, np.uint8, np.float16])
    sizes = st.one_of(st.integers(1024, 8000), st.integers(0, 1100))
    odd = st.one_of(st.just(0.5), st.floats(width=16))
    value = st.one_of(
        st.integers(-3, 40), st.floats(width=32), st.booleans(), st.none(), st.text(max_size=3)
    )

    @given(st.data())
    def sound(data: st.DataObject) -> None:
        shape = data.draw(st.one_of(sizes, st.tuples(sizes, st.integers(1, 2))))
        noise = np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal(shape)
        with np.errstate(all="ignore"):
            mixture = (noise * 10.0 ** data.draw(st.integers(-6, 6))).astype(data.draw(kinds))
        if mixture.size and mixture.dtype.kind == "f":
            mixture.flat[data.draw(st.integers(0, mixture.size - 1))] = data.draw(odd)
        rate = data.draw(st.sampled_from([16000, 8000, 44100, 0, -1, 7]))
        try:
            result = enhancer(mixture, sample_rate=rate)
        except InputError as refusal:
            check_line(refusal)
            counts["refused"] += 1
        else:
            assert np.isfinite(result.speech).all()
            counts["written"] += 1

    @given(st.sampled_from(sorted(SCHEMES)), st.data())
    def scheme(name: str, data: st.DataObject) -> None:
        from dataclasses import fields

        known = [f.name for f in fields(build_scheme(name, {}))]  # type: ignore[arg-type]
        chosen = data.draw(st.dictionaries(st.sampled_from(known), value, max_size=2))
        try:
            build_scheme(name, chosen)
        except InputError as refusal:
            check_line(refusal)
            counts["refused"] += 1
        else:
            counts["read"] += 1

    quiet = list(HealthCheck)
    for check in (sound, scheme):
        rules = settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=quiet
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seeded(seed)(rules(check))()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--examples", type=int, default=100, help="of Hypothesis, for each part")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="SEED:CASE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.PANIC)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        (folder / "case").mkdir()
        seeds = make_seeds(folder / "seeds")
        if arguments.only:
            seed, number = map(int, arguments.only.split(":"))
            print(*one(seed, number, folder / "case", seeds), sep="\n")
            return
        seed = int.from_bytes(os.urandom(3)) if arguments.seed is None else arguments.seed
        print(f"seed {seed}, {pyro_avse.__file__}", flush=True)
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in [*seeds, "?", "arrays"]}
        bad = 0
        case = lambda number: one(seed, number, folder / "case", seeds)  # noqa: E731
        for number, kind, stage, said in in_processes(list(range(arguments.files)), case):
            counts[kind][stage] += 1
            if stage.isupper():
                bad += 1
                last = [line for line in said.splitlines() if line.strip()][-1:]
                place = [line.strip() for line in said.splitlines() if "pyro_avse" in line][-1:]
                print(f"{stage} {seed}:{number} {kind} {' '.join(last + place)}", flush=True)
        if arguments.examples:
            try:
                counts["arrays"] = arrays_and_settings(
                    seed, arguments.examples, folder, seeds["safetensors"]
                )
            except Exception:
                traceback.print_exc()
                bad += 1
    print_counts(counts)
    print(f"{time.monotonic() - start:.0f} s, {bad} findings")
    sys.exit(bool(bad))


def print_counts(counts: dict[str, Counter[str]]) -> None:
    shown = io.StringIO()
    print("".join(f"{title:>12}" for title in ("kind", *STAGES)), file=shown)
    total: Counter[str] = Counter()
    for kind, row in counts.items():
        if row:
            total += row
            print(f"{kind:>12}" + "".join(f"{row[s]:12d}" for s in STAGES), file=shown)
    print(f"{'all':>12}" + "".join(f"{total[s]:12d}" for s in STAGES), file=shown)
    reached = total["inferred"] + total["written"]
    print(shown.getvalue() + f"inference was reached by {reached} of {total.total()}")


if __name__ == "__main__":
    main()
