"""What `predict` costs over the bare backbone plus decoding: one process, interleaved, JPEG photos of 1600 x 1200.

The bundle is wide_resnet50_2 at 224 pixels with 2^15 components and random weights. How flat its mixing weights are
decides what the summaries and the file cost, so the output layer is scaled to two cases: "flat", where 95 % of the
components are needed to hold all but 1e-4 of an image's weight (the worst case; only an untrained model is so), and
"peaked", where about 300 are, as in trained models.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import dataclasses
import pstats
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import photos
import record
import torch

from geo_mvmf import predict, prediction_parts, read_image_table
from geo_mvmf.files import stores
from geo_mvmf.inputs import images, tables
from geo_mvmf.model import bundle_format, heads, partition
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import Bundle, load_bundle, save_bundle

WORKERS = 2  # threads that read images, with and without `predict`
HEAVY = 300  # components of a peaked image
KINDS = ("flat", "peaked")
FLAT = 0.95  # share of the components that a flat image needs


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "photos", options.photos)
        rows = [f"photos/{i % options.photos}.jpg" for i in range(options.images)]
        frame = pd.DataFrame({"path": rows, "image_id": [str(i) for i in range(options.images)]})
        table = read_image_table(frame, root=folder)
        unscaled = _bundle(options.components)
        bundles = {kind: _saved(_scaled(unscaled, table, kind), folder / f"{kind}.safetensors") for kind in KINDS}
        if options.profile:
            _profile(bundles[options.profile], table, options)
            return
        found = _measure(bundles, table, folder, options)
    record.write("predict_cost", "Cost of predict over the bare backbone plus decoding", _report(found, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="rows of the table")
    parser.add_argument("--photos", type=int, default=64, help="different JPEG files among them")
    parser.add_argument("--components", type=int, default=2**15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--profile", choices=("flat", "peaked"), help="profile one prediction instead")
    parser.add_argument("--sort", default="tottime", help="order of the profile")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def _bundle(components: int) -> Bundle:
    backbone = build_backbone("wide_resnet50_2", seed=0)
    generator = np.random.default_rng(0)
    towns = generator.uniform((-180.0, -50.0), (180.0, 65.0), (3000, 2))
    places = towns[generator.integers(0, 3000, 500_000)] + generator.normal(0.0, 1.0, (500_000, 2))
    cells = partition.partition_sphere((places[:, 0] + 180.0) % 360.0 - 180.0, places[:, 1], components)
    concentrations = partition.initial_log_concentrations(cells)
    head = heads.MvmfHead(backbone.num_features, cells.mean_directions, concentrations, seed=0)
    return Bundle(
        backbone=backbone.eval(),
        head=head.eval(),
        spec=backbone.image_spec,
        cell_ids=cells.cell_ids,
        counts=cells.counts,
        feature_mean=np.zeros(backbone.num_features, np.float32),
        feature_std=np.ones(backbone.num_features, np.float32),
        metadata={
            "training": {},
            "description": "Random weights, for a benchmark.",
            "licence": "MIT",
            "responsible_use": bundle_format.RESPONSIBLE_USE,
        },
    )


def _scaled(bundle: Bundle, table: pd.DataFrame, kind: str) -> Bundle:
    """Scale the output layer until so many components hold all but 1e-4 of an image's weight."""
    pixels = np.stack(list(images.read_images(tables.absolute_paths(table)[:4], bundle.spec)))
    logits = torch.from_numpy(bundle.predict(pixels)[0]).double()
    wanted = {"peaked": HEAVY, "flat": FLAT * bundle.num_components}[kind]
    low, high = 1e-6, 1e6
    for _ in range(40):
        middle = (low * high) ** 0.5
        kept = stores.prune(torch.log_softmax(logits * middle, dim=1).float().numpy())
        low, high = (middle, high) if np.diff(kept.offsets).mean() > wanted else (low, middle)
    head = copy.deepcopy(bundle.head)
    with torch.no_grad():
        head.weight.mul_(low)
    return dataclasses.replace(bundle, head=head)


