"""The streamed MvMF loss against its bare matrix products, the plain form, torch.compile of it, and cross entropy.

python benchmarks/loss.py                   # every shape: perhaps 40 minutes on 2 idle cores
python benchmarks/loss.py --shape 512x2048x16384 --repeats 5
python benchmarks/loss.py --device cuda     # loss_cuda.py: other shapes, whole steps; writes results/loss_cuda.md

A run is written to results/loss_run.md; the page results/loss.md collects those of several machines, by hand.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import record
import torch
from torch.nn import functional

from geo_mvmf import s2
from geo_mvmf.model import idle_memory, products
from geo_mvmf.model.components import log_density
from geo_mvmf.model.loss import mvmf_loss

SHAPES = ("512x2048x16384", "512x2048x65536", "1024x256x65536")
CONCENTRATIONS = ("0", "8", "auto", "16", "20", "mixed")
OURS: dict[str, dict[str, object]] = {  # what is kept as bfloat16 is 80 % of the logits, so that all stays below half
    "exponentials kept (float32)": {"logit_budget_bytes": 1.0},
    "computed again": {"logit_budget_bytes": 0.0},
    "exponentials kept (bfloat16)": {"logit_budget_bytes": 0.4, "kept_type": "bfloat16"},
}
AGAINST = {  # the products that each has to do
    "exponentials kept (float32)": "3 products",
    "computed again": "4 products",
    "exponentials kept (bfloat16)": "3 products",
    "features frozen": "2 products",
}
PLAIN_UP_TO = 1 << 26  # logits: beyond, the plain form's nine arrays of them do not fit everywhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="images x features x components")
    parser.add_argument("--concentrations", default="auto,16,8", help="those that are timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_memory(*options.child)))
        return
    if options.device != "cpu":
        import loss_cuda  # it imports this file

        loss_cuda.run(options)
        return
    body = [_section(shape, options) for shape in options.shape or SHAPES]
    record.write("loss_run", "The streamed MvMF loss", "\n\n".join([_INTRODUCTION, *body]))


_INTRODUCTION = """Forward and backward pass, gradients by features, weight and bias (mean directions and
concentrations fixed, as in the paper), strict float32. "products" are the matrix products alone, into arrays of their
full size, by the faster provider: 3 for the logits and two gradients, 4 where the logits are computed twice, 2 without
the gradient by features. "plain" is `logsumexp(z) - logsumexp(z + log f)` of whole arrays; cross entropy is
`torch.nn.functional.cross_entropy(linear(...))` and `linear_cross_entropy`, on as many classes. Ratios are medians (and
ranges) of ratios within one turn; every turn runs all ways. Components are spread evenly, in the order of S2 cells, as
a partition gives them; "auto" is the concentration that holds 95 % within a cell's edge."""


