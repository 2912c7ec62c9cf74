"""The dataset card: one self-contained HTML page that says what a version is, where it lies and how to use it.

A function of the version and its address alone: no clock, no listing. Costs one pass over the tables
(`shards.card.survey`) and the read of 54 samples.
"""

import io
import math
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import PurePosixPath
from string import Template

from shards import storage
from shards.card.charts import Axis, histogram
from shards.card.maps import close_ups, extent_map, is_scattered, world_map
from shards.card.provenance import record_html, table_rows
from shards.card.survey import Ranking, Survey, band_step, take_survey
from shards.card.usage import commands
from shards.dataset import CorruptSampleError, Dataset
from shards.errors import UserError
from shards.preview import contact_sheet
from shards.schema import Version

_SHEET_TILES = 54
_MAX_SHEET_BYTES = 750_000
"""One third more as base64: a megabyte."""
_MAX_BANDS = 32  # with a histogram of 3 kB each

_CHARTS: Mapping[str, tuple[str, Axis]] = {
    "gsd_m": (
        "Ground sampling distance, metres",
        Axis(name=lambda place: _rounded(2 ** (place / 4)), merges=(1, 2, 4, 8)),
    ),
    "time": (
        "Acquired, by month",
        Axis(
            name=lambda place: f"{1970 + place // 12}-{place % 12 + 1:02d}", merges=(1, 3, 12, 60, 120), discrete=True
        ),
    ),
    "num_tiles": ("Tiles per scene, up to", Axis(name=lambda place: f"{2.0**place:,.0f}", least=0, discrete=True)),
    "valid_share": ("Share of pixels with data", Axis(name=lambda place: f"{place / 25:g}", first=0, last=24)),
    "contrast": ("Contrast, share of the value range", Axis(name=lambda place: f"{place / 50:g}", first=0, last=24)),
    "entropy": ("Entropy, bits", Axis(name=lambda place: f"{place / 4:g}", first=0, last=31)),
    "cloud_share": ("Share of cloudy pixels", Axis(name=lambda place: f"{place / 25:g}", first=0, last=24)),
}
_RANKINGS = {"split": "Split", "label": "Label", "sensor": "Sensor"}


def write_card(url: str, version: Version, out: str | None = None) -> str:
    """Write the card of a version and return its URL; an existing one is replaced.

    Args:
        url: the dataset.
        version: of it.
        out: where to write; `card.html` in the dataset by default.

    Raises:
        UserError: a table or sample is missing or damaged, or the card cannot be written.
    """
    survey = take_survey(url, version)
    page = card_html(url, version, survey, _sheet(url, version))
    target = out or storage.join(url, "card.html")
    with storage.user_errors(target):
        # Names that were no UTF-8 arrive as lone surrogates, which no page can hold.
        storage.write_bytes(target, page.encode("utf-8", "backslashreplace"))
    return target


def renew_card(url: str, version: Version) -> None:
    """Write the dataset's own card if it is missing or shows another version; costs a read of it if it does not.

    Raises:
        UserError: as `write_card` does.
    """
    if not shows(url, version):
        write_card(url, version)


def shows(url: str, version: Version) -> bool:
    """Say whether the dataset's own card is there and shows this version.

    Raises:
        UserError: the card cannot be read.
    """
    target = storage.join(url, "card.html")
    with storage.user_errors(target):
        return storage.exists(target) and _stamp(version).encode() in storage.read_bytes(target)


def _stamp(version: Version) -> str:
    """Return the head's line by which a card is known to be a version's."""
    return f'<meta name="dataset-version" content="{version.version} {escape(version.digest)}">'


def _sheet(url: str, version: Version) -> bytes:
    """Return the contact sheet as JPEG of bounded size."""
    try:
        with storage.user_errors(url):
            picture = contact_sheet(Dataset(url, version), _SHEET_TILES)
    except CorruptSampleError as error:
        raise UserError(f"{error}: see `python -m shards verify {url}`") from error
    for quality in (85, 70, 50, 30, 10):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality)
        if out.tell() <= _MAX_SHEET_BYTES:
            break
    return out.getvalue()


