"""What a URL means: which file system, which path inside it, and what a wrong one is called.

A URL is anything fsspec understands; without a scheme it is a local path. Costs nothing but the driver's
import (a local path loads none) and, per store, one client that stays.

Stores get no retries from their drivers: `shards.storage.retry` alone does that. s3fs tries 5 times, botocore 5 times
within each, and a stalled store would so hold one call for 25 read timeouts before anybody learns of it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.errors import UserError
from shards.storage.retry import StorageError, answer_code

CONNECT_TIMEOUT_S = 5.0
"""Of S3 clients, seconds (s3fs's own default); a user's `config_kwargs` in fsspec's configuration win."""
READ_TIMEOUT_S = 30.0
"""Of S3 clients, seconds without a byte; twice s3fs's, as completing a large upload may take a while."""

# botocore's classes are told by name: local use must not pay for their import.
_NO_WAY_IN = {
    "EndpointResolutionError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "SSOError",
    "ProfileNotFound",
    "ParamValidationError",
}
_NO_ENDPOINT = "Invalid endpoint: "  # of a bare ValueError of botocore's
# What stores say of expired tokens and wrong regions; without a body, as to HEAD, only "400".
_REFUSALS = {"400", "301", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed", "PermanentRedirect"}


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem and the path inside it.

    Raises:
        UserError: the URL's scheme is unknown, its driver is not installed, or the store's endpoint is no URL.
    """
    if not url:
        raise UserError("an empty path was given: name a folder or URL")
    if is_local(url):
        # Not by url_to_fs: it would take "::" in a file's name for a chain of URLs.
        fs = LocalFileSystem()
        return fs, fs._strip_protocol(url)
    try:
        fs, path = _remote(url)
    except UserError:
        raise
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url!r}: {error}") from error
    if not path.strip("/"):
        raise UserError(f"{url!r} names no bucket: write, say, s3://bucket/folder")
    return fs, path


def _remote(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    if "::" in scheme:
        fs, path = fsspec.core.url_to_fs(url)
        return fs, path
    # Beyond its scheme a URL is taken literally: an object's name must not open other places by a "::".
    driver = fsspec.get_filesystem_class(scheme)
    options = driver._get_kwargs_from_urls(url)
    if scheme in ("s3", "s3a"):
        _require_endpoint()
        options |= _s3_options()
    fs = driver(**options)
    if is_s3(fs):
        fs.retries = 1
    return fs, driver._strip_protocol(url)


def _require_endpoint() -> None:
    """Refuse an endpoint that is no URL by the name of its variable, which botocore does not tell."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name):
            break
    else:
        return
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise UserError(f"{name} is {endpoint!r}: write a whole URL, such as http://localhost:9000")


def _s3_options() -> dict[str, Any]:
    """Return timeouts and "no retries" for botocore, wherever the user has set neither."""
    chosen: Any = {}
    for scheme in ("s3", "s3a"):
        chosen = fsspec.config.conf.get(scheme, {}).get("config_kwargs", chosen)
    if not isinstance(chosen, Mapping):
        return {}
    ours: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        ours["retries"] = {"total_max_attempts": 1}
    return {"config_kwargs": {**ours, **chosen}}


def is_s3(fs: Any) -> bool:
    """Say whether a filesystem is s3fs's (without importing it)."""
    return "s3" in (fs.protocol if isinstance(fs.protocol, (tuple, list)) else [fs.protocol])


def is_local(url: str) -> bool:
    """Say whether the URL is a path on this machine (by its scheme alone: no driver is loaded)."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """Return the local path of a local URL."""
    fs, path = filesystem(url)
    assert isinstance(fs, LocalFileSystem), url
    return Path(path)


def join(root: str, *parts: str) -> str:
    """Join URL parts with "/"; a part that is itself absolute (has a scheme or starts with "/") replaces the root."""
    for part in parts:
        root = part if "://" in part or part.startswith("/") else f"{root.rstrip('/')}/{part}"
    return root


def child(root: str, relative: str) -> str:
    """Return the URL of a listed path below its root; unlike `join` it never leaves the root."""
    return f"{root.rstrip('/')}/{relative}"


@contextlib.contextmanager
def user_errors(url: str) -> Iterator[None]:
    """Turn what a wrong URL or missing permission raises into one clear line.

    Only faults that no retry would mend are translated (a store that cannot be reached at all is one):
    everything else is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url} does not exist: check the path or bucket") from error
    except PermissionError as error:
        raise UserError(f"no permission for {url}: check its mode or your credentials ({error})") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{url} is not of the expected kind: {error}") from error
    except StorageError as error:
        if error.kind == "unreachable":
            raise UserError(f"cannot reach {url}: {error.__cause__}") from error
        raise
    except Exception as error:
        if {each.__name__ for each in type(error).__mro__} & _NO_WAY_IN or str(error).startswith(_NO_ENDPOINT):
            raise UserError(f"cannot reach {url}: {error}") from error
        if (code := answer_code(error)) in _REFUSALS:
            told = f"the store refuses {url} ({code}: {error})"
            raise UserError(f"{told}: check region and credentials; a token may have expired") from error
        raise
