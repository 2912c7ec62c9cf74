"""What nothing names is removed, once it is old; everything else stays."""

import json
import os
import time
from pathlib import Path

import pytest

from shards import storage
from shards.__main__ import main
from shards.curation.dedup import MAX_DISTANCE
from shards.curation.gc import find_orphans, find_uploads, is_ours, remove_orphans
from shards.curation.select import select
from shards.errors import UserError
from shards.verify import verify

HEX16, HEX32, HEX64 = ("0123456789abcdef" * count for count in (1, 2, 4))


@pytest.fixture
def url(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    select(url, "key > 'sample-000004'")
    return url


ORPHANS = [
    f"groups/{HEX32}-rejects.parquet",
    f"groups/{HEX32}-samples.parquet",
    f"groups/{HEX32}.parquet",
    f"index/{HEX32}.json",
    f"index/{HEX32}.parquet",
    f"inventories/{HEX32}.parquet",
    f"plans/{HEX16}/groups/000001-samples.parquet",
    f"plans/{HEX16}/units.parquet",
    f"probes/{HEX32}.parquet",
    f"shards/.{HEX64}.tar.ab_d0fgh.tmp",
    f"shards/{HEX64}.tar",
    f"tables/samples-{HEX32}.parquet",
]
MARKER = f"groups/{HEX32}.json"
OTHERS = [
    "card.html",
    "ingest.jsonl",
    "recipe.json",
    "versions/note.txt",
    f"mine/{HEX64}.tar",
    "shards/curation/gc.py",
    "shards/x.tar",
    f"shards/old/{HEX64}.tar",
    f"shards/.{HEX64}.tar.tmp",
    "shards/.x.tar.ab_d0fgh.tmp",
    f"tables/prices-{HEX32}.parquet",
    "tables/samples.parquet",
    f"plans/{HEX16}.md",
    "plans/2026/units.parquet",
    "groups/a.json",
    "index/a.parquet",
    f"groups/{HEX32}-notes.parquet",
    f"probes/{HEX64}.parquet",
    f"inventories/{HEX32.upper()}.parquet",
]


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
    assert not Path(url, "plans", HEX16).exists()
    assert list(verify(url)) == []
    assert list(verify(url, 1)) == []


@pytest.mark.parametrize("path", [*ORPHANS, MARKER])
def test_our_names_are_exact(path):
    assert is_ours(path)
    assert not is_ours(f"data/{path}")
    assert not is_ours(f"{path}\n") or path.startswith("plans/")
    folder, name = path.split("/", 1)
    temporary = f"{folder}/.{name}.abcdefgh.tmp"
    assert is_ours(temporary) == ("/." not in path and "/" not in name)
    for place in [] if "/" in name else range(len(path)):
        assert not is_ours(path[:place] + path[place + 1 :])
        assert not is_ours(path[:place] + "/" + path[place:])


@pytest.mark.parametrize("path", OTHERS)
def test_other_names_are_not_ours(path):
    assert not is_ours(path)


def test_a_file_may_be_called_like_a_folder_of_ours(url):
    Path(url, "plans").write_text("to do")
    assert find_orphans(url, min_age_h=0, now_s=time.time()) == []


def write_marker(url, age_h):
    """Write a group as a resumed run finishes it: its shard is there since the killed one."""
    shard = f"shards/{HEX64}.tar"
    write(url, [shard, *(path for path in ORPHANS if path.startswith("groups/"))], 30)
    write(url, [MARKER], age_h)
    Path(url, MARKER).write_text(json.dumps({"group": HEX32, "shards": [{"url": shard}]}))
    os.utime(Path(url, MARKER), (time.time() - age_h * 3600,) * 2)


def test_what_a_marker_names_stays_with_it(url):
    write_marker(url, 2)
    write(url, [f"shards/{HEX64[::-1]}.tar"], 30)
    orphans = find_orphans(url, min_age_h=24, now_s=time.time())
    assert [info.path for info in orphans] == [f"shards/{HEX64[::-1]}.tar"]


def test_a_marker_goes_before_what_it_names(url, monkeypatch):
    write_marker(url, 25)
    orphans = find_orphans(url, min_age_h=24, now_s=time.time())
    assert MARKER in {info.path for info in orphans}

    remove = storage.remove

    def refuse_markers(target):
        if target.endswith(".json"):
            raise PermissionError(target)
        remove(target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", refuse_markers)
        with pytest.raises(PermissionError):
            list(remove_orphans(url, orphans))
    assert all(Path(url, info.path).exists() for info in orphans)
    assert next(remove_orphans(url, orphans)).path == MARKER
    assert [info.path for info in orphans if not Path(url, info.path).exists()] == [MARKER]
    left = find_orphans(url, min_age_h=24, now_s=time.time())
    assert list(remove_orphans(url, left)) == [info for info in orphans if info.path != MARKER]


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"shards": [1]}'])
def test_a_marker_that_cannot_be_read_stops_it(url, text):
    write(url, [MARKER], 0)
    Path(url, MARKER).write_text(text)
    with pytest.raises(UserError, match="not a group's marker"):
        find_orphans(url, min_age_h=1, now_s=time.time())


def test_young_files_stay(url):
    write(url, ORPHANS, 2)
    assert find_orphans(url, min_age_h=3, now_s=time.time()) == []
    assert len(find_orphans(url, min_age_h=1, now_s=time.time())) == len(ORPHANS)
    assert len(find_orphans(url, min_age_h=0, now_s=time.time())) == len(ORPHANS)


@pytest.mark.parametrize("fresh", ["ingest.jsonl", f"groups/{HEX32[::-1]}.json"])
def test_what_an_ingest_that_goes_on_has_made_stays_however_old(url, fresh):
    finished, idle = f"shards/{HEX64}.tar", f"shards/{HEX64[::-1]}.tar"
    write(url, [path for path in ORPHANS if path.startswith(("groups/", "probes/", "inventories/"))], 30)
    write(url, [finished, idle], 30)
    write(url, [MARKER, fresh], 30)
    for path in (MARKER, fresh):
        Path(url, path).write_text(json.dumps({"shards": [{"url": finished}] if path == MARKER else []}))
    os.utime(Path(url, MARKER), (time.time() - 30 * 3600,) * 2)
    assert [info.path for info in find_orphans(url, min_age_h=24, now_s=time.time())] == [idle]
    os.utime(Path(url, fresh), (time.time() - 30 * 3600,) * 2)
    assert finished in {info.path for info in find_orphans(url, min_age_h=24, now_s=time.time())}


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
    local = write_dataset(str(tmp_path / "other"))
    url = f"{object_store}/gc/data"
    for path in Path(local).rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.child(url, path.relative_to(local).as_posix()), path.read_bytes())
    storage.write_bytes(f"{url}/{MARKER}", b'{"shards": []}')
    assert find_orphans(url, min_age_h=1, now_s=time.time()) == []
    orphans = find_orphans(url, min_age_h=1, now_s=time.time() + 7200)
    assert [info.path for info in remove_orphans(url, orphans)] == [MARKER]
    assert list(verify(url)) == []


