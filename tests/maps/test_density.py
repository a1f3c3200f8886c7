"""Density rasters: mass on local grids, values by brute force, areas, levels; `test_density_mass` has the globe."""

import math

import numpy as np
import pyproj
import pytest
import xarray as xr

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.maps import charts, density, lattice, levels, runs, stacks
from geo_mvmf.maps.cell_raster import CellRaster
from geo_mvmf.maps.charts import charts_of
from geo_mvmf.maps.cylindrical import CylindricalRaster
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.projected import ProjectedRaster
from geo_mvmf.mixture import CellMixture, VmfMixture

MERCATOR = 20037508.342789244
CYLINDER = (17367530.4451615, 7342230.1364987)  # half width and height of EPSG:6933 down to the poles


def by_brute_force(mixture, grid, cells, splits):
    """Probability of raster cells from splits x splits midpoints each, areas from the midpoints' own corners."""
    inner = (np.arange(splits + 1.0)) / splits
    row, column = np.divmod(np.asarray(cells), grid.shape[1])
    x, y = column[:, None, None] + inner, row[:, None, None] + inner[:, None]
    corners = grid.to_directions(*np.broadcast_arrays(x, y))
    across = corners[:, :-1, 1:] - corners[:, 1:, :-1]
    down = corners[:, 1:, 1:] - corners[:, :-1, :-1]
    areas = 0.5 * np.linalg.norm(np.cross(across, down), axis=-1)  # of a quadrilateral: half the diagonals' product
    x, y = column[:, None, None] + inner[:-1] + 0.5 / splits, row[:, None, None] + inner[:-1, None] + 0.5 / splits
    points = grid.to_directions(*np.broadcast_arrays(x, y))
    values = np.exp(mixture.log_density(points.reshape(-1, 3)))[0].reshape(areas.shape)
    return (values * areas).sum(axis=(1, 2))


class TestLocalMass:
    @pytest.mark.parametrize("log_concentration", [19.0, 16.0, 12.0, 10.0, 8.0])
    @pytest.mark.parametrize(
        ("crs", "bounds", "resolution", "place"),
        [
            (3857, (-MERCATOR, -MERCATOR, MERCATOR, MERCATOR), MERCATOR / 60, (13.0, 70.0)),
            (3857, (1e6, 6e6, 2e6, 7e6), 1e4, (13.4, 50.5)),
            (3995, (-2e6, -2e6, 2e6, 2e6), 5e4, (10.0, 90.0)),
            (3031, (-2e6, -2e6, 2e6, 2e6), 5e4, (-179.99, -88.0)),
            (32601, (2e5, 6e6, 8e5, 6.6e6), 5e3, (-177.0, 57.0)),
            (3832, (1.3e6, -2e6, 5.3e6, 2e6), 5e4, (180.0, 0.0)),  # Mercator about 150 E: 180 lies at 3.3e6
        ],
    )
    def test_one_where_a_local_grid_holds_it_all(
        self, mass_of, mixture_of, crs, bounds, resolution, place, log_concentration
    ):
        grid = Grid.from_bounds(*bounds, resolution, crs=crs)
        directions = sphere.to_directions(*place)
        mixture = mixture_of(directions, log_concentration)
        raster = density.density_raster(mixture, grid)
        reach = 8.0 * math.exp(-0.5 * log_concentration)
        column, row = grid.to_pixels(*place)
        ground = float(np.sqrt(np.nanmax(raster.cell_area_km2))) / sphere.EARTH_RADIUS_KM
        room = min(column, row, grid.shape[1] - column, grid.shape[0] - row) * ground
        if room > 4.0 * reach:
            assert mass_of(raster) == pytest.approx(1.0, abs=1e-6)
        else:
            assert 0.0 < mass_of(raster) < 1.0 + 1e-6


