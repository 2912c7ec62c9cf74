"""The log has a JSON object per line, whatever ends the run, and hides nothing that went wrong before."""

import json

import pytest

from ingest.log import EventLog
from shards import storage


def lines(out):
    return [json.loads(line) for line in storage.read_bytes(storage.join(out, "ingest.jsonl")).splitlines()]


@pytest.mark.parametrize("remote", [False, True])
def test_runs_follow_each_other(tmp_path, request, remote):
    out = f"{request.getfixturevalue('object_store')}/{tmp_path.name}" if remote else str(tmp_path)
    with EventLog(out) as log:
        log.add("started", scenes=3)
        log.progress("pack", done=1)
    with pytest.raises(KeyError), EventLog(out) as log:
        raise KeyError("two\nlines")
    first, progress, second = lines(out)
    assert (first["event"], first["scenes"]) == ("started", 3)
    assert (progress["event"], progress["phase"], progress["done"]) == ("progress", "pack", 1)
    assert (second["event"], second["error"]) == ("stopped", "'two\\nlines'")


def test_progress_is_kept_now_and_then(tmp_path):
    with EventLog(str(tmp_path)) as log:
        for done in range(1000):
            log.progress("pack", done=done)
    assert [event["done"] for event in lines(str(tmp_path))][:1] == [0]
    assert len(lines(str(tmp_path))) < 10


def test_a_log_that_cannot_be_written_hides_no_error(tmp_path):
    out = str(tmp_path / "out")

    def run():
        with EventLog(out):
            (tmp_path / "out").write_text("a file")
            raise KeyError("what went wrong")

    with pytest.raises(KeyError) as caught:
        run()
    assert "nor could the log be written" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="out"), EventLog(out) as log:
        log.add("started")
