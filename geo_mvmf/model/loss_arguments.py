"""What the losses are given, checked before anything is computed: types, shapes, and the values that would be nonsense.

A direction that is no unit vector would give a loss that looks like one. NaN is let through: it shows, as a loss of
NaN, and training says of which rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from geo_mvmf.model import loss_passes, streaming
from geo_mvmf.model.bundle_format import MAX_LOG_CONCENTRATION

REDUCTIONS = ("mean", "sum", "none")
TARGET_TOLERANCE = 1e-4  # how far a target may be from length 1: float32 is within 1e-7, half precision is not
DRIFT = 0.1  # and a mean direction: an optimiser takes it off the sphere within a step


def check_mvmf_arguments(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    target_directions: Tensor,
    *,
    sample_weight: Tensor | None,
    floor: float | None,
    reduction: str,
    kept_type: str | None,
    weight_update: streaming.WeightUpdate | None,
) -> None:
    """Check what `loss.mvmf_loss` is given; parameters as there. A device is waited for once.

    Raises
    ------
    TypeError
        What should be a tensor is none.
    ValueError
        Shapes do not fit, directions are no unit vectors, a log concentration is out of range, a sample weight is
        negative, or an option is unknown.

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]])
    >>> layer = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1)
    >>> options = {"sample_weight": None, "floor": None, "reduction": "sum", "kept_type": None, "weight_update": None}
    >>> check_mvmf_arguments(*layer, y, torch.zeros(1), y, **options)
    >>> check_mvmf_arguments(*layer, 2.0 * y, torch.zeros(1), y, **options)
    Traceback (most recent call last):
    ValueError: mean_directions: row 0 has length 2, which is not in 0.9..1.1; normalise them, also
    after every step of an optimiser
    """
    check_layer(features, weight, bias, sample_weight, reduction, kept_type, weight_update)
    components = weight.shape[0]
    check_shape("mean_directions", mean_directions, (components, 3))
    check_shape("log_concentrations", log_concentrations, (components,))
    check_shape("target_directions", target_directions, (features.shape[0], 3))
    check_floor(floor)
    _check_ranges(
        features.device,
        [
            _Range("mean_directions", _lengths(mean_directions), 1.0 - DRIFT, 1.0 + DRIFT, _NORMALISE),
            _Range(
                "log_concentrations",
                log_concentrations.detach(),
                -MAX_LOG_CONCENTRATION,
                MAX_LOG_CONCENTRATION,
                _NATURAL,
            ),
            _targets(target_directions),
            *_weights(sample_weight),
        ],
    )


def check_targets(target_directions: Tensor, n: int, sample_weight: Tensor | None = None) -> None:
    """Check what is known of the rows beside their features.

    Parameters
    ----------
    target_directions : Tensor, shape (N, 3)
        Unit vectors.
    n : int
        N.
    sample_weight : Tensor, shape (N,), optional
        0 or more.

    Raises
    ------
    TypeError
        What should be a tensor is none.
    ValueError
        They are not as many, a direction is no unit vector, or a weight is negative.

    Examples
    --------
    >>> check_targets(torch.tensor([[0.0, 0.0, 1.0]]), 1)
    """
    check_shape("target_directions", target_directions, (n, 3))
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, (n,))
    _check_ranges(target_directions.device, [_targets(target_directions), *_weights(sample_weight)])


def check_layer(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    kept_type: str | None,
    update: streaming.WeightUpdate | None,
) -> None:
    """Check the part of the arguments that all losses have; parameters and errors as `check_mvmf_arguments`.

    Examples
    --------
    >>> check_layer(torch.ones(1, 2), torch.ones(2, 1), None, None, "mean", None, None)
    Traceback (most recent call last):
    ValueError: weight has shape (2, 1), expected (C, 2): features have 2 columns
    """
    _check_tensor("features", features, "(N, D)")
    _check_tensor("weight", weight, "(C, D)")
    if features.ndim != 2 or weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"features and weight have shapes {tuple(features.shape)}, {tuple(weight.shape)}; "
            "expected (N, D), (C, D) with C >= 1"
        )
    (n, width), components = features.shape, weight.shape[0]
    if weight.shape[1] != width:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (C, {width}): features have {width} columns"
        )
    if bias is not None:
        check_shape("bias", bias, (components,))
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, (n,))
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if kept_type not in loss_passes.KEPT_TYPES:
        raise ValueError(f"kept_type {kept_type!r} is not None or bfloat16")
    if update is not None and (weight is not update.weight or not weight.requires_grad):
        what = "another weight" if weight is not update.weight else "a frozen weight"
        raise ValueError(f"weight_update is of {what} of shape {tuple(update.weight.shape)}; give the loss its own")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check one argument.

    Parameters
    ----------
    name : str
        Of the argument.
    tensor : Tensor
        The argument.
    shape : tuple of int
        What it must have.

    Raises
    ------
    TypeError
        It is no tensor.
    ValueError
        Its shape is another one.

    Examples
    --------
    >>> check_shape("bias", 8.0, (2,))
    Traceback (most recent call last):
    TypeError: bias is of type float, expected a torch.Tensor of shape (2,)
    """
    _check_tensor(name, tensor, shape)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def check_floor(floor: float | None) -> None:
    """Check what is added to densities.

    Parameters
    ----------
    floor : float, optional
        Density per steradian.

    Raises
    ------
    ValueError
        It is not positive, or not finite.

    Examples
    --------
    >>> check_floor(1e-9)
    """
    if floor is not None and not 0.0 < floor < math.inf:
        raise ValueError(f"floor {floor!r} must be a positive density per steradian, or None")


