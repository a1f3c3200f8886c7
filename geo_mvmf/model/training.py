"""Training: one job for the paper's three stages, with checkpoints, resumed bit by bit after any kill.

The run folder holds config.json (what decides the result), log.jsonl, the last two checkpoints, and at the end the
bundle. Ctrl-C, and SIGTERM where Python handles it, as on the command line, leave a checkpoint of the step in work,
unless several processes train together. The same command goes on where the last checkpoint stopped, and returns at once
where the bundle is there already. Started by `torchrun`, several processes do it together (docs/many_processes.md).
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import interruptions, progress
from geo_mvmf.errors import TrainingError, UsageError
from geo_mvmf.interruptions import Interruption
from geo_mvmf.model import checkpoint, devices, epilogue_choice, products, run_folder, scalar_log
from geo_mvmf.model.bundle import Bundle, load_bundle
from geo_mvmf.model.configuration import TrainingConfig, read_config
from geo_mvmf.model.image_set import ImageSet, epoch_order, load_image_set
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.preparation import Prepared, prepare
from geo_mvmf.model.ranks import Ranks, joined
from geo_mvmf.model.release import released_path, write_release
from geo_mvmf.progress import Progress

_SPEED_SECONDS = 10.0
_CHANGED = f"{{}}: the {{}} changed since the run began; put them back, or {checkpoint.ANEW}"


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
        If an option is wrong or does nothing, or the run folder was started with other options.
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
    where = "" if isinstance(config, TrainingConfig) else str(config)
    config = config if isinstance(config, TrainingConfig) else read_config(config)
    if config.stage == "backbone":
        raise UsageError(
            "stage backbone makes a backbone and no bundle: run train_job, whose result is the path of its weights"
        )
    return load_bundle(progress.run(train_job(config, overwrite=overwrite, where=where), report), device="cpu")


def train_job(config: TrainingConfig, *, overwrite: bool = False, where: str = "") -> Generator[Progress, None, Path]:
    """Train a model step by step; closing the generator stops it, to go on from the last checkpoint.

    Parameters
    ----------
    config : TrainingConfig
    overwrite : bool
        As `train`.
    where : str
        What messages begin with: the TOML file.

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
    scalar_log.check_installed(config)
    folder, result = Path(config.out), released_path(config)
    with joined() as ranks, run_folder.holding(folder, ranks):
        _check_ranks(config, ranks)
        begun, newest, damaged = run_folder.begin(config, result, ranks, overwrite=overwrite, where=where)
        if begun["finished"]:
            yield Progress("train", 1, 1, f"finished before: {result}")
            return result
        facts = begun["facts"]
        before = 0 if facts is None else int(facts["step"])
        with (
            run_folder.open_log(folder, ranks) as records,
            scalar_log.with_scalars(config, records, folder, before, writes=ranks.rank == 0) as log,
            devices.threads(config.threads if facts is None else int(facts["threads"])) as threads,
            products.using(begun["products"]),
            epilogue_choice.using(begun["epilogues"]),
        ):
            device = _device(config, ranks)
            log.write(run_folder.start_record(config, device, threads, newest, damaged, ranks))
            image_set = yield from load_image_set(config)
            if image_set.left_out and ranks.rank == 0:
                warnings.warn(image_set.left_out, stacklevel=2)
            files = image_set.files_digest()
            _check_images(image_set.digest() + files, ranks)
            if facts is not None and facts.get("files", files) != files:  # runs of before have not noted them
                raise TrainingError(_CHANGED.format(folder, "images"))
            prepared = yield from prepare(config, image_set, device, folder, ranks)
            run = _Run(config, prepared, folder, log, threads, files)
            run.resume(newest, facts)
            del newest  # memory of the size of the whole model
            yield from run.steps()
            yield Progress("write", 0, 1, str(result))
            write_release(config, prepared, run.learner, stopped=run.stopped)
            early = {} if run.stopped is None else {"stopped_early": run.stopped}
            log.write({"event": "end", "result": result.name, **run.learner.best, **early, **run.length()})
        ranks.tell("written")  # nobody leaves before that
    yield Progress("write", 1, 1, str(result))
    return result


