"""FusedAdam: Adam applied to each chunk of an output layer's weight while the backward pass forms its gradient.

A step of a huge head is bound by memory: weight, gradient and two moments of (C, D) each. Here the gradient of a chunk
lives in a buffer until the chunk is updated, and no array of its size is made; moments can be kept in bfloat16.

Bytes for each of the C x D parameters, the weight's own 4 among them: 16 with torch.optim.Adam, 12 here, 8 with moments
in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from geo_mvmf.errors import TrainingError

_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch.optim.Adam's own
_LOW_BITS = 0xFFFF  # what a float32 has and a bfloat16 has not
_BLOCK, _ACCELERATOR_BLOCK = 1 << 17, 1 << 24  # values widened at once: what a cache holds, what fills an accelerator
_MIX = 0x9E3779B97F4A7C15  # an odd number near 2^64 divided by the golden ratio: its multiples spread evenly


class FusedAdam:
    """Adam for one weight, whose gradient never exists as a whole.

    A step is `open_step`, one backward pass through a loss that was given this object as `weight_update`, and
    `close_step`. The update of each parameter is torch.optim.Adam's with `fused=True`, bit for bit; the gradient by the
    features is formed from the weight as it was before. The weight gets no `.grad`, so there is none to clip, to scale
    back or to add to: what needs one is refused, or, where it cannot be seen from here, does not work.

    Parameters
    ----------
    weight : nn.Parameter of float32 or float64, shape (C, D)
        Contiguous; of one loss only.
    weight_decay : float
        L2 gradient, or with `decoupled` AdamW's decay.
    decoupled : bool
        Which of the two.
    moment_type : {None, torch.bfloat16}
        What both moments are kept in; None: the weight's type. A bfloat16 that is rounded to nearest would lose changes
        below 0.2 to 0.4 % - and the second moment changes by 0.1 % a step at most when it shrinks, so that it would
        never shrink. So values are rounded up or down at random, right on average; the second moment then scatters by
        about 5 %, a step by half of that.
    seed : int
        Of that rounding, which is a function of seed and step.

    Attributes
    ----------
    version : int
        Steps done.

    Raises
    ------
    ValueError
        The weight is no matrix that can be updated in place, or the type of the moments is another.

    Examples
    --------
    >>> from geo_mvmf.model.loss import cross_entropy_loss
    >>> weight = nn.Parameter(torch.zeros(2, 1))
    >>> update = FusedAdam(weight)
    >>> target = torch.tensor([1])
    >>> loss = cross_entropy_loss(torch.ones(1, 1), weight, torch.zeros(2), target, weight_update=update)
    >>> update.open_step(0.5)
    >>> loss.backward()
    >>> update.close_step()
    >>> weight.detach().round(decimals=4).tolist(), weight.grad
    ([[-0.5], [0.5]], None)
    """

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        moment_type: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if weight.ndim != 2 or not weight.is_contiguous() or weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the weight is {weight.dtype} of shape {tuple(weight.shape)} and strides {weight.stride()}; "
                "a contiguous matrix of float32 or float64 is needed"
            )
        if moment_type is not None and (moment_type, weight.dtype) != (torch.bfloat16, torch.float32):
            raise ValueError(
                f"moment_type is {moment_type} for a weight of {weight.dtype}; None, or torch.bfloat16 for one of "
                "float32, is allowed"
            )
        self.weight, self.version = weight, 0
        self._weight_decay, self._decoupled, self._seed = weight_decay, decoupled, seed
        self._moments = [torch.zeros_like(weight, dtype=moment_type, requires_grad=False) for _ in range(2)]
        self._rounds = moment_type is not None
        self._phase, self._learning_rate = "closed", 0.0
        self._before, self._noise = torch.empty(0), torch.empty(0)
        block = _BLOCK if weight.device.type == "cpu" else _ACCELERATOR_BLOCK
        self._block = min(max(block // max(weight.shape[1], 1), 1), max(len(weight), 1))  # rows
        self._wide = torch.empty(2, self._block if self._rounds else 0, weight.shape[1], device=weight.device)

    def open_step(self, learning_rate: float) -> None:
        """Let the next backward pass update the weight.

        Parameters
        ----------
        learning_rate : float
            Of this step.

        Raises
        ------
        TrainingError
            The step before is not closed, or was interrupted.

        Examples
        --------
        >>> FusedAdam(nn.Parameter(torch.zeros(2, 1))).open_step(1e-3)
        """
        self._check_whole()
        if self._phase == "updated":
            raise TrainingError(f"step {self.version} of the fused update is not closed; call close_step first")
        self._learning_rate, self._phase = learning_rate, "open"

    def begin(self, version: int) -> None:
        """Begin the backward pass of this step; losses call it.

        Parameters
        ----------
        version : int
            The attribute of that name at the forward pass.

        Raises
        ------
        TrainingError
            The weight is not the forward pass's any more, or may not be updated (again).

        Examples
        --------
        >>> FusedAdam(nn.Parameter(torch.zeros(2, 1))).begin(0)
        Traceback (most recent call last):
        geo_mvmf.errors.TrainingError: a backward pass came outside of a step of the fused update (after 0 steps): call
        open_step before and close_step after it
        """
        self._check_whole()
        if version != self.version:
            raise TrainingError(
                f"the fused update has changed the weight since this loss was computed (then after {version} steps, "
                f"now {self.version}): it takes one backward pass through each graph (no retain_graph) and one a step "
                "(no accumulated gradients); these need fused_optimiser = none"
            )
        if self._phase != "open":
            raise TrainingError(
                f"a backward pass came outside of a step of the fused update (after {self.version} steps): call "
                "open_step before and close_step after it"
            )
        steps = torch.full((), float(self.version), device=self.weight.device)  # float32, as torch.optim.Adam counts
        self._before, self._phase = steps, "updating"
        self.version += 1
        if self._rounds:
            self._draw()

    def update(self, part: slice, gradient: Tensor) -> None:
        """Update some rows of the weight.

        Parameters
        ----------
        part : slice
            Which, b of them.
        gradient : Tensor of the weight's type, shape (b, D)
            Overwritten by some kernels.

        Examples
        --------
        >>> update = FusedAdam(nn.Parameter(torch.zeros(2, 1)))
        >>> update.open_step(0.5)
        >>> update.begin(0)
        >>> update.update(slice(1, 2), torch.ones(1, 1))
        >>> update.weight.detach().round(decimals=4).tolist()
        [[0.0], [-0.5]]
        """
        weight = self.weight.detach()[part]
        first, second = (moment[part] for moment in self._moments)
        if not self._rounds:
            self._adam(weight, gradient, first, second)
            return
        for start in range(0, len(weight), self._block):
            rows = slice(start, min(start + self._block, len(weight)))
            wide = [
                self._wide[index, : rows.stop - start].copy_(moment[rows])
                for index, moment in enumerate((first, second))
            ]
            self._adam(weight[rows], gradient[rows], *wide)
            for index, moment in enumerate((first, second)):
                noise = self._noise_of(part.start + start, index, wide[index])
                moment[rows].copy_(rounded_at_random(wide[index], noise))

    def end(self) -> None:
        """All rows are updated; losses call it.

        Examples
        --------
        >>> update = FusedAdam(nn.Parameter(torch.zeros(2, 1)))
        >>> update.open_step(0.5)
        >>> update.begin(0)
        >>> update.end()
        >>> update.version
        1
        """
        self._phase = "updated"

    def close_step(self) -> None:
        """Make sure that the weight was updated once, by everything that its gradient came from.

        Raises
        ------
        TrainingError
            No backward pass updated it, or another loss left a gradient.

        Examples
        --------
        >>> update = FusedAdam(nn.Parameter(torch.zeros(2, 1)))
        >>> update.open_step(0.5)
        >>> update.close_step()
        Traceback (most recent call last):
        geo_mvmf.errors.TrainingError: no backward pass updated the weight of shape (2, 1) since open_step (after 0
        steps): give the loss this object as weight_update
        """
        self._check_whole()
        if self.weight.grad is not None:
            raise TrainingError(
                f"the weight of shape {tuple(self.weight.shape)} has a gradient from another loss, which the fused "
                "update would miss; losses that share a weight need fused_optimiser = none"
            )
        if self._phase != "updated":
            raise TrainingError(
                f"no backward pass updated the weight of shape {tuple(self.weight.shape)} since open_step (after "
                f"{self.version} steps): give the loss this object as weight_update"
            )
        self._phase = "closed"

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: the number of steps, and the moments, which are no copies.

        A moment has the weight's shape, or, in bfloat16, is given as its bytes (uint8, shape (C, 2 D)).

        Raises
        ------
        TrainingError
            A backward pass was interrupted, so that only some rows are updated.

        Examples
        --------
        >>> sorted(FusedAdam(nn.Parameter(torch.zeros(2, 1))).state())
        ['exp_avg', 'exp_avg_sq', 'step']
        """
        self._check_whole()
        first, second = (moment.view(torch.uint8) if self._rounds else moment for moment in self._moments)
        return {"step": torch.tensor(self.version), "exp_avg": first, "exp_avg_sq": second}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`.

        Parameters
        ----------
        state : mapping of str to Tensor

        Raises
        ------
        TrainingError
            It is the state of another weight or of moments of another type.

        Examples
        --------
        >>> update = FusedAdam(nn.Parameter(torch.zeros(2, 1)))
        >>> update.restore(update.state() | {"step": torch.tensor(3)})
        >>> update.version
        3
        """
        own = self.state()
        facts = [{name: (value.dtype, tuple(value.shape)) for name, value in each.items()} for each in (own, state)]
        if facts[0] != facts[1]:
            raise TrainingError(f"the state of the fused update is {facts[1]}; {facts[0]} is needed")
        for name in ("exp_avg", "exp_avg_sq"):
            own[name].copy_(state[name])
        self.version, self._phase = int(state["step"]), "closed"

    def _check_whole(self) -> None:
        if self._phase == "updating":
            raise TrainingError(
                f"the backward pass of step {self.version - 1} was interrupted: some rows of the weight are updated "
                "and others not; go on from the last checkpoint"
            )

    def _adam(self, weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> None:
        adam(
            [weight], [gradient], [first], [second], [], [self._before.clone()],
            fused=True, decoupled_weight_decay=self._decoupled, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1],
            lr=self._learning_rate, weight_decay=self._weight_decay, eps=_EPS, maximize=False,
        )  # fmt: skip

    def _draw(self) -> None:
        """Draw the bits of a step: as many as two blocks have values, to be read from another place for each block."""
        generator = torch.Generator(self.weight.device).manual_seed((self._seed * _MIX + self.version) % 2**63)
        shape = (2 * self._block * self.weight.shape[1],)
        self._noise = torch.randint(
            _LOW_BITS + 1, shape, generator=generator, dtype=torch.int32, device=self.weight.device
        )

    def _noise_of(self, row: int, index: int, values: Tensor) -> Tensor:
        start = (row * _MIX + index * _MIX // 2) % (len(self._noise) // 2 + 1)
        return self._noise[start : start + values.numel()].view_as(values)


def rounded_at_random(values: Tensor, noise: Tensor) -> Tensor:
    """Round to what bfloat16 can hold, up or down at random: right on average, whatever the values.

    Parameters
    ----------
    values : Tensor of float32, any shape
        Overwritten and returned.
    noise : Tensor of int32, of the same shape
        Uniform on 0..65535.

    Examples
    --------
    >>> rounded_at_random(torch.full((3,), 1.0 + 2**-8), torch.tensor([0, 32767, 32768]).int()).tolist()
    [1.0, 1.0, 1.0078125]
    """
    # the sign stands apart in a float: bits that carry over raise the magnitude of negative values, too. Into the sign
    # they must not carry: a NaN of all ones would become -0.
    finite = values.isfinite()
    values.view(torch.int32).addcmul_(noise, finite.int()).bitwise_and_(~_LOW_BITS)
    return values
