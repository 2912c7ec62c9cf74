"""`plan` and `stream` of the command line: their options, and what they run.

Nothing heavy is imported before a command runs, so that help is instant.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from shards import cli
from shards.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from shards.dataset import Dataset
    from shards.streaming.ledger import Ledger
    from shards.streaming.serve import Report
    from shards.streaming.state import StreamState
    from shards.streaming.stream import Stream

Number = TypeVar("Number", int, float)

PLAN = (
    "say what a stream of one dataset or several comes to: steps, blocks, requests, read amplification, space for its "
    "cache, scenes in a batch; exit 2 if it cannot fit. Reads the tables alone"
)
STREAM = (
    "read a stream and print a line for each step: its number, a tab, the keys of this rank's samples in order. The "
    "same seed gives the same samples for any number of ranks and workers"
)
_WEIGHTS = (
    "how often each dataset is drawn from, as 3,1 or 0.75,0.25; 0 pauses one. By default in proportion to their samples"
)
_VERSION = "version of each dataset, as 2,1; by default the newest"
_CACHE = "folder for blocks of data in a bucket, on a local disk; by default TMPDIR. Local data need none"
_LEDGER = (
    "append a JSON line per replaced sample to this local file; with --from_state first drop those of this rank that "
    "will come again. Ranks on one machine may share it, those on different machines need a file each"
)
_CACHE_GB = "most that the cache of a rank may hold, 10⁹ bytes; by default what the plan needs"
_LANES = "parts of the data that a step draws from alike; by default the largest divisor of the batch up to 256"
_WORKERS = "processes that read for a rank, each 2 steps ahead; 0: the command itself"
# Equal to shards.streaming.order's WINDOW and BLOCK_BYTES: its import would load numpy for a line of help.
_WINDOW, _BLOCK_MB = 4, 2.0
_DEFAULTS: dict[str, Any] = {
    "weights": None,
    "version": None,
    "world": 1,
    "node_ranks": None,
    "workers": 0,
    "cache": None,
    "cache_gb": None,
    "lanes": None,
    "block_mb": _BLOCK_MB,
    "window": _WINDOW,
}
"""Of the options that `plan` and `stream` have in common and that can be left out."""


def add_plan_options(parser: cli.Parser) -> None:
    """Add the options of `plan`."""
    _add_common_options(parser, {"type": int, "default": 0})


def add_stream_options(parser: cli.Parser) -> None:
    """Add the options of `stream`."""
    _add_common_options(parser, {"type": int | None, "default": None})
    parser.add_argument("--rank", type=int, default=0, help="whose samples to print, from 0")
    parser.add_argument("--from_step", type=int, default=0, help="the first step to print")
    parser.add_argument("--steps", type=int | None, default=None, help="how many to print; endless by default")
    parser.add_argument(
        "--on_bad",
        type=Literal["stop", "replace"],
        default="stop",
        help="what to do at a damaged sample: stop, or take another one of the same block instead and say so",
    )
    parser.add_argument("--ledger", type=str | None, default=None, help=_LEDGER)
    parser.add_argument(
        "--digest",
        action="store_true",
        help="print a third column: sha256 of the samples' numbers in the stream, keys and members",
    )
    parser.add_argument(
        "--state", type=str | None, default=None, help="keep the state after the last step printed in this file (JSON)"
    )
    parser.add_argument(
        "--from_state",
        type=str | None,
        default=None,
        help="go on from such a file, if you like with other ranks, workers, batch, weights, or further datasets",
    )


def _add_common_options(parser: cli.Parser, seed: dict[str, Any]) -> None:
    parser.add_argument("urls", metavar="url", type=str, nargs="+", help="the datasets: folders or bucket URLs")
    parser.add_argument("--global_batch", type=int, required=True, help="samples of a step, all ranks together")
    parser.add_argument("--seed", **seed, help="the order follows from it and the data alone")
    for name, kind, text in [
        ("weights", str | None, _WEIGHTS),
        ("version", str | None, _VERSION),
        ("world", int, "number of ranks; must divide the global batch"),
        ("node_ranks", int | None, "ranks that share a disk for their caches; all by default"),
        ("workers", int, _WORKERS),
        ("cache", str | None, _CACHE),
        ("cache_gb", float | None, _CACHE_GB),
        ("lanes", int | None, _LANES),
        ("block_mb", float, "size of a block, 2²⁰ bytes: read at once"),
        ("window", int, "blocks of a lane that are shuffled together"),
    ]:
        parser.add_argument(f"--{name}", type=kind, default=_DEFAULTS[name], help=text)


def run_plan(options: cli.Namespace) -> int:
    """Print the plan; see `add_plan_options`."""
    _require_at_least(options, global_batch=1, world=1, workers=0, node_ranks=1)
    from shards.streaming.plan import make_plan
    from shards.streaming.room import is_remote, require_fits

    datasets = _open(options)
    stream = _open_stream(options, _begin(options, datasets), datasets)
    plan = make_plan(stream, node_ranks=options.node_ranks, num_workers=options.workers)
    print(*plan.lines(), sep="\n")
    if any(map(is_remote, datasets)):
        require_fits(plan.need, folder=_folder(options), limit_bytes=_limit(options), node_ranks=plan.node_ranks)
    print(f"next: {_following(options)}")
    return 0


def _following(options: cli.Namespace) -> str:
    """Return the command that reads the stream that was planned."""
    given = {"global_batch": options.global_batch, "seed": options.seed}
    given |= {name: options[name] for name, default in _DEFAULTS.items() if options[name] != default}
    words = [*options.urls, *itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in given.items())]
    return f"python -m shards stream {shlex.join(words)} --steps 3"


def run_stream(options: cli.Namespace) -> int:
    """Print the steps of a stream; see `add_stream_options`."""
    _require_at_least(options, global_batch=1, world=1, node_ranks=1, workers=0, rank=0, from_step=0, steps=1)
    if options.rank >= options.world:
        raise UserError(f"--rank is {options.rank}: of --world {options.world} the last is {options.world - 1}")
    from shards.dataset import CorruptSampleError
    from shards.streaming.ledger import Ledger
    from shards.streaming.processes import ProcessLostError

    datasets = _open(options)
    state = _read_state(options) if options.from_state is not None else _begin(options, datasets)
    with _stream_with_cache(options, state, datasets) as stream:
        going_on = stream if options.from_state is not None else None
        ledger = None if options.ledger is None else Ledger(options.ledger, going_on)
        try:
            return _print_steps(options, stream, ledger)
        except CorruptSampleError as error:
            remedy = " (--on_bad replace goes on without it)" if options.on_bad == "stop" else ""
            print(f"shards: error: {error}{remedy}", file=sys.stderr)
        except ProcessLostError as error:
            print(f"shards: error: {error}", file=sys.stderr)
    return 1


def _print_steps(options: cli.Namespace, stream: Stream, ledger: Ledger | None) -> int:
    from shards.streaming.serve import in_turn, report_step

    steps = itertools.count(options.from_step)
    chosen = steps if options.steps is None else itertools.islice(steps, options.steps)
    # Steps are counted from the stream's beginning, also where it goes on with another batch.
    before = stream.start // stream.global_batch
    make = partial(report_step, stream, options.digest)
    num_replaced = 0
    with contextlib.closing(in_turn(make, chosen, options.workers)) as reports:
        try:
            for report in reports:
                columns = [str(before + report.step), " ".join(map(_plain, report.keys))]
                print(*columns, *filter(None, [report.digest]), sep="\t", flush=True)
                num_replaced += len(report.replaced)
                _keep(options, stream, report, ledger)
        finally:
            if num_replaced and ledger is None:
                print(f"shards: {num_replaced} samples replaced (--ledger keeps a list of them)", file=sys.stderr)
    return 0


def _plain(key: str) -> str:
    """Return a key, in JSON's quotes if it has blanks (tars of others may hold such)."""
    return json.dumps(key) if any(map(str.isspace, key)) else key


