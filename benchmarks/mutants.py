"""How many mistakes in the inference would the tests see? Mutants, drawn at random, each against its own tests.

    python benchmarks/mutants.py [--count 400] [--seed 0] [--jobs 2] [--only inference/em.py ...] [--out runs/mutants]

A mutant is one file with one place changed: an operator for its opposite (+ and -, * and /, < and <=, == and !=, `and`
and `or`, `is` and `is not`), a number for its neighbour, a minus or a `not` left out, a statement left out, two
arguments exchanged. Docstrings, messages, annotations and what only refuses bad settings (`raise`, `check_...`) are
left alone. A mutant is killed where a test fails, does not end in five minutes, or cannot even begin. Survivors are
listed with their line; whether one is equivalent to what stood there, a person has to say.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEMORY = 300, 8 * 2**30

TESTS = {
    "inference/em.py": "em_loop wiring em lips_mask vem batch models schemes",
    "inference/vem.py": "wiring em_loop vem schemes",
    "inference/collapsed_vem.py": "wiring em_loop vem mean_field schemes",
    "inference/mean_field.py": "wiring mean_field gradient vem noisy_speech schemes",
    "inference/mcem.py": "wiring em_loop mcem noise_model schemes",
    "inference/ldem.py": "wiring em_loop ldem schemes",
    "inference/peem.py": "wiring em_loop peem schemes",
    "inference/gpeem.py": "wiring em_loop peem schemes",
    "inference/importance.py": "wiring em_loop importance schemes",
    "inference/proposal.py": "wiring importance",
    "inference/amortised_vem.py": "wiring em_loop pyro_schemes lips_mask schemes",
    "inference/encoders.py": "wiring pyro_schemes lips_mask",
    "inference/monte_carlo.py": "wiring chain_weights mcem lips_mask noise_model schemes",
    "inference/m_step.py": "wiring noise_model mcem",
    "inference/nmf.py": "wiring nmf noise_model noise_start noisy_speech",
    "inference/target.py": "wiring em_loop gradient noisy_speech capabilities mean_field schemes",
    "models/mixture.py": "mixture models min_vae svi_step",
}
"""The files that are mutated, and the tests that are theirs, fastest first."""
OPPOSITES: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One changed place."""

    file: str
    line: int
    what: str
    source: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", default=list(TESTS), choices=TESTS)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"))
    args = parser.parse_args()
    every = [mutant for file in args.only for mutant in mutants_of(file)]
    drawn = random.Random(args.seed).sample(every, min(args.count, len(every)))
    print(f"{len(drawn)} of {len(every)} mutants, seed {args.seed}", flush=True)
    preload()
    start = time.perf_counter()
    for file in args.only:
        source = (ROOT / file).read_text(encoding="utf-8")
        if is_killed(Mutant(file, 0, "nothing", source)):
            raise SystemExit(f"{file}: its tests fail as it stands")
    with ThreadPoolExecutor(args.jobs) as pool:
        killed = []
        for mutant, dead in zip(drawn, pool.map(is_killed, drawn), strict=True):
            killed.append(dead)
            if not dead:
                print(f"survived: {mutant.file}:{mutant.line}: {mutant.what}", flush=True)
    print("\n| file | mutants | killed |\n| --- | --- | --- |")
    for file in args.only:
        own = [dead for mutant, dead in zip(drawn, killed, strict=True) if mutant.file == file]
        if own:
            print(f"| {file} | {len(own)} | {sum(own)} |")
    share = sum(killed) / len(killed)
    print(f"| all | {len(killed)} | {sum(killed)} ({share:.1%}) |")
    print(f"{time.perf_counter() - start:.0f} s")


# --- making them ----------------------------------------------------------------------------------------------------


