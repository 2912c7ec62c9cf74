"""The driver: inventory, probe, plan, pack and commit, with Ray where work is many files.

All truth is in the output folder: a driver that dies is started again and goes on from what it finds there. Memory:
the inventory and the scenes' probes as Arrow tables, about 400 bytes per scene, and 1 kB per group.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.access import Place
from ingest.cluster import Failure, cluster, run_tasks
from ingest.commit import Marker, Packed, commit
from ingest.config import IngestConfig, Recipe, recipe_values
from ingest.inventory import build_inventory
from ingest.log import EventLog
from ingest.look import probe_chunk
from ingest.pack import NotDeterministicError, group_url, pack_group
from ingest.plan import encode_groups, in_one_chunk, plan_id, plan_units
from ingest.reasons import INVENTORY_CODES, REMEDIES
from ingest.sandbox import Limits
from ingest.sources import kind_of, scenes_root
from ingest.toolchain import toolchain
from shards import storage
from shards.card import write_card
from shards.dataset import iter_table, list_versions, read_version
from shards.errors import UserError
from shards.progress import Progress
from shards.schema import INVENTORY, SCENES, Version, canonical_json, sha256_hex
from shards.settle import scene_numbers

_WRITES_AT_ONCE = 16
_COMPARED = ("path", "size", "etag", "archive", "label", "time", "sensor", "acquisition", "version", "offset")


class IncompleteError(RuntimeError):
    """Some scenes or groups could not be worked on, for reasons that lie outside of them; carries one line for each."""

    def __init__(self, out: str, lines: Sequence[str]) -> None:
        super().__init__(f"{out} is not finished: {len(lines)} parts failed; run the same command again to go on")
        self.lines = lines


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an ingest made."""

    url: str
    version: Version
    created: bool
    """False: the same inputs had been made into this version before."""
    gone: int
    """Scenes of the version that are no longer where they were; their tiles stay."""
    rejected: Counter[str]
    """Scenes left out, by reason."""
    dropped: Counter[str]
    """Tiles left out, by reason."""


def ingest(config: IngestConfig, inventory: pa.Table | None = None) -> Outcome:
    """Turn the scenes into a dataset version, build upon the one that is there, or find that nothing is new.

    Args:
        config: scenes, recipe, output.
        inventory: the scenes to use instead of what `config.scenes` holds now (INVENTORY schema).

    Raises:
        UserError: no scenes, no access, no tile that can be used, or an output of another recipe.
        IncompleteError: something outside the scenes failed for good; what is finished is kept.
        NotDeterministicError: the same inputs gave other bytes than before.
    """
    _refuse_nested(config)
    if inventory is None:
        inventory = build_inventory(config)
    storage.require_writable(config.out)
    try:
        with storage.user_errors(config.out):
            return _ingest(config, inventory)
    except OSError as error:  # of the store or the disk, after all retries
        raise IncompleteError(config.out, [" ".join(str(error).split())]) from error


def _ingest(config: IngestConfig, inventory: pa.Table) -> Outcome:
    _require_conditional_writes(config)
    newest, parent = _versions(config)
    created = _claim(config)
    try:
        with EventLog(config.out) as log:
            return _Run(config, inventory, newest, parent, log).run()
    except UserError:
        if created and _is_alone(config.out):
            _remove_traces(config.out)
        raise


def _refuse_nested(config: IngestConfig) -> None:
    out, scenes = _place(config.out), _place(config.scenes)
    if f"{out}/".startswith(f"{scenes}/"):
        raise UserError(f"--out {config.out} lies inside --scenes {config.scenes}: choose a folder outside of it")


def _place(url: str) -> str:
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")


def _require_conditional_writes(config: IngestConfig) -> None:
    if not config.single_writer and not storage.creates_only(config.out):
        raise UserError(
            f"{config.out}: this store overwrites files that must be created only once (it ignores If-None-Match), "
            "so two writers could damage a dataset: see that nobody else writes there, and add --single_writer true"
        )


def _recipe(config: IngestConfig) -> Recipe:
    return Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})


