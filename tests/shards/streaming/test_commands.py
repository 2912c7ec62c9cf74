"""`plan` and `stream` as a user runs them."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from shards import cli
from shards.__main__ import main
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.streaming import commands as stream_cli
from shards.streaming.footprint import opening_need
from shards.streaming.order import BLOCK_BYTES, WINDOW
from shards.streaming.room import STEPS_PER_WORKER
from shards.streaming.serve import report_step
from shards.streaming.state import StreamState, begin, open_stream

REPOSITORY = Path(__file__).parents[3]
NUM_SAMPLES = 103


@pytest.fixture(scope="module")
def url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("cli") / "data"), num_samples=NUM_SAMPLES, num_shards=5)


@pytest.fixture(scope="module")
def stream(url):
    """The stream of seed 3 and batch 16, not interrupted."""
    dataset = open_dataset(url)
    return open_stream(begin([dataset], seed=3, global_batch=16), [dataset], global_batch=16)


@pytest.fixture(scope="module")
def key_at(stream):
    """A function from a number in the stream to the sample's key."""
    keys = {}
    for step in range(200):
        keys |= {slot.number: slot.row for slot in stream.slots(step)}
    names = [stream.datasets[0].read(row).key for row in range(NUM_SAMPLES)]
    return lambda number: names[keys[number]]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """A function that runs a command in this process."""

    def run_command(*arguments):
        try:
            code, error = main([str(argument) for argument in arguments]), ""
        except UserError as fault:
            code, error = 2, f"{fault}\n"
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err + error)

    return run_command


def started(*arguments):
    """Start a command in a session of its own."""
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Who runs tests in the background of a shell has them ignore Ctrl-C, and so what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until_gone(session):
    """Wait until no process of a session is left; the time limit of the test is the end of patience."""
    while any(_session(entry) == session for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        time.sleep(0.05)


def _session(entry):
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[3])


def test_help_says_the_defaults_that_hold():
    assert stream_cli._WINDOW == WINDOW
    assert stream_cli._BLOCK_MB * 2**20 == BLOCK_BYTES
    assert f"each {STEPS_PER_WORKER} steps ahead" in stream_cli._WORKERS


def test_what_a_plan_says_to_run_next_is_the_stream_that_it_planned(url, tmp_path, write_dataset, run):
    other = write_dataset(str(tmp_path / "b c"), num_samples=30, seed=1)
    chosen = ("--global_batch", "12", "--seed", "5", "--weights", "3,1", "--version", "1,1", "--lanes", "6")
    more = ("--block_mb", "0.01", "--window", "3", "--world", "2", "--node_ranks", "1", "--workers", "1")
    cache = ("--cache", tmp_path / "c d", "--cache_gb", "0.5")
    lines = run("plan", url, other, *chosen, *more, *cache).out.splitlines()
    program, _, given = lines[-1].partition(" stream ")
    assert program == "next: python -m shards"
    words = shlex.split(given)
    assert set(map(str, (url, other, *chosen, *more, *cache))) <= set(words)
    datasets = [open_dataset(each) for each in (url, other)]
    form = {"lanes": 6, "block_bytes": round(0.01 * 2**20), "window": 3, "weights": (3, 1)}
    planned = open_stream(begin(datasets, seed=5, global_batch=12, **form), datasets, global_batch=12, world=2)
    expected = [report_step(planned, False, step).keys for step in range(3)]
    printed = [line.split("\t")[1].split(" ") for line in run("stream", *words).out.splitlines()]
    assert printed == expected


def test_a_plan_without_options_says_none(url, run):
    told = run("plan", url, "--global_batch", "16").out.splitlines()[-1]
    assert told == f"next: python -m shards stream {url} --global_batch 16 --seed 0 --steps 3"


def test_plan_prints_a_table_and_what_to_run_next(url, run_stage):
    lines = run_stage("shards", "plan", url, "--global_batch", "16", check=True).stdout.splitlines()
    assert lines[0].split() == [url, "version", "1"]
    assert lines[1].split() == ["samples", "103"]
    assert any(line.startswith("cache ") and "read in place" in line for line in lines)
    following = lines[-1].removeprefix("next: python -m ").split()
    assert len(run_stage(*following, check=True).stdout.splitlines()) == 3


