"""Density rasters in every class of CRS against an independent reference, for random mixtures.

The reference knows nothing of charts, lattices and runs. A component narrower than a quarter of a raster cell is a
sunflower of 65,536 equal masses, each put into the raster cell where the projection says that it lies; a wider one is
integrated over every raster cell with 16 x 16 Gauss-Legendre nodes, whose areas are finite differences of the inverse
projection. Both err by less than 3e-4 of a component's mass.
"""

import functools
import math

import numpy as np
import pytest

from geo_mvmf import sphere
from geo_mvmf.maps import density
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import VmfMixture

MERCATOR = 20037508.342789244
CYLINDER = (17367530.4451615, 7342230.1364987)  # half width and height of EPSG:6933 down to the poles
DISK = 12774000.0  # a little more than the radius of a polar laea map of the whole Earth
# mass before any normalisation; components of log kappa 20 err by 3e-5 at the rim of the disk, which is one place, and
# by 1e-3 on the pole lines of Equal Earth
GLOBAL = {
    "longitude, latitude": 1e-6,
    "equal-area to the poles": 1e-6,
    "whole Earth about a pole": 3e-5,
    "Equal Earth": 2e-3,
}
SUNFLOWER = 1 << 16
NODES = 16
GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


def grids(cells):
    """A grid of about cells x cells in each class of CRS, and where its components lie: centre and reach in degrees."""
    laea = "+proj=laea +lat_0=-33 +lon_0=179 +datum=WGS84 +units=m"
    whole = "+proj=laea +lat_0=90 +lon_0=0 +datum=WGS84 +units=m"
    square = Grid.from_bounds
    x, y = CYLINDER
    return {
        "longitude, latitude": (Grid.globe(180.0 / cells), None),
        "web mercator": (square(-MERCATOR, -MERCATOR, MERCATOR, MERCATOR, 2 * MERCATOR / cells, 3857), None),
        "equal-area to the poles": (square(-x, -y, x, y, (2 * x / cells, 2 * y / cells), 6933), None),
        "local equal-area": (square(-1e6, -1e6, 1e6, 1e6, 2e6 / cells, laea), (179.0, -33.0, 12.0)),
        "polar stereographic": (square(-2e6, -2e6, 2e6, 2e6, 4e6 / cells, 3031), (0.0, -90.0, 25.0)),
        "utm": (square(2e5, 6e6, 8e5, 6.6e6, 6e5 / cells, 32601), (-177.0, 57.0, 4.0)),
        "Equal Earth": (square(-17.4e6, -8.5e6, 17.4e6, 8.5e6, 34.8e6 / cells, 8857), None),
        "whole Earth about a pole": (square(-DISK, -DISK, DISK, DISK, 2 * DISK / cells, whole), None),
    }


CLASSES = list(grids(4))


def random_components(number, around, generator):
    """Mean directions and log concentrations 0..20; a quarter lies at poles, at +-180 or next to them."""
    if around is None:
        directions = sphere.random_directions(number, generator)
        edges = generator.random(number) < 0.25
        longitude = generator.choice([180.0, -180.0, 179.9999, -179.95, 0.0], number)
        latitude = generator.choice([90.0, -90.0, 89.97, -89.99, 0.0, 30.0], number)
        directions[edges] = sphere.to_directions(longitude, latitude)[edges]
    else:
        *centre, reach = around
        offset = reach * sphere.EARTH_RADIUS_KM * math.pi / 180.0 * np.sqrt(generator.random(number))
        bearing = generator.uniform(0.0, 360.0, number)
        directions = sphere.to_directions(*sphere.destination(centre[0], centre[1], bearing, offset))
        directions[0] = sphere.to_directions(*centre)
    return directions, generator.uniform(0.0, 20.0, number)


class Reference:
    """What components give to raster cells, one by one."""

    def __init__(self, grid):
        self.grid = grid
        rows, columns = grid.shape
        x, w = np.polynomial.legendre.leggauss(NODES)
        column = (np.arange(columns)[:, None] + 0.5 * (x + 1.0)).ravel()
        row = (np.arange(rows)[:, None] + 0.5 * (x + 1.0)).ravel()
        column, row = np.meshgrid(column, row)
        step = 1e-4
        self.nodes = grid.to_directions(column, row)
        across = grid.to_directions(column + step, row) - grid.to_directions(column - step, row)
        down = grid.to_directions(column, row + step) - grid.to_directions(column, row - step)
        areas = np.linalg.norm(np.cross(across, down), axis=-1) / (4.0 * step * step)
        weights = np.multiply.outer(np.tile(0.5 * w, rows), np.tile(0.5 * w, columns))
        self.areas = areas * weights
        cells = self.areas.reshape(rows, NODES, columns, NODES)
        self.is_whole = np.isfinite(cells).all(axis=(1, 3))  # not cut by the rim of the domain
        sides = np.sqrt(np.nan_to_num(cells).sum(axis=(1, 3)))
        self.side = float(np.median(sides[self.is_whole]))

    def component(self, direction, log_kappa):
        if math.exp(-0.5 * log_kappa) < 0.25 * self.side:
            return self.sunflower(direction, log_kappa), True
        return self.by_nodes(direction, log_kappa), False

    def sunflower(self, direction, log_kappa):
        # many meridians meet at a pole, and cut a flower there into many pieces
        seeds = SUNFLOWER << 4 if abs(direction[2]) > 0.98 and self.grid.num_cells > 200 else SUNFLOWER
        kappa, number = math.exp(log_kappa), np.arange(seeds)
        height = -np.log1p((number + 0.5) / seeds * math.expm1(-2.0 * kappa)) / kappa  # 1 - cos of the angle
        sine = np.sqrt(height * (2.0 - height))
        east, north = sphere.tangent_basis(direction)
        turn = GOLDEN_ANGLE * number
        points = (1.0 - height)[:, None] * direction
        points = points + sine[:, None] * (np.cos(turn)[:, None] * east + np.sin(turn)[:, None] * north)
        column, row = self.grid.to_pixels(*sphere.to_longitude_latitude(points))
        rows, columns = self.grid.shape
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        cell = row[inside].astype(int) * columns + column[inside].astype(int)
        return np.bincount(cell, minlength=rows * columns).reshape(rows, columns) / seeds

    def by_nodes(self, direction, log_kappa):
        kappa = math.exp(log_kappa)
        norm = kappa / (2.0 * math.pi * -math.expm1(-2.0 * kappa))
        square = np.square(self.nodes - direction).sum(axis=-1)
        values = norm * np.exp(-0.5 * kappa * square) * self.areas
        rows, columns = self.grid.shape
        return values.reshape(rows, NODES, columns, NODES).sum(axis=(1, 3))


