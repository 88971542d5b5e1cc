"""Several scenes read as one, file by file where a window meets them."""

from collections.abc import Sequence

import numpy as np
from affine import Affine

from geoseg.arrays import Pixels, Valid
from geoseg.errors import SceneError, quoted
from geoseg.georeference import Georeference, crs_name
from geoseg.runtime.ahead import gather
from geoseg.scene.raster import Raster, intersection, slices
from geoseg.windows import Window
from geoseg.words import count

ALIGNMENT_PX = 0.01  # how far scenes may lie off the mosaic's pixel grid, px

UNUSABLE = "scenes cannot be used"


class Mosaic(Raster):
    """Several scenes, at least one, as one raster.

    The grid is the union of theirs. Where scenes overlap, the last valid one wins; pixels that none covers are invalid
    and hold nodata, or 0. Only the files that a window meets are read. A `SceneError` lists the scenes with another
    CRS, dtype or number of bands than the first, or off its pixel grid.
    """

    def __init__(self, scenes: Sequence[Raster]) -> None:
        first, self.scenes = scenes[0], tuple(scenes)
        self._read_from(*scenes)
        places = gather(lambda scene: _place(scene, first), scenes, UNUSABLE)
        top, left = min(w.row for w in places), min(w.col for w in places)
        height, width = max(w.row_stop for w in places) - top, max(w.col_stop for w in places) - left
        self.grid = first.grid.crop(Window(top, left, height, width))
        self._places = [Window(w.row - top, w.col - left, w.height, w.width) for w in places]
        self.covered_share = min(sum(w.height * w.width for w in places) / (height * width), 1.0)
        self._edges = np.array([(w.row, w.row_stop, w.col, w.col_stop) for w in self._places]).T  # (4, scenes)

    @property
    def is_stack(self) -> bool:
        """Whether the scenes have one band each and lie in one place: bands of one scene, as separate files."""
        return len(self.scenes) > 1 and self.file_bands == 1 and len(set(self._places)) == 1

    @property
    def row_of_blocks_bytes(self) -> int:
        """See `Raster`."""
        tops, bottoms = self._edges[:2]
        sizes = np.array([scene.row_of_blocks_bytes for scene in self.scenes])
        # The fullest row is the first row of some scene.
        return max(int(sizes[(tops <= row) & (row < bottoms)].sum()) for row in np.unique(tops))

    def _met(self, window: Window) -> list[int]:
        """Indices of the scenes that a window meets, in their order."""
        top, bottom, left, right = self._edges
        met = (top < window.row_stop) & (bottom > window.row) & (left < window.col_stop) & (right > window.col)
        return np.flatnonzero(met).tolist()

    def _is_covered(self, window: Window) -> bool:
        return bool(self._met(window))

    def _read_inside(self, window: Window) -> tuple[Pixels, Valid]:
        pixels, valid = self.empty(window.height, window.width)
        # The last first, so that what lies below a valid scene need not be read.
        for i in reversed(self._met(window)):
            scene, place = self.scenes[i], self._places[i]
            part = intersection(window, place)
            assert part is not None
            rows, cols = slices(part, window)
            if valid[rows, cols].all():
                continue
            new, use = scene.read(Window(part.row - place.row, part.col - place.col, part.height, part.width))
            np.copyto(pixels[:, rows, cols], new, where=use & ~valid[rows, cols])
            valid[rows, cols] |= use
        return pixels, valid


def _place(scene: Raster, first: Raster) -> Window:
    """Where a scene lies on the pixel grid of the first one, px."""
    if scene.grid.crs != first.grid.crs:
        raise SceneError(
            f"{scene.path} is in {crs_name(scene.grid.crs)}, but {first.path} in {crs_name(first.grid.crs)}",
            hint=_reprojected(scene, first),
        )
    if (scene.dtype, len(scene.bands)) != (first.dtype, len(first.bands)):
        raise SceneError(
            f"{scene.path} has {count(len(scene.bands), 'band')} of {scene.dtype}, "
            f"but {first.path} has {len(first.bands)} of {first.dtype}",
            hint="choose bands with --bands, or map each scene on its own: -o FOLDER/",
        )
    if first.grid.georeference in (Georeference.NONE, Georeference.CRS_ALONE) and scene is not first:
        raise SceneError(
            f"{scene.path} and {first.path} have no transform, so their relative position is unknown",
            hint="map each scene on its own: -o FOLDER/",
        )
    height, width = scene.grid.shape
    to_first: Affine = ~first.grid.transform @ scene.grid.transform
    col, row = to_first @ (0, 0)
    place = Window(round(row), round(col), height, width)
    # All four corners: a slightly different pixel size or rotation shows only at the far ones.
    for c, r in (0, 0), (width, 0), (0, height), (width, height):
        x, y = to_first @ (c, r)
        if max(abs(x - place.col - c), abs(y - place.row - r)) > ALIGNMENT_PX:
            t = first.grid.transform
            raise SceneError(
                f"{scene.path} is not on the pixel grid of {first.path}: pixel size or origin differ",
                hint=f"resample both files, this one with: gdalwarp -tr {abs(t.a):.12g} {abs(t.e):.12g} -tap "
                f"{quoted(scene.path)} aligned.tif",
            )
    return place


def _reprojected(scene: Raster, first: Raster) -> str:
    if scene.grid.crs is None or first.grid.crs is None:
        without = scene if scene.grid.crs is None else first
        return f"say which CRS {without.path} is in with --crs EPSG:…"
    code = ":".join(first.grid.crs.to_authority() or ("EPSG", "…"))
    return f"reproject it first: gdalwarp -t_srs {code} {quoted(scene.path)} same_crs.tif"
