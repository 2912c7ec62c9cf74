import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval.data.missing import filled, present


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_an_image_that_lacks_nothing_is_left_as_it_is(dtype):
    image = np.ones((2, 3, 2), dtype)
    assert present(image) is None
    assert filled(image, (5, 6)) is image


@given(
    hnp.arrays(np.float32, (3, 4, 2), elements=st.sampled_from([-2.5, 0, 7, np.nan, np.inf, -np.inf])),
    st.booleans(),
)
def test_what_is_missing_is_the_mean_of_its_band(image, by_a_model):
    full = filled(image, (0.1, 9.0) if by_a_model else None)
    assert full.dtype == np.float32
    there = np.isfinite(image)
    np.testing.assert_array_equal(full[there], image[there])
    for band, mean in enumerate((0.1, 9.0)):
        own = image[..., band][there[..., band]]
        expected = mean if by_a_model else own.mean() if own.size else 0
        np.testing.assert_allclose(full[..., band][~there[..., band]], expected, rtol=1e-6)
