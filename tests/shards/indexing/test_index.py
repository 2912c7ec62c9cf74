"""Foreign tars become a dataset that says what is in them, byte by byte."""

import hashlib
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import storage
from shards.__main__ import main
from shards.errors import UserError
from shards.images import decode_image
from shards.indexing import index as index_module
from shards.indexing import scan_store
from shards.indexing.index import index
from shards.tables import read_table, read_version
from shards.verify import verify
from tests.shards.foreign_tars import files_of, image, npy, sample, tar_bytes, write_series, write_tar
from tests.shards.indexed import check_dataset, rows_of


def test_plain_tars(tars, out):
    made = index(list(map(str, tars)), out)
    version = read_version(out)
    assert made.version == version
    assert (made.num_resumed, made.num_passed_over, made.passed_over) == (0, 0, "")
    assert (version.num_samples, version.num_shards, version.num_scenes) == (15, 3, 0)
    assert version.num_bytes == sum(path.stat().st_size for path in tars)
    check_dataset(out, {f"d/{number:06d}": sample(number) for number in range(15)})
    assert [row["label"] for row in rows_of(out)] == [str(number % 3) for number in range(15)]
    shards = read_table(out, version, "shards").to_pylist()
    assert [row["url"] for row in shards] == list(map(str, tars))
    assert [row["shard"] for row in shards] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in tars]
    assert [(row["num_samples"], row["etag"]) for row in shards] == [(5, None)] * 3
    assert version.record == {
        "command": "index",
        "sources": list(map(str, tars)),
        "series": [""],
        "label": "cls",
        "label_series": "",
    }
    # Nothing but the tables and the version is left.
    assert {path.parent.name for path in Path(out).rglob("*") if path.is_file()} == {"tables", "versions"}


def test_the_figures_of_the_bands(tars, out):
    version = index([str(tars[0].parent)], out).version
    pixels = np.stack([decode_image("png", image(number)) for number in range(15)]).astype(np.float64)
    assert [band.name for band in version.bands] == ["red", "green", "blue"]
    assert [band.mean for band in version.bands] == np.round(pixels.mean((0, 1, 2)), 6).tolist()
    assert [band.std for band in version.bands] == np.round(pixels.std((0, 1, 2)), 6).tolist()
    assert (version.dtype, version.tile_px) == ("uint8", 16)


def test_the_same_tars_give_the_same_bytes(tars, out, tmp_path):
    other = str(tmp_path / "other")
    index([str(tars[0].parent)], out, num_workers=1)
    index([str(tars[0].parent)], other, num_workers=7)
    assert Path(out, "versions/00000001.json").read_bytes() == Path(other, "versions/00000001.json").read_bytes()


def test_in_the_folder_of_the_tars_urls_are_relative(tars, tmp_path):
    folder = tars[0].parent
    index([str(folder)], str(folder))
    shards = read_table(str(folder), read_version(str(folder)), "shards")
    assert shards["url"].to_pylist() == [path.name for path in tars]
    moved = folder.rename(tmp_path / "moved")
    assert list(verify(str(moved))) == []


MEMBERS = st.fixed_dictionaries(
    {"jpg": st.integers(0, 3).map(image)},
    optional={"json": st.binary(max_size=600), "seg.png": st.binary(max_size=1500), "TXT": st.binary(max_size=3)},
)
SAMPLES = st.dictionaries(
    st.text("ab/0é", min_size=1, max_size=120).filter(lambda key: "//" not in f"/{key}/"), MEMBERS
)


@settings(max_examples=15)
@given(
    st.lists(SAMPLES.filter(bool), min_size=1, max_size=3), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
)
def test_random_members_come_back(tars, tar_format):
    samples = [{f"{number}{key}": members for key, members in each.items()} for number, each in enumerate(tars)]
    with tempfile.TemporaryDirectory() as folder:
        urls = [write_tar(Path(folder, f"{number}.tar"), each, tar_format) for number, each in enumerate(samples)]
        index(urls, f"{folder}/out")
        expected = {
            key: {name.lower(): content for name, content in members.items()}
            for each in samples
            for key, members in each.items()
        }
        check_dataset(f"{folder}/out", expected)


def test_two_modalities_in_tars_that_are_cut_otherwise(tmp_path, out):
    keys = [f"k{number:02d}" for number in range(20)]
    rgb = {key: {"jpg": image(number, "jpeg"), "cls": b"%d" % number} for number, key in enumerate(keys)}
    nir = {key: {"npy": npy(np.full((4, 4, 2), number, np.uint16))} for number, key in enumerate(keys)}
    sar = {key: {"json": b"{}", "npy": npy(np.zeros((2, 2), np.float32))} for key in keys}
    urls = [f"rgb={write_tar(tmp_path / f'rgb-{n}.tar', {k: rgb[k] for k in keys[n::3]})}" for n in range(3)]
    urls += [f"nir={write_tar(tmp_path / f'nir-{n}.tar', {k: nir[k] for k in keys[10 * n :][:10]})}" for n in range(2)]
    urls += [f"sar={write_tar(tmp_path / 'sar.tar', {k: sar[k] for k in reversed(keys)})}"]
    version = index(urls, out).version
    assert (version.series, version.num_shards, version.num_samples) == (("rgb", "nir", "sar"), 6, 20)
    assert version.dtype == "uint8"
    ordered = [key for n in range(3) for key in keys[n::3]]
    series = {"rgb": rgb, "nir": nir, "sar": sar}
    check_dataset(
        out,
        {
            key: {f"{name}.{ext}": content for name, each in series.items() for ext, content in each[key].items()}
            for key in ordered
        },
    )
    row = rows_of(out)[1]
    assert (row["key"], row["member"], row["label"]) == ("k03", "rgb.jpg", "3")
    assert [part["series"] for part in row["parts"]] == ["nir", "sar"]