def _keep(options: cli.Namespace, stream: Stream, report: Report, ledger: Ledger | None) -> None:
    """Write down what a step leaves behind, and let go of what was read for it."""
    from shards.storage import user_errors, write_bytes
    from shards.streaming.state import state_at

    if ledger is None:
        for each in report.replaced:
            print(f"shards: replaced by sample {each.replaced_by}: {each.fault}", file=sys.stderr)
    elif report.replaced:
        ledger.append(report.replaced)
    if options.state is not None:
        state = state_at(stream, report.step + 1).to_json()
        with user_errors(options.state):
            write_bytes(options.state, json.dumps(state).encode() + b"\n")
    stream.move_on(report.step + 1)


def _open(options: cli.Namespace) -> list[Dataset]:
    from shards.dataset import open_dataset

    versions: Sequence[int | None] = _numbers(options, "version", int) or [None] * len(options.urls)
    if len(versions) != len(options.urls):
        raise UserError(f"--version names {len(versions)} versions of {len(options.urls)} datasets: give one for each")
    return [open_dataset(url, version) for url, version in zip(options.urls, versions, strict=True)]


def _begin(options: cli.Namespace, datasets: Sequence[Dataset]) -> StreamState:
    from shards.streaming.state import begin

    if options.seed is None:
        raise UserError("--seed is missing: the order follows from it (or give --from_state)")
    return begin(
        datasets,
        seed=options.seed,
        global_batch=options.global_batch,
        weights=_numbers(options, "weights", float),
        lanes=options.lanes,
        block_bytes=round(options.block_mb * 2**20),
        window=options.window,
    )


