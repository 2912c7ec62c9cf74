"""The line of long work: what it says, and that an earlier run's work is not counted as this one's."""

from shards import progress
from shards.progress import Progress, duration


def test_what_an_earlier_run_did_says_nothing_of_the_rate(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s)
    line = Progress("pack", 100, "groups")
    now_s = 110.0
    line.update(40)
    assert line.line() == "pack: 40/100 groups (40%) · 10 s, 15 s left · 4 groups/s"
    line.skip(35)
    assert line.line() == "pack: 40/100 groups (40%) · 10 s, 2:00 min left · 0.5 groups/s"
    line.skip(5)
    assert line.line() == "pack: 40/100 groups (40%) · 10 s · 0 groups/s"


def test_time_spans_are_for_people():
    assert [duration(seconds) for seconds in (8.4, 185, 9000)] == ["8 s", "3:05 min", "2:30 h"]