def test_label_and_image_of_a_series(tmp_path, out):
    rgb = write_tar(tmp_path / "rgb.tar", {key: {"big.png": image(1), "png": image(2)} for key in "ab"})
    text = write_tar(tmp_path / "text.tar", {key: {"txt": key.encode()} for key in "ab"})
    index([f"rgb={rgb}", f"text={text}"], out, image="rgb.big.png", label="text.txt")
    assert [(row["member"], row["label"]) for row in rows_of(out)] == [("rgb.big.png", "a"), ("rgb.big.png", "b")]
    assert list(verify(out)) == []
    with pytest.raises(UserError, match=r"--image text\.txt is not in the first series 'rgb': name 'text' first"):
        index([f"rgb={rgb}", f"text={text}"], out + "2", image="text.txt")


def test_one_named_series_is_like_one_without_a_name(tars, out, tmp_path):
    index([f"rgb={tars[0].parent}"], out)
    index([str(tars[0].parent)], str(tmp_path / "other"))
    assert rows_of(out) == rows_of(str(tmp_path / "other"))


def test_labels_only_where_every_sample_has_one(tmp_path, out):
    path = write_tar(tmp_path / "x.tar", {"a": {"png": image(0), "cls": b"1"}, "b": {"png": image(1)}})
    index([path], out)
    assert [row["label"] for row in rows_of(out)] == [None, None]
    with pytest.raises(UserError, match="1 of 2 samples have no label cls, such as 'b'; leave out --label"):
        index([path], out + "2", label="cls")


def test_types_bands_and_sizes(tmp_path, out):
    arrays = [np.full((6 + number, 9, 5), number, np.uint16) for number in range(3)]
    path = write_tar(tmp_path / "x.tar", {str(number): {"npy": npy(array)} for number, array in enumerate(arrays)})
    version = index([path], out).version
    assert [band.name for band in version.bands] == ["band_1", "band_2", "band_3", "band_4", "band_5"]
    assert (version.dtype, version.tile_px) == ("uint16", 6)
    assert index([path], out + "2", bands=["a", "b", "c", "d", "e"]).version.bands[4].name == "e"
    grey = write_tar(tmp_path / "grey.tar", {"a": {"npy": npy(np.array([[1.5, np.nan], [2.5, 5]], np.float32))}})
    (band,) = index([grey], out + "3").version.bands
    assert (band.name, band.mean) == ("grey", 3.0)


def test_extensions_of_one_kind_may_differ(tmp_path, out):
    samples = {"a": {"jpg": image(0, "jpeg")}, "b": {"jpeg": image(1, "jpeg")}, "c": {"png": image(2)}}
    index([write_tar(tmp_path / "x.tar", samples)], out)
    check_dataset(out, samples)
    assert [row["json_sha256"] for row in rows_of(out)] == [None] * 3


def test_measured_images_are_spread_over_all_rows(tmp_path, out, monkeypatch):
    monkeypatch.setattr("shards.indexing.measure.MAX_MEASURED", 4)
    folder = write_series(tmp_path / "tars", num_tars=3, per_tar=4)[0].parent
    version = index([str(folder)], out).version
    chosen = [decode_image("png", image(number)).astype(np.float64) for number in (0, 3, 6, 9)]
    assert version.bands[0].mean == round(float(np.mean([pixels[:, :, 0] for pixels in chosen])), 6)


def test_images_may_be_named(tmp_path, out):
    samples = {"a": {"jpg": image(0, "jpeg"), "seg.png": image(1)}, "b": {"png": image(2), "seg.png": image(3)}}
    path = write_tar(tmp_path / "x.tar", samples)
    assert [row["member"] for row in rows_of(index_to(path, out, "seg.png"))] == ["seg.png", "seg.png"]
    assert [row["member"] for row in rows_of(index_to(path, out + "2", ".jpg, png"))] == ["jpg", "png"]


def index_to(path, out, image_name):
    index([path], out, image=image_name)
    return out


def test_different_keys_with_one_hash_are_told_apart(tmp_path, out, monkeypatch):
    """Hashes only say where to look."""
    monkeypatch.setattr(
        "shards.indexing.key_places.key_hashes", lambda keys: np.arange(len(keys), dtype=np.uint64) // 2
    )
    index([write_tar(tmp_path / "a.tar", {key: {"png": image(0)} for key in "abcd"})], out)
    assert [row["key"] for row in rows_of(out)] == list("abcd")


