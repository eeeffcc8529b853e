"""The page: one recording, and three ways to look at it.

What a visitor makes lies in a folder of the visit, whose name nobody else knows; it goes when the visitor does. One
enhancement runs at a time, and the others wait. Nothing in the page asks another server for anything.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from pyro_avse.app.work import OFFERED, Outcome, Step, bundled_clip, em_steps, enhance_upload
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.files import SOUNDS, VIDEOS
from pyro_avse.typing import InputError
from pyro_avse.weights.cards import load_cards

INTRO = """# pyro_avse
Speech comes out of noise. The program knows what speech and lips are like; the noise it learns from your recording
alone. Drop a sound or a video of one person who speaks, or take the bundled clip: a synthetic talker in a workshop."""
STEPPING = """The program guesses the speech, then the noise, and again. Drag the step: this would come out if it ended
there."""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Of every event: the page is for people."""
SILENT: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
"""Of the slider's: they wait for nobody."""
KEPT = 3600
"""Seconds that a file uploaded stays at most."""


def build_page(folder: Path, *, longest: float, threads: int) -> gr.Blocks:
    """The page, whose files lie in `folder`.

    Args:
        longest: seconds that a recording may last.
        threads: of one enhancement.
    """
    desk, cards = Desk(folder, longest, threads), load_cards()
    listening = [name for name, card in cards.items() if card["lips"] == "none"]
    with gr.Blocks(title="pyro_avse", analytics_enabled=False, delete_cache=(600, KEPT)) as page:
        page.unload(desk.clear)
        gr.Markdown(INTRO)
        with gr.Row():
            source = gr.File(
                label=f"A sound or a video, at most {longest:g} s",
                file_types=sorted(SOUNDS | VIDEOS),
                height=160,
                elem_id="source",
            )
            with gr.Column():
                model = gr.Dropdown(
                    list(cards),
                    value=DEFAULT_MODEL,
                    label="Model",
                    info=f"{', '.join(listening)} only listen; the others look at the lips too",
                )
                clip = gr.Button("Take the bundled clip", elem_id="clip")
        clip.click(desk.clip, None, source, **PRIVATE)
        with gr.Tab("Listen"):
            with gr.Row():
                scheme = _schemes("Inference scheme", DEFAULT_INFERENCE)
                strength = gr.Slider(
                    0,
                    1,
                    1,
                    step=0.05,
                    label="Strength",
                    info="0: the recording; 1: all noise found goes",
                )
            go = gr.Button("Enhance", variant="primary", elem_id="go")
            outcome = _panel("listen")
            files = gr.File(label="Download", file_count="multiple", interactive=False)
            inputs = [source, model, scheme, strength]
            go.click(desk.listen, inputs, [*outcome, files], show_progress_on=outcome[3], **PRIVATE)
        with gr.Tab("Compare two schemes"):
            with gr.Row():
                first, second = _schemes("One", DEFAULT_INFERENCE), _schemes("The other", "vem")
            both = gr.Button("Compare", variant="primary", elem_id="both")
            with gr.Row():
                with gr.Column():
                    left = _panel("left")
                with gr.Column():
                    right = _panel("right")
            inputs, shown = [source, model, first, second], [left[3], right[3]]
            both.click(desk.compare, inputs, [*left, *right], show_progress_on=shown, **PRIVATE)
        with gr.Tab("One EM step at a time"):
            gr.Markdown(STEPPING)
            stepped = _schemes("Inference scheme", "vem")
            start = gr.Button("Run all steps", variant="primary", elem_id="start")
            place = gr.Slider(1, 2, 1, step=1, label="Step", interactive=False, elem_id="step")
            picture = _image("steps-figure")
            with gr.Row():
                sounds = [_player("Speech", "steps-speech"), _player("Noise", "steps-noise")]
            steps = gr.State([])
            results = [steps, place, picture, *sounds]
            inputs = [source, model, stepped]
            start.click(desk.steps, inputs, results, show_progress_on=picture, **PRIVATE)
            place.change(_pictured, [steps, place], picture, trigger_mode="always_last", **SILENT)
            place.release(_heard, [steps, place], sounds, **SILENT)
    return page.queue(max_size=20, default_concurrency_limit=1)


