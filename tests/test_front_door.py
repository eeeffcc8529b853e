"""One way in: the package's names, files in and out, versions, near misses, and what printing shows."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

import pyro_avse
from pyro_avse import enhance_file
from pyro_avse.cli import main
from pyro_avse.enhancement.drawing import draw_responsibilities
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import build_scheme, find_kernel, find_scheme
from pyro_avse.enhancement.notebook import notebook_bar
from pyro_avse.inference import LDEM, SCHEMES, Guided
from pyro_avse.models import MODELS
from pyro_avse.models.nmf_noise import NOISE_MODELS, NoiseModel
from pyro_avse.plots import shade_disagreement
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import find_weights

QUICK = {"iterations": 2, "first_warmup": 2}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("models", ...): exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return call


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seconds of a tone that comes and goes, in noise, offset by a tenth; the working folder is its."""
    monkeypatch.chdir(tmp_path)
    rng, time = np.random.default_rng(0), np.arange(2 * 16000) / 16000
    sound = np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 2 * time) ** 2
    sound = 0.3 * (sound + 0.2 * rng.standard_normal(len(time))) + 0.1
    soundfile.write(tmp_path / "noisy.wav", sound, 16000, subtype="FLOAT")
    return tmp_path / "noisy.wav"


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_frames_whose_chains_disagree_are_grey() -> None:
    """Where they do and nowhere else; the axis keeps its limits."""
    axis = Figure().subplots()
    axis.set_ylim(0, 1)
    times, apart = np.arange(10.0), np.arange(10) == 4
    shade_disagreement(axis, times, apart)
    (grey,) = axis.patches
    assert (grey.get_x(), grey.get_width()) == (3.5, 1)
    assert (grey.get_y(), grey.get_height()) == (0, 1)
    assert axis.get_ylim() == (0, 1)
    for nothing in (None, np.zeros(10, bool)):
        shade_disagreement(axis, times, nothing)
    assert len(axis.patches) == 1


def test_the_band_of_r_is_drawn_and_said() -> None:
    """From the draws' 5 % to their 95 %; what is not drawn is not said."""
    low, high = np.array([[0.1], [0.3]]), np.array([[0.4], [0.9]])
    result: Any = SimpleNamespace(
        frame_times=np.arange(2.0), responsibilities=np.full((2, 2), 0.5), chains_disagree=None
    )
    doubt: Any = SimpleNamespace(times=result.frame_times, r_low=low, r_high=high)
    axis = Figure().subplots()
    draw_responsibilities(axis, result, 2.0)
    assert not axis.collections
    assert "band" not in axis.get_title()
    draw_responsibilities(axis, result, 2.0, doubt)
    (band,) = axis.collections
    heights = [path.vertices for path in band.get_paths()]
    assert {0.1, 0.3, 0.4, 0.9} <= set(np.concatenate(heights)[:, 1].tolist())
    assert "band: nine tenths of the draws" in axis.get_title()
    assert "grey" not in axis.get_title()


def test_the_package_says_what_it_has() -> None:
    """`dir` lists names that are there, without torch; `load` gives a prior and its STFT."""
    code = "import sys, pyro_avse; print(*dir(pyro_avse)); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.split() == sorted([*pyro_avse.__all__, "__version__"])
    prior, stft = pyro_avse.load("a_vae")
    assert (prior.num_components, stft) == (1, STFT())


def test_a_file_in_a_file_out(noisy: Path) -> None:
    """As `Enhancer` of its sound, to the last bit of float32; what was taken off sums with it to the recording."""
    lines: list[str] = []
    row = enhance_file(
        noisy, "s.wav", model="a_vae", settings=QUICK, noise_out="n.wav", report=lines.append
    )
    assert row["files"] == {"speech": "s.wav", "noise": "n.wav"}
    assert lines == [f"{noisy}: 2.00 s with a_vae and guided"]
    prior, stft = pyro_avse.load("a_vae")
    expected = Enhancer(prior, Guided(**QUICK), stft=stft)(read(noisy))  # type: ignore[arg-type]
    np.testing.assert_array_equal(read(Path("s.wav")), expected.speech)
    np.testing.assert_allclose(read(Path("s.wav")) + read(Path("n.wav")), read(noisy), atol=1e-6)
    assert abs(read(Path("n.wav")).mean() - 0.1) < 0.01  # the offset is noise
    assert enhance_file(noisy, model="a_vae", settings=QUICK)["files"] == {
        "speech": "noisy_enhanced.wav"
    }
    np.testing.assert_array_equal(read(Path("noisy_enhanced.wav")), expected.speech)


