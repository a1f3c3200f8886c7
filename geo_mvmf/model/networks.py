"""Networks: torchvision's, without their classifier, and two small ones for chips; still without weights of use.

Any classification network of `torchvision.models` can be named; its last linear layer is taken off, whatever it
is called there. The small residual networks, for chips of 32 to 128 pixels, are stacked from torchvision's own
blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torchvision.models
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import BasicBlock

from geo_mvmf.errors import UsageError

CHIP_NETWORKS = {"chip_resnet10": (1, 1, 1, 1), "chip_resnet18": (2, 2, 2, 2)}  # blocks per stage
# torchvision normalises with the statistics of ImageNet (its weights' `transforms()`).
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Two old networks rescale inside to (x - 0.5) / 0.5; said here once instead of twice in a row there.
_HALF_NORMALISED = ("googlenet", "inception_v3")
NORMALISATIONS = ("fixed", "image")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is, without its weights.

    Parameters
    ----------
    name : str
        A name of `names`.
    channels : int
        Input channels, 1..64.
    width : int
        Channels of the first stage of a chip network, 8..256; 64 for torchvision's networks.
    stem_stride : int
        1 or 2: stride of a chip network's first convolution; 1 for torchvision's networks.
    pool : int
        1..8: a chip network's last maps are averaged over this many squares a side, and the features are all of
        them. 1 (torchvision's networks) forgets where in the chip something lies, which is what a map tells by.
    embedding : int
        0, or 8..4096: a chip network's last maps are first widened to so many by a 1 x 1 convolution, which gives an
        output layer more features at little cost; 0 for torchvision's networks.
    normalisation : {"fixed", "image"}
        What is subtracted from each channel and divides it: the same two numbers for all images, or the mean and
        the standard deviation of this image. By image a sensor's own gain and offset per band cancel out, and with
        them how bright and of which colour an image is as a whole, which is a clue.

    Raises
    ------
    UsageError
        If a value is out of range.

    Examples
    --------
    >>> BackboneConfig("chip_resnet10", width=16).channels
    3
    """

    name: str
    channels: int = 3
    width: int = 64
    stem_stride: int = 1
    pool: int = 1
    embedding: int = 0
    normalisation: str = "fixed"

    def __post_init__(self) -> None:
        if self.name not in names():
            raise UsageError(
                f"backbone {self.name!r} is neither a classification network of torchvision.models nor one of "
                f"{', '.join(CHIP_NETWORKS)}; try wide_resnet50_2 or resnet18"
            )
        if not 1 <= self.channels <= 64:
            raise UsageError(f"backbone {self.name}: channels {self.channels} is not in 1..64")
        chosen = (self.width, self.stem_stride, self.pool, self.embedding)
        if self.name not in CHIP_NETWORKS and chosen != (64, 1, 1, 0):
            raise UsageError(
                f"backbone {self.name}: width {self.width}, stem stride {self.stem_stride}, pool {self.pool} and "
                f"embedding {self.embedding} can be chosen for {' and '.join(CHIP_NETWORKS)} only"
            )
        if not 8 <= self.width <= 256 or self.stem_stride not in (1, 2) or not 1 <= self.pool <= 8:
            raise UsageError(
                f"backbone {self.name}: width {self.width} must be in 8..256, stem stride {self.stem_stride} 1 or 2, "
                f"pool {self.pool} in 1..8"
            )
        if self.embedding and not 8 <= self.embedding <= 4096:
            raise UsageError(f"backbone {self.name}: embedding {self.embedding} must be 0 or in 8..4096")
        if self.normalisation not in NORMALISATIONS:
            raise UsageError(
                f"backbone {self.name}: normalisation is {self.normalisation!r}; one of {', '.join(NORMALISATIONS)} is "
                "allowed"
            )

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain values; a normalisation that is fixed is left out, as before there was another.

        Examples
        --------
        >>> "normalisation" in BackboneConfig("resnet18").to_dict()
        False
        """
        values = dataclasses.asdict(self)
        return values if self.normalisation != "fixed" else {k: v for k, v in values.items() if k != "normalisation"}


def names() -> tuple[str, ...]:
    """Names that `build_backbone` knows.

    Examples
    --------
    >>> "wide_resnet50_2" in names() and "chip_resnet10" in names()
    True
    """
    return (*CHIP_NETWORKS, *torchvision.models.list_models(module=torchvision.models))


class WeightsOnMeta(TorchFunctionMode):
    """Inside the block parameters take no memory; index tables, which the architecture computes, stay real.

    Examples
    --------
    >>> with WeightsOnMeta():
    ...     nn.Linear(2, 2).weight.is_meta
    True
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            options["device"] = "meta"
        return func(*args, **options)


