"""Backbones: torchvision's networks without their classifier, from pixels to features.

Any classification network of `torchvision.models` can be named; its last linear layer is taken off, whatever it
is called there. Two small residual networks for chips of 32 to 128 pixels are built from torchvision's own
blocks. Weights are random from a seed, come from a local ``.safetensors`` file, or - only when asked for by
name - are downloaded by torchvision's own loader with its hash check. Pickled weights are never opened.
"""

from __future__ import annotations

import dataclasses
import http.client
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import BasicBlock

from geo_mvmf.errors import BadInputError, GeoMvmfError, ImageError, UsageError
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.inputs.regular_files import open_regular_file

CHIP_NETWORKS = {"chip_resnet10": (1, 1, 1, 1), "chip_resnet18": (2, 2, 2, 2)}  # blocks per stage
CONVERT_HINT = (
    'convert a file that you trust once: python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('weights.pth', weights_only=True).items()}, "
    "'weights.safetensors')\""
)
# torchvision normalises with the statistics of ImageNet (its weights' `transforms()`).
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Two old networks rescale inside to (x - 0.5) / 0.5; said here once instead of twice in a row there.
_HALF_NORMALISED = ("googlenet", "inception_v3")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


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

    def __post_init__(self) -> None:
        if self.name not in names():
            raise UsageError(
                f"backbone {self.name!r} is neither a classification network of torchvision.models nor one of "
                f"{', '.join(CHIP_NETWORKS)}; try wide_resnet50_2 or resnet18"
            )
        if not 1 <= self.channels <= 64:
            raise UsageError(f"backbone {self.name}: channels {self.channels} is not in 1..64")
        if self.name not in CHIP_NETWORKS and (self.width, self.stem_stride) != (64, 1):
            raise UsageError(
                f"backbone {self.name}: width {self.width} and stem stride {self.stem_stride} can be chosen for "
                f"{' and '.join(CHIP_NETWORKS)} only"
            )
        if not 8 <= self.width <= 256 or self.stem_stride not in (1, 2):
            raise UsageError(
                f"backbone {self.name}: width {self.width} must be in 8..256, stem stride {self.stem_stride} 1 or 2"
            )


class Backbone(nn.Module):
    """A network from pixels to features.

    Parameters
    ----------
    config : BackboneConfig
        What it is.
    network : nn.Module
        From normalised float images (N, channels, H, W) to features (N, num_features).
    num_features : int
        D.

    Attributes
    ----------
    config : BackboneConfig
    num_features : int
    mean, std : Tensor, shape (channels,)
        Subtracted from and dividing pixel values scaled to 0..1; stored with the weights.

    Examples
    --------
    >>> backbone = build_backbone("chip_resnet10", width=8)
    >>> backbone.num_features
    64
    >>> images = torch.zeros((2, 3, 32, 32), dtype=torch.uint8)
    >>> backbone.eval()(images).shape
    torch.Size([2, 64])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.num_features = num_features
        mean, std = _normalisation(config)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.config.name

    @property
    def image_spec(self) -> ImageSpec:
        """How images are prepared for this network unless something else is asked for."""
        resize, crop = _default_size(self.name)
        return ImageSpec(resize=resize, crop=crop, channels=self.config.channels)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Parameters
        ----------
        images : Tensor, shape (N, channels, H, W)
            uint8 0..255, or floating point already scaled to 0..1.

        Returns
        -------
        Tensor, shape (N, D)
        """
        if images.shape[1] != self.config.channels:
            raise BadInputError(
                f"backbone {self.name} takes {self.config.channels} channels, the images have {images.shape[1]}"
            )
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        shape = (1, -1, 1, 1)
        pixels = (images.to(self.mean.dtype) / scale - self.mean.view(shape)) / self.std.view(shape)
        features: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)


def names() -> tuple[str, ...]:
    """Names that `build_backbone` knows.

    Examples
    --------
    >>> "wide_resnet50_2" in names() and "chip_resnet10" in names()
    True
    """
    return (*CHIP_NETWORKS, *torchvision.models.list_models(module=torchvision.models))


