"""The documentation site: every public name has its place, links are checked, docstrings become what they say."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def load(name: str) -> ModuleType:
    """A program of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, check_links = load("reference"), load("check_links")


def test_every_module_is_on_a_page_of_the_menu() -> None:
    """But for the command line, which has a page of its own, and the page in the browser."""
    menu = (DOCS / "index.md").read_text()
    for module in reference.modules():
        wing = reference.wing_of(module)
        assert (wing is None) == (module.split(".")[1:2] in (["cli"], ["app"])), module
        assert wing is None or f"\napi/{wing}\n" in menu


def test_every_page_is_in_the_menu() -> None:
    menu = (DOCS / "index.md").read_text()
    for path in (*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md"), *DOCS.glob("howto/*.md")):
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or f"\n{name}\n" in menu, name


def test_every_equation_has_its_proof_and_its_source() -> None:
    """The page of proofs has every test that the table names; symbols and tests become links."""
    rows, proofs = reference.equations(), "\n".join(reference.proofs())
    assert len(rows) >= 72
    assert {len(row) for row in rows} == {5}
    source = [(DOCS / "EQUATIONS.md").read_text()]
    reference.link_equations(None, "EQUATIONS", source)
    for _, _, symbol, test, _ in rows:
        assert f"({reference.label(test)})=" in proofs
        assert f"<{reference.label(test)}>`" in source[0]
        assert "::" in symbol or f"{{py:obj}}`~{symbol}`" in source[0]


def test_a_tutorial_is_offered_as_a_notebook() -> None:
    """Under its title, not in its code; other pages are not."""
    page = "---\nkernelspec:\n---\n\n# One\n\nText.\n\n```{code-cell}\n# Two\n```\n"
    tutorial, other = [page], [page]
    reference.offer_notebook(None, "tutorials/one", tutorial)
    reference.offer_notebook(None, "howto/one", other)
    link = "*This page as a notebook:* {nb-download}`one.ipynb`"
    assert tutorial == [page.replace("# One\n", f"# One\n\n{link}\n")]
    assert other == [page]


DOCSTRING = """Power of `x[n]` and
of |x|^2: a_ is `x_`.

    y = x * |w|          (1)

Then:

* one, `two
  words`
- three

Args:
    name, other: what * it is,
        in two lines.
    last one

Returns:
    `y`^2, in *dB.
"""
RST = r"""Power of ``x[n]`` and
of \|x\|^2: a\_ is ``x_``.


::

    y = x * |w|          (1)

Then:

* one, ``two words``

- three


:Args:

    - **name, other**: what * it is,
        in two lines.
    - last one


:Returns:

    ``y``\ ^2, in \*dB.
"""


def test_a_docstring_becomes_what_it_says() -> None:
    """Code is code, formulas stand as they are, sections are fields, and nothing else is markup."""
    found = "\n".join(reference.to_rst(DOCSTRING.splitlines()))
    squeezed = [[line for line in text.splitlines() if line.strip()] for text in (found, RST)]
    assert squeezed[0] == squeezed[1]


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    """To a page or a place that is not there, and what is loaded from another server; others are left alone."""
    (tmp_path / "a.html").write_text(
        '<p id="top"></p><a href="b.html#in">1</a><a href="c.html">2</a><a href="#top">3</a>'
        '<a href="b.html#no">4</a><a href="https://pyro.ai">5</a><script src="https://cdn/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<h1 id="in">b</h1><img src="no.png">')
    assert check_links.problems(tmp_path) == [
        "a.html loads https://cdn/x.js",
        "a.html links to c.html, which is not there",
        "a.html links to b.html#no: the page has no such place",
        "b.html links to no.png, which is not there",
    ]


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    """With warnings as errors, and without running its notebooks (`make docs` does); every link leads somewhere."""
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    shutil.copytree(
        ROOT,
        tmp_path / "root",
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "_build", "runs"),
    )
    docs, site = tmp_path / "root" / "docs", tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-D",
        "nb_execution_mode=off",
        "-D",
        "suppress_warnings=myst-nb.lexer",  # a notebook says its language when it is run
    ]
    done = subprocess.run(
        [*command, str(docs), str(site)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert check_links.problems(site) == []
