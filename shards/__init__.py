"""The ground floor: the dataset format, its order and its transport.

A dataset is plain WebDataset tars plus Parquet tables; a version file makes it visible. This package
imports no other stage, no torch and no raster library: it yields bytes and numpy arrays.
"""
