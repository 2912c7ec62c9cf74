"""A list names places below its own folder or below what was allowed, and nothing else."""

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import IngestConfig
from ingest.places import Places, located, places_of, resolve

REMOTE = Places(root="s3://bucket/lists", allow=("s3://archive/l8", "https://host"))
LOCAL = Places(root="/data/lists", allow=("/mnt/disk", "s3://archive"))


@pytest.mark.parametrize(
    ("places", "href", "expected"),
    [
        (REMOTE, "a/b.tif", "a/b.tif"),
        (REMOTE, "./a/./b.tif", "a/b.tif"),
        (REMOTE, "s3://bucket/lists/a.tif", "a.tif"),
        (REMOTE, "s3://archive/l8/a.tif", "s3://archive/l8/a.tif"),
        (REMOTE, "https://host/x.tif?sig=1", "https://host/x.tif?sig=1"),
        (LOCAL, "/data/lists/sub/a.tif", "sub/a.tif"),
        (LOCAL, "file:///data/lists/a.tif", "a.tif"),
        (LOCAL, "sub//a.tif", "sub/a.tif"),
        (LOCAL, "/mnt/disk/a.tif", "/mnt/disk/a.tif"),
        (LOCAL, "s3://archive/a.tif", "s3://archive/a.tif"),
        (REMOTE, "s3://bucket/other/a.tif", None),
        (REMOTE, "s3://bucket/lists2/a.tif", None),
        (REMOTE, "s3://archive/l80/a.tif", None),
        (REMOTE, "https://host.evil/x.tif", None),
        (REMOTE, "https://host@evil/x.tif", None),
        (REMOTE, "http://169.254.169.254/latest", None),
        (REMOTE, "/etc/passwd", None),
        (REMOTE, "file:///etc/passwd", None),
        (REMOTE, "file:/etc/passwd", None),
        (REMOTE, "/vsicurl/https://host/x.tif", None),
        (REMOTE, "../x.tif", None),
        (REMOTE, "s3://archive/l8/../secret.tif", None),
        (REMOTE, "s3://archive/l8/%2e%2e/secret.tif", None),
        (REMOTE, "zip://a.tif::s3://bucket/lists/x.zip", None),
        (REMOTE, "s3://bucket/lists/", None),
        (REMOTE, "s3://bucket/lists/s3://secret/x.tif", None),
        (REMOTE, "s3://bucket/lists//etc/passwd", None),
        (LOCAL, "/data/lists/s3://secret/x.tif", None),
        (REMOTE, "", None),
        (LOCAL, "/etc/passwd", None),
        (LOCAL, "file:///etc/passwd", None),
        (LOCAL, "/data/lists/../x.tif", None),
        (LOCAL, "/vsizip//data/lists/x.zip", None),
        (LOCAL, "a\0b.tif", None),
        (LOCAL, "https://host/x.tif", None),
    ],
)
def test_find(places, href, expected):
    assert places.find(href) == expected


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a", "..", ".", "/", ":", "://", "%2e", "\\", "~", "\0", "s3:", "etc"]), max_size=9).map(
        "".join
    ),
    st.sampled_from(["", "s3://bucket/", "/data/lists/", "file:"]),
)
def test_what_is_found_never_leaves_the_folder(tail, head):
    for places in (Places(root="s3://bucket/lists", allow=()), Places(root="/data/lists", allow=())):
        place = places.find(head + tail)
        if place is not None:
            assert not place.startswith("/")
            scheme, _, path = places.url(place).rpartition("://")
            root = places.root.rpartition("://")[2]
            assert posixpath.normpath(path).startswith(root + "/") or posixpath.normpath(path) == root
            assert scheme == places.root.rpartition("://")[0]


@pytest.mark.parametrize(
    ("document", "href", "expected"),
    [
        ("s3://b/cat/items/x.json", "../images/x.tif", "s3://b/cat/images/x.tif"),
        ("s3://b/cat/x.json", "./x.tif", "s3://b/cat/x.tif"),
        ("/data/cat/x.json", "x.tif", "/data/cat/x.tif"),
        ("s3://b/cat/x.json", "https://host/x.tif", "https://host/x.tif"),
        ("s3://b/cat/x.json", "../../../x.tif", "s3://../x.tif"),
        ("s3://b/cat/x.json", "file:/etc/passwd", "file:/etc/passwd"),
    ],
)
def test_resolve(document, href, expected):
    assert resolve(document, href) == expected


def test_places_of_a_local_list_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = places_of("lists/a.csv", ("more/", "s3://x/"))
    assert places == Places(root=f"{tmp_path}/lists", allow=(f"{tmp_path}/more", "s3://x"))
    assert places.url("a.tif") == f"{tmp_path}/lists/a.tif"


def test_a_list_and_a_prefix_may_be_given_by_the_folder_above(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = located(IngestConfig(scenes="../list.csv", out="../out", allow=("../more",)))
    assert (config.scenes, config.out) == (f"{tmp_path}/list.csv", f"{tmp_path}/out")
    places = places_of("../list.csv", ("../more",))
    assert places == places_of(config.scenes, config.allow)
    assert places.find("sub/a.tif") == "sub/a.tif"
    assert places.find(f"{tmp_path}/more/a.tif") == "more/a.tif"


def test_local_paths_are_located_once_and_urls_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = located(IngestConfig(scenes="lists/a.csv", out="./data/", allow=("more/", "s3://x/", "/mnt/"), seed=3))
    assert (found.scenes, found.out) == (f"{tmp_path}/lists/a.csv", f"{tmp_path}/data")
    assert found.allow == (f"{tmp_path}/more", "s3://x/", "/mnt")
    assert found.seed == 3
    monkeypatch.chdir("/")
    assert located(found) == found
    remote = IngestConfig(scenes="s3://x/scenes/", out="s3://x/data/")
    assert located(remote) == remote
