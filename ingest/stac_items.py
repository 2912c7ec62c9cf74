"""One STAC item, one scene: which assets supply the bands, when and by what it was taken, whose version it is.

Pure functions of items as JSON values, of STAC 1.0 and 1.1 (eo:bands and raster:bands, or bands).
Cost: about 20 µs per item.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from ingest.config import Recipe
from ingest.grouping import needed_bands
from ingest.lists import parse_time
from ingest.places import Places, resolve
from ingest.sources import text

Json = Mapping[str, Any]
_ROLES = ("data", "visual")
_MAX_BYTES = 2**50


def scene_row(item: Json, document: str, places: Places, recipe: Recipe) -> dict[str, Any]:
    """Return the row (of FOUND) of an item; what rules it out stands in `reason`.

    Its path is "collection/id". Its files are the assets that source_bands and cloud_band name, by key, else by common
    name or name of their one band; without source_bands those for the recipe's bands; else the one asset that holds
    all bands, as a single file with the band "".

    Args:
        item: the item.
        document: absolute URL of the document that it stands in; hrefs are relative to that.
        places: what it may name.
        recipe: names the bands.
    """
    try:
        return _scene_row(item, document, places, recipe)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        name = item.get("id") if isinstance(item, Mapping) else None
        path = name if isinstance(name, str) and name else document
        return {"path": text(path), "reason": "corrupt", "detail": text(f"no STAC item: {error!r}")}


def _scene_row(item: Json, document: str, places: Places, recipe: Recipe) -> dict[str, Any]:
    properties: Json = item.get("properties") or {}
    taken = properties.get("datetime") or properties.get("start_datetime")
    time = parse_time(taken) if taken else None
    platform = properties.get("platform") or properties.get("constellation")
    row = {
        "path": _name(item),
        "time": time,
        "sensor": text(platform) if platform else None,
        "label": _label(properties.get("label")),
        "acquisition": _acquisition(properties),
        "version": _version(item["id"], properties),
    }
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, Mapping)}
    chosen = choose_assets(assets, recipe)
    if isinstance(chosen, str):
        return {**row, "reason": "bands_missing", "detail": text(chosen)}
    files = [_file(band, assets[key], document, places) for band, key in sorted(chosen.items())]
    refused = next((file["path"] for file in files if file.pop("is_refused")), None)
    if refused is not None:
        return {**row, "reason": "not_allowed", "detail": refused}
    # A file of all bands has no name, and a recipe without a cloud band none for it.
    measured = [key for band, key in chosen.items() if not band or band != recipe.cloud_band]
    offsets = {item_offset(assets[key], properties) for key in measured}
    if len(offsets) > 1:
        return {**row, "reason": "bands_missing", "detail": f"its bands have different offsets: {_sorted(offsets)}"}
    sizes = [file["size"] for file in files]
    return {**row, "files": files, "offset": offsets.pop(), "size": None if None in sizes else sum(sizes)}


def _label(value: Any) -> str | None:
    """Return a text as it is, and a number or truth value as a list's column of that type gives it."""
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    written: str = pa.scalar(value).cast(pa.string()).as_py()
    return written


def _name(item: Json) -> str:
    if not isinstance(item["id"], str) or not item["id"]:
        raise ValueError(f"its id is {item['id']!r}")
    return text("/".join(part for part in (item.get("collection"), item["id"]) if part))


def _sorted(offsets: set[float | None]) -> str:
    return ", ".join(sorted(map(str, offsets)))


def choose_assets(assets: Mapping[str, Json], recipe: Recipe) -> dict[str, str] | str:
    """Return the key of the asset for each band (all bands: ""), or what is missing, as text."""
    names = needed_bands(recipe)
    if not names and not recipe.source_bands:
        names = recipe.bands
    chosen = {name: key for name in names for key in [_named(assets, name)] if key is not None}
    if names and len(chosen) == len(names):
        return chosen
    whole = _holding_all(assets, names)
    if whole is not None:
        return {"": whole}
    missing = ", ".join(name for name in names if name not in chosen) or "all bands"
    return f"no asset for {missing}; there are {', '.join(sorted(assets)[:20])}"


