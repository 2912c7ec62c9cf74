"""What the world does to a request, and how long we put up with it.

Faults of network and store (time-outs, resets, throttling, 5xx, cut bodies) are tried again with jittered
exponential back-off until a deadline; what no repetition mends (missing, forbidden, any other 4xx) is raised
at once. Nothing else retries: see `shards.storage.urls`. Costs nothing while all goes well.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

DEADLINE_S = 180.0
"""No attempt begins later than this after the first one, seconds: S3 may throttle a busy prefix for minutes."""
UNREACHABLE_DEADLINE_S = 30.0
"""The same where no connection comes about: a restart of the store is bridged, a wrong endpoint soon told."""
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0

retries: Counter[str] = Counter()
"""How often this process tried again, by kind of fault; only ever grows."""
_counting = threading.Lock()

_KINDS_BY_CODE = {
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "RequestLimitExceeded": "throttled",
    "TooManyRequests": "throttled",
    "RequestTimeout": "timeout",
    "IncompleteBody": "connection",
    "BadDigest": "connection",
    "XAmzContentSHA256Mismatch": "connection",
    "InternalError": "server",
    # Somebody else writes to the same name at this moment: the next try meets what came of it.
    "ConditionalRequestConflict": "conflict",
    "OperationAborted": "conflict",
    # The reply to a completed multipart upload was lost, and s3fs failed to abort what no longer exists.
    "NoSuchUpload": "lost_reply",
}
_KINDS_BY_STATUS = {
    408: "timeout",
    429: "throttled",
    500: "server",
    502: "server",
    503: "throttled",
    504: "server",
}
# The first that fits any class of an error's ancestry, by name: botocore and aiohttp must not be loaded for this.
_KINDS_BY_CLASS = {
    "ClientConnectorCertificateError": None,
    "SSLCertVerificationError": None,
    "EndpointConnectionError": "unreachable",
    "ConnectionRefusedError": "unreachable",
    "ClientConnectorError": "unreachable",
    "gaierror": "unreachable",
    # The other side speaks no TLS, or another kind; what is cut off before it is agreed on comes as one of the above.
    "SSLError": "unreachable",
    "ShortBodyError": "short_body",
    "IncompleteRead": "short_body",
    "IncompleteReadError": "short_body",
    "ClientPayloadError": "short_body",
    "ResponseStreamingError": "short_body",
    "FlexibleChecksumError": "short_body",
    "TimeoutError": "timeout",
    "ReadTimeoutError": "timeout",
    "ConnectTimeoutError": "timeout",
    "ConnectionError": "connection",
    "ClientConnectionError": "connection",
    "HTTPClientError": "connection",
    "ResponseParserError": "server",
}


class StorageError(OSError):
    """A store kept failing until the deadline: the world's fault, worth another try later.

    Attributes:
        kind: the last fault's kind, a key of `retries`.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str]]:
        return type(self), (str(self), self.kind)


class ShortBodyError(OSError):
    """A body ended before its announced end."""


def retrying(url: str, attempt: Callable[[], Result]) -> Result:
    """Call until it succeeds, fails for good, or keeps failing past the deadline.

    Raises:
        StorageError: still failing at the deadline; names the URL, the attempts and the last fault.
    """
    started = time.monotonic()
    for wait_s in _waits_s():
        try:
            return attempt()
        except Exception as error:
            kind = fault_kind(error)
            if kind is None:
                raise
            passed_s = time.monotonic() - started
            limit_s = min(DEADLINE_S, UNREACHABLE_DEADLINE_S) if kind == "unreachable" else DEADLINE_S
            if passed_s + wait_s > limit_s:
                raise StorageError(f"{url}: gave up after {passed_s:.0f} s ({kind}): {_line(error)}", kind) from error
        count_retry(kind)
        time.sleep(wait_s)
    raise AssertionError("the waits never end")


def count_retry(kind: str, number: int = 1) -> None:
    """Count retries, also of what is repeated elsewhere: a "checksum" that did not match, a failed fetch "ahead"."""
    with _counting:
        retries[kind] += number


def _waits_s() -> Iterator[float]:
    longest = FIRST_WAIT_S
    while True:
        # At least half, so that a storm is not fed; at random, so that a thousand workers do not come back as one.
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_WAIT_S)


def fault_kind(error: BaseException) -> str | None:
    """Return what kind of passing fault an error is (a key of `retries`), or None if repeating would not help.

    Looks at the answer's code and status where there is one, else at the names of the classes; an error
    that says nothing by itself is judged by its cause.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, StorageError):
        code, status = _answer(seen)
        if code in _KINDS_BY_CODE:
            return _KINDS_BY_CODE[code]
        if status:
            return _KINDS_BY_STATUS.get(status)
        if "CERTIFICATE_VERIFY_FAILED" in str(seen):
            return None
        ancestry = {each.__name__ for each in type(seen).__mro__}
        for name, kind in _KINDS_BY_CLASS.items():
            if name in ancestry:
                return kind
        seen = seen.__cause__
    return None


def _answer(error: BaseException) -> tuple[str, int]:
    """Return code and HTTP status of the answer that an error carries, "" and 0 if it carries none."""
    answer: dict[str, dict[str, Any]] | None = getattr(error, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code, int(status or (code if code.isdigit() else 0))
    status = getattr(error, "status", 0)
    return "", status if isinstance(status, int) else 0


def answer_code(error: BaseException) -> str:
    """Return the error code in an S3 server's answer, which s3fs keeps as the cause; empty if there is none."""
    cause = error.__cause__
    return _answer(cause)[0] if cause is not None else ""


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