class TestValues:
    @pytest.mark.parametrize("log_concentration", [17.0, 14.0, 11.0, 8.0, 5.0, 1.0])
    @pytest.mark.parametrize(
        "grid",
        [
            Grid.from_bounds(176.0, -4.0, -177.0, 3.0, 0.25),
            Grid.from_bounds(0.0, 84.0, 40.0, 90.0, (2.0, 0.5)),
            Grid((12, 20), (0.5, 0, 170.0, 0, 0.5, -3.0), 4326),  # from south to north
            Grid((20, 20), (0.1, 0.05, 178.0, 0.05, -0.1, 1.0), 4326),  # rotated
            Grid.from_bounds(-5e5, -5e5, 5e5, 5e5, 5e4, crs=3995),
            Grid.from_bounds(2e5, 6e6, 8e5, 6.6e6, 3e4, crs=32601),
        ],
        ids=["across 180", "pole", "upside down", "rotated", "polar", "utm"],
    )
    def test_against_brute_force(self, mixture_of, grid, log_concentration):
        generator = np.random.default_rng(3)
        longitude, latitude = (part.ravel() for part in grid.longitude_latitude())
        chosen = generator.choice(longitude.size, 6)
        directions = sphere.to_directions(longitude[chosen] + 0.04, np.minimum(latitude[chosen] + 0.03, 90.0))
        mixture = mixture_of(directions, log_concentration)
        raster = density.density_raster(mixture, grid)[0]
        found = (raster * raster.cell_area_km2).to_numpy().ravel()
        cells = np.union1d(np.argsort(found)[-4:], generator.choice(found.size, 2))
        expected = by_brute_force(mixture, grid, cells, 200)
        assert found[cells] == pytest.approx(expected, rel=1e-3, abs=3e-5 * expected.max())

    def test_rows_and_lattice_agree(self, edges_of_the_earth):
        """Two ways to the same numbers: runs of raster cells, and nodes of a lattice."""
        grid = Grid.globe(2.0)
        everything = np.arange(len(edges_of_the_earth))
        kappas = np.full(everything.size, 5.5)
        weights = np.full(everything.size, 1.0 / everything.size)
        by_rows = runs.make_runs(edges_of_the_earth, kappas, everything, grid).apply(weights).reshape(grid.shape)
        nodes = lattice.covering(int(lattice.divisions_for(kappas)[0]), -math.pi / 2, math.pi / 2, -math.pi, math.pi)
        samples = lattice.sample_components(edges_of_the_earth, kappas, everything, nodes)
        field = samples.apply(weights).reshape(nodes.rows, nodes.columns)
        by_lattice = lattice.steps_to_grid(nodes, grid).apply(field)
        assert np.abs(by_rows - by_lattice).sum() < 2e-5

    def test_a_local_grid_is_a_cut_out_of_the_globe(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, np.linspace(1.0, 18.0, 10))
        globe = Grid.globe(1.0)
        whole = density.density_raster(mixture, globe)
        for rows, columns in ((slice(0, 30), slice(350, 360)), (slice(60, 120), slice(0, 7))):
            part = density.density_raster(mixture, globe.window(rows, columns))
            expected = whole[:, rows, columns].to_numpy()
            assert part.to_numpy() == pytest.approx(expected, rel=1e-5, abs=1e-8 * float(whole.max()))

    def test_longitudes_from_0_to_360_are_the_same_map(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, 7.0)
        a = density.density_raster(mixture, Grid.globe(2.0))[0].to_numpy()
        b = density.density_raster(mixture, Grid.from_bounds(0.0, -90.0, 360.0, 90.0, 2.0))[0].to_numpy()
        assert np.roll(a, 90, axis=1) == pytest.approx(b, rel=1e-6, abs=1e-9)

    def test_mass_inside_a_local_grid_agrees_with_samples(self, mixture_of):
        generator = np.random.default_rng(11)
        directions = sphere.to_directions(generator.uniform(0, 10, 8), generator.uniform(40, 50, 8))
        mixture = mixture_of(directions, generator.uniform(5.0, 9.0, 8))
        longitude, latitude = sphere.to_longitude_latitude(mixture.sample(200_000, seed=1)[0])
        inside = ((longitude > 2.0) & (longitude < 8.0) & (latitude > 42.0) & (latitude < 47.0)).mean()
        raster = density.density_raster(mixture, Grid.from_bounds(2.0, 42.0, 8.0, 47.0, 0.25))
        error = math.sqrt(inside * (1.0 - inside) / 200_000)
        assert float(raster.probability_sum[0]) == pytest.approx(inside, abs=4.0 * error)

    def test_reuse_gives_each_image_its_own_weights(self, edges_of_the_earth):
        grid = Grid.globe(3.0)
        kappas = np.linspace(2.0, 16.0, 10)
        rasteriser = density.Rasteriser(edges_of_the_earth, kappas, grid)
        parts = [rasteriser.probabilities(np.eye(10)[i]) for i in range(10)]
        weights = np.random.default_rng(0).dirichlet(np.ones(10))
        together = rasteriser.probabilities(weights)
        assert together == pytest.approx(np.tensordot(weights, parts, axes=1), abs=1e-7)

    @pytest.mark.parametrize(("crs", "half"), [(3857, 3e6), (6933, 3e6), (4087, 3e6)])
    def test_cylinders_agree_with_the_way_of_all_other_projections(self, crs, half):
        """By rows and columns, and through charts of the projection: two ways that share no integral."""
        generator = np.random.default_rng(crs)
        grid = Grid.from_bounds(-half, -half, half, half, half / 12, crs=crs)
        directions = sphere.to_directions(generator.uniform(-20, 20, 40), generator.uniform(-20, 20, 40))
        log_kappa = generator.uniform(0.0, 20.0, 40)
        weights = generator.dirichlet(np.ones(40))
        by_rows = CylindricalRaster(directions, log_kappa, grid).probabilities(weights)
        by_charts = ProjectedRaster(directions, log_kappa, grid).probabilities(weights)
        assert np.abs(by_rows - by_charts).sum() < 1e-5
        areas = charts_of(grid).areas_sr() * sphere.EARTH_RADIUS_KM**2
        assert density.cell_area_km2(grid) == pytest.approx(areas, rel=1e-8)

    def test_the_north_is_on_top_however_few_rows_there_are(self, mixture_of):
        peak = mixture_of(sphere.to_directions([10.0], [50.0]), 8.0)
        raster = density.density_raster(peak, Grid.from_bounds(-17e6, -8e6, 17e6, 8e6, (1e6, 8e6), crs=6933))
        north, south = (raster * raster.cell_area_km2)[0].sum("x").to_numpy()
        assert (north, south) == pytest.approx((1.0, 0.0), abs=1e-5)

    @pytest.mark.parametrize("crs", [6933, pytest.param(8857, marks=pytest.mark.hard)])
    def test_narrow_cells_keep_their_probability_where_a_pole_or_a_rim_cuts_raster_cells(self, mixture_of, crs):
        peaks = mixture_of(sphere.to_directions([0.0, 179.5, 20.0], [89.0, 10.0, 70.0]), 9.0)
        grid = Grid.from_bounds(-17.4e6, -8.5e6, 17.4e6, 8.5e6, 5.8e5, crs=crs)
        whole = float(density.density_raster(peaks, grid).probability_sum[0])
        assert float(density.density_raster(peaks.to_cells(0.01), grid).probability_sum[0]) == pytest.approx(
            whole, abs=0.02
        )

    def test_rows_beyond_a_pole_are_no_ground(self, mass_of, mixture_of):
        grid = Grid.from_bounds(-17367530.445, -8e6, 17367530.445, 8e6, 5e5, crs=6933)
        raster = density.density_raster(mixture_of(sphere.to_directions([0.0], [90.0]), 12.0), grid)
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-6)
        assert raster[0, 0].isnull().all()
        assert raster[0, 1].notnull().all()

    def test_single_precision_sums_stay_exact_for_many_components(self):
        generator = np.random.default_rng(2)
        directions = sphere.random_directions(4000, generator)
        raster = CylindricalRaster(directions, np.full(4000, 4.0), Grid.globe(2.0))
        assert raster.probabilities(np.full(4000, 1 / 4000)).sum() == pytest.approx(1.0, abs=2e-7)


