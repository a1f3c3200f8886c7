"""Prediction over many components, from features: time and memory beyond the output layer's one product.

The network is left out: its place takes a table of random features. The output layer is random and as sharp as
`--kept` asks (components that hold all but 1e-4 of an image's weight, about). Every case runs in a process of its own;
its product, W x + b alone, is measured there in turn with two things: the way from features to mixing weights without
their tails, and `predict`, which ends with the merged predictions file on disk. The product is taken twice, in batches
as the network's and as the output layer's. The run is written to results/predict_scale_run.md; the page
results/predict_scale.md collects those of several machines, by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record
import torch
from PIL import Image
from torch import nn

from geo_mvmf import predict, prediction_densities, prediction_parts, prediction_rows, read_image_table, s2
from geo_mvmf.files import store_parts, stores
from geo_mvmf.model import bundle_weights, heads, heaviest
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.untrained import untrained_bundle
from geo_mvmf.prediction_weights import AllWeights, HeaviestWeights

BATCH = 32


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_measure(options)))
        return
    found = []
    for power in options.powers:
        for images in options.images:
            child = [sys.executable, __file__, "--child", "--powers", str(power), "--images", str(images)]
            child += ["--features", str(options.features), "--kept", str(options.kept)]
            child += ["--repeats", str(options.repeats), "--threads", str(options.threads)]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(found[-1], file=sys.stderr)
    record.write("predict_scale_run", "Prediction over many components, from features", _report(found, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--powers", type=int, nargs="+", default=(18, 20), help="2^p components")
    parser.add_argument("--images", type=int, nargs="+", default=(64, 512))
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--kept", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, and of `predict`")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


class _Given(nn.Module):
    """In the place of a network: the features of the images in their order."""

    def __init__(self, images: int, features: int) -> None:
        super().__init__()
        self.table = torch.randn(images, features, generator=torch.Generator().manual_seed(1))
        self.next = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows = self.table[torch.arange(self.next, self.next + len(pixels)) % len(self.table)]
        self.next = (self.next + len(pixels)) % len(self.table)
        return rows


def _bundle(components: int, images: int, features: int, kept: int) -> Bundle:
    cells = s2.face_cells()
    while cells.size < components:
        cells = s2.children(cells).ravel()
    cells = np.sort(cells)[:components]
    head = heads.MvmfHead(features, s2.centre(cells), np.full(components, 14.0), seed=0)
    given, plain = _Given(images, features), untrained_bundle()
    with torch.no_grad():
        head.weight.mul_(_sharpness(head, given.table[:4], kept))
    return dataclasses.replace(
        plain,
        backbone=given,
        head=head.eval(),
        spec=dataclasses.replace(plain.spec, resize=8, crop=8),
        cell_ids=cells,
        counts=np.ones(components, np.int64),
        feature_mean=np.zeros(features, np.float32),
        feature_std=np.ones(features, np.float32),
        digest="of a benchmark",
    )


def _sharpness(head: heads.MvmfHead, features: torch.Tensor, kept: int) -> float:
    with torch.no_grad():
        logits = features @ head.weight.T
    low, high = 1.0, 1e4
    for _ in range(20):
        middle = (low * high) ** 0.5
        found = stores.prune(torch.log_softmax(logits * middle, dim=1).numpy())
        low, high = (middle, high) if np.diff(found.offsets).mean() > kept else (low, middle)
    return low


def _measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    images, components = options.images[0], 2 ** options.powers[0]
    bundle = _bundle(components, images, options.features, options.kept)
    spent = _watch()
    products, batched, weighed, walls, cpus, parts = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for i in range(images):
            Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(folder / "photos" / f"{i:05d}.png")
        table = read_image_table(folder / "photos")
        predict(bundle, table.iloc[:BATCH], workers=options.threads)  # what is made once
        base = _reset_peak()
        for _ in range(options.repeats):
            products.append(_product(bundle, images, BATCH))
            batched.append(_product(bundle, images, prediction_parts.HEAD_IMAGES))
            weighed.append(_weights(bundle, images))
            spent.clear()
            begun, cpu = time.perf_counter(), time.process_time()
            predict(bundle, table, out=folder / "a.nc", batch_size=BATCH, workers=options.threads, overwrite=True)
            walls.append(time.perf_counter() - begun)
            cpus.append(time.process_time() - cpu)
            parts.append(dict(spent))
    middle = int(np.argsort(np.divide(walls, products))[len(walls) // 2])
    per = 1e3 / images
    return {
        "power": options.powers[0],
        "images": images,
        "product": products[middle] * per,
        "batched": batched[middle] * per,
        "weights": weighed[middle] * per,
        "weights_ratio": float(np.median(np.divide(weighed, products))),
        "predict": walls[middle] * per,
        "cpu": cpus[middle] * per,
        "ratio": walls[middle] / products[middle],
        "least": min(np.divide(walls, products)),
        "most": max(np.divide(walls, products)),
        "more_mib": (record.peak_kib() - base) / 1024,
        **{name: seconds * per for name, seconds in parts[middle].items()},
    }


def _reset_peak() -> int:
    """Let the peak begin anew, and give the memory in use, KiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return record.peak_kib()


