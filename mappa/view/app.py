"""`mappa view`: the page on a loopback port. Nothing is fetched from elsewhere, and nothing but reading can be asked.

What models wrote is data to the page: it comes as JSON, is put on it as text alone, and the content security policy
lets no script run but the page's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from mappa.errors import ServerError
from mappa.view.answers import Answers

if TYPE_CHECKING:
    from starlette.applications import Starlette

EVERY = 1.0
"""Seconds between looks at the journal."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SCRIPTS = ("base", "charts", "run", "actions", "episode", "bias", "timeline", "page")
"""Files that app.js is made of, in their order."""
_LAST_PORT = 65535
_TYPES = {"index.html": "text/html", "app.css": "text/css", "app.js": "text/javascript"}


def static(name: str) -> str:
    """A file of the page; `app.js` is all of its scripts in one."""
    folder = files("mappa.view") / "static"
    names = [f"{part}.js" for part in _SCRIPTS] if name == "app.js" else [name]
    return "\n".join((folder / part).read_text(encoding="utf-8") for part in names)


def make_app(answers: Answers) -> Starlette:
    """Serves the page and its answers, and keeps up with the journal while it lives. Raises ServerError."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise ServerError(f"the page needs starlette and uvicorn ({error}); pip install starlette uvicorn") from None

    async def page(request: Request) -> Response:
        name = request.url.path.strip("/") or "index.html"
        return Response(static(name), media_type=_TYPES[name], headers=HEADERS)

    async def ask(request: Request) -> Response:
        status, body = await run_in_threadpool(answers.ask, request.path_params["name"], dict(request.query_params))
        return Response(body, status, media_type="application/json", headers=HEADERS)

    async def trace(request: Request) -> Response:
        body = await run_in_threadpool(answers.trace)
        attached = {"Content-Disposition": 'attachment; filename="trace.json"'}
        return Response(body, media_type="application/json", headers=HEADERS | attached)

    @contextlib.asynccontextmanager
    async def keeping_up(app: Starlette) -> AsyncIterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=answers.keep_up, args=(stop, EVERY), name="view", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    return Starlette(
        routes=[
            *(Route(path, page) for path in ("/", "/app.css", "/app.js")),
            Route("/api/{name}", ask),
            Route("/trace.json", trace),
        ],
        # A name that somebody else's DNS points at this machine is not answered.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        lifespan=keeping_up,
    )


def serve(answers: Answers, port: int, said: Callable[[str], None]) -> None:
    """Until Ctrl-C. `said` gets the page's address once it answers. Raises ServerError where the port is taken."""
    import socket

    if not 0 <= port <= _LAST_PORT:
        raise ServerError(f"port {port} cannot be used: there are 1..{_LAST_PORT}; give another --port, 0 for any")
    app = make_app(answers)
    import uvicorn

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ServerError(f"port {port} cannot be used: {error.strerror}; give another --port, 0 for any") from None
    said(f"http://127.0.0.1:{listening.getsockname()[1]}")
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