_NORMALISE = "normalise them, also after every step of an optimiser"
_NATURAL = "they are natural logarithms of kappa"
_PLACES = "they are unit vectors, which geo_mvmf.to_directions makes of longitude and latitude"


@dataclasses.dataclass(frozen=True)
class _Range:
    """Values of an argument, one a row, and where they have to lie; NaN is let through."""

    name: str
    values: Tensor
    low: float
    high: float
    advice: str

    def broken(self) -> Tensor:
        """Whether a value is outside, as a tensor: nobody waits for the device yet."""
        least, greatest = self.values.aminmax()
        return (least < self.low) | (greatest > self.high)

    def check(self) -> None:
        """Name the first row that is outside."""
        wrong = ((self.values < self.low) | (self.values > self.high)).nonzero()
        if len(wrong):
            row, what = int(wrong[0, 0]), "length" if self.name.endswith("_directions") else "value"
            allowed = f"in {self.low:g}..{self.high:g}" if self.high < math.inf else f"{self.low:g} or more"
            value = float(self.values[row])
            raise ValueError(f"{self.name}: row {row} has {what} {value:g}, which is not {allowed}; {self.advice}")


def _targets(directions: Tensor) -> _Range:
    return _Range("target_directions", _lengths(directions), 1.0 - TARGET_TOLERANCE, 1.0 + TARGET_TOLERANCE, _PLACES)


def _weights(sample_weight: Tensor | None) -> Iterator[_Range]:
    if sample_weight is not None:
        yield _Range("sample_weight", sample_weight.detach(), 0.0, math.inf, "0 leaves a row out")


def _lengths(directions: Tensor) -> Tensor:
    squares = directions.detach().double().square()
    return (squares @ squares.new_ones(3)).sqrt_()  # by a product: sums over three columns are five times slower


def _check_ranges(device: torch.device, ranges: list[_Range]) -> None:
    filled = [each for each in ranges if each.values.numel()]
    if filled and bool(torch.stack([each.broken().to(device) for each in filled]).any()):
        for each in filled:
            each.check()


def _check_tensor(name: str, value: object, shape: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected a torch.Tensor of shape {shape}")
