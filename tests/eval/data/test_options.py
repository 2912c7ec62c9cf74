import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.data.kinds import LabelledData, Sample
from eval.data.options import keep_bands, parse_bands, split_options
from shards.errors import UserError

BANDS = ("band_1", "band_2", "nir", "swir")


@pytest.mark.parametrize(
    ("url", "place", "options"),
    [
        ("/data/x", "/data/x", {}),
        ("/data/x#bands=1-3", "/data/x", {"bands": "1-3"}),
        ("torchgeo:EuroSAT#root=/d/a#b", "torchgeo:EuroSAT#root=/d/a#b", {}),
        ("s3://b/x#bands=1:red,2&root=/d", "s3://b/x", {"bands": "1:red,2", "root": "/d"}),
        ("/data/run #2/tiles", "/data/run #2/tiles", {}),
    ],
)
def test_only_word_equals_is_an_option(url, place, options):
    assert split_options(url, ("bands", "root")) == (place, options)


@pytest.mark.parametrize("url", ["/data/x#band=1", "/data/x#bands="])
def test_unknown_and_empty_options_are_refused(url):
    with pytest.raises(UserError, match="known are bands"):
        split_options(url, ("bands",))


@pytest.mark.parametrize(
    ("text", "places", "names"),
    [
        ("1-2", [0, 1], ["band_1", "band_2"]),
        ("4,1", [3, 0], ["swir", "band_1"]),
        ("nir", [2], ["nir"]),
        ("3:red, 2:green,nir:blue", [2, 1, 2], ["red", "green", "blue"]),
    ],
)
def test_positions_ranges_names_and_new_names(text, places, names):
    chosen = parse_bands(text, BANDS)
    assert [band.index for band in chosen] == places
    assert [band.name for band in chosen] == names


@pytest.mark.parametrize("text", ["0", "5", "3-5", "2-1", "red", "1,,2", "1-", ":red"])
def test_bands_that_are_not_there_are_named(text):
    with pytest.raises(UserError, match="names none of the 4 bands band_1,band_2,nir,swir"):
        parse_bands(text, BANDS)


def test_two_bands_of_one_name_are_refused():
    with pytest.raises(UserError, match="a name of its own"):
        parse_bands("1:nir,3", BANDS)


def _data(pixels: np.ndarray) -> LabelledData:
    return LabelledData(
        name="d", url="u", kind="changes", classes=("unchanged", "changed"), ids=("a",), bands=BANDS, dtype="int16",
        digest="0" * 64, read=lambda _: Sample(images=(pixels, pixels + 1), mask=np.zeros(pixels.shape[:2], np.uint8)),
    )  # fmt: skip


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True))
def test_chosen_bands_are_cut_out_of_every_image(order):
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    data = keep_bands(_data(pixels), ",".join(map(str, order)))
    first, second = data.read(0).images
    np.testing.assert_array_equal(first, pixels[:, :, [place - 1 for place in order]])
    np.testing.assert_array_equal(second, first + 1)
    assert data.bands == tuple(BANDS[place - 1] for place in order)


def test_the_digest_says_which_bands():
    whole = _data(np.zeros((2, 2, 4), np.int16))
    digests = {keep_bands(whole, text).digest for text in ("1-2", "1,2", "2,1", "1,2:red", "1-3")}
    assert len(digests) == 4, "equal choices have equal digests"
    assert whole.digest not in digests
