"""The dataset card: complete, self-contained, safe with hostile names, and the same every time."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from shards import storage
from shards.__main__ import main
from shards.card.page import renew_card, write_card
from shards.commit import encode_table, write_table
from shards.errors import UserError
from shards.schema import REJECTS, SAMPLES, SCENES, Band, TableFile, sha256_hex
from shards.tables import read_table, read_version
from tests.page_reader import read_page

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&$name ${digest}"
SITES = [(13.4, 52.5), (-121.5, 38.6), (36.8, -1.3), (149.1, -35.3), (-77.0, -12.0), (179.9, -17.0)]


def rich_dataset(url, write_dataset, name="forest", **changes):
    """A dataset with every column filled, scenes over the world, labels, splits, rejects and a full record."""
    write_dataset(url, num_samples=60)
    version = read_version(url)
    samples = read_table(url, version, "samples").to_pylist()
    for number, row in enumerate(samples):
        lon, lat = SITES[number % len(SITES)]
        row |= {"lon": lon + 0.01 * (number % 7), "lat": lat + 0.01 * (number % 5), "gsd_m": 0.3 * 2 ** (number % 6)}
        row |= {"time": datetime(2021, 3, 5, tzinfo=UTC) + timedelta(days=23 * (number % 20)), "sensor": f"MSI {name}"}
        row |= {"label": name if number % 3 else "river", "cell": "a", "split": ["train", "val", "border"][number % 3]}
        row |= {"entropy": 4 + number % 4, "contrast": 0.1, "cloud_share": number / 60, "valid_share": 0.9}
    scenes = [row | {"crs": "EPSG:4326"} for row in read_table(url, version, "scenes").to_pylist()]
    rejects = [{"scene": "r1", "path": f"{name}.tif", "reason": "corrupt", "detail": f"says {name}"}]
    rejects += [
        {"scene": "s1", "path": "t.tif", "x": n, "y": 0, "reason": "cloudy", "detail": f"{n}"} for n in range(5)
    ]
    scenes.append({"scene": "r1", "path": f"{name}.tif", "state": "rejected", "reason": "corrupt", "num_tiles": 0})
    tables = {
        "samples": write_table(url, "samples", [pa.Table.from_pylist(samples, SAMPLES)]),
        "scenes": write_table(url, "scenes", [pa.Table.from_pylist(scenes, SCENES)]),
        "rejects": write_table(url, "rejects", [pa.Table.from_pylist(rejects, REJECTS)]),
        "shards": version.tables["shards"],
    }
    record = {
        "scenes": f"/archive/{name}",
        "recipe": {"tile_px": 32, "sensor": name, "bands": ["red"]},
        "plans": [{"plan": "0123abcd", "toolchain": {"gdal": "3.10.3"}}],
        "operations": [{"op": "select", "where": f"label = '{name}'"}],
        "parent": 1,
    }
    bands = tuple(Band(name=band, mean=114.75, std=51.0) for band in ("red", "green", "blue"))
    changes = {"bands": bands, **changes}
    return replace(version, num_scenes=61, num_rejected=1, tables=tables, record=record, **changes)


def card(url, version):
    return Path(write_card(url, version)).read_text()


def test_says_what_it_is(tmp_path, write_dataset):
    url = str(tmp_path / "my tiles")
    text = read_page(card(url, rich_dataset(url, write_dataset))).text
    for told in [
        "Version 1, made from version 1: 60 tiles of 32 × 32 pixels from 60 of 61 scenes",
        "uint8, png",
        "2021-03-05 … 2022-05-16",
        "MSI forest",
        "red 114.75 51.00",
        "60 tiles by their centres",
        "corrupt 1 scene forest.tif says forest",
        "cloudy 5 tiles t.tif 0",
        "Ground sampling distance, metres 60 tiles",
        "Share of cloudy pixels 60 tiles",
        "red, mean of a tile 60 tiles",
        "blue, mean of a tile 60 tiles",
        "forest 40 66.7 %",
        "train 20 33.3 %",
        "gdal 3.10.3",
        "label = 'forest'",
        f"python -m shards verify '{url}' --version 1",
        f"python -m ingest --rebuild '{url}' --version 1 --out '{url}-rebuilt'",
        f"make pretrain DATA='{url}' RUN=run",
    ]:
        assert told in text, told
    for files in rich_dataset(url, write_dataset).tables.values():
        assert all(file.sha256 in text for file in files)


def test_refers_to_nothing_outside_itself(tmp_path, write_dataset):
    url = str(tmp_path / "data")
    text = card(url, rich_dataset(url, write_dataset))
    links = read_page(text).links()
    assert links
    assert all(link == "#world" or link.startswith("data:image/jpeg;base64,") for link in links)
    assert len(text) < 1_500_000


def test_hostile_names_stay_text(tmp_path, write_dataset):
    url = str(tmp_path / "<b>&'x")
    version = rich_dataset(url, write_dataset, HOSTILE, bands=(Band(name=HOSTILE, mean=1.0, std=1.0),))
    harmless = str(tmp_path / "data")
    page, plain = read_page(card(url, version)), read_page(card(harmless, rich_dataset(harmless, write_dataset)))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert [attrs.keys() for tag, attrs in page.elements if tag == "img"] == [{"class", "alt", "src"}]
    # Band, label, two of sensor, reject's path and detail, scenes' root, recipe, operation.
    assert page.text.count(HOSTILE) >= 9
    assert page.text.count("<b>&'x") >= 2


def test_names_that_are_no_unicode_can_be_written(tmp_path, write_dataset):
    url = str(tmp_path / "data")
    version = rich_dataset(url, write_dataset)
    assert "/archive/\\udcff" in card(url, replace(version, record={"scenes": "/archive/\udcff"}))


def test_the_same_version_gives_the_same_bytes(tmp_path, write_dataset):
    url = str(tmp_path / "data")
    version = rich_dataset(url, write_dataset)
    first = write_card(url, version)
    assert first == f"{url}/card.html"
    assert storage.read_bytes(first) == storage.read_bytes(write_card(url, version, str(tmp_path / "other.html")))


def test_a_card_of_another_version_is_renewed(tmp_path, write_dataset):
    url = str(tmp_path / "data")
    version = rich_dataset(url, write_dataset)
    page = Path(url, "card.html")
    renew_card(url, version)
    renew_card(url, replace(version, digest="f" * 64))
    assert f"<code>{'f' * 64}</code>" in page.read_text()
    renew_card(url, replace(version, version=7))
    assert "Version 7" in page.read_text()
    page.write_text(page.read_text() + "<!-- mine -->")
    renew_card(url, replace(version, version=7))
    assert page.read_text().endswith("<!-- mine -->")
    page.write_text("a card of long ago")
    renew_card(url, version)
    assert "Version 1" in page.read_text()


def test_what_is_derived_in_place_renews_the_card_that_stands(tmp_path, write_dataset, capsys):
    url = write_dataset(str(tmp_path / "data"))
    main(["select", url, "--where", "key > 'sample-000004'"])
    assert not Path(url, "card.html").exists()
    renew_card(url, read_version(url))
    main(["select", url, "--where", "key > 'sample-000008'"])
    assert "Version 3" in Path(url, "card.html").read_text()
    # The same again is the version that is there, the newest is another one.
    main(["select", url, "--where", "key > 'sample-000004'", "--version", "1"])
    assert "version 2" in capsys.readouterr().out.splitlines()[-1]
    assert "Version 3" in Path(url, "card.html").read_text()


def test_columns_without_a_value_and_empty_parts_are_left_out(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    version = read_version(url)
    nulls = {name: pa.nulls(24, SAMPLES.field(name).type) for name in ("entropy", "split", "time")}
    samples = read_table(url, version, "samples").cast(SAMPLES)
    for name, column in nulls.items():
        samples = samples.set_column(samples.column_names.index(name), SAMPLES.field(name), column)
    tables = {**version.tables, "samples": write_table(url, "samples", [samples])}
    text = read_page(card(url, replace(version, tables=tables))).text
    assert "24 tiles without a place (24 scenes without a CRS)" in text
    assert "Nothing: every scene and every tile is in the dataset." in text
    assert "Share of pixels with data" in text
    for absent in ("Entropy", "Acquired", "Ground sampling", "Split", "Label", "Sensor", "Taken", "Recipe"):
        assert absent not in text, absent


def test_a_dataset_of_older_columns_has_a_card(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    version = read_version(url)
    old = read_table(url, version, "samples").select([*SAMPLES.names[:23], "valid_share"])
    data = encode_table(old)
    Path(url, "tables/old.parquet").write_bytes(data)
    file = TableFile(url="tables/old.parquet", sha256=sha256_hex(data), num_rows=24)
    record = {"plan": "feed", "toolchain": {"gdal": "3.9"}, "recipe": {}}
    text = read_page(card(url, replace(version, tables={**version.tables, "samples": (file,)}, record=record))).text
    assert "Plan feed" in text
    assert "Share of pixels with data" in text
    assert "Contrast" not in text
    assert "mean of a tile" not in text


def test_the_lines_for_webdataset_read_all_and_only_the_versions_tiles(tmp_path, write_dataset):
    pytest.importorskip("webdataset")
    url = str(tmp_path / "data")
    version = rich_dataset(url, write_dataset)
    samples = read_table(url, version, "samples").cast(SAMPLES)
    for chosen in (samples, samples.slice(10, 30)):
        tables = {**version.tables, "samples": write_table(url, "samples", [chosen])}
        text = card(url, replace(version, tables=tables, num_samples=chosen.num_rows))
        code = re.search(r"import pyarrow.*?(?=</code>)", text, re.DOTALL).group()
        names = {}
        exec(code.replace("&quot;", '"').replace("&#x27;", "'"), names)
        assert sorted(tile["__key__"] for tile in names["tiles"]) == sorted(chosen["key"].to_pylist())


def test_a_missing_or_damaged_part_is_a_clear_error(tmp_path, write_dataset):
    url = str(tmp_path / "data")
    version = rich_dataset(url, write_dataset)
    for shard in Path(url, "shards").iterdir():
        shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"does not match its checksum: see `python -m shards verify"):
        write_card(url, version)
    for shard in Path(url, "shards").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match="not there"):
        write_card(url, version)
    Path(url, version.tables["rejects"][0].url).unlink()
    with pytest.raises(UserError, match=r"rejects-.* does not exist"):
        write_card(url, version)
