"""The page to play with: what it computes, whom it lets in, and the page itself in a real browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pyro_avse.app import work
from pyro_avse.app.serving import serving
from pyro_avse.app.work import bundled_clip, em_steps, enhance_upload
from pyro_avse.data.media.audio import load_audio
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference import VEM
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior

OPTIONS: dict[str, Any] = {"model": "a_vae", "scheme": "guided", "longest": 30.0}


def untold(done: float, text: str) -> None:
    assert 0 <= done <= 1
    assert text


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A second of a tone that comes and goes, in noise."""
    rng, seconds = np.random.default_rng(0), np.arange(16000) / 16000
    sound = np.sin(2 * np.pi * 300 * seconds) * np.sin(2 * np.pi * 2 * seconds) ** 2
    path = tmp_path / "short.wav"
    soundfile.write(path, 0.3 * sound + 0.05 * rng.standard_normal(16000), 16000)
    return path


def test_the_bundled_clip_is_enhanced_with_its_lips(tmp_path: Path) -> None:
    """Speech and noise sum to what is heard as noisy; half the strength is half way; progress is told."""
    clip, told = bundled_clip(tmp_path), []
    for strength in (1.0, 0.5):
        place = tmp_path / str(strength)
        place.mkdir()
        options = OPTIONS | {"model": "min_vae_v2", "strength": strength}
        found = enhance_upload(clip, place, progress=lambda _, text: told.append(text), **options)
        np.testing.assert_allclose(read(found.speech) + read(found.noise), read(clip), atol=1e-6)
        np.testing.assert_allclose(read(found.noisy), read(clip), atol=1e-6)
        for figure in (found.figure, found.doubt):
            assert figure is not None
            assert figure.read_bytes().startswith(b"\x89PNG")
        assert found.downloads == [found.speech]
        assert str(tmp_path) not in found.said
    whole, half = (read(tmp_path / name / "enhanced.wav") for name in ("1.0", "0.5"))
    np.testing.assert_allclose(half, 0.5 * (read(clip) + whole), atol=1e-6)
    assert "EM iteration 2 of 4" in told


def test_a_video_comes_back_as_a_video(
    tmp_path: Path, short: Path, make_video: Callable[..., Path]
) -> None:
    """Its pictures under the speech, beside the sound alone."""
    pictures = np.random.default_rng(1).integers(0, 256, (25, 48, 64), dtype=np.uint8)
    path = make_video(tmp_path / "talk.mp4", pictures, sound=read(short))
    (tmp_path / "out").mkdir()
    options = OPTIONS | {"scheme": "peem", "strength": 1.0}
    found = enhance_upload(path, tmp_path / "out", progress=untold, **options)
    assert found.doubt is None  # this scheme draws nothing
    sound, video = found.downloads
    assert (sound.suffix, video.name) == (".wav", "talk.mp4")
    assert abs(load_audio(video).num_samples - len(read(sound))) < 2048


def test_the_slider_ends_at_what_the_scheme_returns(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `vem`, whose last E-step draws nothing; steps between are evenly apart, and the last is always there."""
    prior, stft = load_prior("a_vae")
    scheme = VEM(iterations=5, warmup=2, draws=2)
    monkeypatch.setattr(work, "find_scheme", lambda name: scheme)
    monkeypatch.setattr(work, "MOST_STEPS", 3)
    found = em_steps(short, tmp_path, progress=untold, **OPTIONS | {"scheme": "vem"})
    assert [step.iteration for step in found] == [2, 4, 5]
    whole = Enhancer(prior, scheme, stft=stft)(load_audio(short))
    np.testing.assert_allclose(read(found[-1].speech), whole.speech, atol=1e-6)
    assert not np.allclose(read(found[0].speech), whole.speech, atol=1e-4)


def test_what_is_too_long_is_refused(tmp_path: Path, short: Path) -> None:
    """By its header; and by its sound, where the header says nothing of its length."""
    said = "lasts 1 s and this page takes 0.5: cut it, or use pyro-avse enhance"
    raw = tmp_path / "raw.mp3"
    soundfile.write(raw, np.tile(read(short), 2), 16000)
    for path, lasts in ((short, said), (raw, "raw.mp3 lasts 2 s")):
        with pytest.raises(InputError, match=lasts):
            enhance_upload(
                path, tmp_path, strength=1.0, progress=untold, **OPTIONS | {"longest": 0.5}
            )
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"text\.wav"):
        enhance_upload(tmp_path / "text.wav", tmp_path, strength=1.0, progress=untold, **OPTIONS)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of `pyro-avse app` on a free port; told to end, it leaves no file."""
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    folder = tmp_path_factory.mktemp("page")
    code = "from pyro_avse.cli import main; main()"
    command = [sys.executable, "-c", code, "app", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)}
    ) as server:
        try:
            said = server.stderr.readline()  # type: ignore[union-attr]
            assert said.startswith("pyro-avse: open http://127.0.0.1:"), said
            assert list(folder.glob("pyro_avse_app_*"))
            yield said.split()[2]
        finally:
            server.terminate()
    assert server.returncode == 128 + signal.SIGTERM
    assert not list(folder.glob("pyro_avse_app_*"))


