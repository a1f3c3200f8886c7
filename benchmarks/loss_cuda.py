"""The streamed losses on a CUDA device, and whole training steps of huge heads; loss.py --device cuda runs this.

Times are between CUDA events, memory is what torch's allocator held at most. On device "cpu" the same code runs with a
clock in their place, to see that it works: `run` of a tiny shape, both epilogues with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import loss
import record
import torch
from torch import nn
from torch.nn import functional

from geo_mvmf.model import epilogue_choice, products, streaming
from geo_mvmf.model.fused_optimiser import FusedAdam
from geo_mvmf.model.loss import mvmf_loss

SHAPES = (
    "512x2048x16384",
    "1024x256x65536",
    "512x2048x65536",
    "4096x2048x131072",
    "512x2048x1048576",
    "1024x256x1048576",
    "512x256x8388608",
)
STEP_SHAPES = ("512x2048x1048576", "512x256x8388608")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}  # of the products' factors
WAYS = {name: way | {"logit_budget_bytes": float(way["logit_budget_bytes"] != 0.0)} for name, way in loss.OURS.items()}
MOMENTS = {"float32": (None, 24), "bfloat16": (torch.bfloat16, 16)}  # bytes a parameter that Adam has to move
COPIED = 1 << 30  # values, to measure the bandwidth

_INTRODUCTION = """Forward and backward pass, gradients by features, weight and bias (mean directions and
concentrations fixed, as in the paper). "bfloat16" is autocast: factors of the products rounded, products and everything
else float32. "products" are the matrix products alone, chunk by chunk as the loss has them, into arrays that are there,
factors rounded beforehand: 3 for the logits and two gradients, 4 where logits are computed twice, 2 without the
gradient by features. Ratios are medians (and ranges) of ratios within one turn; every turn runs all ways. Memory is
torch.cuda.max_memory_allocated beyond inputs and gradients. Log concentration "auto": 95 % within a cell's edge."""


def run(options: argparse.Namespace) -> None:
    """Measure every shape; what does not fit into memory is said and left out."""
    body = [_INTRODUCTION]
    for shape in options.shape or SHAPES:
        body.append(f"## {' x '.join(shape.split('x'))} (images x features x components)")
        for part in (_times, _memories, _errors):
            with _released():
                body.append(part(shape, options))
        _write(body, options)  # a run that is cut off leaves what it has
    for shape in options.shape or STEP_SHAPES:
        with _released():
            body.append(_steps(shape, options))
        _write(body, options)