def _saved(bundle: Bundle, path: Path) -> Bundle:
    """Save and open a bundle, as users do: one that never was in a file is hashed whenever it predicts."""
    save_bundle(bundle, path)
    return load_bundle(path, device="cpu")


def _bare(bundle: Bundle, paths: list[Path], batch_size: int) -> None:
    """Decode with our own reader, as far ahead as `predict` does, and run the backbone, and nothing else."""
    batch = []
    ahead = batch_size + prediction_parts.AHEAD * WORKERS
    with torch.inference_mode():
        stream = images.read_images(paths, bundle.spec, workers=WORKERS, ahead=ahead)
        for i, pixels in enumerate(stream, start=1):
            batch.append(pixels)
            if len(batch) == batch_size or i == len(paths):
                bundle.backbone(torch.from_numpy(np.stack(batch)))
                batch = []


def _measure(
    bundles: dict[str, Bundle], table: pd.DataFrame, folder: Path, options: argparse.Namespace
) -> dict[str, list[record.Cost]]:
    paths = tables.absolute_paths(table)

    def predicted(kind: str) -> None:
        out = folder / f"{kind}.nc"
        predict(bundles[kind], table, out=out, batch_size=options.batch_size, workers=WORKERS, overwrite=True)

    works = {"bare": lambda: _bare(bundles["flat"], paths, options.batch_size)}
    works |= {kind: (lambda kind=kind: predicted(kind)) for kind in bundles}
    short = table.iloc[: options.batch_size]
    first = {}
    for kind, bundle in bundles.items():  # the first call in a process makes what later ones share
        first[f"first {kind}"] = [record.cost(lambda bundle=bundle: predict(bundle, short)) for _ in range(2)]
    return record.interleaved(works, options.repeats) | first


def _report(found: dict[str, list[record.Cost]], options: argparse.Namespace) -> str:
    rows = []
    for kind in ("bare", "flat", "peaked"):
        wall = record.spread([1e3 * c.wall / options.images for c in found[kind]], 1)
        cpu = record.spread([1e3 * c.cpu / options.images for c in found[kind]], 1)
        ratio = [c.wall / b.wall for c, b in zip(found[kind], found["bare"], strict=True)]
        cpu_ratio = [c.cpu / b.cpu for c, b in zip(found[kind], found["bare"], strict=True)]
        name = {"bare": "bare backbone + decoding", "flat": "predict, flat", "peaked": "predict, peaked"}[kind]
        rows.append([name, wall, record.spread(ratio), cpu, record.spread(cpu_ratio)])
    once = [found[f"first {kind}"][0].wall - found[f"first {kind}"][1].wall for kind in ("flat", "peaked")]
    head = ("", "wall ms per image", "wall ratio", "CPU ms per image", "CPU ratio")
    verdict = [
        statistics.median([c.wall / b.wall for c, b in zip(found[k], found["bare"], strict=True)])
        for k in ("flat", "peaked")
    ]
    return f"""{options.images} rows ({options.photos} different JPEGs of 1600 x 1200), batches of {options.batch_size},
wide_resnet50_2 at 224 pixels, {options.components} components, {torch.get_num_threads()} threads of torch, medians
(and ranges) of {options.repeats} interleaved repeats. Predict ends with the merged predictions file on disk.

{record.table(head, rows)}

Target: at most 1.10. Reached on the wall: flat {verdict[0]:.3f}, peaked {verdict[1]:.3f}.
Once per process and bundle, not in the ratios: {once[0]:.2f} s (flat), {once[1]:.2f} s (peaked)."""


def _profile(bundle: Bundle, table: pd.DataFrame, options: argparse.Namespace) -> None:
    predict(bundle, table.iloc[: options.batch_size])
    profile = cProfile.Profile()
    profile.runcall(predict, bundle, table, batch_size=options.batch_size)
    pstats.Stats(profile).sort_stats(options.sort).print_stats(60)


if __name__ == "__main__":
    main()
