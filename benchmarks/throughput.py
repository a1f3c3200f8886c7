"""Images a second of each stage: decoding, network, output layer, one training step of it, and all of `predict`.

python benchmarks/throughput.py                  # perhaps 10 minutes on 2 idle cores
python benchmarks/throughput.py --device cuda    # writes results/throughput_cuda.md
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import photos
import record
import torch
from loss import Problem
from torch import nn

from geo_mvmf import predict, read_image_table
from geo_mvmf.inputs import images, tables
from geo_mvmf.model import heaviest
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.sources import Batch
from geo_mvmf.model.untrained import untrained_bundle

BACKBONES = ("resnet50", "wide_resnet50_2", "chip_resnet10")
HEADS = ("512x256x65536", "512x2048x16384", "512x2048x65536")  # images x features x components
TAIL = 1e-4  # of an image's weight may be left out
SPREAD = 6.0  # standard deviation of the logits: about one component in twelve is heavy enough to count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="JPEGs")
    parser.add_argument("--width", type=int, default=1600, help="of a JPEG, in pixels")
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--heads", default=",".join(HEADS), help="images x features x components")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "photos", options.images, options.width)
        frame = pd.DataFrame({"path": [f"photos/{i}.jpg" for i in range(options.images)]})
        table = read_image_table(frame, root=folder)
        sections = [_photos(table, folder, options), *(_head(shape, options) for shape in options.heads.split(","))]
    name = "throughput" if options.device == "cpu" else "throughput_cuda"
    record.write(name, "Images a second", "\n\n".join(sections))


def _rates(works: dict[str, Callable[[], object]], number: int, repeats: int) -> list[list[str]]:
    """Median and range of images a second of each work, which does so many images at a time."""
    for work in works.values():
        work()
    found = record.interleaved(works, repeats)
    rows = []
    for name, costs in found.items():
        rate = [number / cost.wall for cost in costs]
        rows.append([name, record.spread(rate, 0 if statistics.median(rate) >= 100 else 1)])
    return rows


def _photos(table: pd.DataFrame, folder: Path, options: argparse.Namespace) -> str:
    paths, works = tables.absolute_paths(table), {}
    for name in options.backbones.split(","):
        bundle = _bundle(name, options.device)
        pixels = _decoded(paths, bundle, options.workers)
        works |= {
            f"decoding for {name} ({bundle.spec.crop} pixels)": lambda b=bundle: _decoded(paths, b, options.workers),
            f"{name}, forward": lambda b=bundle, p=pixels: _forward(b, p, options.batch_size),
            f"predict with {name}": lambda b=bundle: predict(
                b, table, out=folder / "a.nc", batch_size=options.batch_size, workers=options.workers, overwrite=True
            ),
        }
    rows = _rates(works, options.images, options.repeats)
    return f"""## {options.images} JPEGs of {options.width} x {options.width * 3 // 4}

{options.workers} threads decode, {torch.get_num_threads()} compute; batches of {options.batch_size}; random weights,
few components. `predict` is everything, from the files to the predictions file on disk.

{record.table(("", "images a second"), rows)}"""


def _bundle(name: str, device: str) -> Bundle:
    backbone, plain = build_backbone(name, seed=0), untrained_bundle()
    components, features = plain.num_components, backbone.num_features
    head = MvmfHead(features, plain.mean_directions, plain.log_concentrations, seed=0)
    bundle = dataclasses.replace(
        plain,
        backbone=backbone.eval(),
        head=head.eval(),
        spec=backbone.image_spec,
        counts=np.ones(components, np.int64),
        feature_mean=np.zeros(features, np.float32),
        feature_std=np.ones(features, np.float32),
        digest=f"of a benchmark: {name}",
    )
    return bundle.to(device)


def _decoded(paths: list[Path], bundle: Bundle, workers: int) -> torch.Tensor:
    return torch.from_numpy(np.stack(list(images.read_images(paths, bundle.spec, workers=workers))))


def _forward(bundle: Bundle, pixels: torch.Tensor, batch_size: int) -> None:
    with torch.inference_mode():
        for batch in pixels.split(batch_size):
            bundle.backbone(batch.to(bundle.device)).cpu()


def _head(shape: str, options: argparse.Namespace) -> str:
    problem = Problem(shape, "auto", options.device)
    features, weight, bias = (each.detach() for each in problem.layer())
    weight.mul_(SPREAD / float((features[:8] @ weight.T).std()))
    n, d, c = problem.n, problem.d, problem.c
    config = TrainingConfig(stage="head", table="-", out="-", batch_size=n, device=options.device)
    head = MvmfHead(d, problem.mean_directions.cpu().numpy(), problem.log_concentrations.cpu().numpy())
    learner = Learner(config, head, None, problem.y.cpu(), 8, 1.0, 10**6, torch.device(options.device))
    batch = Batch(np.arange(n), features.cpu(), np.ones(n, dtype=bool))
    steps = iter(range(10**6))

    def plain() -> None:
        with torch.inference_mode():
            weights = torch.log_softmax(nn.functional.linear(features, weight, bias), dim=1)
            weights.topk(min(256, c), dim=1).values.cpu()

    def product() -> None:
        with torch.inference_mode():
            float((features @ weight.T)[0, 0])

    works = {
        "product alone": product,
        "all that hold more than 1e-4 together, streamed": lambda: heaviest.heaviest(features, weight, bias, TAIL),
        "log softmax and its 256 largest, by torch": plain,
        "training step of the head (features in memory, Adam)": lambda: learner.train_step(next(steps), batch),
    }
    kept = len(heaviest.heaviest(features, weight, bias, TAIL).component) / n
    rows = _rates(works, n, options.repeats)
    return f"""## Output layer: {n} images, {d} features, {c} components

{kept:.0f} components an image hold all but 1e-4 of its weight.

{record.table(("", "images a second"), rows)}"""


if __name__ == "__main__":
    main()
