"""Rows of the scenes table travel as JSON and back."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from ingest.scene_row import from_json, to_json


@given(st.none() | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0)))
def test_a_time_comes_back_whatever_the_year(time):
    row = {"scene": "00000000000000ab", "time": time, "size": 1}
    assert from_json(to_json(row)) == row


def test_a_time_is_written_as_iso_8601_has_it():
    assert to_json({"time": datetime(1, 1, 1, tzinfo=UTC)}) == {"time": "0001-01-01T00:00:00Z"}
