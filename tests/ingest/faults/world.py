"""What faults are tried on: a Ray cluster, scenes, a bucket whose requests can be held, lost and refused."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio

from ingest.config import IngestConfig
from ingest.run import ingest as run_ingest
from shards import storage
from shards.tables import list_versions, read_table, read_version
from shards.verify import verify
from tests.fault_proxy import FaultProxy

REPOSITORY = Path(__file__).parents[3]
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