def test_a_scheme_of_ones_own(noisy: Path) -> None:
    scheme = LDEM(**QUICK)  # type: ignore[arg-type]
    row = enhance_file(noisy, "a.wav", model="a_vae", inference=scheme)
    assert (row["inference"], row["iterations"]) == ("LDEM", 2)
    for more in ({"iterations": 3}, {"noise_model": "paper"}, {"settings": QUICK}):
        with pytest.raises(InputError, match="a scheme has its settings"):
            enhance_file(noisy, "b.wav", model="a_vae", inference=scheme, **more)
    assert not Path("b.wav").exists()


@pytest.mark.parametrize("block", [0.0, 3.0])
def test_strength_and_noise_of_a_long_recording(noisy: Path, block: float) -> None:
    """0 is the recording to the last bit, in blocks too; any strength's two files sum to it."""
    sound = np.tile(read(noisy), 3)[: 16000 * 5]
    soundfile.write("long.wav", sound, 16000, subtype="FLOAT")
    options: dict[str, Any] = {"model": "a_vae", "settings": QUICK, "block": block}
    enhance_file("long.wav", "zero.wav", strength=0, **options)
    np.testing.assert_array_equal(read(Path("zero.wav")), sound)
    row = enhance_file("long.wav", "half.wav", strength=0.5, noise_out="rest.wav", **options)
    assert row.get("blocks", 1) == (2 if block else 1)
    np.testing.assert_allclose(read(Path("half.wav")) + read(Path("rest.wav")), sound, atol=1e-6)
    enhance_file("long.wav", "one.wav", **options)
    half = 0.5 * (read(Path("one.wav")) + sound)
    np.testing.assert_allclose(read(Path("half.wav")), half, atol=1e-6)


def test_what_cannot_be_done_is_said_before_any_work(
    noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the argument; no weights are loaded, nothing is written."""
    monkeypatch.setattr(
        "pyro_avse.enhancement.file.load_prior", lambda name: pytest.fail("weights were loaded")
    )
    Path("folder").mkdir()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"strength": 1.5}, "strength is 1.5: give a number from 0"),
        ({"fps": 25.0}, "--fps is of --lips, which is not given"),
        ({"noise_out": "s.wav"}, r"s\.wav is the output too"),
        ({"output": noisy}, r"noisy\.wav is the recording itself"),
        ({"noise_out": noisy}, r"noisy\.wav is the recording itself"),
        ({"output": "s.xyz"}, "names no sound format"),
        ({"output": "folder"}, "folder"),
        ({"noise_out": "missing/n.wav"}, "make the folder missing first"),
        ({"reference": "missing.wav"}, r"missing\.wav does not exist"),
        ({"inference": "ldme"}, "did you mean 'ldem'"),
        ({"noise_model": "papre"}, "did you mean 'paper'"),
        ({"settings": {"iteration": 3}}, "did you mean 'iterations'"),
        ({"block": 1.0}, "blocks of 1 s: give 3 or more"),
    ]
    for given, said in refused:
        with pytest.raises(InputError, match=said):
            enhance_file(noisy, **({"output": "s.wav"} | given))
    assert sorted(p.name for p in Path().iterdir()) == ["folder", "noisy.wav"]


def test_the_command_line_is_the_same(noisy: Path, run: Run) -> None:
    """Options reach `enhance_file`: strength, what was taken off, the noise model."""
    base = ("enhance", str(noisy), "--model", "a_vae", "--iterations", "2", "--json")
    code, out, err = run(*base, "-o", "half.wav", "--strength", "0.5", "--noise-out", "rest.wav")
    assert code == 0, err
    assert json.loads(out)["files"] == {"speech": "half.wav", "noise": "rest.wav"}
    assert "wrote half.wav and rest.wav" in err
    np.testing.assert_allclose(
        read(Path("half.wav")) + read(Path("rest.wav")), read(noisy), atol=1e-6
    )
    assert run(*base, "-o", "smooth.wav")[0] == 0
    assert run(*base, "-o", "same.wav", "--noise-model", "smooth")[0] == 0
    assert run(*base, "-o", "paper.wav", "--noise-model", "paper")[0] == 0
    smooth, same, paper = (read(Path(f"{name}.wav")) for name in ("smooth", "same", "paper"))
    np.testing.assert_array_equal(smooth, same)
    assert not np.array_equal(smooth, paper)
    code, _, err = run(*base, "-o", "x.wav", "--strength", "2")
    assert code == 2
    assert "strength is 2" in err


def test_the_noise_model_is_a_setting_of_every_scheme_that_has_one() -> None:
    """By name, by settings, and inside the `mcem` of Pyro's schemes."""
    for name in ("vem", "collapsed_vem", "mcem", "ldem", "peem", "importance", "amortised_vem"):
        assert build_scheme(name, {}, noise="paper").noise == NOISE_MODELS["paper"]  # type: ignore[attr-defined]
        built = build_scheme(name, {"noise": {"rank": 3, "smoothness": 5.0}})
        assert built.noise == NoiseModel(rank=3, smoothness=5.0)  # type: ignore[attr-defined]
    for name in ("nuts", "auto_normal"):
        built = build_scheme(name, {}, noise="paper")
        assert built.mcem.noise == NOISE_MODELS["paper"]  # type: ignore[attr-defined]
    with pytest.raises(
        InputError,
        match=r"no setting 'ranks': known are rank, .*; did you mean 'rank'",
    ):
        build_scheme("vem", {"noise": {"ranks": 3}})


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"pyro-avse {pyro_avse.__version__}\n", "")
    assert "enhance" in run("--help")[1]
    assert run() == (2, "", "pyro-avse: error: no command is given: see pyro-avse --help\n")