def build_backbone(
    name: str = "wide_resnet50_2",
    *,
    weights: str | None = None,
    channels: int = 3,
    seed: int = 0,
    width: int = 64,
    stem_stride: int = 1,
) -> Backbone:
    """Make a backbone.

    Parameters
    ----------
    name : str
        A classification network of `torchvision.models`, "chip_resnet10" or "chip_resnet18".
    weights : str, optional
        None: random from `seed`. A torchvision weight name such as "IMAGENET1K_V2": torchvision downloads it (or
        finds it in its cache) and checks its hash. A path ending in ``.safetensors``: that local file.
    channels : int
        Input channels; with other than 3 the first convolution is made anew. Where trained weights are given
        for three channels, it starts from their mean over the channels, so that a grey image means the same.
    seed : int
        Seed of the random weights; torch's global generator is left as it was.
    width, stem_stride : int
        See `BackboneConfig`.

    Returns
    -------
    Backbone
        On the CPU, in float32, in evaluation mode.

    Raises
    ------
    UsageError
        If a name is unknown or an option out of range, or pickled weights are given.
    BadInputError
        If the weights cannot be had or do not fit.

    Examples
    --------
    >>> a, b = build_backbone("chip_resnet10", width=8, seed=1), build_backbone("chip_resnet10", width=8, seed=1)
    >>> torch.equal(a.network[0].weight, b.network[0].weight)
    True
    """
    config = BackboneConfig(name, channels, width, stem_stride)
    if weights is not None:
        _check_weights_name(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = _build(config)
    if weights is not None:
        _load_weights(backbone, weights)
    return backbone.eval()


def backbone_skeleton(config: BackboneConfig) -> Backbone:
    """Make a backbone whose weights take no memory (torch's meta device), to be filled by `fill`.

    Parameters
    ----------
    config : BackboneConfig

    Examples
    --------
    >>> backbone_skeleton(BackboneConfig("wide_resnet50_2")).num_features
    2048
    """
    with _WeightsOnMeta():
        return _build(config).eval()


def fill(backbone: Backbone, tensors: Mapping[str, Tensor], *, where: str, error: type[GeoMvmfError]) -> None:
    """Give a backbone its weights.

    Parameters
    ----------
    backbone : Backbone
        Also a skeleton.
    tensors : mapping of str to Tensor
        As `Backbone.state_dict` names them; floating-point ones are cast to float32.
    where : str
        What the message begins with: the file.
    error : type
        The exception raised where names, shapes or fixed values do not match.

    Examples
    --------
    >>> config = BackboneConfig("chip_resnet10", width=8)
    >>> backbone = backbone_skeleton(config)
    >>> fill(backbone, build_backbone("chip_resnet10", width=8).state_dict(), where="here", error=BadInputError)
    >>> backbone.network[0].weight.is_meta
    False
    """
    own = backbone.state_dict()
    _check_match(
        {k: tuple(v.shape) for k, v in own.items()}, {k: tuple(v.shape) for k, v in tensors.items()}, where, error
    )
    cast = {name: _as_own(name, own[name], tensors[name], where, error) for name in own}
    backbone.load_state_dict(cast, strict=True, assign=True)


class _WeightsOnMeta(TorchFunctionMode):
    """Creates parameters without memory; index tables, which the architecture computes, stay real."""

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


def _build(config: BackboneConfig) -> Backbone:
    if config.name in CHIP_NETWORKS:
        return Backbone(config, _chip_network(config), 8 * config.width)
    network = _torchvision_network(config.name)
    if config.channels != 3:
        _replace_first_convolution(network, config.channels)
    return Backbone(config, network, _remove_classifier(network))


def _torchvision_network(name: str) -> nn.Module:
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
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
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


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(network).__name__} has no convolution to adapt to other than 3 channels")


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    name, old = _first_convolution(network)
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


