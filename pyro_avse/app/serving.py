"""The page on a port: on this machine alone unless told otherwise, without a word to any other.

A browser is told by a Content-Security-Policy to load nothing from elsewhere; Gradio's statistics are off.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_avse.errors import InputError

MOST_MEGABYTES = 100
"""Of a file."""
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'"
"""What a browser may load: Gradio's own scripts stand in its page."""


@contextmanager
def serving(host: str, port: int, *, longest: float = 30.0, threads: int = 1) -> Iterator[str]:
    """Serve the page meanwhile, and then remove all that was made; its address.

    Args:
        port: 0 for any that is free.
        longest: seconds that a recording may last.
        threads: of one enhancement.

    Raises:
        InputError: Gradio is not installed, or the port cannot be had.
    """
    door = open_door(host, port)
    with (
        door,
        tempfile.TemporaryDirectory(prefix="pyro_avse_app_", ignore_cleanup_errors=True) as place,
    ):
        os.environ |= {"GRADIO_TEMP_DIR": place, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio as gr
            import uvicorn
            from fastapi import FastAPI
            from starlette.middleware import Middleware
        except ImportError as error:
            raise InputError(f"{error}: pip install 'pyro_avse[app]'") from None
        from pyro_avse.app.page import build_page

        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        theme.set(body_text_color_subdued="*neutral_600")
        app = gr.mount_gradio_app(
            FastAPI(middleware=[Middleware(OnlyHere)]),
            build_page(Path(place), longest=longest, threads=threads),
            path="/",
            server_name=host,
            server_port=door.getsockname()[1],
            show_error=False,
            max_file_size=f"{MOST_MEGABYTES}mb",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            theme=theme,
        )
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            yield f"http://{host}:{door.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def open_door(host: str, port: int) -> socket.socket:
    """A socket on the port, or on any that is free for 0. Raises InputError where it cannot be had."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise InputError(f"{host}:{port} cannot be had ({error}): give another --port") from None
    return door


class OnlyHere:
    """ASGI: every answer carries the policy."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY)]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, sending)