def _versions(config: IngestConfig) -> tuple[int, Version | None]:
    """Return the newest version's number (0: none), and the newest one that an ingest made.

    Raises:
        UserError: it was made with another recipe, or of scenes at another place.
    """
    numbers = list_versions(config.out)
    if not numbers:
        return 0, None
    for number in reversed(numbers):
        version = read_version(config.out, number)
        if not version.record.get("operations"):
            break
    else:
        raise UserError(f"{config.out} holds selections of another dataset alone: choose another --out")
    _require_same_recipe(config, version.record.get("recipe", {}), f"version {version.version}")
    if version.record["scenes"] != config.scenes:
        raise UserError(
            f"{config.out} was made from {version.record['scenes']}, not from {config.scenes}: "
            "choose another --out, or ingest one list that names the scenes of both"
        )
    return numbers[-1], version


def _require_same_recipe(config: IngestConfig, there: dict[str, Any], what: str) -> None:
    mine = recipe_values(_recipe(config))
    other = sorted(name for name in mine.keys() | there.keys() if mine.get(name) != there.get(name))
    if other:
        told = ", ".join(f"{name} {there.get(name)!r} instead of {mine.get(name)!r}" for name in other[:3])
        raise UserError(
            f"{config.out} already holds {what} of a dataset with another recipe ({told}): "
            "choose another --out, or the same options"
        )


def _claim(config: IngestConfig) -> bool:
    """Write the recipe down, so that no other one can begin here meanwhile; return whether it was not there before."""
    url = storage.join(config.out, "recipe.json")
    data = canonical_json(recipe_values(_recipe(config)))
    if storage.create_bytes(url, data):
        return True
    _require_same_recipe(config, json.loads(storage.read_bytes(url)), f"the unfinished beginning ({url})")
    return False


def _is_alone(out: str) -> bool:
    """Say whether no other run has begun here meanwhile: there is no version, and no second inventory."""
    inventories = storage.join(out, "inventories")
    begun = storage.list_files(inventories) if storage.exists(inventories) else []
    return len(begun) <= 1 and not list_versions(out)


def _remove_traces(out: str) -> None:
    """Remove what an ingest that cannot become a dataset has left."""
    for name in ("inventories", "probes", "groups", "plans"):
        storage.remove_folder(storage.join(out, name))
    for name in ("recipe.json", "ingest.jsonl"):
        storage.remove(storage.join(out, name))
    storage.remove_empty_folder(out)


