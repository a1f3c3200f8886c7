"""Pictures of a training run: curves by step, components that moved, blocks that fail, the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import sphere, vmf
from geo_mvmf.map_axes import CURVE, GREY, MARK, figure_of, frame_of, png, round_numbers, thousands, world_axes

if TYPE_CHECKING:
    import shapely
    from matplotlib.axis import Axis

FloatArray = npt.NDArray[np.float64]

_LOSS = "#2c7fb8"
_START = "#2c7fb8"
_SEEN = 0.02  # of the width of a map: ways that are shorter are drawn longer
_WIDE = 5.0  # the ratio of two distances from which on a scale is logarithmic


def curves_picture(
    steps: pd.DataFrame, validations: pd.DataFrame, best_step: float, *, same_unit: bool = True
) -> bytes:
    """Draw training loss, validation NLL, median error or accuracy, and the learning rate by step.

    Parameters
    ----------
    steps, validations : DataFrame
        Of a `RunRecord`.
    best_step : float
        Of the state that was released; NaN where there is none.
    same_unit : bool
        Whether training loss and validation NLL may share an axis; otherwise each has its own.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> steps = pd.DataFrame({"step": [1.0, 2.0], "loss": [3.0, 2.0], "learning_rate": [1e-3, 1e-3]})
    >>> nothing = pd.DataFrame({"step": [], "nll": [], "median_km": [], "accuracy": []})
    >>> curves_picture(steps, nothing, float("nan"))[1:4]
    b'PNG'
    """
    second = "median_km" if validations["median_km"].notna().any() else "accuracy"
    shown = [True, bool(validations[second].notna().any()), bool(steps["learning_rate"].notna().any())]
    figure, axes = figure_of(8.0, 3.4 + 1.7 * sum(shown[1:]))
    figure.clear()
    heights = [height for height, is_shown in zip((3.0, 1.6, 1.2), shown, strict=True) if is_shown]
    grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0].tolist()
    axes = grid.pop(0)
    alone = "o" if len(steps) == 1 else None  # a line of one point is not to be seen
    axes.plot(
        steps["step"], steps["loss"], marker=alone, color=_LOSS, lw=1.4, label="training loss (with augmentation)"
    )
    above = axes if same_unit else axes.twinx()
    nll = above.plot(validations["step"], validations["nll"], "o-", color=CURVE, ms=4, lw=1.6, label="validation NLL")
    axes.set_ylabel("nats" if same_unit else "training loss: nats,\ncross entropy of cells")
    if not same_unit:
        above.set_ylabel("validation NLL: nats,\nof a density per steradian")
    below = [axes]
    if shown[1]:
        below.append(grid.pop(0))
        factor, label = (1.0, "median error\n(km)") if second == "median_km" else (100.0, "accuracy\n(%)")
        below[-1].plot(validations["step"], factor * validations[second], "o-", color=CURVE, ms=4, lw=1.6)
        below[-1].set_ylabel(label)
        if second == "median_km":
            below[-1].set_yscale("log" if _is_wide(validations[second]) else "linear")
            _distances(below[-1].yaxis, validations[second])
    if shown[2]:
        below.append(grid.pop(0))
        below[-1].plot(steps["step"], steps["learning_rate"], marker=alone, color=GREY, lw=1.4)
        below[-1].set_ylabel("learning\nrate")
        below[-1].set_ylim(bottom=0.0)
    for number, each in enumerate(below):
        each.grid(alpha=0.3)
        if np.isfinite(best_step):
            each.axvline(best_step, color=MARK, lw=0.9, ls="--", label="" if number else "released state")
    shown_lines = axes.get_legend_handles_labels()[0]
    axes.legend(handles=shown_lines if same_unit else [*shown_lines, *nll], fontsize=9)
    below[-1].set_xlabel("step")
    figure.align_ylabels()
    return png(figure)


def moved_picture(start: FloatArray, end: FloatArray, images: npt.NDArray[np.int64]) -> bytes:
    """Draw where mean directions began and where they are: a line for each, a dot at its end.

    Parameters
    ----------
    start, end : ndarray of float64, (C, 3)
        Unit vectors.
    images : ndarray of int64, (C,)
        Training images of each: the size of the dot; components without are grey.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> moved_picture(np.eye(3)[:2], np.eye(3)[1:], np.array([3, 0]))[1:4]
    b'PNG'
    """
    from matplotlib.collections import LineCollection

    first, last = (np.stack(sphere.to_longitude_latitude(each), axis=-1) for each in (start, end))
    used = images > 0
    extent = frame_of(*(last[used] if used.any() else last).T)
    _, axes = figure_axes = world_axes(extent)
    last[:, 0] = extent[0] + (last[:, 0] - extent[0]) % 360.0
    # a line goes the short way, also across 180
    first[:, 0] = last[:, 0] + (first[:, 0] - last[:, 0] + 180.0) % 360.0 - 180.0
    times = _magnification(first, last, extent[1] - extent[0])
    begin = last + times * (first - last)
    axes.add_collection(LineCollection(list(np.stack([begin, last], axis=1)), colors=_START, lw=0.9, zorder=3))
    size = 4.0 + 28.0 * np.sqrt(images / max(float(images.max(initial=1)), 1.0))
    if not used.all():
        idle = "end, no training image in its class"
        axes.scatter(last[~used, 0], last[~used, 1], s=5.0, color="#bbbbbb", zorder=3, label=idle)
    size, name = size[used], "end (larger: more images)"
    axes.scatter(last[used, 0], last[used, 1], s=size, color=CURVE, alpha=0.75, lw=0, zorder=4, label=name)
    longer = f", drawn {times:.0f} times as long" if times > 1.0 else ""
    axes.plot([], [], color=_START, label=f"way from its start{longer}")
    axes.legend(loc="lower left", fontsize=8.5, framealpha=0.95)
    return png(figure_axes[0])


def _magnification(first: FloatArray, last: FloatArray, width: float) -> float:
    """Tell how much longer ways are drawn, so that nine of ten are seen on a map of this width in degrees."""
    usual = float(np.quantile(np.hypot(*(first - last).T), 0.9)) if len(first) else 0.0
    wish = _SEEN * width / max(usual, 1e-9)
    return 1.0 if wish <= 2.0 or usual == 0.0 else float(10.0 ** np.floor(np.log10(wish)) * (1, 2, 5)[_digit(wish)])


def _digit(value: float) -> int:
    """Which of 1, 2 and 5 times a power of ten is the last not beyond a value."""
    leading = value / 10.0 ** np.floor(np.log10(value))
    return int(leading >= 2.0) + int(leading >= 5.0)


def widths_picture(start_log_concentrations: FloatArray, end_log_concentrations: FloatArray) -> bytes:
    """Draw how wide the components were and are: the radius that holds half of each.

    Parameters
    ----------
    start_log_concentrations, end_log_concentrations : ndarray of float64, (C,)

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> widths_picture(np.array([3.0, 5.0]), np.array([4.0, 4.5]))[1:4]
    b'PNG'
    """
    before, after = (half_radius_km(each) for each in (start_log_concentrations, end_log_concentrations))
    both = np.concatenate([before, after])
    spaced, scale = (np.geomspace, "log") if _is_wide(both) else (np.linspace, "linear")
    edges = spaced(max(both.min() * 0.8, 1e-3), both.max() * 1.25, 31).tolist()
    figure, axes = figure_of(8.0, 3.2)
    axes.hist(before, edges, histtype="step", color=_START, lw=1.8, label="before training")
    axes.hist(after, edges, color=CURVE, alpha=0.55, label="after training")
    axes.set(xscale=scale, xlabel="radius that holds half of the component (km)", ylabel="components")
    _distances(axes.xaxis, both)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return png(figure)


def half_radius_km(log_concentrations: FloatArray) -> FloatArray:
    """Give the radius that holds half of a component.

    Parameters
    ----------
    log_concentrations : ndarray of float64, (C,)

    Returns
    -------
    ndarray of float64, (C,)
        Kilometres.

    Examples
    --------
    >>> half_radius_km(np.array([16.0])).round(1).tolist()
    [2.5]
    """
    return np.asarray(vmf.cap_quantile(0.5, log_concentrations) * sphere.EARTH_RADIUS_KM)


def counts_picture(images: npt.NDArray[np.int64]) -> bytes:
    """Draw how many components have how many training images.

    Parameters
    ----------
    images : ndarray of int64, (C,)

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> counts_picture(np.array([0, 1, 5, 90]))[1:4]
    b'PNG'
    """
    figure, axes = figure_of(8.0, 3.0)
    most = max(int(images.max(initial=1)), 1)
    limits = [0, 1, 2, 3, *(round(value) for value in np.geomspace(4, max(most + 1, 5), 16))]
    edges = np.unique(np.array(limits, dtype=np.int64))
    number = np.histogram(images, edges)[0]
    names = [thousands(low) if high - low == 1 else f"{thousands(low)}-{thousands(high - 1)}"
             for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]  # fmt: skip
    colours = [GREY if low == 0 else CURVE for low in edges[:-1].tolist()]
    axes.bar(range(len(number)), number, color=colours, width=0.85)
    axes.set_xticks(range(len(number)), names, rotation=45, ha="right", fontsize=8.5)
    axes.set(xlabel="training images in the class of a component", ylabel="components")
    axes.grid(alpha=0.3, axis="y")
    return png(figure)


def blocks_picture(
    polygons: Sequence[shapely.Geometry], values: FloatArray, *, label: str, is_share: bool = False
) -> bytes:
    """Draw blocks of land, coloured by a figure of their held-out images.

    Parameters
    ----------
    polygons : sequence of MultiPolygon, n
        Longitude and latitude, split at 180.
    values : ndarray of float64, (n,)
        Distances above 0 on a logarithmic scale, or shares in 0..1.
    label : str
        Of the scale.
    is_share : bool

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> import shapely
    >>> blocks_picture([shapely.box(0, 0, 5, 5)], np.array([120.0]), label="median error (km)")[1:4]
    b'PNG'
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter

    rings = [(np.asarray(part.exterior.coords), value) for shape, value in zip(polygons, values, strict=True)
             for part in getattr(shape, "geoms", [shape])]  # fmt: skip
    corners = np.concatenate([ring for ring, _ in rings])
    extent = frame_of(corners[:, 0], corners[:, 1])
    figure, axes = world_axes(extent)
    turned = [np.add(ring, [360.0 if ring[:, 0].mean() < extent[0] else 0.0, 0.0]) for ring, _ in rings]
    low, high = max(float(values.min()), 1e-3), max(float(values.max()), 2e-3)
    scale = LogNorm if _is_wide(values) else Normalize
    norm = Normalize(0.0, 1.0) if is_share else scale(low, max(high, 1.01 * low))
    drawn = PolyCollection(turned, cmap="viridis" if is_share else "viridis_r", norm=norm, lw=0.5, alpha=0.7, zorder=2)
    drawn.set_array(np.array([value for _, value in rings]))
    drawn.set_edgecolor("white")
    axes.add_collection(drawn)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.75, pad=0.015, label=label)
    if is_share:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:.0f} %"))
    else:
        _distances(bar.ax.yaxis, values)
    return png(figure)


