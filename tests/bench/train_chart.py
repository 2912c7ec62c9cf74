"""Samples/s and memory over batch sizes as SVG files: the chart of pretrain's pages in the colours of eval's report."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from eval.report.charts import charts_style
from pretrain.pages.lines import Curve, line_chart, thin
from tests.bench.train_memory import Cost

_WIDTH, _CHART_PX, _LINE_PX = 520, 220, 20


def write_charts(folder: Path, costs: Mapping[str, Sequence[tuple[int, Cost | None]]]) -> None:
    """Write rate.svg and memory.svg.

    Args:
        folder: made if need be.
        costs: by the curve's name, up to four of them: batch and what a step of it takes; None did not fit.
    """
    measured = {name: [(batch, cost) for batch, cost in found if cost] for name, found in costs.items()}
    rates = [
        thin(name, [batch for batch, _ in found], [batch / cost.seconds for batch, cost in found])
        for name, found in measured.items()
    ]
    memory = [
        thin(name, [batch for batch, _ in found], [cost.peak_bytes / 2**30 for _, cost in found])
        for name, found in measured.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rate.svg").write_text(_chart("Samples/s by batch", rates), encoding="utf-8")
    (folder / "memory.svg").write_text(_chart("Peak memory of a step by batch, GiB", memory), encoding="utf-8")


def _chart(title: str, curves: Sequence[Curve]) -> str:
    batches = [batch for curve in curves for batch in curve.steps.tolist()]
    chart = line_chart(
        title, curves, (min(batches), max(batches)), told=lambda _, value: f"{value:,.0f}", across="batch"
    )
    keys = "".join(
        f'<circle class="dot{number}" cx="60" cy="{y - 4}" r="3.5"/>'
        f'<text class="name" x="70" y="{y}">{escape(curve.name)}</text>'
        for number, curve in enumerate(curves)
        for y in [_CHART_PX + _LINE_PX * (number + 2) - 8]
    )
    height = _CHART_PX + _LINE_PX * (len(curves) + 1)
    # Without a size of its own the inner picture would fill the outer one.
    inner = chart.replace("<svg ", f'<svg y="{_LINE_PX}" height="{_CHART_PX}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title><style>{charts_style()} .reach {{ fill: transparent; }}</style>"
        f'<rect class="sheet" width="100%" height="100%"/><text class="name" x="56" y="{_LINE_PX - 4}">'
        f"{escape(title)}</text>{inner}{keys}</svg>\n"
    )