class Desk:
    """What the buttons do, each visit in a folder of its own."""

    def __init__(self, folder: Path, longest: float, threads: int) -> None:
        self.folder, self.longest, self.threads = folder, longest, threads

    def listen(
        self,
        path: str | None,
        model: str,
        scheme: str,
        strength: float,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008  how Gradio hands one in
    ) -> list[Any]:
        """Of the first tab."""
        options = {"model": model, "scheme": scheme, "strength": strength}
        found = self._work(enhance_upload, request, path, options, bar)
        return [*_shown(found), [str(file) for file in found.downloads]]

    def compare(
        self,
        path: str | None,
        model: str,
        one: str,
        other: str,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Of the second: one after the other."""
        shown = []
        for number, scheme in enumerate((one, other)):
            options = {"model": model, "scheme": scheme, "strength": 1.0}
            told = f"{number + 1} of 2, {scheme}: "
            shown += _shown(self._work(enhance_upload, request, path, options, bar, told))
        return shown

    def steps(
        self,
        path: str | None,
        model: str,
        scheme: str,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Of the third, which stands at the last step."""
        steps = self._work(em_steps, request, path, {"model": model, "scheme": scheme}, bar)
        last = len(steps)
        slider = gr.Slider(maximum=last, value=last, interactive=last > 1)
        return [steps, slider, _pictured(steps, last), *_heard(steps, last)]

    def clip(self, request: gr.Request) -> str:
        """The bundled recording, as if it had been dropped."""
        return str(bundled_clip(self._place(request)))

    def clear(self, request: gr.Request) -> None:
        """A visitor has left."""
        shutil.rmtree(self._visit(request), ignore_errors=True)

    def _visit(self, request: gr.Request) -> Path:
        return self.folder / hashlib.sha256(str(request.session_hash).encode()).hexdigest()

    def _place(self, request: gr.Request) -> Path:
        visit = self._visit(request)
        visit.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=visit))

    def _work(
        self,
        work: Callable[..., Any],
        request: gr.Request,
        path: str | None,
        options: Mapping[str, Any],
        bar: Any,
        told: str = "",
    ) -> Any:
        """One piece of work; a refusal is said in the page."""
        if path is None:
            raise _refusal("drop a recording first, or take the bundled clip")
        torch.set_num_threads(self.threads)  # of this thread, which Gradio has made
        place = self._place(request)
        try:
            return work(
                Path(path),
                place,
                longest=self.longest,
                progress=lambda done, text: bar(done, desc=told + text),
                **options,
            )
        except InputError as refusal:
            shutil.rmtree(place)
            said = str(refusal).replace(f"{Path(path).parent}/", "")
            raise _refusal(said) from None


def _refusal(said: str) -> gr.Error:
    return gr.Error(escape(said), duration=30, print_exception=False)


def _schemes(label: str, value: str) -> gr.Dropdown:
    return gr.Dropdown(list(OFFERED), value=value, label=label)


def _panel(name: str) -> list[Any]:
    """Where an `Outcome` is shown."""
    with gr.Row():
        names = ("Noisy", "Enhanced", "Noise")
        sounds = [_player(what, f"{name}-{what.lower()}") for what in names]
    figures = [_image(f"{name}-figure"), _image(f"{name}-doubt")]
    return [*sounds, *figures, gr.Textbox(label="What was found", lines=4)]


def _shown(outcome: Outcome) -> list[Any]:
    doubt = None if outcome.doubt is None else str(outcome.doubt)
    files = (outcome.noisy, outcome.speech, outcome.noise, outcome.figure)
    return [*(str(file) for file in files), doubt, outcome.said]


def _player(label: str, name: str) -> gr.Audio:
    return gr.Audio(
        label=label,
        type="filepath",
        interactive=False,
        elem_id=name,
        buttons=["download"],
        min_width=250,
    )


def _image(name: str) -> gr.Image:
    return gr.Image(
        show_label=False,
        type="filepath",
        interactive=False,
        elem_id=name,
        buttons=["download", "fullscreen"],
    )


def _pictured(steps: list[Step], place: int) -> str | None:
    return str(steps[place - 1].figure) if 0 < place <= len(steps) else None


def _heard(steps: list[Step], place: int) -> list[str | None]:
    if not 0 < place <= len(steps):
        return [None, None]
    return [str(steps[place - 1].speech), str(steps[place - 1].noise)]
