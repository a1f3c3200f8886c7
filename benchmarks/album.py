"""What an album costs after the network: all columns of its rows, credible regions, countries, and one large file.

Over 2^15 components, of which 30 or 300 hold nearly all of an image's weight: as training begins with them ("towns"),
and of any width anywhere ("mixed", log kappa 0..20). They lie all over the Earth, so an image of 300 has hundreds of
peaks. Rows are made by two threads and regions by two processes, as the commands have them; zones by one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mixtures
import numpy as np
import record

COMPONENTS = 2**15
HEAVY = (30, 300)
LEVELS = (0.5, 0.9)
KINDS = ("towns", "mixed")
THREADS = {"rows": 2, "zones": 1}
WORKERS = 2
ZONES = Path(__file__).resolve().parents[1] / "sample_data" / "countries.geojson"
COUNTS = {"rows": 10_000, "regions": 1000, "zones": 10_000}
TARGETS_S = {"rows": 300.0, "regions": 60.0}


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_measure(options.child, options)))
        return
    parts = [_report(job, options) for job in ("rows", "regions", "zones")]
    record.write("album", "What an album costs after the network", "\n\n".join([*parts, _fine(options)]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of the images that are really worked on")
    parser.add_argument("--zones", type=Path, default=ZONES, help="polygon layer, such as countries")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(job: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own, whose peak memory is of one job."""
    command = [sys.executable, __file__, "--child", job, "--share", str(options.share), "--zones", str(options.zones)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"  {job}: {done.stdout.strip()}", file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(child: str, options: argparse.Namespace) -> dict[str, Any]:
    if child == "fine":
        return _write_fine()
    job, kind, heavy = child.split(" ")
    make = mixtures.maker(COMPONENTS, int(heavy), mixed=kind == "mixed")
    if job == "regions":
        return _regions(make, max(1, round(COUNTS[job] * options.share * 3) // mixtures.AT_ONCE))
    batches = max(1, round(COUNTS[job] * options.share) // mixtures.AT_ONCE)
    prepare = {"rows": _rows, "zones": _zones}[job]
    work: list[Callable[[Any], None]] = []
    build = record.cost(lambda: work.append(prepare(make, options)))
    # the batches are made beforehand: an album's weights come from the network
    albums = [make(seed) for seed in range(min(batches, 10))]
    found = record.cost(lambda: _all(work[0], albums, batches, THREADS[job]))
    images = batches * mixtures.AT_ONCE
    return {"build": build, "found": found, "images": images, "peak_mib": record.peak_kib() / 1024}


def _all(work: Callable[[Any], None], albums: list[Any], batches: int, threads: int) -> None:
    share = mixtures.AT_ONCE // threads
    parts = [albums[k % len(albums)][i * share : (i + 1) * share] for k in range(batches) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass


def _rows(make: Callable[[int], Any], _: argparse.Namespace) -> Callable[[Any], None]:
    """All columns that are computed from densities: the estimate, the summaries, and those of a known truth."""
    from geo_mvmf import row_contract, sphere
    from geo_mvmf.maps import estimates, summaries

    def work(mixture: Any) -> None:
        places = estimates.estimate(mixture, "component")
        images = np.arange(len(mixture))
        rows = {name: np.full(images.size, np.nan) for name in (*row_contract.COMPUTED, *row_contract.TRUTH)}
        truth = sphere.to_longitude_latitude(mixture.sample(1, seed=0)[:, 0])
        rows["true_longitude"], rows["true_latitude"] = truth
        row_contract.fill(rows, images, {"longitude": places[:, 0], "latitude": places[:, 1]})
        nodes = summaries.nodes_of(mixture)
        row_contract.fill(rows, images, summaries.summarise(mixture, places[:, 0], places[:, 1], nodes=nodes))
        row_contract.judge(rows, images, mixture, nodes=nodes)

    work(make(0)[:2])  # what all images share
    return work


def _regions(make: Callable[[int], Any], batches: int) -> dict[str, Any]:
    """Of an album in a predictions file; the start of the processes counts."""
    import pandas as pd

    from geo_mvmf import progress
    from geo_mvmf.files import stores
    from geo_mvmf.region_job import regions_job

    shared = make(0)
    number = shared.log_concentrations.size
    ids = np.zeros(number, dtype=np.uint64)
    components = stores.Components(
        "vmf", shared.mean_directions, shared.log_concentrations, np.ones(number, dtype=np.int64), ids
    )
    weights = np.concatenate([make(seed).log_mixing_weights.astype(np.float32) for seed in range(batches)])
    names = [f"image {i}" for i in range(len(weights))]
    rows = pd.DataFrame({"image_id": names, "path": names, "status": "ok", "message": ""})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "album.nc"
        stores.write_store(path, rows=rows, pruned=stores.prune(weights), components=components, run={})
        job = regions_job(stores.open_store(path), np.arange(len(weights)), LEVELS, workers=WORKERS)
        before = sum(os.times()[:4])
        wall = record.cost(lambda: progress.run(job)).wall
        cpu = sum(os.times()[:4]) - before
    return {"build": (0.0, 0.0), "found": (wall, cpu), "images": len(weights), "peak_mib": record.peak_kib() / 1024}


def _zones(make: Callable[[int], Any], options: argparse.Namespace) -> Callable[[Any], None]:
    from geo_mvmf.maps.zones import Zones

    zones = Zones.read(options.zones)
    zones.of(make(0)[:1])

    def work(mixture: Any) -> None:
        zones.of(mixture)

    return work


def _report(job: str, options: argparse.Namespace) -> str:
    count = COUNTS[job]
    rows = []
    for kind, heavy in itertools.product(KINDS, HEAVY if job != "zones" else HEAVY[-1:]):
        found = _child(f"{job} {kind} {heavy}", options)
        scale = count / found["images"]
        wall, cpu = (scale * value for value in found["found"])
        target = f"{TARGETS_S[job]:g}" if job in TARGETS_S else ""
        build = f"{found['build'][0]:.1f} ({found['build'][1]:.1f})"
        each = f"{1e3 * found['found'][1] / found['images']:.1f}"
        rows.append(
            [kind, heavy, build, found["images"], each, f"{wall:.0f}", target, f"{cpu:.0f}", round(found["peak_mib"])]
        )
    head = (
        "components",
        "heavy",
        "once, s (CPU)",
        "images",
        "CPU ms an image",
        f"wall s, {count}",
        "target",
        "CPU s",
        "peak MiB",
    )
    titles = {
        "rows": f"All columns of the row contract that densities give, {count} images, with truth, without polygons",
        "regions": f"Credible regions at {' and '.join(map(str, LEVELS))}, {count} images",
        "zones": f"{_number_of(options.zones)} polygons of {options.zones.name}, {count} images",
    }
    return f"## {titles[job]}\n\n" + record.table(head, rows)


def _number_of(layer: Path) -> int:
    from geo_mvmf.inputs.polygons import read_polygons

    return len(read_polygons(layer))


def _fine(options: argparse.Namespace) -> str:
    found = _child("fine", options)
    return (
        "## One image as a file of 0.01 degree, 18000 x 36000 raster cells\n\n"
        f"{COMPONENTS} mixed components, {HEAVY[-1]} of them heavy; density and credible level, window by window: "
        f"{found['wall']:.0f} s on the wall, {found['mib']:.0f} MiB of files, probability sum {found['sum']:.7f}, "
        f"peak {found['peak_mib']:.0f} MiB (the raster alone in float64 would be {18000 * 36000 * 8 / 2**20:.0f} MiB)."
    )


def _write_fine() -> dict[str, Any]:
    import rasterio

    from geo_mvmf import density_files
    from geo_mvmf.maps.density import density_raster
    from geo_mvmf.maps.grid import Grid

    mixture = mixtures.maker(COMPONENTS, HEAVY[-1], mixed=True)(0)[:1]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "fine.tif"
        start = time.perf_counter()
        density_files.write(target, density_raster(mixture, Grid.globe(0.01)), mixture, {}, overwrite=False)
        wall = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        with rasterio.open(target) as raster:
            total = float(raster.tags()["PROBABILITY_SUM"])
    return {"wall": wall, "mib": size / 2**20, "sum": total, "peak_mib": record.peak_kib() / 1024}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
