"""Pictures: maps of densities and predictions, and one self-contained HTML page.

Everything is drawn offline: the coastline is a small outline (Natural Earth, public domain) that ships with the
package, and every picture is inside the page. File text is escaped before it reaches the page.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.resources
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable

if TYPE_CHECKING:
    import geopandas
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from geo_mvmf.evaluation import Evaluation

LEVEL_COLOURS = {0.5: "#440154", 0.8: "#31688e", 0.9: "#35b779", 0.95: "#fde725"}
_LAND, _SEA, _COAST = "#efece4", "#f7fafc", "#b5ada0"
_LIMITS = (
    "A prediction is a region, not a proof. The point alone says little; read it with its credible region, and "
    "remember that a model knows only the kind of images, and the places, that it was trained on."
)
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.7rem}h2{font-size:1.25rem;margin-top:2rem}img{max-width:100%}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.note{background:#f4f6f8;border-left:4px solid #31688e;padding:.6rem 1rem}
figcaption{font-size:.9rem;color:#555}figure{margin:1rem 0}
"""


def density_picture(
    density: xr.DataArray,
    *,
    title: str = "",
    estimate: tuple[float, float] | None = None,
    truth: tuple[float, float] | None = None,
) -> bytes:
    """Draw one density raster with the outlines of its 50 and 90 % regions.

    Parameters
    ----------
    density : DataArray, (latitude, longitude)
        density_per_km2 of one image on a geographic grid.
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
    longitude, latitude = np.asarray(density["longitude"]), np.asarray(density["latitude"])
    figure, axes = _world_axes(_extent(longitude, latitude))
    _draw_density(axes, np.asarray(density, dtype=np.float64), longitude, latitude)
    if truth is not None:
        axes.plot(*truth, "x", color="black", ms=9, mew=2, label="true place", zorder=6)
    if estimate is not None:
        axes.plot(*estimate, "o", color="#d7263d", ms=7, mec="white", label="estimate", zorder=6)
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(loc="lower left", fontsize=8, framealpha=0.9)
    return _png(figure)


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
    """
    from matplotlib.colors import LogNorm

    good = points[points["longitude"].notna()]
    figure, axes = _world_axes((-180.0, 180.0, -90.0, 90.0))
    if regions is not None and len(regions):
        smallest = regions[regions["level"] == regions["level"].min()]
        smallest.plot(ax=axes, facecolor="#31688e22", edgecolor="#31688e", linewidth=0.6, aspect=None)
    if "true_longitude" in good:
        _draw_errors(axes, good)
    if len(good):
        size = good["radius_90_km"].astype(float).to_numpy()
        norm = LogNorm(max(1.0, np.nanmin(size)), max(10.0, np.nanmax(size)))
        drawn = axes.scatter(
            good["longitude"],
            good["latitude"],
            c=size,
            norm=norm,
            cmap="viridis_r",
            s=36,
            ec="white",
            lw=0.6,
            zorder=5,
        )
        figure.colorbar(drawn, ax=axes, shrink=0.55, pad=0.015, label="radius holding 90 % (km)")
    axes.set_title(title, fontsize=11, loc="left")
    return _png(figure)


