"""One cluster for each module, and the dataset that comes out where nothing goes wrong."""

import os
import subprocess
import sys

import pytest
from ray._raylet import Config

from tests.fault_proxy import FaultProxy
from tests.ingest.faults.world import REPOSITORY, World, groups, write_scene

CLUSTER = """
import sys
from ingest.cluster import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
         object_store_memory=128 * 2**20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def world(object_store, tmp_path_factory, request):
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
            yield World(f"{object_store}/{request.module.__name__}", proxy, address, process.pid, scenes)
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
