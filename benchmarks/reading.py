"""Reading cached features beside the steps of a head: what of a step's time is lost to it.

A step is simulated: it waits a millisecond without computing, as the loop waits for an accelerator. So whatever the
loop takes longer than without reading is lost, and at least what its own thread computes; that figure bears neighbours
on the machine, which waking up from a wait does not. Batches are drawn as training draws them: a random order of all
rows.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import record
import torch

from geo_mvmf.model.features import FeatureCache
from geo_mvmf.model.sources import Batch, FeatureSource

FEATURES, STEP_SECONDS = 2048, 1e-3
BATCHES = (64, 512)
WAYS = {
    "nothing read": "the same batch again and again: the bare loop",
    "read in the loop, widened to float32": "as it was before",
    "read ahead": "FeatureSource: a thread, and float16 as it is cached",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="rows of the cache, 4 kB each")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder) / "features.npy", options.images)
        rows = [line for size in BATCHES for line in measure(cache, size, options.steps, options.repeats)]
    head = ("images a step", "way", "computed by the loop's thread, ms a step", "by all threads, ms a step",
            "step on the wall, ms", "lost on the wall", "what it is")  # fmt: skip
    body = f"""{record.table(head, rows)}

{options.images} images of {FEATURES} features in float16 ({options.images * FEATURES * 2 / 1e6:.0f} MB, memory-mapped
from a file that the system holds in memory), {options.steps} steps, {options.repeats} interleaved repeats, one thread
of PyTorch; medians and ranges. A step waits {STEP_SECONDS * 1e3:g} ms; the bare loop takes longer by what waking up
takes. Lost is what a step takes longer than a bare one of the same repeat; at most 5 % is the target, which is 0.05 ms
of the loop's thread, where a core is free for the thread that reads. The number of components does not matter to
reading. With a file larger than memory the disk decides: a step of 512 images reads 2 MB in pieces of 4 kB.
"""
    record.write("reading", "Reading cached features beside steps of a millisecond", body)


def make_cache(path: Path, count: int) -> FeatureCache:
    """Write features of noise, and map them."""
    generator = np.random.default_rng(0)
    block = generator.standard_normal((1000, FEATURES), dtype=np.float32).astype(np.float16)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, FEATURES))
    for begin in range(0, count, len(block)):
        file[begin : begin + len(block)] = block[: count - begin]
    file.flush()
    features = np.load(path, mmap_mode="r")
    return FeatureCache(features, generator.permutation(count), ["ok"] * count, [""] * count)


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Rows of endless batches, as an epoch draws them."""
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(count)
        yield from (order[begin : begin + size] for begin in range(0, count - size + 1, size))


def in_the_loop(cache: FeatureCache, orders: Iterator[np.ndarray]) -> Iterator[Batch]:
    for rows in orders:
        yield Batch(rows, torch.from_numpy(cache.rows(rows)), np.ones(len(rows), dtype=np.bool_))


def measure(cache: FeatureCache, size: int, steps: int, repeats: int) -> list[list[str]]:
    """Time every way, and give rows of the table."""
    count = len(cache.index)
    same = Batch(np.arange(size), torch.zeros(size, FEATURES), np.ones(size, dtype=np.bool_))
    sources: dict[str, Callable[[], Iterator[Batch]]] = {
        "nothing read": lambda: itertools.repeat(same),
        "read in the loop, widened to float32": lambda: in_the_loop(cache, batches(count, size)),
        "read ahead": lambda: FeatureSource(cache, torch.device("cpu")).batches(batches(count, size)),
    }
    for source in sources.values():
        loop(source(), steps // 4)
    own: dict[str, list[float]] = {name: [] for name in sources}
    works = {name: lambda n=name, s=source: own[n].append(loop(s(), steps)) for name, source in sources.items()}
    found = record.interleaved(works, repeats)
    bare = [each.wall for each in found["nothing read"]]
    lines = []
    for name, costs in found.items():
        lost = [100.0 * (cost.wall / without - 1.0) for cost, without in zip(costs, bare, strict=True)]
        figures = (
            [1e3 * seconds / steps for seconds in own[name]],
            [1e3 * cost.cpu / steps for cost in costs],
            [1e3 * cost.wall / steps for cost in costs],
        )
        share = "" if name == "nothing read" else f"{record.spread(lost, 1)} %"
        lines.append([str(size), name, *map(record.spread, figures), share, WAYS[name]])
    return lines


def loop(source: Iterator[Batch], steps: int) -> float:
    """Wait for so many steps, each with its batch at hand; give the seconds that this thread computed."""
    begun = time.thread_time()
    for batch in itertools.islice(source, steps):
        _ = batch.inputs.shape
        time.sleep(STEP_SECONDS)
    return time.thread_time() - begun


if __name__ == "__main__":
    main()