@functools.cache
def case(name, cells, components, images):
    """A grid, an album of random mixtures, its probabilities and those of the reference, (images, rows, columns)."""
    generator = np.random.default_rng(CLASSES.index(name))
    grid, around = grids(cells)[name]
    directions, log_kappa = random_components(components, around, generator)
    weights = np.zeros((images, components))
    for row in weights:
        chosen = generator.choice(components, generator.integers(1, 10), replace=False)
        row[chosen] = generator.dirichlet(np.ones(chosen.size))
    with np.errstate(divide="ignore"):
        album = VmfMixture(directions, log_kappa, np.log(weights))
    raster = density.density_raster(album, grid)
    reference = Reference(grid)
    parts = [reference.component(*one) for one in zip(directions, log_kappa, strict=True)]
    expected = np.tensordot(weights, np.array([part for part, _ in parts]), axes=1)
    return grid, album, raster, np.nan_to_num(expected), reference.is_whole


def total_variation(probabilities, expected, is_whole):
    """Half the sum of differences; raster cells that the rim cuts are for the mass to judge."""
    return 0.5 * np.abs(np.nan_to_num(probabilities) - expected)[:, is_whole].sum(axis=1)


def check(name, cells, components, images):
    _, _, raster, expected, is_whole = case(name, cells, components, images)
    found = (raster * raster.cell_area_km2).to_numpy()
    assert total_variation(found, expected, is_whole).max() < 1e-3
    masses = raster.probability_sum.to_numpy()
    if name in GLOBAL:
        assert np.abs(masses - 1.0).max() < GLOBAL[name]
    else:
        assert np.abs(masses - expected.sum(axis=(1, 2))).max() < 1e-3
        assert masses.max() < 1.0 + 1e-6


SLOW = ("Equal Earth", "whole Earth about a pole")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.hard) if name in SLOW else name for name in CLASSES]
)


@EACH
def test_random_mixtures(name):
    check(name, 9, 12, 24)


@pytest.mark.hard
@pytest.mark.parametrize("name", CLASSES)
def test_a_thousand_random_mixtures(name):
    check(name, 12 if name == "whole Earth about a pole" else 24, 200, 1000)


@EACH
def test_the_twin_that_samples_the_middles_is_caught(name):
    grid, album, raster, expected, is_whole = case(name, 9, 12, 24)
    middles = sphere.to_directions(*grid.longitude_latitude()).reshape(-1, 3)
    known = np.isfinite(middles[:, 0])
    twin = np.zeros((len(album), grid.num_cells))
    twin[:, known] = np.exp(album.log_density(middles[known]))
    twin = twin.reshape(-1, *grid.shape) * np.nan_to_num(raster.cell_area_km2.to_numpy()) / sphere.EARTH_RADIUS_KM**2
    assert np.median(total_variation(twin, expected, is_whole)) > 0.02


@pytest.mark.parametrize("name", ["local equal-area", "utm", "polar stereographic"])
def test_mass_inside_local_grids_against_samples(name):
    grid, album, raster, _, _ = case(name, 9, 12, 24)
    for image in range(3):
        places = sphere.to_longitude_latitude(album[image : image + 1].sample(40_000, seed=image)[0])
        column, row = grid.to_pixels(*places)
        rows, columns = grid.shape
        share = float(((column >= 0) & (column < columns) & (row >= 0) & (row < rows)).mean())
        error = math.sqrt(max(share * (1.0 - share), 1e-4) / 40_000)
        assert float(raster.probability_sum[image]) == pytest.approx(share, abs=4.5 * error)


@pytest.mark.parametrize(
    ("log_kappa", "allowed"),
    [(-3.0, 1e-6), (4.0, 1e-6), (8.0, 1e-6), (14.0, 1e-6), pytest.param(20.0, 4e-5, marks=pytest.mark.hard)],
)
def test_the_rim_of_a_map_of_the_whole_earth_is_one_place(log_kappa, allowed):
    """A component there lies around all of the map. The twin that has no strips had 2.3 times its mass."""
    grid, _ = grids(9)["whole Earth about a pole"]
    south = density.density_raster(VmfMixture([[0.0, 0.0, -1.0]], [log_kappa], [[0.0]]), grid)
    assert float(south.probability_sum[0]) == pytest.approx(1.0, abs=allowed)
    around = (south * south.cell_area_km2)[0].to_numpy()
    assert np.nansum(around[0]) == pytest.approx(np.nansum(around[-1]), rel=1e-4)
