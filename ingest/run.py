"""The driver: inventory, probe, plan, pack and commit, with Ray where work is many files.

All truth is in the output folder: a driver that dies is started again and goes on from what it finds there. Memory:
the inventory and the scenes' probes as Arrow tables, about 400 bytes per scene, and 1 kB per group.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.access import Place
from ingest.cluster import Failure, cluster, run_tasks
from ingest.commit import Marker, Packed, commit
from ingest.config import IngestConfig, recipe_values
from ingest.increment import count_missing, scenes_to_pack, scenes_to_probe
from ingest.inventory import build_inventory
from ingest.log import EventLog
from ingest.look import probe_chunk
from ingest.output import claim, find_versions, refuse_nested, remove_traces, require_conditional_writes
from ingest.pack import NotDeterministicError, group_url, pack_group
from ingest.plan import encode_groups, in_one_chunk, plan_id, plan_units
from ingest.reasons import REMEDIES
from ingest.sandbox import Limits
from ingest.sources import kind_of, scenes_root
from ingest.toolchain import toolchain
from shards import storage
from shards.card.page import write_card
from shards.errors import UserError
from shards.progress import Progress
from shards.schema import INVENTORY, SCENES, Version, sha256_hex
from shards.settle import scene_numbers
from shards.tables import iter_table

_READS_AT_ONCE = _WRITES_AT_ONCE = 16
_SMALLEST_CHUNK, _LARGEST_CHUNK = 8, 256  # scenes that one task probes, about


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
    refuse_nested(config)
    if inventory is None:
        inventory = build_inventory(config)
    storage.require_writable(config.out)
    try:
        with storage.user_errors(config.out):
            return _ingest(config, inventory)
    except OSError as error:  # of the store or the disk, after all retries
        raise IncompleteError(config.out, [" ".join(str(error).split())]) from error


def _ingest(config: IngestConfig, inventory: pa.Table) -> Outcome:
    require_conditional_writes(config)
    newest, parent = find_versions(config)
    created = claim(config)
    run: _Run | None = None
    try:
        with EventLog(config.out) as log:
            run = _Run(config, inventory, newest, parent, log)
            return run.run()
    except UserError:
        if created:
            remove_traces(config.out, run.inventory_url if run else None)
        raise


@dataclass
class _PackedSoFar:
    """What the finished groups add up to."""

    tiles: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    shard_bytes: int = 0
    source_bytes: int = 0

    def add(self, marker: Marker) -> None:
        self.tiles += marker["samples"]["num_rows"]
        self.left_out.update(marker["left_out"])
        self.shard_bytes += sum(shard["size"] for shard in marker["shards"])
        self.source_bytes += marker["source_bytes"]

    def line(self, elapsed_s: float) -> str:
        reasons = ", ".join(f"{count} {code}" for code, count in self.left_out.most_common(2))
        left_out = f"{self.left_out.total()} left out" + (f" ({reasons})" if reasons else "")
        rate = f"read {self.source_bytes / 1e6 / elapsed_s:.1f} MB/s"
        return f"{self.tiles} tiles, {left_out} · {self.shard_bytes / 1e6:.1f} MB in shards · {rate}"


class _Run:
    """One ingest, from an inventory to a version."""

    def __init__(
        self, config: IngestConfig, inventory: pa.Table, newest: int, parent: Version | None, log: EventLog
    ) -> None:
        self._config, self._inventory, self._newest, self._parent, self._log = config, inventory, newest, parent, log
        self._recipe = config.recipe()
        self._tools = toolchain()
        self._limits = Limits(cpu_s=config.max_scene_cpu_s, wall_s=config.scene_deadline_s)
        absolute = kind_of(config.scenes) not in ("folder", "zip")
        self._place = Place(root=scenes_root(config.scenes), absolute=absolute)
        self.inventory_url: str | None = None
        """Where the inventory lies, once it is written."""

    def run(self) -> Outcome:
        wanted, again, gone = self._inventory, pa.array([], pa.string()), 0
        known = self._known_scenes() if self._parent else None
        if known is not None:
            gone = count_missing(known, self._inventory)
            wanted, again = scenes_to_probe(self._inventory, known, self._known_doubles())
        recipe = recipe_values(self._recipe)
        self._log.add("started", scenes=self._inventory.num_rows, new=wanted.num_rows, recipe=recipe)
        if self._parent and not wanted.num_rows:
            return self._outcome(self._parent, created=False, gone=gone)
        with cluster(self._config.address, self._config.workers):
            probes, scenes = self._probe(wanted)
            if known is not None:
                scenes = scenes_to_pack(scenes, known, again)
            if self._parent and not scenes.num_rows:
                return self._outcome(self._parent, created=False, gone=gone)
            self._require_usable(scenes)
            groups = self._plan(scenes)
            markers = self._pack(groups)
        return self._outcome(self._commit(probes, scenes, groups, markers), created=True, gone=gone)

    def _known_scenes(self) -> pa.Table:
        assert self._parent
        return pa.concat_tables(iter_table(self._config.out, self._parent, "scenes", INVENTORY.names))

    def _known_doubles(self) -> pa.Table:
        """Return the scenes of tiles that were left out as duplicates, and of the tiles that are kept for them."""
        assert self._parent
        parts = [pa.table({"scene": pa.array([], pa.string()), "kept": pa.array([], pa.string())})]
        for table in iter_table(self._config.out, self._parent, "rejects", ["scene", "reason", "detail"]):
            doubles = table.filter(pc.equal(table["reason"], "duplicate"))
            # A key begins with its scene's id.
            kept = pc.utf8_slice_codeunits(doubles["detail"], 0, 16)
            parts.append(pa.table({"scene": doubles["scene"], "kept": kept}).cast(parts[0].schema))
        return pa.concat_tables(parts)

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

            self._collect("probe", self._run_tasks(probe_chunk, calls, done, progress))
        self._log.add("probed", scenes=probed, rejected=dict(reasons))
        ordered = [urls[place] for place in sorted(urls)]
        tables = list(storage.in_order(_READS_AT_ONCE, (partial(_read_probes, url) for url in ordered)))
        return ordered, in_one_chunk(tables)

    def _write_inventory(self, inventory: pa.Table) -> tuple[str, int]:
        """Write the inventory with a row group per chunk: ids of equal leading bits, so that chunks rarely change."""
        wanted = min(max(inventory.num_rows // 64, _SMALLEST_CHUNK), _LARGEST_CHUNK)
        bits = max(0, (inventory.num_rows // wanted).bit_length() - 1)
        chunks = (scene_numbers(inventory["scene"]) >> np.uint64(64 - bits)) if bits else np.zeros(inventory.num_rows)
        starts = np.flatnonzero(np.diff(chunks.astype(np.float64), prepend=-1.0))
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, INVENTORY, compression="zstd") as writer:
            for start, end in zip(starts, [*starts[1:], inventory.num_rows], strict=True):
                writer.write_table(inventory.slice(start, end - start).cast(INVENTORY), row_group_size=end - start)
        data = sink.getvalue().to_pybytes()
        url = storage.join(self._config.out, "inventories", f"{sha256_hex(data)[:32]}.parquet")
        self.inventory_url = url
        storage.write_bytes(url, data)
        return url, len(starts)

    def _run_tasks(self, task: Any, calls: Sequence[tuple[Any, ...]], done: Any, progress: Progress) -> list[Failure]:
        return run_tasks(
            task,
            calls,
            done,
            attempts=self._config.attempts,
            deadline_s=self._config.group_deadline_s,
            fatal=(UserError, NotDeterministicError),
            tick=progress.tick,
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
        counts = Counter(_value_counts(scenes["reason"])).most_common(4)
        told = "; ".join(f"{count} {code} ({REMEDIES[code]})" for code, count in counts)
        raise UserError(f"none of the {scenes.num_rows} files in {self._config.scenes} can be used: {told}")

    def _plan(self, scenes: pa.Table) -> list[str]:
        """Write the groups' units; return their names."""
        units = plan_units(scenes, self._recipe)
        groups = encode_groups(units, scenes, self._recipe, self._tools)
        names = list(storage.in_order(_WRITES_AT_ONCE, (partial(self._write_group, *group) for group in groups)))
        self._log.add("planned", units=units.num_rows, groups=len(names), plan=plan_id(names))
        return names

    def _write_group(self, name: str, data: bytes) -> str:
        url = group_url(self._config.out, name, ".parquet")
        if not storage.exists(url):
            storage.write_bytes(url, data)
        return name

    def _pack(self, groups: list[str]) -> list[Marker]:
        about = self._place, self._recipe, self._limits, self._tools
        calls = [(self._config.out, group, *about) for group in groups]
        markers: dict[int, Marker] = {}
        packed = _PackedSoFar()
        with Progress("pack", len(groups), "groups") as progress:

            def done(place: int, marker: Marker) -> None:
                markers[place] = marker
                packed.add(marker)
                progress.update(len(markers), packed.line(progress.elapsed_s))
                self._log.progress("pack", done=len(markers), total=len(groups), **vars(packed))

            failures = self._run_tasks(pack_group, calls, done, progress)
        self._log.add("packed", groups=len(markers), **vars(packed))
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
        if created or not storage.exists(storage.join(out, "card.html")):
            write_card(out, version)
        self._log.add("done", version=version.version, digest=version.digest, created=created, gone=gone)
        return Outcome(url=out, version=version, created=created, gone=gone, rejected=rejected, dropped=dropped)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _read_probes(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url))).cast(SCENES)
