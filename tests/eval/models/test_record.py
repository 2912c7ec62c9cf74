import json
from pathlib import Path

import pytest
import torch

from eval.models import record as module
from eval.models.record import read_record
from eval.models.resolve import resolve_models
from shards.errors import UserError

IDENTITY = {"seed": 3, "model.width": 192, "masks.student": 0.2, "views.ratio": [0.75, 1.33]}


def _write(run: Path, identity=IDENTITY, digests=("a", "b"), **changes) -> str:
    run.mkdir(parents=True, exist_ok=True)
    fields = {"format": "pera-run", "format_version": 2, "identity": identity, "digests": digests, "mean": [0.5]}
    (run / "run.json").write_text(json.dumps(fields | changes))
    return str(run)


def _read(*arguments, **changes):
    found = read_record(_write(*arguments, **changes))
    assert found is not None
    return found


def test_runs_that_differ_in_their_seed_alone_are_one_method(tmp_path: Path):
    first = _read(tmp_path)
    assert first.seed == 3
    other = _read(tmp_path, dict(reversed((IDENTITY | {"seed": 5}).items())), mean=[0.6], versions={"torch": "3"})
    assert (other.method, other.seed) == (first.method, 5)


@pytest.mark.parametrize(
    ("identity", "digests"),
    [
        (IDENTITY | {"model.width": 193}, ("a", "b")),
        (IDENTITY | {"more": None}, ("a", "b")),
        (IDENTITY, ("a",)),
        (IDENTITY, ("b", "a")),
    ],
)
def test_runs_that_differ_in_more_are_two(tmp_path: Path, identity, digests):
    first = _read(tmp_path)
    assert _read(tmp_path, identity | {"seed": 4}, digests).method != first.method


def test_no_record_and_one_of_another_format_name_no_method(tmp_path: Path):
    assert read_record(str(tmp_path)) is None
    assert read_record(_write(tmp_path, format_version=1)) is None
    assert read_record(_write(tmp_path, format="another tool's")) is None


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}", "null", '{"format": "pera-run", "format_version": 2, "identity": {"seed": 0}}',
     '{"format": "pera-run", "format_version": 2, "identity": {"width": 1}, "digests": []}',
     '{"format": "pera-run", "format_version": 2, "identity": {"seed": 0, "lr": NaN}, "digests": []}',
     '{"format": "pera-run", "format_version": 2, "identity": {"seed": null}, "digests": []}',
     '{"format": "pera-run", "format_version": 2, "identity": 7, "digests": []}'],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path: Path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged .*: restore it") as caught:
        read_record(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_run_s_record_is_read_once_and_goes_with_each_of_its_exports(
    tmp_path: Path, write_export, monkeypatch: pytest.MonkeyPatch
):
    run, alone = tmp_path / "run", write_export(tmp_path / "alone")
    for step in (1, 2, 3):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    expected = read_record(_write(run))
    read: list[str] = []
    whole = module.storage.read_bytes
    monkeypatch.setattr(module.storage, "read_bytes", lambda url: (read.append(url), whole(url))[1])
    candidates = resolve_models([f"{run}@all", str(run), str(alone)], False, torch.device("cpu"), print)
    assert [url for url in read if url.endswith("run.json")] == [f"{run}/run.json"]
    assert [candidate.record for candidate in candidates] == [expected, expected, expected, None]
