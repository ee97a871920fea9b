"""The dashboard: a page that follows the runs of a directory, served to this machine only."""

import errno
import json
import logging
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from lmkit.errors import UserError
from lmkit.pages.feed import LINES, Outputs
from lmkit.pages.policy import own_style_and_script
from lmkit.system.files import strict_json

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
NUM_PORTS = 20
METHODS = {"/": "GET", "/changes": "POST"}
MAX_BODY = 16 << 20  # bytes of a request, which has some 100 per run


class Server(ThreadingHTTPServer):
    """Serves one page, to this machine only."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A tab that is closed in the middle of an answer is not an error.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """`GET /` answers with the page, `POST /changes` with what is new to it."""

    protocol_version = "HTTP/1.1"

    def __init__(self, outputs: Outputs, page: str, policy: str, *arguments: Any) -> None:
        self.outputs = outputs
        self.page = page
        self.policy = policy
        super().__init__(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Refuse any other method of HTTP with a message."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def parse_request(self) -> bool:
        """Refuse requests by another host name, which another site may have pointed here, or by a
        page of another origin."""
        if not super().parse_request():
            return False
        host = self.headers.get("Host", "")
        if host.partition(":")[0] not in (HOST, "localhost"):
            self.send_error(403, f"open this page as {HOST} or localhost")
            return False
        # A page of another site in the same browser could send a request, if not read the answer.
        if urlsplit(self.headers.get("Origin", f"http://{host}")).netloc != host:
            self.send_error(403, "this page alone may ask")
            return False
        return True

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/":
            self._send("text/html", self.page)
        else:
            self._refuse()

    def do_POST(self) -> None:
        if self.path != "/changes":
            self._refuse()
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length[:20]) <= MAX_BODY):
            self._refuse(413)
            return
        try:
            known = _known(json.loads(self.rfile.read(int(length))))
        except (ValueError, TypeError, AttributeError, RecursionError):
            self.send_error(400)
            return
        try:
            answer = {"outputs": str(self.outputs.path), "runs": self.outputs.changes(known)}
        except UserError as error:
            answer = {"outputs": str(self.outputs.path), "runs": {}, "problem": str(error)}
        self._send("application/json", strict_json(answer))

    def _refuse(self, code: int | None = None) -> None:
        """Answer with an error and close the connection, without reading the request's body."""
        self.close_connection = True
        allowed = METHODS.get(self.path)
        self.send_error(code or (405 if allowed else 404), allowed and f"{allowed} alone")

    def _send(self, kind: str, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.policy)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _known(body: Any) -> dict[str, dict[str, Any]]:
    """What the page has of each run, by its request; raises if the request is malformed."""
    for run in body.values():
        for name in LINES:
            offset, mark = run.get(name, (0, 0))
            if type(offset) is not int or type(mark) is not int or not 0 <= offset < 1 << 62:
                raise ValueError(f"{offset} is no place in a file")
    known: dict[str, dict[str, Any]] = body
    return known


def bind(port: int, outputs: Outputs) -> Server:
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: expected 0 to 65535")
    page = (files("lmkit.pages") / "dashboard.html").read_text(encoding="utf-8")
    # Beside these, answers of this server and pictures that the page draws itself.
    allowed = f"default-src 'none'; connect-src 'self'; img-src data:; {own_style_and_script(page)}"
    handler = partial(Handler, outputs, page, allowed)
    last = min(port + NUM_PORTS, 65536) if port else 1
    for candidate in range(port, last):
        try:
            return Server((HOST, candidate), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"port={candidate} cannot be used: {error.strerror}") from error
    raise UserError(f"ports {port} to {last - 1} are all taken; port=0 takes any free one")
