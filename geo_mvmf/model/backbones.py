"""Backbones: from pixels to features, with weights from a seed, a local file, or - by name only - torchvision.

Weights are random from a seed, come from a local ``.safetensors`` file, or - only when asked for by name - are
downloaded by torchvision's own loader with its hash check. Pickled weights are never opened.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn

from geo_mvmf.errors import BadInputError, GeoMvmfError, ImageError, UsageError
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model.networks import (
    CHIP_NETWORKS,
    BackboneConfig,
    WeightsOnMeta,
    default_size,
    first_convolution,
    make_network,
    names,
    normalisation,
    whole_network,
)

__all__ = ["Backbone", "BackboneConfig", "backbone_skeleton", "build_backbone", "fill", "names"]

CONVERT_HINT = (
    'convert a file that you trust once: python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('weights.pth', weights_only=True).items()}, "
    "'weights.safetensors')\""
)
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_LEAST_DEVIATION = 1.0 / 255.0  # one grey level: a plain image has no contrast, and its noise is not made one


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
        Subtracted from and dividing pixel values scaled to 0..1; stored with the weights. 0 and 1 where each image is
        normalised by itself.

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
        mean, std = normalisation(config)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.config.name

    @property
    def image_spec(self) -> ImageSpec:
        """How images are prepared for this network unless something else is asked for."""
        resize, crop = default_size(self.name)
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
        pixels = images.to(self.mean.dtype) / scale
        if self.config.normalisation == "image":
            pixels = _normalised(pixels)
        pixels = (pixels - self.mean.view(shape)) / self.std.view(shape)
        features: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)


def build_backbone(
    name: str = "wide_resnet50_2",
    *,
    weights: str | None = None,
    channels: int = 3,
    seed: int = 0,
    width: int = 64,
    stem_stride: int = 1,
    pool: int = 1,
    embedding: int = 0,
    normalisation: str = "fixed",
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
    width, stem_stride, pool, embedding : int
        See `BackboneConfig`.
    normalisation : {"fixed", "image"}
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
    config = BackboneConfig(name, channels, width, stem_stride, pool, embedding, normalisation)
    if weights is not None:
        _check_weights_name(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = Backbone(config, *make_network(config))
    if weights is not None:
        _load_weights(backbone, weights)
    return backbone.to(memory_format=torch.channels_last).eval()  # 1.3 to 1.6 times as fast on CPUs, too


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
    with WeightsOnMeta():
        return Backbone(config, *make_network(config)).eval()


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
    backbone.to(memory_format=torch.channels_last)


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
    _check_normalisation(backbone, kept, where)
    fill(backbone, kept, where=where, error=BadInputError)


def _check_normalisation(backbone: Backbone, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that were trained on images normalised in another way; no shape would tell."""
    if "mean" not in tensors or "std" not in tensors:  # `fill` names what is missing
        return
    plain = not bool(tensors["mean"].any()) and bool((tensors["std"] == 1).all())
    trained, wanted = "image" if plain else "fixed", backbone.config.normalisation
    if trained != wanted:
        raise BadInputError(
            f"{where}: were trained with normalisation {trained!r}, and {wanted!r} is asked for; set it to {trained!r}"
        )


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
    with WeightsOnMeta():
        whole = whole_network(backbone.name)
    own = backbone.network.state_dict()
    for name in whole.state_dict():
        if name not in own:
            yield f"network.{name}"


def _is_auxiliary(name: str) -> bool:
    return name.removeprefix("network.").startswith(_AUXILIARY)


def _adapt_first_convolution(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    name = f"network.{first_convolution(backbone.network)[0]}.weight"
    given = tensors.get(name)
    if given is not None and given.ndim == 4 and given.shape[1] == 3:
        channels = backbone.config.channels
        tensors[name] = given.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)


def _normalised(pixels: Tensor) -> Tensor:
    """Subtract from each channel of each image its mean, and divide by its standard deviation."""
    centred = pixels - pixels.mean(dim=(2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return centred / deviation.clamp(min=_LEAST_DEVIATION)


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
