from pathlib import Path

import pytest

from eval.config import QUICK, EvalConfig
from eval.prepared import choose_protocols, prepare
from eval.protocols import PROTOCOLS
from eval.report.markdown import markdown
from eval.report.page import render
from shards.errors import UserError


def _config(data, **changes):
    return EvalConfig(models=["floor:image_stats"], data=[f"d={data}"], out="out", **changes)


def test_all_protocols_is_all_but_fine_tuning():
    names = [protocol.name for protocol in choose_protocols(["all"])]
    assert set(names) == {protocol.name for protocol in PROTOCOLS} - {"fine_tune"}
    assert set(QUICK) < set(names)
    with pytest.raises(UserError, match="--protocols knnn does not exist: use knn linear"):
        choose_protocols(["knnn"])


def test_protocols_are_those_for_the_kind_of_data(tmp_path: Path, write_classes, write_masks, write_pairs):
    for write, names in [
        (write_classes, ["knn", "linear", "retrieval"]), (write_masks, ["segmentation"]), (write_pairs, ["change"]),
    ]:  # fmt: skip
        (item,) = prepare(_config(write(tmp_path / names[0])))
        assert [protocol.name for protocol in item.protocols] == names
    with pytest.raises(UserError, match="--protocols knn are none for d, data of masks: add one of segmentation"):
        prepare(_config(tmp_path / "segmentation", protocols=["knn"]))


def test_what_the_report_says_of_the_data(tmp_path: Path, write_classes):
    (item,) = prepare(_config(write_classes(tmp_path / "d")))
    figures = item.figures([("a.png", "broken")])
    assert figures["parts"] == {"train": 39, "validation": 9, "test": 12}
    assert (figures["kind"], figures["split_method"]) == ("classes", "stratified")
    assert figures["rejected"] == [{"path": "a.png", "reason": "broken"}]
    assert "images_in_no_part_of_the_split" not in figures


def test_images_that_a_given_split_leaves_out_are_counted(tmp_path: Path, write_classes):
    """Such a split may choose some of a larger set, or lack names by mistake."""
    root = write_classes(tmp_path / "d")
    for part, numbers in (("train", range(10)), ("test", range(12, 17))):
        lines = [f"class_{label}/image_{number}.png" for label in range(3) for number in numbers]
        (root / f"{part}.txt").write_text("\n".join(lines))
    (item,) = prepare(_config(root))
    figures = item.figures([])
    assert (figures["num_images"], figures["images_in_no_part_of_the_split"]) == (45, 15)
    report = {"models": [], "rows": [], "data": [figures]}
    assert "45 images, 0 left out as unreadable, 15 others in no part of the split that came with the data" in (
        markdown(report)
    )
    assert "Images in no part of the split" in render(report)


def test_a_split_that_the_data_lack_is_refused(tmp_path: Path, write_classes):
    with pytest.raises(UserError, match="without a split"):
        prepare(_config(write_classes(tmp_path / "d"), split="given"))
