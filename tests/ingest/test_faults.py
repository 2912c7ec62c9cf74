"""Faults change nothing: whatever is killed, stopped, full, lost or late on the way, the same dataset comes out.

Real processes on one Ray cluster for the module, a real object store behind a proxy that holds, loses and refuses
requests at the moments that matter. `make prove` runs the longer ones, which prove more of the same.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
from ray._raylet import Config

import ingest.run
from ingest.access import Place
from ingest.config import IngestConfig, Recipe
from ingest.look import probe_row
from ingest.run import IncompleteError
from ingest.run import ingest as run_ingest
from ingest.sandbox import Decoder
from shards import storage
from shards.errors import UserError
from shards.tables import list_versions, read_table, read_version
from shards.verify import verify
from tests.fault_proxy import FaultProxy
from tests.ingest.rasters import inventory_row

REPOSITORY = Path(__file__).parents[2]
CLUSTER = """
import sys
from ingest.cluster import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
         object_store_memory=128 * 2**20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
ALL_MARKERS = "/groups/[0-9a-f]+.json"


@dataclass
class World:
    """A cluster, a bucket behind a proxy, scenes, and what they become where nothing goes wrong."""

    bucket: str
    proxy: FaultProxy
    address: str
    pid: int
    """Of the cluster."""
    scenes: Path
    num_outs: int = 0
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def out(self):
        """Return a new place in the bucket."""
        self.num_outs += 1
        return f"{self.bucket}/out-{self.num_outs}"

    def options(self, out, **values):
        """Return the options of a run."""
        chosen = {"scenes": str(self.scenes), "out": str(out), "tile_px": 64, "shard_mb": 0.1, "address": self.address}
        return chosen | values

    def ingest(self, out, **values):
        """Ingest with the driver in this process."""
        return run_ingest(IngestConfig(**self.options(out, **values)))

    def start(self, out, *, before=(), environment=None, **values):
        """Start `python -m ingest`."""
        flags = [word for name, value in self.options(out, **values).items() for word in (f"--{name}", str(value))]
        driver = subprocess.Popen(
            [*before, sys.executable, "-m", "ingest", *flags],
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.drivers.append(driver)
        return driver

    def processes(self, name):
        """Return the ids of the cluster's processes with a name in their command line."""
        return [pid for pid in descendants(self.pid) if name in command_line(pid)]


def descendants(pid):
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its in parents.items() if its == parent]
        found += children
        waiting += children
    return found


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def wait_for(condition, what, driver=None, timeout_s=240):
    """Wait for a condition, as long as a driver goes on."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert driver is None or driver.poll() is None, f"the run ended before: {what}"
        assert time.monotonic() < deadline_s, f"still waiting: {what}"
        time.sleep(0.02)
    return found


def finish(driver):
    """Return (exit code, stdout, stderr)."""
    out, err = driver.communicate(timeout=180)
    return driver.returncode, out, err


def write_scene(path, seed, bands=3):
    pixels = np.random.default_rng(seed).integers(1, 255, (bands, 192, 128), np.uint8)
    transform = rasterio.Affine(0.5, 0, 4e5 + 1000 * seed, 0, -0.5, 5e6)
    with rasterio.open(
        path, "w", driver="GTiff", width=128, height=192, count=bands, dtype="uint8", crs="EPSG:32633",
        transform=transform, tiled=True, blockxsize=64, blockysize=64,
    ) as target:  # fmt: skip
        target.write(pixels)


@pytest.fixture(scope="module")
def world(object_store, tmp_path_factory):
    import s3fs

    scenes = tmp_path_factory.mktemp("scenes")
    for number in range(10):
        write_scene(scenes / f"scene{number}.tif", number)
    write_scene(scenes / "grey.tif", 10, bands=1)
    (scenes / "notes.txt").write_text("not a scene")
    patch = pytest.MonkeyPatch()
    with FaultProxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            address = process.stdout.readline().strip()
            assert address, "the cluster did not start"
            # A cluster that `ray.init` starts wants its token; who joins it must say so, here too.
            patch.setenv("RAY_AUTH_MODE", "token")
            Config.initialize("")
            yield World(f"{object_store}/faults", proxy, address, process.pid, scenes)
        finally:
            process.stdin.close()
            process.wait(60)
            patch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def no_faults_left(world):
    yield
    for driver in world.drivers:
        driver.kill()
        if driver.stdout and not driver.stdout.closed:
            print(*driver.communicate())  # shown where a test failed
    world.drivers.clear()
    world.proxy.clear()


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """The dataset that faults must not change, in a local folder."""
    outcome = world.ingest(tmp_path_factory.mktemp("undisturbed") / "data")
    assert outcome.version.num_samples == 60
    assert outcome.rejected == {"bands_missing": 1, "not_a_raster": 1}
    assert len(groups(outcome.url)) >= 8
    return outcome


def groups(out):
    """Return the names of the groups that have markers."""
    names = [info.path for info in storage.list_files(storage.join(str(out), "groups"))]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def events(out):
    """Return the log's events but those of progress; each line must be a JSON object."""
    lines = storage.read_bytes(storage.join(str(out), "ingest.jsonl")).splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] != "progress"]


