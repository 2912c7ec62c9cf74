"""Whatever becomes of the sources, the scratch folder or the store on the way, the same dataset comes out.

`make prove` runs the longer tests, which prove more of the same.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingest.access import Place
from ingest.config import Recipe
from ingest.look import probe_row
from ingest.run import IncompleteError
from ingest.sandbox import Decoder
from shards import storage
from shards.tables import list_versions, read_table
from shards.verify import verify
from tests.ingest.faults.world import ALL_MARKERS, finish, groups, require_undisturbed, wait_for, write_scene
from tests.ingest.rasters import inventory_row


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


def test_a_scene_that_changes_while_it_is_probed_is_not_corrupt(tmp_path):
    class Late(Decoder):
        def call(self, name, request, read=None, finish=None):
            path = Path(request["files"][0]["local"])
            path.write_bytes(path.read_bytes()[:100])
            return super().call(name, request, read, finish)

    write_scene(tmp_path / "scene.tif", 0)
    row, place, decode = inventory_row(tmp_path, "scene.tif"), Place(root=str(tmp_path), absolute=False), Late()
    try:
        with pytest.raises(storage.SourceChangedError, match=r"scene.tif changed while it was being ingested"):
            probe_row(decode, place, row, Recipe(tile_px=64))
    finally:
        decode.close()


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
