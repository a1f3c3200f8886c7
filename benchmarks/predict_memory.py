"""Peak memory of predicting 10^2 and 10^4 images, each in fresh processes: VmHWM when everything is done.

The bundle is tiny (chip_resnet10 of width 8 at 32 pixels), so that nothing large hides what grows with the table. The
peak is that of the whole job: imports, image table, bundle, prediction, the merged predictions file, its rows read
back. `--sizes 1000 100000 --repeats 1` takes 5 to 7 minutes on 2 cores; 10^5 images are as many files, of which all but
100 are hard links.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
from PIL import Image

SIZES = (100, 10_000)


def main() -> None:
    options = _options()
    if options.child:
        _predict(Path(options.child))
        return
    found: dict[int, list[dict[str, float]]] = {size: [] for size in options.sizes}
    with tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            _write_images(Path(name) / str(size), size)
        for repeat in range(options.repeats):
            for size in options.sizes:
                found[size].append(_child(Path(name) / str(size)))
                print(f"  repeat {repeat + 1}/{options.repeats} {size}: {found[size][-1]}", file=sys.stderr)
    record.write("predict_memory", "Peak memory of predict against the number of images", _report(found, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_images(folder: Path, number: int) -> None:
    """Write many small pictures: 100 different ones, under further names as hard links."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(number):
        path = folder / f"image_{i:06d}.png"
        if i < 100:
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"image_{i % 100:06d}.png", path)


def _child(folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _predict(folder: Path) -> None:
    from geo_mvmf import predict, read_image_table
    from geo_mvmf.model.untrained import untrained_bundle

    bundle = untrained_bundle()
    loaded = record.peak_kib()
    start = time.perf_counter()
    table = read_image_table(folder)
    read = record.peak_kib()
    found = predict(bundle, table, out=folder.with_suffix(".nc"), overwrite=True)
    good = int((found.rows["status"] == "ok").sum())
    seconds = time.perf_counter() - start
    peak = record.peak_kib()
    print(json.dumps({"loaded": loaded, "table": read - loaded, "peak": peak, "good": good, "seconds": seconds}))


def _report(found: dict[int, list[dict[str, float]]], options: argparse.Namespace) -> str:
    rows = []
    for size, runs in found.items():
        mib = [record.spread([run[key] / 1024 for run in runs], 1) for key in ("loaded", "table", "peak")]
        seconds = record.spread([run["seconds"] for run in runs], 1)
        rows.append([size, *mib, seconds, int(min(run["good"] for run in runs))])
    few, many = (statistics.median(run["peak"] for run in found[size]) for size in (min(found), max(found)))
    more = max(found) - min(found)
    base = statistics.median(run["loaded"] for runs in found.values() for run in runs)
    head = (
        "images",
        "MiB once libraries are loaded",
        "MiB that the table adds",
        "MiB at the peak",
        "seconds",
        "good rows",
    )
    return f"""chip_resnet10 of width 8 at 32 pixels, 6 components; medians (and ranges) of {options.repeats} runs.

{record.table(head, rows)}

Ratio of the peaks: {many / few:.4f} (target: at most 1.05). Growth: {(many - few) / 1024:.1f} MiB for {more} images
more, {1024 * (many - few) / more:.0f} bytes an image. The peak counts every page of the libraries' files that was
touched, most of it of torch's GPU libraries; beyond what is held once they are loaded, the job itself takes
{(few - base) / 1024:.0f} MiB and {(many - base) / 1024:.0f} MiB."""


if __name__ == "__main__":
    main()
