"""Options of a raster's grid -> a Grid, and remarks about what was chosen in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from geo_mvmf.commands import options
from geo_mvmf.errors import UsageError

if TYPE_CHECKING:
    from geo_mvmf.maps.grid import Grid

DEGREES = 0.5
"""Size of a raster cell in degrees, where nothing is said and the extent is not small."""

_CELLS = 512  # along the longer side of an extent, about as many at most
_NO_DEGREES = 1000.0  # beyond it a bound is metres


def grid(bounds: str | None, resolution: float | None, crs: str | None) -> tuple[Grid, list[str]]:
    """Make the grid that --bounds, --resolution and --crs describe.

    Parameters
    ----------
    bounds : str or None
        west,south,east,north in units of the CRS; None is the globe, in EPSG:4326.
    resolution : float or None
        Size of a raster cell in units of the CRS; None: 0.5 degrees, less where the extent has then fewer than about
        250 raster cells; in other units what divides the longer side into 250 to 512.
    crs : str or None
        Such as EPSG:3035; None is EPSG:4326.

    Returns
    -------
    grid : Grid
    remarks : list of str
        What was chosen, or understood, that a user might not expect.

    Raises
    ------
    UsageError
        If they do not describe a grid.

    Examples
    --------
    >>> grid("5,45,15,55", 0.5, None)[0].shape
    (20, 20)
    >>> grid("0,0,1000000,500000", None, "EPSG:3857")[1]
    ['raster cells of 2000 in units of EPSG:3857; --resolution sets another size']
    """
    from geo_mvmf.inputs.coordinate_systems import parse_crs
    from geo_mvmf.maps.grid import Grid

    name = crs or "EPSG:4326"
    system = parse_crs(name)
    if bounds is None:
        size = DEGREES if resolution is None else resolution
        return _made(lambda: Grid.globe(size), "of the globe", size), []
    edges = options.numbers("--bounds", bounds)
    if len(edges) != 4:
        raise UsageError(f"--bounds {bounds!r}: four numbers are wanted, west,south,east,north")
    if crs is None and max(map(abs, edges)) > _NO_DEGREES:
        raise UsageError(
            f"--bounds {bounds!r}: these are no degrees; say which CRS they are in, such as --crs EPSG:3857"
        )
    _check_order(bounds, edges, is_geographic=system.is_geographic)
    crosses = system.is_geographic and edges[0] > edges[2]
    size = _size(edges, is_geographic=system.is_geographic) if resolution is None else resolution
    remarks = [f"raster cells of {size:g} in units of {name}; --resolution sets another size"]
    remarks = remarks if resolution is None and size != DEGREES else []
    if not system.is_geographic and max(map(abs, edges)) <= 360.0:
        remarks.append(f"--bounds {bounds!r} are in units of {name}, as --resolution is: these look like degrees")
    if crosses:
        remarks.append(f"--bounds {bounds!r}: west is east of east, so the raster crosses longitude 180")
    return _made(lambda: Grid.from_bounds(*edges, size, crs=system), bounds, size), remarks


def _check_order(bounds: str, edges: tuple[float, ...], *, is_geographic: bool) -> None:
    west, south, east, north = edges
    if south >= north:
        raise UsageError(
            f"--bounds {bounds!r}: west,south,east,north are wanted, and south {south:g} is not below north"
        )
    if west >= east and not is_geographic:
        raise UsageError(
            f"--bounds {bounds!r}: west,south,east,north are wanted, and west {west:g} is not west of east"
        )
    if is_geographic and not -90.0 <= south < north <= 90.0:
        raise UsageError(f"--bounds {bounds!r}: latitudes {south:g} and {north:g} are not within -90..90")


def _size(edges: tuple[float, ...], *, is_geographic: bool) -> float:
    west, south, east, north = edges
    width = east - west + (360.0 if is_geographic and west > east else 0.0)
    size = round_size(max(abs(width), abs(north - south)) / _CELLS)
    return min(size, DEGREES) if is_geographic else size


def round_size(least: float) -> float:
    """Give the smallest of 1, 2, 5, 10, 20, 50, ... and 0.5, 0.2, ... that is not less.

    Parameters
    ----------
    least : float
        In any unit; 0 gives 1.

    Examples
    --------
    >>> round_size(1953.1), round_size(0.02), round_size(0.21)
    (2000.0, 0.02, 0.5)
    """
    if not least > 0.0:
        return 1.0
    power = float(f"1e{int(f'{least:e}'.partition('e')[2])}")
    return next(float(f"{step * power:.12g}") for step in (1, 2, 5, 10) if step * power >= least * (1.0 - 1e-9))


def _made(make: Callable[[], Grid], bounds: str, size: float) -> Grid:
    try:
        return make()
    except ValueError as error:
        raise UsageError(f"--bounds {bounds}, --resolution {size:g}: {error}") from error
