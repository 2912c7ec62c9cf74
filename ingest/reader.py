"""Windows of one open file that may be damaged: what GDAL has left after a failed read is never handed out.

After a failed read GDAL's JPEG and PNG readers answer the next ones with leftovers, and say nothing. So a file is
opened again then, and where rows are decoded one after the other, nothing is read again beyond the place that failed.
Costs nothing until a read fails; then one more opening.

A PNG's checksums lie behind the pixels that they are for, so all of them are compared before the first row is taken:
1 ms per MB.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import raster
from ingest.reasons import SceneRejectedError

_SEQUENTIAL = ("JPEG", "PNG")  # to decode a row they decode all above it
_PIECE = 2**20
Fetch = Callable[[Sequence[tuple[int, int]]], None]


class Reader:
    """An open file; make it with `open_reader`."""

    def __init__(self, path: str, driver: str, opener: raster.Opener | None, fetch: Fetch | None) -> None:
        self._path, self.driver, self._opener, self._fetch = path, driver, opener, fetch
        self._opened = contextlib.ExitStack()
        self._failed: tuple[int, SceneRejectedError] | None = None  # a read down to this row, and why
        self._checked = driver != "PNG"
        self._gaps: dict[tuple[int, ...], bool] = {}
        self.source: Any = self._open()

    def _open(self) -> Any:
        return self._opened.enter_context(raster.open_raster(self._path, self.driver, self._opener))

    def read(self, indexes: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return (values [C, H, W], valid [H, W] or None for all) of a window, see `raster.read_window`.

        Raises:
            SceneRejectedError: the bytes cannot be decoded.
        """
        bottom = window.row_off + window.height
        if self._failed and bottom >= self._failed[0]:
            raise SceneRejectedError(self._failed[1].code, self._failed[1].detail)
        if not self._checked:
            with (self._opener or open)(self._path, "rb") as file:
                require_sound_png(file)
            self._checked = True
        try:
            if self._fetch and self.driver == "GTiff":
                self._fetch(raster.block_ranges(self.source, indexes, window))
            bands = tuple(indexes)
            if bands not in self._gaps:
                self._gaps[bands] = raster.has_gaps(self.source, bands)
            return raster.read_window(self.source, indexes, window, self._gaps[bands])
        except SceneRejectedError as rejection:
            if self.driver in _SEQUENTIAL:
                self._failed = bottom, rejection
            self.close()
            self.source = self._open()
            raise

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


def require_sound_png(file: IO[bytes]) -> None:
    """Compare the checksums of all chunks that pixels come from, to the image's end.

    Raises:
        SceneRejectedError: one differs, or the file ends before.
    """
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        left, kind, crc = int.from_bytes(head[:4], "big"), head[4:], zlib.crc32(head[4:])
        while left and (piece := file.read(min(left, _PIECE))):
            left, crc = left - len(piece), zlib.crc32(piece, crc)
        stored = file.read(4)
        if left or len(stored) < 4:
            raise SceneRejectedError("corrupt", "the PNG file ends before its image")
        # What begins with a small letter (texts, times) does no harm; transparency does.
        if (kind[:1].isupper() or kind == b"tRNS") and stored != crc.to_bytes(4, "big"):
            raise SceneRejectedError(
                "corrupt", f"the checksum of a PNG chunk {kind.decode('ascii', 'replace')} differs"
            )


@contextlib.contextmanager
def open_reader(
    path: str, driver: str, opener: raster.Opener | None = None, fetch: Fetch | None = None
) -> Iterator[Reader]:
    """Open a file.

    Args:
        path: local, or the name that the opener knows it by.
        driver: GDAL's, see `raster.driver_of`.
        opener: (path, mode) → binary file.
        fetch: brings (offset, size) ranges near before they are read one by one.

    Raises:
        SceneRejectedError: GDAL cannot open it.
    """
    reader = Reader(path, driver, opener, fetch)
    try:
        yield reader
    finally:
        reader.close()