def _write(body: list[str], options: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if options.device != "cpu" else "no GPU used"
    record.write("loss_cuda", "The streamed MvMF loss on a GPU", "\n\n".join(body), device=device)


@contextlib.contextmanager
def _released() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one run, by CUDA events."""
    if device == "cpu":
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(works: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Run everything twice to warm up, then in turns; without what does not fit into memory."""
    found: dict[str, list[float]] = {}
    for name, work in works.items():
        try:
            for _ in range(2):
                work()
            found[name] = []
        except torch.cuda.OutOfMemoryError:
            print(f"  {name}: does not fit into memory", file=sys.stderr)
            torch.cuda.empty_cache()
    names = list(found)
    for repeat in range(options.repeats if names else 0):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(seconds(works[name], options.device))
    return found


class Bare:
    """The products alone, as the loss has them: chunk by chunk."""

    def __init__(self, problem: loss.Problem, precision: str) -> None:
        self._rounded = PRECISIONS[precision]
        kind = self._rounded or torch.float32
        self._features, self._weight = (t.detach().to(kind) for t in (problem.features, problem.weight))
        device = problem.features.device
        self._parts = streaming.chunks(problem.n, problem.c, device)
        widest = self._parts[0].stop
        self._logits = torch.zeros(problem.n, widest, device=device)
        self._gradient = torch.zeros(problem.n, widest, device=device, dtype=kind)
        self._d_weight = torch.zeros(widest, problem.d, device=device)
        self._d_features = torch.zeros(problem.n, problem.d, device=device)

    def run(self, number: int) -> None:
        multiply = products.multiply_rounded if self._rounded else products.multiply
        with torch.inference_mode():
            for part in self._parts:
                width = part.stop - part.start
                logits, gradient = (array.view(-1)[: array.shape[0] * width].view(-1, width)
                                    for array in (self._logits, self._gradient))  # fmt: skip
                for _ in range(2 if number == 4 else 1):
                    multiply(self._features, self._weight[part].T, logits)
                multiply(gradient.T, self._features, self._d_weight[:width])
                if number > 2:
                    multiply(gradient, self._weight[part], self._d_features, add=True)


def _ours(problem: loss.Problem, way: dict[str, object], epilogues: str, precision: str, *, frozen: bool) -> None:
    with epilogue_choice.using(epilogues), _precision(problem, precision):
        problem.ours(way, frozen=frozen)


def _precision(problem: loss.Problem, precision: str) -> torch.autocast:
    return torch.autocast(problem.features.device.type, torch.bfloat16, enabled=precision != "float32")


def _providers() -> tuple[str, ...]:
    return epilogue_choice.available()


def _times(shape: str, options: argparse.Namespace) -> str:
    problem = loss.Problem(shape, "auto", options.device)
    works: dict[str, Callable[[], object]] = {}
    against: dict[str, str] = {}
    for precision in PRECISIONS:
        bare = Bare(problem, precision)
        works |= {f"{number} products, {precision}": functools.partial(bare.run, number) for number in (2, 3, 4)}
        for epilogues in _providers():
            for name, way in WAYS.items():
                row = f"{name}, {epilogues}, {precision}"
                works[row] = functools.partial(_ours, problem, way, epilogues, precision, frozen=False)
                against[row] = f"{loss.AGAINST[name]}, {precision}"
            row = f"features frozen, {epilogues}, {precision}"
            way = WAYS["exponentials kept (float32)"]
            works[row] = functools.partial(_ours, problem, way, epilogues, precision, frozen=True)
            against[row] = f"2 products, {precision}"
    if problem.n * problem.c <= loss.PLAIN_UP_TO:
        works |= _plain(problem, options)
        against |= {row: "3 products, float32" for row in works if row not in against and "products" not in row}
    found = interleaved(works, options)
    rows = []
    for name, costs in found.items():
        base = against.get(name, name)
        ratios = [a / b for a, b in zip(costs, found[base], strict=True)] if base in found else [float("nan")]
        rate = _rate(name, problem, statistics.median(costs))
        rows.append([name, record.spread([1e3 * cost for cost in costs], 3), base, record.spread(ratios, 2), rate])
    return record.table(("", "ms", "against", "ratio", "Tflop/s"), rows)


def _rate(name: str, problem: loss.Problem, cost: float) -> str:
    if "products" not in name:
        return ""
    return f"{2e-12 * int(name[0]) * problem.n * problem.d * problem.c / cost:.1f}"


def _plain(problem: loss.Problem, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    works = {"plain": lambda: problem.plain(loss.plain_form)}
    if not options.no_compile:
        compiled = torch.compile(loss.plain_form, dynamic=False)
        works["plain, torch.compile"] = lambda: problem.plain(compiled)
    works["cross entropy, plain"] = lambda: problem.cross_entropy(fused=False)
    if hasattr(functional, "linear_cross_entropy"):
        works["cross entropy, linear_cross_entropy"] = lambda: problem.cross_entropy(fused=True)
    return works


def _memories(shape: str, options: argparse.Namespace) -> str:
    if options.device == "cpu":
        return "Memory is measured on CUDA alone."
    problem = loss.Problem(shape, "auto", options.device)
    whole = problem.n * problem.c * 4
    works = {
        f"{name}, {epilogues}, {precision}": functools.partial(_ours, problem, way, epilogues, precision, frozen=False)
        for precision in PRECISIONS for epilogues in _providers() for name, way in WAYS.items()
    }  # fmt: skip
    if problem.n * problem.c <= loss.PLAIN_UP_TO:
        works["plain"] = lambda: problem.plain(loss.plain_form)
    rows = []
    for name, work in works.items():
        try:
            held = _peak(work, problem)
            rows.append([name, f"{held / 2**20:.0f}", f"{held / whole:.3f}"])
        except torch.cuda.OutOfMemoryError:
            rows.append([name, "does not fit", ""])
            torch.cuda.empty_cache()
    return record.table(("", "MiB", f"in arrays of images x components ({whole / 2**20:.0f} MiB)"), rows)


def _peak(work: Callable[[], object], problem: loss.Problem) -> int:
    work()  # what is made once is there
    for tensor in problem.layer():
        tensor.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    gradients = sum(t.grad.numel() * t.grad.element_size() for t in problem.layer() if t.grad is not None)
    return torch.cuda.max_memory_allocated() - before - gradients


def _errors(shape: str, options: argparse.Namespace) -> str:
    n, _, c = map(int, shape.split("x"))
    if n * c > loss.PLAIN_UP_TO:
        return "Errors: of smaller shapes alone; float64 takes long."
    rows = []
    for concentration in ("8", "16", "mixed"):
        problem = loss.Problem(shape, concentration, options.device)
        components = [problem.mean_directions.requires_grad_(), problem.log_concentrations.requires_grad_()]
        tensors = [*problem.layer(), *components]
        exact, expected = loss._float64(problem, tensors)  # noqa: SLF001 (one benchmark in two files)
        for precision, epilogues, name in itertools.product(PRECISIONS, _providers(), WAYS):
            with epilogue_choice.using(epilogues), _precision(problem, precision):
                found = problem.loss(tensors, WAYS[name])
                gradients = torch.autograd.grad(found, tensors)
            value = abs(float(found.detach()) - exact) / max(1.0, abs(exact))
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients, expected, strict=True)]
            cells = [f"{error:.0e}" for error in (value, *errors)]
            rows.append([concentration, f"{name}, {epilogues}, {precision}", *cells])
    head = ("log concentration", "", "loss", "features", "weight", "bias", "mean directions", "log concentrations")
    return f"Errors against float64: |dL| / max(1, |L|), |g - g64| / |g64|\n\n{record.table(head, rows)}"


