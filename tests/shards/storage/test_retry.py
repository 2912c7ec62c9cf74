"""Which faults pass, and how long we wait for that."""

import itertools
import pickle
import ssl

import aiohttp
import pytest
from botocore import exceptions as boto
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from shards.errors import UserError
from shards.storage import retry
from shards.storage.retry import ShortBodyError, StorageError, fault_kind, retrying


def answered(code, status):
    """What s3fs raises over a server's answer."""
    response = {"Error": {"Code": code, "Message": "as told"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(boto.ClientError(response, "GetObject"))


def caused(error, cause):
    error.__cause__ = cause
    return error


PASSING = [
    (answered("SlowDown", 503), "throttled"),
    (answered("503", 503), "throttled"),
    (answered("TooManyRequests", 429), "throttled"),
    (answered("InternalError", 500), "server"),
    (answered("502", 502), "server"),
    (answered("504", 504), "server"),
    (answered("RequestTimeout", 400), "timeout"),
    (answered("BadDigest", 400), "connection"),
    (answered("ConditionalRequestConflict", 409), "conflict"),
    (answered("NoSuchUpload", 404), "lost_reply"),
    (TimeoutError(), "timeout"),
    (FSTimeoutError(), "timeout"),
    (boto.ReadTimeoutError(endpoint_url="x"), "timeout"),
    (boto.ConnectTimeoutError(endpoint_url="x"), "timeout"),
    (boto.ConnectionClosedError(endpoint_url="x"), "connection"),
    (boto.HTTPClientError(error="reset"), "connection"),
    (boto.EndpointConnectionError(endpoint_url="x"), "unreachable"),
    (boto.SSLError(endpoint_url="x", error="[SSL: WRONG_VERSION_NUMBER] wrong version number"), "unreachable"),
    (ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"), "unreachable"),
    (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), "short_body"),
    (boto.FlexibleChecksumError(error_msg="differs"), "short_body"),
    (aiohttp.ClientPayloadError(), "short_body"),
    (aiohttp.ServerDisconnectedError(), "connection"),
    (aiohttp.ServerTimeoutError(), "timeout"),
    (aiohttp.ClientResponseError(None, (), status=503), "throttled"),
    (ConnectionResetError(), "connection"),
    (ConnectionRefusedError(), "unreachable"),
    (ShortBodyError("1 of 2 bytes came"), "short_body"),
    (caused(FileNotFoundError("x"), aiohttp.ClientResponseError(None, (), status=502)), "server"),
    (caused(OSError("x"), TimeoutError()), "timeout"),
]
LASTING = [
    answered("NoSuchKey", 404),
    answered("404", 404),
    answered("AccessDenied", 403),
    answered("PreconditionFailed", 412),
    answered("InvalidRange", 416),
    answered("NotImplemented", 501),
    aiohttp.ClientResponseError(None, (), status=404),
    boto.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    boto.NoCredentialsError(),
    ssl.SSLCertVerificationError(),
    FileNotFoundError("x"),
    PermissionError("x"),
    OSError(28, "No space left on device"),
    UserError("x"),
    KeyError("x"),
    caused(StorageError("x", "timeout"), TimeoutError()),
]


@pytest.mark.parametrize(("error", "kind"), PASSING)
def test_faults_that_pass(error, kind):
    assert fault_kind(error) == kind


@pytest.mark.parametrize("error", LASTING)
def test_faults_that_last(error):
    assert fault_kind(error) is None


def test_a_fault_that_passes_is_tried_again_and_counted(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    faults = iter([TimeoutError(), ConnectionResetError(), TimeoutError()])
    before = retry.retries.copy()

    def attempt():
        for fault in faults:
            raise fault
        return "done"

    assert retrying("s3://b/x", attempt) == "done"
    assert retry.retries - before == {"timeout": 2, "connection": 1}


def test_a_fault_that_lasts_is_raised_at_once():
    calls = []

    def attempt():
        calls.append(1)
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        retrying("s3://b/x", attempt)
    assert len(calls) == 1


def fail(error):
    raise error


@pytest.mark.parametrize("error", [TimeoutError("line\nbreak"), boto.EndpointConnectionError(endpoint_url="x")])
def test_after_the_deadline_the_error_names_url_and_fault(monkeypatch, error):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "DEADLINE_S", 0.05)
    with pytest.raises(StorageError, match=rf"^s3://b/x: gave up after .* \({fault_kind(error)}\): .*Error: .*$"):
        retrying("s3://b/x", lambda: fail(error))


def test_no_connection_at_all_has_a_deadline_of_its_own(monkeypatch):
    monkeypatch.setattr(retry, "UNREACHABLE_DEADLINE_S", 0.0)
    with pytest.raises(StorageError) as caught:
        retrying("s3://b/x", lambda: fail(ConnectionRefusedError()))
    assert caught.value.kind == "unreachable"


def test_waits_grow_within_their_bounds_and_differ():
    waits = list(itertools.islice(retry._waits_s(), 200))
    assert retry.FIRST_WAIT_S / 2 <= waits[0] <= retry.FIRST_WAIT_S
    assert all(retry.LONGEST_WAIT_S / 2 <= wait <= retry.LONGEST_WAIT_S for wait in waits[20:])
    assert len(set(waits)) > 150


def test_the_error_survives_the_way_between_processes():
    copy = pickle.loads(pickle.dumps(StorageError("s3://b/x: gave up", "timeout")))
    assert (str(copy), copy.kind) == ("s3://b/x: gave up", "timeout")
