"""Make the region of docs/tutorial_region.md: four seasons of South America as GeoTIFFs, and its outline.

    python sample_data/region.py region

The seasons are synthetic: relief.tif recoloured, with haze that is thick here and thin there and some noise, other in
each season. They stand for the rasters of one's own region, and are no data of any kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window, from_bounds
from scipy import ndimage

HERE = Path(__file__).resolve().parent
BOUNDS = (-96.0, -63.0, -21.0, 20.0)  # of the rasters: the chips of the coast reach far beyond it
SEASONS = ("spring", "summer", "autumn", "winter")
HAZE, NOISE = 0.08, 0.01  # standard deviations, as shares of the full brightness
HAZE_CELLS = 4.0  # how wide a patch of haze is, in raster cells of 55 km

Pixels = npt.NDArray[np.float64]


def main(out: Path) -> None:
    """Write the rasters and the area of interest."""
    out.mkdir(parents=True, exist_ok=True)
    write_area(out / "aoi.geojson")
    with rasterio.open(HERE / "relief.tif") as source:
        window = from_bounds(*BOUNDS, source.transform).round_offsets().round_lengths()
        pixels = source.read(window=window) / 255.0  # (3, rows, columns)
        profile = profile_of(source, window)
    generator = np.random.default_rng(2026)
    for season in SEASONS:
        with rasterio.open(out / f"{season}.tif", "w", **profile) as target:
            target.write(np.round(255.0 * recoloured(pixels, generator)).astype(np.uint8))
    print(f"wrote {', '.join(f'{season}.tif' for season in SEASONS)} and aoi.geojson in {out}")


def write_area(path: Path) -> None:
    """Write the outline of South America: one polygon layer, as any GIS exports it."""
    countries = geopandas.read_file(HERE / "countries.geojson")
    land = countries[countries["continent"] == "South America"].union_all()
    area = geopandas.GeoDataFrame({"name": ["South America"]}, geometry=[land], crs=countries.crs)
    area.to_file(path, driver="GeoJSON")


def profile_of(source: rasterio.DatasetReader, window: Window) -> dict[str, object]:
    """Give what rasterio needs to write the window of a raster as a GeoTIFF."""
    return {
        "driver": "GTiff",
        "width": int(window.width),
        "height": int(window.height),
        "count": source.count,
        "dtype": "uint8",
        "crs": source.crs,
        "transform": source.window_transform(window),
        "compress": "deflate",
    }


def recoloured(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Another season: other gains of the bands and another contrast, haze in patches, noise."""
    gain, contrast = generator.uniform(0.8, 1.2, (3, 1, 1)), generator.uniform(0.8, 1.25)
    haze = ndimage.gaussian_filter(generator.normal(size=pixels.shape[1:]), HAZE_CELLS)
    noise = generator.normal(scale=NOISE, size=pixels.shape)
    return np.clip(pixels**contrast * gain * (1.0 + HAZE / haze.std() * haze) + noise, 0.0, 1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "region"))