class Step:
    """A training step of a head: loss, backward pass and Adam, fused into the chunks or torch's own."""

    def __init__(self, problem: loss.Problem, moments: str | None) -> None:
        self._problem = problem
        self._weight, self._bias = (nn.Parameter(tensor.detach()) for tensor in (problem.weight, problem.bias))
        rest = [self._bias] if moments is not None else [self._weight, self._bias]
        self._adam = torch.optim.Adam(rest, lr=1e-4, fused=True)
        self._fused = None if moments is None else FusedAdam(self._weight, moment_type=MOMENTS[moments][0])

    def run(self, epilogues: str, precision: str, *, frozen: bool, budget: int) -> None:
        problem = self._problem
        features = problem.features.detach() if frozen else problem.features
        features.grad = self._weight.grad = self._bias.grad = None
        if self._fused is not None:
            self._fused.open_step(1e-4)
        with epilogue_choice.using(epilogues), _precision(problem, precision):
            found = mvmf_loss(
                features, self._weight, self._bias, problem.mean_directions, problem.log_concentrations, problem.y,
                logit_budget_bytes=budget, kept_type="bfloat16", weight_update=self._fused,
            )  # fmt: skip
        found.backward()
        self._adam.step()
        if self._fused is not None:
            self._fused.close_step()


def _steps(shape: str, options: argparse.Namespace) -> str:
    """Seconds of a step beside the larger of its products and its optimiser's traffic, both as measured here."""
    problem = loss.Problem(shape, "auto", options.device)
    title = f"## A training step: {' x '.join(shape.split('x'))} (images x features x components)"
    bandwidth = _bandwidth(options)
    budget = problem.n * problem.c * 2  # all exponentials, as bfloat16
    rows = []
    for precision in PRECISIONS:
        bare = Bare(problem, precision)
        bound = {
            number: statistics.median(interleaved({"": functools.partial(bare.run, number)}, options)[""])
            for number in (2, 3)
        }
        del bare
        for moments in (*MOMENTS, None):
            traffic = (24 if moments is None else MOMENTS[moments][1]) * problem.c * problem.d / bandwidth
            rows += _step_rows(problem, moments, precision, options, bound, traffic, budget)
            gc.collect()
    head = (
        "optimiser",
        "",
        "features",
        "ms",
        "products, ms",
        "optimiser's traffic, ms",
        "ratio to the larger",
        "GiB at most",
    )
    text = (
        "Loss with exponentials kept as bfloat16, backward pass, Adam. The optimiser's traffic is what Adam alone has "
        f"to move (weight and moments, read and written) at {bandwidth / 1e12:.2f} TB/s, the rate at which this "
        "device copies."
    )
    return f"{title}\n\n{text}\n\n{record.table(head, rows)}"


def _step_rows(
    problem: loss.Problem,
    moments: str | None,
    precision: str,
    options: argparse.Namespace,
    bound: Mapping[int, float],
    traffic: float,
    budget: int,
) -> list[list[object]]:
    name = "torch.optim.Adam" if moments is None else f"fused, moments in {moments}"
    rows: list[list[object]] = []
    for frozen in (True, False):
        bare = bound[2 if frozen else 3]
        for epilogues in _providers():
            try:
                step = Step(problem, moments)
                work = functools.partial(step.run, epilogues, precision, frozen=frozen, budget=budget)
                held = ""
                if options.device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                costs = interleaved({"": work}, options)[""]
                if options.device != "cpu":
                    held = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
                ratio = record.spread([cost / max(bare, traffic) for cost in costs], 2)
                cells = [
                    record.spread([1e3 * cost for cost in costs], 2),
                    f"{1e3 * bare:.2f}",
                    f"{1e3 * traffic:.2f}",
                    ratio,
                ]
                rows.append([name, f"{epilogues}, {precision}", "frozen" if frozen else "trained", *cells, held])
            except (torch.cuda.OutOfMemoryError, KeyError):
                rows.append([name, f"{epilogues}, {precision}", "does not fit", "", "", "", "", ""])
            step = work = None  # its arrays go before the next one's are made
            if options.device != "cpu":
                gc.collect()
                torch.cuda.empty_cache()
    return rows


def _bandwidth(options: argparse.Namespace) -> float:
    """Bytes a second, read and written."""
    count = COPIED if options.device != "cpu" else 1 << 16
    source = torch.ones(count, device=options.device)
    target = torch.empty_like(source)
    costs = interleaved({"": lambda: target.copy_(source)}, options)[""]
    return 8.0 * count / statistics.median(costs)
