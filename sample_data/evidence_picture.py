"""Draw docs/evidence.png: a chip alone, within an area, under a prior, and fused with chips of the same place."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import shapely
from PIL import Image

from geo_mvmf import pictures, predicting
from geo_mvmf.inputs import tables
from geo_mvmf.inputs.scenes import open_scene
from geo_mvmf.maps.grid import Grid
from geo_mvmf.model.bundle import load_bundle

HERE = Path(__file__).resolve().parent
PLACE = (15.1, -23.3)  # the coast of Namibia, of which the sample model is not sure
SHIFTS = ((0.0, 0.0), (0.4, 0.3), (-0.4, 0.2), (0.1, -0.4))  # degrees: a fortieth of a chip, so one place for all
GRID = Grid.globe(0.5)


def main(out: Path) -> None:
    """Predict four chips of one place, add evidence, and draw."""
    with tempfile.TemporaryDirectory() as folder:
        found = predict(Path(folder))
        panels = [panel(found, "chip_0", "One chip")]
        area = geopandas.GeoDataFrame(geometry=[shapely.box(-20, -36, 52, 38)], crs="EPSG:4326")
        panels.append(panel(found.restrict(area), "chip_0", "The same chip, known to be in Africa"))
        prior = tropics(Path(folder) / "prior.tif")
        panels.append(
            panel(found.fuse("image_id", prior=prior), "chip_0", "The same chip, the training prior replaced")
        )
        together = found.fuse("all", independence=0.5)
        panels.append(panel(together, "all", "Four chips of the place, independence 0.5"))
        print(together.rows[["n_images", "agreement_bits", "gained_bits", "saved_area_90_km2"]].to_string(index=False))
    images = [Image.open(io.BytesIO(each)).convert("RGB") for each in panels]
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % 2) * width, (i // 2) * height))
    sheet.resize((width, height), Image.Resampling.LANCZOS).save(out, optimize=True)
    print(out)


def predict(folder: Path) -> predicting.Predictions:
    """Cut the chips and predict them."""
    with open_scene(HERE / "relief.tif") as scene:
        for i, (east, north) in enumerate(SHIFTS):
            chip, _ = scene.chip(PLACE[0] + east, PLACE[1] + north, ground_km=2000.0, size=48)
            Image.fromarray(chip.transpose(1, 2, 0)).save(folder / f"chip_{i}.png")
    rows = pd.DataFrame({"image_id": [f"chip_{i}" for i in range(4)], "path": [f"chip_{i}.png" for i in range(4)]})
    rows["longitude"], rows["latitude"] = PLACE
    table = tables.read_image_table(rows, root=folder)
    return predicting.predict(load_bundle(HERE / "relief.safetensors", device="cpu"), table, workers=1)


def tropics(path: Path) -> Path:
    """A prior raster: twenty times likelier within 15 degrees of the equator."""
    import rasterio

    latitude = 89.5 - np.arange(180.0)
    values = np.repeat(np.where(np.abs(latitude) < 15.0, 20.0, 1.0)[:, None], 360, axis=1).astype(np.float32)
    transform = rasterio.transform.from_bounds(-180, -90, 180, 90, 360, 180)
    with rasterio.open(
        path, "w", driver="GTiff", height=180, width=360, count=1, dtype="float32", crs="EPSG:4326", transform=transform
    ) as file:
        file.write(values, 1)
    return path


def panel(found: predicting.Predictions, image_id: str, title: str) -> bytes:
    """Draw the density of one row."""
    row = found.rows.set_index("image_id").loc[image_id]
    text = f"{title}: {row['information_bits']:.1f} bits, 90 % within {row['area_90_km2'] / 1e6:.2g} million km²"
    raster = found.density(GRID, image_id)
    return pictures.density_picture(raster[0], title=text, truth=PLACE)


if __name__ == "__main__":
    main(HERE.parent / "docs" / "evidence.png")
