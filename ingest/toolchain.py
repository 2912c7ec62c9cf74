"""The versions of everything that can change a byte of the output."""

import platform

import numpy as np
import PIL
import pyarrow as pa
import rasterio
from PIL import features

REVISION = "1"
"""Raise it with every change of ingest's own code that changes a byte: old and new groups must not meet in one plan."""


def toolchain() -> dict[str, str]:
    """Return the versions of the tools that decode, compute and encode."""
    return {
        "ingest": REVISION,
        "gdal": rasterio.__gdal_version__,
        "proj": rasterio.__proj_version__,
        "rasterio": rasterio.__version__,
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "pillow": PIL.__version__,
        "libjpeg": features.version("jpg") or "none",
        "libwebp": features.version("webp") or "none",
        "zlib": features.version("zlib") or "none",
        "machine": platform.machine(),
    }
