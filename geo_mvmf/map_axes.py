"""Map axes: the figures, the world with its coastline and the colours that all pictures have in common."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geo_mvmf import coastlines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE, MARK, GREY = "#7a0177", "#222222", "#777777"
"""Of the curve that a picture is about, of marks on it, and of what it is compared with."""

_LAND, _SEA, _COAST = "#efece4", "#f7fafc", "#b5ada0"
_NARROWEST = 0.02  # degrees that a frame shows at least: places at one spot would have none
_MARGIN = 0.06  # of a frame beyond the outermost places


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes.

    Parameters
    ----------
    width, height : float
        Inches, of 120 pixels.

    Returns
    -------
    Figure, Axes

    Examples
    --------
    >>> float(figure_of(4.0, 3.0)[0].get_figwidth())
    4.0
    """
    # The object interface: no pyplot, no global state, no window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def world_axes(extent: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Make a figure whose axes are a map with the coastline.

    Parameters
    ----------
    extent : (west, east, south, north)
        Degrees; longitudes may go beyond 180, and the land of the other side is there.

    Returns
    -------
    Figure, Axes

    Examples
    --------
    >>> [float(x) for x in world_axes((-180.0, 180.0, -60.0, 85.0))[1].get_xlim()]
    [-180.0, 180.0]
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    west, east, south, north = extent
    middle = np.cos(np.radians((south + north) / 2.0)) if east - west < 180.0 else 1.0
    height = float(np.clip(9.0 * (north - south) / (east - west) / max(middle, 0.2), 3.0, 8.0)) + 0.4
    figure, axes = figure_of(9.6, height)
    axes.set_facecolor(_SEA)
    # a map across 180 has places beyond it, where the land of the other side lies
    turns = range(int(np.floor((west + 180.0) / 360.0)), int(np.ceil((east + 180.0) / 360.0)))
    land = [np.add(ring, [360.0 * turn, 0.0]) for turn in turns for ring in coastlines.land()]
    axes.add_collection(PolyCollection(land, facecolor=_LAND, edgecolor=_COAST, linewidth=0.5, zorder=1))
    axes.set(xlim=(west, east), ylim=(south, north))
    axes.set_aspect(1.0 / max(middle, 0.2))
    for axis, sides, most in ((axes.xaxis, "EW", 8), (axes.yaxis, "NS", 6)):
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 3, 6, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _, sides=sides: degrees(value, sides)))
    axes.tick_params(labelsize=9, color=_COAST)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[:].set_color(_COAST)
    return figure, axes


def frame_of(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> tuple[float, float, float, float]:
    """Find the smallest map that shows places, also across 180 degrees; the whole world where they lie all over it.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees.

    Returns
    -------
    west, east, south, north : float
        Degrees, with a margin; west is in -180..180, and east up to 360 more. Of a map of the world: without
        Antarctica, where none of the places is there.

    Examples
    --------
    >>> west, east, _, _ = frame_of([179.0, -179.0], [-17.0, -18.0])
    >>> round(west), round(east)
    (179, 181)
    """
    x = np.sort(np.asarray(longitude, dtype=np.float64).ravel())
    y = np.asarray(latitude, dtype=np.float64).ravel()
    if not x.size:
        return -180.0, 180.0, -60.0, 85.0
    gaps = np.append(x[1:], x[0] + 360.0) - x
    widest = int(np.argmax(gaps))  # the map begins behind the widest gap
    west, width = float(x[(widest + 1) % x.size]), 360.0 - float(gaps[widest])
    if width > 200.0:
        south, north = (-90.0 if (y < -58.0).any() else -60.0), (90.0 if (y > 83.0).any() else 85.0)
        return -180.0, 180.0, south, north
    height = float(np.ptp(y))
    margin = max(_MARGIN * max(width, height), _NARROWEST / 2.0)
    # a strip would be shown with hardly any land to know it by
    across, along = max(width, height / 2.0) / 2.0 + margin, max(height, width / 3.0) / 2.0 + margin
    middle_x, middle_y = west + width / 2.0, float(y.min()) + height / 2.0
    return middle_x - across, middle_x + across, max(-90.0, middle_y - along), min(90.0, middle_y + along)


def degrees(value: float, sides: str) -> str:
    """Write a longitude or latitude.

    Parameters
    ----------
    value : float
        Degrees; longitudes of any turn.
    sides : {"EW", "NS"}

    Examples
    --------
    >>> degrees(190.0, "EW"), degrees(-7.5, "NS")
    ('170° W', '7.5° S')
    """
    value = (value + 180.0) % 360.0 - 180.0
    side = "" if value == 0.0 or abs(value) == 180.0 else f" {sides[0] if value > 0.0 else sides[1]}"
    return f"{abs(value):g}°{side}"


def thousands(value: float) -> str:
    """Write a whole number with narrow spaces.

    Parameters
    ----------
    value : float

    Examples
    --------
    >>> len(thousands(1234.4))
    5
    """
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def round_numbers(low: float, high: float) -> list[float]:
    """Give numbers 1, 2 and 5 times a power of ten between two; the two themselves, where there are none.

    Parameters
    ----------
    low, high : float
        Above 0.

    Examples
    --------
    >>> round_numbers(3.0, 60.0)
    [5.0, 10.0, 20.0, 50.0]
    """
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1.0, 2.0, 5.0)]
    inside = [value for value in found if low <= value <= high]
    return inside[:: max(1, len(inside) // 7)] or [low, high]


def png(figure: Figure) -> bytes:
    """Give a figure as a PNG file.

    Parameters
    ----------
    figure : Figure

    Examples
    --------
    >>> png(figure_of(1.0, 1.0)[0])[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()
