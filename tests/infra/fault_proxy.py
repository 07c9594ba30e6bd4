"""An HTTP proxy that stands before a server and fails as told: throttling, errors, a full disk."""

import contextlib
import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[[str, str, int], int | None]
"""Of method, path and the request's number: the status to answer instead; None: pass it on."""
CODES = {503: "SlowDown", 500: "InternalError", 507: "InsufficientStorage", 403: "QuotaExceeded"}
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Proxy:
    """What it does now, and how often it has answered instead, by status."""

    port: int
    fault: Fault = lambda method, path, number: None
    failed: Counter[int] = field(default_factory=Counter)


@contextlib.contextmanager
def fault_proxy(target: str) -> Iterator[Proxy]:
    """A proxy before ``host:port``."""
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            """Say nothing."""

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = proxy.fault(self.command, self.path, next(numbers))
            if status is not None:
                proxy.failed[status] += 1
                text = f"<Error><Code>{CODES[status]}</Code><Message>a fault</Message></Error>"
                self.answer(status, [("Content-Type", "application/xml")], text.encode())
                return
            connection = http.client.HTTPConnection(target, timeout=30)
            try:
                headers = dict(self.headers.items())
                connection.putrequest(self.command, self.path, skip_host=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                self.close_connection = True
                return
            finally:
                connection.close()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.answer(answer.status, answer.getheaders(), content, length)

        def answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            length: str | None = None,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in HOP:
                    self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