def test_what_was_used_is_cited() -> None:
    """Every model and scheme has its papers, each once and in whole entries; the file for citing has the version."""
    for name in (*MODELS, *SCHEMES):
        found = pyro_avse.cite(name)
        assert found.count("@") >= 2, name
        assert found.count("{") == found.count("}")
    both = pyro_avse.cite("min_vae_v2", "vem")
    assert both.count("sadeghi2021min") == 1
    assert pyro_avse.__version__ in both
    assert pyro_avse.cite() == pyro_avse.cite("min_vae_v2", "guided")
    with pytest.raises(InputError, match="did you mean 'mcem'"):
        pyro_avse.cite("mcme")
    root = Path(__file__).resolve().parents[1]
    assert f"version: {pyro_avse.__version__}\n" in (root / "CITATION.cff").read_text()


def test_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown once and then redrawn, with the text as text."""
    display = pytest.importorskip("IPython.display", reason="IPython is not installed")
    drawn: list[tuple[str, str]] = []

    class Shown:
        def update(self, bar: Any) -> None:
            drawn.append(("again", bar.data))

    def show(bar: Any, *, display_id: bool) -> Shown:
        drawn.append(("new", bar.data))
        return Shown()

    monkeypatch.setattr(display, "display", show)
    update = notebook_bar()
    update(0.5, "1 of <2>")
    update(1.0, "done")
    assert [how for how, _ in drawn] == ["new", "again"]
    assert 'value="0.5000"' in drawn[0][1]
    assert "1 of &lt;2&gt;" in drawn[0][1]


def test_near_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest name and all names; a model that exists without bundled weights says so."""
    for call, said in (
        (lambda: find_weights("min_vae2"), "known are a_vae"),
        (lambda: find_scheme("mcme"), "did you mean 'mcem'?"),
        (lambda: find_kernel("gibs"), "did you mean 'gibbs'?"),
        (lambda: find_kernel("xyz"), "unknown kernel 'xyz': known are "),
        (lambda: find_scheme("vem", iteration=2), "did you mean 'iterations'?"),
        (lambda: pyro_avse.load_recipe("default/a_vea"), "did you mean 'default/a_vae'?"),
    ):
        with pytest.raises(InputError) as refusal:
            call()
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)
    monkeypatch.setitem(MODELS, "three_kinds", MODELS["a_vae"])
    with pytest.raises(InputError, match="three_kinds exists, but no weights of it are bundled"):
        find_weights("three_kinds")


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2"])
def test_printing_is_five_lines(name: str, tiny_prior: Callable[..., Any]) -> None:
    """Of a result and of its separation: no wall of tensors. A notebook has players and a figure."""
    mixture = np.random.default_rng(0).standard_normal(16000)
    mouths = np.zeros((25, 67, 67), np.uint8)
    enhancer = Enhancer(tiny_prior(name), LDEM(**QUICK), device="cpu")  # type: ignore[arg-type]
    result = enhancer(mixture, mouths, 25.0)
    for printed in (repr(result), repr(result.separation)):
        lines = printed.splitlines()
        assert len(lines) == 5
        assert max(map(len, lines)) < 80
    assert "1.00 s at 16000 Hz" in repr(result)
    assert "chains disagree in" in repr(result)
    assert "4 chains of 8 draws" in repr(result.separation)
    page = result._repr_html_()
    assert page.count("<audio controls") == 3
    assert page.count('<img alt=""') == 1
    assert "1.00 s" in page
    batch = enhancer.batch([enhancer.prepare(mixture, mouths, 25.0)] * 2)
    assert len(repr(batch[0].separation).splitlines()) == 5
