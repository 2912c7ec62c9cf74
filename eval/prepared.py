"""What is evaluated on, made ready: data sets opened and split, protocols chosen, the output folder begun.

Everything that can be refused is refused here, before a model runs and before anything is written.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml

from eval.config import EvalConfig
from eval.data.kinds import LabelledData
from eval.data.resolve import open_data, parse_specs
from eval.data.split import PARTS, TEST, Split, split_of
from eval.protocols import PROTOCOLS
from eval.protocols.task import Protocol
from shards import storage
from shards.errors import UserError

_ONLY_BY_NAME = ("fine_tune",)
"""Left out of `all`: a fine-tuning costs hours where the others cost minutes."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set with its split and what is asked on it."""

    data: LabelledData
    split: Split
    protocols: tuple[Protocol[Any], ...]

    def figures(self, rejected: Sequence[tuple[str, str]], num_incomplete: int = 0) -> dict[str, Any]:
        """Return what the report says of the data, JSON-able."""
        data, parts, places = self.data, self.split.parts, self.split.places
        # Where the intervals draw places, it matters how many there are.
        tested = {} if places is None else {"test_places": len({places[i] for i in np.flatnonzero(parts == TEST)})}
        unlisted = {"images_in_no_part_of_the_split": data.num_unlisted} if data.num_unlisted else {}
        lacking = {"images_with_missing_values": num_incomplete} if num_incomplete else {}
        return {
            "name": data.name, "url": data.url, "kind": data.kind, "digest": data.digest,
            "split_digest": self.split.digest, "split_method": self.split.method,
            "parts": {name: int((parts == part).sum()) for part, name in enumerate(PARTS)}, **tested,
            "classes": list(data.classes), "num_images": len(data.ids), "bands": list(data.bands),
            "dtype": data.dtype, "rejected": [{"path": path, "reason": reason} for path, reason in rejected],
            **unlisted, **lacking,
        }  # fmt: skip


def prepare(config: EvalConfig) -> list[Prepared]:
    """Open and split every data set of a config.

    Raises:
        UserError: a data set that cannot be used or split, an unknown protocol, a data set that none of them is for.
    """
    protocols = choose_protocols(config.protocols)
    return [_prepare(name, url, protocols, config) for name, url in parse_specs(config.data).items()]


def _prepare(name: str, url: str, protocols: Sequence[Protocol[Any]], config: EvalConfig) -> Prepared:
    data = open_data(name, url, config.workers)
    chosen = tuple(protocol for protocol in protocols if protocol.kind == data.kind)
    if not chosen:
        fitting = " ".join(protocol.name for protocol in PROTOCOLS if protocol.kind == data.kind)
        asked = " ".join(protocol.name for protocol in protocols)
        raise UserError(f"--protocols {asked} are none for {name}, data of {data.kind}: add one of {fitting}")
    split = split_of(
        data, seed=config.seed, test_share=config.test_share, validation_share=config.validation_share,
        method=None if config.split == "auto" else config.split,
    )  # fmt: skip
    return Prepared(data=data, split=split, protocols=chosen)


def choose_protocols(names: Sequence[str]) -> tuple[Protocol[Any], ...]:
    """Return the protocols of some names, in the order of the report.

    Raises:
        UserError: there is no such protocol.
    """
    known = [protocol.name for protocol in PROTOCOLS]
    for name in names:
        if name not in (*known, "all"):
            raise UserError(f"--protocols {name} does not exist: use {' '.join(known)} or all")
    wanted = {*names, *(name for name in known if "all" in names and name not in _ONLY_BY_NAME)}
    return tuple(protocol for protocol in PROTOCOLS if protocol.name in wanted)


def open_out(config: EvalConfig, prepared: Sequence[Prepared]) -> None:
    """Write the resolved config and the splits: an unusable --out shows before the work.

    Raises:
        UserError: --out is a file, or cannot be written to.
    """
    try:
        with storage.user_errors(config.out):
            text = yaml.safe_dump(asdict(config), sort_keys=False)
            storage.write_bytes(storage.join(config.out, "config.yaml"), text.encode())
            for item in prepared:
                storage.write_bytes(storage.join(config.out, "splits", f"{item.data.name}.tsv"), item.split.table)
    except FileExistsError as error:
        raise UserError(f"--out {config.out} is a file: give a folder") from error
