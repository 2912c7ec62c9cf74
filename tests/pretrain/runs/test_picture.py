import io

import pytest
from PIL import Image

from pretrain.pages.figures import Column
from pretrain.runs.picture import PANEL_PX, draw_curves, points

FALLING = Column(steps=[1.0, 2.0, 3.0], values=[4.0, 2.0, 0.0])


def test_a_panel_for_each_figure_that_is_there():
    columns = {"loss": FALLING, "once": Column(steps=[1.0], values=[1.0]), "flat": Column(steps=[1, 2], values=[3, 3])}
    image = Image.open(io.BytesIO(draw_curves(columns, ["loss", "once", "missing", "flat"])))
    assert image.size == (2 * PANEL_PX[0], PANEL_PX[1])
    assert len(image.convert("RGB").getcolors(10_000)) > 3


@pytest.mark.parametrize("columns", [{}, {"loss": Column(steps=[5.0, 5.0], values=[1.0, 2.0])}])
def test_no_picture_without_two_points(columns):
    assert draw_curves(columns, ["loss"]) == b""


def test_the_same_figures_give_the_same_picture():
    assert draw_curves({"loss": FALLING}, ["loss"]) == draw_curves({"loss": FALLING}, ["loss"])


def test_a_curve_fills_its_box_from_the_first_step_to_the_last():
    assert points(FALLING, (101, 51)) == [(0.0, 0.0), (50.0, 25.0), (100.0, 50.0)]


def test_many_steps_become_one_point_a_pixel():
    column = Column(steps=[float(step) for step in range(1000)], values=[float(step % 2) for step in range(1000)])
    line = points(column, (100, 51))
    assert [x for x, _ in line] == [float(x) for x in range(100)]
    assert all(20 <= y <= 30 for _, y in line[1:-1])
