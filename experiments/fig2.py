"""The paper's Figure 2: a von Mises-Fisher density beside a Gaussian density over degrees, and what the latter costs.

    python experiments/fig2.py

Writes docs/experiments/fig2.{md,csv,png}. No data are needed; it takes seconds.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import pandas as pd
import record
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyproj import Transformer
from scipy.special import ndtr

from geo_mvmf import coastlines, sphere, vmf

FloatArray = npt.NDArray[np.float64]

LOG_KAPPA = 6.0
PLACES = (0.0, 30.0, 50.0, 60.0, 70.0, 80.0, 85.0, 89.0)
LONGITUDE = 10.0  # of the table's places; one more lies beside 180 degrees
LEVELS = (0.5, 0.9)
_RADII, _BEARINGS = 2000, 720  # nodes of the integrals
PANELS = ((10.0, 5.0), (-100.0, 50.0), (20.0, 78.0), (178.0, 62.0))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    centres = [*((LONGITUDE, latitude) for latitude in PLACES), (179.0, 50.0)]
    table = pd.DataFrame([compared(*centre) for centre in centres])
    record.write("fig2", page(table), table, picture(), {"inputs": "none"})


def log_gaussian(longitude: FloatArray, latitude: FloatArray, centre: tuple[float, float]) -> FloatArray:
    """Log density per steradian of a Gaussian over degrees: plain differences of coordinates, as tables hold them."""
    sigma = np.exp(-0.5 * LOG_KAPPA)  # radians; near the equator the same as the vMF density
    east, north = np.radians(longitude - centre[0]), np.radians(latitude - centre[1])
    flat = -0.5 * (east**2 + north**2) / sigma**2 - np.log(2.0 * np.pi * sigma**2)
    return flat - np.log(np.cos(np.radians(latitude)))


def nodes(centre: tuple[float, float]) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Nodes around a place by equal shares of the vMF density: longitude, latitude, vMF log density, weight (sr)."""
    share = (np.arange(_RADII) + 0.5) / _RADII
    kappa = np.exp(LOG_KAPPA)
    angle = vmf.cap_quantile(share, LOG_KAPPA)
    log_density = vmf.log_normaliser(LOG_KAPPA) - 2.0 * kappa * np.sin(0.5 * angle) ** 2
    bearing = (np.arange(_BEARINGS) + 0.5) * 360.0 / _BEARINGS
    longitude, latitude = sphere.destination(*centre, bearing[None, :], (angle * sphere.EARTH_RADIUS_KM)[:, None])
    weight = np.exp(-log_density) / (_RADII * _BEARINGS)
    wide = np.broadcast_to(log_density[:, None], longitude.shape)
    return longitude, latitude, wide, np.broadcast_to(weight[:, None], longitude.shape)


def compared(longitude: float, latitude: float) -> dict[str, float]:
    """How the Gaussian differs from the vMF density of the same width."""
    centre = (longitude, latitude)
    where_longitude, where_latitude, log_vmf, weight = nodes(centre)
    log_flat = log_gaussian(where_longitude, where_latitude, centre)
    sigma = np.degrees(np.exp(-0.5 * LOG_KAPPA))
    half_width = sigma * np.sqrt(-2.0 * np.log1p(-LEVELS[0]))  # degrees, of the 50 % contour
    width = sphere.great_circle_distance_km(longitude, latitude, longitude + half_width, latitude)
    height = sphere.great_circle_distance_km(longitude, latitude, longitude, min(latitude + half_width, 90.0))
    difference = np.clip(1.0 - np.exp(log_flat - log_vmf), 0.0, None)  # where the vMF density is the larger one
    return {
        "longitude": longitude,
        "latitude": latitude,
        "vmf_radius_50_km": float(vmf.cap_quantile(LEVELS[0], LOG_KAPPA)) * sphere.EARTH_RADIUS_KM,
        "gaussian_half_width_50_km": float(width),
        "gaussian_half_height_50_km": float(height),
        "gaussian_off_the_map": off_the_map(centre, sigma),
        "total_variation": float(np.sum(difference * np.exp(log_vmf) * weight)),
        "nats_lost": float(np.sum((log_vmf - log_flat) * np.exp(log_vmf) * weight)),
    }


def off_the_map(centre: tuple[float, float], sigma: float) -> float:
    """Share of the Gaussian beyond a pole or beyond 180 degrees, where there is no place."""
    inside = [
        ndtr((limit - at) / sigma) - ndtr((-limit - at) / sigma)
        for at, limit in zip(centre, (180.0, 90.0), strict=True)
    ]
    return float(1.0 - inside[0] * inside[1])


