"""The driver: inventory, probe, plan, pack and commit, with Ray where work is many files.

All truth is in the output folder: a driver that dies is started again and goes on from what it finds there. Memory:
the inventory and the scenes' probes as Arrow tables, about 400 bytes per scene, and 1 kB per group.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from ingest.increment import Lacked, missing_scenes, same_tiles, scenes_to_pack, scenes_to_probe
from ingest.inventory import build_inventory
from ingest.log import EventLog
from ingest.look import probe_chunk
from ingest.outcome import Outcome, PackedSoFar, count_left_out, may_pass, named, told_counts, value_counts
from ingest.output import claim, find_versions, refuse_nested, remove_traces, require_conditional_writes
from ingest.pack import NotDeterministicError, group_url, pack_group
from ingest.places import located
from ingest.plan import encode_groups, in_one_chunk, plan_id, plan_units
from ingest.reasons import PASSING_CODES, REMEDIES
from ingest.sandbox import Limits
from ingest.sources import kind_of, scenes_root
from ingest.toolchain import toolchain
from ingest.warp import require_target
from shards import storage
from shards.card.page import renew_card
from shards.errors import UserError
from shards.progress import Progress
from shards.schema import INVENTORY, REJECTS, SCENES, Version, sha256_hex
from shards.settle import scene_numbers
from shards.tables import iter_table, read_version

_READS_AT_ONCE = _WRITES_AT_ONCE = 16
_NO_TILES = REJECTS.empty_table().select(["scene", "x", "y"])
_SMALLEST_CHUNK, _LARGEST_CHUNK = 8, 256  # scenes that one task probes, about


class IncompleteError(RuntimeError):
    """Some scenes or groups could not be worked on, for reasons that lie outside of them; carries one line for each."""

    def __init__(self, out: str, lines: Sequence[str], address: str = "") -> None:
        # What fails there alone is not seen, and not mended, where the command is given.
        where = f" on {address}, whose machines go by their own settings (AWS_…) and disks" if address else ""
        super().__init__(
            f"{out} is not finished: {len(lines)} parts failed{where}; run the same command again to go on"
        )
        self.lines = lines


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
    config = located(config)
    refuse_nested(config)
    if config.warp_crs:
        require_target(config.warp_crs)
    try:
        if inventory is None:
            with storage.user_errors(config.scenes):
                inventory = build_inventory(config)
        storage.require_writable(config.out)
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
        wanted, gone = self._inventory, 0
        missing = pa.chunked_array([], pa.string())
        known = self._known_scenes() if self._parent else None
        torn = _NO_TILES
        if known is not None:
            missing = missing_scenes(known, self._inventory)
            gone = len(missing)
            doubles, torn = self._known_rejects()
            lacked = Lacked(doubles, torn["scene"], missing)
            wanted = scenes_to_probe(self._inventory, known, lacked)
        recipe = recipe_values(self._recipe)
        self._log.add("started", scenes=self._inventory.num_rows, new=wanted.num_rows, recipe=recipe)
        if self._parent and not wanted.num_rows:
            return self._outcome(self._parent, created=False, gone=gone)
        with cluster(self._config.address, self._config.workers):
            probes, scenes = self._probe(wanted)
            is_news = True
            if known is not None:
                scenes, is_news = scenes_to_pack(scenes, known, lacked)
            if self._parent and not scenes.num_rows:
                return self._outcome(self._parent, created=False, gone=gone)
            self._require_usable(scenes)
            groups, num_scenes = self._plan(scenes)
            markers = self._pack(groups, num_scenes)
        if self._parent and not is_news and same_tiles(self._torn(markers), _of_scenes(torn, scenes["scene"])):
            return self._outcome(self._parent, created=False, gone=gone)
        return self._outcome(self._commit(probes, scenes, missing, groups, markers), created=True, gone=gone)

    def _known_scenes(self) -> pa.Table:
        assert self._parent
        return pa.concat_tables(iter_table(self._config.out, self._parent, "scenes", INVENTORY.names))

    def _known_rejects(self) -> tuple[pa.Table, pa.Table]:
        """Return tiles that were left out: duplicates (scene, and kept: that of the tile kept), and what may pass."""
        assert self._parent
        doubles = [pa.table({"scene": pa.array([], pa.string()), "kept": pa.array([], pa.string())})]
        torn = [_NO_TILES]
        for table in iter_table(self._config.out, self._parent, "rejects", ["scene", "x", "y", "reason", "detail"]):
            tiles = table.filter(pc.is_valid(table["x"]))
            mine = tiles.filter(pc.equal(tiles["reason"], "duplicate"))
            # A key begins with its scene's id.
            kept = pc.utf8_slice_codeunits(mine["detail"], 0, 16)
            doubles.append(pa.table({"scene": mine["scene"], "kept": kept}).cast(doubles[0].schema))
            torn.append(may_pass(tiles).select(_NO_TILES.column_names).cast(_NO_TILES.schema))
        return pa.concat_tables(doubles), pa.concat_tables(torn)

    def _torn(self, markers: Sequence[Marker]) -> pa.Table:
        """Return the tiles of new groups that are left out for what may pass."""
        named = [marker["group"] for marker in markers if set(PASSING_CODES) & set(marker["left_out"])]
        urls = (group_url(self._config.out, group, "-rejects.parquet") for group in named)
        tables = storage.in_order(_READS_AT_ONCE, (partial(_read_torn, url) for url in urls))
        return pa.concat_tables([_NO_TILES, *tables])

    def _probe(self, inventory: pa.Table) -> tuple[list[str], pa.Table]:
        """Return the URLs of the probed tables, and their rows."""
        url, bounds = self._write_inventory(inventory)
        about = self._place, self._recipe, self._limits, self._tools
        calls = [(self._config.out, url, chunk, *about) for chunk in range(len(bounds) - 1)]
        reasons: Counter[str] = Counter()
        probed = 0
        urls: dict[int, str] = {}
        with Progress("probe", inventory.num_rows, "scenes") as progress:

            def done(place: int, found: dict[str, Any]) -> None:
                nonlocal probed
                probed += found["num_rows"]
                reasons.update(found["reasons"])
                urls[place] = found["url"]
                told = f" ({told_counts(reasons, 2)})" if reasons else ""
                progress.update(probed, f"{reasons.total()} rejected{told}")
                self._log.progress("probe", done=probed, total=inventory.num_rows, rejected=dict(reasons))

            failures = self._run_tasks(probe_chunk, calls, done, progress)
        self._collect("probe", failures, lambda chunk: inventory["path"][bounds[chunk] : bounds[chunk + 1]])
        self._log.add("probed", scenes=probed, rejected=dict(reasons))
        ordered = [urls[place] for place in sorted(urls)]
        tables = list(storage.in_order(_READS_AT_ONCE, (partial(_read_probes, url) for url in ordered)))
        return ordered, in_one_chunk(tables)

    def _write_inventory(self, inventory: pa.Table) -> tuple[str, list[int]]:
        """Write the inventory with a row group per chunk: ids of equal leading bits, so that chunks rarely change.

        Returns:
            Its URL; where the chunks' rows begin, and the last one's end.
        """
        wanted = min(max(inventory.num_rows // 64, _SMALLEST_CHUNK), _LARGEST_CHUNK)
        bits = max(0, (inventory.num_rows // wanted).bit_length() - 1)
        chunks = (scene_numbers(inventory["scene"]) >> np.uint64(64 - bits)) if bits else np.zeros(inventory.num_rows)
        starts = np.flatnonzero(np.diff(chunks.astype(np.float64), prepend=-1.0)).tolist()
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, INVENTORY, compression="zstd") as writer:
            for start, end in zip(starts, [*starts[1:], inventory.num_rows], strict=True):
                writer.write_table(inventory.slice(start, end - start).cast(INVENTORY), row_group_size=end - start)
        data = sink.getvalue().to_pybytes()
        url = storage.join(self._config.out, "inventories", f"{sha256_hex(data)[:32]}.parquet")
        self.inventory_url = url
        storage.write_bytes(url, data)
        return url, [*starts, inventory.num_rows]

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

    def _collect(self, phase: str, failures: Iterable[Failure], paths: Callable[[int], pa.ChunkedArray]) -> None:
        """Note failures.

        Args:
            phase: what the failed parts are.
            failures: of the parts.
            paths: gives those of a part's scenes, by its number; asked where the failure cannot name one.

        Raises:
            IncompleteError: there are any: what follows needs all.
        """
        lines = []
        for failure in failures:
            about = f" ({named(pc.unique(paths(failure.place)).to_pylist())})" if failure.lost else ""
            lines.append(f"{phase} {failure.place}{about}: {failure.message}")
        for line in lines:
            self._log.add("failed", part=line)
        if lines:
            raise IncompleteError(self._config.out, lines, self._config.address)

    def _require_usable(self, scenes: pa.Table) -> None:
        if self._parent or scenes["reason"].null_count:
            return
        counts = Counter(value_counts(scenes["reason"])).most_common(4)
        told = "; ".join(f"{count} {code} ({REMEDIES[code]})" for code, count in counts)
        raise UserError(f"none of the {scenes.num_rows} files in {self._config.scenes} can be used: {told}")

    def _plan(self, scenes: pa.Table) -> tuple[list[str], list[int]]:
        """Write the groups' units; return their names, and of how many scenes each has the first unit."""
        units = plan_units(scenes, self._recipe)
        groups = encode_groups(units, scenes, self._recipe, self._tools)
        names = list(storage.in_order(_WRITES_AT_ONCE, (partial(self._write_group, *group) for group in groups)))
        self._log.add("planned", units=units.num_rows, groups=len(names), plan=plan_id(names))
        is_first = pc.and_(pc.equal(units["first_row"], 0), pc.equal(units["first_column"], 0))
        return names, np.bincount(units["group"].filter(is_first).to_numpy(), minlength=len(names)).tolist()

    def _write_group(self, name: str, data: bytes) -> str:
        url = group_url(self._config.out, name, ".parquet")
        if not storage.exists(url):
            storage.write_bytes(url, data)
        return name

    def _pack(self, groups: list[str], num_scenes: list[int]) -> list[Marker]:
        about = self._place, self._recipe, self._limits, self._tools
        calls = [(self._config.out, group, *about) for group in groups]
        markers: dict[int, Marker] = {}
        packed = PackedSoFar()
        with Progress("pack", len(groups), "groups") as progress:

            def done(place: int, marker: Marker) -> None:
                resumed = marker.pop("resumed")
                markers[place] = marker
                packed.add(marker, num_scenes[place], resumed=resumed)
                if resumed:
                    progress.skip(1)
                progress.update(len(markers), packed.line(progress.elapsed_s))
                self._log.progress("pack", done=len(markers), total=len(groups), **vars(packed))

            failures = self._run_tasks(pack_group, calls, done, progress)
        self._log.add("packed", groups=len(markers), **vars(packed))
        out = self._config.out
        self._collect("group", failures, lambda place: _read_paths(group_url(out, groups[place], ".parquet")))
        return [markers[place] for place in range(len(groups))]

    def _commit(
        self, probes: list[str], scenes: pa.Table, gone: pa.ChunkedArray, groups: list[str], markers: list[Marker]
    ) -> Version:
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
            gone=gone.combine_chunks(),
            markers=markers,
            parent=self._parent,
        )
        return commit(packed)

    def _outcome(self, version: Version, *, created: bool, gone: int) -> Outcome:
        out = self._config.out
        left_out = count_left_out(out, version, self._inventory["scene"])
        renew_card(out, version if created else read_version(out))
        self._log.add("done", version=version.version, digest=version.digest, created=created, gone=gone)
        is_selection = self._parent is not None and self._parent.version != self._newest
        selection = read_version(out, self._newest) if is_selection else None
        return Outcome(url=out, version=version, created=created, gone=gone, left_out=left_out, selection=selection)


def _of_scenes(tiles: pa.Table, scenes: pa.ChunkedArray) -> pa.Table:
    return tiles.filter(pc.is_in(tiles["scene"], value_set=scenes.combine_chunks()))


def _read_torn(url: str) -> pa.Table:
    table = pq.read_table(pa.BufferReader(storage.read_bytes(url)), use_threads=False)
    return may_pass(table).select(_NO_TILES.column_names).cast(_NO_TILES.schema)


def _read_paths(url: str) -> pa.ChunkedArray:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url)), columns=["path"], use_threads=False)["path"]


def _read_probes(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url)), use_threads=False).cast(SCENES)