def require_undisturbed(out, undisturbed):
    """Find one version of the same content in the same shards, whole, with nothing half-written beside it."""
    assert list_versions(str(out)) == [1]
    assert list(verify(str(out))) == []
    version = read_version(str(out))
    assert version.digest == undisturbed.version.digest
    theirs = read_table(undisturbed.url, undisturbed.version, "shards")
    assert read_table(str(out), version, "shards").to_pylist() == theirs.to_pylist()
    assert groups(out) == groups(undisturbed.url)


def kill_workers(world):
    """Kill -9 all workers that pack; return how many."""
    pids = world.processes("ray::pack_group")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


def test_workers_killed_before_between_and_after_their_writes(world, undisturbed):
    out, proxy = world.out(), world.proxy
    shard = proxy.add("stall", method="PUT", path="/shards/", nth=1, seconds=60)
    driver = world.start(out)
    wait_for(lambda: shard.num_hit, "a shard's upload", driver)
    marker = proxy.add("stall", method="PUT", path=ALL_MARKERS, nth=1, seconds=60)
    assert kill_workers(world)
    wait_for(lambda: marker.num_hit, "a marker's upload", driver)
    reply = proxy.add("hold_reply", method="PUT", path=ALL_MARKERS, nth=1)
    assert kill_workers(world)
    wait_for(reply.held.is_set, "a marker's reply", driver)
    assert kill_workers(world)
    code, stdout, stderr = finish(driver)
    assert (code, "digest: " + undisturbed.version.digest in stdout) == (0, True), stderr
    require_undisturbed(out, undisturbed)
    log = events(out)
    assert [event["event"] for event in log] == ["started", "probed", "planned", "packed", "done"]
    assert log[1]["rejected"] == {"bands_missing": 1, "not_a_raster": 1}
    assert (log[3]["groups"], log[3]["tiles"]) == (len(groups(undisturbed.url)), 60)
    assert log[4]["digest"] == undisturbed.version.digest


DRIVER_MOMENTS = {
    "probes": ("stall", "/probes/"),
    "plan": ("stall", "/groups/[0-9a-f]+.parquet"),
    "shard": ("stall", "/shards/"),
    "between shard and marker": ("stall", ALL_MARKERS),
    "after the marker": ("hold_reply", ALL_MARKERS),
    "tables": ("stall", "/tables/"),
    "version on its way": ("hold", "/versions/"),
}


