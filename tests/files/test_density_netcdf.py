import dask.array
import h5py
import numpy as np
import pytest
import xarray

from geo_mvmf.errors import UsageError
from geo_mvmf.files.stores import write_density_netcdf


def make_density(images=3, lazy=False):
    values = np.random.default_rng(0).random((images, 20, 40)).astype(np.float32)
    latitude, longitude = np.linspace(85.5, -85.5, 20), np.linspace(-175.5, 175.5, 40)
    return xarray.DataArray(
        dask.array.from_array(values, chunks=(1, 7, 40)) if lazy else values,
        dims=("image", "latitude", "longitude"),
        coords={
            "image": [f"Ærø {i}.jpg" for i in range(images)],
            "latitude": latitude,
            "longitude": longitude,
            "probability_sum": ("image", np.ones(images)),
            "cell_area_km2": (("latitude", "longitude"), np.ones((20, 40))),
            "spatial_ref": xarray.DataArray(0, attrs={"grid_mapping_name": "latitude_longitude", "crs_wkt": "GEOGCRS"}),
        },
        name="density_per_km2",
        attrs={"cell_measures": "area: cell_area_km2"},
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_it_comes_back_with_its_coordinates_and_cf_attributes(tmp_path, lazy):
    density = make_density(lazy=lazy)
    path = write_density_netcdf(tmp_path / "a.nc", density)
    with xarray.open_dataset(path, engine="h5netcdf", decode_coords="all") as back:
        found = back["density_per_km2"]
        np.testing.assert_array_equal(found.to_numpy(), density.to_numpy())
        assert found.dims == density.dims
        assert set(found.coords) == set(density.coords)
        assert found.attrs["units"] == "km-2"
        assert found.attrs["cell_methods"] == "area: mean"
        ids = [v.decode() if isinstance(v, bytes) else v for v in found["image"].values.tolist()]
        assert ids == density["image"].values.tolist()
        assert found["latitude"].attrs["units"] == "degrees_north"
        assert found["latitude"].attrs["axis"] == "Y"
        assert back.attrs["Conventions"] == "CF-1.11"
        assert back.attrs["source"].startswith("geo_mvmf ")
        assert found.encoding["grid_mapping"] == "spatial_ref"
        assert back["spatial_ref"].attrs["crs_wkt"] == "GEOGCRS"


def test_every_value_has_a_checksum_and_missing_is_nan(tmp_path):
    density = make_density()
    density[1, 2, 3] = np.nan
    path = write_density_netcdf(tmp_path / "a.nc", density)
    with h5py.File(path) as file:
        assert file["density_per_km2"].fletcher32
        assert np.isnan(file["density_per_km2"].fillvalue)
        assert np.isnan(file["density_per_km2"][1, 2, 3])


def test_each_chunk_of_a_lazy_array_is_computed_once(tmp_path):
    seen = []

    def compute(block, block_info=None):
        seen.append(tuple(block_info[0]["chunk-location"]) if block_info else None)
        return block

    lazy = make_density(lazy=True)
    counted = lazy.copy(data=lazy.data.map_blocks(compute, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)))
    write_density_netcdf(tmp_path / "a.nc", counted)
    places = [place for place in seen if place is not None]
    assert len(places) == len(set(places)) == 3 * 3


def test_levels_and_single_maps_and_projected_grids(tmp_path):
    level = make_density(1)[0].rename("credible_level").drop_vars("image")
    level = level.rename(latitude="y", longitude="x")
    path = write_density_netcdf(tmp_path / "a.nc", level)
    with xarray.open_dataset(path, engine="h5netcdf") as back:
        assert back["credible_level"].attrs["units"] == "1"
        assert back["credible_level"].attrs["valid_range"].tolist() == [0.0, 1.0]
        assert back["x"].attrs["standard_name"] == "projection_x_coordinate"


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.nc"):
        write_density_netcdf(tmp_path / "a.tif", make_density())
    with pytest.raises(UsageError, match="no name"):
        write_density_netcdf(tmp_path / "a.nc", make_density().rename(None))
