"""The versions of everything that can change a byte of the output."""

import functools
import platform
from collections.abc import Mapping

REVISION = "6"
"""Raise it with every change of ingest's own code that changes a byte: old and new groups must not meet in one plan."""


@functools.cache
def toolchain() -> dict[str, str]:
    """Return the versions of the tools that decode, compute and encode."""
    import numpy as np
    import PIL
    import pyarrow as pa
    import rasterio
    from PIL import features

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


def require_toolchain(tools: Mapping[str, str]) -> None:
    """Compare this process's tools with those of the run.

    Raises:
        RuntimeError: a machine of the cluster has other versions; its bytes would differ.
    """
    mine = toolchain()
    other = [f"{name} {mine[name]} instead of {tools[name]}" for name in tools if mine[name] != tools[name]]
    if other:
        raise RuntimeError(f"{platform.node()} has {', '.join(other)}: install the same versions on all machines")
