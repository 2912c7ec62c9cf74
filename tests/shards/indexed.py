"""What the tests of `shards.indexing.index` look at in a dataset that was made."""

import hashlib

from shards.dataset import open_dataset
from shards.tables import read_table, read_version
from shards.verify import verify


def rows_of(url):
    """Return the rows of the newest version's samples."""
    return read_table(url, read_version(url), "samples").to_pylist()


def check_dataset(url, expected):
    """Compare rows and samples with {key: {extension: content}}, in order; the image is called png, jpg or npy."""
    assert list(verify(url)) == []
    rows, dataset = rows_of(url), open_dataset(url)
    assert [row["key"] for row in rows] == list(expected)
    for number, (row, members) in enumerate(zip(rows, expected.values(), strict=True)):
        found = dataset.read(number)
        assert found.members == members
        assert found.image == members[row["member"]]
        assert row["member_sha256"] == hashlib.sha256(found.image).digest()
        assert row["json_sha256"] == others_sha256(members, row["member"])


def others_sha256(members, image_name):
    """Return the hash of all members but the image, as shards.indexing.scan_rows defines it, written in another way."""
    others = {name: hashlib.sha256(content).digest() for name, content in members.items() if name != image_name}
    if not others:
        return None
    if list(others) == ["json"]:
        return others["json"]
    total = hashlib.sha256()
    for name in sorted(others, key=str.encode):
        total.update(b"%d:%s;" % (len(name.encode()), name.encode()) + others[name])
    return total.digest()
