"""QGIS itself, without a window: files open, bring their styles and look as intended."""

import functools
import json
import os
import subprocess
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely

from geo_mvmf import sphere
from geo_mvmf.files import geotiff, vector
from geo_mvmf.maps.density import cell_area_km2
from geo_mvmf.maps.grid import Grid

PROBE = Path(__file__).with_name("qgis_probe.py")
LAND = (236, 232, 220)


@functools.cache
def qgis_python():
    """The Python that QGIS belongs to; Debian and Ubuntu: the system's own."""
    for candidate in (os.environ.get("QGIS_PYTHON"), "/usr/bin/python3"):
        if candidate and Path(candidate).exists():
            command = [candidate, "-I", "-c", "import qgis.core; print(qgis.core.Qgis.QGIS_VERSION)"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return candidate
    return None


def look(tmp_path, layers, extent, places=()):
    python = qgis_python()
    if python is None:
        reason = (
            "QGIS is not installed (packages python3-qgis and qgis-providers; or set QGIS_PYTHON to its interpreter)"
        )
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but CI must have it")
        pytest.skip(reason)
    request = {
        "layers": list(map(str, layers)),
        "extent": extent,
        "places": places,
        "picture": str(tmp_path / "map.png"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    profile = tmp_path / "profile"
    profile.mkdir(mode=0o700)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GDAL", "PROJ"))}
    own = {"XDG_RUNTIME_DIR": str(profile), "QGIS_CUSTOM_CONFIG_PATH": str(profile), "QT_QPA_PLATFORM": "offscreen"}
    command = [python, "-I", str(PROBE), str(tmp_path / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | own, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    assert (tmp_path / "map.png").stat().st_size > 1000
    return json.loads(done.stdout)


def make_album(folder):
    points = geopandas.GeoDataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "path": ["day 1/Ærø #1.jpg", "/elsewhere/b.jpg", "c.jpg", "d.jpg"],
            "filename": ["Ærø #1.jpg", 'b "&lt;".jpg', "<img src=x onerror=alert(1)>.jpg", "d.jpg"],
            "status": ["ok", "ok", "ok", "missing"],
            "message": pd.Series([None, None, None, "no such file"], dtype=object),
            "radius_90_km": [0.5, 3000.0, np.nan, np.nan],
            "area_90_km2": [1.0, 1e8, np.nan, np.nan],
            "error_km": [12.5, np.nan, np.nan, np.nan],
        },
        geometry=[shapely.Point(5, 5), shapely.Point(15, 5), shapely.Point(25, 5), None],
        crs="EPSG:4326",
    )
    regions = geopandas.GeoDataFrame(
        {"image_id": ["a", "a"], "level": [0.5, 0.9], "area_km2": [1.0, 2.0]},
        geometry=[shapely.Point(15, 20).buffer(4), shapely.Point(15, 20).buffer(8)],
        crs="EPSG:4326",
    )
    run = {"root": "/photos of 'mine'", "bundle": "0f" * 32}
    return vector.write_layers(folder / "album.gpkg", {"points": points, "regions": regions}, run=run)[0]


@pytest.mark.hard
def test_the_geopackage_opens_styled(tmp_path):
    album = make_album(tmp_path)
    layers = [f"{album}|layername={name}" for name in ("points", "regions", "run")]
    places = [(5, 5), (15, 5), (25, 5), (15, 20), (15, 26.5), (35, 28)]
    seen = look(tmp_path, layers, (0, 0, 40, 30), places)
    points, regions, run = seen["layers"]
    assert seen["errors"] == []

    assert (points["valid"], points["count"], points["crs"]) == (True, 4, "EPSG:4326")
    assert points["renderer"] == regions["renderer"] == "QgsRuleBasedRenderer"
    assert "within 25 km" in points["legend"]
    assert points["aliases"]["radius_90_km"] == "Radius holding 90 % (km)"
    assert points["widgets"]["path"] == "ExternalResource"
    assert regions["legend"] == ["50 % of the probability", "90 % of the probability"]
    assert (run["valid"], run["count"]) == (True, 2)

    certain, vague, unknown, inner, outer, nothing = seen["colours"]
    assert certain[0] > 200
    assert certain[2] < 110  # the yellow end of cividis
    assert max(vague) < 120
    assert vague[2] > vague[0]  # its blue end
    assert max(unknown) - min(unknown) < 12  # grey
    assert tuple(nothing) == LAND
    assert np.mean(inner) < np.mean(outer) - 20 < np.mean(LAND) - 30


def test_map_tips_show_the_photo_and_cannot_be_used_to_inject(tmp_path):
    album = make_album(tmp_path)
    seen = look(tmp_path, [f"{album}|layername=points"], (0, 0, 40, 30))
    tips = seen["layers"][0]["tips"]
    assert "file:///photos of 'mine'/day 1/Ærø %231.jpg" in tips[0]
    assert "within 0.5 km" in tips[0]
    assert "error 12.5 km" in tips[0]
    assert "file:///elsewhere/b.jpg" in tips[1]
    assert "b &quot;&amp;lt;&quot;.jpg" in tips[1]
    assert "&lt;img src=x onerror=alert(1)&gt;" in tips[2]
    assert all(tip.count("<img") == 1 for tip in tips)
    assert all("[%" not in tip for tip in tips)


@pytest.mark.hard
def test_rasters_open_styled_by_their_own_thresholds(tmp_path):
    grid = Grid.globe(0.25)
    longitude, latitude = grid.longitude_latitude()
    distance = sphere.great_circle_distance_km(longitude, latitude, 20.0, 15.0)
    density = np.exp(-0.5 * (distance / 300.0) ** 2)
    mass = density * cell_area_km2(grid)
    density /= mass.sum()
    order = np.argsort(-density, axis=None)
    level = np.empty(density.size)
    level[order] = np.cumsum(mass.ravel()[order]) / mass.sum()
    files = [
        geotiff.write_density(tmp_path / "a_density.tif", density, grid),
        geotiff.write_level(tmp_path / "a_level.tif", level.reshape(grid.shape), grid),
    ]
    # radii that hold 20, 65, 85, 93 and 99 % of the bell, eastward
    radii = [300.0 * np.sqrt(-2.0 * np.log(1.0 - share)) for share in (0.2, 0.65, 0.85, 0.93, 0.99)]
    places = [tuple(float(v) for v in sphere.destination(20.0, 15.0, 90.0, radius)) for radius in radii]
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        seen = look(folder, [file], (0, 0, 40, 30), places)
        (raster,) = seen["layers"]
        assert raster["renderer"] == "QgsSingleBandPseudoColorRenderer"
        assert raster["blend"] == 13  # multiply
        assert len([label for label in raster["legend"] if "%" in label]) == 5
        brightness = [sum(colour) for colour in seen["colours"]]
        assert brightness == sorted(set(brightness))
        assert tuple(seen["colours"][-1]) == LAND
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert names == ["a_density.qml", "a_density.tif", "a_level.qml", "a_level.tif"]