def _product(bundle: Bundle, images: int, batch: int) -> float:
    with torch.inference_mode():
        begun = time.perf_counter()
        for start in range(0, images, batch):
            rows = bundle.backbone.table[start : start + batch]
            nn.functional.linear(rows, bundle.head.weight, bundle.head.bias)
        return time.perf_counter() - begun


def _weights(bundle: Bundle, images: int) -> float:
    """From features to mixing weights without their tails, as `predict` does it."""
    is_streamed = bundle.num_components >= prediction_densities.STREAMED_COMPONENTS
    batch = prediction_parts.HEAD_IMAGES if is_streamed else BATCH
    begun = time.perf_counter()
    for start in range(0, images, batch):
        rows = bundle.backbone.table[start : start + batch]
        if is_streamed:
            HeaviestWeights(bundle_weights.heaviest_weights(bundle, [rows], stores.TAIL)[0]).pruned(
                np.arange(len(rows))
            )
        else:
            with torch.inference_mode():
                logs = bundle.head.log_mixing_weights(rows).numpy()
            AllWeights(logs).pruned(np.arange(len(rows)))
    return time.perf_counter() - begun


def _watch() -> dict[str, float]:
    """Seconds in some functions, by name; of threads they add up."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - begun

        return call

    Bundle.predict = timed("head", Bundle.predict)
    bundle_weights.heaviest = timed("head", heaviest.heaviest)
    for kind in (AllWeights, HeaviestWeights):
        kind.pruned = timed("prune", kind.pruned)
    prediction_rows.RowMaker.fill = timed("summaries", prediction_rows.RowMaker.fill)
    stores.write_part = timed("parts", store_parts.write_part)
    stores.merge_parts = timed("merge", stores.merge_parts)
    return spent


def _report(found: list[dict[str, float]], options: argparse.Namespace) -> str:
    names = ("head", "prune", "summaries", "parts", "merge")
    head = ("components", "images", "product", f"in batches of {prediction_parts.HEAD_IMAGES}", "weights", "predict")
    head += ("its CPU", *names, "weights ratio", "predict ratio (range)", "MiB more")
    rows = []
    for each in found:
        times = [f"{each.get(name, 0.0):.2f}" for name in ("product", "batched", "weights", "predict", "cpu", *names)]
        ratio = f"{each['ratio']:.2f} ({each['least']:.2f} .. {each['most']:.2f})"
        rows.append(
            [
                f"2^{each['power']}",
                each["images"],
                *times,
                f"{each['weights_ratio']:.2f}",
                ratio,
                f"{each['more_mib']:.0f}",
            ]
        )
    return f"""{options.features} features, about {options.kept} components kept, batches of {BATCH},
{options.threads} thread(s); milliseconds an image, of the repeat with the median "predict ratio" of {options.repeats};
the "weights ratio" is the median of all. "weights" is from features to mixing weights without their tails; "predict"
ends with finished rows on disk, and of it "head" is what makes weights, "prune" what leaves their tails out, "parts"
and "merge" are files (what threads spend may overlap all else). Both ratios are to the product in batches of {BATCH};
"MiB more" is the peak beyond what is in use with bundle and libraries loaded.

{record.table(head, rows)}

Target: at most 1.6 times the product at 256 features (and 1.2 at 2048)."""


if __name__ == "__main__":
    main()
