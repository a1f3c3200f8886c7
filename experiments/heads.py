"""Heads trained on frozen features and judged on test chips: one job a head, two side by side, none done twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagery
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from geo_mvmf import durable, sphere
from geo_mvmf.maps import estimates, ranks
from geo_mvmf.model import measurement
from geo_mvmf.model.class_head import CrossEntropyHead
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.loss import mvmf_loss
from geo_mvmf.model.methods import Method
from geo_mvmf.model.partition import initial_log_concentrations, partition_sphere
from geo_mvmf.model.sources import Batch

FloatArray = npt.NDArray[np.float64]

RATE = 1e-3
_BLOCK = 256  # test chips at once
_FEW = 64  # where densities are formed
_JUDGED = 7  # prime to the number of months, so that all of them come up


@dataclasses.dataclass(frozen=True)
class Job:
    """One head.

    Parameters
    ----------
    method : {"mvmf", "cross_entropy"}
    power : int
        The partition has at least 2^power S2 cells, 6 + 3 j of them.
    steps, batch : int
    log_concentration : "auto" or float
        MvMF: of all components at the beginning and, being frozen as in the paper, at the end.
    floor : bool
        MvMF: cut the likelihood where the authors' code does (`authors_floor`).
    smoothing_km : float, optional
        Cross entropy: labels smoothed as in PIGEON.
    is_trained : bool
        MvMF: mean directions and concentrations are trained, too.
    seed : int
    is_judged : bool
        Whether densities are judged as well as points: searched probability and area.
    """

    method: str
    power: int
    steps: int
    batch: int
    log_concentration: str | float = "auto"
    floor: bool = False
    smoothing_km: float | None = None
    is_trained: bool = False
    seed: int = 0
    is_judged: bool = False

    @property
    def name(self) -> str:
        """What its files are called."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.method}-{self.power}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def authors_floor(log_concentration: float) -> float:
    """Density per steradian to which the authors' code's floor of 1e-9 amounts for a concentration.

    Their components lack the factor kappa / (2 pi) and have a factor e^2 too much.
    """
    return float(1e-9 * np.exp(log_concentration - 2.0) / (2.0 * np.pi))


@dataclasses.dataclass(frozen=True)
class Data:
    """What heads are trained on and judged by: standardised features (N, D), directions (N, 3) of both sets."""

    features: npt.NDArray[np.float32]
    directions: FloatArray
    test_features: npt.NDArray[np.float32]
    test_directions: FloatArray

    @classmethod
    def of(cls, frozen: imagery.Frozen) -> Data:
        """Take it from frozen features."""
        places = [sphere.to_directions(each["longitude"], each["latitude"]) for each in (frozen.training, frozen.test)]
        return cls(frozen.features, places[0], frozen.test_features, places[1])

    def save(self, folder: Path) -> None:
        """Keep it for worker processes."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in dataclasses.asdict(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Map what was kept."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def run(jobs: Sequence[Job], data: Data, out: Path, processes: int = 2) -> dict[Job, pd.DataFrame]:
    """Train and judge every head that is not done yet.

    Parameters
    ----------
    jobs : sequence of Job
    data : Data
    out : Path
        Working folder.
    processes : int
        Each computes on one core, so that the results do not depend on their number.

    Returns
    -------
    dict of Job to DataFrame
        A row for every test chip: error_km (of the heaviest class, eq. 7), nll (nats per
        steradian) and, of jobs that are judged, searched_probability and searched_area_km2, NaN for six chips of seven.
    """
    folder = out / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (folder / f"{job.name}.csv").exists()]
    if missing:
        data.save(out / "frozen")
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, initializer=_begin, initargs=(out,)) as pool:
            # the largest first: no process then waits long for the other
            ordered = sorted(missing, key=lambda job: -job.power)
            for number, done in enumerate(pool.imap_unordered(_done, ordered), start=1):
                print(f"{number} of {len(missing)}: {done}", flush=True)
    return {job: pd.read_csv(folder / f"{job.name}.csv") for job in jobs}


_state: dict[str, Any] = {}


def _begin(out: Path) -> None:
    imagery.single_thread()
    _state.update(data=Data.load(out / "frozen"), folder=out / "heads")


def _done(job: Job) -> str:
    head = trained(job, _state["data"])
    found = judged(head, _state["data"], is_judged=job.is_judged)
    durable.write_text(_state["folder"] / f"{job.name}.csv", found.to_csv(index=False), overwrite=True)
    return f"{job}: median {found['error_km'].median():.0f} km"


def trained(job: Job, data: Data) -> MvmfHead | CrossEntropyHead:
    """Train a head as `Job` says; a pure function of it and of the data."""
    longitude, latitude = sphere.to_longitude_latitude(data.directions)
    cells = partition_sphere(longitude, latitude, 2**job.power)
    number = data.features.shape[1]
    head: MvmfHead | CrossEntropyHead
    if job.method == "cross_entropy":
        head = CrossEntropyHead(
            number, cells.cell_ids, prior_counts=cells.counts, seed=job.seed, label_smoothing_km=job.smoothing_km
        )
    else:
        concentrations = initial_log_concentrations(cells, job.log_concentration)
        head = MvmfHead(
            number,
            cells.mean_directions,
            concentrations,
            train_mean_directions=job.is_trained,
            train_log_concentrations=job.is_trained,
            floor=authors_floor(float(concentrations[0])) if job.floor else None,
            prior_counts=cells.counts,
            seed=job.seed,
        )
    config = TrainingConfig(
        stage="head", table="-", out="-", device="cpu", batch_size=job.batch, learning_rate=RATE, schedule="cosine",
        weight_decay=1e-5, seed=job.seed, train_mean_directions=job.is_trained, train_log_concentrations=job.is_trained,
        mean_direction_learning_rate=1e-4, concentration_learning_rate=5e-3,
    )  # fmt: skip
    targets = torch.from_numpy(np.array(data.directions))
    learner = Learner(config, head, None, targets, imagery.SIZE, imagery.PIXEL_KM, job.steps, torch.device("cpu"))
    features = torch.from_numpy(np.array(data.features))
    for step, chosen in enumerate(_batches(len(features), job)):
        learner.train_step(step, Batch(chosen, features[chosen], np.ones(len(chosen), dtype=bool)))
    learner.finish()
    return head


def _batches(count: int, job: Job) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of every step; whole epochs, each in another order."""
    generator = np.random.default_rng([job.seed, 77])
    order = np.empty(0, dtype=np.int64)
    for _ in range(job.steps):
        if len(order) < job.batch:
            order = generator.permutation(count)
        yield order[: job.batch]
        order = order[job.batch :]


