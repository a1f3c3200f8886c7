"""Photos for the benchmarks: as large on disk and as slow to decode as those of a camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(folder: Path, number: int, width: int = 1600) -> None:
    """Write JPEGs of 4 to 3 with structure at all scales, 0.jpg and so on, into a new folder."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    size = (width, width * 3 // 4)
    for i in range(number):
        pixels = generator.normal(0.0, 6.0, (size[1], size[0], 1)).astype(np.float32)
        for cells, strength in ((12, 110.0), (60, 25.0), (300, 15.0)):
            coarse = generator.uniform(-strength, strength, (cells, cells * 4 // 3, 3)).astype(np.float32)
            bands = [Image.fromarray(coarse[..., band]).resize(size, Image.Resampling.BICUBIC) for band in range(3)]
            pixels = pixels + np.stack([np.asarray(band) for band in bands], axis=-1)
        Image.fromarray(np.clip(pixels + 128.0, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=88)
