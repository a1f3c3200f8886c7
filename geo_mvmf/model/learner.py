"""Learner: what is trained, and one step of it: a pure function of the state, the seed and the step number."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf import sphere
from geo_mvmf.errors import TrainingError, UsageError
from geo_mvmf.model import checkpoint, devices, optimisation, replicas, shared_state
from geo_mvmf.model.augmentation import Augmentation, augment, roamed
from geo_mvmf.model.backbones import Backbone
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import CountryHead
from geo_mvmf.model.fused_optimiser import FusedAdam
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.measurement import AnyHead, errors_of, losses_of, summary
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.sources import Batch


@dataclasses.dataclass(eq=False)
class Learner:
    """A model in training.

    Parameters
    ----------
    config : TrainingConfig
    head : MvmfHead, CrossEntropyHead or CountryHead
    backbone : Backbone or None
        None where features are given and only the head is trained.
    targets : Tensor, shape (N, 3) float64 or (N,) int64
        True directions, or classes, of all rows.
    size : int
        Pixels of the network's input.
    pixel_km : float
        Side of a pixel on the ground; NaN where it is not known.
    steps : int
        Of the whole run.
    device : torch.device
    ranks : Ranks
        Processes that share the components of the head, and the rows of every batch; one alone by default. All of them
        have to call the same methods at the same time.
    """

    config: TrainingConfig
    head: AnyHead
    backbone: Backbone | None
    targets: Tensor
    size: int
    pixel_km: float
    steps: int
    device: torch.device
    ranks: Ranks = dataclasses.field(default_factory=lambda: Ranks(alone=True))

    def __post_init__(self) -> None:
        self.head.to(self.device)
        if self.backbone is not None:
            _check_width(self.backbone, self.size, self.device)
            self.backbone.to(self.device).to(memory_format=torch.channels_last)
        self.targets = self.targets.to(self.device)
        if self.config.bias == "none" and not isinstance(self.head, CountryHead):
            self.head.bias.requires_grad = False  # it stays at 0, where it began
        self.optimiser = optimisation.make_optimiser(self.config, self.backbone, self.head)
        self.fused = optimisation.make_fused(self.config, self.head.weight)
        self._give_head(self.fused)
        self.mean_state = _clone(self.state()) if self.config.ema_decay else None
        self.best_state: dict[str, Tensor] | None = None
        self.best: dict[str, Any] = {}

    def state(self) -> dict[str, Tensor]:
        """Return the live tensors of the model by dotted names."""
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self.backbone is not None:
            state |= {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        return state

    def train_step(self, step: int, batch: Batch) -> float:
        """Do one step.

        Parameters
        ----------
        step : int
            From 0.
        batch : Batch

        Returns
        -------
        float
            The loss before the step, nats.

        Raises
        ------
        TrainingError
            If the loss is not finite, or no image of the batch can be read. Go on from a checkpoint then: statistics of
            batch normalisation that were updated on the way are not put back.
        """
        self._set_training(training=True)
        # Three words into one seed; dropout and stochastic depth are all that draw from it.
        seed = self.config.seed * 0x9E3779B97F4A7C15 + self.ranks.rank * 0xD1B54A32D192ED03 + step
        self.optimiser.zero_grad(set_to_none=True)
        value = 0.0
        with devices.seeded(seed % 2**63, self.device):
            for part, share in self._parts(step, batch):
                loss = self._loss(step, part)
                loss = loss if share == 1.0 else loss * share
                value += float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(f"step {step}: the loss is {value} for rows {part.rows.tolist()}; {_HINT}")
                if self.fused is not None:
                    self.fused.open_step(self.config.learning_rate * self._rate_factor(step))
                loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is missing
        self._update(step)
        return value

    def evaluate(self, batches: Iterable[Batch], weight: npt.NDArray[np.float64]) -> dict[str, float]:
        """Measure the model that would be released now.

        Parameters
        ----------
        batches : iterable of Batch
        weight : array, shape (N,), float64
            Of all rows; images that cannot be read do not count.

        Returns
        -------
        dict
            "nll" (nats per steradian, or cross entropy of countries), and "median_km" of the heaviest component
            (eq. 7), or "accuracy" of countries.
        """
        columns: list[list[npt.NDArray[np.float64]]] = [[], [], []]
        with self.released():
            for batch in batches:
                features = self.features(batch)
                targets = self._targets(batch)
                found = [measure(self.head, features, targets) for measure in (losses_of, errors_of)]
                found_all = self._of_all(*found, np.where(batch.readable, weight[batch.rows], 0.0))
                for column, values in zip(columns, found_all, strict=True):
                    column.append(values)
        return summary(self.head, *(np.concatenate(column) for column in columns))

    def features(self, batch: Batch) -> Tensor:
        """Features of a batch without augmentation; call it inside `released`.

        Parameters
        ----------
        batch : Batch

        Returns
        -------
        Tensor, shape (B, D), float32
        """
        with torch.inference_mode():
            if self.backbone is None:
                return batch.inputs.float()
            if len(batch.rows) == 0:  # another rank has all of them
                return torch.zeros(0, self.backbone.num_features, device=self.device)
            nothing = Augmentation()
            pixels = augment(batch.inputs, nothing, size=self.size, seed=0, step=0, rows=batch.rows)
            features: Tensor = self.backbone(pixels)
            return features.float()

    def keep_if_best(self, step: int, measured: dict[str, float]) -> bool:
        """Remember the model that would be released now, if its validation NLL is the lowest so far.

        Parameters
        ----------
        step : int
            Steps done.
        measured : dict
            From `evaluate`.

        Returns
        -------
        bool
        """
        if not math.isfinite(measured["nll"]):
            raise TrainingError(f"step {step}: the validation NLL is {measured['nll']}; {_HINT}")
        if self.best and measured["nll"] >= self.best["nll"]:
            return False
        state = self.state() if self.mean_state is None else self.mean_state
        self.best_state = {name: value.detach().cpu().clone() for name, value in state.items()}
        self.best = {"step": step, **measured}
        return True

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Inside the block the model has the weights that would be released now, in evaluation mode."""
        self._set_training(training=False)
        if self.mean_state is None:
            yield
            return
        present = _clone(self.state())
        self._put(self.mean_state)
        self._project_mean()
        try:
            yield
        finally:
            self._put(present)

    def finish(self) -> None:
        """Give the model the weights that are released: the best ones, or without validation the last."""
        final = self.best_state if self.best_state is not None else self.mean_state
        if final is not None:
            self._put(final)
            self._project_mean()
        self.mean_state = self.fused = None
        self._give_head(None)
        self._set_training(training=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint must hold; on rank 0 only, of the whole model.

        Raises
        ------
        TrainingError
            If a weight is not finite.
        """
        tensors = {f"model.{name}": value for name, value in self.state().items()}
        wrong = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if any(number for (number,) in self.ranks.integers([len(wrong)], self.device)):
            name = wrong[0] if wrong else "a weight of another rank"
            raise TrainingError(f"{name} is not finite any more, so no checkpoint is written; {_HINT}")
        parts = {
            "optimiser": checkpoint.flatten_optimiser(self.optimiser),
            "fused": None if self.fused is None else self.fused.state(),
            "mean": self.mean_state,
            "best": self.best_state,
        }
        for part, values in parts.items():
            tensors |= {f"{part}.{name}": value for name, value in (values or {}).items()}
        return shared_state.gather_state(tensors, self._is_part(), self.ranks)

    def restore(self, tensors: Mapping[str, Tensor], best: dict[str, Any]) -> None:
        """Undo `tensors`.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Those of rank 0 count.
        best : dict
            The attribute of that name.
        """
        tensors = shared_state.deal_state(tensors, self._is_part(), self.ranks)
        self._put(checkpoint.select(tensors, "model."))
        checkpoint.restore_optimiser(self.optimiser, checkpoint.select(tensors, "optimiser."))
        if self.fused is not None:
            self.fused.restore(checkpoint.select(tensors, "fused."))
        mean, found = checkpoint.select(tensors, "mean."), checkpoint.select(tensors, "best.")
        self.mean_state = {name: value.to(self.device) for name, value in mean.items()} or None
        self.best_state, self.best = found or None, dict(best)

    def _loss(self, step: int, batch: Batch) -> Tensor:
        features = batch.inputs
        if self.backbone is not None:
            pixels = augment(
                batch.inputs, self.config.augment, size=self.size, seed=self.config.seed, step=step, rows=batch.rows
            )
            with self._autocast():
                features = self.backbone(pixels)
        targets = self._roamed_targets(step, batch)
        return self.head.loss(features.float(), targets, self._sample_weight(step, batch))

    def _parts(self, step: int, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Give the parts that a batch is worked through in, each with its share of the images that can be read.

        The loss of a batch is a mean; so means of parts, times these shares, add up to it, and so do their gradients.
        """
        if self.config.accumulate == 1:
            yield batch, 1.0
            return
        parts = batch.parts(self.config.accumulate)
        readable = self.ranks.integers([int(part.readable.sum()) for part in parts], self.device)
        counts = np.sum(readable, axis=0)
        if not counts.any():
            raise TrainingError(f"step {step}: none of the images of rows {batch.rows.tolist()} can be read")
        for part, count in zip(parts, counts.tolist(), strict=True):
            if count:
                yield part, count / int(counts.sum())

    def _sample_weight(self, step: int, batch: Batch) -> Tensor | None:
        if self.backbone is None:  # all features are there
            return None
        counts = self.ranks.integers([int(batch.readable.sum()), len(batch.rows)], self.device)
        if not sum(readable for readable, _ in counts):
            raise TrainingError(f"step {step}: none of the images of rows {batch.rows.tolist()} can be read")
        if all(readable == rows for readable, rows in counts):
            return None
        return torch.from_numpy(batch.readable.astype(np.float32)).to(self.device)

    def _of_all(self, *values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        """Values of the rows of all ranks: (n,) of each kind."""
        if self.ranks.size == 1:
            return list(values)
        counts = [count for (count,) in self.ranks.integers([len(values[0])], self.device)]
        own = torch.from_numpy(np.stack(values, axis=1)).to(self.device)
        return list(self.ranks.gather(own, counts).cpu().numpy().T)

    def _is_part(self) -> shared_state.IsPart:
        return shared_state.part_rule(self.head, self.optimiser)

    def _targets(self, batch: Batch) -> Tensor:
        return self.targets[torch.from_numpy(batch.rows).to(self.device)]

    def _roamed_targets(self, step: int, batch: Batch) -> Tensor:
        """True directions of what was cut out of each image, where the cut roams."""
        targets = self._targets(batch)
        if not self.config.augment.roam:
            return targets
        offsets = roamed(self.config.augment, seed=self.config.seed, step=step, rows=batch.rows)
        east_km, north_km = offsets[:, 0] * self.pixel_km, -offsets[:, 1] * self.pixel_km
        middle = sphere.to_longitude_latitude(targets.cpu().numpy())
        # Chips are azimuthal equidistant about their middles: a straight way on one is a great circle.
        bearing, distance_km = np.degrees(np.arctan2(east_km, north_km)), np.hypot(east_km, north_km)
        moved = sphere.to_directions(*sphere.destination(*middle, bearing, distance_km))
        return torch.from_numpy(moved).to(self.device)

    def _update(self, step: int) -> None:
        if self.backbone is not None:
            replicas.sum_gradients(self.backbone, self.ranks)
            replicas.average_statistics(self.backbone, self.ranks)
        if isinstance(self.head, MvmfHead):
            self.head.project_gradient()
        if self.config.gradient_clip is not None:
            weights = [weight for group in self.optimiser.param_groups for weight in group["params"]]
            shared_state.clip_gradients(weights, self.head, self.config.gradient_clip, self.ranks)
        if self.fused is not None:
            self.fused.close_step()
        optimisation.set_learning_rate(self.optimiser, self._rate_factor(step))
        self.optimiser.step()
        if isinstance(self.head, MvmfHead):
            self.head.project()
        if self.mean_state is not None:
            optimisation.update_running_mean(self.mean_state, self.state(), self.config.ema_decay, step)

    def _rate_factor(self, step: int) -> float:
        return optimisation.learning_rate_factor(self.config, step, self.steps)

    def _give_head(self, update: FusedAdam | None) -> None:
        if not isinstance(self.head, CountryHead):
            self.head.weight_update = update

    def _put(self, state: Mapping[str, Tensor]) -> None:
        own = self.state()
        if own.keys() != state.keys():
            raise TrainingError(f"the checkpoint is of another model: {sorted(own.keys() ^ state.keys())[:3]} differ")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def _project_mean(self) -> None:
        # The mean of unit vectors is a little shorter. Elsewhere a projection would cost a resumed run its last bits.
        if self.mean_state is not None and isinstance(self.head, MvmfHead):
            self.head.project()

    def _set_training(self, *, training: bool) -> None:
        self.head.train(training)
        if self.backbone is not None:
            self.backbone.train(training)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        wanted = self.config.precision
        if wanted == "auto":
            cuda = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            wanted = "bfloat16" if cuda else "float32"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted == "bfloat16")


def _check_width(backbone: Backbone, size: int, device: torch.device) -> None:
    """Refuse what ends the process: oneDNN's backward pass writes beyond its arrays (seen with torch 2.15 and AMX)."""
    width = backbone.config.width
    if device.type == "cpu" and width < _NARROW and size > _SMALL:
        raise UsageError(
            f"backbone_width is {width}: on a CPU, PyTorch crashes in training networks narrower than {_NARROW} "
            f"channels on images of more than {_SMALL} pixels (here {size}); use {_NARROW} or more"
        )


_NARROW, _SMALL = 16, 48
_HINT = "lower learning_rate, set gradient_clip, or look at these rows"


def _clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
