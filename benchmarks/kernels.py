"""Kernels by themselves: S2 ids of a million points, `geo-mvmf --help`, the streamed MvMF loss against its products."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record

IMAGES, FEATURES, COMPONENTS = 512, 2048, 2**14
WAYS = ("products", "loss", "loss without kept logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_memory(options.child)))
        return
    body = [_s2(options.repeats), _help(options.repeats), _loss(options.repeats)]
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


def _loss(repeats: int) -> str:
    import torch

    works = {way: _work(way) for way in WAYS}
    for work in works.values():
        work()
    found = record.interleaved(works, repeats)
    memory = {way: _child(way) for way in WAYS}
    rows = []
    for way, costs in found.items():
        wall, cpu = (record.spread([1e3 * getattr(c, k) for c in costs], 0) for k in ("wall", "cpu"))
        ratio = record.spread([c.wall / b.wall for c, b in zip(costs, found["products"], strict=True)])
        cpu_ratio = record.spread([c.cpu / b.cpu for c, b in zip(costs, found["products"], strict=True)])
        rows.append([way, wall, ratio, cpu, cpu_ratio, f"{memory[way]:.0f}"])
    head = ("forward and backward", "wall ms", "wall ratio", "CPU ms", "CPU ratio", "MiB beyond inputs and gradients")
    return f"""## The streamed MvMF loss, {IMAGES} images, {FEATURES} features, {COMPONENTS} components, float32

{record.table(head, rows)}

"products" are the matrix products that no implementation can avoid: features x weight for the logits, and two of the
same size for the gradients by features and weight, into buffers of their full size; {torch.get_num_threads()} threads.
One (images, components) array in float32 has {IMAGES * COMPONENTS * 4 / 2**20:.0f} MiB. Without kept logits
(`logit_budget_bytes=0`) they are computed twice: 4/3 of the products' work. Memory is the rise of VmHWM in a fresh
process, after one small call that loads the libraries, less the gradients by features and weight."""


def _work(way: str, images: int = IMAGES, features: int = FEATURES, components: int = COMPONENTS) -> Callable[[], None]:
    import torch

    from geo_mvmf.model.loss import mvmf_loss

    torch.manual_seed(0)
    x = torch.randn(images, features, requires_grad=True)
    weight = (torch.randn(components, features) * 0.01).requires_grad_()
    bias = torch.zeros(components, requires_grad=True)
    mu, y = (torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64)) for n in (components, images))
    log_kappa = torch.full((components,), 9.0, dtype=torch.float64)

    def products() -> None:
        with torch.inference_mode():
            gradient = x @ weight.T  # stands for the gradient by the logits, too
            torch.mm(gradient, weight)
            torch.mm(gradient.T, x)

    def loss() -> None:
        x.grad = weight.grad = bias.grad = None
        budget = None if way == "loss" else 0
        mvmf_loss(x, weight, bias, mu, log_kappa, y, logit_budget_bytes=budget).backward()

    return products if way == "products" else loss


def _child(way: str) -> float:
    command = [sys.executable, __file__, "--child", way]
    return statistics.median(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))


def _memory(way: str) -> float:
    """MiB that a first call needs beyond inputs and gradients."""
    _work(way, 8, 64, 512)()
    work = _work(way)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again at what is held now
    before = record.peak_kib()
    work()
    gradients = 4 * FEATURES * (IMAGES + COMPONENTS) / 1024
    return (record.peak_kib() - before - gradients) / 1024


def _cost_rows(found: dict[str, list[record.Cost]]) -> list[list[str]]:
    return [[name, record.spread([c.wall for c in costs]), record.spread([c.cpu for c in costs])]
            for name, costs in found.items()]  # fmt: skip


if __name__ == "__main__":
    main()