def _named(assets: Mapping[str, Json], name: str) -> str | None:
    """Return the key of the asset that is, or whose one band is, called `name`; of several the first by key."""
    if name in assets:
        return name
    for field in ("common_name", "eo:common_name", "name"):
        for key in sorted(assets):
            bands = _bands(assets[key])
            if len(bands) == 1 and bands[0].get(field) == name:
                return key
    return None


def _bands(asset: Json) -> list[Json]:
    return list(asset.get("eo:bands") or asset.get("bands") or [])


def _holding_all(assets: Mapping[str, Json], names: tuple[str, ...]) -> str | None:
    """Return the asset with all bands: by their names, else the only one of its role."""
    for role in _ROLES:
        keys = [key for key in sorted(assets) if role in (assets[key].get("roles") or [])]
        holding = [key for key in keys if names and all(_has_band(assets[key], name) for name in names)]
        if holding:
            return holding[0]
        if len(keys) == 1:
            return keys[0]
    return None


def _has_band(asset: Json, name: str) -> bool:
    return any(
        name in (band.get("common_name"), band.get("eo:common_name"), band.get("name")) for band in _bands(asset)
    )


def _file(band: str, asset: Json, document: str, places: Places) -> dict[str, Any]:
    hrefs = [text(href) for href in _hrefs(asset)]
    found = next((place for href in hrefs for place in [places.find(resolve(document, href))] if place), None)
    size = asset.get("file:size")
    return {
        "path": hrefs[0] if found is None else found,
        "size": size if type(size) is int and 0 <= size < _MAX_BYTES else None,
        "etag": None,  # the store's, which no item knows; a file:checksum is another thing
        "band": band,
        "is_refused": found is None,
    }


def _hrefs(asset: Json) -> Iterator[str]:
    """Yield the asset's own href, then its alternates, by name."""
    yield asset["href"]
    alternates = asset.get("alternate") or {}
    yield from (alternates[name]["href"] for name in sorted(alternates))


def item_offset(asset: Json, properties: Json) -> float | None:
    """Return what is to be added to an asset's values, in their own units; null: the item does not say.

    STAC: physical value = value × scale + offset, so offset / scale. Earth-search says for Sentinel-2 that it has
    applied the offset, and goes on listing it (earth-search issue 7).
    """
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0.0
    bands = asset.get("raster:bands") or asset.get("bands") or []
    told = {_band_offset({**asset, **band}) for band in bands} or {_band_offset(asset)}
    if len(told) > 1:
        raise ValueError(f"the bands of an asset have different offsets: {_sorted(told)}")
    return told.pop()


def _band_offset(band: Json) -> float | None:
    offset = band.get("offset", band.get("raster:offset"))
    scale = band.get("scale", band.get("raster:scale"))
    if offset is None:
        return None
    value = float(offset) / float(1 if scale is None else scale)
    if not math.isfinite(value):
        raise ValueError(f"an offset of {offset} with scale {scale}")
    return round(value, 6)  # -0.1 / 0.0001 is not quite -1000 in binary


def _acquisition(properties: Json) -> str | None:
    """Return what the versions of one acquisition have in common: platform, grid cell and second; null: unknown."""
    platform, taken, cell = properties.get("platform"), properties.get("datetime"), _grid_cell(properties)
    if not (platform and taken and cell):
        return None
    return text(f"{str(platform).lower()} {cell} {parse_time(taken):%Y%m%dT%H%M%S}")


def _grid_cell(properties: Json) -> str | None:
    code = properties.get("grid:code") or properties.get("s2:mgrs_tile")
    if code:
        return str(code).removeprefix("MGRS-")
    mgrs = [properties.get(f"mgrs:{name}") for name in ("utm_zone", "latitude_band", "grid_square")]
    if None not in mgrs:
        return "{:02d}{}{}".format(int(str(mgrs[0])), *mgrs[1:])
    wrs = [properties.get(f"landsat:wrs_{name}") for name in ("path", "row")]
    return None if None in wrs else "WRS2-{:03d}{:03d}".format(*(int(str(part)) for part in wrs))


def _version(name: str, properties: Json) -> str:
    """Return a text whose natural order is that of versions: processing baseline, then time of update, then id."""
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version") or "0"
    changed = properties.get("updated") or properties.get("created")
    when = f"{parse_time(changed):%Y%m%dT%H%M%S}" if changed else "0"
    return text(f"{baseline} {when} {name}")
