"""Kernels by themselves: S2 ids of a million points, `geo-mvmf --help`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    body = [_s2(options.repeats), _help(options.repeats)]
    record.write("kernels", "Kernels by themselves", "\n\n".join(body))


def _s2(repeats: int) -> str:
    from geo_mvmf import s2, sphere

    generator = np.random.default_rng(0)
    longitude, latitude = generator.uniform(-180.0, 180.0, 10**6), generator.uniform(-90.0, 90.0, 10**6)
    directions = sphere.to_directions(longitude, latitude)
    works = {
        "directions -> leaf ids": lambda: s2.leaf_ids(directions),
        "longitude, latitude -> leaf ids": lambda: s2.leaf_ids(sphere.to_directions(longitude, latitude)),
    }
    rows = _cost_rows(record.interleaved(works, repeats))
    return "## S2 ids of a million points (target: under 1 s)\n\n" + record.table(("", "wall s", "CPU s"), rows)


def _help(repeats: int) -> str:
    program = str(Path(sys.executable).with_name("geo-mvmf"))
    rows = []
    for arguments in (["--help"], ["--version"]):
        subprocess.run([program, *arguments], check=True, capture_output=True)  # the first one fills the caches
        costs = [_program([program, *arguments]) for _ in range(repeats)]
        rows += _cost_rows({f"`geo-mvmf {arguments[0]}`": costs})
    return "## Starting the command line (target: under 0.3 s)\n\n" + record.table(("", "wall s", "CPU s"), rows)


def _program(command: list[str]) -> record.Cost:
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    user, system = (getattr(after, k) - getattr(before, k) for k in ("children_user", "children_system"))
    return record.Cost(time.perf_counter() - start, user + system)


def _cost_rows(found: dict[str, list[record.Cost]]) -> list[list[str]]:
    return [[name, record.spread([c.wall for c in costs]), record.spread([c.cpu for c in costs])]
            for name, costs in found.items()]  # fmt: skip


if __name__ == "__main__":
    main()
