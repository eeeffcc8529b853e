"""Pages that are made of the code: the API, the proofs, and the links of the page of equations.

    api/WING.md    every module of a wing with its public names
    proofs.md      the tests that EQUATIONS.md names, in full
    lessons/       the executed notebooks of the repository

Docstrings are plain text: names in back-ticks, formulas indented, Google's sections. Here they become
reStructuredText: what it would take for markup is escaped, and an indented block is shown as it stands.
"""

import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WINGS = {
    "package": "The package",
    "ground": "The ground floor",
    "models": "Models",
    "inference": "Inference",
    "enhancement": "Enhancement",
    "training": "Training",
    "weights": "Weights",
    "data": "Data",
    "sweep": "Sweeps",
    "lab": "The lab",
    "rivals": "Rivals",
}
"""Pages of the API by the second part of a module's name; the command line and the page in the browser are no API."""
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):$")
PROSE = ("Returns:", "Yields:")
ITEM = re.compile(r"    ([\w.*]+(?:, [\w.*]+)*): ")
LIST = re.compile(r"([-*]|\d+\.|\(?[a-z]\)) ")
CODE = re.compile(r"``(.+?)``|`([^`]+?)`", re.DOTALL)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", link_equations)
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-process-docstring", translate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def modules() -> list[str]:
    """All of the package, by name; `models` and `inference` are links to folders outside of it."""
    package = ROOT / "pyro_avse"
    linked = [path for link in ("models", "inference") for path in (package / link).glob("*.py")]
    files = sorted({*package.rglob("*.py"), *linked})
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return [name.removesuffix(".__init__") for name in names]


def wing_of(module: str) -> str | None:
    """The page on which a module stands; None: on none."""
    _, *parts = module.split(".")
    if not parts:
        return "package"
    if parts[0] in ("cli", "app"):
        return None
    return parts[0] if parts[0] in WINGS else "ground"


def write_pages(app: Any) -> None:
    """Write what changed: a page that stays as it is is not read again."""
    notebooks = "\n".join(sorted(path.stem for path in (ROOT / "lessons").glob("*.ipynb")))
    lessons = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
    pages = {
        "proofs.md": "\n".join(proofs()),
        "lessons/index.md": f"{lessons}\n```{{toctree}}\n:hidden:\n{notebooks}\n```\n",
    }
    for wing, title in WINGS.items():
        names = [name for name in modules() if wing_of(name) == wing]
        pages[f"api/{wing}.md"] = f"# {title}\n\n" + "\n".join(map(block, names))
    pages["commands.md"] = "\n".join(commands())
    for name, text in pages.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    (DOCS / "lessons").mkdir(exist_ok=True)
    for path in (ROOT / "lessons").glob(
        "*.[ip]*y*"
    ):  # notebooks, and the programs that they link to
        shutil.copy2(path, DOCS / "lessons")


