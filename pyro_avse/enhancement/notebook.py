"""A progress bar for notebooks, which needs no widgets.

    pyro_avse.enhance(mixture, lips, fps, progress=notebook_bar())

It is what every `progress=` that is told a fraction and a text may be.
"""

from collections.abc import Callable
from html import escape


def notebook_bar() -> Callable[[float, str], None]:
    """A bar that appears when it is first told something, and is redrawn in place."""
    shown = None

    def update(done: float, text: str) -> None:
        nonlocal shown
        from IPython.display import HTML, display

        bar = HTML(f'<progress value="{done:.4f}" max="1"></progress> {escape(text)}')
        if shown is None:
            shown = display(bar, display_id=True)
        else:
            shown.update(bar)

    return update
