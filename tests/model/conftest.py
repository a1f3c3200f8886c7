"""Small pictures that a network can learn the places of, for the tests of training."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_mvmf import sphere


@pytest.fixture(scope="session")
def make_photos(tmp_path_factory):
    """Make a folder of n images whose colour tells where they are, and photos.csv; every fifth is `held_out` there."""

    def make(count):
        folder = tmp_path_factory.mktemp("photos")
        rng = np.random.default_rng(0)
        directions = sphere.random_directions(count, rng)
        longitude, latitude = sphere.to_longitude_latitude(directions)
        names = [f"{number:0{len(str(count))}d}.png" for number in range(count)]
        for name, direction in zip(names, directions, strict=True):
            pixels = 127 + 120 * direction + rng.normal(0, 4, (8, 8, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        table = pd.DataFrame({"path": names, "longitude": longitude, "latitude": latitude})
        table["held_out"] = [number % 5 == 0 for number in range(count)]
        table.to_csv(folder / "photos.csv", index=False)
        return folder

    return make