def page(table: pd.DataFrame) -> str:
    """The text."""
    lines = [
        [
            f"{row.latitude:.0f}° N, {row.longitude:.0f}° E",
            f"{row.vmf_radius_50_km:.0f}",
            f"{row.gaussian_half_width_50_km:.0f} x {row.gaussian_half_height_50_km:.0f}",
            f"{row.gaussian_off_the_map:.1%}",
            f"{row.total_variation:.3f}",
            f"{row.nats_lost:.2f}",
        ]
        for row in table.itertuples()
    ]
    head = (
        "place", "50 % contour of vMF: radius, km", "of the Gaussian: half width x half height, km",
        "Gaussian's mass off the map", "total variation", "nats lost by using it",
    )  # fmt: skip
    sigma = np.degrees(np.exp(-0.5 * LOG_KAPPA))
    return f"""# Figure 2: a Gaussian over degrees is no density of places

![vMF density and Gaussian at four places](fig2.png)

Both densities have log kappa {LOG_KAPPA:g}: the Gaussian's standard deviation is {sigma:.2f} degrees, so that at the
equator they are the same. Left in each pair: von Mises-Fisher. Right: the Gaussian over longitude and latitude.
Lines hold 50 and 90 % of the probability, in an orthographic view from above the place.

{record.rows(head, lines)}

"Total variation" is the largest difference of the probabilities of any region. "Nats lost" is the mean negative
log-likelihood of places drawn from the vMF density under the Gaussian, less that under the vMF density itself.

**Against the paper.** Its statement holds: the contours of the vMF density are circles of one radius everywhere, those
of the Gaussian are narrowed by the cosine of the latitude, cut at +-180 degrees and lost beyond the poles. The paper
says that the Gaussian "becomes elongated far from the equator": on the ground it is narrowed from west to east, and
elongated only in comparison. A trained Gaussian would choose a larger deviation in longitude at one latitude; no single
one does for all. The script of the authors draws exp(-distance), which is no Gaussian; here it is one. The last pair
shows what a model pays that puts a place at 179 degrees: a third of its probability lies where no map has a place, so
that no contour of 90 % exists."""


def picture() -> Figure:
    """Four places, two densities each, seen from straight above."""
    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    axes = figure.subplots(2, 4)
    for number, centre in enumerate(PANELS):
        row, column = divmod(number, 2)
        for which, name in enumerate(("von Mises-Fisher", "Gaussian over degrees")):
            panel = axes[row, 2 * column + which]
            draw(panel, centre, gaussian=bool(which))
            east, north = centre
            panel.set_title(f"{name}\n{abs(east):.0f}° {'W' if east < 0 else 'E'}, {north:.0f}° N", fontsize=9)
    return figure


def draw(axes: Axes, centre: tuple[float, float], *, gaussian: bool) -> None:
    """Density, contours and coasts within 1,600 km."""
    reach = 1600.0
    to_map = Transformer.from_crs(
        "EPSG:4326",
        f"+proj=ortho +lon_0={centre[0]} +lat_0={centre[1]} +R={sphere.EARTH_RADIUS_KM * 1e3}",
        always_xy=True,
    )
    side = np.linspace(-reach, reach, 400)
    x, y = np.meshgrid(side, side)
    longitude, latitude = to_map.transform(1e3 * x, 1e3 * y, direction="INVERSE")
    if gaussian:
        log_density = log_gaussian(longitude, latitude, centre)
    else:
        far = sphere.great_circle_distance_km(*centre, longitude, latitude) / sphere.EARTH_RADIUS_KM
        log_density = vmf.log_normaliser(LOG_KAPPA) - 2.0 * np.exp(LOG_KAPPA) * np.sin(far / 2.0) ** 2
    area = 1.0 / np.cos(np.hypot(x, y) / sphere.EARTH_RADIUS_KM)  # nearly: of a pixel of this view on the ground
    density = np.exp(log_density)
    axes.imshow(density, extent=(-reach, reach, -reach, reach), origin="lower", cmap="cividis")
    order = np.sort(density.ravel())[::-1]
    held = np.cumsum((density * area).ravel()[np.argsort(density.ravel())[::-1]])
    held *= (2.0 * reach / (side.size - 1) / sphere.EARTH_RADIUS_KM) ** 2
    reached = [level for level in sorted(LEVELS, reverse=True) if held[-1] > level]
    levels = [order[np.searchsorted(held, level)] for level in reached]
    axes.contour(x, y, density, levels=levels, colors="white", linewidths=1.2)
    seam = np.stack([np.full(91, 180.0), np.linspace(0.0, 90.0, 91)], axis=1)
    for line in [*coastlines.land(), *([seam] if gaussian else [])]:
        east, north = to_map.transform(*line.T)
        east, north = (np.where(np.isfinite(each), each / 1e3, np.nan) for each in (east, north))
        axes.plot(east, north, color="#d0d0d0", linewidth=0.5)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")


if __name__ == "__main__":
    main()
