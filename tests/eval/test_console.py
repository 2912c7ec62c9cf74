import io

from rich.console import Console

from eval.console import print_summary


def _row(model, protocol, value, chosen=True):
    return {"data": "d", "model": model, "protocol": protocol, "features": "cls", "metric": "f1", "value": value,
            "low": value - 0.1, "high": value + 0.1, "chosen": chosen}  # fmt: skip


def test_summary_has_the_chosen_rows_and_brackets_are_no_markup():
    console = Console(file=io.StringIO(), width=140)
    rows = [
        _row("a[b]", "change_concat_f1", 0.5),
        _row("c", "change_concat_f1", 0.6),
        _row("c", "change_concat_f1", 0.9, chosen=False),
    ]
    report = {
        "rows": rows, "verdicts": ["On d, a[b] is better."], "models": [{"name": "a[b]"}, {"name": "c"}],
        "data": [{"name": "d", "rejected": [{"path": "x", "reason": "y"}], "images_with_missing_values": 3,
                  "images_in_no_part_of_the_split": 7}],
    }  # fmt: skip
    print_summary(report, "out", console)
    text = console.file.getvalue()
    assert "linear on [a, b]: F1" in text
    assert "On d, a[b] is better." in text
    assert "60.0 (50.0 … 70.0)" in text
    assert "90.0" not in text
    assert text.index("60.0 (") < text.index("50.0 (40.0")
    assert "d: 1 unreadable images left out" in text
    assert "d: 7 images are in no part of the split that came with the data, and were left out" in text
    assert "d: in 3 images some values are NaN or infinite, and models saw the mean of the band instead" in text
    assert "out/report.html" in text
