"""Pictures: maps of densities and of predicted places, curves of accuracy and of calibration.

Everything is drawn offline: the coastline is a small outline (Natural Earth, public domain) that ships with the
package. Colours are those of the QGIS styles, so that a page and a map beside it tell the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geo_mvmf import measures
from geo_mvmf.files import styles
from geo_mvmf.map_axes import CURVE, GREY, MARK, figure_of, png, round_numbers, thousands, world_axes

if TYPE_CHECKING:
    import geopandas
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from geo_mvmf.evaluation import Evaluation

FloatArray = npt.NDArray[np.float64]

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Credible levels whose regions a density's picture shades."""

_OUTSIDE = "#828282"  # of rings, as in QGIS
_CURVE_STYLES = ("-", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def density_picture(
    density: xr.DataArray,
    *,
    title: str = "",
    estimate: tuple[float, float] | None = None,
    truth: tuple[float, float] | None = None,
) -> bytes:
    """Draw one density raster as the regions that hold 50, 80, 90 and 95 % of its probability.

    Parameters
    ----------
    density : DataArray, (latitude, longitude)
        density_per_km2 of one image on a geographic grid. With the coordinate cell_area_km2 (as `density_raster`
        gives it) a grid that does not hold all probability shows the levels of what is inside; without it the values
        are taken for all of it.
    title : str
        Heading.
    estimate, truth : (longitude, latitude), degrees, optional
        Marked by a dot and by a cross.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    ValueError
        If the raster is not geographic.

    Examples
    --------
    >>> import xarray
    >>> raster = xarray.DataArray(np.ones((2, 4)), dims=("latitude", "longitude"),
    ...     coords={"latitude": [45.0, -45.0], "longitude": [-135.0, -45.0, 45.0, 135.0]})
    >>> density_picture(raster)[1:4]
    b'PNG'
    """
    if tuple(density.dims) != ("latitude", "longitude"):
        raise ValueError(f"the picture needs a geographic raster (latitude, longitude), got {density.dims}")
    longitude, latitude = (np.asarray(density[name], dtype=np.float64) for name in ("longitude", "latitude"))
    x, y = _edges(longitude, latitude), _edges(latitude, longitude)
    west, east = float(x.min()), float(x.max())
    figure, axes = world_axes((west, east, max(-90.0, float(y.min())), min(90.0, float(y.max()))))
    _draw_levels(axes, np.asarray(density, dtype=np.float64), _mass(density, latitude), x, y)
    if estimate is not None:
        place = _turned(estimate, west, east)
        axes.plot(*place, "o", color="white", ms=7, mec=MARK, mew=1.2, label="estimate", zorder=6)
    if truth is not None:
        axes.plot(*_turned(truth, west, east), "x", color=MARK, ms=9, mew=2, label="true place", zorder=7)
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(loc="lower left", fontsize=8.5, framealpha=0.95, title="Probability inside", alignment="left")
    return png(figure)


def points_picture(
    points: geopandas.GeoDataFrame, *, regions: geopandas.GeoDataFrame | None = None, title: str = ""
) -> bytes:
    """Draw predicted points, coloured by the size of their 90 % region, with regions and errors where known.

    Parameters
    ----------
    points : GeoDataFrame
        The row contract.
    regions : GeoDataFrame, optional
        Credible regions; the smallest level is outlined.
    title : str
        Heading.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> import geopandas
    >>> points = geopandas.GeoDataFrame({"longitude": [7.0], "latitude": [50.0], "radius_90_km": [120.0]},
    ...     geometry=geopandas.points_from_xy([7.0], [50.0]), crs=4326)
    >>> points_picture(points)[1:4]
    b'PNG'
    """
    good = points[points["longitude"].notna()]
    # Antarctica takes a sixth of the picture: only where something is there.
    latitude = good.reindex(columns=["latitude", "true_latitude"]).to_numpy(float)
    south, north = (-90.0 if (latitude < -58.0).any() else -60.0), (90.0 if (latitude > 83.0).any() else 85.0)
    figure, axes = world_axes((-180.0, 180.0, south, north))
    if regions is not None and len(regions):
        smallest = regions[regions["level"] == regions["level"].min()]
        smallest.plot(ax=axes, facecolor=f"{CURVE}22", edgecolor=CURVE, linewidth=0.6, aspect=None)
    if "true_longitude" in good and good["true_longitude"].notna().any():
        _draw_errors(axes, good)
    if len(good):
        _draw_points(figure, axes, good)
        axes.legend(loc="lower left", fontsize=8.5, framealpha=0.95)
    axes.set_title(title, fontsize=11, loc="left")
    return png(figure)


def accuracy_picture(evaluation: Evaluation) -> bytes:
    """Draw the share of images within each distance, with its 95 % interval and with chance.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, 340.0])
    >>> evaluation = Evaluation(names, error_km, np.zeros(2), np.array([0.2, 0.7]), error_km, np.full(2, "", object))
    >>> accuracy_picture(evaluation)[1:4]
    b'PNG'
    """
    figure, axes = figure_of(8.0, 4.0)
    for (name, errors), style in zip(evaluation.errors_by_estimator.items(), _CURVE_STYLES, strict=False):
        label = f"these predictions: {name}" if evaluation.other_errors_km else "these predictions"
        ends, share = within_distance(errors, evaluation.n)
        axes.step(ends, share, where="post", color=CURVE, lw=1.8, ls=style, label=label)
    radius = np.geomspace(0.5, 20100.0, 200)
    axes.plot(radius, evaluation.chance(radius), "--", color=GREY, label="chance (uniform on the sphere)")
    accuracy = evaluation.accuracy
    spread = np.maximum(np.stack([accuracy.value - accuracy.low, accuracy.high - accuracy.value]), 0.0)
    axes.errorbar(
        evaluation.thresholds_km,
        accuracy.value,
        yerr=spread,
        fmt="o",
        color=MARK,
        ms=5,
        capsize=3,
        clip_on=False,
        zorder=5,
        label="95 % interval",
    )
    label_distances(axes, evaluation.thresholds_km)
    axes.legend(fontsize=9, loc="upper left")
    return png(figure)


def coverage_picture(evaluation: Evaluation, *, title: str = "") -> bytes:
    """Draw how often the truth lies inside the p-region against p: the P-P curve of the searched probability.

    The grey band is where a calibrated model has its curve, level by level; the marks are the levels people read.

    Parameters
    ----------
    evaluation : Evaluation
    title : str
        Heading.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, 340.0])
    >>> evaluation = Evaluation(names, error_km, np.zeros(2), np.array([0.2, 0.7]), error_km, np.full(2, "", object))
    >>> coverage_picture(evaluation)[1:4]
    b'PNG'
    """
    figure, axes = figure_of(5.6, 5.0)
    curve = evaluation.curve(np.linspace(0.0, 1.0, 401))
    axes.fill_between(curve["level"], curve["low"], curve["high"], color="#dddddd", label="calibrated (95 % band)")
    axes.plot([0, 1], [0, 1], color="#aaaaaa", lw=0.8)
    axes.plot(curve["level"], curve["share"], color=CURVE, lw=1.8, label="these predictions")
    found = measures.coverage(evaluation)
    levels, value = found["level"], found["value"]
    spread = np.maximum(np.stack([value - found["low"], found["high"] - value]), 0.0)
    label = "50, 80, 90, 95 % (95 % intervals)"
    axes.errorbar(levels, value, yerr=spread, fmt="o", color=MARK, ms=4, capsize=3, clip_on=False, label=label)
    label_coverage(axes, 0.66)
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(fontsize=9, loc="upper left")
    return png(figure)


def within_distance(error_km: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Give the share of images within each distance, as steps over the whole axis.

    Parameters
    ----------
    error_km : ndarray of float64, shape (m,)
        Not finite where there is no prediction.
    n : int
        Images that count.

    Returns
    -------
    ends, share : ndarray of float64, shape (k,)
        Kilometres where a step begins, and its height; drawn with where="post".

    Examples
    --------
    >>> within_distance(np.array([12.0, np.nan]), 2)[1].tolist()
    [0.0, 0.5, 0.5]
    """
    error = np.sort(error_km[np.isfinite(error_km)])
    ends = np.concatenate([[0.5], np.clip(error, 0.5, 20100.0), [20100.0]])
    return ends, np.concatenate([[0], np.arange(1, error.size + 1), [error.size]]) / max(n, 1)


def label_distances(axes: Axes, thresholds_km: Sequence[float]) -> None:
    """Make the axes of shares of images within distances.

    Parameters
    ----------
    axes : Axes
    thresholds_km : sequence of float
        Distances that are marked.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

    axes.set(xscale="log", xlim=(0.8, 20100), ylim=(0, 1), xlabel="great-circle distance to the truth (km)")
    axes.set_ylabel("images within this distance")
    distances = [*thresholds_km, 10000.0]
    axes.xaxis.set_major_locator(FixedLocator(distances))
    axes.xaxis.set_major_formatter(FixedFormatter([thousands(distance) for distance in distances]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)


def label_coverage(axes: Axes, height: float) -> None:
    """Make the axes of a P-P curve.

    Parameters
    ----------
    axes : Axes
    height : float
        Where "regions too large" stands, 0..1: clear of the legend.
    """
    from matplotlib.ticker import PercentFormatter

    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the region", ylabel="truths inside the region")
    axes.text(0.03, height, "regions too large", color=GREY, fontsize=9)
    axes.text(0.97, 0.10, "regions too small", color=GREY, fontsize=9, ha="right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_aspect("equal")


def _edges(centres: FloatArray, others: FloatArray) -> FloatArray:
    """Edges of raster cells (n + 1,) from their centres; one cell alone is as wide as those of the other axis."""
    if centres.size == 1:
        width = abs(float(others[1] - others[0])) if others.size > 1 else 1.0
        return np.array([centres[0] - width / 2.0, centres[0] + width / 2.0])
    middle = (centres[:-1] + centres[1:]) / 2.0
    return np.concatenate([[2.0 * centres[0] - middle[0]], middle, [2.0 * centres[-1] - middle[-1]]])


def _turned(place: tuple[float, float], west: float, east: float) -> tuple[float, float]:
    """The place with whole turns added to its longitude where the map has it only so."""
    longitude, latitude = place
    return (longitude if west <= longitude <= east else west + (longitude - west) % 360.0), latitude


def _mass(density: xr.DataArray, latitude: FloatArray) -> FloatArray:
    """Probability of every raster cell; the whole raster's is 1 where the size of raster cells is not known."""
    values = np.nan_to_num(np.asarray(density, dtype=np.float64), nan=0.0)
    if "cell_area_km2" in density.coords:
        return np.asarray(values * np.nan_to_num(np.asarray(density["cell_area_km2"], dtype=np.float64), nan=0.0))
    weight = values * np.cos(np.radians(latitude))[:, None]
    return np.asarray(weight / max(weight.sum(), 1e-300))


def _draw_levels(axes: Axes, density: FloatArray, mass: FloatArray, x_edges: FloatArray, y_edges: FloatArray) -> None:
    """Shade the classes of credible level: the map-maker's picture of a density."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    order = np.argsort(-density, axis=None)
    level = np.empty(density.shape)
    level.flat[order] = np.cumsum(mass.flat[order])
    shown = np.ma.masked_where((level > LEVELS[-1]) | (mass <= 0.0), level)
    colours = ListedColormap([colour.hex for colour in styles.LEVEL_COLOURS])
    norm = BoundaryNorm([0.0, *LEVELS], colours.N)
    axes.pcolormesh(x_edges, y_edges, shown, cmap=colours, norm=norm, alpha=0.8, zorder=2, lw=0)
    for value, colour in zip(LEVELS, styles.LEVEL_COLOURS, strict=True):
        axes.fill([], [], color=colour.hex, alpha=0.8, label=f"{100.0 * value:.0f} %")


def _draw_points(figure: Figure, axes: Axes, points: geopandas.GeoDataFrame) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    outside = _is_outside(points)
    size = np.where(outside, np.nan, points["radius_90_km"].astype(float))
    known = size[np.isfinite(size)]
    least, most = (float(known.min()), float(known.max())) if known.size else (1.0, 10.0)
    norm = LogNorm(max(1e-3, least), max(1.1 * least, most, 2e-3))
    colours = colormaps["cividis_r"].with_extremes(bad="white")
    drawn = axes.scatter(
        points["longitude"],
        points["latitude"],
        c=size,
        norm=norm,
        cmap=colours,
        plotnonfinite=True,
        s=40,
        ec=np.where(outside, _OUTSIDE, "white"),
        lw=np.where(outside, 1.6, 0.7),
        zorder=5,
        label="" if outside.all() else "estimate",
    )
    if outside.any():
        axes.plot([], [], "o", color="white", ms=6, mec=_OUTSIDE, mew=1.6, label="outside what the model knows")
    if not known.size:  # nothing has a colour
        return
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, pad=0.015, label="radius that holds 90 % (km)")
    bar.ax.yaxis.set_major_locator(FixedLocator(round_numbers(*map(float, (norm.vmin or 1.0, norm.vmax or 1.0)))))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1 else thousands(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _is_outside(points: geopandas.GeoDataFrame) -> npt.NDArray[np.bool_]:
    """Tell which rows QGIS greys, too: see `styles.outside_expression`."""
    columns = points.reindex(columns=["in_training_area", "feature_distance"])
    elsewhere = columns["in_training_area"].astype(str).str.lower().isin(["no", "false", "0"])
    return np.asarray(elsewhere | (columns["feature_distance"].astype(float) > styles.UNLIKE_ANY), dtype=np.bool_)


def _draw_errors(axes: Axes, points: geopandas.GeoDataFrame) -> None:
    """A thin line from each estimate to its true place, left out where it would cross +-180."""
    for row in points[["longitude", "latitude", "true_longitude", "true_latitude"]].to_numpy(float):
        if np.isfinite(row).all() and abs(row[0] - row[2]) < 180.0:
            axes.plot(row[[0, 2]], row[[1, 3]], color="#555555", lw=0.7, alpha=0.8, zorder=3)
    axes.plot(points["true_longitude"], points["true_latitude"], "x", color=MARK, ms=5, zorder=4, label="true place")
