"""The run folder: what it was made from, and whether this start may go on with it.

`run.json` is written first and once; `config.yaml` is the resolved configuration for people and for `--config`.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import yaml

from pretrain.config import Config
from shards import storage
from shards.errors import UserError
from shards.schema import canonical_json, sha256_hex

FORMAT = "pera-run"
FORMAT_VERSION = 2
_FREE = (
    "data",
    "version",
    "mix",
    "weight",
    "run",
    "max_steps",
    "device",
    "log_every",
    "accumulate",
    "activation_checkpointing",
    "compile",
    "shard",
    "loader.workers",
    "loader.cache",
    "loader.on_bad",
    "checkpoint.",
)
"""Keys (or beginnings of keys) that may differ from start to start: they do not change what is computed, or only from
then on (weights), or only where a run would have stopped (on_bad), or in the last bits and in which branches stochastic
depth leaves out (accumulate, compile, device). What data it is says the datasets' digests."""
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


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run keeps from its first start, whatever changes later."""

    digests: tuple[str, ...]
    """Of its datasets, likewise the next."""
    dataset_versions: tuple[int, ...]
    mean: tuple[float, ...]
    """Per band, as a share of the value range: of the mixture that the run began with."""
    std: tuple[float, ...]


def read_run(config: Config) -> RunRecord | None:
    """Return what the folder keeps of the run of this configuration; None where it is new. Writes nothing.

    Raises:
        UserError: it holds something else: another configuration's run, one with other datasets, or no run at all.
    """
    url = config.run
    with storage.user_errors(url):
        if not storage.exists(storage.join(url, "run.json")):
            if storage.exists(url) and storage.list_files(url):
                raise UserError(f"{url} is not empty and holds no run: choose another folder with --run")
            return None
        content = json.loads(storage.read_bytes(storage.join(url, "run.json")))
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{url} holds a run of format {content['format']} {content['format_version']}, but this code reads "
            f"{FORMAT} {FORMAT_VERSION}: go on with the version of this package that made it, or choose another --run"
        )
    record = RunRecord(**{field.name: tuple(content[field.name]) for field in fields(RunRecord)})
    if len(record.digests) != 1 + len(config.mix):
        raise UserError(
            f"{url} was made from {len(record.digests)} datasets, not {1 + len(config.mix)}: choose another --run, or "
            "give those it was made from; weight 0 pauses one"
        )
    _require_same(url, content["identity"], identity(config))
    return record


def with_own_weights(config: Config) -> Config:
    """Return a configuration with the weights that its run was last started with, where it gives none itself."""
    if config.weight is not None:
        return config
    with storage.user_errors(config.run):
        weights = last_weights(config.run)
    if weights is None or len(weights) != 1 + len(config.mix):
        return config
    mix = tuple(replace(each, weight=weight) for each, weight in zip(config.mix, weights[1:], strict=True))
    return replace(config, weight=weights[0], mix=mix)


def last_weights(run: str) -> list[float] | None:
    """Return the weights of a run's datasets as it was last started; None where they have none."""
    config = read_config(run)
    weights = [config.get("weight"), *[each["weight"] for each in config.get("mix", ())]]
    return None if None in weights else weights


def read_config(run: str) -> dict[str, Any]:
    """Return the configuration that a run was last started with, as plain values; empty where there is none."""
    url = storage.join(run, "config.yaml")
    return yaml.safe_load(storage.read_bytes(url)) or {} if storage.exists(url) else {}


def require_same_data(config: Config, record: RunRecord, digests: Sequence[str]) -> None:
    """Make sure that a run goes on with the data it was made from.

    Args:
        config: of this start.
        record: of the run.
        digests: of the datasets of this start.

    Raises:
        UserError: a dataset is another one.
    """
    urls = [config.data, *[each.data for each in config.mix]]
    for url, before, now in zip(urls, record.digests, digests, strict=True):
        if before != now:
            raise UserError(
                f"{config.run} was made from other data: digest {before}, but {url} has {now}; "
                "choose another --run, or give the data it was made from"
            )


def create_run(config: Config, record: RunRecord) -> None:
    """Write `run.json` and `config.yaml`."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "identity": identity(config),
        **asdict(record),
        "versions": versions(),
    }
    with storage.user_errors(config.run):
        storage.write_bytes(storage.join(config.run, "run.json"), json.dumps(content, indent=2).encode() + b"\n")
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
