"""Whatever process is killed, hangs or works beside another one, the same dataset comes out.

`make prove` runs the longer tests, which prove more of the same.
"""

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import ingest.run
from shards import storage
from shards.errors import UserError
from shards.tables import list_versions
from shards.verify import verify
from tests.ingest.faults.world import ALL_MARKERS, events, finish, groups, require_undisturbed, wait_for, write_scene


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
    assert re.search(r"is not finished: 1 parts failed( on .*)?; run the same command again to go on", stderr)
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