class Problem:
    """A layer, components and targets; the same for the same shape."""

    def __init__(self, shape: str, concentration: str, device: str = "cpu") -> None:
        self.n, self.d, self.c = map(int, shape.split("x"))
        generator = torch.Generator(device).manual_seed(0)
        randn = lambda *size: torch.randn(*size, generator=generator, device=device)  # noqa: E731 (read once)
        self.features, self.bias = randn(self.n, self.d), 0.1 * randn(self.c)
        self.weight = 0.01 * randn(self.c, self.d)
        self.mean_directions = _even_directions(self.c).clone()
        self.y = functional.normalize(randn(self.n, 3).double())
        self.log_concentrations = _log_concentrations(concentration, self.c, generator)
        for name, tensor in vars(self).items():
            if isinstance(tensor, torch.Tensor):
                setattr(self, name, tensor.to(device))
        for tensor in (self.features, self.weight, self.bias):
            tensor.requires_grad_()
        self.outputs: list[torch.Tensor] = []

    @functools.cached_property
    def nearest(self) -> torch.Tensor:
        """Classes for cross entropy."""
        return torch.cat([torch.cdist(y, self.mean_directions).argmin(1) for y in self.y.split(64)])

    def layer(self) -> list[torch.Tensor]:
        return [self.features, self.weight, self.bias]

    def loss(self, tensors: Sequence[torch.Tensor], way: dict[str, object]) -> torch.Tensor:
        """Ours; a budget is a share of the float32 logits."""
        budget = round(way["logit_budget_bytes"] * self.n * self.c * 4)  # type: ignore[operator]  # a float
        return mvmf_loss(*tensors, self.y, **way | {"logit_budget_bytes": budget})  # type: ignore[arg-type]

    def ours(self, way: dict[str, object], *, frozen: bool = False) -> None:
        features = self.features.detach() if frozen else self.features
        rest = (self.weight, self.bias, self.mean_directions, self.log_concentrations)
        self._backward(self.loss((features, *rest), way))

    def products(self, number: int) -> None:
        if not self.outputs:  # made once: fresh memory would count as a product's time
            shapes = ((self.n, self.c), (self.c, self.d), (self.n, self.d))
            self.outputs = [torch.zeros(shape, device=self.features.device) for shape in shapes]
        logits, d_weight, d_features = self.outputs
        with torch.inference_mode():
            for _ in range(2 if number == 4 else 1):
                products.multiply(self.features, self.weight.T, logits)
            products.multiply(logits.T, self.features, d_weight)
            if number > 2:
                products.multiply(logits, self.weight, d_features)
        if logits.is_cuda:
            torch.cuda.synchronize()

    def plain(self, form: Callable[..., torch.Tensor]) -> None:
        self._backward(form(*self.layer(), self.mean_directions, self.log_concentrations, self.y))

    def cross_entropy(self, *, fused: bool) -> None:
        if fused:
            options = (
                functional.LinearCrossEntropyOptions() if hasattr(functional, "LinearCrossEntropyOptions") else None
            )
            loss = functional.linear_cross_entropy(
                self.features, self.weight, self.nearest, linear_bias=self.bias, options=options
            )
        else:
            loss = functional.cross_entropy(functional.linear(*self.layer()), self.nearest)
        self._backward(loss)

    def _backward(self, loss: torch.Tensor) -> None:
        for tensor in self.layer():
            tensor.grad = None
        loss.backward()
        if loss.is_cuda:
            torch.cuda.synchronize()


