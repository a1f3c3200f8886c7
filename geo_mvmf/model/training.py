"""Training: one job for the paper's three stages, with checkpoints, resumed bit by bit after any kill.

The run folder holds config.json (what decides the result), log.jsonl, the last two checkpoints, and at the end the
bundle. The same command goes on where the last checkpoint stopped, and returns at once where the bundle
is there already.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import append_log, durable, folder_lock, progress
from geo_mvmf.errors import OutputError, TrainingError, UsageError
from geo_mvmf.model import checkpoint, devices, products
from geo_mvmf.model.bundle import Bundle, load_bundle
from geo_mvmf.model.configuration import TrainingConfig, read_config
from geo_mvmf.model.image_set import ImageSet, epoch_order, load_image_set
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.preparation import Prepared, prepare
from geo_mvmf.model.release import released_path, write_release
from geo_mvmf.progress import Progress

# What may differ when a run goes on: it changes nothing in the result.
_FREE = (
    "out", "workers", "log_steps", "checkpoint_steps", "checkpoint_seconds", "cache_images_gigabytes", "device",
    "threads", "cache_dir",
)  # fmt: skip
_SPEED_SECONDS = 10.0


def train(
    config: TrainingConfig | str | os.PathLike[str],
    *,
    overwrite: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Bundle:
    """Train a model, or go on with a run that was stopped.

    Parameters
    ----------
    config : TrainingConfig or path
        A path is read as TOML.
    overwrite : bool
        Whether to throw away what the run folder holds and start again.
    report : callable, optional
        Called with every progress event.

    Returns
    -------
    Bundle
        The released model, on the CPU.

    Raises
    ------
    UsageError
        If an option is wrong, or the run folder was started with other options.
    BadInputError
        If tables, images or weights cannot be used.
    TrainingError
        If there is nothing to train on, the loss is not finite, or the data changed since the run began.
    LockedError
        If another process trains in this folder.
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> train(TrainingConfig(stage="backbone", table="a.csv", out="run", polygons="countries.gpkg"))
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: stage backbone makes a backbone and no bundle: run train_job, whose result is the
    path of its weights
    """
    config = _as_config(config)
    if config.stage == "backbone":
        raise UsageError(
            "stage backbone makes a backbone and no bundle: run train_job, whose result is the path of its weights"
        )
    return load_bundle(progress.run(train_job(config, overwrite=overwrite), report), device="cpu")


def train_job(
    config: TrainingConfig | str | os.PathLike[str], *, overwrite: bool = False
) -> Generator[Progress, None, Path]:
    """Train a model step by step; closing the generator stops it, to go on from the last checkpoint.

    Parameters
    ----------
    config : TrainingConfig or path
    overwrite : bool
        As `train`.

    Yields
    ------
    Progress
        Stages "read", "features" or "load", "train" and "write".

    Returns
    -------
    Path
        bundle.safetensors, or backbone.safetensors after stage backbone, in the run folder.

    Raises
    ------
    GeoMvmfError
        As `train`.

    Examples
    --------
    >>> job = train_job(TrainingConfig(stage="head", table="/no/such.csv", out="/tmp/geo-mvmf-doctest-run"))
    >>> job.close()
    """
    config = _as_config(config)
    folder, result = Path(config.out), released_path(config)
    with folder_lock.holding(folder):
        durable.sweep(folder)
        _open_folder(config, folder, overwrite=overwrite)
        if result.exists():
            yield Progress("train", 1, 1, f"finished before: {result}")
            return result
        newest, damaged = checkpoint.read_newest(folder)
        with (
            append_log.AppendLog(folder / "log.jsonl") as log,
            devices.threads(_threads(config, newest)) as threads,
            products.using(_products(newest)),
        ):
            device = devices.choose_device(config.device)
            log.write(_start_record(config, device, threads, newest, damaged))
            image_set = yield from load_image_set(config)
            prepared = yield from prepare(config, image_set, device, folder)
            run = _Run(config, prepared, folder, log, threads)
            run.resume(newest)
            yield from run.steps()
            yield Progress("write", 0, 1, str(result))
            write_release(config, prepared, run.learner)
            log.write({"event": "end", "result": result.name, **run.learner.best})
    yield Progress("write", 1, 1, str(result))
    return result


class _Run:
    """The steps of one run: order of the images, validation, checkpoints, log."""

    def __init__(
        self, config: TrainingConfig, prepared: Prepared, folder: Path, log: append_log.AppendLog, threads: int
    ) -> None:
        self.config, self.prepared, self.folder, self.log, self.threads = config, prepared, folder, log, threads
        self.image_set: ImageSet = prepared.image_set
        self.batch_size = min(config.batch_size, len(self.image_set.training))
        self.steps_per_epoch = len(self.image_set.training) // self.batch_size
        self.total = config.steps or max(1, round(config.num_epochs * self.steps_per_epoch))
        self.learner: Learner = prepared.learner(self.total)
        self.first = 0
        _check_batch(self.batch_size, self.learner)
        self.losses: list[float] = []

    def resume(self, newest: checkpoint.Checkpoint | None) -> None:
        """Take over the state of the newest checkpoint."""
        if newest is None:
            return
        if newest.facts["data"] != self.image_set.digest():
            raise TrainingError(
                f"{self.folder}: the images, places or weights changed since the run began; put them back, or use "
                "overwrite to start again"
            )
        self.learner.restore(newest.tensors, newest.facts["best"])
        self.first = newest.step
        for path in checkpoint.checkpoint_paths(self.folder):
            if path.name > f"checkpoint-{newest.step:010d}.safetensors":
                path.unlink()  # damaged, or it would not have been passed over

    def steps(self) -> Generator[Progress, None, None]:
        """Do all steps that are left."""
        saved, speed = time.monotonic(), _Speed(self.batch_size)
        for step, batch in zip(
            range(self.first, self.total), self.prepared.source.batches(self._orders()), strict=False
        ):
            self.losses.append(self.learner.train_step(step, batch))
            done = step + 1
            speed.tick()
            if done % self.config.log_steps == 0 or done == self.total:
                self._log_step(done, speed)
            if done % (self.config.validate_steps or self.steps_per_epoch) == 0 or done == self.total:
                self._validate(done)
            late = time.monotonic() - saved >= self.config.checkpoint_seconds
            if (done % self.config.checkpoint_steps == 0 or late) and done < self.total:
                self._save(done)
                saved = time.monotonic()
            yield Progress("train", done, self.total, speed.message(self.losses[-1], self.total - done))

    def _orders(self) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of every step from the first that is left, a pure function of (seed, step)."""
        epoch, place = divmod(self.first, self.steps_per_epoch)
        last = -(-self.total // self.steps_per_epoch)
        for number in range(epoch, last):
            order = self.image_set.training[epoch_order(self.prepared.weights, self.config.seed, number)]
            for step in range(place if number == epoch else 0, self.steps_per_epoch):
                if number * self.steps_per_epoch + step < self.total:
                    yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def _validate(self, done: int) -> None:
        rows = self.image_set.validation
        if len(rows) == 0:
            return
        parts = [rows[begin : begin + self.batch_size] for begin in range(0, len(rows), self.batch_size)]
        measured = self.learner.evaluate(self.prepared.evaluation_source.batches(parts), self.image_set.weight)
        best = self.learner.keep_if_best(done, measured)
        self.log.write({"event": "validation", "step": done, **measured, "best": best})

    def _save(self, done: int) -> None:
        facts = {
            "data": self.image_set.digest(),
            "threads": self.threads,
            "provider": devices.provider(self.learner.device),
            "products": products.current(),
            "best": self.learner.best,
        }
        checkpoint.write_checkpoint(self.folder, checkpoint.Checkpoint(done, self.learner.tensors(), facts))
        self.log.write({"event": "checkpoint", "step": done})

    def _log_step(self, done: int, speed: _Speed) -> None:
        record = {"event": "step", "step": done, "loss": float(np.mean(self.losses))}
        rate = self.learner.optimiser.param_groups[0]["lr"]
        self.log.write({**record, "learning_rate": rate, "rows_per_second": round(speed.rows_per_second, 1)})
        del self.losses[:-1]


class _Speed:
    """Rows per second over the last seconds."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.ticks = [time.monotonic()]

    def tick(self) -> None:
        """Note that a step is done."""
        self.ticks.append(time.monotonic())
        while len(self.ticks) > 2 and self.ticks[-1] - self.ticks[0] > _SPEED_SECONDS:
            self.ticks.pop(0)

    @property
    def rows_per_second(self) -> float:
        """Rows per second."""
        return (len(self.ticks) - 1) * self.batch_size / max(self.ticks[-1] - self.ticks[0], 1e-9)

    def message(self, loss: float, steps_left: int) -> str:
        """One line for a person."""
        left = steps_left * self.batch_size / max(self.rows_per_second, 1e-9)
        return f"loss {loss:.3f}, {self.rows_per_second:.0f} images/s, {_duration(left)} left"


def _check_batch(batch_size: int, learner: Learner) -> None:
    modules = () if learner.backbone is None else learner.backbone.modules()
    if batch_size == 1 and any(isinstance(module, torch.nn.BatchNorm2d) for module in modules):
        raise TrainingError(
            "batches of 1 image: the batch normalisation of this backbone needs 2 or more; raise batch_size, use more "
            "images, or use stage head"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _as_config(config: TrainingConfig | str | os.PathLike[str]) -> TrainingConfig:
    return config if isinstance(config, TrainingConfig) else read_config(config)


def _products(newest: checkpoint.Checkpoint | None) -> str | None:
    former = None if newest is None else newest.facts.get("products")
    return former if former in products.available() else None


def _threads(config: TrainingConfig, newest: checkpoint.Checkpoint | None) -> int | None:
    return config.threads if newest is None else int(newest.facts["threads"])


def _open_folder(config: TrainingConfig, folder: Path, *, overwrite: bool) -> None:
    path = folder / "config.json"
    if overwrite:
        for name in ("config.json", "log.jsonl", "bundle.safetensors", "backbone.safetensors"):
            (folder / name).unlink(missing_ok=True)
        for old in checkpoint.checkpoint_paths(folder):
            old.unlink()
    wanted = json.loads(json.dumps(config.to_dict()))
    results = (folder / "bundle.safetensors", folder / "backbone.safetensors")
    if not checkpoint.checkpoint_paths(folder) and not any(result.exists() for result in results):
        durable.write_json(path, wanted, overwrite=True)  # nothing is lost yet
    elif path.exists():
        _compare(path, wanted)
    else:
        raise OutputError(f"{folder}: holds a run without config.json; choose another folder, or use overwrite")


def _compare(path: Path, wanted: dict[str, Any]) -> None:
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); choose another folder, or use overwrite") from error
    for name in sorted(wanted.keys() | former.keys()):
        if name not in _FREE and wanted.get(name) != former.get(name):
            raise UsageError(
                f"{path.parent}: this run was started with {name} = {former.get(name)!r}, now it is "
                f"{wanted.get(name)!r}; choose another folder, or use overwrite to start again"
            )


def _start_record(
    config: TrainingConfig,
    device: torch.device,
    threads: int,
    newest: checkpoint.Checkpoint | None,
    damaged: list[str],
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "event": "start" if newest is None else "resume",
        "device": str(device),
        "torch": torch.__version__,
        "threads": threads,
        "provider": devices.provider(device),
        "stage": config.stage,
        "seed": config.seed,
    }
    if newest is not None:
        same = newest.facts["provider"] == record["provider"]
        record |= {"step": newest.step, "damaged_checkpoints": damaged, "bit_identical": same}
    return record
