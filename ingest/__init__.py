"""From scenes to a dataset: inventory → probe → plan → pack → commit.

The promise: the same inputs give the same bytes, whatever the number of workers and the order in which
tasks finish. Planning, grids, pixels and filters are pure; GDAL enters in `raster`, Ray in `run`.
"""

import os

# GDAL reads most of these once, so they must stand before rasterio is imported anywhere in this package.
# One thread each: processes give the parallelism, and threaded decoding has returned wrong pixels
# (gdal #11552 #12426). No side files, no plug-ins, no code in VRTs, no network grids.
os.environ.update(
    GDAL_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    GDAL_CACHEMAX="256",
    GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
    GDAL_PAM_ENABLED="NO",
    GDAL_DRIVER_PATH="disable",
    GDAL_VRT_ENABLE_PYTHON="NO",
    # A JPEG that ends early is damaged, not a picture with grey at the bottom.
    GDAL_ERROR_ON_LIBJPEG_WARNING="TRUE",
    # Reading a damaged PNG whole gives whatever was in memory, without an error; row by row costs the same.
    GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",
    PROJ_NETWORK="OFF",
)
