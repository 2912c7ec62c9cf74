"""Scenes from STAC: an ItemCollection, an item, a static catalogue or collection, stac-geoparquet.

pystac says what a document is and brings old versions up to date; documents come through `shards.storage`, and only
from places that the catalogue may name. Cost: a JSON collection lies in memory whole (10 kB per item: for more than
some 100,000 items use stac-geoparquet, which is read in batches); of a catalogue one request per item, several at once.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
from pystac.serialization import identify_stac_object, migrate_to_latest

from ingest.config import Recipe
from ingest.lists import on_disk
from ingest.places import Places, resolve
from ingest.reasons import SceneRejectedError
from ingest.sources import FOUND, batched, rejecting, text
from ingest.stac_items import scene_row
from shards import storage
from shards.errors import UserError

_DOCUMENTS_AT_ONCE = 16
_GEOPARQUET_ROWS = 1000  # an item with all its assets takes some 20 kB as Python objects
_TOP_LEVEL = ("id", "collection", "assets")
# What JSON and pystac raise for documents that are none.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError, pystac.STACTypeError)
_TYPES = ("Catalog", "Collection", "Feature")
_PROPERTIES = (
    "datetime",
    "start_datetime",
    "platform",
    "constellation",
    "label",
    "created",
    "updated",
    "grid:code",
    "s2:mgrs_tile",
    "mgrs:utm_zone",
    "mgrs:latitude_band",
    "mgrs:grid_square",
    "landsat:wrs_path",
    "landsat:wrs_row",
    "s2:processing_baseline",
    "processing:version",
    "earthsearch:boa_offset_applied",
)


class Document(NamedTuple):
    """What a link led to: a STAC document, or the reason why there is none."""

    url: str
    """Absolute; of what was not read, as the link has it."""
    content: Mapping[str, Any]
    reason: str | None = None
    detail: str | None = None


class StorageIO(pystac.StacIO):
    """Lets pystac read through `shards.storage`."""

    def read_text(self, source: Any, *_: Any, **__: Any) -> str:
        """Read a document."""
        return storage.read_bytes(str(source)).decode()

    def write_text(self, dest: Any, txt: str, *_: Any, **__: Any) -> None:
        """Refuse: catalogues are only read."""
        raise AssertionError(f"nothing writes a catalogue: {dest}")


def read_stac(scenes: str, places: Places, recipe: Recipe) -> Iterator[pa.Table]:
    """Yield the items of a STAC document, and of what it links to, as rows (FOUND).

    A linked document that is not allowed, missing or broken is a row with its reason.

    Raises:
        UserError: the document cannot be read, is not STAC, or is one page of several.
        PermissionError: a store refuses what is linked.
    """
    row = 0
    for documents in batched(_items(places.url(scenes.rpartition("/")[2]), places), _GEOPARQUET_ROWS):
        rows = [_row(document, places, recipe) | {"row": row + number} for number, document in enumerate(documents, 1)]
        row += len(rows)
        yield pa.Table.from_pylist(rows, FOUND)


def _row(document: Document, places: Places, recipe: Recipe) -> dict[str, Any]:
    if document.reason is not None:
        return {"path": text(document.url), "reason": document.reason, "detail": text(document.detail or "")}
    return scene_row(document.content, document.url, places, recipe)


def read_geoparquet(scenes: str, places: Places, recipe: Recipe) -> Iterator[pa.Table]:
    """Yield the items of a stac-geoparquet file as rows (FOUND).

    Raises:
        UserError: the file cannot be read.
    """
    url = places.url(scenes.rpartition("/")[2])
    row = 0
    with on_disk(scenes) as path, pq.ParquetFile(path) as table:
        names = [name for name in (*_TOP_LEVEL, *_PROPERTIES) if name in table.schema_arrow.names]
        for batch in table.iter_batches(_GEOPARQUET_ROWS, columns=names):
            documents = [_geoparquet_item(url, values) for values in batch.to_pylist()]
            rows = [_row(document, places, recipe) | {"row": row + at} for at, document in enumerate(documents, 1)]
            row += len(rows)
            yield pa.Table.from_pylist(rows, FOUND)


def is_geoparquet(names: Iterable[str]) -> bool:
    """Say by its columns whether a Parquet file holds STAC items."""
    return {"id", "assets"} <= set(names)


def _geoparquet_item(url: str, values: Mapping[str, Any]) -> Document:
    try:
        return Document(url, _item(values))
    except _BROKEN as error:
        return _broken(url, error)


def _item(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of stac-geoparquet as an item: properties are columns, what an item has not is null."""
    assets = values["assets"]
    item = {name: values.get(name) for name in _TOP_LEVEL}
    item["assets"] = _without_nulls(json.loads(assets) if isinstance(assets, str) else assets)
    item["properties"] = {name: values[name] for name in _PROPERTIES if values.get(name) is not None}
    return item


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _items(url: str, places: Places) -> Iterator[Document]:
    """Yield all items, in the order of the documents' links, depth first."""
    with storage.user_errors(url):
        top = _read(url)
    if top.reason is not None:
        raise UserError(f"{url} is no STAC document: {top.detail}")
    seen, waiting = {url}, [top]
    with ThreadPoolExecutor(_DOCUMENTS_AT_ONCE) as pool:
        while waiting:
            document = waiting.pop()
            if document.reason is not None or document.content.get("type") in ("Feature", "FeatureCollection"):
                yield from _features(document)
                continue
            for batch in batched(_links(document, "item", places), 4 * _DOCUMENTS_AT_ONCE):
                for item in pool.map(_follow, batch):
                    yield from _features(item)
            children = [link for link in _links(document, "child", places) if link.url not in seen]
            seen.update(link.url for link in children)
            waiting += reversed(list(pool.map(_follow, children)))