class _Run:
    """One ingest, from an inventory to a version."""

    def __init__(
        self, config: IngestConfig, inventory: pa.Table, newest: int, parent: Version | None, log: EventLog
    ) -> None:
        self._config, self._inventory, self._newest, self._parent, self._log = config, inventory, newest, parent, log
        self._recipe = _recipe(config)
        self._tools = toolchain()
        self._limits = Limits(cpu_s=config.scene_deadline_s, wall_s=3 * config.scene_deadline_s)
        absolute = kind_of(config.scenes) not in ("folder", "zip")
        self._place = Place(root=scenes_root(config.scenes), absolute=absolute)
        self._lines: list[str] = []

    def run(self) -> Outcome:
        known = self._known_scenes()
        gone = _count_missing(known["scene"], self._inventory["scene"]) if known is not None else 0
        wanted = self._inventory if known is None else _changed(self._inventory, known)
        self._log.add(
            "started", scenes=self._inventory.num_rows, new=wanted.num_rows, recipe=recipe_values(self._recipe)
        )
        if wanted.num_rows == 0 and self._parent:
            return self._outcome(self._parent, created=False, gone=gone)
        with cluster(self._config.address, self._config.workers):
            probes, scenes = self._probe(wanted)
            if known is not None:
                scenes = _changed(scenes, known)
                if scenes.num_rows == 0 and self._parent:
                    return self._outcome(self._parent, created=False, gone=gone)
            self._require_usable(scenes)
            groups = self._plan(scenes)
            markers = self._pack(groups)
        return self._outcome(self._commit(probes, scenes, groups, markers), created=True, gone=gone)

    def _known_scenes(self) -> pa.Table | None:
        if self._parent is None:
            return None
        columns = ["scene", "reason", *_COMPARED]
        return pa.concat_tables(iter_table(self._config.out, self._parent, "scenes", columns))

    def _probe(self, inventory: pa.Table) -> tuple[list[str], pa.Table]:
        """Return the URLs of the probed tables, and their rows."""
        url, num_chunks = self._write_inventory(inventory)
        about = self._place, self._recipe, self._limits, self._tools
        calls = [(self._config.out, url, chunk, *about) for chunk in range(num_chunks)]
        reasons: Counter[str] = Counter()
        probed = 0
        urls: dict[int, str] = {}
        with Progress("probe", inventory.num_rows, "scenes") as progress:

            def done(place: int, found: dict[str, Any]) -> None:
                nonlocal probed
                probed += found["num_rows"]
                reasons.update(found["reasons"])
                urls[place] = found["url"]
                progress.update(probed, f"{reasons.total()} rejected")
                self._log.progress("probe", done=probed, total=inventory.num_rows, rejected=dict(reasons))

            self._collect("probe", self._run_tasks(probe_chunk, calls, done))
        self._log.add("probed", scenes=probed, rejected=dict(reasons))
        ordered = [urls[place] for place in sorted(urls)]
        with ThreadPoolExecutor(_WRITES_AT_ONCE) as threads:
            tables = list(threads.map(_read_probes, ordered))
        return ordered, in_one_chunk(tables)

    def _write_inventory(self, inventory: pa.Table) -> tuple[str, int]:
        """Write the inventory with a row group per chunk: ids of equal leading bits, so that chunks rarely change."""
        wanted = min(max(inventory.num_rows // 256, 64), 1024)
        bits = max(0, (inventory.num_rows // wanted).bit_length() - 1)
        chunks = (scene_numbers(inventory["scene"]) >> np.uint64(64 - bits)) if bits else np.zeros(inventory.num_rows)
        starts = np.flatnonzero(np.diff(chunks.astype(np.float64), prepend=-1.0))
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, INVENTORY, compression="zstd") as writer:
            for start, end in zip(starts, [*starts[1:], inventory.num_rows], strict=True):
                writer.write_table(inventory.slice(start, end - start).cast(INVENTORY), row_group_size=end - start)
        data = sink.getvalue().to_pybytes()
        url = storage.join(self._config.out, "inventories", f"{sha256_hex(data)[:32]}.parquet")
        storage.write_bytes(url, data)
        return url, len(starts)

    def _run_tasks(self, task: Any, calls: Sequence[tuple[Any, ...]], done: Any) -> list[Failure]:
        return run_tasks(
            task,
            calls,
            done,
            attempts=self._config.attempts,
            deadline_s=self._config.group_deadline_s,
            fatal=(UserError, NotDeterministicError),
        )

    def _collect(self, phase: str, failures: Iterable[Failure]) -> None:
        """Note failures.

        Raises:
            IncompleteError: there are any: what follows needs all.
        """
        lines = [f"{phase} {failure.place}: {failure.message}" for failure in failures]
        for line in lines:
            self._log.add("failed", part=line)
        if lines:
            raise IncompleteError(self._config.out, lines)

    def _require_usable(self, scenes: pa.Table) -> None:
        if self._parent or scenes["reason"].null_count:
            return
        counts = Counter(scenes["reason"].to_pylist()).most_common(4)
        told = "; ".join(f"{count} {code} ({REMEDIES[code]})" for code, count in counts)
        raise UserError(f"none of the {scenes.num_rows} files in {self._config.scenes} can be used: {told}")

    def _plan(self, scenes: pa.Table) -> list[str]:
        """Write the groups' units; return their names."""
        units = plan_units(scenes, self._recipe)
        names: list[str] = []

        def write(group: tuple[str, bytes]) -> str:
            name, data = group
            url = group_url(self._config.out, name, ".parquet")
            if not storage.exists(url):
                storage.write_bytes(url, data)
            return name

        with ThreadPoolExecutor(_WRITES_AT_ONCE) as threads:
            names = list(threads.map(write, encode_groups(units, scenes, self._recipe, self._tools)))
        self._log.add("planned", units=units.num_rows, groups=len(names), plan=plan_id(names))
        return names

    def _pack(self, groups: list[str]) -> list[Marker]:
        about = self._place, self._recipe, self._limits, self._tools
        calls = [(self._config.out, group, *about) for group in groups]
        markers: dict[int, Marker] = {}
        tiles = rejects = num_bytes = source_bytes = 0
        with Progress("pack", len(groups), "groups") as progress:

            def done(place: int, marker: Marker) -> None:
                nonlocal tiles, rejects, num_bytes, source_bytes
                markers[place] = marker
                tiles += marker["samples"]["num_rows"]
                rejects += marker["rejects"]["num_rows"]
                num_bytes += sum(shard["size"] for shard in marker["shards"])
                source_bytes += marker["source_bytes"]
                rate = source_bytes / 1e6 / progress.elapsed_s
                figures = (
                    f"{tiles} tiles, {rejects} left out · {num_bytes / 1e6:.1f} MB in shards · read {rate:.1f} MB/s"
                )
                progress.update(len(markers), figures)
                self._log.progress(
                    "pack",
                    done=len(markers),
                    total=len(groups),
                    tiles=tiles,
                    tiles_left_out=rejects,
                    shard_bytes=num_bytes,
                    source_bytes=source_bytes,
                    retries=dict(storage.retries),
                )

            failures = self._run_tasks(pack_group, calls, done)
        self._log.add("packed", groups=len(markers), tiles=tiles, shard_bytes=num_bytes, source_bytes=source_bytes)
        self._collect("group", failures)
        return [markers[place] for place in range(len(groups))]

    def _commit(self, probes: list[str], scenes: pa.Table, groups: list[str], markers: list[Marker]) -> Version:
        before = list(self._parent.record.get("plans", [])) if self._parent else []
        packed = Packed(
            out=self._config.out,
            number=self._newest + 1,
            recipe=self._recipe,
            record={
                "scenes": self._config.scenes,
                "allow": list(self._config.allow),
                "recipe": recipe_values(self._recipe),
                "plans": [*before, {"plan": plan_id(groups), "toolchain": self._tools}],
                "parent": self._parent.version if self._parent else None,
                "operations": [],
            },
            probes=probes,
            fresh=scenes["scene"].combine_chunks(),
            markers=markers,
            parent=self._parent,
        )
        return commit(packed)

    def _outcome(self, version: Version, *, created: bool, gone: int) -> Outcome:
        out = self._config.out
        rejected: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for table in iter_table(out, version, "rejects", ["x", "reason"]):
            whole = pc.is_null(table["x"])
            rejected.update(_value_counts(table["reason"].filter(whole)))
            dropped.update(_value_counts(table["reason"].filter(pc.invert(whole))))
        if created:
            write_card(out, version)
        self._log.add("done", version=version.version, digest=version.digest, created=created, gone=gone)
        return Outcome(url=out, version=version, created=created, gone=gone, rejected=rejected, dropped=dropped)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _read_probes(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url))).cast(SCENES)


def _count_missing(known: pa.ChunkedArray, listed: pa.ChunkedArray) -> int:
    return int(len(known) - pc.sum(pc.is_in(known, value_set=listed.combine_chunks())).as_py())


def _changed(scenes: pa.Table, known: pa.Table) -> pa.Table:
    """Return the rows that are not among the known ones, or differ from them in what is known without opening them."""
    places = pc.index_in(scenes["scene"], value_set=known["scene"].combine_chunks())
    there = known.take(places)
    same = pc.is_valid(places)
    for name in _COMPARED:
        mine, theirs = scenes[name], there[name].cast(scenes[name].type)
        equal = pc.fill_null(pc.equal(mine, theirs), False)
        # A time that the inventory does not know may have come from the file.
        both_null = pc.is_null(mine) if name == "time" else pc.and_(pc.is_null(mine), pc.is_null(theirs))
        same = pc.and_(same, pc.or_(equal, both_null))
    same = pc.and_(same, _equal_codes(scenes["reason"], there["reason"]))
    return scenes.filter(pc.invert(same))


def _equal_codes(mine: pa.ChunkedArray, theirs: pa.ChunkedArray) -> pa.ChunkedArray:
    """Compare reasons as far as the inventory gives them: later ones are not known yet."""
    codes = pa.array(sorted(INVENTORY_CODES), pa.string())
    first, second = (
        pc.fill_null(pc.if_else(pc.is_in(column, value_set=codes), column, ""), "") for column in (mine, theirs)
    )
    return pc.equal(first, second)
