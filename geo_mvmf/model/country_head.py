"""CountryHead: the classifier of stage backbone, thrown away when the backbone is trained (paper, section 3.1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from geo_mvmf.errors import BadBundleError
from geo_mvmf.model import sealed
from geo_mvmf.model.loss import reduce_losses

HEAD_FILE = "classes.safetensors"
"""The classifier of a run of stage backbone, beside the weights: for the run's report, and for nothing else."""

_FORMAT = "geo_mvmf classes"


class CountryHead(nn.Module):
    """Linear classification of countries.

    Parameters
    ----------
    num_features : int
    num_classes : int
        With "no country", which is class 0.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> head = CountryHead(2, 4, seed=0)
    >>> float(head.loss(torch.zeros(1, 2), torch.tensor([3])).detach().exp().round())
    4.0
    """

    def __init__(self, num_features: int, num_classes: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_classes, num_features, generator=generator) * 0.01)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Log probabilities of the classes, shape (N, K).

        Parameters
        ----------
        features : Tensor, shape (N, D)
        """
        return functional.log_softmax(functional.linear(features.float(), self.weight, self.bias), dim=1)

    def loss(
        self, features: Tensor, labels: Tensor, sample_weight: Tensor | None = None, *, reduction: str = "mean"
    ) -> Tensor:
        """Cross entropy in nats.

        Parameters
        ----------
        features : Tensor, shape (N, D)
        labels : Tensor, shape (N,), int64
        sample_weight : Tensor, shape (N,), optional
        reduction : {"mean", "sum", "none"}
        """
        losses = functional.nll_loss(self.log_mixing_weights(features), labels, reduction="none")
        return reduce_losses(losses, sample_weight, reduction)


def save_country_head(head: CountryHead, folder: Path) -> None:
    """Keep the classifier of a run.

    Parameters
    ----------
    head : CountryHead
    folder : Path
        Of the run.

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_country_head(CountryHead(2, 4, seed=0), folder)
    >>> load_country_head(folder).weight.shape
    torch.Size([4, 2])
    """
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in head.state_dict().items()}
    sealed.write_sealed(folder / HEAD_FILE, arrays, {"format": _FORMAT}, overwrite=True)


def load_country_head(folder: Path) -> CountryHead:
    """Read the classifier that a run kept.

    Parameters
    ----------
    folder : Path
        Of the run.

    Returns
    -------
    CountryHead

    Raises
    ------
    BadBundleError
        If the file is damaged, or another one.

    Examples
    --------
    See `save_country_head`.
    """
    path = folder / HEAD_FILE
    header, arrays = sealed.read_sealed(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    classes = shapes.get("bias", (0,))[0]
    is_head = shapes.keys() == {"weight", "bias"} and len(shapes["weight"]) == 2 and shapes["weight"][0] == classes
    if header.metadata.get("format") != _FORMAT or not is_head:
        raise BadBundleError(f"{path}: holds {shapes}, not the weight and the bias of a classifier of stage backbone")
    head = CountryHead(shapes["weight"][1], classes, seed=0)
    head.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return head
