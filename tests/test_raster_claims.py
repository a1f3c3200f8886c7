"""Claims that georeferenced rasters make by their own transform: judged after predicting, never used."""

import dataclasses

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image

import geo_mvmf
from geo_mvmf.inputs.scenes import open_scene
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.maps import summaries


@pytest.fixture(scope="module")
def chip_bundle(bundle):
    return dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, ground_km=80.0))


def write_scene(path, east):
    """The same noise, 120 km wide, whose georeferencing says that it lies so many metres east in zone 32."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 60, 60), np.uint8)
    transform = rasterio.Affine(2000.0, 0.0, 440_000.0 + east, 0.0, -2000.0, 5_600_000.0)
    with rasterio.open(
        path, "w", driver="GTiff", height=60, width=60, count=3, dtype="uint8", crs="EPSG:32632", transform=transform
    ) as file:
        file.write(noise)


def test_rasters_are_compared_with_their_own_place(chip_bundle, tmp_path):
    write_scene(tmp_path / "here.tif", 0.0)
    write_scene(tmp_path / "moved.tif", 200_000.0)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    names = ["here.tif", "moved.tif", "photo.png"]
    table = read_image_table(pd.DataFrame({"path": names}), root=tmp_path, claimed_from="raster")
    predictions = geo_mvmf.predict(chip_bundle, table)
    rows = predictions.rows
    assert rows["claimed_longitude"].notna().tolist() == [True, True, False]
    for row, name in enumerate(names[:2]):
        with open_scene(tmp_path / name) as scene:
            longitude, latitude = scene.centre
        assert rows["claimed_longitude"][row] == pytest.approx(longitude, abs=1e-9)
        assert rows["claimed_latitude"][row] == pytest.approx(latitude, abs=1e-9)
        level = summaries.at_truth(predictions.mixture_of([row]), [longitude], [latitude])["searched_probability"][0]
        assert rows["claimed_level"][row] == pytest.approx(level, abs=1e-3)
    assert rows["claimed_longitude"][1] - rows["claimed_longitude"][0] > 2.0
    plain = geo_mvmf.predict(chip_bundle, read_image_table(pd.DataFrame({"path": names}), root=tmp_path)).rows
    pd.testing.assert_frame_equal(rows[plain.columns], plain)  # the claim is judged, never used
    assert not {"claimed_longitude", "claimed_level"} & set(plain)


def test_a_claim_is_the_level_of_the_smallest_region_that_reaches_it(tmp_path):
    """Regions of a level just below do not hold the place, those just above do; the twin takes the level itself."""
    mixture = geo_mvmf.VmfMixture([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [6.0, 8.0], np.log([[0.6, 0.4]]))
    for longitude, latitude in ((2.0, 1.0), (90.5, 0.7)):
        level = float(summaries.at_truth(mixture, [longitude], [latitude])["searched_probability"][0])
        found = geo_mvmf.credible_regions(mixture, (level - 0.02, level + 0.02), max_mass_error=5e-3)
        place = geopandas.points_from_xy([longitude], [latitude])[0]
        assert found.sort_values("level").geometry.contains(place).tolist() == [False, True]
