"""A proxy between a client and an object store that does, on command, what networks and stores do by themselves.

It listens on 127.0.0.1 and forwards HTTP/1.1 as it came: the Host header too, over which the client's signature
goes, so that signed requests stay valid. `FaultProxy.add` sets a rule; the first rule that matches a request
and is due gives it its fate:

- `delay`: wait `seconds`, then go on as usual;
- `answer`: answer `status` (503) with S3's XML and its error `code`, without forwarding; 200 with nothing: done, or
  so it says;
- `stall`: say nothing for `seconds`, then close, without forwarding;
- `cut`: forward, announce the whole body, send its first `num_bytes`, close;
- `shorten`: forward, answer with the first `num_bytes` of the body as if they were all of it;
- `flip`: forward, answer with one bit of byte `num_bytes` of the body flipped;
- `drop_reply`: forward, then close without a word: a PUT that landed, but nobody was told;
- `unconditional`: answer 200 where the store said 412: a store that knows no conditional writes (what it
  holds is untouched);
- `hold`: keep the request back; when released it is forwarded, whether or not its sender still lives;
- `hold_reply`: forward, keep the answer back until released.

A held request sets `rule.held`; `rule.release()` lets it go. Clients may live in other processes.
"""

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

Fault = Literal[
    "delay", "answer", "stall", "cut", "shorten", "flip", "drop_reply", "unconditional", "hold", "hold_reply"
]
_CODES = {
    403: "AccessDenied",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    502: "BadGateway",
    503: "SlowDown",
    504: "GatewayTimeout",
}
_OF_ONE_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "te", "upgrade"}
_LONGEST_HOLD_S = 300.0


@dataclass(kw_only=True, eq=False)
class Rule:
    """What happens to which requests."""

    fault: Fault
    method: str
    """Regular expression of the whole method: "PUT", "GET|HEAD"."""
    path: str
    """Regular expression found in the path with its query: "/bucket/groups/.*json"."""
    nth: frozenset[int]
    """Which of the matching requests, counted from 1; empty: all."""
    probability: float
    seconds: float
    status: int
    code: str
    num_bytes: int
    random: random.Random
    num_seen: int = 0
    """Requests that matched so far."""
    num_hit: int = 0
    """Of these, the ones that the fault befell."""
    held: threading.Event = field(default_factory=threading.Event)
    """Set while or after a request is held."""
    _released: threading.Event = field(default_factory=threading.Event)

    def due(self, method: str, path: str) -> bool:
        """Count a request, and say whether the fault befalls it."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.num_seen += 1
        due = (not self.nth or self.num_seen in self.nth) and self.random.random() < self.probability
        self.num_hit += due
        return due

    def wait_until_held(self, timeout_s: float = 60) -> None:
        """Wait until a request is being held."""
        assert self.held.wait(timeout_s), f"no request came that {self.fault} would hold: {self.method} {self.path}"

    def release(self) -> None:
        """Let held requests go, and later ones pass."""
        self._released.set()

    def hold(self) -> None:
        """Block until released."""
        self.held.set()
        assert self._released.wait(_LONGEST_HOLD_S), "a held request was never released"


class FaultProxy:
    """A running proxy in front of one server; a context manager.

    Attributes:
        endpoint: URL at which it listens.
        log: (method, path with query, status answered or 0) of each request, from just before it is answered.
    """

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        assert address.scheme == "http", upstream
        assert address.hostname is not None, upstream
        assert address.port is not None, upstream
        self.upstream = (address.hostname, address.port)
        self.log: list[tuple[str, str, int]] = []
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._server.shutdown()
        self._server.server_close()

    def add(
        self,
        fault: Fault,
        *,
        method: str = ".*",
        path: str = "",
        nth: int | tuple[int, ...] = (),
        probability: float = 1.0,
        seed: int = 0,
        seconds: float = 1.0,
        status: int = 503,
        code: str = "",
        num_bytes: int = 0,
    ) -> Rule:
        """Add a rule (see the module and `Rule`); of `nth` and `probability` both must hold."""
        assert fault in get_args(Fault), fault
        rule = Rule(
            fault=fault,
            method=method,
            path=path,
            nth=frozenset((nth,) if isinstance(nth, int) else nth),
            probability=probability,
            seconds=seconds,
            status=status,
            code=code or _CODES.get(status, ""),
            num_bytes=num_bytes,
            random=random.Random(seed),
        )
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules and release what they hold."""
        with self._lock:
            for rule in self._rules:
                rule.release()
            self._rules.clear()

    def count(self, method: str = ".*", path: str = "") -> int:
        """Count the requests so far that match."""
        return sum(bool(re.fullmatch(method, m) and re.search(path, p)) for m, p, _ in list(self.log))

    def wait_for(self, method: str = ".*", path: str = "", timeout_s: float = 60) -> None:
        """Wait until a request that matches has met its fate, such as a released one whose sender is dead."""
        deadline = time.monotonic() + timeout_s
        while not self.count(method, path):
            assert time.monotonic() < deadline, f"no request came: {method} {path}"
            time.sleep(0.01)

    def rule_for(self, method: str, path: str) -> Rule | None:
        """Return the first rule that is due for a request."""
        with self._lock:
            return next((rule for rule in self._rules if rule.due(method, path)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away, which is what the tests make them do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _handle(self) -> None:
        body = self._body()
        self._meet(self.server.proxy.rule_for(self.command, self.path), body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _handle

    def _meet(self, rule: Rule | None, body: bytes) -> None:
        fault = rule.fault if rule else None
        if rule is None:
            return self._reply(*self._forward(body))
        if fault == "answer":
            return self._refuse(rule.status, rule.code)
        if fault in ("delay", "stall"):
            time.sleep(rule.seconds)
        if fault == "stall":
            return self._hang_up()
        if fault == "hold":
            rule.hold()
        answer, content = self._forward(body)
        if fault == "drop_reply":
            return self._hang_up()
        if fault == "hold_reply":
            rule.hold()
        if fault == "unconditional" and answer.status == 412:
            return self._send(200, [("ETag", '"00000000000000000000000000000000"')], b"", 0)
        if fault == "shorten":
            content = content[: rule.num_bytes]
        if fault == "flip" and rule.num_bytes < len(content):
            content = content[: rule.num_bytes] + bytes([content[rule.num_bytes] ^ 1]) + content[rule.num_bytes + 1 :]
        if fault == "cut":
            self._reply(answer, content, content[: rule.num_bytes])
            return self._close()
        return self._reply(answer, content)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_ONE_HOP | {"content-length"}:
                    connection.putheader(name, value)
            if body or "Content-Length" in self.headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer, answer.read()

    def _reply(self, answer: http.client.HTTPResponse, content: bytes, sent: bytes | None = None) -> None:
        announced = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        headers = [each for each in answer.getheaders() if each[0].lower() not in _OF_ONE_HOP | {"content-length"}]
        self._send(answer.status, headers, content if sent is None else sent, announced)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, announced: int | str | None) -> None:
        self._note(status)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if announced is not None and status != 204:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
        content = b"" if self.command == "HEAD" or status == 200 else text.encode()
        self._send(status, [("Content-Type", "application/xml")], content, len(content))

    def _hang_up(self) -> None:
        self._note(0)
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, status: int) -> None:
        self.server.proxy.log.append((self.command, self.path, status))