def test_stream_prints_steps_keys_and_digests(url, run, stream):
    arguments = ("stream", url, "--global_batch", "16", "--seed", "3", "--from_step", "4", "--steps", "3")
    told = run(*arguments, "--digest", "--workers", "2")
    expected = [report_step(stream, True, step) for step in (4, 5, 6)]
    assert told.out == "".join(f"{each.step}\t{' '.join(each.keys)}\t{each.digest}\n" for each in expected)
    assert told.err == ""
    ranks = [run(*arguments, "--world", "2", "--rank", str(rank)).out.splitlines() for rank in (0, 1)]
    for each, first, second in zip(expected, *ranks, strict=True):
        assert first.split("\t")[0] == str(each.step)
        assert first.split("\t")[1].split(" ") + second.split("\t")[1].split(" ") == each.keys


@pytest.mark.parametrize("workers", [0, 2])
def test_who_reads_the_first_lines_alone_gets_no_error(url, workers):
    process = started("stream", url, "--global_batch", "16", "--seed", "3", "--workers", workers)
    assert process.stdout.readline().startswith("0\t")
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""
    wait_until_gone(process.pid)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_ends_all_processes_in_one_line(url, workers):
    process = started("stream", url, "--global_batch", "16", "--seed", "3", "--workers", workers)
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.stdout.read()
    assert (process.wait(), process.stderr.read()) == (130, "shards: interrupted\n")
    wait_until_gone(process.pid)


def test_killed_and_resumed_it_is_one_stream(url, tmp_path, key_at):
    """Kill -9 at random moments, go on from the state with other ranks, workers and batch: nothing twice or never."""
    path, rng = tmp_path / "state.json", random.Random(0)
    begun, consumed = ["--seed", "3"], 0
    for batch, workers, world in [(16, 2, 1), (24, 0, 1), (10, 1, 1), (32, 0, 2), (16, 2, 1)]:
        process = started(
            *("stream", url, "--global_batch", batch, "--world", world, "--workers", workers, "--state", path), *begun
        )
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 9))]
        process.kill()
        lines += [line for line in process.stdout.readlines() if line.endswith("\n")]
        process.wait()
        wait_until_gone(process.pid)
        # Killed between its first line and its first state, it leaves none.
        now = StreamState.from_json(json.loads(path.read_text())).consumed if path.exists() else consumed
        assert (now - consumed) // batch in (len(lines) - 1, len(lines))
        for number, line in enumerate(lines):
            step, keys = line.rstrip("\n").split("\t")
            assert int(step) == consumed // batch + number
            whole = [key_at(consumed + number * batch + slot) for slot in range(batch)]
            assert len(keys.split(" ")) == batch // world
            assert set(keys.split(" ")) <= set(whole)
            assert world > 1 or sorted(keys.split(" ")) == sorted(whole)
        begun, consumed = ["--from_state", str(path)] if path.exists() else begun, now