@pytest.mark.long
def test_a_browser_is_told_to_load_nothing_from_elsewhere(address: str) -> None:
    """Its policy names this server alone; a second page on the port is refused; no statistics."""
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    with urllib.request.urlopen(f"{address}config") as answer:
        assert json.load(answer)["analytics_enabled"] is False
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match="give another --port"), serving("127.0.0.1", port):
        pass


class Visitor:
    """A browser of its own, 1200 pixels wide."""

    def __init__(self, address: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (
            "headless=new",
            "no-sandbox",
            "disable-dev-shm-usage",
            "window-size=1200,1000",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.browser = webdriver.Chrome(options=options, service=service)
        self.browser.get(address)
        self.wait(lambda: self.all("#clip"))

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def wait(self, until: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(
            self.browser, 120, ignored_exceptions=[StaleElementReferenceException]
        )
        return patient.until(lambda _: until())

    def click(self, selector: str) -> None:
        self.wait(lambda: self.all(selector))[0].click()

    def tab(self, name: str) -> None:
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()

    def drop(self, path: Path) -> None:
        self.all("#source input[type=file]")[0].send_keys(str(path))
        self.wait(lambda: path.stem in self.all("#source")[0].text)

    def picture(self, name: str) -> str:
        """The address of a figure, once it is there."""
        return self.wait(lambda: self.all(f"#{name} img"))[0].get_attribute("src")

    def asked(self) -> list[str]:
        """The addresses that the browser went to."""
        log = (
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        )
        sent = (m["params"] for m in log if m["method"] == "Network.requestWillBeSent")
        return [m["request"]["url"] for m in sent]


@pytest.fixture
def visitors(address: str) -> Iterator[Callable[[], Visitor]]:
    """Makes visitors, who leave in the end."""
    pytest.importorskip("selenium", reason="Selenium is not installed: the page is not tried")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: the page is not tried in a browser")
    came: list[Visitor] = []

    def come() -> Visitor:
        came.append(Visitor(address))
        return came[-1]

    yield come
    for visitor in came:
        visitor.browser.quit()


@pytest.mark.long
def test_two_visitors_in_a_browser(
    address: str, visitors: Callable[[], Visitor], short: Path
) -> None:
    """Each hears what it brought and nothing else; the three tabs work; nobody is asked but this server."""
    one, other = visitors(), visitors()
    one.click("#clip")
    one.wait(lambda: "bundled_clip" in one.all("#source")[0].text)
    other.drop(short)
    one.click("#go")
    first = one.picture("listen-figure")
    assert not other.all("#listen-figure img")
    other.click("#go")
    second = other.picture("listen-figure")
    assert one.picture("listen-figure") == first
    assert first.split("/")[-3] != second.split("/")[-3]  # the folder of a visit
    assert "short.wav: 1.00 s" in other.all("textarea")[0].get_attribute("value")
    assert "bundled_clip.wav: 3.50 s" in one.all("textarea")[0].get_attribute("value")

    other.tab("Compare two schemes")
    other.click("#both")
    assert other.picture("left-figure") != other.picture("right-figure")
    other.tab("One EM step at a time")
    other.click("#start")
    last = other.picture("steps-figure")
    slider = other.all("#step input[type=range]")[0]
    assert slider.get_attribute("value") == slider.get_attribute("max")
    slider.send_keys("\ue012")  # the left arrow
    other.wait(lambda: other.picture("steps-figure") != last)

    ours = (address, "data:", "blob:", "chrome:", "about:")
    for visitor in (one, other):
        assert [url for url in visitor.asked() if not url.startswith(ours)] == []
    with urllib.request.urlopen(second) as answer:
        assert answer.status == 200
    visit = Path(second.split("file=")[1]).parents[1]
    assert visit.is_dir()
    other.browser.get("about:blank")
    other.wait(lambda: not visit.exists())
    assert Path(first.split("file=")[1]).exists()


@pytest.mark.long
def test_a_refusal_is_said_in_the_page(visitors: Callable[[], Visitor], tmp_path: Path) -> None:
    """In one line that names the file and not its folder; nothing dropped is said, too."""
    visitor = visitors()
    visitor.click("#go")
    visitor.wait(lambda: "drop a recording first" in visitor.all("body")[0].text)
    (tmp_path / "text.wav").write_text("no sound")
    visitor.drop(tmp_path / "text.wav")
    visitor.click("#go")
    said = visitor.wait(
        lambda: [t.text for t in visitor.all(".toast-wrap") if "text.wav" in t.text]
    )
    assert "/text.wav" not in said[0]
