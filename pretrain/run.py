"""The run folder: what it was made from, and whether this start may go on with it.

`run.json` is written first and once; `config.yaml` is the resolved configuration for people and for `--config`.
"""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import yaml

from pretrain.config import Config
from shards import storage
from shards.errors import UserError
from shards.schema import canonical_json, sha256_hex

FORMAT = "pera-run"
FORMAT_VERSION = 1
_FREE = ("data", "run", "max_steps", "device", "log_every", "loader.workers", "checkpoint.")
"""Keys (or beginnings of keys) that may differ from start to start: they do not change what is computed."""
_PACKAGES = ("pera-at-scale", "torch", "timm", "numpy", "pillow", "safetensors")


def flatten(config: Config) -> dict[str, Any]:
    """Return the configuration as dotted keys and plain values, tuples as lists."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for name, item in value.items() for k, v in walk(f"{prefix}.{name}", item).items()}
        return {prefix.removeprefix("."): value}

    return walk("", _plain(config))


def identity(config: Config) -> dict[str, Any]:
    """Return the part of the configuration that decides what is computed, as dotted keys."""
    return {key: value for key, value in flatten(config).items() if not key.startswith(_FREE)}


def identity_sha256(config: Config) -> str:
    """Return 64 hex digits that name what is computed: the same on any machine and for any number of workers."""
    return sha256_hex(canonical_json(identity(config)))


def versions() -> dict[str, str]:
    """Return the versions that a run's figures may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def check_run(config: Config, dataset_digest: str) -> bool:
    """Say whether the folder holds this very run already; False where it is new. Writes nothing.

    Raises:
        UserError: it holds something else: another dataset's run, another configuration's, or no run at all.
    """
    url = config.run
    with storage.user_errors(url):
        if not storage.exists(storage.join(url, "run.json")):
            if storage.exists(url) and storage.list_files(url):
                raise UserError(f"{url} is not empty and holds no run: choose another folder with --run")
            return False
        record = json.loads(storage.read_bytes(storage.join(url, "run.json")))
    if (record["format"], record["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{url} holds a run of an unknown format: update this package, or choose another --run")
    if record["dataset_digest"] != dataset_digest:
        raise UserError(
            f"{url} was made from other data: digest {record['dataset_digest']}, but {config.data} has "
            f"{dataset_digest}; choose another --run, or give the data it was made from"
        )
    _require_same(url, record["identity"], identity(config))
    return True


def create_run(config: Config, dataset_digest: str) -> None:
    """Write `run.json` and `config.yaml`."""
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset_digest": dataset_digest,
        "identity": identity(config),
        "versions": versions(),
    }
    with storage.user_errors(config.run):
        storage.write_bytes(storage.join(config.run, "run.json"), json.dumps(record, indent=2).encode() + b"\n")
    write_config(config)


def write_config(config: Config) -> None:
    """Write the resolved configuration of this start."""
    text = yaml.safe_dump(_plain(config), sort_keys=False)
    storage.write_bytes(storage.join(config.run, "config.yaml"), text.encode())


def _plain(config: Config) -> Any:
    return json.loads(json.dumps(asdict(config)))


def _require_same(url: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    changes = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UserError(
            f"{url} holds a run of another configuration ({'; '.join(changes)}): choose another --run, "
            "or give the configuration it was made with"
        )