def begin_upload(url):
    fs, path = storage.filesystem(url)
    bucket, _, key = path.partition("/")
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * 2**20))


def test_uploads_of_killed_workers_are_ended_once_they_are_old(object_store, write_dataset, tmp_path, capsys):
    local = write_dataset(str(tmp_path / "other"))
    url = f"{object_store}/gc/uploads"
    for path in Path(local).rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.child(url, path.relative_to(local).as_posix()), path.read_bytes())
    shard, table = f"shards/{HEX64}.tar", f"tables/samples-{HEX32}.parquet"
    for name in (table, shard, "mine/notes.tar"):
        begin_upload(storage.child(url, name))
    assert find_uploads(url, min_age_h=1, now_s=time.time()) == []
    old = find_uploads(url, min_age_h=1, now_s=time.time() + 7200)
    assert [upload.path for upload in old] == [shard, table]
    assert main(["gc", url, "--min_age_h", "0", "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"upload\t{shard}", f"upload\t{table}", "0 files, 0 bytes, 2 unfinished uploads would be removed",
    ]  # fmt: skip
    assert main(["gc", url, "--min_age_h", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 files, 0 bytes, 2 unfinished uploads removed"
    assert [upload.path for upload in storage.list_uploads(url)] == ["mine/notes.tar"]
    assert list(verify(url)) == []


def test_help_tells_the_limit_of_dedup(capsys):
    with pytest.raises(SystemExit):
        main(["dedup", "--help"])
    assert f"0 to {MAX_DISTANCE};" in " ".join(capsys.readouterr().out.split())
