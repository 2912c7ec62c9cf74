from eval.report.classes import class_figures, confusions, mistakes
from eval.report.contents import contents


def test_mistakes_are_told_by_their_number():
    confusion = {"classes": ["a", "b", "c"], "counts": [[5, 2, 0], [0, 7, 0], [4, 1, 3]]}
    assert mistakes(confusion) == [("c", "a", 4, 8), ("a", "b", 2, 7), ("c", "b", 1, 8)]


def test_matrices_of_the_newest_models(report):
    page = confusions(contents(report))
    assert "pera-s step 40000 on eurosat" in page
    assert "step 20000" not in page
    # Of 6 classes as a table, of 45 as a picture.
    assert (page.count('class="confusion"'), page.count("<svg")) == (2, 2)
    for confusion in report["confusions"]:
        if confusion["model"] == "timm:vit_small" and confusion["data"] == "resisc45":
            filled = sum(count > 0 for row in confusion["counts"] for count in row)
    assert page.rsplit("<svg", 1)[1].count("<title>") == filled


def test_large_counts_are_told_as_shares(report):
    counts = [[1_500_000, 500_000], [0, 1_000_000]]
    report["confusions"] = [report["confusions"][0] | {"classes": ["grass", "roof"], "counts": counts}]
    page = confusions(contents(report))
    assert "grass → roof 25.0 %" in page
    assert "75.0 %" in page
    assert "1,500,000" not in page


def test_each_class_has_its_figure_for_each_model(report):
    page = class_figures(contents(report))
    tables = {(each.data, each.protocol): each.chosen()["timm:vit_small"] for each in contents(report).tables}
    told = tables["loveda", "segment_linear"]["detail"]["per_class"]
    assert "loveda: segmentation, linear, IoU of each class, %" in page
    for name, value in told.items():
        assert f"<td>{name}</td>" in page
        assert value is None or f"{100 * value:.1f}</span>" in page
    assert "eurosat: k-NN, k = 20, Accuracy of each class, %" in page
    assert "retrieval" not in page