def test_all_ranks_together_go_on_in_order_with_another_world(url, tmp_path, stream, key_at):
    """Kill -9 all ranks at random moments, go on with more or fewer: their lists one after another are the stream."""
    rng, begun, consumed = random.Random(1), ["--seed", "3"], 0
    for world, workers in [(2, 1), (4, 0), (1, 0)]:
        paths = [tmp_path / f"{world}-{rank}.json" for rank in range(world)]
        ranks = [
            started(
                *("stream", url, "--global_batch", 16, "--world", world, "--rank", rank, "--workers", workers),
                *("--state", path, *begun),
            )
            for rank, path in enumerate(paths)
        ]
        lines = [[process.stdout.readline() for _ in range(rng.randrange(2, 6))] for process in ranks]
        for process in ranks:
            process.kill()
        for process, mine in zip(ranks, lines, strict=True):
            mine += [line for line in process.stdout.readlines() if line.endswith("\n")]
            process.wait()
            wait_until_gone(process.pid)
        # Ranks of a training stand at the same step when it saves: the last that all have done.
        states = {StreamState.from_json(json.loads(path.read_text())).consumed: path for path in paths}
        last = min(states)
        for step in range(consumed // 16, last // 16):
            told = [mine[step - consumed // 16].rstrip("\n").split("\t") for mine in lines]
            assert [number for number, _ in told] == [str(step)] * world
            keys = [key for _, keys in told for key in keys.split(" ")]
            assert keys == [key_at(slot.number) for slot in stream.slots(step)]
        assert last > consumed
        begun, consumed = ["--from_state", str(states[last])], last


def test_a_state_of_other_data_is_refused(url, tmp_path, write_dataset, run):
    path = tmp_path / "state.json"
    run("stream", url, "--global_batch", "16", "--seed", "3", "--steps", "2", "--state", path)
    other = write_dataset(str(tmp_path / "other"), seed=1)
    going_on = ("--global_batch", "16", "--from_state", path)
    for arguments, told in [
        ((other, *going_on), f"{other} version 1 is not what the stream began with"),
        ((url, *going_on, "--seed", "3"), "--seed and --from_state exclude each other"),
        ((url, other, *going_on), "1 of 2 datasets are new to the stream: give weights for all"),
        ((url, "--global_batch", "16", "--from_state", tmp_path / "none"), "none does not exist"),
        ((url, "--global_batch", "16", "--from_state", f"{url}/versions/00000001.json"), "a damaged state of a stream"),
    ]:
        result = run("stream", *arguments)
        assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
        assert told in result.err
    lines = run("stream", url, other, *going_on, "--weights", "0,1", "--steps", "1").out.splitlines()
    assert lines[0].startswith("2\tsample-")


@pytest.fixture
def damaged(url, tmp_path):
    """A copy of the dataset with a flipped byte in row 11; its URL."""
    copy = tmp_path / "damaged"
    shutil.copytree(url, copy)
    dataset = open_dataset(str(copy))
    (place,) = dataset.places(11)
    path = Path(dataset.shards[place.shard].url)
    data = bytearray(path.read_bytes())
    data[place.offset + 600] ^= 1
    path.write_bytes(data)
    return str(copy)


def test_a_bad_sample_stops_or_is_replaced_and_written_down(damaged, tmp_path, run):
    arguments = ("stream", damaged, "--global_batch", "16", "--seed", "3", "--steps", "7", "--workers", "1")
    stopped = run(*arguments)
    assert stopped.code == 1
    assert stopped.err.startswith("shards: error: sample 11 (byte ")
    assert "does not match its checksum (--on_bad replace goes on without it)" in stopped.err
    assert len(stopped.err.splitlines()) == 1
    ledger = tmp_path / "ledger.jsonl"
    replaced = run(*arguments, "--on_bad", "replace", "--ledger", ledger)
    assert (len(replaced.out.splitlines()), replaced.err) == (7, "")
    (entry, *rest) = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert (entry["row"], entry["epoch"], entry["dataset"]) == (11, 0, damaged)
    assert entry["replaced_by"] != 11
    first, *_, last = run(*arguments, "--on_bad", "replace").err.splitlines()
    assert first == f"shards: replaced by sample {entry['replaced_by']}: {entry['fault']}"
    assert last == f"shards: {1 + len(rest)} samples replaced (--ledger keeps a list of them)"


def test_a_ledger_that_cannot_be_written_is_refused_before_the_first_step(url, run):
    result = run("stream", url, "--global_batch", "16", "--seed", "3", "--steps", "1", "--ledger", "s3://bucket/ledger")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)


def test_a_ledger_goes_on_without_what_comes_again(damaged, tmp_path, run):
    ledger, state = tmp_path / "ledger.jsonl", tmp_path / "state.json"
    options = ("--global_batch", "16", "--on_bad", "replace", "--ledger", ledger)
    run("stream", damaged, *options, "--seed", "3", "--steps", "13", "--state", state)
    once = ledger.read_text()
    assert once.count('"row": 11,') == 2  # 208 samples of 103
    first = run("stream", damaged, *options, "--seed", "3", "--steps", "1", "--state", state)
    ledger.write_text(once + '{"number": 2')
    assert first.code == run("stream", damaged, *options, "--from_state", state, "--steps", "12").code == 0
    assert ledger.read_text() == once


def test_a_missing_shard_is_one_line(damaged, run):
    for path in Path(damaged, "shards").iterdir():
        path.unlink()
    result = run("stream", damaged, "--global_batch", "16", "--seed", "3", "--workers", "1")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert ".tar: not there (sample " in result.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("stream", "--global_batch", "16"), "--seed is missing"),
        (("stream", "--global_batch", "0", "--seed", "1"), "--global_batch is 0: give 1 or more"),
        (("stream", "--global_batch", "16", "--seed", "1", "--world", "3"), "not divisible by 3 ranks"),
        (("stream", "--global_batch", "16", "--seed", "1", "--rank", "1"), "--rank is 1: of --world 1 the last is 0"),
        (("stream", "--global_batch", "16", "--seed", "1", "--steps", "-1"), "--steps is -1: give 1 or more"),
        (("stream", "--global_batch", "16", "--seed", "1", "--on_bad", "skip"), "on_bad"),
        (("stream", "--global_batch", "16", "--seed", "1", "--weights", "1;2"), "--weights is '1;2': give numbers"),
        (("stream", "--global_batch", "16", "--seed", "1", "--version", "1,1"), "2 versions of 1 datasets"),
        (("stream", "--global_batch", "16", "--seed", "1", "--version", "7"), "has no version 7"),
        (("plan", "--global_batch", "10", "--world", "4"), "not divisible by 4 ranks"),
        (("plan", "--global_batch", "16", "--lanes", "0"), "lanes 0 is below 1"),
        (("plan", "--global_batch", "16", "--block_mb", "0"), "block_bytes 0 is below 1"),
        (("plan", "--global_batch", "16", "--weights", "1,2"), "2 weights for 1 datasets"),
        (("plan",), "global_batch"),
    ],
)
def test_wrong_use_is_one_line(url, run, arguments, told):
    command, *options = arguments
    result = run(command, url, *options)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert told in result.err


