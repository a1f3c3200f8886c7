"""CRSs that a GeoTIFF cannot say are refused before anything is computed."""

from pathlib import Path

import numpy as np
import pytest

from geo_mvmf.errors import UsageError
from geo_mvmf.files import geotiff
from geo_mvmf.maps.grid import Grid

ROTATED = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs"


def test_a_rotated_pole_is_refused_and_nothing_is_written(tmp_path):
    grid = Grid.from_bounds(-5.0, -5.0, 5.0, 5.0, 1.0, crs=ROTATED)
    with pytest.raises(UsageError, match=r"a\.tif: a GeoTIFF cannot say the CRS .* write \.nc, or choose another"):
        geotiff.write_density(tmp_path / "a.tif", np.zeros(grid.shape), grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("crs", "west", "south"),
    [(4326, 7, 46), (2056, 2.6e6, 1.2e6), (5514, -8e5, -1.1e6), (2263, 9e5, 2e5), (4807, 2, 50)],
)
def test_what_it_can_say_is_written(crs, west, south):
    geotiff._check_crs(Path("a.tif"), Grid.from_bounds(west, south, west + 10, south + 10, 1.0, crs=crs))


def test_a_crs_that_is_read_back_as_another_is_refused(monkeypatch):
    """The twin whose file says Web Mercator for Lambert's map of France."""
    grid = Grid.from_bounds(6e5, 6e6, 7e5, 7e6, 1e4, crs=2154)
    geotiff._check_crs(Path("a.tif"), grid)
    monkeypatch.setattr(geotiff, "_raster_crs", lambda _: geotiff.rasterio.crs.CRS.from_epsg(3857))
    with pytest.raises(UsageError, match="cannot say the CRS 'EPSG:2154'"):
        geotiff._check_crs(Path("a.tif"), grid)
