"""What no version names is removed, once it is old; everything else stays."""

import os
import time
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.gc import find_orphans, remove_orphans
from shards.select import select
from shards.verify import verify


@pytest.fixture
def url(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    select(url, "key > 'sample-000004'")
    return url


ORPHANS = [
    "groups/a/1.parquet",
    "inventories/x.parquet",
    "plans/p/0.json",
    "probes/x",
    "shards/.x.tar.abc.tmp",
    "shards/x.tar",
    "tables/samples-0.parquet",
]
OTHERS = ["card.html", "ingest.jsonl", "recipe.json", "versions/note.txt", "mine/x.tar"]


def write(url, names, age_h):
    for name in names:
        path = Path(url, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")
        os.utime(path, (time.time() - age_h * 3600,) * 2)


def test_old_files_that_no_version_names_are_removed(url):
    whole = {path for path in Path(url).rglob("*") if path.is_file()}
    for path in whole:
        os.utime(path, (0, 0))
    write(url, [*ORPHANS, *OTHERS], 30)
    orphans = find_orphans(url, min_age_h=24, now_s=time.time())
    assert [info.path for info in orphans] == ORPHANS
    assert {info.size for info in orphans} == {3}
    assert list(remove_orphans(url, orphans)) == orphans
    assert {path for path in Path(url).rglob("*") if path.is_file()} == whole | {Path(url, name) for name in OTHERS}
    assert not Path(url, "plans").exists()
    assert list(verify(url)) == []
    assert list(verify(url, 1)) == []


def test_young_files_stay(url):
    write(url, ORPHANS, 2)
    assert find_orphans(url, min_age_h=3, now_s=time.time()) == []
    assert len(find_orphans(url, min_age_h=1, now_s=time.time())) == len(ORPHANS)
    assert len(find_orphans(url, min_age_h=0, now_s=time.time())) == len(ORPHANS)


def test_a_folder_without_a_version_is_refused(tmp_path):
    write(str(tmp_path), ORPHANS, 99)
    with pytest.raises(UserError, match="holds no dataset"):
        find_orphans(str(tmp_path), min_age_h=0, now_s=time.time())


def test_a_version_that_cannot_be_read_stops_it(url):
    Path(url, "versions/00000001.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="not a version file"):
        find_orphans(url, min_age_h=0, now_s=time.time())


def test_absolute_urls_into_the_dataset_count(url, tmp_path):
    """A selection written here from a dataset elsewhere, whose shards lie here."""
    out = str(tmp_path / "small")
    select(url, "key > 'sample-000010'", out)
    select(out, "key > 'sample-000015'", url)
    assert find_orphans(url, min_age_h=0, now_s=time.time()) == []
    assert list(verify(url, 3)) == []


def test_in_a_bucket(object_store, write_dataset, tmp_path):
    from shards import storage

    local = write_dataset(str(tmp_path / "other"))
    url = f"{object_store}/gc/data"
    for path in Path(local).rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.child(url, path.relative_to(local).as_posix()), path.read_bytes())
    storage.write_bytes(f"{url}/plans/p/0.json", b"x")
    assert find_orphans(url, min_age_h=1, now_s=time.time()) == []
    orphans = find_orphans(url, min_age_h=1, now_s=time.time() + 7200)
    assert [info.path for info in remove_orphans(url, orphans)] == ["plans/p/0.json"]
    assert list(verify(url)) == []