def _features(document: Document) -> Iterator[Document]:
    """Yield the features of a collection, or the document itself if it is none."""
    if document.content.get("type") != "FeatureCollection":
        yield document
        return
    for link in document.content.get("links") or []:
        if link.get("rel") == "next":
            raise UserError(f"{document.url} is one page of several, the next is {link.get('href')}: save all as one")
    for feature in document.content["features"]:
        yield _document(document.url, feature)


def _links(document: Document, rel: str, places: Places) -> Iterator[Document]:
    """Yield where the links of this kind lead, not yet read; each place once."""
    links = document.content.get("links") or []
    for href in dict.fromkeys(text(link["href"]) for link in links if link.get("rel") == rel):
        place = places.find(resolve(document.url, href))
        if place is None:
            yield Document(href, {}, "not_allowed", f"linked by {document.url}")
        else:
            yield Document(places.url(place), {}, None, f"linked by {document.url}")


def _follow(link: Document) -> Document:
    if link.reason is not None:
        return link
    try:
        with rejecting(link.url):
            return _read(link.url)
    except SceneRejectedError as rejection:
        return link._replace(reason=rejection.code)


def _read(url: str) -> Document:
    """Read a document; what is none gets the reason corrupt."""
    try:
        content = StorageIO().read_json(url)
        if content.get("type") == "FeatureCollection":
            _require_links(content)
            return Document(url, {**content, "features": list(content["features"])})
    except _BROKEN as error:
        return _broken(url, error)
    return _document(url, content)


def _document(url: str, content: Any) -> Document:
    try:
        updated = _updated(content)
        _require_links(updated)
    except _BROKEN as error:
        return _broken(url, error)
    return Document(url, updated)


def _require_links(content: Mapping[str, Any]) -> None:
    """Raise ValueError where links are not as STAC has them: followed ones need a place."""
    links = content.get("links") or []
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        raise ValueError("its links are no list of objects")
    for link in links:
        if link.get("rel") in ("item", "child", "next") and not isinstance(link.get("href"), str):
            raise ValueError(f"a link to {link['rel']} has no href")


def _broken(url: str, error: Exception) -> Document:
    return Document(url, {}, "corrupt", f"no STAC: {' '.join((str(error) or repr(error)).split())}")


def _updated(content: dict[str, Any]) -> dict[str, Any]:
    """Return an item or catalogue as of STAC 1 (pystac knows how older versions differ), as it is if it is of that."""
    if str(content.get("stac_version", "")).startswith("1.") and content.get("type") in _TYPES:
        return content
    return migrate_to_latest(content, identify_stac_object(content))