class TestAreas:
    @pytest.mark.parametrize("resolution", [0.5, 7.5, 60.0])
    def test_a_globe_is_the_sphere(self, resolution):
        areas = density.cell_area_km2(Grid.globe(resolution))
        assert areas.sum() == pytest.approx(sphere.EARTH_AREA_KM2, rel=1e-9)

    def test_closed_form_of_a_rectangle(self):
        areas = density.cell_area_km2(Grid.from_bounds(170.0, 10.0, -170.0, 30.0, 5.0))
        assert areas.sum() == pytest.approx(float(sphere.rectangle_area_km2(170.0, 10.0, -170.0, 30.0)), rel=1e-12)

    def test_web_mercator_is_a_belt(self):
        grid = Grid.from_bounds(-MERCATOR, -MERCATOR, MERCATOR, MERCATOR, MERCATOR / 100, crs=3857)
        south, north = -85.05112877980659, 85.05112877980659
        belt = float(sphere.rectangle_area_km2(-180.0, south, 180.0, north))
        assert density.cell_area_km2(grid).sum() == pytest.approx(belt, rel=1e-9)

    def test_equal_area_on_the_ellipsoid_differs_on_the_sphere_as_the_two_do(self):
        """EPSG:6933 keeps areas of the ellipsoid; the Earth is a sphere here, so they vary by up to 0.9 per cent."""
        grid = Grid.from_bounds(-CYLINDER[0], -CYLINDER[1], CYLINDER[0], CYLINDER[1], 2e5, crs=6933)
        areas = density.cell_area_km2(grid)
        assert areas.sum() == pytest.approx(sphere.EARTH_AREA_KM2, rel=1e-7)
        cell = abs(grid.transform.a * grid.transform.e) / 1e6
        _, latitude = grid.longitude_latitude()
        geod = pyproj.Geod(ellps="WGS84")
        sine = np.square(np.sin(np.radians(latitude[:, 0])))
        meridian = geod.a * (1 - geod.es) / (1 - geod.es * sine) ** 1.5
        normal = geod.a / np.sqrt(1 - geod.es * sine)
        expected = (sphere.EARTH_RADIUS_KM * 1000) ** 2 / (meridian * normal)
        middle = slice(10, -10)  # a row at the poles is no point
        assert (areas[:, 0] / cell)[middle] == pytest.approx(expected[middle], rel=1e-3)
        assert 0.005 < np.ptp(areas[:, 0] / cell) < 0.015

    def test_stereographic_and_utm_against_small_triangles(self):
        for grid in (
            Grid.from_bounds(-1e6, -1e6, 1e6, 1e6, 1e5, crs=3995),
            Grid.from_bounds(4e5, 5e6, 5e5, 5.1e6, 1e4, crs=32632),
        ):
            uniform = VmfMixture([[0.0, 0.0, 1.0]], [-40.0], [[0.0]])
            cells = np.arange(grid.num_cells)[::7]
            expected = by_brute_force(uniform, grid, cells, 40) * sphere.EARTH_AREA_KM2
            assert density.cell_area_km2(grid).ravel()[cells] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.hard
    def test_outside_the_domain_is_nan_and_what_is_inside_counts(self, edges_of_the_earth, mass_of, mixture_of):
        grid = Grid.from_bounds(-18.1e6, -9.1e6, 18.1e6, 9.1e6, 1e6, crs="ESRI:54009")
        areas = density.cell_area_km2(grid)
        assert np.isnan(areas[0, 0])
        assert np.nansum(areas) == pytest.approx(sphere.EARTH_AREA_KM2, rel=3e-6)
        raster = density.density_raster(mixture_of(edges_of_the_earth, 3.0), grid)
        assert np.array_equal(np.isnan(raster[0]), np.isnan(areas))
        assert mass_of(raster) == pytest.approx(1.0, abs=3e-6)

    def test_charts_are_few_where_a_projection_is_smooth(self):
        grid = Grid.from_bounds(3e5, 5e6, 6e5, 5.3e6, 1000, crs=32632)
        assert len(charts_of(grid).bounds) == 100

    def test_who_waits_is_told_why(self, monkeypatch):
        monkeypatch.setattr(charts, "_LONG_S", -1.0)
        grid = Grid.from_bounds(3e5, 5e6, 6e5, 5.4e6, 1e5, crs=32632)
        with pytest.warns(UserWarning, match=r"EPSG:32632 is not smooth .* made for \(longitudes 6 to 12, latitudes"):
            charts_of(grid)