def card_html(url: str, version: Version, survey: Survey, sheet: bytes) -> str:
    """Return the page; it refers to nothing outside itself, and all that users wrote is escaped.

    Args:
        url: the dataset, as its commands name it.
        version: of it.
        survey: its figures.
        sheet: a JPEG of some tiles.
    """
    name = _name(url)
    return Template(files("shards.card").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        name=escape(name),
        stamp=_stamp(version),
        lead=_lead(version, survey),
        facts=_facts(version, survey),
        bands=_bands(version),
        band_charts="".join(_band_chart(place, survey, version) for place in range(len(version.bands))[:_MAX_BANDS]),
        sheet=b64encode(sheet).decode(),
        places=_places(survey),
        charts="".join(_chart(key, survey, version) for key in _CHARTS),
        rankings="".join(_ranking(title, survey.rankings[key], version) for key, title in _RANKINGS.items()),
        rejects=_rejects(survey),
        record=record_html(version.record),
        tables=table_rows(version),
        digest=escape(version.digest),
        commands="".join(
            f"<h3>{title}</h3><pre><code>{escape(text)}</code></pre>"
            for title, text in commands(url, version, survey).items()
        ),
    )


def _name(url: str) -> str:
    path = str(storage.local_path(url).resolve()) if storage.is_local(url) else url
    return PurePosixPath(path.rstrip("/")).name or url


def _lead(version: Version, survey: Survey) -> str:
    used = version.num_scenes - version.num_rejected
    parent = version.record.get("parent")
    derived = f", made from version {escape(str(parent))}" if parent is not None else ""
    source = f"{used:,} of {version.num_scenes:,} scenes" if version.num_scenes else "shards that others wrote"
    return (
        f"Version {version.version}{derived}: {version.num_samples:,} tiles of {version.tile_px} × {version.tile_px} "
        f"pixels from {source}"
    )


def _facts(version: Version, survey: Survey) -> str:
    formats = ", ".join(value for value, _ in survey.rankings["member"].top)
    facts = {
        "Tiles": f"{version.num_samples:,}",
        "Tile": f"{version.tile_px} × {version.tile_px} × {len(version.bands)}",
        "Type, encoding": f"{version.dtype}, {formats}",
        "Shards": f"{version.num_shards:,}",
        "Size": _size(version.num_bytes),
        "Scenes used": f"{version.num_scenes - version.num_rejected:,}",
        "Scenes left out": f"{version.num_rejected:,}",
        "Taken": _span(survey.first_time, survey.last_time),
        "Sensors": _few(survey.rankings["sensor"]),
        "Labels": f"{survey.rankings['label'].num_values:,}" if survey.rankings["label"].num_rows else "",
    }
    return "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items() if value)