def _check_ranks(config: TrainingConfig, ranks: Ranks) -> None:
    """Refuse what several processes cannot share."""
    if ranks.size == 1:
        return
    if config.stage == "backbone" or config.head != "mvmf":
        what = "stage backbone" if config.stage == "backbone" else f"head {config.head}"
        raise UsageError(
            f"{ranks.size} processes share the components of an mvmf head, and {what} has none; start one process, "
            "without torchrun"
        )
    least = 2 if config.stage == "finetune" else 1
    if config.batch_size < least * ranks.size:
        raise UsageError(
            f"batch_size {config.batch_size} is shared by {ranks.size} processes, and stage {config.stage} needs "
            f"{least} or more for each; raise it, or start fewer"
        )


def _device(config: TrainingConfig, ranks: Ranks) -> torch.device:
    """Choose the device; of several processes on one machine each has its own CUDA device."""
    if ranks.size > 1 and config.device in ("auto", "cuda") and torch.cuda.is_available():
        device = devices.choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)  # NCCL sends from it
        return device
    return devices.choose_device(config.device)


class _Run:
    """The steps of one run: order of the images, validation, checkpoints, log."""

    def __init__(
        self,
        config: TrainingConfig,
        prepared: Prepared,
        folder: Path,
        log: scalar_log.Log,
        threads: int,
        files: str,
    ) -> None:
        self.config, self.prepared, self.folder, self.log, self.threads = config, prepared, folder, log, threads
        self.files = files
        self.ranks = prepared.ranks
        self.image_set: ImageSet = prepared.image_set
        self.batch_size = min(config.batch_size, len(self.image_set.training))
        self.steps_per_epoch = len(self.image_set.training) // self.batch_size
        self.total = config.steps or max(1, round(config.num_epochs * self.steps_per_epoch))
        self.learner: Learner = prepared.learner(self.total)
        self.first = 0
        self.waited = 0  # validations since the best one
        self.stopped: int | None = None  # after which step patience was at its end
        _check_batch(self.batch_size, self.ranks.size, self.learner)
        _check_images(self.image_set.digest(), self.ranks)  # some may have turned out to be unreadable
        self.losses: list[float] = []

    def resume(self, newest: checkpoint.Checkpoint | None, facts: dict[str, Any] | None) -> None:
        """Take over the state of the newest checkpoint, which rank 0 has; all have its facts."""
        if facts is None:
            return
        if facts["data"] != self.image_set.digest():
            raise TrainingError(_CHANGED.format(self.folder, "images, places or weights"))
        self.learner.restore({} if newest is None else newest.tensors, facts["best"])
        self.first, self.waited = int(facts["step"]), int(facts.get("waited", 0))
        self._is_out_of_patience(self.first)  # it was interrupted in the validation that ended it
        if newest is None:
            return
        for path in checkpoint.checkpoint_paths(self.folder):
            if path.name > f"checkpoint-{newest.step:010d}.safetensors":
                path.unlink()  # damaged, or it would not have been passed over

    def steps(self) -> Generator[Progress, None, None]:
        """Do all steps that are left; one process that is interrupted stops after a step, with a checkpoint."""
        alone = self.ranks.size == 1  # others would wait for this one
        with interruptions.held_back() if alone else contextlib.nullcontext(Interruption()) as interruption:
            yield from self._steps(interruption)

    def _steps(self, interruption: Interruption) -> Generator[Progress, None, None]:
        begun = f"goes on from the checkpoint in {self.folder}" if self.first else f"begins in {self.folder}"
        yield Progress("train", self.first, self.total, begun, is_landmark=True)
        saved, speed = time.monotonic(), _Speed(self.batch_size)
        for step, batch in zip(
            range(self.first, self.stopped or self.total), self.prepared.source.batches(self._orders()), strict=False
        ):
            loss, done = self.learner.train_step(step, batch), step + 1
            self.losses.append(loss)
            speed.tick()
            if done % self.config.log_steps == 0 or done == self.total:
                self._log_step(done, speed)
            message = speed.message(loss, self.total - done)
            is_landmark = done % (self.config.validate_steps or self.steps_per_epoch) == 0 or done == self.total
            if is_landmark:
                message += self._validate(done)
                if self._is_out_of_patience(done):
                    message = f"stopped early: {self.waited} validations, no new best"
            late = self.ranks.tell(time.monotonic() - saved >= self.config.checkpoint_seconds)  # by one clock
            is_last = done == (self.stopped or self.total)
            interrupted = interruption.came
            if interrupted or ((done % self.config.checkpoint_steps == 0 or late) and not is_last):
                self._save(done)  # before the event, because whoever gets it may stop there
                saved = time.monotonic()
            yield Progress("train", done, self.total, message, is_landmark=is_landmark)
            if interrupted:  # one that came since then waits for the next checkpoint
                interruption.pass_on()
            if is_last:
                return

    def length(self) -> dict[str, float]:
        """How long the run was in the end, in steps and in epochs."""
        steps = self.stopped or self.total
        return {"steps": steps, "epochs": round(steps / self.steps_per_epoch, 2)}

    def _orders(self) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of every step from the first that is left, a pure function of (seed, step); of this rank."""
        epoch, place = divmod(self.first, self.steps_per_epoch)
        last = -(-self.total // self.steps_per_epoch)
        for number in range(epoch, last):
            order = self.image_set.training[epoch_order(self.prepared.weights, self.config.seed, number)]
            for step in range(place if number == epoch else 0, self.steps_per_epoch):
                if number * self.steps_per_epoch + step < self.total:
                    yield self._own(order[step * self.batch_size : (step + 1) * self.batch_size])

    def _own(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rows[self.ranks.part(len(rows))]

    def _validate(self, done: int) -> str:
        """Measure the model; what came of it, to be said behind the loss."""
        rows = self.image_set.validation
        if len(rows) == 0:
            return ""
        parts = [self._own(rows[begin : begin + self.batch_size]) for begin in range(0, len(rows), self.batch_size)]
        measured = self.learner.evaluate(self.prepared.evaluation_source.batches(parts), self.image_set.weight)
        best = self.learner.keep_if_best(done, measured)
        self.waited = 0 if best else self.waited + 1
        self.log.write({"event": "validation", "step": done, **measured, "best": best})
        return f", validation NLL {measured['nll']:.3f}{' (the best)' if best else ''}"

    def _is_out_of_patience(self, done: int) -> bool:
        if self.config.patience is None or self.waited < self.config.patience or done == self.total:
            return False
        self.stopped = done
        return True

    def _save(self, done: int) -> None:
        facts = {
            "data": self.image_set.digest(),
            "files": self.files,
            "threads": self.threads,
            "provider": devices.provider(self.learner.device),
            "products": products.current(),
            "epilogues": epilogue_choice.current(),
            "ranks": self.ranks.size,
            "best": self.learner.best,
            "waited": self.waited,
        }
        tensors = self.learner.tensors()
        if self.ranks.rank == 0:
            checkpoint.write_checkpoint(self.folder, checkpoint.Checkpoint(done, tensors, facts))
        self.log.write({"event": "checkpoint", "step": done})

    def _log_step(self, done: int, speed: _Speed) -> None:
        record = {"event": "step", "step": done, "loss": float(np.mean(self.losses))}
        rate = self.learner.optimiser.param_groups[0]["lr"]
        self.log.write({**record, "learning_rate": rate, "rows_per_second": round(speed.rows_per_second, 1)})
        self.losses.clear()


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


def _check_images(own: str, ranks: Ranks) -> None:
    """All ranks have to see the same images, or they would train on different ones under one number; all raise."""
    differs = ranks.integers([ranks.tell(own) != own], torch.device("cpu"))
    others = [str(rank) for rank, (is_other,) in enumerate(differs) if is_other]
    if others:
        raise TrainingError(
            f"rank {', '.join(others)} of {ranks.size}: images, places or weights there are not those of rank 0; "
            "give all machines the same table and images"
        )


def _check_batch(batch_size: int, ranks: int, learner: Learner) -> None:
    accumulate = learner.config.accumulate
    least = batch_size // ranks // accumulate  # images that a pass sees
    shared = f" over {ranks} processes" if ranks > 1 else ""
    if least == 0:
        raise TrainingError(
            f"accumulate is {accumulate}: the batches have {batch_size} images{shared}; lower it, raise batch_size, or "
            "use more images"
        )
    modules = () if learner.backbone is None else learner.backbone.modules()
    if least == 1 and any(isinstance(module, torch.nn.BatchNorm2d) for module in modules):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise TrainingError(
            f"batches of {batch_size} image{'s' * (batch_size > 1)}{shared}{parts}: the batch normalisation of this "
            "backbone needs 2 or more at a time; raise batch_size, use more images, or use stage head"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
