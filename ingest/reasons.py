"""Why a scene or tile was left out: the codes, and what a person can do about each."""

REMEDIES = {
    # scenes
    "not_a_raster": "not a GeoTIFF, JP2, PNG or JPEG by its first bytes",
    "side_file": "belongs to another raster (overviews or mask)",
    "missing": "listed, but not there to open: a dangling link, a name that is not UTF-8, or removed since",
    "unreadable": "no permission to read it",
    "empty_file": "has no bytes",
    "corrupt": "GDAL cannot open or decode it: fetch it again",
    "bands_missing": "cannot supply the dataset's bands: set --source_bands, or --replicate_grey true for grey scenes",
    "wrong_dtype": "its type is not the dataset's: choose another --normalisation or --dtype",
    "too_small": "smaller than a tile: lower --tile_px, or set --edge pad",
    "too_large": "more uncompressed bytes than --max_scene_gb allows",
    "no_data": "no valid pixel was found in it",
    "no_tiles_left": "all its tiles were left out, see the tiles' reasons",
    # tiles
    "low_valid_share": "too few pixels with data: lower --min_valid_share",
    "low_contrast": "nearly one colour: lower --min_contrast",
}


class SceneRejectedError(Exception):
    """The content of a scene rules it out; carries one of the codes above and a detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        assert code in REMEDIES, code
        self.code = code
        self.detail = detail