def _size(num_bytes: int) -> str:
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def _span(first: datetime | None, last: datetime | None) -> str:
    if first is None or last is None:
        return ""
    days = sorted({f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}"})
    return " … ".join(days)


def _few(ranking: Ranking, num_shown: int = 3) -> str:
    shown = [value for value, _ in ranking.top[:num_shown]]
    more = ranking.num_values - len(shown)
    return ", ".join([*shown, f"{more:,} more"] if more else shown)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _bands(version: Version) -> str:
    return "".join(
        f'<tr><td>{place}</td><td>{escape(band.name)}</td><td class="num">{band.mean:,.2f}</td>'
        f'<td class="num">{band.std:,.2f}</td></tr>'
        for place, band in enumerate(version.bands, 1)
    )


def _band_chart(place: int, survey: Survey, version: Version) -> str:
    """Return the histogram of the tiles' means of a band."""
    bins, band = survey.band_means[place], version.bands[place]
    if not bins:
        return ""
    step = band_step(band)
    digits = max(0, -math.floor(math.log10(step)))
    axis = Axis(name=lambda edge: f"{edge * step:,.{digits}f}", least=0 if version.dtype.startswith("u") else None)
    return _figure(f"{band.name}, mean of a tile", bins, axis, version.num_samples, "tiles")


def _places(survey: Survey) -> str:
    places = survey.places
    scenes = f" ({_count(survey.num_unplaced_scenes, 'scene')} without a CRS)" if survey.num_unplaced_scenes else ""
    unplaced = f"{_count(places.num_unplaced, 'tile')} without a place{scenes}." if places.num_unplaced else ""
    if not places.num_placed:
        return f"<p>{unplaced}</p>"
    if is_scattered(places):
        closer = "".join(
            f"<figure><figcaption>{caption}</figcaption>{picture}</figure>" for caption, picture in close_ups(places)
        )
        closer = f'<h3>Where most of them are</h3><div class="charts">{closer}</div>'
    else:
        closer = f'<figure class="wide">{extent_map(places)}</figure>'
    text = f"{_count(places.num_placed, 'tile')} by their centres, larger and stronger for more. {unplaced}"
    return f"<p>{text}</p><figure>{world_map(places)}</figure>{closer}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _chart(key: str, survey: Survey, version: Version) -> str:
    title, axis = _CHARTS[key]
    bins = survey.histograms[key]
    if not bins:
        return ""
    whole, noun = (sum(bins.values()), "scenes") if key == "num_tiles" else (version.num_samples, "tiles")
    return _figure(title, bins, axis, whole, noun)


def _figure(title: str, bins: Mapping[int, int], axis: Axis, whole: int, noun: str) -> str:
    """Return a histogram with its title, and how many it counts and how many have no value."""
    missing = whole - sum(bins.values())
    note = f"{sum(bins.values()):,} {noun}" + (f", {missing:,} without" if missing else "")
    return (
        f"<figure><figcaption>{escape(title)} <small>{note}</small></figcaption>{histogram(title, bins, axis)}</figure>"
    )


def _ranking(title: str, ranking: Ranking, version: Version) -> str:
    if not ranking.num_rows:
        return ""
    most = ranking.top[0][1]
    rows = "".join(
        _ranking_row(value, count, count / most, count / version.num_samples) for value, count in ranking.top
    )
    more, without = ranking.num_values - len(ranking.top), version.num_samples - ranking.num_rows
    notes = [f"{more:,} more" if more else "", f"{without:,} tiles without" if without else ""]
    told = ", ".join(note for note in notes if note)
    return (
        f"<section><h3>{title} <small>{_count(ranking.num_values, 'value')}</small></h3>"
        f'<div class="scroll"><table class="ranking"><tbody>{rows}</tbody></table></div>'
        f"{f'<p>{told}</p>' if told else ''}</section>"
    )


def _ranking_row(value: str, count: int, length: float, share: float) -> str:
    return (
        f'<tr><td>{escape(value)}</td><td class="num">{count:,}</td><td class="num">{100 * share:.1f} %</td>'
        f'<td class="share"><i style="width:{100 * length:.1f}%"></i></td></tr>'
    )


def _rejects(survey: Survey) -> str:
    if not survey.rejects:
        return "<p>Nothing: every scene and every tile is in the dataset.</p>"
    rows = "".join(
        f'<tr><td><code>{escape(group.reason)}</code></td><td class="num">{group.count:,}</td>'
        f"<td>{('scene' if group.whole else 'tile') + 's' * (group.count != 1)}</td>"
        f"<td><code>{escape(group.path)}</code><br><small>{escape(group.detail)}</small></td></tr>"
        for group in survey.rejects
    )
    return (
        '<div class="scroll"><table class="rejects"><thead><tr><th>Reason</th><th class="num">Count</th><th>of</th>'
        f"<th>The first of them</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
