"""Scenes are reached in place, by ranges or as one download, and are the listed ones all the time."""

import itertools
import re
import zipfile

import numpy as np
import pytest
import rasterio

from ingest.access import Place, reach
from ingest.config import Recipe, recipe_json
from ingest.look import probe_row
from ingest.reasons import SceneRejectedError
from ingest.sandbox import Decoder
from ingest.scene_row import to_json
from shards import storage
from tests.ingest.rasters import MEASURED, PLACED, inventory_row, land, tiles_of, unit_of, write

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128, **PLACED}
RECIPE = Recipe(tile_px=128, **MEASURED)


@pytest.fixture(scope="module")
def decode():
    decode = Decoder()
    yield decode
    decode.close()


@pytest.fixture
def bucket(object_store, tmp_path):
    return f"{object_store}/access-{tmp_path.name}"


def put(bucket, path, data):
    storage.write_bytes(storage.child(bucket, path), data)


def ingest_scene(decode, place, row, scratch, recipe=RECIPE, whole=False, **part):
    """Probe and cut a scene as a worker does; return (row, tiles, rejects)."""
    row = probe_row(decode, place, row, recipe)
    assert row["state"] == "used", row["detail"]
    unit = unit_of(row, recipe, **part)
    scratch.touch()
    with reach(place, row, whole=whole) as access:
        request = {"files": access.files, "units": [to_json(unit)], "recipe": recipe_json(recipe)}
        found = decode.call("cut", request | {"scratch": str(scratch), "position": 0}, access.read)
    return row, tiles_of(found.get("rows", []), scratch.read_bytes()), found["rejects"]


def test_local_files_are_read_in_place(tmp_path, decode):
    write(tmp_path / "x.tif", land(3, side=256), **TILED)
    place = Place(root=str(tmp_path), absolute=False)
    with reach(place, inventory_row(tmp_path, "x.tif"), whole=True) as access:
        assert access.files == [{"band": "", "local": str(tmp_path / "x.tif"), "size": access.files[0]["size"]}]
    _, tiles, rejects = ingest_scene(decode, place, inventory_row(tmp_path, "x.tif"), tmp_path / "scratch")
    assert not rejects
    assert np.array_equal(tiles[128, 0], land(3, side=256)[:, :128, 128:].transpose(1, 2, 0))


def test_paths_of_listings_never_leave_the_root(tmp_path):
    listed, named = Place(root="s3://a/b", absolute=False), Place(root="s3://a/b", absolute=True)
    assert listed.url("s3://c/d.tif") == "s3://a/b/s3://c/d.tif"
    assert listed.url("/etc/x.tif") == "s3://a/b//etc/x.tif"
    assert named.url("s3://c/d.tif") == "s3://c/d.tif"
    assert named.url("d.tif") == "s3://a/b/d.tif"


@pytest.fixture
def asked(monkeypatch):
    """(offset, size) of all ranges that are read from a store."""
    ranges, original = [], storage.read_ranges

    def read_ranges(url, wanted):
        ranges.extend(wanted)
        return original(url, wanted)

    monkeypatch.setattr(storage, "read_ranges", read_ranges)
    return ranges


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_unit_of_a_remote_geotiff_fetches_its_own_blocks(tmp_path, decode, bucket, asked, interleave):
    pixels, path = land(3, side=1024), tmp_path / "x.tif"
    write(path, pixels, **TILED, interleave=interleave)
    put(bucket, "x.tif", path.read_bytes())
    place, row = Place(root=bucket, absolute=False), inventory_row(bucket, "x.tif")
    part = {"first_row": 3, "end_row": 4, "first_column": 2, "end_column": 5}
    probed = probe_row(decode, place, row, RECIPE)
    assert probed["state"] == "used"
    head_bytes = sum(size for _, size in asked)
    assert head_bytes <= 2**18
    asked.clear()
    _, tiles, rejects = ingest_scene(decode, place, row, tmp_path / "scratch", **part)
    assert not rejects
    assert tiles.keys() == {(256, 384), (384, 384), (512, 384)}
    for (x, y), tile in tiles.items():
        assert np.array_equal(tile, pixels[:, y : y + 128, x : x + 128].transpose(1, 2, 0))
    # Besides headers (again, for the probe and the unit) each byte of the unit's blocks once, and no other.
    fetched = sorted(found for found in asked if found[1] != 2**16)
    assert sum(size for _, size in fetched) == 3 * 128 * 128 * 3
    assert all(one[0] + one[1] <= other[0] for one, other in itertools.pairwise(fetched))
    assert sum(size for _, size in asked) <= 3 * 128 * 128 * 3 + 2 * head_bytes