class TestDataArray:
    def test_dimensions_attributes_and_coordinates(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, 9.0)
        raster = density.density_raster(mixture, Grid.globe(10.0), image_ids=["IMG_1.jpg"])
        assert raster.name == "density_per_km2"
        assert raster.dims == ("image", "latitude", "longitude")
        assert raster.image.to_numpy().tolist() == ["IMG_1.jpg"]
        assert raster.attrs["units"] == "km-2"
        assert raster.latitude.attrs == {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
        assert raster.longitude.to_numpy()[[0, -1]].tolist() == [-175.0, 175.0]
        assert raster.encoding["grid_mapping"] == "spatial_ref"
        assert "crs_wkt" in raster.spatial_ref.attrs
        assert Grid.like(raster) == Grid.globe(10.0)

    def test_projected_dimensions_and_back_to_the_grid(self, edges_of_the_earth, mixture_of):
        grid = Grid.from_bounds(-5e5, -5e5, 5e5, 5e5, 1e5, crs=3995)
        raster = density.density_raster(mixture_of(edges_of_the_earth[:1], 9.0), grid)
        assert raster.dims == ("image", "y", "x")
        assert raster.y.attrs["standard_name"] == "projection_y_coordinate"
        assert Grid.like(raster) == grid
        rotated = Grid((5, 5), (1e4, 1e3, 0, 1e3, -1e4, 0), 3995)
        assert "x" not in density.density_raster(mixture_of(edges_of_the_earth[:1], 9.0), rotated).coords

    @pytest.mark.parametrize(
        ("crs", "x", "unit_of_x", "unit_of_y"),
        [
            ("EPSG:3995", "projection_x_coordinate", "metre", "metre"),
            ("EPSG:2263", "projection_x_coordinate", "0.304800609601219 metre", "0.304800609601219 metre"),
            ("+proj=moll +units=km", "projection_x_coordinate", "1000 metre", "1000 metre"),
            ("EPSG:4267", "longitude", "degrees_east", "degrees_north"),
            ("EPSG:4807", "longitude", "0.0157079632679489 radian", "0.0157079632679489 radian"),
            ("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39 +lon_0=180", "grid_longitude", "degrees", "degrees"),
        ],
    )
    def test_axes_of_any_crs_by_cf(self, mixture_of, crs, x, unit_of_x, unit_of_y):
        raster = density.density_raster(mixture_of([[0, 0, 1.0]], 3.0), Grid((2, 2), (1, 0, -1, 0, -1, 1), crs))
        assert raster.x.attrs == {"standard_name": x, "units": unit_of_x, "axis": "X"}
        y = x.replace("longitude", "latitude").replace("_x_", "_y_")
        assert raster.y.attrs == {"standard_name": y, "units": unit_of_y, "axis": "Y"}

    @pytest.mark.parametrize("crs", ["EPSG:29873", "+proj=ob_tran +o_proj=longlat +o_lat_p=39 +lon_0=18 +type=crs"])
    def test_what_cf_cannot_say_whole_is_said_by_its_wkt_alone(self, mixture_of, crs):
        """The grid of Borneo would lose an angle, a rotated pole without a longitude has no name in pyproj."""
        grid = Grid((2, 2), (1, 0, -1, 0, -1, 1), crs)
        raster = density.density_raster(mixture_of([[0, 0, 1.0]], 3.0), grid)
        assert set(raster.spatial_ref.attrs) == {"crs_wkt", "spatial_ref", "GeoTransform", "name"}
        assert Grid.like(raster) == grid

    def test_the_mean_of_an_album(self, edges_of_the_earth):
        weights = np.random.default_rng(0).dirichlet(np.ones(10), size=3)
        album = VmfMixture(edges_of_the_earth, np.linspace(3, 12, 10), np.log(weights))
        grid = Grid.globe(5.0)
        each = density.density_raster(album, grid)
        mean = density.density_raster(album, grid, combine="mean")
        assert mean.image.to_numpy().tolist() == ["mean"]
        assert mean[0].to_numpy() == pytest.approx(each.mean("image").to_numpy(), rel=1e-5, abs=1e-15)

    def test_the_means_of_groups(self, edges_of_the_earth):
        weights = np.random.default_rng(0).dirichlet(np.ones(10), size=4)
        album = VmfMixture(edges_of_the_earth, np.linspace(3, 12, 10), np.log(weights))
        grid = Grid.globe(15.0)
        each = density.density_raster(album, grid).to_numpy()
        for found in (
            density.density_raster(album, grid, combine="mean", by=["b", None, "a", "b"]),
            density.density_raster(album.to_cells(0.01), grid, combine="mean", by=["b", float("nan"), "a", "b"]),
        ):
            assert found.image.to_numpy().tolist() == ["a", "b", "unknown"]
            assert found.num_images.to_numpy().tolist() == [1, 2, 1]
            assert found.attrs["combine"] == "mean"
            expected = [each[2], (each[0] + each[3]) / 2.0, each[1]]
            areas = found.cell_area_km2.to_numpy()
            assert 0.5 * (np.abs(found.to_numpy() - expected) * areas).sum(axis=(1, 2)).max() < 0.03
        with pytest.raises(ValueError, match="3 labels in by for 4 images"):
            density.density_raster(album, grid, combine="mean", by=[1, 2, 3])
        with pytest.raises(UsageError, match="combine='mean' with it"):
            density.density_raster(album, grid, by=[1, 2, 3, 4])

    def test_refusals(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, 9.0)
        with pytest.raises(ValueError, match="2 image_ids for 1"):
            density.density_raster(mixture, Grid.globe(30.0), image_ids=["a", "b"])
        with pytest.raises(ValueError, match="'sum'"):
            density.density_raster(mixture, Grid.globe(30.0), combine="sum")

    def test_no_images_have_no_mean_but_an_empty_raster(self, edges_of_the_earth, mixture_of):
        nothing = mixture_of(edges_of_the_earth, 9.0)[:0]
        for empty in (nothing, mixture_of(edges_of_the_earth[:1], 9.0).to_cells(max_mass_error=0.1)[:0]):
            assert density.density_raster(empty, Grid.globe(30.0)).shape == (0, 6, 12)
            with pytest.raises(BadInputError, match="'mean' of 0 images"):
                density.density_raster(empty, Grid.globe(30.0), combine="mean")

    def test_many_images_are_made_when_asked_for(self, edges_of_the_earth, monkeypatch):
        pytest.importorskip("dask")
        monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 10_000)
        weights = np.random.default_rng(0).dirichlet(np.ones(10), size=3)
        album = VmfMixture(edges_of_the_earth, np.linspace(3, 12, 10), np.log(weights))
        lazy = density.density_raster(album, Grid.globe(10.0))
        assert type(lazy.data).__module__.startswith("dask")
        monkeypatch.undo()
        now = density.density_raster(album, Grid.globe(10.0))
        assert lazy.compute().equals(now.compute())
        level = levels.credible_level_raster(lazy)
        assert level.compute().equals(levels.credible_level_raster(now))

    def test_components_without_weight_cost_and_give_nothing(self, edges_of_the_earth):
        log_weights = np.full((1, 10), -np.inf)
        log_weights[0, 2] = 0.0
        one = VmfMixture(edges_of_the_earth, np.full(10, 12.0), log_weights)
        raster = density.density_raster(one, Grid.globe(1.0))
        row, column = np.unravel_index(int(np.argmax(raster[0].to_numpy())), raster.shape[1:])
        assert abs(raster.latitude[row]) == 0.5
        assert abs(raster.longitude[column]) == 179.5


