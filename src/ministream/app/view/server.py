"""The web server of the page: one process, any number of browsers, all of which need the token."""

from __future__ import annotations

import hmac
import logging
import secrets
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlencode

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.server.auth_provider import AuthProvider
from bokeh.server.server import Server
from tornado.web import HTTPError, RequestHandler

from ministream import log
from ministream.errors import ConfigError
from ministream.view.feed import Feed
from ministream.view.page import Page, Wanted
from ministream.view.steering import Steer

_LOG = log.get(__name__)

_FORM = """<!doctype html><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mini-Stream</title><body style="font: 16px system-ui; max-width: 34em; margin: 4em auto; padding: 0 1em">
<h1>Token required</h1><p>{what} Open the address that <code>ministream view</code> printed, or enter its token.</p>
<form method="post"><input name="token" type="password" aria-label="token" autofocus autocomplete="off">
<button>Open</button></form></body>"""


def serve(
    feed: AbstractContextManager[Feed],
    *,
    host: str,
    port: int,
    prefix: str,
    token: str | None,
    ready: Callable[[str, str], None],
    steer: Steer | None = None,
) -> None:
    """Serve the page until a signal ends the process; `ready` receives the addresses that open it.

    The first is for viewers; the second opens a page that also steers the job, by `steer`.

    The token is created if None. Raises ConfigError for an address that cannot be bound.
    """
    tokens = token or secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    doors = TokenAuthentication(*tokens, f"ministream-view-{secrets.token_hex(4)}")
    for library in ("bokeh", "tornado.access"):  # a browser that is closed is nothing to warn of
        logging.getLogger(library).setLevel(logging.ERROR)
    with feed as provider:
        wanted = Wanted(provider)
        server = _server(
            lambda document: Page(document, provider, wanted, steer if doors.admits_operator(document) else None),
            host,
            port,
            prefix,
            doors,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.io_loop.add_callback_from_signal(server.io_loop.stop))
        server.start()
        shown = f"[{host}]" if ":" in host else host
        base = f"http://{shown}:{server.port}/{prefix.strip('/')}".rstrip("/")
        viewers, operators = (f"{base}/?{urlencode({'token': each})}" for each in tokens)
        ready(viewers, operators)
        try:
            server.io_loop.start()
        finally:
            server.stop()


def _server(page: Callable[[Any], object], host: str, port: int, prefix: str, doors: TokenAuthentication) -> Server:
    def build(document: Any) -> None:
        page(document)

    try:
        return Server(
            {"/": Application(FunctionHandler(build))},
            address=host,
            port=port,
            prefix=prefix,
            auth_provider=doors,
            # A tunnel or a proxy changes the origin. The cookie, which other sites cannot send, is what protects.
            allow_websocket_origin=["*"],
            websocket_max_message_size=1 << 20,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot bind {host}:{port} ({error.strerror}): choose another port with --port, or 0 for any free one"
        ) from error


class TokenAuthentication(AuthProvider):  # type: ignore[misc]  # Bokeh's types are not followed
    """Admits requests that have the viewers' or the operator's token, in the address or in a cookie that it sets."""

    def __init__(self, token: str, operator: str, cookie: str) -> None:
        self._token, self._operator, self._cookie = token, operator, cookie
        super().__init__()

    def admits_operator(self, document: Any) -> bool:
        """Whether the request of a page has the operator's token; that in the address counts, before the cookie."""
        request = document.session_context.request
        given = [value.decode("ascii", "replace") for value in request.arguments.get("token", [])]
        token = given[0] if given else request.cookies.get(self._cookie, "")
        return hmac.compare_digest(token.encode(), self._operator.encode())

    @property
    def get_user(self) -> Callable[[RequestHandler], str | None]:
        """The check of a request."""
        return self._user

    @property
    def get_user_async(self) -> None:
        """None: the check does not wait."""

    @property
    def login_url(self) -> str:
        """Where requests without the token are sent."""
        return "/login"

    @property
    def get_login_url(self) -> None:
        """None: there is one address."""

    @property
    def login_handler(self) -> type[RequestHandler]:
        """The form that asks for the token."""
        admits, cookie = self._admits, self._cookie

        class Login(RequestHandler):  # type: ignore[misc]  # nor Tornado's
            """Asks for the token."""

            def get(self) -> None:
                self.set_status(403)
                self.write(_FORM.format(what="This page is protected."))

            def post(self) -> None:
                token = self.get_body_argument("token", "")
                if not admits(token):
                    self.set_status(403)
                    self.write(_FORM.format(what="This is not the token."))
                    return
                _remember(self, cookie, token)
                self.redirect(self.request.path.removesuffix("login"))

            def check_xsrf_cookie(self) -> None:
                """The form changes nothing for anyone who does not have the token."""

        return Login

    @property
    def logout_handler(self) -> None:
        """None: closing the browser is enough."""

    @property
    def logout_url(self) -> None:
        """None."""

    def _user(self, handler: RequestHandler) -> str | None:
        token = handler.get_query_argument("token", None)
        if token is not None and self._admits(token):
            _remember(handler, self._cookie, token)
            return "viewer"
        if self._admits(handler.get_cookie(self._cookie, "")):
            return "viewer"
        if handler.request.path.endswith("/ws"):  # a websocket cannot be sent to the form
            raise HTTPError(403)
        return None

    def _admits(self, token: str | None) -> bool:
        given = (token or "").encode()
        viewer, operator = (hmac.compare_digest(given, known.encode()) for known in (self._token, self._operator))
        return viewer or operator


def _remember(handler: RequestHandler, cookie: str, token: str) -> None:
    if not handler._headers_written:
        handler.set_cookie(cookie, token, httponly=True, samesite="Strict")
