"""The commands name the dataset such that a shell, make and Python read the name back."""

import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from shards.card.survey import take_survey
from shards.card.usage import commands
from shards.tables import read_version


@pytest.fixture
def dataset(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    version = read_version(url)
    return version, take_survey(url, version)


@pytest.mark.parametrize("url", ["plain", "two words", "it's", "a$b", "-x;rm `y`"])
def test_names_are_quoted(dataset, url):
    found = commands(url, *dataset)
    assert shlex.split(found["Check every byte"]) == ["python", "-m", "shards", "verify", url, "--version", "1"]
    assert shlex.split(found["Build it again and compare"])[4:] == [url, "--version", "1", "--out", f"{url}-rebuilt"]
    assert shlex.split(found["Train on it"])[2].replace("$$", "$") == f"DATA={url}"


def test_what_is_built_again_is_this_version(dataset):
    version, survey = dataset
    third = replace(version, version=3)
    assert " --rebuild d --version 3 " in commands("d", third, survey)["Build it again and compare"]
    indexed = replace(third, record={"command": "index", "sources": ["a.tar"]})
    assert commands("d", indexed, survey)["Build it again and compare"].endswith("diff d d-rebuilt --version_a 3")


@pytest.mark.parametrize(
    ("root", "listed", "expected"),
    [
        ("s3://b/d", "shards/1.tar", "pipe:aws s3 cp s3://b/d/shards/1.tar -"),
        ("s3://b/d/", "s3://c/1.tar", "pipe:aws s3 cp s3://c/1.tar -"),
        ("https://h/d", "shards/1.tar", "https://h/d/shards/1.tar"),
        ("/data/it's", "shards/1.tar", "/data/it's/shards/1.tar"),
        ("/data/d", "/other/1.tar", "/other/1.tar"),
    ],
)
def test_shards_are_named_as_webdataset_opens_them(dataset, monkeypatch, root, listed, expected):
    line = re.search(r"^urls = (.*)$", commands(root, *dataset)["Read it with webdataset"], re.MULTILINE).group(1)
    asked = []
    column = SimpleNamespace(to_pylist=lambda: [listed])
    monkeypatch.setattr(pq, "read_table", lambda path: asked.append(path) or {"url": column})
    assert eval(line, {"pq": pq}) == [expected]
    assert asked == [f"{root.rstrip('/')}/{dataset[0].tables['shards'][0].url}"]


def test_arrays_are_decoded_by_their_extension(tmp_path, write_dataset, dataset):
    assert '.decode("rgb8")' in commands("d", *dataset)["Read it with webdataset"]
    url = write_dataset(str(tmp_path / "ms"), bands=("a", "b"), dtype="uint16", encoding="npy")
    version = read_version(url)
    assert ".decode()" in commands(url, version, take_survey(url, version))["Read it with webdataset"]
    fewer = replace(version, num_samples=version.num_samples - 1)
    assert "in keys" in commands(url, fewer, take_survey(url, version))["Read it with webdataset"]