def mutants_of(file: str) -> list[Mutant]:
    source = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(source)
    found = []
    for kind, number in changes(tree):
        changed = copy.deepcopy(tree)
        node = next(n for p, n in enumerate(places(changed)) if p == number)
        before = ast.unparse(node)
        apply(kind, node)
        after = ast.unparse(node) if kind != "drop" else "pass"
        text = ast.unparse(ast.fix_missing_locations(changed))
        line = getattr(node, "lineno", 0)
        if before != after:
            found.append(Mutant(file, line, f"{before!s:.70} -> {after!s:.70}", text))
    return found


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes inside functions, less what is not computed with."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from places(node)
        elif isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from inside(statement)


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """The statement and all below it, but for docstrings, refusals, assertions, annotations and texts."""
    if isinstance(
        node, ast.Raise | ast.Assert | ast.JoinedStr | ast.FunctionDef | ast.Import | ast.ImportFrom
    ):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from inside(statement)
        return
    if isinstance(node, ast.If) and any(isinstance(s, ast.Raise) for s in node.body):
        return
    if isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant)
        or (isinstance(node.value, ast.Call) and "check" in ast.unparse(node.value.func))
    ):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from inside(child)


def changes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What can be done, and at which of `places`."""
    for number, node in enumerate(places(tree)):
        if (isinstance(node, ast.BinOp) and type(node.op) in OPPOSITES) or isinstance(
            node, ast.BoolOp
        ):
            yield "operator", number
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITES:
            yield "compare", number
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield "number", number
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield "sign", number
        elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Assign) and reassigns(node)):
            yield "drop", number
        elif isinstance(node, ast.Call) and may_exchange(node):
            yield "exchange", number


def may_exchange(node: ast.Call) -> bool:
    """Whether there are two arguments by place and none by name."""
    starred = any(isinstance(argument, ast.Starred) for argument in node.args[:2])
    return len(node.args) >= 2 and not node.keywords and not starred


def reassigns(node: ast.Assign) -> bool:
    """Whether a name on the left stands on the right too: without the statement the old value is left."""
    left = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    right = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    return bool(left) and left <= right


def apply(kind: str, node: ast.AST) -> None:
    if kind == "operator":
        node.op = OPPOSITES[type(node.op)]()  # type: ignore[attr-defined]
    elif kind == "compare":
        node.ops[0] = OPPOSITES[type(node.ops[0])]()  # type: ignore[attr-defined]
    elif kind == "number":
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.1  # type: ignore[attr-defined]
    elif kind == "sign":
        node.op = ast.UAdd() if not isinstance(node.op, ast.Not) else node.op  # type: ignore[attr-defined]
        if isinstance(node.op, ast.Not):  # type: ignore[attr-defined]
            node.operand = ast.UnaryOp(ast.Not(), node.operand)  # type: ignore[attr-defined]
    elif kind == "exchange":
        node.args[0], node.args[1] = node.args[1], node.args[0]  # type: ignore[attr-defined]
    elif kind == "drop":
        node.__class__ = ast.Pass  # type: ignore[assignment]
        for name in ("targets", "target", "value", "op"):
            if hasattr(node, name):
                delattr(node, name)


# --- trying them ----------------------------------------------------------------------------------------------------


def preload() -> None:
    """What every test needs and no mutant changes, once: children of this process begin with it."""
    import pandas  # noqa: F401
    import pyro  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)
    assert not any(name.startswith("pyro_avse") for name in sys.modules)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Loads one module from a source of ours."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> object:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_source(self, fullname: str) -> str:
        return self.source

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def is_killed(mutant: Mutant) -> bool:
    """Whether one of its tests fails, in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            code = try_tests(mutant)
        finally:  # whatever happens: a child that lives on would go through the list, and have children of its own
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def try_tests(mutant: Mutant) -> int:
    """pytest's exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(ROOT)
    name = "pyro_avse." + mutant.file.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, Changed(name, ROOT / mutant.file, mutant.source))
    import pytest

    tests = [f"tests/test_{test}.py" for test in TESTS[mutant.file].split()]
    options = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:randomly",
    ]
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    main()
