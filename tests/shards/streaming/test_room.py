"""Whether the caches fit, told with the numbers."""

import shutil
import tempfile
from types import SimpleNamespace

import pytest

from shards.errors import UserError
from shards.storage.scratch import scratch_folder
from shards.streaming.mix import Mixture
from shards.streaming.room import CacheNeed, bytes_text, cache_folder, default_ahead_steps, is_remote, require_fits
from tests.places import places_only

NEED = CacheNeed(rank_bytes=3_100_000_000, node_bytes=12_000_000_000, first_bytes=1)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * 10**9))


def test_a_cache_is_in_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder(None) == tmp_path
    assert cache_folder("a") == cache_folder((tmp_path / "a").as_uri()) == tmp_path / "a"
    told = r"^--loader\.cache is s3://b/c: a cache has to be on a local disk, give a folder there$"
    with pytest.raises(UserError, match=told):
        cache_folder("s3://b/c", "--loader.")


def test_what_fits_is_let_pass(disk, tmp_path):
    require_fits(NEED, folder=tmp_path / "not" / "yet", limit_bytes=NEED.rank_bytes)
    require_fits(NEED, folder=tmp_path)


def test_a_limit_that_is_too_low_is_told_with_the_remedy(disk, tmp_path):
    told = (
        "the cache of a rank needs 3.1 GB, allowed 2.0 GB: raise --cache_gb, or lower --window, --lanes or --block_mb"
    )
    with pytest.raises(UserError, match=f"^{told}$"):
        require_fits(NEED, folder=tmp_path, limit_bytes=2 * 10**9)
    with pytest.raises(UserError, match=r"raise loader\.cache_gb, or lower loader\.window"):
        require_fits(NEED, folder=tmp_path, limit_bytes=2 * 10**9, options="loader.")


def test_a_disk_that_is_too_small_is_told(disk, tmp_path):
    with pytest.raises(UserError, match=rf"4 ranks need 12\.0 GB in {tmp_path}, 10\.0 GB are free: free some"):
        require_fits(NEED, folder=tmp_path, node_ranks=4)


def test_what_a_killed_process_left_takes_no_room(tmp_path, monkeypatch):
    left = tmp_path / "pera-stream-left"
    left.mkdir()
    (left / "piece").touch()
    free = {True: 1, False: NEED.node_bytes}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[left.exists()]))
    with scratch_folder("stream", tmp_path) as alive:
        require_fits(NEED, folder=tmp_path, node_ranks=4)
        assert list(tmp_path.iterdir()) == [alive]


@pytest.mark.parametrize(
    ("units", "batch", "world", "steps"), [(1, 16, 1, 64), (2000, 16, 1, 5), (2000, 16, 4, 17), (2000, 4096, 1, 2)]
)
def test_look_ahead_is_about_64_mb(units, batch, world, steps):
    data = places_only([units] * 10, "a")
    assert default_ahead_steps([data], Mixture(weights=(1,)), batch, world) == steps


def test_look_ahead_goes_by_the_mixture():
    datasets = [places_only([units] * 10, "a") for units in (2000, 1, 500)]
    steps = [
        default_ahead_steps(datasets, Mixture(weights=weights), 16, 1) for weights in [(1, 0, 0), (0, 0, 1), (1, 0, 1)]
    ]
    assert steps == [5, 17, 7]


def test_any_shard_in_a_store_makes_a_dataset_remote():
    data = places_only([1] * 4, "a", per_shard=2, local=True)
    assert not is_remote(data)
    data.shards[1].local = False
    assert is_remote(data)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 kB"), (999, "1.0 kB"), (10**6, "1.0 MB"), (3.14e9, "3.1 GB"), (5e13, "50.0 TB")]
)
def test_sizes_for_people(count, text):
    assert bytes_text(count) == text
