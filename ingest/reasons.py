"""Why a scene or tile was left out: the codes, and what a person can do about each."""

REMEDIES = {
    # scenes, by their names
    "pattern_mismatch": "its path does not match --file_pattern",
    "superseded": "an older version of an acquisition that is there in a newer one",
    "listed_twice": "the list names it more than once; the first row counts",
    "not_allowed": "the list names a place outside of its own folder: name the place's prefix in --allow",
    "bad_archive": "a zip file that cannot be listed or unpacked: fetch it again",
    # scenes
    "not_a_raster": "not a GeoTIFF, JP2, PNG or JPEG by its first bytes",
    "side_file": "belongs to another raster (overviews or mask)",
    "missing": "listed, but not there to open: a dangling link, a name that is not UTF-8, or removed since",
    "unreadable": "cannot be read: no permission, or its disk or mount fails",
    "empty_file": "has no bytes",
    "corrupt": "GDAL cannot open or decode it: fetch it again",
    "bands_missing": "cannot supply the dataset's bands: set --source_bands, or --replicate_grey true for grey scenes",
    "wrong_dtype": "its type is not the dataset's: choose another --normalisation or --dtype",
    "too_small": "smaller than a tile: lower --tile_px, or set --edge pad",
    "too_large": "more uncompressed bytes than --max_scene_gb allows",
    "misaligned": "its files do not lie on one grid (sizes must be whole multiples of each other)",
    "no_place": "has no CRS, which --target_gsd_m and --warp_crs need, or no way from it to --warp_crs",
    "decoder_crashed": "decoding it crashed the decoder process: fetch it again, or convert it",
    "decoder_slow": "decoding a piece of it takes more than the allowed CPU time",
    "decoder_memory": "decoding a piece of it takes more than the allowed memory",
    "decoder_failed": "an unexpected fault of ours while decoding it: please report it, with the detail",
    "no_data": "no valid pixel was found in it",
    "no_tiles_left": "all its tiles were left out, see the tiles' reasons",
    # tiles
    "low_valid_share": "too few pixels with data: lower --min_valid_share",
    "low_contrast": "nearly one colour: lower --min_contrast",
    "low_entropy": "few different values: lower --min_entropy",
    "black": "too many pixels at the low end: raise --max_black_share",
    "saturated": "too many pixels at the top of the range: raise --max_saturated_share",
    "cloudy": "too many cloudy pixels: raise --max_cloud_share",
    "not_selected": "left out by `shards select`",
    "near_duplicate": "left out by `shards dedup`: it looks like another tile",
    "duplicate": "its pixels are those of another tile: keep both with --drop_duplicates false",
}

INVENTORY_CODES = ("pattern_mismatch", "superseded", "listed_twice", "not_allowed", "bad_archive")
"""Reasons that are known before a scene is opened; a list gives `bands_missing` and others, too."""

PASSING_CODES = (
    "missing",
    "unreadable",
    "decoder_crashed",
    "decoder_slow",
    "decoder_memory",
    "decoder_failed",
)
"""Reasons that may be others tomorrow though the file's bytes are the same: such scenes are looked at again."""


class SceneRejectedError(Exception):
    """The content of a scene rules it out; carries one of the codes above and a detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        assert code in REMEDIES, code
        self.code = code
        self.detail = detail
