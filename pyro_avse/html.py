"""One self-contained HTML page: tables, sound players and figures, with nothing outside the file.

Every function but `page` returns a piece of HTML; `page` joins pieces. Text is escaped, so that any name may be shown.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.plots import png

STYLE = """
body { font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .7em; text-align: right }
th:first-child, td:first-child { text-align: left } thead { border-bottom: 2px solid #888 }
tr:nth-child(even) { background: #f3f3f3 } img { max-width: 100% } audio { vertical-align: middle }
"""


def page(title: str, *pieces: str) -> bytes:
    """The whole file, UTF-8."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *pieces])
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>{body}</body></html>\n".encode(
        errors="backslashreplace"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; `rows` may hold pieces that `player` or `picture` made."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def player(waveform: Float[np.ndarray, "sample"], sample_rate: int = SAMPLE_RATE) -> str:
    """A player of a waveform whose samples lie within [-1, 1]; what lies outside is clipped. 16 bits, FLAC."""
    import soundfile

    buffer = io.BytesIO()
    sound = np.clip(waveform, -1, 1)
    soundfile.write(buffer, sound, sample_rate, format="FLAC", subtype="PCM_16")
    return Piece(f'<audio controls src="{_data("audio/flac", buffer.getvalue())}"></audio>')


def picture(figure: Figure) -> str:
    return Piece(f'<img alt="" src="{_data("image/png", png(figure))}">')


class Piece(str):
    """HTML, which a table shows as it is: any other string is text."""


def _cell(content: str) -> str:
    return f"<td>{content if isinstance(content, Piece) else escape(content)}</td>"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