def accuracy_picture(evaluation: Evaluation) -> bytes:
    """Draw the share of images within each distance, with its 95 % interval and with chance.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    bytes
        A PNG file.
    """
    figure, axes = _figure(6.4, 3.6)
    error = np.sort(evaluation.error_km[np.isfinite(evaluation.error_km)])
    share = np.arange(1, error.size + 1) / max(evaluation.n, 1)
    axes.step(np.maximum(error, 0.1), share, where="post", color="#31688e", label="share of images")
    radius = np.geomspace(1.0, 20000.0, 200)
    axes.plot(radius, evaluation.chance(radius), "--", color="#888888", label="chance (uniform on the sphere)")
    accuracy = evaluation.accuracy
    spread = np.stack([accuracy.value - accuracy.low, accuracy.high - accuracy.value])
    axes.errorbar(evaluation.thresholds_km, accuracy.value, yerr=np.maximum(spread, 0.0), fmt="o", color="#d7263d")
    axes.set(xscale="log", xlim=(1, 20100), ylim=(0, 1), xlabel="great-circle error (km)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def coverage_picture(evaluation: Evaluation) -> bytes:
    """Draw how often the truth lies inside the p-region against p (P-P plot of the searched probability).

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    bytes
        A PNG file.
    """
    figure, axes = _figure(4.2, 3.8)
    level = np.linspace(0.0, 1.0, 101)
    searched = evaluation.searched_probability[np.isfinite(evaluation.searched_probability)]
    inside = (searched[:, None] <= level).mean(axis=0) if searched.size else np.full(level.size, np.nan)
    band = 1.96 * np.sqrt(level * (1.0 - level) / max(searched.size, 1))
    axes.fill_between(level, level - band, level + band, color="#dddddd", label="calibrated, 95 % band")
    axes.plot(level, inside, color="#31688e", label="this model")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the region", ylabel="share of truths inside")
    axes.legend(fontsize=8)
    return _png(figure)


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    introduction: Sequence[str] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
    tables: Sequence[tuple[str, pd.DataFrame]] = (),
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML page: text, pictures, tables, the run's options and the limits.

    Parameters
    ----------
    path : path
        Ends in .html.
    title : str
        Heading of the page.
    introduction : sequence of str
        Paragraphs of plain text.
    pictures : sequence of (caption, PNG bytes)
    tables : sequence of (caption, DataFrame)
    run : mapping, optional
        Key and value of what made this page.
    overwrite : bool
        Whether an existing page may be replaced.

    Raises
    ------
    OutputError
        If the page exists or cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> write_page(page, title="<b>Album</b>")
    >>> "&lt;b&gt;Album" in page.read_text()
    True
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in introduction]
    parts.append(f'<p class="note">{html.escape(_LIMITS)}</p>')
    parts += [_picture_html(caption, picture) for caption, picture in pictures]
    parts += [
        f"<h2>{html.escape(caption)}</h2>{frame.to_html(index=False, border=0, na_rep='', escape=True)}"
        for caption, frame in tables
    ]
    if run:
        rows = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in sorted(run.items()))
        parts.append(f"<h2>How this was made</h2><table>{rows}</table>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    durable.write_text(path, page, overwrite=overwrite)


def _text(value: object) -> str:
    return html.escape(str(value))


def _picture_html(caption: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


@functools.cache
def _land() -> list[npt.NDArray[np.float64]]:
    """Rings of the land, (n, 2) longitude and latitude."""
    text = importlib.resources.files("geo_mvmf").joinpath("coastlines.geojson").read_text(encoding="utf-8")
    rings = []
    for feature in json.loads(text)["features"]:
        shape = feature["geometry"]
        polygons = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        rings += [np.asarray(polygon[0], dtype=np.float64) for polygon in polygons]
    return rings


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface: no pyplot, no global state, no window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _world_axes(extent: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    from matplotlib.collections import PolyCollection

    west, east, south, north = extent
    middle = np.cos(np.radians((south + north) / 2.0))
    height = float(np.clip(9.0 * (north - south) / (east - west) / max(middle, 0.2), 3.0, 8.0)) + 0.5
    figure, axes = _figure(9.6, height)
    axes.set_facecolor(_SEA)
    axes.add_collection(PolyCollection(_land(), facecolor=_LAND, edgecolor=_COAST, linewidth=0.5, zorder=1))
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude", ylabel="latitude")
    axes.set_aspect(1.0 / max(middle, 0.2))
    axes.grid(alpha=0.25, lw=0.5)
    return figure, axes


def _extent(longitude: npt.NDArray[Any], latitude: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    step_x, step_y = np.abs(np.diff(longitude)).max() / 2, np.abs(np.diff(latitude)).max() / 2
    return (
        float(longitude.min() - step_x),
        float(longitude.max() + step_x),
        max(-90.0, float(latitude.min() - step_y)),
        min(90.0, float(latitude.max() + step_y)),
    )


def _draw_density(
    axes: Axes,
    density: npt.NDArray[np.float64],
    longitude: npt.NDArray[np.float64],
    latitude: npt.NDArray[np.float64],
) -> None:
    """Shade four classes of credible level: the map-maker's picture of a density."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    weight = np.where(np.isfinite(density), density, 0.0) * np.cos(np.radians(latitude))[:, None]
    order = np.argsort(density, axis=None)[::-1]
    level = np.empty(density.size)
    level[order] = np.cumsum(weight.ravel()[order]) / max(weight.sum(), 1e-300)
    shown = np.ma.masked_greater(level.reshape(density.shape), 0.95)
    bounds = [0.0, *LEVEL_COLOURS]
    colours = ListedColormap(list(LEVEL_COLOURS.values()))
    axes.pcolormesh(
        longitude,
        latitude,
        shown,
        cmap=colours,
        norm=BoundaryNorm(bounds, colours.N),
        alpha=0.75,
        zorder=2,
        lw=0,
    )
    for value, colour in LEVEL_COLOURS.items():
        axes.fill([], [], color=colour, alpha=0.75, label=f"{value:.0%} of the probability")


def _draw_errors(axes: Axes, points: geopandas.GeoDataFrame) -> None:
    """A thin line from each estimate to its true place, cut at +-180."""
    for row in points[["longitude", "latitude", "true_longitude", "true_latitude"]].to_numpy(float):
        if np.isfinite(row).all() and abs(row[0] - row[2]) < 180.0:
            axes.plot(row[[0, 2]], row[[1, 3]], color="#555555", lw=0.6, alpha=0.7, zorder=3)
    axes.plot(points["true_longitude"], points["true_latitude"], "x", color="black", ms=4, zorder=4)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