class TestCredibleLevel:
    def test_closed_form_of_one_component(self, mixture_of):
        mixture = mixture_of(sphere.to_directions(20.0, 10.0), 6.0)
        grid = Grid.globe(0.25)
        raster = density.density_raster(mixture, grid)
        level = levels.credible_level_raster(raster)[0].to_numpy()
        longitude, latitude = grid.longitude_latitude()
        offset = sphere.great_circle_distance_km(20.0, 10.0, longitude, latitude) / sphere.EARTH_RADIUS_KM
        expected = -np.expm1(-math.exp(6.0) * 2.0 * np.sin(offset / 2.0) ** 2)
        assert np.abs(level - expected).max() < 0.012  # a raster cell holds up to 2 per cent
        assert level.max() == pytest.approx(1.0, abs=1e-6)

    def test_equal_densities_have_equal_levels(self, edges_of_the_earth, mixture_of):
        raster = density.density_raster(mixture_of(edges_of_the_earth, 5.0), Grid.globe(15.0))
        area = raster.cell_area_km2
        level = levels.credible_level_raster(raster.copy(data=xr.full_like(raster, 1.0 / float(area.sum()))))
        assert level.to_numpy() == pytest.approx(1.0)
        halves = xr.where(raster.latitude > 0, 3.0, 1.0) / (2.0 * float(area.sum())) + 0.0 * raster
        level = levels.credible_level_raster(halves.transpose(*raster.dims))
        assert np.unique(level.to_numpy().round(9)).tolist() == [0.75, 1.0]

    def test_the_region_of_a_level_holds_it(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, 5.0)
        raster = density.density_raster(mixture, Grid.globe(1.0))
        level = levels.credible_level_raster(raster)
        held = float((raster * raster.cell_area_km2).where(level <= 0.5).sum())
        assert held == pytest.approx(0.5, abs=4e-3)  # equal cells, such as a pole's, share a level, but for rounding


