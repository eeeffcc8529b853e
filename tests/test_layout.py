"""The house's rules: which way imports point, how long files are, and that what is packaged is what is there."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_avse
from pyro_avse.inference import KERNELS, SCHEMES
from pyro_avse.models import MODELS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pyro_avse", "models", "inference", "tests", "examples", "benchmarks")
SHARED = {"pyro_avse.typing", "pyro_avse.distributions", "pyro_avse.errors"}


def python_files(*folders: str) -> list[Path]:
    """Ours, each once: the symlinks in pyro_avse/ lead to files that stand elsewhere."""
    found = (p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")))
    return [p for p in found if p == p.resolve() and not p.name.startswith(".")]


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imports_of_ours(source: str) -> Iterator[str]:
    """Modules of ours that a source imports, at its top or inside; a relative import is returned as it is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
            if names == ["pyro_avse"]:
                names = [f"pyro_avse.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (n for n in names if n.split(".")[0] in ("", "pyro_avse", *FOLDERS))


def allowed(name: str, folder: str) -> bool:
    if name in SHARED or name.startswith(f"pyro_avse.{folder}."):
        return True
    programs = {f"pyro_avse.models.{name}" for name in ("noisy_speech", "nmf_noise", "markov")}
    return folder == "inference" and name in programs


@pytest.mark.parametrize("folder", ["models", "inference"])
def test_imports_point_one_way(folder: str) -> None:
    """models -> the contracts; inference -> the contracts and programs over any prior, never a speech prior."""
    wrong = [
        f"{path.name}: {name}"
        for path in python_files(folder)
        for name in imports_of_ours(path.read_text(encoding="utf-8"))
        if not allowed(name, folder)
    ]
    assert not wrong


def test_a_wrong_import_is_seen() -> None:
    """The walk above sees every form of import of a speech prior or of the command line."""
    for line in (
        "import pyro_avse.models.a_vae",
        "from pyro_avse.models import AVAE",
        "from pyro_avse import enhancer",
        "def f():\n    from pyro_avse.cli import main",
        "from .. import models",
        "import models",
    ):
        names = list(imports_of_ours(line))
        assert names, line
        assert not any(allowed(name, "inference") for name in names), line


FLOORS = (
    {"cli"},
    {"app"},
    {"lab"},
    {"sweep", "training"},
    {"enhancement"},
    {"rivals"},
    {"weights"},
    {"inference"},
    {"models", "data"},
    {"data.talker"},
    {"data.noise"},
    {"data.corpora"},
    {"data.lips"},
    {"data.media"},
    {""},
)
"""From the roof to the ground, on which all stand; imports point down, or stay within a wing."""


def module_of(path: Path) -> str:
    """Its name within the package: "enhancement.file"; a wing's own for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "pyro_avse" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wing_of(module: str) -> str:
    """ "data.lips" of "data.lips.open"; the ground floor is ""."""
    for wing in sorted(set().union(*FLOORS), key=len, reverse=True):
        if wing and (module == wing or module.startswith(f"{wing}.")):
            return wing
    return ""


def import_graph() -> dict[str, set[str]]:
    """Every module's own imports, at its top, inside functions and under TYPE_CHECKING."""
    modules = {module_of(path): path for path in python_files("pyro_avse", "models", "inference")}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_avse"):
                base = str(node.module).removeprefix("pyro_avse").lstrip(".")
                names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                graph[module] |= {name if name in modules else base for name in names}
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names if a.name.startswith("pyro_avse")]
                graph[module] |= {name.removeprefix("pyro_avse").lstrip(".") for name in names}
        graph[module] -= {module, ""}  # "": the package's own version
    return graph


def rings(graph: dict[str, set[str]]) -> set[str]:
    """Modules from which imports lead back to them: whoever stays when all that nobody needs is taken away."""
    left = {module: set(names) for module, names in graph.items()}
    while True:
        ends = {module for module, names in left.items() if not names & left.keys()}
        if not ends:
            return set(left)
        left = {module: names for module, names in left.items() if module not in ends}


