"""A machine of a Ray cluster that freezes, or is cut off, costs its tasks an attempt and not the run."""

import subprocess
import sys

# In a process of its own: a cluster of two nodes whose head soon notices, beside whatever the tests are connected to.
_SCRIPT = """
import os, signal, sys, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ingest import cluster as module

folder = Path(sys.argv[1])
quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_timeout_ms": 300,
         "health_check_failure_threshold": 2}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
other = nodes.add_node(num_cpus=1)
raylet = other.all_processes["raylet"][0].process.pid
module._MARGIN_S = 1.0
module._LOOK_INTERVAL_S = 0.5

def task(number):
    node = ray.get_runtime_context().get_node_id()
    (folder / f"{number}-{node}-{os.getpid()}").touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.05)
    time.sleep(2)
    return number

def freeze():
    here = [path for path in folder.iterdir() if path.name.split("-")[1] == other.node_id]
    if here and not frozen:
        frozen.append(int(here[0].name.split("-")[2]))
        for process in (*frozen, raylet):
            os.kill(process, signal.SIGSTOP)

frozen, results = [], {}
try:
    with module.cluster(nodes.address, 0):
        failures = module.run_tasks(task, [(0,), (1,)], results.__setitem__, attempts=2, deadline_s=600.0, tick=freeze)
    print(sorted(results.items()), failures, len(frozen))
finally:
    for process in (*frozen, raylet):
        os.kill(process, signal.SIGKILL)
    nodes.shutdown()
"""


def test_tasks_of_a_frozen_machine_are_done_by_another(tmp_path):
    result = subprocess.run([sys.executable, "-c", _SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "[(0, 0), (1, 1)] [] 1" in result.stdout.splitlines()