class TestCells:
    def test_uniform_is_uniform(self, mass_of):
        uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        raster = density.density_raster(uniform, Grid.globe(5.0))
        assert raster[0].to_numpy() == pytest.approx(1.0 / sphere.EARTH_AREA_KM2, rel=1e-2)
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-9)

    @pytest.mark.parametrize("resolution", [30.0, 3.0, 0.5])
    def test_mass_is_kept_whatever_the_sizes(self, edges_of_the_earth, mass_of, mixture_of, resolution):
        mixture = mixture_of(edges_of_the_earth, np.linspace(2.0, 16.0, 10))
        cells = mixture.to_cells(0.05)
        raster = density.density_raster(cells, Grid.globe(resolution))
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-9)
        exact = density.density_raster(mixture, Grid.globe(resolution))
        area = exact.cell_area_km2
        assert 0.5 * float((np.abs(exact - raster) * area).sum()) < 0.1

    def test_each_s2_cell_keeps_its_probability(self):
        grid = Grid.globe(1.0)
        raster = CellRaster(grid, density.cell_area_km2(grid))
        face = np.zeros(6)
        face[3] = 1.0
        alone = raster.probabilities(s2.face_cells(), face)
        assert alone.sum() == pytest.approx(1.0, abs=1e-12)
        longitude, latitude = grid.longitude_latitude()
        inside = s2.contains(s2.face_cells()[3], s2.leaf_ids(sphere.to_directions(longitude, latitude)))
        assert alone[~inside].sum() < 0.01

    def test_local_and_projected_grids(self, mass_of):
        cell = s2.cell_ids(sphere.to_directions(10.0, 85.0), 6)
        one = CellMixture([cell], [1.0], [0, 1])
        polar = Grid.from_bounds(-2e6, -2e6, 2e6, 2e6, 2e4, crs=3995)
        raster = density.density_raster(one, polar)
        assert mass_of(raster) == pytest.approx(1.0, abs=5e-3)
        inside = raster.max() * s2.area_sr(cell) * sphere.EARTH_RADIUS_KM**2
        assert float(inside) == pytest.approx(1.0, rel=1e-9)
