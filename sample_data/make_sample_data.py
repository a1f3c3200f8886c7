"""Regenerate sample_data/ from what the project's own dependencies ship; see README.md for sources and licences.

Run from the project's root: ``make sample`` (needs the extra ``sample``: cartopy). The bundle is made separately, by
the documented training command: ``geo-mvmf train sample_data/train.toml``.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cartopy
import geopandas
import numpy as np
import pyogrio
import shapely
from PIL import Image

from geo_mvmf import sphere
from geo_mvmf.inputs import georeferencing, scenes

HERE = Path(__file__).resolve().parent
GROUND_KM, SIZE, COUNT, SEED = 2000.0, 48, 48, 20261123
RELIEF = Path(cartopy.__file__).parent / "data/raster/natural_earth/50-natural-earth-1-downsampled.png"
COUNTRIES = Path(pyogrio.__file__).parent / "tests/fixtures/naturalearth_lowres/naturalearth_lowres.shp"


def main() -> None:
    """Write the raster, the polygons and the held-out chips."""
    georeferencing.georeference(RELIEF, HERE / "relief.tif", bounds=(-180.0, -90.0, 180.0, 90.0), overwrite=True)
    countries = write_polygons()
    write_chips(countries)
    print(f"wrote {sum(p.stat().st_size for p in HERE.rglob('*') if p.is_file()) / 1e6:.2f} MB in {HERE.name}")


def write_polygons() -> geopandas.GeoDataFrame:
    """Write countries.geojson, aoi.geojson and the package's coastline."""
    frame = geopandas.read_file(COUNTRIES)[["name", "iso_a3", "continent", "geometry"]]
    frame["geometry"] = shapely.set_precision(frame.geometry.make_valid(), 0.01)
    write_geojson(HERE / "countries.geojson", frame)
    write_geojson(HERE / "aoi.geojson", frame[frame["name"].isin(["France", "Spain", "Portugal", "Italy"])])
    # the same land as the training chips, simpler: rivers of inner borders are not wanted on a map of the world
    land = [part for part in shapely.get_parts(frame.geometry.union_all()) if part.geom_type == "Polygon"]
    outline = geopandas.GeoDataFrame(geometry=[shapely.Polygon(part.exterior) for part in land], crs="OGC:CRS84")
    write_geojson(HERE.parent / "geo_mvmf" / "coastlines.geojson", outline)
    return frame


def write_geojson(path: Path, frame: geopandas.GeoDataFrame) -> None:
    """Write small GeoJSON: two decimals are a kilometre, as fine as the outlines."""
    features = json.loads(frame.to_json(drop_id=True))["features"]
    for feature in features:
        geometry = shapely.geometry.shape(feature["geometry"])
        feature["geometry"] = json.loads(shapely.to_geojson(shapely.orient_polygons(geometry)))
        feature["geometry"]["coordinates"] = rounded(feature["geometry"]["coordinates"])
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n")


def rounded(values: object) -> object:
    """Round nested coordinates to two decimals."""
    return [rounded(value) for value in values] if isinstance(values, list) else round(float(values), 2)  # type: ignore[arg-type]


def write_chips(countries: geopandas.GeoDataFrame) -> None:
    """Cut held-out chips on land, uniform over area, and write their truth."""
    folder = HERE / "chips"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = []
    with scenes.open_scene(HERE / "relief.tif") as scene:
        for number, (longitude, latitude, country, continent) in enumerate(places(countries)):
            values, _ = scene.chip(longitude, latitude, ground_km=GROUND_KM, size=SIZE)
            name = save(folder, number, Image.fromarray(values.transpose(1, 2, 0)), longitude, latitude)
            rows.append([f"chips/{name}", f"{longitude:.5f}", f"{latitude:.5f}", country, continent])
    broken = (folder / rows[0][0].removeprefix("chips/")).read_bytes()
    (folder / "broken.jpg").write_bytes(broken[: len(broken) // 3])
    rows.append(["chips/broken.jpg", "", "", "", ""])
    with (HERE / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["path", "longitude", "latitude", "country", "continent"], *rows]
        )


def places(countries: geopandas.GeoDataFrame) -> list[tuple[float, float, str, str]]:
    """Draw land places uniformly over area between 56 S and 72 N."""
    generator = np.random.default_rng(SEED)
    found: list[tuple[float, float, str, str]] = []
    while len(found) < COUNT:
        longitude, latitude = (
            float(v[0]) for v in sphere.to_longitude_latitude(sphere.random_directions(1, generator))
        )
        inside = countries[countries.contains(shapely.Point(longitude, latitude))]
        if len(inside) and -56.0 < latitude < 72.0:
            found.append((longitude, latitude, str(inside.iloc[0]["name"]), str(inside.iloc[0]["continent"])))
    return found


def save(folder: Path, number: int, image: Image.Image, longitude: float, latitude: float) -> str:
    """Write one chip: JPEG, PNG or TIFF in turn; a few with EXIF positions; one with an awkward name."""
    kind = ("jpg", "png", "jpg", "tif")[number % 4]
    name = "Žabljak, two words.jpg" if number == 2 else f"chip_{number:02d}.{kind}"
    options: dict[str, object] = {"quality": 92} if kind == "jpg" else {}
    if kind == "jpg" and number % 8 == 0:
        options["exif"] = exif(longitude, latitude)
    image.save(folder / name, **options)
    return name


def exif(longitude: float, latitude: float) -> Image.Exif:
    """EXIF with a position and a time, as a camera writes them."""
    data = Image.Exif()
    position = data.get_ifd(0x8825)
    position[1], position[2] = "N" if latitude >= 0 else "S", (abs(latitude), 0.0, 0.0)
    position[3], position[4] = "E" if longitude >= 0 else "W", (abs(longitude), 0.0, 0.0)
    data.get_ifd(0x8769)[0x9003] = "2026:06:21 12:00:00"
    return data


if __name__ == "__main__":
    main()