def test_imports_between_wings_point_down() -> None:
    """From the command line to the ground floor, never up."""
    floor = {wing: level for level, wings in enumerate(FLOORS) for wing in wings}
    wrong = [
        f"{module} imports {name}"
        for module, names in import_graph().items()
        for name in names
        if module  # the package's own doors lead everywhere
        and wing_of(module) != wing_of(name)
        and floor[wing_of(module)] >= floor[wing_of(name)]
    ]
    assert not wrong


def test_no_ring_of_files() -> None:
    assert not rings(import_graph())


def test_a_ring_and_an_arrow_that_points_up_are_seen() -> None:
    """The two tests above can fail."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert rings(graph) == {"a", "b", "c"}
    assert wing_of("data.lips.open") == "data.lips"
    assert wing_of("plots") == wing_of("typing") == ""
    assert "training.svi" in import_graph()["training.stages"]


def test_the_ground_floor_is_small() -> None:
    """At most twelve files, and whatever else stands in a wing, whose __init__ says in three lines what is in it."""
    top = [path for path in python_files("pyro_avse") if path.parent == ROOT / "pyro_avse"]
    assert len(top) <= 12
    for path in python_files("pyro_avse", "models", "inference"):
        if is_init(path) and path.parent != ROOT / "pyro_avse":
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert doc, path
            wing = path.parent.name
            if wing not in ("models", "inference"):
                assert len(doc.splitlines()) == 3, path
                assert "Open `" in doc, path


def test_the_packages_are_the_folders() -> None:
    """setuptools packages exactly the folders that have an __init__.py, and maps the two that stand outside."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = {
        ".".join(p.parent.relative_to(ROOT).parts) for p in python_files("pyro_avse") if is_init(p)
    }
    outside = {
        f"pyro_avse.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for p in python_files("models", "inference")
        if is_init(p)
    }
    assert inside | outside == set(settings["packages"])
    assert len(settings["packages"]) == len(set(settings["packages"]))
    mapped = {"pyro_avse": "pyro_avse"} | {
        name: name.removeprefix("pyro_avse.") for name in outside
    }
    assert settings["package-dir"] == mapped


def is_init(path: Path) -> bool:
    return path.name == "__init__.py"


@pytest.mark.parametrize("name", ["models", "inference"])
def test_the_package_has_links_to_the_two_folders(name: str) -> None:
    """A checkout that is not installed, and type checkers, find them too."""
    link = ROOT / "pyro_avse" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ["models", "inference"])
def test_the_bare_name_is_refused(name: str) -> None:
    """From the repository's root `import models` would make a second copy of every class."""
    spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=f"pyro_avse.{name}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_files_are_short() -> None:
    """No file is longer than 400 lines, no model than 200, no kernel than 120."""
    kernels = {sys.modules[kernel.__module__].__file__ for kernel in KERNELS.values()}  # type: ignore[attr-defined]
    limits = dict.fromkeys(python_files(*FOLDERS), 400)
    limits |= dict.fromkeys(python_files("models"), 200)
    limits |= {Path(str(file)).resolve(): 120 for file in kernels}
    assert len(kernels) == len(KERNELS)
    long = {p.name: num_lines(p) for p, limit in limits.items() if num_lines(p) > limit}
    assert not long


def test_importing_the_library_loads_no_torch() -> None:
    """`import pyro_avse` is quick; torch comes with the first use."""
    code = "import sys, pyro_avse; sys.exit('torch' in sys.modules or 'pyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_there() -> None:
    """Each name of __all__ can be had from the package, and another is an AttributeError."""
    assert all(getattr(pyro_avse, name) is not None for name in pyro_avse.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'enhanse'"):
        pyro_avse.enhanse  # noqa: B018


@pytest.mark.parametrize(
    "registry", [MODELS, KERNELS, SCHEMES], ids=["models", "kernels", "schemes"]
)
def test_registries_hold_names_for_the_command_line(registry: dict[str, object]) -> None:
    """Keys are lower-case identifiers, each of a class of its own that can be called without arguments."""
    assert all(key.isidentifier() and key == key.lower() for key in registry)
    assert len(set(registry.values())) == len(registry)
    for entry in registry.values():
        assert callable(entry)
        entry()
