import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.training.threads import available_cores, cgroup_cores, trainer_threads

V2 = "0::{path}\n", "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "7:memory:/other\n4:cpu,cpuacct:{path}\n0::/\n",
    "33 32 0:29 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n"
    "34 32 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct\n",
)


def system(folder, version, *, path, root="/", quotas):
    """Write a proc and a sys where this process is in group `path`; quotas by folder below /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(version[0].format(path=path))
    mounts = "22 27 0:21 / /proc rw,relatime - proc proc rw\n" + version[1].format(root=root)
    (folder / "proc/self/mountinfo").write_text(mounts)
    for name, text in quotas.items():
        group = folder / "sys/fs/cgroup" / name
        group.mkdir(parents=True, exist_ok=True)
        if version is V2:
            (group / "cpu.max").write_text(text + "\n")
        else:
            for kind, value in zip(("quota", "period"), text.split(), strict=True):
                (group / f"cpu.cfs_{kind}_us").write_text(value + "\n")
    return folder


def test_the_smallest_quota_on_the_way_counts(tmp_path):
    quotas = {"": "max 100000", "a": "150000 100000", "a/b": "max 100000", "a/b/c": "400000 100000", "d": "1 100000"}
    assert cgroup_cores(system(tmp_path, V2, path="/a/b/c", quotas=quotas)) == 1.5


def test_the_root_group_has_no_quota_file(tmp_path):
    assert cgroup_cores(system(tmp_path, V2, path="/", quotas={})) == math.inf


def test_mounts_without_a_source_or_with_blanks_in_their_options_are_passed_over(tmp_path):
    folder = system(tmp_path, V2, path="/a", quotas={"a": "150000 100000"})
    mounts = folder / "proc/self/mountinfo"
    others = ["40 22 0:40 / /tmp rw - tmpfs  rw", "41 22 0:41 / /drive rw - 9p drvfs rw,path=C:\\Program Files;fd=3"]
    mounts.write_text("\n".join([*others, mounts.read_text()]))
    assert cgroup_cores(folder) == 1.5


def test_version_1_has_its_own_files(tmp_path):
    folder = "cpu,cpuacct"
    quotas = {folder: "-1 100000", f"{folder}/pods": "600000 100000", f"{folder}/pods/x": "125000 50000"}
    assert cgroup_cores(system(tmp_path, V1, path="/pods/x", quotas=quotas)) == 2.5


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/docker/x", "/docker/x"),  # the host's name for the group that is mounted here
        ("/", "/"),  # a namespace of its own
        ("/../../host/x", "/"),  # entered from outside
        ("/docker/x", "/elsewhere"),
    ],
)
@pytest.mark.parametrize(("version", "folder"), [(V1, "cpu,cpuacct"), (V2, "")])
def test_a_container_sees_its_group_as_the_mounted_one(tmp_path, version, folder, path, root):
    assert cgroup_cores(system(tmp_path, version, path=path, root=root, quotas={folder: "200000 100000"})) == 2


@pytest.mark.parametrize(("quota", "cores"), [("300000 100000", 3), ("50000 100000", 0.5), ("max 100000", 4)])
def test_affinity_and_quota_both_bind(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5})
    assert available_cores(system(tmp_path, V2, path="/a", quotas={"a": quota})) == cores


def test_a_system_without_proc_has_its_cores(tmp_path):
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux only")
def test_this_machine_can_be_read():
    assert 0 < available_cores() <= len(os.sched_getaffinity(0))


@given(st.floats(0.01, 1000), st.integers(1, 64))
def test_all_ranks_fit_and_each_has_a_thread(cores, ranks_here):
    threads = trainer_threads(cores, ranks_here)
    assert threads == 1 or threads * ranks_here <= cores < (threads + 1) * ranks_here
    assert threads >= 1