def test_joins_in_pieces(tmp_path, out, monkeypatch):
    monkeypatch.setattr(index_module, "_ROWS_AT_ONCE", 4)
    keys = [f"{number:02d}" for number in range(15)]
    rgb = [
        write_tar(tmp_path / f"r{n}.tar", {key: {"png": image(0)} for key in part})
        for n, part in enumerate((keys[:9], keys[9:10], keys[10:]))
    ]
    nir = write_tar(tmp_path / "n.tar", {key: {"txt": key.encode()} for key in keys})
    index([*(f"rgb={path}" for path in rgb), f"nir={nir}"], out)
    check_dataset(out, {key: {"rgb.png": image(0), "nir.txt": key.encode()} for key in keys})


def test_command_line(tars, out, run_stage):
    pattern = str(tars[0]).replace("000000", "{000000..000002}")
    result = run_stage("shards", "index", pattern, "--out", out, "--bands", "a, b,c", check=True)
    version = read_version(out)
    assert result.stdout == (
        f"{out} version 1: 15 samples in 3 shards, digest {version.digest}; "
        f"next: python -m shards plan {out} --global_batch 256\n"
    )
    assert [band.name for band in version.bands] == ["a", "b", "c"]
    for path in tars[:2]:
        path.write_bytes(b"no tar" * 100)
    result = run_stage("shards", "index", pattern, "--out", out + "2")
    assert result.returncode == 2
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == list(map(str, tars[:2]))
    assert "shards: error: 2 faults, nothing is committed" in result.stderr
    assert "Traceback" not in result.stderr
    result = run_stage("shards", "index", "--out", out)
    assert result.returncode == 2


def test_the_first_member_that_is_passed_over_is_named(tmp_path, capsys):
    tars = [tmp_path / f"{number}.tar" for number in range(2)]
    for number, (path, others) in enumerate(zip(tars, ([], [("README", b"x"), ("LICENSE", b"x")]), strict=True)):
        path.write_bytes(tar_bytes([*others, *files_of({f"k{number}": sample(number)})]))
    for count, told in [(2, f"2 members passed over, the first is 'README' in {tars[1]}"), (1, "")]:
        assert main(["index", *map(str, tars[:count]), "--out", str(tmp_path / f"out-{count}")]) == 0
        printed = capsys.readouterr().out
        assert told in printed
        assert ("passed over" in printed) == bool(told)


def test_every_command_takes_an_indexed_dataset(tars, tmp_path, out, capsys):
    nir = write_tar(tmp_path / "nir.tar", {f"d/{number:06d}": {"txt": b"x"} for number in range(15)})
    for command in [
        ["index", f"rgb={tars[0].parent}", f"nir={nir}", "--out", out],
        ["ls", out],
        ["digest", out],
        ["preview", out, "--out", str(tmp_path / "sheet.png")],
        ["card", out],
        ["select", out, "--where", "label = '1'"],
        ["dedup", out, "--distance", "2", "--version", "1"],
        ["gc", out, "--min_age_h", "0"],
        ["verify", out],
        ["verify", out, "--version", "1"],
    ]:
        capsys.readouterr()
        assert main(command) == 0, command
    assert "15 samples in 4 shards, 0 scenes (0 rejected): all right" in capsys.readouterr().out


def test_from_a_bucket_and_into_it(object_store, tmp_path, out):
    root = f"{object_store}/index-{tmp_path.name}"
    for path in write_series(tmp_path / "tars"):
        storage.write_bytes(f"{root}/{path.name}", path.read_bytes())
    pattern = f"{root}/train-{{000000..000002}}.tar"
    expected = {f"d/{number:06d}": sample(number) for number in range(15)}
    index([pattern], out)
    check_dataset(out, expected)
    shards = read_table(out, read_version(out), "shards").to_pylist()
    assert [row["url"] for row in shards] == [f"{root}/train-{number:06d}.tar" for number in range(3)]
    assert [row["etag"] for row in shards] == [storage.stat(row["url"]).etag for row in shards]
    index([root], root)
    check_dataset(root, expected)
    assert read_version(root).digest == read_version(out).digest
    assert read_table(root, read_version(root), "shards")["url"].to_pylist()[0] == "train-000000.tar"
    assert not [info.path for info in storage.list_files(root) if info.path.startswith("index/")]


def test_a_large_tar_of_a_bucket_comes_in_pieces(object_store, tmp_path, out, monkeypatch):
    monkeypatch.setattr(scan_store, "FETCH_BYTES", 1000)
    (path,) = write_series(tmp_path / "tars", num_tars=1)
    url = f"{object_store}/pieces-{tmp_path.name}.tar"
    storage.write_bytes(url, path.read_bytes())
    index([url], out)
    check_dataset(out, {f"d/{number:06d}": sample(number) for number in range(5)})
