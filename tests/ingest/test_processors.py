"""What ingest computes and draws is the same on other processors: without the vector units that numpy has loops for."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY

_COMPUTE = """
import hashlib
import numpy as np
from ingest.figures import measure
from ingest.landcover import CLASSES, draw_chip, draw_land, draw_look, expose, to_uint8, to_uint16
from ingest.pixels import Scaling, downsample, percentile_bounds, scale, shift

rng, seen = np.random.default_rng(0), hashlib.sha256()
for dtype in ("uint8", "uint16", "int16", "float32"):
    values = (rng.standard_normal((3, 96, 101)) * 40 + 120).astype(dtype)
    valid = rng.random((96, 101)) < 0.9
    low, high = percentile_bounds(values.reshape(3, -1), (2, 98))
    scaled, clipped = scale(values, Scaling(low=low, high=high, offset=-3.7, scale=1.03))
    means, _ = downsample(values[:, :, :100], valid[:, :100], 4)
    for array in (scaled, clipped, means, shift(values, -17.0, dtype)):
        seen.update(np.ascontiguousarray(array).tobytes())
    for tile in (values, scaled):
        seen.update(repr(measure(tile.transpose(1, 2, 0), valid)).encode())

for number in range(40):
    seen.update(draw_chip(CLASSES[number % len(CLASSES)], 0, number).tobytes())
look = draw_look(1.0, False, rng)
land = expose(draw_land((300, 300), look, rng), look, rng)
seen.update(to_uint8(land).tobytes() + to_uint16(land).tobytes())
print(seen.hexdigest())
"""


def computed(**environment):
    done = subprocess.run(
        [sys.executable, "-c", _COMPUTE],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def test_without_the_vector_units_of_this_processor_it_is_the_same():
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    found = extensions.get("found", [])
    if not found:
        pytest.skip("numpy has no loops for this processor that it could do without")
    here, _ = computed()
    assert len(here.strip()) == 64
    for number in range(len(found)):  # they are named in order, each needs those before it
        without, complaint = computed(NPY_DISABLE_CPU_FEATURES=" ".join(found[number:]))
        assert "cannot disable" not in complaint.lower()
        assert without == here, found[number:]