def _read_state(options: cli.Namespace) -> StreamState:
    from shards.storage import read_bytes, user_errors
    from shards.streaming.state import StreamState

    fixed = {"seed": None, "lanes": None, "block_mb": _BLOCK_MB, "window": _WINDOW, "from_step": 0}
    given = [f"--{name}" for name, default in fixed.items() if options[name] != default]
    if given:
        raise UserError(f"{', '.join(given)} and --from_state exclude each other: the state says it")
    with user_errors(options.from_state):
        data = read_bytes(options.from_state)
    try:
        return StreamState.from_json(json.loads(data))
    except ValueError as error:
        raise UserError(f"{options.from_state}: {error}") from error


def _open_stream(options: cli.Namespace, state: StreamState, datasets: Sequence[Dataset]) -> Stream:
    from shards.streaming.state import open_stream

    return open_stream(
        state,
        datasets,
        global_batch=options.global_batch,
        weights=_numbers(options, "weights", float),
        rank=options.get("rank", 0),
        world=options.world,
        on_bad=options.get("on_bad", "stop"),
    )


@contextlib.contextmanager
def _stream_with_cache(options: cli.Namespace, state: StreamState, datasets: Sequence[Dataset]) -> Iterator[Stream]:
    from shards.streaming.ahead import cached
    from shards.streaming.footprint import opening_need
    from shards.streaming.room import STEPS_PER_WORKER, is_remote, require_fits

    stream = _open_stream(options, state, datasets)
    if not any(map(is_remote, datasets)):
        yield stream
        return
    node_ranks = min(options.node_ranks or options.world, options.world)
    queued_steps = STEPS_PER_WORKER * options.workers
    need = opening_need(stream, node_ranks=node_ranks, queued_steps=queued_steps)
    folder, limit_bytes = _folder(options), _limit(options)
    require_fits(need, folder=folder, limit_bytes=limit_bytes, node_ranks=node_ranks)
    limit_bytes = limit_bytes or need.rank_bytes
    with cached(stream, folder, limit_bytes, first_step=options.from_step, queued_steps=queued_steps):
        yield stream


def _folder(options: cli.Namespace) -> Path:
    from shards.streaming.room import cache_folder

    return cache_folder(options.cache)


def _limit(options: cli.Namespace) -> int | None:
    return None if options.cache_gb is None else round(options.cache_gb * 1e9)


def _numbers(options: cli.Namespace, name: str, kind: Callable[[str], Number]) -> list[Number] | None:
    text = options[name]
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--{name} is {text!r}: give numbers with commas between them, one for each dataset") from error


def _require_at_least(options: cli.Namespace, **limits: int) -> None:
    for name, limit in limits.items():
        if options[name] is not None and options[name] < limit:
            raise UserError(f"--{name} is {options[name]}: give {limit} or more")