def test_the_whole_of_a_remote_geotiff_is_fetched_once(tmp_path, decode, bucket, asked):
    path = tmp_path / "x.tif"
    write(path, land(3, side=1024), compress="deflate", **TILED)
    data = path.read_bytes()
    put(bucket, "x.tif", data)
    place = Place(root=bucket, absolute=False)
    _, tiles, rejects = ingest_scene(decode, place, inventory_row(bucket, "x.tif"), tmp_path / "scratch")
    assert len(tiles) == 64
    assert not rejects
    assert sum(size for _, size in asked) <= len(data) + 2**18


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG"])
def test_what_is_no_geotiff_is_downloaded(tmp_path, decode, bucket, asked, driver):
    path = tmp_path / "x"
    write(path, land(3, side=256), driver=driver)
    put(bucket, "x", path.read_bytes())
    place = Place(root=bucket, absolute=False)
    _, tiles, rejects = ingest_scene(decode, place, inventory_row(bucket, "x"), tmp_path / "scratch", whole=True)
    with rasterio.open(path) as source:
        expected = source.read()
    assert not rejects
    assert np.array_equal(tiles[128, 128], expected[:, 128:, 128:].transpose(1, 2, 0))
    with reach(place, inventory_row(bucket, "x"), whole=True) as access:
        assert storage.is_local(access.files[0]["local"])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_changed_scene_is_named_and_nothing_of_it_is_used(tmp_path, request, remote, when):
    root = request.getfixturevalue("bucket") if remote else str(tmp_path)
    put(root, "x.tif", b"a" * 100)
    place, row = Place(root=root, absolute=False), inventory_row(root, "x.tif")
    if when == "before":
        put(root, "x.tif", b"b" * 100)
    with pytest.raises(storage.SourceChangedError, match=f"{root}/x.tif"), reach(place, row, whole=False):
        put(root, "x.tif" if when == "meanwhile" else "unreached", b"b" * 100)
    assert not storage.exists(f"{root}/unreached")


@pytest.mark.parametrize("remote", [False, True])
def test_a_scene_that_is_gone_is_named(tmp_path, request, remote):
    root = request.getfixturevalue("bucket") if remote else str(tmp_path)
    put(root, "x.tif", b"a" * 100)
    place, row = Place(root=root, absolute=False), inventory_row(root, "x.tif")
    with pytest.raises(storage.SourceChangedError, match=f"{root}/x.tif"), reach(place, row, whole=False):
        storage.remove(f"{root}/x.tif")
    with pytest.raises(storage.SourceChangedError, match=f"{root}/x.tif"), reach(place, row, whole=False):
        pytest.fail("reached")


def zipped(target, *members):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in members:
            archive.write(path, name)


@pytest.mark.parametrize("remote", [False, True])
def test_members_of_archives_are_unpacked(tmp_path, request, decode, remote):
    write(tmp_path / "x.tif", land(3, side=256), **TILED)
    zipped(tmp_path / "a.zip", (tmp_path / "x.tif", "sub/x.tif"))
    root = request.getfixturevalue("bucket") if remote else str(tmp_path)
    put(root, "a.zip", (tmp_path / "a.zip").read_bytes())
    place = Place(root=root, absolute=False)
    (member,) = storage.list_zip(f"{root}/a.zip")
    row = inventory_row(root, "a.zip/sub/x.tif", archive="a.zip", size=member.size, etag=member.etag)
    _, tiles, rejects = ingest_scene(decode, place, row, tmp_path / "scratch")
    assert not rejects
    assert np.array_equal(tiles[0, 128], land(3, side=256)[:, 128:, :128].transpose(1, 2, 0))


def test_a_damaged_member_is_a_bad_archive(tmp_path, decode):
    write(tmp_path / "x.tif", land(3, side=256), **TILED)
    zipped(tmp_path / "a.zip", (tmp_path / "x.tif", "x.tif"))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    (member,) = storage.list_zip(str(tmp_path / "a.zip"))
    row = inventory_row(tmp_path, "a.zip/x.tif", archive="a.zip", size=member.size, etag=member.etag)
    place = Place(root=str(tmp_path), absolute=False)
    found = probe_row(decode, place, row, RECIPE)
    assert (found["state"], found["reason"]) == ("rejected", "bad_archive")
    assert str(tmp_path) not in found["detail"]
    with pytest.raises(SceneRejectedError, match="bad_archive"), reach(place, row, whole=True):
        pass


@pytest.mark.parametrize("whole", [False, True])
def test_files_of_one_scene_in_a_bucket(tmp_path, decode, bucket, whole):
    fine, coarse = land(1, "uint16", side=256), land(1, "uint16", side=128)
    write(tmp_path / "a.tif", fine, **TILED)
    write(tmp_path / "b.tif", coarse, crs="EPSG:32633", transform=rasterio.Affine(20, 0, 5e5, 0, -20, 5e6))
    files = []
    for name in ("a", "b"):
        put(bucket, f"{name}.tif", (tmp_path / f"{name}.tif").read_bytes())
        info = storage.stat(f"{bucket}/{name}.tif")
        files.append({"path": f"{name}.tif", "size": info.size, "etag": info.etag, "band": name})
    recipe = Recipe(tile_px=128, bands=("a", "b"), normalisation="keep", dtype="uint16", encoding="npy")
    row = inventory_row(bucket, "scene", files=files, size=1, etag="both")
    place = Place(root=bucket, absolute=False)
    found, tiles, rejects = ingest_scene(decode, place, row, tmp_path / "scratch", recipe, whole)
    assert found["band_files"] == [0, 1]
    assert not rejects
    both = np.concatenate([fine, np.kron(coarse, np.ones((1, 2, 2), np.uint16))])
    assert np.array_equal(tiles[128, 0], both[:, :128, 128:].transpose(1, 2, 0))
    put(bucket, "b.tif", b"other")
    with pytest.raises(storage.SourceChangedError, match=re.escape("/b.tif")), reach(place, row, whole=whole):
        pytest.fail("reached")
