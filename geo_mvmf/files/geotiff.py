"""Maps of one image or album as Cloud Optimized GeoTIFFs that QGIS draws by itself.

A density is float32 per square kilometre, so that averaging overviews keep its meaning; a map of credible levels
goes into a file of its own. Tags and statistics are written into a temporary tiled GeoTIFF that is then copied: a
COG is never edited, and nothing lies beside it but the `.qml` made from its own values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import xarray
from rasterio import shutil as raster_shutil
from rasterio._err import CPLE_BaseError  # copying to COG raises these bare, and no public name exists
from rasterio.errors import RasterioError
from rasterio.windows import Window

import geo_mvmf
from geo_mvmf import durable
from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.files import styles
from geo_mvmf.maps import density as densities
from geo_mvmf.maps.beyond import Beyond
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.raster_parts import crs_name

FloatArray = npt.NDArray[np.float64]

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Credible levels that styles show."""

BLOCK = 512
_CACHE_BYTES = 1 << 27  # of GDAL: a row of blocks of the widest raster, with its overviews
_BLOCKS_AT_ONCE = 16  # across; a window is at most 512 x 8192 raster cells
_SAME_PLACE = 1e-5  # radians, 60 m: datums that programs take for each other differ by less
_BITS_DROPPED = 12  # of a float32: thresholds are found to 2^-11 of their value
_BINS = 1 << (31 - _BITS_DROPPED)


def write_density(
    path: str | os.PathLike[str],
    density: xarray.DataArray | npt.ArrayLike,
    grid: Grid | None = None,
    *,
    tags: Mapping[str, object] | None = None,
    beyond: Beyond | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a density as a COG, with a style made from its own credible thresholds beside it.

    Parameters
    ----------
    path : path
        Ends in .tif or .tiff; the style has the same name with .qml.
    density : DataArray or array_like of float, shape (rows, columns) or (1, rows, columns)
        Density per km2, NaN outside the domain of the projection. A lazy array is computed window by window.
    grid : Grid, optional
        Needed where `density` is no DataArray.
    tags : mapping, optional
        Written as text with upper-case names: model, weights hash, image id. PROBABILITY_SUM is the coordinate
        `probability_sum` of the DataArray, or the sum of density times area where there is none. CREDIBLE_DENSITY_90
        is the least density of the smallest region that holds 90 %; none where all that is known holds less.
    beyond : Beyond, optional
        What lies outside the grid; without it regions are of what lies inside.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    Path
        The COG.

    Raises
    ------
    UsageError
        The suffix, the shape or a missing grid.
    OutputError
        A file exists already, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> grid = Grid.globe(10.0)
    >>> uniform = np.full(grid.shape, 1 / 5.1e8)
    >>> path = write_density(Path(tempfile.mkdtemp()) / "uniform.tif", uniform, grid)
    >>> with rasterio.open(path) as raster:
    ...     raster.units, round(float(raster.tags()["PROBABILITY_SUM"]), 3)
    (('km-2',), 1.0)
    """
    source = _source(path, density, grid)
    measured = _Measured()
    if beyond is not None:
        measured.add_mass(beyond.densities.astype(np.float32), beyond.probability)

    def tags_of() -> dict[str, object]:
        total = source.probability_sum if source.probability_sum is not None else measured.total
        thresholds = {f"CREDIBLE_DENSITY_{100 * level:g}": value for level, value in measured.thresholds().items()}
        return {"PROBABILITY_SUM": total, **thresholds, **(tags or {})}

    def style_of() -> str:
        thresholds = dict.fromkeys(LEVELS, 0.0) | measured.thresholds()
        return styles.density_style(thresholds, maximum=max(measured.maximum, 0.0), held=measured.held)

    look = _Look("density_per_km2", "km-2", "Probability density per square kilometre", "AVERAGE")
    return _write(source, look, measured, tags_of, style_of, overwrite=overwrite)


def write_level(
    path: str | os.PathLike[str],
    level: xarray.DataArray | npt.ArrayLike,
    grid: Grid | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    tags: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a map of credible levels as a COG with its style.

    Parameters
    ----------
    path : path
        Ends in .tif or .tiff.
    level : DataArray or array_like of float, shape (rows, columns) or (1, rows, columns)
        The level of the smallest credible region that a raster cell belongs to, 0..1, NaN outside the domain.
    grid : Grid, optional
        Needed where `level` is no DataArray.
    levels : sequence of float
        Where the classes of the style end.
    tags : mapping, optional
        Written as text with upper-case names.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    Path
        The COG.

    Raises
    ------
    UsageError, OutputError
        As `write_density`.

    Examples
    --------
    >>> import tempfile
    >>> path = write_level(Path(tempfile.mkdtemp()) / "level.tif", np.ones((18, 36)), Grid.globe(10.0))
    >>> path.with_suffix(".qml").exists()
    True
    """
    source = _source(path, level, grid)
    look = _Look("credible_level", "1", "Level of the smallest credible region that holds the place", "NEAREST")
    return _write(
        source, look, _Measured(), lambda: dict(tags or {}), lambda: styles.level_style(levels), overwrite=overwrite
    )


class _Look(NamedTuple):
    name: str
    unit: str
    description: str
    overviews: str


class _Source(NamedTuple):
    path: Path
    values: Any  # (rows, columns), perhaps lazy
    grid: Grid
    probability_sum: float | None

    def windows(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.grid.shape
        across = BLOCK * _BLOCKS_AT_ONCE
        for top in range(0, rows, BLOCK):
            for left in range(0, columns, across):
                yield slice(top, min(top + BLOCK, rows)), slice(left, min(left + across, columns))


@dataclasses.dataclass
class _Measured:
    """What is learnt about the values while they pass by, window by window."""

    count: int = 0
    cells: int = 0
    total: float = 0.0
    first: float = 0.0
    second: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    checksums: list[int] = dataclasses.field(default_factory=list)
    mass: FloatArray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))

    def add(self, values: npt.NDArray[np.float32], area_km2: FloatArray) -> None:
        """Take in float32 values and the areas of their raster cells."""
        self.checksums.append(zlib.crc32(np.ascontiguousarray(values).tobytes()))
        self.cells += values.size
        valid = np.isfinite(values) & np.isfinite(area_km2)
        kept = values[valid].astype(np.float64)
        if not kept.size:
            return
        self.count += kept.size
        self.first += float(kept.sum())
        self.second += float(np.square(kept).sum())
        self.minimum, self.maximum = min(self.minimum, float(kept.min())), max(self.maximum, float(kept.max()))
        mass = kept * area_km2[valid]
        self.total += float(mass.sum())
        self.add_mass(values[valid], mass)

    def add_mass(self, values: npt.NDArray[np.float32], mass: FloatArray) -> None:
        """Take in the probability that has a density, wherever it lies."""
        # The bits of positive float32 numbers, read as integers, are in the order of the numbers.
        bins = np.abs(np.maximum(values, np.float32(0.0))).view(np.uint32) >> _BITS_DROPPED  # abs: no -0
        self.mass += np.bincount(bins, weights=np.maximum(mass, 0.0), minlength=_BINS)

    def thresholds(self) -> dict[float, float]:
        """Least densities of credible regions, of those among `LEVELS` that hold no more than is known.

        At most 0.05 % too low, so that the cells above them hold at least the level.
        """
        from_top = np.cumsum(self.mass[::-1])
        result = {}
        for level in LEVELS:
            wanted = level * (1.0 - 1e-12)
            if 0.0 < wanted <= from_top[-1]:
                place = int(np.searchsorted(from_top, wanted))
                bits = np.array([(_BINS - 1 - place) << _BITS_DROPPED], dtype=np.uint32)
                result[level] = float(bits.view(np.float32)[0])
        return result

    @property
    def held(self) -> float:
        """Probability in all cells, and beyond them where that is known."""
        return float(self.mass.sum())

    def statistics(self) -> dict[str, str]:
        """Tags that GIS programs read in place of the whole raster."""
        if not self.count:
            return {"STATISTICS_VALID_PERCENT": "0"}
        mean = self.first / self.count
        spread = np.sqrt(max(self.second / self.count - mean**2, 0.0))
        numbers = {"MINIMUM": self.minimum, "MAXIMUM": self.maximum, "MEAN": mean, "STDDEV": spread}
        numbers["VALID_PERCENT"] = 100.0 * self.count / self.cells
        return {f"STATISTICS_{name}": f"{value:.9g}" for name, value in numbers.items()}


