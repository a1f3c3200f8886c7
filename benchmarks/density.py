"""Density rasters: 2^15 components on 0.1 degree cells, built once and then per image; a thousand images into Zarr.

The physical limit beside each figure is the time in which this machine's memory takes the bytes that an image is made
of: the raster is written once (8 bytes for each cell), the shared matrix is read once (8 bytes for each of its values).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

COMPONENTS = 2**15
RESOLUTION = 0.1
CASES = ("16", "10", "8", "6", "mixed")
TARGETS = {"16": (10.0, 0.1), "10": (60.0, 1.0), "8": (60.0, 1.0), "6": (60.0, 1.0), "mixed": (60.0, 1.0)}
ALBUM, ALBUM_RESOLUTION = 1000, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work = _album if options.child.startswith("album") else _case
        print(json.dumps(work(options.child.removeprefix("album "), options.repeats)))
        return
    bandwidth = _bandwidth()
    parts = [_globe(options.repeats, bandwidth)]
    try:
        import zarr  # noqa: F401 (whether it is there)
    except ImportError:
        parts.append("Zarr is not installed: no album was written.")
    else:
        parts.append(_albums())
    record.write("density", "Density rasters", "\n\n".join(parts))


def _child(case: str, repeats: int) -> dict[str, Any]:
    """Measure in a process of its own: peak memory is of one case."""
    command = [sys.executable, __file__, "--child", case, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"  {case}: {done.stdout.strip()}", file=sys.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _bandwidth() -> float:
    """Bytes a second that one core writes to memory: the best of several fills of an array larger than any cache."""
    array = np.zeros(1 << 26)
    times = []
    for value in range(7):
        start = time.perf_counter()
        array.fill(value)
        times.append(time.perf_counter() - start)
    return array.nbytes / min(times)


def _components(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from geo_mvmf import sphere

    generator = np.random.default_rng(0)
    directions = sphere.random_directions(COMPONENTS, generator)
    mixed = case == "mixed"
    log_kappa = generator.uniform(0.0, 20.0, COMPONENTS) if mixed else np.full(COMPONENTS, float(case))
    return directions, log_kappa, generator.dirichlet(np.ones(COMPONENTS), size=4)


def _case(case: str, repeats: int) -> dict[str, Any]:
    from geo_mvmf.maps.density import Rasteriser
    from geo_mvmf.maps.grid import Grid

    directions, log_kappa, weights = _components(case)
    grid = Grid.globe(RESOLUTION)
    made: list[Rasteriser] = []
    build = record.cost(lambda: made.append(Rasteriser(directions, log_kappa, grid)))
    masses: list[float] = []

    def paint(image: int) -> None:
        masses.append(abs(float(made[0].probabilities(weights[image]).sum()) - 1.0))

    images = [record.cost(functools.partial(paint, repeat % len(weights))) for repeat in range(repeats)]
    return {
        "build": build,
        "images": images,
        "values": made[0].num_values,
        "error": max(masses),
        "peak_mib": record.peak_kib() / 1024,
    }


def _globe(repeats: int, bandwidth: float) -> str:
    rows = []
    for case in CASES:
        found = _child(case, repeats)
        written = 8 * round(180 / RESOLUTION) * round(360 / RESOLUTION)
        limit = (written + 8 * found["values"]) / bandwidth
        wall, cpu = ([image[k] for image in found["images"]] for k in (0, 1))
        build, image = TARGETS[case]
        rows.append(
            [
                case,
                f"{found['build'][0]:.1f} ({found['build'][1]:.1f})",
                f"{build:g}",
                record.spread(wall),
                record.spread(cpu),
                f"{image:g}",
                f"{written / bandwidth:.4f}",
                f"{limit:.4f}",
                f"{min(wall) / limit:.1f}",
                f"{found['peak_mib']:.0f}",
                f"{found['error']:.0e}",
            ]
        )
    head = (
        "log kappa",
        "build s (CPU)",
        "target",
        "image s, wall",
        "image s, CPU",
        "target",
        "limit: write",
        "limit: write and read",
        "ratio",
        "peak MiB",
        "mass - 1",
    )
    text = (
        f"## {COMPONENTS} components, {round(180 / RESOLUTION)} x {round(360 / RESOLUTION)} raster cells\n\n"
        f"Memory takes {bandwidth / 1e9:.1f} GB/s from one core. All mixing weights are positive. Peaks are of whole "
        "processes, VmHWM; 2048 MiB is the target.\n\n"
    )
    return text + record.table(head, rows)


def _albums() -> str:
    rows = []
    for images in (ALBUM // 10, ALBUM):
        found = _child(f"album {images}", 1)
        rows.append([images, f"{found['wall']:.1f}", f"{found['mib']:.0f}", f"{found['peak_mib']:.0f}"])
    head = ("images", "wall s", "MiB of densities", "peak MiB")
    return f"## An album into a Zarr store, {ALBUM_RESOLUTION:g} degree cells\n\n" + record.table(head, rows)


def _album(images: str, _: int) -> dict[str, Any]:
    from geo_mvmf.maps import stacks
    from geo_mvmf.maps.density import density_raster
    from geo_mvmf.maps.grid import Grid
    from geo_mvmf.mixture import VmfMixture

    directions, log_kappa, _weights = _components("mixed")
    generator = np.random.default_rng(1)
    some = slice(0, 1024)  # the weights of an album must fit beside it
    logs = np.log(generator.dirichlet(np.full(1024, 0.1), size=int(images)) + 1e-300)
    mixture = VmfMixture(directions[some], log_kappa[some], logs)
    stacks.IN_MEMORY_BYTES = 1 << 24  # also the smaller album is written image by image
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        density = density_raster(mixture, Grid.globe(ALBUM_RESOLUTION))
        density.drop_encoding().to_dataset().to_zarr(Path(folder) / "album.zarr")
        wall = time.perf_counter() - start
    return {"wall": wall, "mib": density.nbytes / 2**20, "peak_mib": record.peak_kib() / 1024}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
