"""Training a head of 2^20 components: seconds a step and memory, with and without the fused update.

python benchmarks/huge_head.py              # perhaps 15 minutes and 12 GiB on 2 idle cores
python benchmarks/huge_head.py --shape 512x256x65536 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import record
import torch
from loss import Problem

from geo_mvmf.model import checkpoint, products
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.sources import Batch

SHAPE = "512x256x1048576"
WAYS = {  # what fused_optimiser is called, and bytes for each parameter of the weight: itself, gradient, moments
    "none": ("torch.optim.Adam", 16),
    "float32": ("fused, moments in float32", 12),
    "bfloat16": ("fused, moments in bfloat16", 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=SHAPE, help="images x features x components")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measure(options.child, options.shape, options.repeats)))
        return
    found = {}
    for way in WAYS:
        command = [
            sys.executable,
            __file__,
            "--child",
            way,
            "--shape",
            options.shape,
            "--repeats",
            str(options.repeats),
        ]
        found[way] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    record.write("huge_head", "Training a head of very many components", _body(options.shape, found))


def _measure(way: str, shape: str, repeats: int) -> dict[str, Any]:
    """In a fresh process: memory of training first, before the references' arrays are there."""
    learner, batch = _learner(way, shape)
    learner.keep_if_best(0, {"nll": 0.0})  # a run with validation keeps a copy of its best weights
    steps = iter(range(10**6))
    work = lambda: learner.train_step(next(steps), batch)  # noqa: E731 (read once)
    losses = [work() for _ in range(2)]
    found: dict[str, Any] = {"peak": record.peak_kib() / 2**20}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        path = checkpoint.write_checkpoint(folder, checkpoint.Checkpoint(2, learner.tensors(), {}))
        found |= {"seconds": time.perf_counter() - begun, "file": path.stat().st_size / 2**30}
    found["peak_checkpoint"] = record.peak_kib() / 2**20
    reference = _reference(shape)
    reference.products()  # memory is fresh only once
    costs = record.interleaved({"step": work, "products": reference.products}, repeats)
    return found | {
        "losses": losses,
        "costs": costs,
        "threads": torch.get_num_threads(),
        "products": products.current(),
    }


def _learner(way: str, shape: str) -> tuple[Learner, Batch]:
    n, d, c = map(int, shape.split("x"))
    config = TrainingConfig(stage="head", table="-", out="-", batch_size=n, fused_optimiser=way, device="cpu")
    problem = Problem(f"{n}x1x{c}", "auto")
    head = MvmfHead(d, problem.mean_directions.numpy(), problem.log_concentrations.numpy())
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    learner = Learner(config, head, None, problem.y, 8, 1.0, 10**6, torch.device("cpu"))
    return learner, Batch(np.arange(n), features, np.ones(n, dtype=bool))


class _Reference:
    """The bare products, into arrays of their full size that are there already."""

    def __init__(self, n: int, d: int, c: int) -> None:
        self.features, self.weight = torch.randn(n, d), torch.randn(c, d)
        self.logits, self.d_weight = torch.zeros(n, c), torch.zeros(c, d)

    def products(self) -> None:
        with torch.inference_mode():
            for _ in range(2):
                products.multiply(self.features, self.weight.T, self.logits)
            products.multiply(self.logits.T, self.features, self.d_weight)


def _reference(shape: str) -> _Reference:
    return _Reference(*map(int, shape.split("x")))


def _body(shape: str, found: dict[str, dict[str, Any]]) -> str:
    n, d, c = map(int, shape.split("x"))
    rows, memory = [], []
    for way, (name, size) in WAYS.items():
        each = {key: [record.Cost(*cost) for cost in costs] for key, costs in found[way]["costs"].items()}
        row = [name]
        for of in ("cpu", "wall"):
            step, bare = ([getattr(cost, of) for cost in each[key]] for key in ("step", "products"))
            row += [record.spread(step, 1), record.spread(bare, 1)]
            row.append(record.spread([a / b for a, b in zip(step, bare, strict=True)], 2))
        rows.append(row)
        one = found[way]
        memory.append(
            [name, size, f"{size * c * d / 2**30:.1f}", f"{one['peak']:.2f}", f"{one['peak_checkpoint']:.2f}",
             f"{one['file']:.1f}", f"{one['seconds']:.0f}"]
        )  # fmt: skip
    head = ("optimiser", "CPU s a step", "3 products", "ratio", "wall s a step", "3 products", "ratio")
    memory_head = (
        "optimiser", "bytes a parameter", "GiB of them", "GiB at most (VmHWM)", "after a checkpoint, too",
        "GiB of the checkpoint", "s to write it",
    )  # fmt: skip
    alike = len({tuple(found[way]["losses"]) for way in ("none", "float32")}) == 1
    one = found["none"]
    return f"""## {n} images, {d} features, {c} components, float32, stage head (features frozen)

{record.table(head, rows)}

{record.table(memory_head, memory)}

A step is `Learner.train_step`: loss, backward pass, Adam on weight and bias. "products" are the matrix products alone
({one["products"]}, {one["threads"]} threads), into arrays of their full size, in turn with the steps of the same
process: the logits twice, because all but 256 MiB of them are formed again in the backward pass, and the gradient by
the weight. Ratios are medians (and ranges) of ratios within one turn. Memory is of a fresh process with everything in
it - Python and torch, the components, a copy of the best weights, as a run with validation keeps it - after two steps,
and after a checkpoint. The losses of two steps are, for torch's optimiser and the fused one in float32,
{"the same to the last bit" if alike else "DIFFERENT"}."""


if __name__ == "__main__":
    main()