def _source(path: str | os.PathLike[str], values: Any, grid: Grid | None) -> _Source:
    final = Path(path)
    if final.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(f"{final}: a raster is written as .tif, not {final.suffix!r}")
    total: float | None = None
    if isinstance(values, xarray.DataArray):
        grid = Grid.like(values) if grid is None else grid
        if "probability_sum" in values.coords and values.coords["probability_sum"].size == 1:
            total = float(values.coords["probability_sum"].to_numpy().ravel()[0])
        values = values.data
    if grid is None:
        raise UsageError(f"{final}: an array alone does not say where it lies; give its grid")
    _check_crs(final, grid)
    plain = values if hasattr(values, "ndim") else np.asarray(values, dtype=np.float64)
    if plain.ndim == 3 and plain.shape[0] == 1:
        plain = plain[0]
    if tuple(plain.shape) != grid.shape:
        raise UsageError(
            f"{final}: the map has shape {tuple(plain.shape)}, the grid {grid.shape}; write one image at a time"
        )
    return _Source(final, plain, grid, total)


def _write(
    source: _Source,
    look: _Look,
    measured: _Measured,
    tags_of: Callable[[], Mapping[str, object]],
    style_of: Callable[[], str],
    *,
    overwrite: bool,
) -> Path:
    final = source.path
    # The raster is renamed first and its style right after: a style never lies beside a raster that is not there.
    with (
        durable.replacing(final.with_suffix(".qml"), overwrite=overwrite) as style,
        durable.replacing(final, overwrite=overwrite) as temporary,
        _errors_named(temporary, final),
        # PAM would leave .aux.xml files; GDAL's cache of blocks would grow to a twentieth of the machine's memory
        rasterio.Env(GDAL_PAM_ENABLED=False, GDAL_NUM_THREADS=1, GDAL_CACHEMAX=_CACHE_BYTES),
    ):
        # The name begins with the temporary one, so that durable removes it too.
        tiled = temporary.with_name(f"{temporary.name}.tiled.tif")
        _write_tiled(tiled, source, look, measured, tags_of)
        _copy_to_cog(tiled, temporary, look)
        tiled.unlink()
        _check_copy(temporary, source, measured)
        style.write_text(style_of(), encoding="utf-8")
    return final


