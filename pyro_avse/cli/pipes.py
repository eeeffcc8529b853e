"""`-` as a file: what comes in by stdin, and what goes out by stdout.

Containers say where their parts are, and programs that read them jump: a pipe is kept in a temporary file meanwhile.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pyro_avse.errors import InputError

PIPE = "-"


@contextmanager
def piped(
    noisy: Path, output: Path | None, say: Callable[[str], None]
) -> Iterator[tuple[Path, Path | None, Callable[[str], None]]]:
    """Files in place of pipes, and a `say` that calls them stdin and stdout; stdout is written when all went well.

    Raises InputError for an empty stdin; its other refusals have the pipes' names, too.
    """
    if PIPE not in (str(noisy), str(output)):
        yield noisy, output, say
        return
    with TemporaryDirectory(prefix="pyro_avse_") as folder:
        names = {f"{folder}/": ""}

        def plain(text: str) -> str:
            for path, name in names.items():
                text = text.replace(path, name)
            return text

        if str(noisy) == PIPE:
            noisy = Path(folder) / "stdin"
            with noisy.open("wb") as kept:
                shutil.copyfileobj(sys.stdin.buffer, kept)
            if noisy.stat().st_size == 0:
                raise InputError("stdin is empty: pipe a recording into it")
        place = Path(folder) / "stdout.wav" if str(output) == PIPE else output
        try:
            yield noisy, place, lambda line: say(plain(line))
        except InputError as refusal:
            raise InputError(plain(str(refusal))) from None
        if str(output) == PIPE and place is not None:
            with place.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