def test_drivers_killed_one_after_the_other(world, undisturbed):
    out = world.out()
    late = None
    for moment, (fault, path) in DRIVER_MOMENTS.items():
        if moment in ("shard", "after the marker", "version on its way"):
            late = kill_driver_at(world, out, fault, path)
    assert not list_versions(out)
    assert world.ingest(out).created
    # The dead driver's version arrives after all.
    late.release()
    world.proxy.wait_for("PUT", "/versions/.*json")
    wait_for(lambda: any(status == 412 for _, path, status in world.proxy.log if "/versions/" in path), "the late PUT")
    require_undisturbed(out, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("moment", [*DRIVER_MOMENTS, "version made"])
def test_driver_killed_then_the_same_command_again(world, undisturbed, moment):
    out = world.out()
    fault, path = DRIVER_MOMENTS.get(moment, ("hold_reply", "/versions/"))
    kill_driver_at(world, out, fault, path)
    world.proxy.clear()
    code, stdout, stderr = finish(world.start(out))
    assert code == 0, stderr
    if moment != "version on its way":  # it arrives now, before the second run looks or after
        assert ("is already there" in stdout) == (moment == "version made")
    require_undisturbed(out, undisturbed)


def kill_driver_at(world, out, fault, path):
    """Kill -9 the driver when the first matching PUT is on its way; return the rule."""
    rule = world.proxy.add(fault, method="PUT", path=path, nth=1, seconds=60)
    driver = world.start(out)
    wait_for(lambda: rule.num_hit and (rule.held.is_set() or fault == "stall"), path, driver)
    driver.kill()
    driver.communicate()
    # The cluster stops the dead driver's tasks by itself.
    wait_for(lambda: not world.processes("ray::pack_group"), "workers of a dead driver go on")
    return rule


def test_group_that_hangs_is_stopped_and_tried_again_or_listed(world, undisturbed):
    out, proxy = world.out(), world.proxy
    first, other = groups(undisturbed.url)[:2]
    late = proxy.add("hold", method="PUT", path=f"/groups/{first}.json", nth=1)
    proxy.add("stall", method="PUT", path=f"/groups/{other}.json", seconds=60)
    code, _, stderr = finish(world.start(out, group_deadline_s=9, attempts=2))
    assert code == 1
    failed = [line for line in stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    told = r"not done after 9 s: raise --group_deadline_s if it needs longer \(tried 2 times\)"
    assert re.fullmatch(rf"failed: group \d+ \((scene\d\.tif(, | and \d+ more)?)+\): {told}", failed[0])
    assert "is not finished: 1 parts failed; run the same command again to go on" in stderr
    assert groups(out) == [name for name in groups(undisturbed.url) if name != other]
    assert not list_versions(out)
    assert [event["part"] for event in events(out) if event["event"] == "failed"] == [failed[0][len("failed: ") :]]
    proxy.clear()  # and the first attempt's marker arrives, long after the second's
    wait_for(
        lambda: [status for _, path, status in proxy.log if f"/groups/{first}.json" in path][-1] == 412, "late marker"
    )
    assert late.num_hit == 1
    assert world.ingest(out).created
    require_undisturbed(out, undisturbed)


@pytest.mark.long
def test_decoders_that_hang(world, undisturbed):
    out = world.out()
    rule = world.proxy.add("hold", method="PUT", path="/shards/")
    driver = world.start(out, scene_deadline_s=2)
    wait_for(rule.held.is_set, "a shard", driver)
    stopped = world.processes("ingest.decoder")
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    rule.release()
    code, _, stderr = finish(driver)
    assert code == 0, stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)
    require_undisturbed(out, undisturbed)


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.long)])
def test_sources_that_change_in_mid_run(world, tmp_path, place):
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    source = str(scenes)
    if place == "bucket":
        source = world.out()
        upload(scenes, source)
    out = world.out()
    rule = world.proxy.add("hold", method="PUT", path="/shards/")
    driver = world.start(out, scenes=source, attempts=2)
    wait_for(rule.held.is_set, "a shard", driver)
    (scenes / "scene0.tif").unlink()
    write_scene(scenes / "scene1.tif", 99)
    cut = (scenes / "scene2.tif").read_bytes()[:30_000]
    (scenes / "scene2.tif").write_bytes(cut)
    if place == "bucket":
        storage.remove(storage.join(source, "scene0.tif"))
        upload(scenes, source, ("scene1.tif", "scene2.tif"))
    rule.release()
    code, _, stderr = finish(driver)
    assert code == 1
    assert f"{source}/scene0.tif is gone: run again to go on without it" in stderr
    for name in ("scene1.tif", "scene2.tif"):
        assert f"{source}/{name} changed while it was being ingested: run again" in stderr
    assert groups(out)  # the rest went on
    assert not list_versions(out)
    outcome = world.ingest(out, scenes=source)
    assert list(verify(out)) == []
    states = {row["path"]: row for row in read_table(out, outcome.version, "scenes").to_pylist()}
    assert "scene0.tif" not in states
    assert states["scene1.tif"]["num_tiles"] == 6
    assert 0 < states["scene2.tif"]["num_tiles"] < 6
    assert states["scene2.tif"]["num_dropped"] == 6 - states["scene2.tif"]["num_tiles"]
    fresh = world.ingest(tmp_path / "fresh", scenes=str(scenes))
    assert outcome.version.digest == fresh.version.digest


