"""What a URL means, and what its store's client is told."""

import re

import fsspec
import pytest
from botocore.exceptions import ClientError, EndpointResolutionError, NoCredentialsError, UnauthorizedSSOTokenError
from s3fs.errors import translate_boto_error

from shards.errors import UserError
from shards.storage import urls
from shards.storage.retry import StorageError
from shards.storage.urls import filesystem, user_errors


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    monkeypatch.delenv("AWS_RETRY_MODE", raising=False)
    monkeypatch.setattr(fsspec.config, "conf", {})


def test_clients_wait_a_bounded_time_and_leave_retries_to_us():
    fs, path = filesystem("s3://bucket/folder/x")
    assert path == "bucket/folder/x"
    assert fs.retries == 1
    assert fs.config_kwargs["connect_timeout"] == urls.CONNECT_TIMEOUT_S
    assert fs.config_kwargs["read_timeout"] == urls.READ_TIMEOUT_S
    assert fs.config_kwargs["retries"]["total_max_attempts"] == 1


def test_what_the_user_has_set_stays(monkeypatch):
    chosen = {"read_timeout": 7, "max_pool_connections": 3}
    monkeypatch.setattr(fsspec.config, "conf", {"s3": {"config_kwargs": chosen, "anon": True}})
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    fs, _ = filesystem("s3://bucket/x")
    assert fs.config_kwargs == {"connect_timeout": urls.CONNECT_TIMEOUT_S, **chosen}
    assert fs.anon


def test_clients_are_told_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    fs, _ = filesystem("s3://bucket/x")
    assert "secret" not in repr(fs.storage_options)
    assert "secret" not in fs.to_json()


def test_beyond_its_scheme_a_url_is_taken_literally():
    fs, path = filesystem("s3://bucket/a::file://etc/passwd")
    assert "s3" in fs.protocol
    assert path == "bucket/a::file://etc/passwd"


def test_chains_of_schemes_are_left_to_fsspec():
    fs, path = filesystem("simplecache::memory://folder/x")
    assert type(fs).__name__ == "SimpleCacheFileSystem"
    assert path == "/folder/x"


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "127.0.0.1", "http://", "ftp://x", "http://x:99999", "http://x:a", "http://[1"]
)
def test_an_endpoint_that_is_no_url_is_refused_by_name(monkeypatch, endpoint):
    told = rf"^{{}} is '{re.escape(endpoint)}': write a whole URL, such as http://localhost:9000$"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=told.format("AWS_ENDPOINT_URL")):
        filesystem("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://x.y:443/z")
    filesystem("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(UserError, match=told.format("AWS_ENDPOINT_URL_S3")):
        filesystem("s3://bucket/x")


def refused(code, status):
    response = {"Error": {"Code": code, "Message": "as told"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "HeadObject"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "u does not exist: check the path or bucket"),
        (PermissionError("Forbidden"), r"no permission for u: check its mode or your credentials \(Forbidden\)"),
        (NotADirectoryError("x is a file"), "u is not of the expected kind: x is a file"),
        (StorageError("u: gave up", "unreachable"), "cannot reach u: "),
        (NoCredentialsError(), "cannot reach u: Unable to locate credentials"),
        (EndpointResolutionError(msg="x was not a valid URI"), "cannot reach u: x was not a valid URI"),
        (ValueError("Invalid endpoint: x"), "cannot reach u: Invalid endpoint: x"),
        (UnauthorizedSSOTokenError(), "cannot reach u: The SSO session .* has expired"),
        (refused("InvalidToken", 400), r"the store refuses u \(InvalidToken: .*check region and credentials"),
        (refused("400", 400), r"the store refuses u \(400: .*a token may have expired"),
    ],
)
def test_what_no_retry_would_mend_is_the_users_mistake(error, message):
    with pytest.raises(UserError, match=message), user_errors("u"):
        raise error


@pytest.mark.parametrize("error", [StorageError("u: gave up", "timeout"), OSError("full"), KeyError("x")])
def test_everything_else_is_left_as_it_is(error):
    with pytest.raises(type(error)) as caught, user_errors("u"):
        raise error
    assert caught.value is error
