"""The viewer's server: this machine alone, behind a random token, and nothing but what was named."""

from __future__ import annotations

import gzip
import hmac
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from geoseg.errors import ConfigError, GeosegError, reason
from geoseg.view.session import Session

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_HOSTS = frozenset({HOST, "localhost"})
_MOST_BODY = 64 << 20
_MOST_PATH = 200

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PAGE = {
    "": ("geoseg.view", "page/page.html", "text/html; charset=utf-8"),
    "page.css": ("geoseg.view", "page/page.css", "text/css; charset=utf-8"),
    "page.js": ("geoseg.view", "page/page.js", "text/javascript; charset=utf-8"),
    "maplibre-gl.js": ("maplibre", "srcjs/maplibre-gl.js", "text/javascript; charset=utf-8"),
    "maplibre-gl.css": ("maplibre", "srcjs/maplibre-gl.css", "text/css; charset=utf-8"),
}
"""What the page is made of: package, file, media type of each name."""


@cache
def page_file(name: str) -> bytes:
    """A file of the page."""
    package, path, _ = PAGE[name]
    spec = find_spec(package)  # which does not import it: maplibre's own Python would load pandas and more
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name(path.split("/")[0]).joinpath(path.split("/")[1]).read_bytes()


def app(session: Session, token: str) -> _Guard:
    """The ASGI application of a session, whose paths all begin with the token."""

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in PAGE:
            raise HTTPException(403)
        headers = {"Content-Security-Policy": _policy(session.basemap)} if not name else {}
        return Response(page_file(name), media_type=PAGE[name][2], headers=headers)

    async def state(request: Request) -> Response:
        return _json(await run_in_threadpool(session.facts))

    async def tile(request: Request) -> Response:
        number, z, x, y, band = (request.path_params[key] for key in ("number", "z", "x", "y", "band"))
        if z > 30 or x >= 2**z or y >= 2**z:
            raise HTTPException(403)
        try:
            found = await run_in_threadpool(session.tile, number, z, x, y, band)
        except GeosegError as error:
            return _refusal(error)
        except Exception as error:  # a file that is being replaced may be anything for a moment
            log.info("tile %d/%d/%d/%d: %s", number, z, x, y, error)
            return JSONResponse({"error": f"a tile cannot be read: {error}"}, 409)
        if found is None:
            return Response(status_code=204)
        body, kind = found
        headers = {"Cache-Control": "private, max-age=3600"}  # the address changes with the file
        if not kind.startswith("image/"):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return Response(body, media_type=kind, headers=headers)

    async def corrections(request: Request) -> Response:
        number = request.path_params["number"]
        try:
            if request.method == "GET":
                found, known = await run_in_threadpool(session.corrections, number)
                return _json({"collection": found, "state": known})
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BODY:
                    raise ConfigError("the corrections are too large")
            asked = orjson.loads(body)
            return _json({"state": await run_in_threadpool(session.correct, number, asked["features"], asked["state"])})
        except GeosegError as error:
            return _refusal(error)
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            return JSONResponse({"error": f"the request cannot be read: {error}"}, 400)

    async def refused(request: Request, error: Exception) -> Response:
        return Response("403: not part of this viewer", 403)

    routes = [
        Route("/", page),
        Route("/state", state),
        Route("/tiles/{number:int}/{z:int}/{x:int}/{y:int}/{band:int}", tile),
        Route("/corrections/{number:int}", corrections, methods=["GET", "PUT"]),
        Route("/{name}", page),
    ]
    handlers: dict[Any, Any] = {HTTPException: refused}
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return _Guard(inner, token)


class _Guard:
    """Passes on what comes for this host and behind the token; all else gets 403."""

    def __init__(self, inner: Starlette, token: str) -> None:
        self._inner = inner
        self._prefix = f"/{token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not self._is_allowed(scope):
            await Response("403: open the address that geoseg view printed", 403)(scope, receive, send)
            return
        inner = {**scope, "path": scope["path"].removeprefix(self._prefix), "raw_path": b"", "root_path": ""}

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._inner(inner, receive, send_safely)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_own = not origin or origin.partition("://")[2].rsplit(":", 1)[0] in _HOSTS
        path, prefix = scope["path"].encode(), self._prefix.encode()
        has_token = hmac.compare_digest(path[: len(prefix)], prefix) and path[len(prefix) : len(prefix) + 1] == b"/"
        return host in _HOSTS and is_own and has_token and len(path) <= _MOST_PATH


class Server:
    """A server of one session, bound to this machine; a `ConfigError` if the port cannot be used, 0 takes a free one.

    Attributes:
        address: What to open in a browser.
    """

    def __init__(self, session: Session, port: int = 0) -> None:
        self._session = session
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
            self._socket.listen()  # so that a browser that comes early waits
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigError(
                f"port {port} cannot be used: {reason(error)}",
                hint="leave out --port, and a free one is taken",
            ) from error
        token = secrets.token_urlsafe(16)
        self.address = f"http://{HOST}:{self._socket.getsockname()[1]}/{token}/"
        config = uvicorn.Config(
            app(session, token), log_level="critical", lifespan="off", access_log=False, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self, *, browser: bool = False) -> None:
        """Serve until Ctrl-C."""
        self._session.start()
        if browser:
            threading.Timer(0.2, webbrowser.open, [self.address]).start()
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            log.debug("ended by Ctrl-C")

    def start(self) -> None:
        """Serve in a thread, until `stop` or the end of the process."""
        self._session.start()
        run = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run, name="geoseg-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(5)


def _policy(basemap: str | None) -> str:
    """The page's content security policy: itself alone, and the background map that was asked for."""
    outside = f" {basemap.split('{')[0].rsplit('/', 1)[0]}/" if basemap else ""
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'{outside}; "
        f"img-src 'self' data: blob:{outside}; worker-src blob:; child-src blob:; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def _refusal(error: GeosegError) -> Response:
    return JSONResponse({"error": error.message, "hint": error.hint}, 409)