def upload(folder, url, names=None):
    for name in names or sorted(path.name for path in folder.iterdir()):
        storage.write_bytes(storage.join(url, name), (folder / name).read_bytes())


@pytest.mark.long
def test_scratch_that_is_full(world, undisturbed, tmp_path):
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    inside = f'mount -t tmpfs -o size=64k tiny {tiny} && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    out = tmp_path / "out"
    places = {"TMPDIR": str(tiny), "RAY_TMPDIR": "/tmp"}
    driver = world.start(out, before=alone, environment=places, address="", workers=1, attempts=2)
    code, _, stderr = finish(driver)
    assert code == 1, stderr
    failed = [line for line in stderr.splitlines() if line.startswith("failed: ")]
    assert failed
    assert all("No space left on device" in line and str(tiny) in line for line in failed), stderr
    assert not list_versions(str(out))
    assert not list(out.rglob("*.tmp"))
    world.ingest(out)
    require_undisturbed(out, undisturbed)


def test_storms_cuts_and_lost_replies(world, undisturbed, monkeypatch):
    out, proxy = world.out(), world.proxy
    for path in ("recipe.json", "/shards/", ALL_MARKERS):
        proxy.add("drop_reply", method="PUT", path=path, nth=1)
    down = proxy.add("answer", method="PUT", path="/tables/", status=503)
    # The driver finds the store down for longer than it waits.
    with monkeypatch.context() as patch:
        patch.setattr("shards.storage.retry.DEADLINE_S", 2.0)
        with pytest.raises(IncompleteError, match="is not finished: 1 parts failed") as caught:
            world.ingest(out)
    assert "/tables/" in caught.value.lines[0]
    assert "throttled" in caught.value.lines[0]
    assert down.num_hit > 1
    proxy.clear()
    # The groups are done already: this time they are made anew in the storm.
    storage.remove_folder(storage.join(out, "groups"))
    proxy.add("drop_reply", method="PUT", path="/versions/", nth=1)
    cut = proxy.add("cut", method="GET", path="/inventories/", nth=(1, 2), num_bytes=50)
    add_storm(proxy)
    assert world.ingest(out).created
    assert storage.retries["throttled"]
    assert cut.num_hit == 2
    proxy.clear()
    require_undisturbed(out, undisturbed)


def add_storm(proxy):
    proxy.add("answer", method="GET|HEAD|PUT", probability=0.05, seed=1, status=503)
    proxy.add("answer", method="GET|HEAD|PUT", probability=0.02, seed=2, status=500)
    proxy.add("cut", method="GET", probability=0.05, seed=3, num_bytes=50)
    proxy.add("drop_reply", method="PUT", probability=0.05, seed=4)
    proxy.add("stall", method="GET|PUT", probability=0.02, seed=5, seconds=0.3)


@pytest.mark.long
def test_a_store_that_says_nothing_for_longer_than_clients_wait(world, undisturbed):
    out = world.out()
    for path in ("/shards/", ALL_MARKERS, "/versions/"):
        world.proxy.add("stall", method="PUT", path=path, nth=1, seconds=60)
    code, _, stderr = finish(world.start(out))
    assert code == 0, stderr
    require_undisturbed(out, undisturbed)


def test_two_at_a_time_make_one_version_and_another_recipe_is_refused(world, undisturbed):
    out = world.out()
    rule = world.proxy.add("hold", method="PUT", path="/versions/", nth=(1, 2))
    drivers = [world.start(out) for _ in range(2)]
    wait_for(lambda: rule.num_hit == 2, "both versions")
    code, _, stderr = finish(world.start(out, tile_px=32))
    assert code == 2
    assert re.fullmatch(
        r"ingest: error: \S+ already holds the unfinished beginning \(\S+/recipe.json\) of a dataset with another "
        r"recipe \(tile_px 64 instead of 32\): choose another --out, or the same options\n",
        stderr,
    )
    rule.release()
    for code, stdout, stderr in map(finish, drivers):
        assert code == 0, stderr
        assert f"digest: {undisturbed.version.digest}" in stdout
    require_undisturbed(out, undisturbed)
    # Of the second recipe nothing has been written.
    assert len(storage.list_files(storage.join(out, "inventories"))) == 1


