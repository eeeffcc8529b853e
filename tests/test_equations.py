"""docs/EQUATIONS.md: all 72 equations of the two sources are there, and those of dynamical priors; symbols cite their
numbers, tests exist.
"""

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = [f"({n})" for n in range(1, 46) if n != 27] + [f"S{n}" for n in range(1, 29)]
DYNAMICAL = [f"D{n}" for n in range(1, 19)]


class Row(NamedTuple):
    number: str
    latex: str
    symbol: str
    test: str
    slip: str


def rows() -> list[Row]:
    """The rows of all tables; a bar too many or too few is an error."""
    lines = (ROOT / "docs" / "EQUATIONS.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    broken = [row[0] for row in cells if len(row) != 5]
    assert not broken, f"a bar breaks the columns of {broken}: write \\mid"
    heads = [n for n, row in enumerate(cells) if row[0] == "number"]
    assert heads[0] == 0
    for n in heads:
        assert cells[n] == ["number", "LaTeX", "symbol", "test", "slip"]
        assert all(re.fullmatch("-+", cell) for cell in cells[n + 1])
    return [Row(*row) for n, row in enumerate(cells) if {n, n - 1}.isdisjoint(heads)]


every_row = pytest.mark.parametrize("row", rows(), ids=lambda row: row.number)


def test_every_equation_has_its_row() -> None:
    """The paper's 44 numbers, (27) being absent, the slides' 28, and those of dynamical priors, in order."""
    assert [row.number for row in rows()] == NUMBERS + DYNAMICAL
    assert len(NUMBERS) == 72


@cache
def functions(file: str) -> dict[str, str]:
    """The docstring of every top-level function of a test file, read without importing it."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) or "" for node in nodes}


def docstring(symbol: str) -> str:
    """The docstring of `package.module.Class.method`, or of `tests/test_file.py::test_name`."""
    if "::" in symbol:
        file, name = symbol.split("::")
        return functions(file)[name]
    parts = symbol.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            found = getattr(found, attribute)
        return found.__doc__ or ""
    raise ModuleNotFoundError(symbol)


@every_row
def test_row(row: Row) -> None:
    """Its symbol can be imported and cites the number; its test is a test; LaTeX stands in $...$."""
    assert re.fullmatch(r"\$[^$]+\$", row.latex)
    assert row.slip
    file, name = row.test.split("::")
    assert name.startswith("test_")
    assert name in functions(file)
    assert re.search(rf"(?<!\w){re.escape(row.number)}(?!\w)", docstring(row.symbol)), row.symbol
