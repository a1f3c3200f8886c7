"""Draw docs/densities.png: what `grid="auto"` shows of five densities, and one of them smoothed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geo_mvmf import sphere
from geo_mvmf.maps.density import density_raster
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import VmfMixture

HERE = Path(__file__).resolve().parent
# name, longitudes, latitudes, log concentrations, mixing weights, bandwidth_km
CASES = (
    ("90 % within 5 km", [13.40], [52.52], [14.7], [1.0], None),
    ("across longitude 180", [179.2, -178.4, 178.3], [-17.8, -16.2, -18.4], [12.0, 11.0, 13.0], [0.5, 0.3, 0.2], None),
    ("around the north pole", [40.0, 170.0, -70.0], [88.5, 85.0, 83.5], [9.5, 9.0, 10.0], [0.5, 0.3, 0.2], None),
    (
        "a continent",
        [10.0, 25.0, -4.0, 18.0],
        [51.0, 44.0, 40.0, 60.0],
        [5.0, 6.0, 7.0, 6.0],
        [0.4, 0.2, 0.2, 0.2],
        None,
    ),
    ("two continents", [2.35, -74.0], [48.86, 40.7], [9.0, 9.0], [0.6, 0.4], None),
    ("the same, bandwidth_km=300", [2.35, -74.0], [48.86, 40.7], [9.0, 9.0], [0.6, 0.4], 300.0),
)


def main(out: Path) -> None:
    """Draw each density on its own frame."""
    figure = Figure(figsize=(10.5, 7.0), dpi=90)
    FigureCanvasAgg(figure)
    for axes, case in zip(figure.subplots(2, 3).ravel(), CASES, strict=True):
        draw(axes, *case)
    figure.tight_layout()
    figure.savefig(out)
    print(out)


def draw(
    axes: Axes,
    name: str,
    longitude: list[float],
    latitude: list[float],
    log_kappa: list[float],
    weights: list[float],
    bandwidth_km: float | None,
) -> None:
    """Shade one density and say how much of it is shown, and in which raster cells."""
    mixture = VmfMixture(sphere.to_directions(longitude, latitude), log_kappa, np.log([weights]))
    raster = density_raster(mixture, "auto", bandwidth_km=bandwidth_km)
    grid = Grid.like(raster)
    west, south, east, north = grid.bounds
    unit, scale = ("degrees", 1.0) if grid.is_geographic else ("km", 1e-3)
    extent = (west * scale, east * scale, south * scale, north * scale)
    aspect = 1.0 / np.cos(np.radians(0.5 * (south + north))) if grid.is_geographic else 1.0  # square on the ground
    axes.imshow(raster[0], extent=extent, cmap="RdPu", aspect=aspect, interpolation="nearest")
    width, height = grid.transform.a * scale, abs(grid.transform.e) * scale
    axes.set_title(
        f"{name}\n{float(raster.probability_sum[0]):.4f} in {grid.shape[1]} x {grid.shape[0]} cells of\n"
        f"{width:g} x {height:g} {unit}, EPSG:{grid.crs.to_epsg()}",
        fontsize=8,
    )
    axes.tick_params(labelsize=7)


if __name__ == "__main__":
    main(HERE.parent / "docs" / "densities.png")