@pytest.mark.long
def test_other_scenes_at_the_same_time_lose_in_one_line(world, undisturbed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_scene(other / "scene.tif", 50)
    out = world.out()
    rule = world.proxy.add("hold", method="PUT", path="/versions/", nth=1)
    loser = world.start(out, scenes=str(other))
    wait_for(rule.held.is_set, "its version", loser)
    assert world.ingest(out).created
    rule.release()
    code, _, stderr = finish(loser)
    assert code == 2
    last = stderr.splitlines()[-1]
    assert re.match(r"ingest: error: \S+/versions/00000001.json was committed by somebody else meanwhile", last)
    assert "Traceback" not in stderr
    # What the winner left behind is still there.
    assert storage.exists(storage.join(out, "recipe.json"))
    assert groups(undisturbed.url) == [name for name in groups(out) if name in groups(undisturbed.url)]
    assert list(verify(out)) == []
    again = world.ingest(out)
    assert (again.created, again.version.digest) == (False, undisturbed.version.digest)


def test_who_gives_up_leaves_the_work_of_others_alone(world, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    useless = tmp_path / "useless"
    useless.mkdir()
    (useless / "notes.txt").write_text("not a scene")

    @contextlib.contextmanager
    def meanwhile(address, workers):
        monkeypatch.undo()
        # Another run of the same recipe begins, and is that far.
        for folder in ("inventories", "probes", "groups", "shards"):
            shutil.copytree(Path(undisturbed.url, folder), out / folder, dirs_exist_ok=True)
        with ingest.run.cluster(address, workers):
            yield

    monkeypatch.setattr(ingest.run, "cluster", meanwhile)
    with pytest.raises(UserError, match=r"none of the 1 files in .* can be used"):
        world.ingest(out, scenes=str(useless))
    assert list(out.glob("groups/*.json"))
    assert (out / "recipe.json").exists()
    assert world.ingest(out).created
    require_undisturbed(out, undisturbed)


def test_stores_without_conditional_writes(world, undisturbed):
    out = world.out()
    world.proxy.add("unconditional", method="PUT")
    code, _, stderr = finish(world.start(out))
    assert code == 2
    assert re.fullmatch(r"ingest: error: \S+: this store overwrites .* add --single_writer true\n", stderr)
    assert not storage.exists(out) or not storage.list_files(out)


@pytest.mark.long
def test_a_single_writer_needs_no_conditional_writes(world, undisturbed):
    out = world.out()
    world.proxy.add("unconditional", method="PUT")
    code, stdout, stderr = finish(world.start(out, single_writer="true"))
    assert code == 0, stderr
    assert f"digest: {undisturbed.version.digest}" in stdout
    require_undisturbed(out, undisturbed)


@pytest.mark.long
def test_many_random_kills(world, undisturbed):
    out = world.out()
    random = np.random.default_rng(0)
    driver = world.start(out, attempts=100)
    for _ in range(8):
        time.sleep(float(random.uniform(0.2, 1.5)))
        kill_workers(world)
        if random.random() < 0.3:
            driver.kill()
            driver.communicate()
            driver = world.start(out, attempts=100)
    code, _, stderr = finish(driver)
    assert code == 0, stderr
    require_undisturbed(out, undisturbed)


def test_a_scene_that_changes_while_it_is_probed_is_not_corrupt(tmp_path):
    class Late(Decoder):
        def call(self, name, request, read=None):
            path = Path(request["files"][0]["local"])
            path.write_bytes(path.read_bytes()[:100])
            return super().call(name, request, read)

    write_scene(tmp_path / "scene.tif", 0)
    row, place, decode = inventory_row(tmp_path, "scene.tif"), Place(root=str(tmp_path), absolute=False), Late()
    try:
        with pytest.raises(storage.SourceChangedError, match=r"scene.tif changed while it was being ingested"):
            probe_row(decode, place, row, Recipe(tile_px=64))
    finally:
        decode.close()
