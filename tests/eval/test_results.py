from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.results import Results, Row, decode_evidence, encode_evidence
from eval.statistics import Evidence
from shards.errors import UserError

EVIDENCE = {
    "accuracy": np.array([1.0, 0.0, 1.0]),
    "average_precision": np.random.default_rng(0).random((5, 7)),
    "miou": np.random.default_rng(1).integers(0, 2**31, (4, 3, 3)),
}


def _row(metric="accuracy", protocol="knn_5", step=None, predictions=None):
    return Row(
        task="t", data="d", data_digest="0", split_digest="1", model="m", model_digest="2",
        normalisation="model", run=step and f"/runs/{step}", step=step, samples_seen=step,
        protocol=protocol, features="cls", metric=metric, value=0.5, low=0.4, high=0.6,
        num_train=2, num_test=3, num_draws=1000, seed=0, seconds=1.5, detail={"validation": None, "c": 1.0},
        predictions=predictions, evidence=Evidence(metric=metric, units=EVIDENCE[metric]),
    )  # fmt: skip


@pytest.mark.parametrize("metric", EVIDENCE)
def test_evidence_survives_exactly(metric):
    again = decode_evidence(metric, encode_evidence(Evidence(metric=metric, units=EVIDENCE[metric])))
    np.testing.assert_array_equal(again.units, EVIDENCE[metric])
    assert again.units.dtype == EVIDENCE[metric].dtype


@pytest.mark.parametrize("metric", EVIDENCE)
def test_places_survive_with_it(metric):
    places = np.arange(EVIDENCE[metric].shape[0 if metric == "miou" else -1]) // 2
    again = decode_evidence(metric, encode_evidence(Evidence(metric=metric, units=EVIDENCE[metric], places=places)))
    np.testing.assert_array_equal(again.units, EVIDENCE[metric])
    np.testing.assert_array_equal(again.places, places)


def test_rows_come_back_as_they_were(tmp_path: Path):
    out = str(tmp_path / "out")
    rows = [_row(predictions=np.array([0, 2, 1])), _row("miou", "segment_linear", step=7)]
    Results(out).append(rows)
    again = Results(out)
    for row in rows:
        found = again.get(row.key)
        assert found is not None
        assert found.figures() == row.figures()
        np.testing.assert_array_equal(found.evidence.units, row.evidence.units)
    first = again.get(rows[0].key)
    assert first is not None
    assert first.predictions is not None
    assert first.predictions.tolist() == [0, 2, 1]
    assert again.get(_row("miou", "segment_conv").key) is None


def test_a_row_replaces_that_with_its_key(tmp_path: Path):
    out = str(tmp_path / "out")
    for step in (1, 2):
        Results(out).append([_row(step=step)])
    assert pq.read_table(f"{out}/results.parquet")["step"].to_pylist() == [2]


def test_what_another_version_wrote_is_refused_by_name(tmp_path: Path):
    out = str(tmp_path / "out")
    Results(out).append([_row()])
    path = tmp_path / "out" / "results.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("run").replace_schema_metadata({"format": "pera-eval-results 3"}), path)
    with pytest.raises(UserError, match=r"results\.parquet is of another version"):
        Results(out)
    # The same columns, of images that were decoded otherwise.
    pq.write_table(table.replace_schema_metadata({"format": "pera-eval-results 4"}), path)
    with pytest.raises(UserError, match=r"results\.parquet is of another version"):
        Results(out)
    pq.write_table(table.append_column("more", pa.array([1])), path)
    with pytest.raises(UserError, match=r"results\.parquet is of another version"):
        Results(out)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"results\.parquet is damaged"):
        Results(out)
