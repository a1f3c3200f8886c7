"""Density rasters: every raster cell holds the integral of the density over it, divided by its area."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import xarray as xr

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.maps import charts, smoothing, stacks
from geo_mvmf.maps.albums import Album, album_of
from geo_mvmf.maps.beyond import Beyond, beyond
from geo_mvmf.maps.cell_raster import CellRaster
from geo_mvmf.maps.cylindrical import CylindricalRaster
from geo_mvmf.maps.frames import Frame
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.projected import ProjectedRaster
from geo_mvmf.maps.raster_parts import crs_name
from geo_mvmf.mixture import CellMixture, VmfMixture, require_mixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NAME = "density_per_km2"

_MEANS_KEPT = 8
_ALL = 1e-6  # a grid that holds all but so much has nothing beyond it

_ATTRIBUTES: dict[str, Any] = {
    "units": "km-2",
    "long_name": "probability density of the location",
    "cell_methods": "area: mean",
    "cell_measures": "area: cell_area_km2",
    "earth_radius_km": sphere.EARTH_RADIUS_KM,
}
_SUM_ATTRIBUTES = {"units": "1", "long_name": "probability inside the grid, measured, not normalised"}


class _Raster(Protocol):
    def probabilities(self, weights: FloatArray, /) -> FloatArray: ...

    @property
    def num_values(self) -> int: ...


class Rasteriser:
    """Components and a grid, made ready once for any number of images.

    Parameters
    ----------
    mean_directions : array_like of float, shape (C, 3)
        Unit vectors.
    log_concentrations : array_like of float, shape (C,)
        Natural logarithms of kappa.
    grid : Grid
        Where.

    Examples
    --------
    >>> rasteriser = Rasteriser([[0.0, 0.0, 1.0]], [16.0], Grid.globe(1.0))
    >>> round(float(rasteriser.probabilities([1.0]).sum()), 6)
    1.0
    """

    def __init__(self, mean_directions: npt.ArrayLike, log_concentrations: npt.ArrayLike, grid: Grid) -> None:
        self.grid = grid
        directions = np.asarray(mean_directions, dtype=np.float64).reshape(-1, 3)
        log_kappa = np.asarray(log_concentrations, dtype=np.float64).reshape(-1)
        make: Callable[[FloatArray, FloatArray, Grid], _Raster]
        make = CylindricalRaster if grid.is_cylindrical else ProjectedRaster
        self._raster = make(directions, log_kappa, grid)

    def probabilities(self, mixing_weights: npt.ArrayLike) -> FloatArray:
        """Integrate one image's density over every raster cell.

        Parameters
        ----------
        mixing_weights : array_like of float, shape (C,)
            Not logarithms.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Probabilities, not normalised; 0 outside the domain of the projection.
        """
        return self._raster.probabilities(np.asarray(mixing_weights, dtype=np.float64))

    @property
    def num_values(self) -> int:
        """How many numbers all images share: 8 bytes each, read once for every image."""
        return self._raster.num_values


def cell_area_km2(grid: Grid) -> FloatArray:
    """Give the area of every raster cell on the sphere.

    Parameters
    ----------
    grid : Grid
        Where.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        Square kilometres. Exact on cylindrical grids (read-only: a row is stored once); by quadrature of the projection
        elsewhere. Of the part inside the domain where that cuts a cell, NaN where nothing of it is inside.

    Examples
    --------
    >>> areas = cell_area_km2(Grid.globe(10.0))
    >>> round(float(areas.sum() / sphere.EARTH_AREA_KM2), 12)
    1.0
    """
    if not grid.is_cylindrical:
        return charts.charts_of(grid).areas_sr() * sphere.EARTH_RADIUS_KM**2
    x, y = grid.degree_edges
    south, north = np.minimum(y[:-1], y[1:]), np.maximum(y[:-1], y[1:])
    # the width from the transform where that is in degrees: differences of edges would carry their rounding
    width = grid.transform.a if grid.is_geographic else (x[-1] - x[0]) / (x.size - 1)
    areas = np.where(north > south, sphere.rectangle_area_km2(0.0, south, width, north), np.nan)
    return np.broadcast_to(areas[:, None], (y.size - 1, x.size - 1))


def density_raster(
    mixture: VmfMixture | CellMixture | Album,
    grid: Grid | Frame | Literal["auto"],
    *,
    image_ids: Sequence[str] | None = None,
    combine: Literal["mean"] | None = None,
    by: Sequence[Hashable] | None = None,
    bandwidth_km: float | None = None,
) -> xr.DataArray:
    """Make the density raster of every image.

    Parameters
    ----------
    mixture : VmfMixture, CellMixture or Album
        N images; an `maps.albums.Album` gives their mixing weights one image at a time.
    grid : Grid, Frame or "auto"
        Where; a Frame finds the window that shows most of the probability of one image, or of the mean; "auto" is
        ``Frame()``: 99 % of it.
    image_ids : sequence of str, optional
        N names for the image dimension; numbers where not given.
    combine : {"mean"}, optional
        One raster for all images, the mean of their densities (an album's map).
    by : sequence of hashable, optional
        With `combine`: N labels; one raster for each, in their order, of the images that have it. Labels become text,
        None and NaN "unknown".
    bandwidth_km : float, optional
        Convolve the densities with a kernel of this standard deviation. Nothing is smoothed unless this is given, and
        the attribute bandwidth_km says that it was.

    Returns
    -------
    xarray.DataArray
        Named density_per_km2, dimensions (image, latitude, longitude), or (image, y, x) on projected grids; per square
        kilometre, NaN outside the projection's domain. Coordinates: `probability_sum` (image), the probability inside
        the grid, measured on the raster and never normalised (1 within 1e-6 on a global grid); `cell_area_km2`;
        `spatial_ref` with the CRS; of means `num_images` (image), how many images each is of. Where it would need more
        than half a gigabyte and dask is installed, an image is computed when it is asked for, and window by window
        where one image alone needs more.

    Raises
    ------
    ValueError
        `image_ids` or `by` has another length than the mixture, `combine` is something else, or `by` stands alone.
    BadInputError
        The mean of no images was asked for, the grid is to find its window for several rasters, or a density cannot be
        smoothed.

    Examples
    --------
    >>> peak = VmfMixture(sphere.to_directions([180.0], [0.0]), [16.0], [[0.0]])
    >>> density = density_raster(peak, Grid.globe(1.0))
    >>> density.dims, round(float((density * density.cell_area_km2).sum()), 6)
    (('image', 'latitude', 'longitude'), 1.0)
    """
    if not isinstance(mixture, Album):
        require_mixture(mixture)
    rasters = _rasters(len(mixture), image_ids, combine, by)
    source = _source(mixture, bandwidth_km)
    where = grid if isinstance(grid, Grid) else _framed(grid, source, rasters)
    made = stacks.stack(_Painter(source, rasters.members), cell_area_km2, len(rasters.names), where)
    array = xr.DataArray(
        made.values,
        dims=("image", *where.dims),
        coords={
            "image": ("image", np.asarray(rasters.names)),
            **_coordinates(where, made.areas),
            "probability_sum": ("image", made.sums, _SUM_ATTRIBUTES),
        },
        name=NAME,
        attrs=_ATTRIBUTES | ({} if bandwidth_km is None else {"bandwidth_km": float(bandwidth_km)}),
    )
    if combine:
        array.attrs["combine"] = combine
        counts = np.array([rows.size for rows in rasters.members], dtype=np.int64)
        array.coords["num_images"] = ("image", counts, {"units": "1", "long_name": "images in the mean"})
    array.encoding["grid_mapping"] = "spatial_ref"
    return array


def beyond_raster(mixture: VmfMixture | CellMixture | Album, raster: xr.DataArray) -> Beyond:
    """Find what lies outside the raster of one image, or of the mean of all.

    Parameters
    ----------
    mixture : VmfMixture, CellMixture or Album
        What `density_raster` made the raster of.
    raster : xarray.DataArray
        One.

    Returns
    -------
    Beyond

    Examples
    --------
    >>> peak = VmfMixture(sphere.to_directions([0.0], [0.0]), [5.0], [[0.0]])
    >>> half = density_raster(peak, Grid.from_bounds(0.0, -90.0, 180.0, 90.0, 1.0))
    >>> round(float(beyond_raster(peak, half).probability.sum()), 6)
    0.5
    """
    inside = float(raster["probability_sum"][0])
    if inside > 1.0 - _ALL:
        return Beyond.nothing()
    source = _source(mixture, raster.attrs.get("bandwidth_km"))
    return beyond(_mean_of(source), Grid.like(raster), inside)


def _source(mixture: VmfMixture | CellMixture | Album, bandwidth_km: float | None) -> CellMixture | Album:
    source = album_of(mixture) if isinstance(mixture, VmfMixture) else mixture
    return source if bandwidth_km is None else smoothing.smoothed(source, bandwidth_km)


def _mean_of(source: CellMixture | Album) -> VmfMixture | CellMixture:
    """What the only raster of a source shows: its image, or the mean of all (of cells all, whose mean is meant)."""
    return source if isinstance(source, CellMixture) else source.mean_mixture(np.arange(len(source)))


class _Rasters(NamedTuple):
    """Which rasters to make."""

    names: list[Any]
    members: list[IntArray]  # the images whose mean each raster is


def _rasters(
    images: int,
    image_ids: Sequence[str] | None,
    combine: str | None,
    by: Sequence[Hashable] | None,
) -> _Rasters:
    if combine not in {None, "mean"}:
        raise ValueError(f"combine is {combine!r}, not 'mean' or None")
    for name, labels in (("image_ids", image_ids), ("labels in by", by)):
        if labels is not None and len(labels) != images:
            raise ValueError(f"{len(labels)} {name} for {images} images")
    if by is not None and not combine:
        raise UsageError("by groups images into means: give combine='mean' with it")
    if not combine:
        names = list(image_ids) if image_ids is not None else list(range(images))
        return _Rasters(names, [np.array([i]) for i in range(images)])
    if not images:
        raise BadInputError(f"combine={combine!r} of 0 images: there is no density; give at least one image")
    if by is None:
        return _Rasters([combine], [np.arange(images)])
    texts = np.array(
        ["unknown" if missing else str(label) for label, missing in zip(by, pd.isna(pd.Series(list(by))), strict=True)]
    )
    return _Rasters(list(np.unique(texts)), [np.flatnonzero(texts == name) for name in np.unique(texts)])


def _framed(wanted: Frame | str, source: CellMixture | Album, rasters: _Rasters) -> Grid:
    frame = Frame() if wanted == "auto" else wanted
    if not isinstance(frame, Frame):
        raise UsageError(f"grid is {wanted!r}: a Grid, a Frame or 'auto' is wanted, such as Grid.globe(0.5)")
    if len(rasters.names) != 1:
        raise BadInputError(
            f"a window of its own is that of one raster, and there are {len(rasters.names)}: give one image, "
            "combine='mean', or a Grid"
        )
    return frame.of(_mean_of(source))


class _Painter:
    """What all rasters share on a grid; called with it, a function from raster to probabilities (rows, columns)."""

    def __init__(self, source: CellMixture | Album, members: list[IntArray]) -> None:
        self.source = source
        self.members = members
        self._means: dict[int, FloatArray] = {}

    def __call__(self, grid: Grid, areas: FloatArray) -> stacks.Painter:
        if isinstance(self.source, CellMixture):
            return self._of_cells(self.source, CellRaster(grid, areas))
        return self._of_components(self.source, grid)

    def _of_cells(self, mixture: CellMixture, raster: CellRaster) -> stacks.Painter:
        def paint(i: int) -> FloatArray:
            total = np.zeros(raster.grid.shape)
            for image in self.members[i]:
                total += raster.probabilities(*mixture.of(int(image)))
            return total / self.members[i].size

        return paint

    def _of_components(self, album: Album, grid: Grid) -> stacks.Painter:
        rasteriser = Rasteriser(album.mean_directions, album.log_concentrations, grid)

        def paint(i: int) -> FloatArray:
            return rasteriser.probabilities(self._mean(album, i))

        return paint

    def _mean(self, album: Album, i: int) -> FloatArray:
        """Mixing weights of a raster; windows ask for the same one after the other."""
        found = self._means.get(i)
        if found is None:
            if len(self._means) >= _MEANS_KEPT:
                self._means.clear()
            found = self._means[i] = album.mean(self.members[i])
        return found


def _coordinates(grid: Grid, areas: FloatArray) -> dict[str, Any]:
    rows, columns = grid.dims
    t = grid.transform
    transform = " ".join(repr(float(number)) for number in (t.c, t.a, t.b, t.f, t.d, t.e))
    named = {"spatial_ref": grid.crs.to_wkt(), "GeoTransform": transform, "name": crs_name(grid.crs)}
    reference = {**_grid_mapping(grid.crs), **named}
    result: dict[str, Any] = {
        "spatial_ref": ((), 0, reference),
        "cell_area_km2": (
            grid.dims,
            areas,
            {"standard_name": "cell_area", "units": "km2", "earth_radius_km": sphere.EARTH_RADIUS_KM},
        ),
    }
    if grid.is_rectilinear:
        x, y = grid.centres
        result[rows], result[columns] = (rows, y, _axis(grid, "Y")), (columns, x, _axis(grid, "X"))
    return result


def _grid_mapping(crs: pyproj.CRS) -> dict[str, Any]:
    """Attributes by CF; of a CRS that CF's own cannot say whole (Swiss LV95, say) the WKT, which readers prefer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a parameter is lost: what is left is another projection
            found: dict[str, Any] = crs.to_cf()
    except (UserWarning, KeyError):  # a rotated pole without all its parameters, which pyproj stumbles over
        return {"crs_wkt": crs.to_wkt()}
    return found


def _axis(grid: Grid, axis: str) -> dict[str, str]:
    """Attributes by CF, whose units are those of UDUNITS: no feet of surveyors, no grads."""
    unit = grid.crs.axis_info[0]
    scale = "" if unit.unit_conversion_factor == 1.0 else f"{unit.unit_conversion_factor:.15g} "
    if not grid.crs.is_geographic:
        name, units = f"projection_{axis.lower()}_coordinate", f"{scale}metre"
    else:
        name, units = ("latitude", "degrees_north") if axis == "Y" else ("longitude", "degrees_east")
        if grid.crs.is_derived:  # about a pole of its own
            name, units = f"grid_{name}", "degrees"
        if "degree" not in unit.unit_name:
            units = f"{scale}radian"
    return {"standard_name": name, "units": units, "axis": axis}