def make_network(config: BackboneConfig) -> tuple[nn.Module, int]:
    """Make a network with random weights from torch's present generator.

    Parameters
    ----------
    config : BackboneConfig

    Returns
    -------
    network : nn.Module
        From normalised images (N, channels, H, W) to features.
    num_features : int

    Examples
    --------
    >>> with WeightsOnMeta():
    ...     make_network(BackboneConfig("wide_resnet50_2"))[1]
    2048
    """
    if config.name in CHIP_NETWORKS:
        return _chip_network(config), (config.embedding or 8 * config.width) * config.pool**2
    network = whole_network(config.name)
    if config.channels != 3:
        _replace_first_convolution(network, config.channels)
    return network, _remove_classifier(network)


def whole_network(name: str) -> nn.Module:
    """Make a network of torchvision with its classifier.

    Parameters
    ----------
    name : str

    Examples
    --------
    >>> with WeightsOnMeta():
    ...     whole_network("resnet18").fc.out_features
    1000
    """
    options = {"aux_logits": False, "init_weights": True} if name in _HALF_NORMALISED else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _chip_network(config: BackboneConfig) -> nn.Module:
    # ResNet (He et al. 2016, arXiv 1512.03385, table 1) with the small-image stem of their section 4.2: 3 x 3, no
    # pooling. torchvision's ResNet fixes the width at 64, so its blocks are stacked here.
    width = config.width
    layers: list[nn.Module] = [
        nn.Conv2d(config.channels, width, 3, stride=config.stem_stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    planes = width
    for stage, blocks in enumerate(CHIP_NETWORKS[config.name]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_basic_block(planes, width << stage, stride))
            planes = width << stage
    if config.embedding:
        layers.append(nn.Conv2d(planes, config.embedding, 1, bias=False))
        layers += [nn.BatchNorm2d(config.embedding), nn.ReLU(inplace=True)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(config.pool), nn.Flatten(1))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    block: nn.Module = BasicBlock(inputs, outputs, stride=stride, downsample=shortcut)
    return block


def _named_last(network: nn.Module, kind: type[nn.Module]) -> tuple[str, nn.Module] | None:
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]
    return found[-1] if found else None


def _remove_classifier(network: nn.Module) -> int:
    last = _named_last(network, nn.Linear)
    if last is not None and isinstance(last[1], nn.Linear):
        network.set_submodule(last[0], nn.Identity())
        return last[1].in_features
    # SqueezeNet classifies by a last convolution: the features are the average pool of what it would see.
    last = _named_last(network, nn.Conv2d)
    if last is None or not isinstance(last[1], nn.Conv2d) or not hasattr(network, "classifier"):
        raise UsageError(f"{type(network).__name__} has no classifier to take off; choose another backbone")
    network.set_submodule("classifier", nn.AdaptiveAvgPool2d(1))
    return last[1].in_channels


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Find the convolution that sees the pixels, and its name.

    Parameters
    ----------
    network : nn.Module

    Raises
    ------
    UsageError
        If there is none.

    Examples
    --------
    >>> with WeightsOnMeta():
    ...     first_convolution(whole_network("resnet18"))[0]
    'conv1'
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(network).__name__} has no convolution to adapt to other than 3 channels")


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    name, old = first_convolution(network)
    new = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, new)


def normalisation(config: BackboneConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel values scaled to 0..1; 0 and 1 where each image has its own.

    Parameters
    ----------
    config : BackboneConfig

    Examples
    --------
    >>> normalisation(BackboneConfig("resnet18"))[0]
    (0.485, 0.456, 0.406)
    """
    if config.normalisation == "image":
        return (0.0,) * config.channels, (1.0,) * config.channels
    if config.name in _HALF_NORMALISED:
        return (0.5,) * config.channels, (0.5,) * config.channels
    if config.channels == 3:
        return _IMAGENET_MEAN, _IMAGENET_STD
    # Other bands have no published statistics: the middle of the range, and about ImageNet's spread.
    return (0.45,) * config.channels, (0.225,) * config.channels


def default_size(name: str) -> tuple[int, int]:
    """Pixels of the shorter side after scaling, and of the square cut from the middle.

    Parameters
    ----------
    name : str

    Examples
    --------
    >>> default_size("resnet18")
    (256, 224)
    """
    if name in CHIP_NETWORKS:
        return 64, 64
    return (342, 299) if name == "inception_v3" else (256, 224)