def learning_curve_picture(
    images: Sequence[int], nll: Sequence[tuple[float, float, float]], median_km: Sequence[tuple[float, float, float]]
) -> bytes:
    """Draw what heads are worth by the number of training images.

    Parameters
    ----------
    images : sequence of int, k
    nll, median_km : sequence of (value, low, high), k
        Of the held-out images.

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> learning_curve_picture([50, 100], [(2.0, 1.9, 2.1), (1.5, 1.4, 1.6)], [(90.0, 80.0, 99.0)] * 2)[1:4]
    b'PNG'
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    figure, _ = figure_of(8.4, 3.4)
    figure.clear()
    pair = figure.subplots(1, 2)
    for axes, values, name in zip(pair, (nll, median_km), ("NLL (nats)", "median error (km)"), strict=True):
        value, low, high = np.array(values, dtype=np.float64).T
        spread = np.maximum(np.stack([value - low, high - value]), 0.0)
        finite = np.where(np.isfinite(spread), spread, 0.0)
        axes.errorbar(images, value, yerr=finite, fmt="o-", color=CURVE, capsize=3, ms=5, lw=1.6)
        axes.set(xscale="log", xlabel="training images", ylabel=f"{name} of held-out images")
        axes.xaxis.set_major_locator(FixedLocator(list(images)))
        axes.xaxis.set_major_formatter(FixedFormatter([thousands(number) for number in images]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    return png(figure)


def _is_wide(values: npt.ArrayLike) -> bool:
    """Tell whether distances need a logarithmic scale."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known) & (known > 0.0)]
    return bool(known.size) and float(known.max()) > _WIDE * float(known.min())


def _distances(axis: Axis, values: npt.ArrayLike) -> None:
    """Distances in round numbers; the scale of the axis is set already."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known) & (known > 0.0)]
    if _is_wide(known):
        axis.set_major_locator(FixedLocator(round_numbers(0.9 * float(known.min()), 1.1 * float(known.max()))))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value < 10.0 else thousands(value)))