def _normalisation(config: BackboneConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if config.name in _HALF_NORMALISED:
        return (0.5,) * config.channels, (0.5,) * config.channels
    if config.channels == 3:
        return _IMAGENET_MEAN, _IMAGENET_STD
    # Other bands have no published statistics: the middle of the range, and about ImageNet's spread.
    return (0.45,) * config.channels, (0.225,) * config.channels


def _default_size(name: str) -> tuple[int, int]:
    if name in CHIP_NETWORKS:
        return 64, 64
    return (342, 299) if name == "inception_v3" else (256, 224)


def _check_weights_name(name: str, weights: str) -> None:
    suffix = Path(weights).suffix.lower()
    if suffix in (".pth", ".pt", ".pkl", ".bin", ".ckpt"):
        raise UsageError(
            f"weights {weights}: a pickled file can run any program when it is opened, so it is refused; {CONVERT_HINT}"
        )
    if suffix == ".safetensors":
        return
    known = _weight_names(name)
    if weights not in known:
        raise UsageError(
            f"weights {weights!r} are neither a .safetensors file nor a name that torchvision has for {name}: "
            f"{', '.join(known) or 'none'}"
        )


def _weight_names(name: str) -> tuple[str, ...]:
    if name in CHIP_NETWORKS:
        return ()
    return tuple(torchvision.models.get_model_weights(name).__members__)


def _load_weights(backbone: Backbone, weights: str) -> None:
    where = f"weights {weights}"
    if Path(weights).suffix.lower() == ".safetensors":
        tensors = _read_local(weights)
    else:
        tensors = _download(backbone.name, weights)
    if not any(name.startswith("network.") for name in tensors):
        tensors = {f"network.{name}": value for name, value in tensors.items()}
        tensors |= {"mean": backbone.mean, "std": backbone.std}
    dropped = set(_classifier_names(backbone))
    kept = {name: value for name, value in tensors.items() if name not in dropped and not _is_auxiliary(name)}
    if backbone.config.channels != 3:
        _adapt_first_convolution(backbone, kept)
    fill(backbone, kept, where=where, error=BadInputError)


def _read_local(weights: str) -> dict[str, Tensor]:
    try:
        with open_regular_file(weights) as file:
            content = file.read()
        return dict(safetensors.torch.load(content))
    except ImageError as error:
        raise BadInputError(f"weights {weights}: {error}") from error
    except safetensors.SafetensorError as error:
        raise BadInputError(f"weights {weights}: not a valid .safetensors file: {error}") from error


def _download(name: str, weights: str) -> dict[str, Tensor]:
    entry = torchvision.models.get_model_weights(name)[weights]
    try:
        # torchvision's own loader: its cache, hash checked, weights_only=True (the one exception of the design).
        state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise BadInputError(
            f"weights {weights} of {name} could not be downloaded ({error}); connect to the network once, or give "
            f"a local .safetensors file; {CONVERT_HINT}"
        ) from error
    return state


def _classifier_names(backbone: Backbone) -> Iterator[str]:
    if backbone.name in CHIP_NETWORKS:
        return
    with _WeightsOnMeta():
        whole = _torchvision_network(backbone.name)
    own = backbone.network.state_dict()
    for name in whole.state_dict():
        if name not in own:
            yield f"network.{name}"


def _is_auxiliary(name: str) -> bool:
    return name.removeprefix("network.").startswith(_AUXILIARY)


def _adapt_first_convolution(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    name = f"network.{_first_convolution(backbone.network)[0]}.weight"
    given = tensors.get(name)
    if given is not None and given.ndim == 4 and given.shape[1] == 3:
        channels = backbone.config.channels
        tensors[name] = given.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_match(
    own: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    where: str,
    error: type[GeoMvmfError],
) -> None:
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or extra:
        raise error(
            f"{where}: the tensors do not fit the backbone: {len(missing)} missing (first: {missing[:3]}), "
            f"{len(extra)} unknown (first: {extra[:3]})"
        )
    for name, shape in own.items():
        if given[name] != shape:
            raise error(f"{where}: tensor {name} has shape {given[name]}, the backbone needs {shape}")


def _as_own(name: str, own: Tensor, given: Tensor, where: str, error: type[GeoMvmfError]) -> Tensor:
    if own.is_floating_point() != given.is_floating_point():
        raise error(f"{where}: tensor {name} is {given.dtype}, the backbone needs {own.dtype}")
    if own.is_floating_point():
        if not bool(torch.isfinite(given).all()):
            raise error(f"{where}: tensor {name} holds values that are not finite")
        return given.to(torch.float32).contiguous()
    # Index tables follow from the architecture: other values would read outside a table.
    if not name.endswith("num_batches_tracked") and not torch.equal(own, given.to(own.dtype)):
        raise error(f"{where}: tensor {name} differs from what the architecture computes")
    return given.to(own.dtype)
