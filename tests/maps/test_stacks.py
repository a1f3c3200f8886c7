"""Stacks: the same values however they are made - at once, image by image, or window by window."""

import numpy as np
import pytest

from geo_mvmf import sphere
from geo_mvmf.maps import density, levels, stacks
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import VmfMixture

pytest.importorskip("dask")

GRIDS = {
    "globe": Grid.globe(2.0),
    "polar": Grid.from_bounds(-3e6, -3e6, 3e6, 3e6, 5e4, crs=3995),
}


def album(images=3):
    directions = sphere.to_directions([33.0, 171.0, -100.0, 20.0], [79.3, 70.0, 75.0, 89.0])
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=images)
    return VmfMixture(directions, [6.0, 9.0, 13.0, 16.0], np.log(weights))


def small_memory(monkeypatch):
    """Memory for 8,000 raster cells and windows of 64 by 64."""
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(stacks, "WINDOW_CELLS", 1 << 12)
    monkeypatch.setattr(stacks, "_ALIGNED", 64)


def test_windows_cover_a_grid_once():
    down, across = stacks.windows(Grid.globe(0.1), 1 << 20)
    assert (sum(down), sum(across)) == (1800, 3600)
    assert all(size % 512 == 0 for size in (*down[:-1], *across[:-1]))
    assert stacks.windows(Grid.globe(30.0), 1 << 20) == ((6,), (12,))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_windows_hold_the_same_as_the_whole(monkeypatch, grid):
    now = density.density_raster(album(), grid)
    small_memory(monkeypatch)
    lazy = density.density_raster(album(), grid)
    assert len(lazy.chunks[1]) * len(lazy.chunks[2]) > 1
    assert lazy.to_numpy() == pytest.approx(now.to_numpy(), rel=1e-4, abs=1e-8 * float(now.max()), nan_ok=True)
    assert lazy.probability_sum.to_numpy() == pytest.approx(now.probability_sum.to_numpy(), abs=1e-6)
    assert lazy.cell_area_km2.to_numpy() == pytest.approx(now.cell_area_km2.to_numpy(), rel=1e-6)


def test_levels_of_windows_are_those_of_the_whole(monkeypatch):
    grid = GRIDS["polar"]
    now = levels.credible_level_raster(density.density_raster(album(2), grid))
    small_memory(monkeypatch)
    lazy = levels.credible_level_raster(density.density_raster(album(2), grid))
    assert lazy.chunks is not None
    assert lazy.to_numpy() == pytest.approx(now.to_numpy(), abs=2e-3, nan_ok=True)


def test_the_table_of_levels_is_made_once_however_often_windows_are_asked_for(monkeypatch):
    """The twin that makes it with every window would look at all of the map for each block of a file."""
    small_memory(monkeypatch)
    lazy = levels.credible_level_raster(density.density_raster(album(1), GRIDS["globe"]))
    made = []
    given = levels._Levels._made
    monkeypatch.setattr(levels._Levels, "_made", lambda own: made.append(1) or given(own))
    for row in range(0, 90, 30):
        lazy[0, row : row + 30].data.compute()
    assert len(made) == 1


def test_what_a_window_does_not_ask_for_is_not_made(monkeypatch):
    """The twin that makes all of it is caught by counting the windows that were prepared."""
    prepared = []

    class Counted(density.Rasteriser):
        def __init__(self, directions, log_concentrations, grid):
            prepared.append(grid.shape)
            super().__init__(directions, log_concentrations, grid)

    monkeypatch.setattr(density, "Rasteriser", Counted)
    small_memory(monkeypatch)
    lazy = density.density_raster(album(1), GRIDS["globe"])
    assert prepared == []
    lazy[0, :10, :10].data.compute()
    assert len(prepared) == 1
    assert lazy.shape == (1, 90, 180)


def test_images_are_made_one_by_one(monkeypatch):
    now = density.density_raster(album(5), Grid.globe(5.0))
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 30_000)
    lazy = density.density_raster(album(5), Grid.globe(5.0))
    assert lazy.chunks[0] == (1,) * 5
    assert lazy.compute().equals(now.compute())


@pytest.mark.hard
def test_an_album_goes_into_a_zarr_store_without_growth_of_memory():
    """1,000 images take no more memory than 100, in processes of their own."""
    import json
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[2] / "benchmarks" / "density.py"
    peaks = []
    for images in (100, 1000):
        command = [sys.executable, str(script), "--child", f"album {images}", "--repeats", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(json.loads(done.stdout)["peak_mib"])
    # the mixing weights themselves are 8 MiB for a thousand images, and so are their logarithms
    assert peaks[1] < peaks[0] + 60