def judged(head: MvmfHead | CrossEntropyHead, data: Data, *, is_judged: bool) -> pd.DataFrame:
    """Judge a head by the test chips; see `run`."""
    truth = np.array(data.test_directions)
    parts = []
    for start in range(0, len(truth), _BLOCK):
        block = slice(start, start + _BLOCK)
        features, targets = torch.from_numpy(np.array(data.test_features[block])), torch.from_numpy(truth[block])
        error = measurement.errors_of(head, features, targets)
        parts.append(pd.DataFrame({"error_km": error, "nll": _nll(head, features, targets)}))
    found = pd.concat(parts, ignore_index=True)
    return found.join(_searched(head, data)) if is_judged else found


def judged_method(method: Method, data: Data, points: FloatArray | None = None) -> pd.DataFrame:
    """Judge any method by the test chips; see `run`.

    Parameters
    ----------
    method : Method
    data : Data
    points : array of float64, shape (N, 2), optional
        Its own estimates, longitude and latitude; otherwise that of the heaviest component (eq. 7).
    """
    truth = np.array(data.test_directions)
    estimated, nll = [], []
    for start in range(0, len(truth), _FEW):
        block = slice(start, start + _FEW)
        mixture = method.mixture(torch.from_numpy(np.array(data.test_features[block])))
        estimated.append(estimates.estimate(mixture, "component"))
        nll.append(-np.diag(mixture.log_density(truth[block])))
    places = np.concatenate(estimated) if points is None else points
    error = sphere.angle(sphere.to_directions(*places.T), truth) * sphere.EARTH_RADIUS_KM
    return pd.DataFrame({"error_km": error, "nll": np.concatenate(nll)}).join(_searched(method, data))


def _searched(method: Method, data: Data) -> pd.DataFrame:
    """Searched probability and area, of every `_JUDGED`-th test chip: each takes some hundredths of a second."""
    rows = np.arange(0, len(data.test_features), _JUDGED)
    uniform = np.random.default_rng(3).random(len(rows))
    parts = []
    for start in range(0, len(rows), _FEW):
        chosen = rows[start : start + _FEW]
        mixture = method.mixture(torch.from_numpy(np.array(data.test_features[chosen])))
        where = sphere.to_longitude_latitude(np.array(data.test_directions[chosen]))
        parts.append(ranks.ranks(mixture, *where, uniform[start : start + _FEW]))
    return pd.concat(parts, ignore_index=True).drop(columns="log_density").set_axis(rows)


def _nll(head: MvmfHead | CrossEntropyHead, features: torch.Tensor, targets: torch.Tensor) -> FloatArray:
    """Negative log density at the truth, whatever floor or smoothing the training had."""
    if isinstance(head, CrossEntropyHead):
        return measurement.losses_of(head, features, targets)
    with torch.no_grad():
        coordinates = head.mean_directions, head.log_concentrations, targets
        return mvmf_loss(features, head.weight, head.bias, *coordinates, reduction="none").double().numpy()
