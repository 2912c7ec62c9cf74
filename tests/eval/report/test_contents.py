from eval.report.contents import contents, leading


def _row(model, features, value, validation, **more):
    return {"task": "t", "data": "d", "protocol": "linear", "model": model, "features": features, "value": value,
            "low": value, "high": value, "detail": {"validation": validation}, "chosen": False} | more  # fmt: skip


def _index(rows, **more):
    """Index rows; a model with a step is of the run that its name begins with."""
    models = [
        {"name": name, "kind": "export", "step": step, "run_name": None if step is None else name.split(" step")[0]}
        for name, step in {row["model"]: row.get("step") for row in rows}.items()
    ]
    return contents({"models": models, "data": [{"name": "d"}], "rows": rows} | more)


def test_the_row_that_the_evaluation_chose_stands_for_its_model():
    rows = [
        _row("a", "cls", 0.9, 0.9),
        _row("a", "mean", 0.7, 0.6, chosen=True),
        _row("b", "cls", 0.8, 0.5, chosen=True),
    ]
    (table,) = _index(rows).tables
    assert [(model, row["features"]) for model, row in table.chosen().items()] == [("b", "cls"), ("a", "mean")]


def test_newest_is_the_last_step_of_each_run():
    rows = [_row(f"run step {step}", "cls", 0.5, 0.5, step=step) for step in (900, 1000)]
    rows += [_row("other step 5", "cls", 0.5, 0.5, step=5), _row("timm:x step 7", "cls", 0.5, 0.5)]
    assert _index(rows).newest == _index(rows[::-1]).newest == {"run step 1000", "other step 5", "timm:x step 7"}


def test_a_run_is_what_the_models_tell_and_not_what_their_names_look_like():
    rows = [_row(name, "cls", 0.5, 0.5, step=step) for step, name in enumerate(("a step 1", "a step 2"), 1)]
    report = {"data": [{"name": "d"}], "rows": rows}
    for runs in ((None, None), ("jan/a", "feb/a"), ("a", "a")):
        models = [
            {"name": row["model"], "step": row["step"], "run_name": run} for row, run in zip(rows, runs, strict=True)
        ]
        index = contents(report | {"models": models})
        assert index.newest == ({"a step 2"} if runs[0] == "a" else {"a step 1", "a step 2"})
        assert index.runs == {row["model"]: run for row, run in zip(rows, runs, strict=True) if run}


def test_a_baseline_is_among_the_newest_though_a_later_step_overtakes_it():
    rows = [_row(f"run step {step}", "cls", 0.5, 0.5, step=step) for step in (900, 1000)]
    index = _index(rows, baseline="run step 900")
    assert (index.baseline, index.newest) == ("run step 900", {"run step 900", "run step 1000"})
    assert _index(rows).baseline is None


def test_a_comparison_is_turned_round():
    rows = [_row("a", "cls", 0.5, 0.5), _row("b", "mean", 0.7, 0.5)]
    found = {"data": "d", "protocol": "linear", "model": "b", "features": "mean", "other": "a",
             "other_features": "cls", "value": 0.2, "low": 0.1, "high": 0.35, "verdict": "better"}  # fmt: skip
    index = _index(rows, comparisons=[found])
    assert index.between(rows[1], rows[0]) == found
    turned = index.between(rows[0], rows[1])
    assert [turned[name] for name in ("value", "low", "high", "verdict")] == [-0.2, -0.35, -0.1, "worse"]
    assert (turned["model"], turned["other"]) == ("a", "b")
    assert index.between(rows[0], rows[0] | {"features": "mean"}) is None


def test_tables_are_in_order_and_their_rows_from_the_best(report):
    index = contents(report)
    tasks = list(dict.fromkeys((each.task, each.data) for each in index.tables))
    assert tasks == [
        ("scene classification", "eurosat"),
        ("scene classification", "resisc45"),
        ("semantic segmentation", "loveda"),
        ("change detection", "levir"),
    ]
    assert len(index.tables) == 2 * 7 + 2 + 2
    for table in index.tables:
        values = [row["value"] for row in table.rows]
        assert values == sorted(values, reverse=True)
    assert sum(len(table.rows) for table in index.tables) == len(report["rows"])


def test_a_task_without_leading_protocols_shows_its_first_two():
    rows = [_row("a", "cls", 0.5, 0.5, protocol=name) for name in ("x", "y", "z")]
    assert [table.protocol for table in leading(_index(rows).tables)] == ["x", "y"]
