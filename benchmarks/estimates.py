"""What each estimator costs: many images over 2^15 components, of which about 300 matter."""

from __future__ import annotations

import argparse

import mixtures
import record
from mixtures import AT_ONCE

from geo_mvmf.maps.estimates import estimate
from geo_mvmf.mixture import VmfMixture

RUNS = (("component", None), ("mode", None), ("median", None), ("best_within", 25.0), ("best_within", 750.0))
TARGET_S = 60.0  # for the modes of 10,000 images on 2 cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="that figures are stated for")
    parser.add_argument(
        "--measured", type=int, default=1000, help="of them really estimated; ten times as many by the quick estimators"
    )
    parser.add_argument("--components", type=int, default=2**15)
    parser.add_argument("--heavy", type=int, default=300, help="components that hold all but 1e-4 of an image")
    options = parser.parse_args()
    make = mixtures.maker(options.components, options.heavy)
    rows = []
    for estimator, radius_km in RUNS:
        quick = estimator in ("component", "mode")
        number = min(options.images, options.measured * (10 if quick else 1))
        batches = [make(seed) for seed in range(min(10, -(-number // AT_ONCE)))]  # ten different ones, over and over
        estimate(batches[0][:2], estimator, radius_km)  # what all images share is made once
        found = record.cost(lambda n=number, b=batches, e=estimator, r=radius_km: _all(b, n, e, r))
        scale = options.images / number
        name = estimator if radius_km is None else f"{estimator}, {radius_km:g} km"
        wall, cpu = found.wall * scale, found.cpu * scale
        rows.append([name, number, f"{1e3 * found.cpu / number:.2f}", f"{wall:.0f}", f"{cpu:.0f}"])
    head = ("estimator", "images measured", "CPU ms per image", f"wall s, {options.images} images", "CPU s")
    mode = rows[1]
    body = f"""At least {options.components} components as training begins with them (3000 towns), of which
{options.heavy} hold nearly all of each image's weight; batches of {AT_ONCE}; what is made once for all images is not
counted.
Figures of fewer than {options.images} images are scaled up.

{record.table(head, rows)}

Target: the modes of {options.images} images in {TARGET_S:.0f} s. Wall {mode[3]} s, CPU of all cores {mode[4]} s."""
    record.write("estimates", "Cost of the estimators", body)


def _all(batches: list[VmfMixture], number: int, estimator: str, radius_km: float | None) -> None:
    for start in range(0, number, AT_ONCE):
        batch = batches[(start // AT_ONCE) % len(batches)]
        estimate(batch[: min(AT_ONCE, number - start)], estimator, radius_km)


if __name__ == "__main__":
    main()
