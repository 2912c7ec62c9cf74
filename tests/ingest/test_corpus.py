"""Wrong input of all kinds: every file is used or rejected with a code; nothing dies, and no tile has wrong pixels.

What no reader can know: of damaged bytes that are stored without a checksum (TIFF but for deflate, JPEG, JPEG 2000)
some decode to other pixels without a complaint.
"""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest import raster
from ingest.access import Place
from ingest.config import Recipe, recipe_json
from ingest.look import probe_row
from ingest.reasons import REMEDIES, SceneRejectedError
from ingest.sandbox import Decoder, Limits
from ingest.scene_row import to_json
from tests.ingest.rasters import MEASURED, PLACED, copy_cut_short, inventory_row, land, smooth, tiles_of, unit_of, write

RECIPE = Recipe(tile_px=32)
REJECTED_CODES = set(REMEDIES)


@pytest.fixture(scope="module")
def decode():
    decode = Decoder(Limits(cpu_s=3, wall_s=120))
    yield decode
    decode.close()


def cut_row(decode, folder, row, recipe, scratch):
    """Cut all of a probed scene below a folder; return (tiles, {(x, y): reason})."""
    scratch.write_bytes(b"")
    files = [{"band": "", "local": str(folder / row["path"]), "size": row["size"]}]
    request = {"files": files, "units": [to_json(unit_of(row, recipe))], "recipe": recipe_json(recipe)}
    found = decode.call("cut", request | {"scratch": str(scratch), "position": 0})
    rejects = {(reject["x"], reject["y"]): reject["reason"] for reject in found["rejects"]}
    return tiles_of(found.get("rows", []), scratch.read_bytes()), rejects


def end_state(decode, folder, name, recipe, scratch):
    """Return (code or "used", tiles, {(x, y): reason}) of a file, as a worker would find it."""
    row = probe_row(decode, Place(root=str(folder), absolute=False), inventory_row(folder, name), recipe)
    if row["state"] == "rejected":
        assert row["reason"] in REJECTED_CODES
        assert str(folder) not in row["detail"]
        return row["reason"], {}, {}
    try:
        tiles, rejects = cut_row(decode, folder, row, recipe, scratch)
    except SceneRejectedError as rejection:
        return rejection.code, {}, {}
    assert set(rejects.values()) <= REJECTED_CODES
    return "used", tiles, rejects


HOSTILE_TRANSFORMS = {
    "flat": (10, 10, 5e5, 10, 10, 5e6), "tiny": (1e-300, 0, 5e5, 0, -1e-300, 5e6),
    "vast": (1e200, 0, 5e5, 0, -1e200, 5e6),
}  # fmt: skip