def block(module: str) -> str:
    """All of a module; a function that shares its name with a module below stands there alone."""
    below = [m.rpartition(".")[2] for m in modules() if m.rpartition(".")[0] == module]
    left_out = f"   :exclude-members: +{', '.join(below)}\n" if below else ""
    return f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{left_out}```\n"


def commands() -> Iterator[str]:
    """The page of the command line, as `--help` has it."""
    import typer
    from typer.testing import CliRunner

    from pyro_avse.cli.app import app

    for module in modules():
        if module.startswith("pyro_avse.cli.") and not module.endswith("__main__"):
            import_module(module)  # each registers its commands
    yield "# Commands\n\nWhat `pyro-avse COMMAND --help` prints.\n"
    top: Any = typer.main.get_command(app)
    groups = {(name,): getattr(found, "commands", {}) for name, found in top.commands.items()}
    names = [(*name, sub) for name, subs in groups.items() for sub in subs or [()]]
    for name in sorted(tuple(filter(None, name)) for name in names):
        asked = CliRunner(env={"COLUMNS": "100"}).invoke(
            app, [*name, "--help"], prog_name="pyro-avse"
        )
        yield f"## {' '.join(name)}\n\n```text\n{asked.output.strip()}\n```\n"


def equations() -> list[list[str]]:
    """The cells of EQUATIONS.md's rows: number, LaTeX, symbol, test, slip."""
    lines = (DOCS / "EQUATIONS.md").read_text(encoding="utf-8").splitlines()
    return [cells(line) for line in lines if line.startswith("| ") and "::" in line]


def cells(row: str) -> list[str]:
    """Of a table."""
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


def proofs() -> Iterator[str]:
    """The page of tests, each once, under the numbers that it proves."""
    rows: dict[str, list[str]] = {}
    for number, _, symbol, test, _ in equations():
        for name in {symbol, test}:
            if "::" in name:
                rows.setdefault(name, []).append(number)
    yield "# Proofs\n\nThe tests that [the equations](EQUATIONS.md) name, each by a route of its own.\n"
    for name in sorted(rows):
        file, function = name.split("::")
        yield f"({label(name)})=\n## {function}\n\nOf {', '.join(rows[name])}, in `{file}`.\n"
        yield f"```{{literalinclude}} ../{file}\n:pyobject: {function}\n```\n"


def label(test: str) -> str:
    """Of a test, on the page of proofs."""
    return "proof-" + re.sub(r"\W+", "-", test)


def link_equations(app: Any, name: str, source: list[str]) -> None:
    """The table of equations as a list that fits a screen; a path out of docs/ is shown as code."""
    if name == "EQUATIONS":
        lines = source[0].splitlines()
        titles = re.compile(r"\| (number|---) \|")
        source[0] = "\n".join(map(as_list, (line for line in lines if not titles.match(line))))
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", source[0])


def as_list(line: str) -> str:
    """A row of equations as a term with definitions; symbols lead to the API, tests to the page of proofs."""
    if not (line.startswith("| ") and "::" in line):
        return line
    number, latex, symbol, test, slip = cells(line)
    proof = f"{{ref}}`{test.partition('::')[2]} <{label(test)}>`"
    code = "" if "::" in symbol else f"{{py:obj}}`~{symbol}`, proved by "
    said = "" if slip == "as printed" else f"\n: {slip}"
    return f"\n{number}\n: {latex}\n: {code}{proof}{said}\n"


def offer_notebook(app: Any, name: str, source: list[str]) -> None:
    """Under a tutorial's title a link to it as an executed notebook."""
    folder, _, page = name.rpartition("/")
    if folder == "tutorials":
        link = f"*This page as a notebook:* {{nb-download}}`{page}.ipynb`"
        source[0] = re.sub(r"(?m)^# .+$", rf"\g<0>\n\n{link}", source[0], count=1)


def translate(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring, in place."""
    lines[:] = list(to_rst(lines))


def to_rst(lines: list[str]) -> Iterator[str]:
    """Paragraphs and lists escaped, indented blocks as they stand, sections as fields."""
    before, section, literal = "", "", False
    text: list[str] = []  # of a paragraph: code in back-ticks may go on in the next line

    def flush() -> Iterator[str]:
        if text:
            yield from escape("\n".join(text)).split("\n")
        text.clear()

    for line in lines:
        indented = line.startswith(" ")
        if SECTION.match(line):
            yield from flush()
            yield from ("", f":{line.rstrip(':')}:", "")
            section, literal = line, False
        elif section and (indented or not line):
            if line[4:5].isspace() or not line or section in PROSE:
                text.append(line)
            else:  # of a list: "name, name: text"
                yield from flush()
                text.append(
                    ITEM.sub(r"    - **\1**: ", line, count=1)
                    if ITEM.match(line)
                    else f"    - {line.strip()}"
                )
        elif indented and not (text and LIST.match(text[0])):
            yield from flush()
            if not literal:
                yield from ("", "::", "")
            literal = True
            yield line
        elif literal and not line:
            yield ""
        else:
            if literal or section or (LIST.match(line) and text):
                yield from flush()
            if literal or section or (LIST.match(line) and not LIST.match(before)):
                yield ""
            section, literal = "", False
            if line:
                text.append(line)
            else:
                yield from (*flush(), "")
        before = line
    yield from flush()


def escape(text: str) -> str:
    """reStructuredText that shows a text: its code as code, nothing else as markup."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [plain(text[end : code.start()]), f"``{' '.join((code[1] or code[2]).split())}``"]
        if re.match(r"[^\s'\")\]}>\-/\\:.,;!?]", text[code.end() :]):
            parts.append("\\ ")
        end = code.end()
    return "".join([*parts, plain(text[end:])])


def plain(text: str) -> str:
    """Without code in it; what `to_rst` made bold stays so."""
    text = re.sub(r"\\|^(?=\(\w+\) )", r"\\\g<0>", text, flags=re.MULTILINE)  # (3) begins no list
    bold = re.compile(r"(?m)^(    - )\*\*(.+?)\*\*: ")
    kept = [m[2] for m in bold.finditer(text)]
    text = bold.sub(r"\1\0: ", text)
    text = re.sub(r"([|`])|(?<=\w)(_)(?!\w)|(?m:(?<!^)(\*)(?! ))|(?m:^(\*)(?! ))", r"\\\g<0>", text)
    for name in kept:
        text = text.replace("\0", "**" + name.replace("*", "\\*") + "**", 1)
    return text