@pytest.fixture(scope="module")
def bucket_url(object_store, url):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    target = f"{object_store}/stream-cli"
    s3fs.S3FileSystem().put(url, target, recursive=True)
    return target


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bucket_gives_the_same_lines_and_leaves_no_cache(bucket_url, url, run, run_stage, tmp_path, workers):
    arguments = ("--global_batch", "16", "--seed", "3", "--steps", "9", "--digest", "--block_mb", "0.02")
    cache = ("--workers", workers, "--cache", tmp_path / "cache")
    # A process of its own: workers of this one may have been started before the store's settings were known.
    there = run_stage("shards", "stream", bucket_url, *arguments, *cache, check=True)
    here = run("stream", url, *arguments)
    assert there.stdout == here.out
    assert there.stderr == ""
    assert not list((tmp_path / "cache").iterdir())


def test_a_store_that_keeps_failing_is_one_line(faulty_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shards.storage.retry.DEADLINE_S", 0.1)
    faulty_store.proxy.add("answer", status=503)
    for arguments in [
        ("plan", faulty_store.url, "--global_batch", "16"),
        ("stream", faulty_store.url, "--global_batch", "16", "--seed", "1"),
        ("index", f"{faulty_store.url}/a.tar", "--out", str(tmp_path / "made")),
    ]:
        monkeypatch.setattr(sys, "argv", ["shards", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.exit_with("shards", main)
        told = capsys.readouterr()
        assert (stopped.value.code, told.out, len(told.err.splitlines())) == (1, "", 1)
        assert re.match(r"shards: error: s3://.*: gave up after \d+ s \(throttled\)", told.err)


def test_ranks_of_a_node_must_fit_together(bucket_url, run, monkeypatch):
    arguments = (bucket_url, "--global_batch", "16", "--world", "4", "--lanes", "16")
    stream = open_stream(
        begin([open_dataset(bucket_url)], seed=0, global_batch=16, lanes=16),
        [open_dataset(bucket_url)],
        global_batch=16,
        world=4,
    )
    need = opening_need(stream, node_ranks=4, queued_steps=0)
    assert need.rank_bytes < need.node_bytes
    usage = SimpleNamespace(free=need.node_bytes - 1)
    monkeypatch.setattr("shards.streaming.room.shutil", SimpleNamespace(disk_usage=lambda _: usage))
    for result in (run("plan", *arguments), run("stream", *arguments, "--seed", "0", "--steps", "1")):
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert "the caches of 4 ranks need " in result.err
    assert run("stream", *arguments, "--seed", "0", "--steps", "1", "--node_ranks", "1").code == 0


def test_a_cache_that_is_too_small_is_refused_with_the_numbers(bucket_url, run):
    arguments = (bucket_url, "--global_batch", "16", "--cache_gb", "0.0001")
    plan = run("plan", *arguments)
    assert "requests per 1,000 samples" in plan.out
    for result in (plan, run("stream", *arguments, "--seed", "1")):
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert "the cache of a rank needs " in result.err
        assert "allowed 100.0 kB: raise --cache_gb, or lower --window, --lanes or --block_mb" in result.err
    assert "--cache is s3://b/c: a cache has to be" in run("plan", *arguments, "--cache", "s3://b/c").err