def write_usable(folder):
    """Write 64² pixels in all ways that can be used; return the names."""
    for dtype in ("uint8", "uint16", "int16", "float32"):
        write(folder / f"{dtype}.tif", land(3, dtype), **PLACED)
    nan, alpha = land(3, "float32"), np.concatenate([land(3), np.full((1, 64, 64), 255, np.uint8)])
    nan[:, :4], alpha[3, :4] = np.nan, 0
    turned = rasterio.Affine.rotation(30) @ rasterio.Affine.scale(10, -10)
    write(folder / "striped.tif", land(3), blockysize=5)
    write(folder / "tiled.tif", land(3), tiled=True, blockxsize=16, blockysize=48)
    write(folder / "planar.tif", land(3), interleave="band")
    write(folder / "no_crs.tif", land(3))
    write(folder / "rotated.tif", land(3), crs="EPSG:32633", transform=turned)
    write(folder / "south_up.tif", land(3), crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, 10, 5e6))
    write(folder / "nan.tif", nan, nodata=np.nan)
    write(folder / "alpha.tif", alpha, colours=["red", "green", "blue", "alpha"])
    write(folder / "mask.tif", land(3), mask=alpha[3])
    write(folder / "palette.tif", land(1), colormap={n: (n, 255 - n, n // 2, 255) for n in range(256)})
    write(folder / "sixteen.tif", land(16, "uint16"), names=["red", "green", "blue", *(f"b{n}" for n in range(13))])
    write(folder / "x.png", land(3), driver="PNG")
    write(folder / "x16.png", land(3, "uint16"), driver="PNG")
    write(folder / "palette.png", land(1), driver="PNG", colormap={n: (n, 255 - n, n // 2, 255) for n in range(256)})
    Image.fromarray(land(3).transpose(1, 2, 0)).save(folder / "interlaced.png", "PNG", interlace=True)
    write(folder / "x.jpg", smooth(3, 64), driver="JPEG")
    Image.fromarray(smooth(3, 64).transpose(1, 2, 0)).save(folder / "progressive.jpg", progressive=True)
    write(folder / "x.jp2", land(3), driver="JP2OpenJPEG")
    write(folder / "x16.jp2", land(3, "uint16"), driver="JP2OpenJPEG")
    write(folder / "cog.tif", land(3), driver="COG", compress="lzw")
    for name, transform in HOSTILE_TRANSFORMS.items():
        write(folder / f"{name}.tif", land(3), crs="EPSG:32633", transform=rasterio.Affine(*transform))
    write(folder / "latin.tif", land(3), names=["red", "green", "blaué"])
    latin = (folder / "latin.tif").read_bytes().replace("é".encode(), b"\xe9\xe9")
    (folder / "latin.tif").write_bytes(latin)
    return sorted(path.name for path in folder.iterdir())


def test_what_can_be_used_is_used(tmp_path, decode):
    (tmp_path / "scenes").mkdir()
    names = write_usable(tmp_path / "scenes")
    assert len(names) == 28
    for name in names:
        state, tiles, rejects = end_state(decode, tmp_path / "scenes", name, RECIPE, tmp_path / "scratch")
        assert (name, state, rejects) == (name, "used", {})
        assert tiles.keys() == {(0, 0), (32, 0), (0, 32), (32, 32)}


def write_unusable(folder):
    """Write what cannot be used; return {name: code}."""
    write(folder / "sixteen.tif", land(16, "uint16"))
    write(folder / "grey.tif", land(1))
    write(folder / "grey_alpha.png", land(2), driver="PNG")
    write(folder / "complex.tif", land(3, "complex64"))
    write(folder / "pixel.tif", land(3, side=1))
    write(folder / "line.png", land(3, side=31, width=500), driver="PNG")
    write(folder / "side.tif.ovr", land(3))
    (folder / "vrt.tif").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (folder / "wms.tif").write_text("<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1/</ServerUrl></Service>")
    (folder / "text.tif").write_text("hello")
    (folder / "empty.tif").touch()
    (folder / "zeros.tif").write_bytes(bytes(1000))
    (folder / "headless.tif").write_bytes(b"II*\0" + bytes(100))
    (folder / "headless.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "headless.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "headless.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    (folder / "dangling.tif").symlink_to(folder / "nowhere")
    huge = {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "sparse_ok": True, "compress": "deflate"}
    with rasterio.open(folder / "bomb.tif", "w", "GTiff", 120_000, 120_000, 3, dtype="uint8", **huge):
        pass
    png = bytearray(Path(write(folder / "bomb.png", land(3), driver="PNG")).read_bytes())
    png[16:24] = (200_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(png)
    return dict.fromkeys(("sixteen.tif", "grey.tif", "grey_alpha.png"), "bands_missing") | {
        "complex.tif": "wrong_dtype", "pixel.tif": "too_small", "line.png": "too_small", "side.tif.ovr": "side_file",
        **dict.fromkeys(("vrt.tif", "wms.tif", "text.tif", "zeros.tif"), "not_a_raster"), "empty.tif": "empty_file",
        **dict.fromkeys((f"headless.{ending}" for ending in ("tif", "png", "jpg", "jp2")), "corrupt"),
        "dangling.tif": "missing", **dict.fromkeys(("bomb.tif", "bomb.png"), "too_large"),
    }  # fmt: skip


def test_what_cannot_be_used_is_rejected_with_its_code(tmp_path, decode):
    (tmp_path / "scenes").mkdir()
    expected = write_unusable(tmp_path / "scenes")
    assert sorted(path.name for path in (tmp_path / "scenes").iterdir()) == sorted(expected)
    found = {name: end_state(decode, tmp_path / "scenes", name, RECIPE, tmp_path / "scratch")[0] for name in expected}
    assert found == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_unreadable(tmp_path, decode):
    write(tmp_path / "x.tif", land(3))
    (tmp_path / "x.tif").chmod(0)
    assert end_state(decode, tmp_path, "x.tif", RECIPE, tmp_path / "scratch")[0] == "unreadable"


def test_a_pixel_can_be_a_padded_tile(tmp_path, decode):
    write(tmp_path / "x.tif", land(3, side=1))
    recipe = Recipe(tile_px=16, edge="pad", **MEASURED)
    state, tiles, _ = end_state(decode, tmp_path, "x.tif", recipe, tmp_path / "scratch")
    assert state == "used"
    assert np.argwhere(tiles[0, 0].any(axis=2)).tolist() == [[0, 0]]


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_files_cut_short_are_used_as_far_as_they_go(tmp_path, decode, share):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    for name in write_usable(tmp_path / "whole"):
        whole = end_state(decode, tmp_path / "whole", name, RECIPE, tmp_path / "scratch")[1]
        copy_cut_short(tmp_path / "whole" / name, tmp_path / "cut" / name, share)
        state, tiles, rejects = end_state(decode, tmp_path / "cut", name, RECIPE, tmp_path / "scratch")
        assert state in ("used", "corrupt"), name
        if state == "used":
            assert set(rejects.values()) == {"corrupt"}, name
        if "16" not in name and "32" not in name:  # there percentiles are in between
            assert all(np.array_equal(tile, whole[place]) for place, tile in tiles.items()), name


def test_gdals_own_hostile_files_are_used_or_rejected(tmp_path, decode, real_images):
    folder = real_images / "hostile/gdal_autotest"
    recipe = Recipe(tile_px=32, edge="pad", replicate_grey=True, max_scene_gb=0.02)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    states = [end_state(decode, folder, name, recipe, tmp_path / "scratch")[0] for name in names]
    assert len(states) > 500
    assert states.count("used") > 50
    assert {"used", "corrupt", "not_a_raster", "bands_missing", "wrong_dtype"} <= set(states)


FORMATS = {
    **{name: {"compress": name, "blockysize": 16} for name in ("none", "deflate", "lzw", "zstd", "packbits", "lzma")},
    "webp": {"compress": "webp", "blockysize": 16, "webp_lossless": "yes"},
    "jpeg in tiff": {"compress": "jpeg", "blockysize": 16, "photometric": "ycbcr"},
    "none planar": {"compress": "none", "blockysize": 16, "interleave": "band"},
    "deflate planar": {"compress": "deflate", "blockysize": 16, "interleave": "band"},
    "tiled deflate": {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16, "predictor": 2},
    "png": {"driver": "PNG"},
    "jpeg": {"driver": "JPEG"},
    "jp2": {"driver": "JP2OpenJPEG", "blockxsize": 32, "blockysize": 32},
    "jp2 whole": {"driver": "JP2OpenJPEG"},
}
SMALL = Recipe(tile_px=16, max_scene_gb=0.01, min_valid_share=0.0, min_contrast=0.0, encoding="png")


def mutated(data, rng, first=0, end=None):
    """Return bytes with one to three damages between two places: flip, overwrite, insert, delete, cut short."""
    data, end = bytearray(data), end or len(data)
    for _ in range(int(rng.integers(1, 4))):
        kind, at, size = rng.integers(5), int(rng.integers(first, end)), int(rng.integers(1, 9))
        if kind == 0:
            data[at : at + 1] = bytes(byte ^ (1 << int(rng.integers(8))) for byte in data[at : at + 1])
        elif kind == 1:
            size = min(size, end - at)
            data[at : at + size] = rng.bytes(size) if rng.integers(2) else bytes([int(rng.choice([0, 255]))]) * size
        elif end == len(data) and first == 0:
            data = {2: data[:at] + rng.bytes(size) + data[at:], 3: data[:at] + data[at + size :]}.get(kind, data[:at])
            end = max(1, len(data))
            data = data or bytearray(b"\0")
    return bytes(data)


def try_bytes(decode, path, data, recipe, scratch):
    """Return (code or "used", tiles, {(x, y): reason}) of a file of these bytes."""
    path.write_bytes(data)
    row = inventory_row(path.parent, path.name)
    request = {"files": [{"band": "", "local": str(path), "size": len(data)}], "scene": row}
    try:
        found = decode.call("probe", request | {"recipe": recipe_json(recipe)})
        return "used", *cut_row(decode, path.parent, row | found, recipe, scratch)
    except SceneRejectedError as rejection:
        return rejection.code, {}, {}


@pytest.mark.parametrize("num_files", [80, pytest.param(600, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_used_or_rejected(tmp_path, decode, name, num_files):
    rng = np.random.default_rng(list(FORMATS).index(name))
    data = Path(write(tmp_path / "sound", land(3, side=32), **FORMATS[name])).read_bytes()
    states = []
    for _ in range(num_files):
        state, _, rejects = try_bytes(decode, tmp_path / "x", mutated(data, rng), SMALL, tmp_path / "scratch")
        assert state == "used" or state in REJECTED_CODES
        assert set(rejects.values()) <= REJECTED_CODES
        states.append("damaged" if rejects else state)
    assert "corrupt" in states
    assert {"used", "damaged"} & set(states)


HEADERS = [
    {"source_bands": ("red", "green", "blue")},
    {"target_gsd_m": 20.0},
    {"target_gsd_m": 20.0, "warp_crs": "utm"},
]


@pytest.mark.parametrize("num_files", [80, pytest.param(800, marks=pytest.mark.long)])
@pytest.mark.parametrize("values", HEADERS, ids=["names", "average", "warp"])
def test_mutated_headers_are_used_or_rejected_by_no_mistake_of_ours(tmp_path, decode, values, num_files):
    path, rng = tmp_path / "sound", np.random.default_rng(len(values))
    tags, names = {"TIFFTAG_DATETIME": "2023:07:15 10:30:00"}, ["red", "green", "blue"]
    write(path, land(3, side=64), names=names, tags=tags, nodata=3, blockysize=16, compress="deflate", **PLACED)
    data, recipe = path.read_bytes(), Recipe(tile_px=16, max_scene_gb=0.01, edge="pad", **MEASURED, **values)
    with rasterio.open(path) as source:
        last = [int(source.get_tag_item(f"BLOCK_{item}_0_3", "TIFF", bidx=1)) for item in ("OFFSET", "SIZE")]
    # Names were added at last: the directory and its values lie behind the pixels.
    directory = sum(last)
    assert directory < data.index(b"<GDALMetadata>")
    states = []
    for _ in range(num_files):
        damaged = mutated(data, rng, directory, len(data))
        state, _, rejects = try_bytes(decode, tmp_path / "x", damaged, recipe, tmp_path / "scratch")
        assert state != "decoder_failed"
        assert "decoder_failed" not in rejects.values()
        assert state == "used" or state in REJECTED_CODES
        states.append(state)
    assert {"used", "corrupt"} <= set(states)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([magic for magic, _ in raster._MAGIC] + [b""]), st.binary(max_size=400))
def test_arbitrary_bytes_are_rejected(tmp_path, decode, magic, data):
    state, _, _ = try_bytes(decode, tmp_path / "x", magic + data, SMALL, tmp_path / "scratch")
    assert state in ("corrupt", "not_a_raster", "empty_file")


def pixel_bytes(path):
    """Return (first, end) of where a file's compressed pixels lie."""
    data = path.read_bytes()
    if data.startswith(b"\x89PNG"):
        first = data.index(b"IDAT") + 4
        return first, first + int.from_bytes(data[first - 8 : first - 4], "big")
    with rasterio.open(path) as source:
        item = {name: int(source.get_tag_item(f"BLOCK_{name}_0_0", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE")}
    return item["OFFSET"], item["OFFSET"] + item["SIZE"]


@pytest.mark.parametrize("name", ["png", "deflate", "deflate planar", "tiled deflate"])
def test_damaged_pixels_with_a_checksum_are_not_handed_out(tmp_path, decode, name):
    """Except for a block that inflates to more bytes than it should have: libtiff takes those that it wants."""
    path = tmp_path / "sound"
    write(path, land(3, side=32), **FORMATS[name])
    data, (first, end) = path.read_bytes(), pixel_bytes(path)
    block_bytes = len(zlib.decompress(data[first:end]))
    rng = np.random.default_rng(1)
    _, whole, _ = try_bytes(decode, tmp_path / "x", data, SMALL, tmp_path / "scratch")
    assert len(whole) == 4
    corrupt = 0
    for _ in range(150):
        damaged = mutated(data, rng, first, end)
        state, tiles, rejects = try_bytes(decode, tmp_path / "x", damaged, SMALL, tmp_path / "scratch")
        assert state == "used"
        assert set(rejects.values()) <= {"corrupt"}
        assert tiles.keys() | rejects.keys() == whole.keys()
        corrupt += bool(rejects)
        if not all(np.array_equal(tile, whole[place]) for place, tile in tiles.items()):
            assert name != "png"
            # A raw stream, from behind its header of two bytes on, without the check at its end.
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(damaged[first + 2 : end], block_bytes + 1)
            assert len(inflated) > block_bytes
    assert corrupt > 50
