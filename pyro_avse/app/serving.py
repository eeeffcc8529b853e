"""The page on a port: on this machine alone unless told otherwise, without a word to any other.

A browser is told by a Content-Security-Policy to load nothing from elsewhere; Gradio's statistics are off.
"""

import os
import socket
import tempfile
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
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="pyro_avse_app_", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio as gr
            from starlette.middleware import Middleware
        except ImportError as error:
            raise InputError(f"{error}: pip install 'pyro_avse[app]'") from None
        from pyro_avse.app.page import build_page

        page = build_page(Path(folder), longest=longest, threads=threads)
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        theme.set(body_text_color_subdued="*neutral_600")
        try:
            page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                max_file_size=f"{MOST_MEGABYTES}mb",
                footer_links=[],
                ssr_mode=False,
                theme=theme,
                app_kwargs={"middleware": [Middleware(OnlyHere)]},
            )
            yield f"http://{host}:{port}/"
        finally:
            page.close(verbose=False)


def free_port(host: str, port: int) -> int:
    """The port, or any that is free for 0. Raises InputError where it cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"{host}:{port} cannot be had ({error}): give another --port"
            ) from None
        return int(probe.getsockname()[1])


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
