"""Names, patterns and folders mean the files that they seem to mean."""

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import storage
from shards.errors import UserError
from shards.indexing.sources import expand, read_sources, split_name


def names(series):
    return {name: [source.url.rpartition("/")[2] for source in sources] for name, sources in series.items()}


@pytest.fixture
def folder(tmp_path):
    for name in ("b-0.tar", "b-1.tar", "a.tar", "note.txt", "a.tar.md5"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.tar").write_bytes(b"c")
    return tmp_path


WORDS = st.one_of(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4)).map(
        lambda ends: f"{{{ends[0]:0{ends[2]}d}..{ends[1]:0{ends[2]}d}}}"
    ),
    st.lists(st.text("ab0", max_size=2), min_size=2, max_size=3).map(lambda words: f"{{{','.join(words)}}}"),
    st.text("ab/-", max_size=4),
)


@given(st.lists(WORDS, max_size=3).map("".join))
def test_patterns_are_those_of_webdataset(pattern):
    assert list(expand(pattern)) == list(braceexpand.braceexpand(pattern, escape=False))


def test_braces_that_are_no_pattern_stay():
    assert list(expand("a{b}-{}.tar")) == ["a{b}-{}.tar"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("rgb=s3://b/x.tar", ("rgb", "s3://b/x.tar")),
        ("s2_l1c=x", ("s2_l1c", "x")),
        ("s3://b/split=train/x.tar", ("", "s3://b/split=train/x.tar")),
        ("./split=train/x.tar", ("", "./split=train/x.tar")),
        ("x.tar", ("", "x.tar")),
    ],
)
def test_names_of_series(argument, expected):
    assert split_name(argument) == expected


def test_files_folders_and_patterns_in_the_order_given(folder):
    assert names(read_sources([str(folder)])) == {"": ["a.tar", "b-0.tar", "b-1.tar"]}
    assert names(read_sources([f"{folder}/b-{{1..0}}.tar", f"{folder}/a.tar"])) == {"": ["b-1.tar", "b-0.tar", "a.tar"]}
    found = read_sources([f"x={folder}/b-{{0,1}}.tar", f"y={folder}/below"])
    assert names(found) == {"x": ["b-0.tar", "b-1.tar"], "y": ["c.tar"]}
    (source,) = found["y"]
    assert (source.url, source.size, source.etag[:6]) == (str(folder / "below" / "c.tar"), 1, "mtime-")


def test_a_file_with_braces_in_its_name_is_itself(folder):
    (folder / "x-{0,1}.tar").write_bytes(b"")
    assert names(read_sources([f"{folder}/x-{{0,1}}.tar"])) == {"": ["x-{0,1}.tar"]}


def test_relative_paths_become_absolute_and_links_keep_their_names(folder, monkeypatch):
    (folder / "link.tar").symlink_to(folder / "below" / "c.tar")
    monkeypatch.chdir(folder / "below")
    assert [source.url for source in read_sources(["c.tar", "../link.tar"])[""]] == [
        str(folder / "below" / "c.tar"),
        str(folder / "link.tar"),
    ]


def test_packed_tars_are_listed_so_that_they_are_refused(folder):
    (folder / "z.tar.gz").write_bytes(b"")
    assert names(read_sources([str(folder)]))[""][-1] == "z.tar.gz"


def test_refusals(folder):
    for arguments, expected in [
        ([f"{folder}/none.tar"], "none.tar does not exist"),
        ([str(folder / "a.tar"), str(folder)], "a.tar is given twice"),
        ([f"x={folder}/a.tar", f"{folder}/below"], "some files belong to a series"),
        ([f"{folder}/{{000000..999999}}{{0,1}}.tar"], "stands for more than 1000000 files"),
        ([""], "an empty path was given"),
        ([f"{folder}/note.txt/x"], "does not exist"),
    ]:
        with pytest.raises(UserError, match=expected):
            read_sources(arguments)
    (folder / "empty" / "deep").mkdir(parents=True)
    (folder / "empty" / "deep" / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no \*\.tar in it \(1 in folders below: give these\)"):
        read_sources([str(folder / "empty")])


def test_missing_files_are_told_together(folder):
    with pytest.raises(UserError, match="3 files to index cannot be used") as error:
        read_sources([f"{folder}/b-{{1..4}}.tar"])
    assert [fault.split(" does not exist")[0][-7:] for fault in error.value.faults] == ["b-2.tar", "b-3.tar", "b-4.tar"]


def test_in_a_bucket(object_store):
    for name in ("t-08.tar", "t-09.tar", "t-10.tar", "sub/x.tar"):
        storage.write_bytes(f"{object_store}/sources/{name}", name.encode())
    found = read_sources([f"{object_store}/sources/t-{{08..10}}.tar"])
    assert names(found) == {"": ["t-08.tar", "t-09.tar", "t-10.tar"]}
    assert read_sources([f"{object_store}/sources"]) == found
    assert found[""][0].etag == storage.stat(f"{object_store}/sources/t-08.tar").etag
    with pytest.raises(UserError, match=r"t-11\.tar does not exist"):
        read_sources([f"{object_store}/sources/t-{{10..11}}.tar"])
    with pytest.raises(UserError, match="does not exist: check the path or bucket"):
        read_sources(["s3://no-such-bucket/x.tar"])
