"""Draw docs/tutorial_region.png from what somebody has who followed docs/tutorial_region.md.

python sample_data/region_picture.py region winter-000012
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import rasterio
from PIL import Image

from geo_mvmf import evaluation, pictures
from geo_mvmf.maps.grid import Grid
from geo_mvmf.predictions import Predictions, open_predictions

HERE = Path(__file__).resolve().parent
SEASONS = ("spring", "summer", "autumn", "winter")
WINDOW = (-90.0, -60.0, -30.0, 16.0)  # west, south, east, north
WIDTH, COLOURS = 1500, 128


def main(region: Path, image_id: str, out: Path) -> None:
    """Draw the seasons, the density of one test chip and the coverage of all, side by side."""
    found = open_predictions(region / "predicted" / "predictions.nc")
    panels = [seasons(region), density(found, image_id), opened(pictures.coverage_picture(evaluation.evaluate(found)))]
    height = min(panel.height for panel in panels)
    panels = [panel.resize((round(panel.width * height / panel.height), height)) for panel in panels]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), height), "white")
    x = 0
    for panel in panels:
        sheet.paste(panel, (x, 0))
        x += panel.width
    sheet = sheet.resize((WIDTH, round(height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    sheet.quantize(COLOURS).save(out, optimize=True)
    print(f"wrote {out}, {out.stat().st_size / 1e3:.0f} kB")


def seasons(region: Path) -> Image.Image:
    """The four rasters, two by two."""
    tiles = []
    for season in SEASONS:
        with rasterio.open(region / f"{season}.tif") as file:
            tiles.append(Image.fromarray(file.read().transpose(1, 2, 0)))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (2 * width + 8, 2 * height + 8), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, ((width + 8) * (i % 2), (height + 8) * (i // 2)))
    return sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.LANCZOS)


def density(found: Predictions, image_id: str) -> Image.Image:
    """The density of one chip, with its estimate and its true place."""
    row = found.rows.set_index("image_id").loc[image_id]
    raster = found.density(Grid.from_bounds(*WINDOW, 0.25), image_id)
    title = f"{image_id}: 90 % within {row['area_90_km2'] / 1e6:.2g} million km²"
    estimate, truth = ((row[f"{kind}longitude"], row[f"{kind}latitude"]) for kind in ("", "true_"))
    return opened(pictures.density_picture(raster[0], title=title, estimate=estimate, truth=truth))


def opened(picture: bytes) -> Image.Image:
    """Decode a picture."""
    return Image.open(io.BytesIO(picture)).convert("RGB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], HERE.parent / "docs" / "tutorial_region.png")