def plain_form(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mu: torch.Tensor,
    log_k: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """Eq. 4 of the paper, as anybody would write it."""
    z = functional.linear(features, weight, bias)
    log_f = log_density(y, mu, log_k).to(z.dtype)
    return (torch.logsumexp(z, 1) - torch.logsumexp(z + log_f, 1)).mean()


@functools.lru_cache(maxsize=1)
def _even_directions(c: int) -> torch.Tensor:
    """Spread directions evenly (a sunflower), in the order of S2 cells."""
    k = np.arange(c) + 0.5
    z, turn = 1.0 - 2.0 * k / c, k * math.pi * (3.0 - math.sqrt(5.0))
    directions = np.stack([np.sqrt(1.0 - z * z) * np.cos(turn), np.sqrt(1.0 - z * z) * np.sin(turn), z], axis=1)
    return torch.from_numpy(directions[np.argsort(s2.leaf_ids(directions))])


def _log_concentrations(concentration: str, c: int, generator: torch.Generator) -> torch.Tensor:
    if concentration == "mixed":
        return 20.0 * torch.rand(c, generator=generator, dtype=torch.float64, device=generator.device)
    if concentration == "auto":
        edge = math.sqrt(4.0 * math.pi / c)
        return torch.full((c,), math.log(-2.0 * math.log(0.05) / edge**2), dtype=torch.float64)
    return torch.full((c,), float(concentration), dtype=torch.float64)


def _section(shape: str, options: argparse.Namespace) -> str:
    parts = [f"## {' x '.join(shape.split('x'))} (images x features x components)"]
    for concentration in options.concentrations.split(","):
        parts.append(_times(shape, concentration, options))
    parts += [_memories(shape), _errors(shape)]
    return "\n\n".join(parts)


def _times(shape: str, concentration: str, options: argparse.Namespace) -> str:
    problem = Problem(shape, concentration)
    works: dict[str, Callable[[], object]] = {
        f"{number} products": lambda number=number: problem.products(number) for number in (2, 3, 4)
    }
    works |= {name: lambda way=way: problem.ours(way) for name, way in OURS.items()}
    works["features frozen"] = lambda: problem.ours({"logit_budget_bytes": 1.0}, frozen=True)
    if problem.n * problem.c <= PLAIN_UP_TO:
        works["plain"] = lambda: problem.plain(plain_form)
        if not options.no_compile:
            compiled = torch.compile(plain_form, dynamic=False)
            works["plain, torch.compile"] = lambda: problem.plain(compiled)
        works["cross entropy, plain"] = lambda: problem.cross_entropy(fused=False)
        works["cross entropy, linear_cross_entropy"] = lambda: problem.cross_entropy(fused=True)
    for work in works.values():
        work()
    found = record.interleaved(works, options.repeats)
    rows = []
    for name, costs in found.items():
        row = [name, record.spread([1e3 * cost.wall for cost in costs], 0)]
        for base in (AGAINST.get(name, "3 products"), "exponentials kept (float32)"):
            row.append(record.spread([a.wall / b.wall for a, b in zip(costs, found[base], strict=True)], 2))
        rows.append([*row[:2], AGAINST.get(name, "3 products"), *row[2:]])
    head = ("", "ms", "against", "ratio", "of ours with kept exponentials")
    title = "log concentration "
    return f"### {title}{concentration}\n\n{record.table(head, rows)}"


def _memories(shape: str) -> str:
    n, _, c = map(int, shape.split("x"))
    whole = n * c * 4 / 2**20
    rows = []
    for way in (*OURS, "plain"):
        if way == "plain" and n * c > PLAIN_UP_TO:
            continue
        command = [sys.executable, __file__, "--child", way, shape]
        runs = [subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(3)]
        found = [json.loads(run) for run in runs]
        rows.append([way, record.spread(found, 0), f"{statistics.median(found) / whole:.2f}"])
    head = ("log concentration auto", "MiB", f"in arrays of images x components ({whole:.0f} MiB)")
    return (
        "### Memory beyond inputs and gradients (rise of VmHWM after a step whose memory was given back)\n\n"
        + record.table(head, rows)
    )


def _memory(way: str, shape: str) -> float:
    run = (lambda p: p.plain(plain_form)) if way == "plain" else (lambda p: p.ours(OURS[way]))
    problem = Problem(shape, "auto")
    run(problem)  # what libraries keep for ever is there
    for tensor in problem.layer():
        tensor.grad = None
    idle_memory.release()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again at what is held now
    before = record.peak_kib()
    run(problem)
    gradients = 4 * problem.d * (problem.n + problem.c) / 1024
    return (record.peak_kib() - before - gradients) / 1024


def _errors(shape: str) -> str:
    rows = []
    for concentration in CONCENTRATIONS:
        problem = Problem(shape, concentration)
        tensors = [
            *problem.layer(),
            problem.mean_directions.requires_grad_(),
            problem.log_concentrations.requires_grad_(),
        ]
        exact, expected = _float64(problem, tensors)
        for name, way in OURS.items():
            loss = problem.loss(tensors, way)
            found = torch.autograd.grad(loss, tensors)
            value = abs(float(loss.detach()) - exact) / max(1.0, abs(exact))
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
            rows.append([concentration, name, f"{value:.0e}", *(f"{error:.0e}" for error in errors)])
    head = ("log concentration", "", "loss", "features", "weight", "bias", "mean directions", "log concentrations")
    return f"### Errors against float64: |dL| / max(1, |L|), |g - g64| / |g64|\n\n{record.table(head, rows)}"


def _float64(problem: Problem, tensors: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """The plain form in float64, some rows at a time."""
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    rows, total = 64, 0.0
    for start in range(0, problem.n, rows):
        run = slice(start, start + rows)
        loss = plain_form(wide[0][run], *wide[1:], problem.y[run]) * (len(wide[0][run]) / problem.n)
        loss.backward()
        total += float(loss.detach())
    return total, [tensor.grad for tensor in wide if tensor.grad is not None]


if __name__ == "__main__":
    main()