def _write_tiled(
    path: Path, source: _Source, look: _Look, measured: _Measured, tags_of: Callable[[], Mapping[str, object]]
) -> None:
    rows, columns = source.grid.shape
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": rows, "width": columns, "nodata": np.nan}
    layout = {
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "DEFLATE",
        "zlevel": 1,
        "predictor": 3,
    }
    place = {"crs": _raster_crs(source.grid), "transform": source.grid.transform}
    with rasterio.open(path, "w", BIGTIFF="IF_SAFER", **profile, **layout, **place) as raster:
        for across in source.windows():
            values = np.array(source.values[across], dtype=np.float32)  # a copy: the caller keeps the own values
            values[~np.isfinite(values)] = np.nan
            area = densities.cell_area_km2(source.grid.window(*across))
            measured.add(values.ravel(), np.broadcast_to(area, values.shape).ravel())
            raster.write(values, 1, window=Window.from_slices(*across, height=rows, width=columns))
        raster.set_band_description(1, look.name)
        raster.set_band_unit(1, look.unit)
        software = f"geo_mvmf {geo_mvmf.__version__}"
        fixed = {"AREA_OR_POINT": "Area", "TIFFTAG_SOFTWARE": software, "TIFFTAG_IMAGEDESCRIPTION": look.description}
        raster.update_tags(**fixed, **{str(k).upper(): _tag_text(v) for k, v in tags_of().items() if v is not None})
        raster.update_tags(1, **measured.statistics())


def _copy_to_cog(tiled: Path, cog: Path, look: _Look) -> None:
    raster_shutil.copy(
        tiled,
        cog,
        driver="COG",
        blocksize=BLOCK,
        compress="DEFLATE",
        predictor="FLOATING_POINT",
        bigtiff="IF_SAFER",
        overview_resampling=look.overviews,
        overviews="IGNORE_EXISTING",
    )


def _check_copy(cog: Path, source: _Source, measured: _Measured) -> None:
    rows, columns = source.grid.shape
    with rasterio.open(cog, driver="GTiff") as raster:
        for across, expected in zip(source.windows(), measured.checksums, strict=True):
            values = raster.read(1, window=Window.from_slices(*across, height=rows, width=columns))
            if zlib.crc32(values.tobytes()) != expected:
                raise OutputError(
                    f"{source.path}: the raster read back differs from what was written; is the disk full?"
                )


def _raster_crs(grid: Grid) -> Any:
    if grid.crs.equals("OGC:CRS84") or grid.crs.equals("EPSG:4326"):
        return rasterio.crs.CRS.from_epsg(4326)
    return rasterio.crs.CRS.from_wkt(grid.crs.to_wkt())


def _check_crs(path: Path, grid: Grid) -> None:
    """Refuse, before anything is computed, a CRS that a GeoTIFF cannot say, or says as another."""
    place = {"crs": _raster_crs(grid), "transform": grid.transform}
    with rasterio.Env(GDAL_PAM_ENABLED=False), rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype="uint8", count=1, height=1, width=1, **place) as raster:
            raster.write(np.zeros((1, 1, 1), np.uint8))
        with memory.open() as raster:
            said = raster.crs
    column, row = (0.5 * size for size in grid.shape[::-1])
    here = grid.to_directions(column, row)
    if said is not None and np.isfinite(here).all():
        there = Grid(grid.shape, grid.transform, said.to_wkt()).to_directions(column, row)
        if not np.linalg.norm(there - here) < _SAME_PLACE:
            said = None
    if said is None:
        raise UsageError(
            f"{path}: a GeoTIFF cannot say the CRS {crs_name(grid.crs)!r}: write .nc, or choose another CRS"
        )


def _tag_text(value: object) -> str:
    return f"{value:.17g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _errors_named(temporary: Path, final: Path) -> Iterator[None]:
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        written = [path for path in final.parent.iterdir() if path.name.startswith(temporary.name)]
        size = sum(path.stat().st_size for path in written)
        reason = str(error.__cause__ or error).replace(str(temporary), final.name)
        raise OutputError(
            f"{final}: cannot write more than {size} bytes: {reason}; is there space on the disk?"
        ) from error
