"""How many threads a step may have: the cores that this process may use, shared by the ranks of its machine.

Linux says in two places what may be used: the affinity mask, and the processor time that control groups grant, version
1 or 2. torch looks at the first alone; beyond the second its threads are stopped for most of each period.

The loader's workers have no cores set aside. They need a few per cent of the time, and threads that do not spin for
long (`shards.openmp`) leave it to them: with a core less the step is slower (figures: `python -m tests.bench.threads`),
and its sums would depend on the number of workers.

Cost: some small files are read, once.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NO_QUOTA = ("max", "-1")  # as version 2 and version 1 write it


def available_cores(root: Path = Path("/")) -> float:
    """Return how many cores this process may use: at least a little above 0, not always a whole number.

    Args:
        root: folder that holds proc and sys.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(affinity), cgroup_cores(root))


def trainer_threads(cores: float, ranks_here: int) -> int:
    """Return the threads of a rank's step.

    Args:
        cores: that the ranks of this machine may use together.
        ranks_here: ranks on this machine that have the same cores.
    """
    return max(1, int(cores // ranks_here))


def cgroup_cores(root: Path = Path("/")) -> float:
    """Return the cores that the control groups of this process grant: the smallest quota on the way, or infinity.

    Args:
        root: folder that holds proc and sys.
    """
    return min(map(_quota_cores, _own_groups(root)), default=math.inf)


def _own_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, with all groups around them that can be seen."""
    for version, group_root, mount in _cpu_mounts(root):
        inner = _inside(_own_path(root, version), group_root)
        yield from (root / mount.relative_to("/") / part for part in (inner, *inner.parents))


def _cpu_mounts(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Yield where groups with quotas are mounted: version, the group that is mounted, the place."""
    for line in _lines(root / "proc/self/mountinfo"):
        # See proc(5): number, parent, device, root, place, options, any number of fields, -, type, source, options.
        before, _, after = line.partition(" - ")
        group_root, place = map(PurePosixPath, before.split()[3:5])
        # Source and options may be empty or, as some systems write them, hold blanks.
        kind, *_, options = after.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield 2 if kind == "cgroup2" else 1, group_root, place


def _own_path(root: Path, version: int) -> PurePosixPath:
    """Return the group of this process, as the kernel names it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if (version == 2 and not controllers) or (version == 1 and "cpu" in controllers.split(",")):
            return PurePosixPath(path)
    return PurePosixPath("/")


def _inside(path: PurePosixPath, group_root: PurePosixPath) -> PurePosixPath:
    """Return a group's place below the mounted one; where it is outside, as a container may see it, the mounted one."""
    if path.is_relative_to(group_root) and ".." not in path.parts:
        return path.relative_to(group_root)
    return PurePosixPath()


def _quota_cores(group: Path) -> float:
    both, quota, period = (_lines(group / name) for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    words = both[0].split() if both else quota + period
    return int(words[0]) / int(words[1]) if words and words[0] not in _NO_QUOTA else math.inf


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []  # another system, or a group without this file
