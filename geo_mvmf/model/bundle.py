"""Bundle: the released, read-only model as one self-describing .safetensors file.

It holds the backbone, the head, what the training locations looked like (S2 cells and counts, feature statistics),
how images are to be prepared, and a text about itself. docs/bundle_format.md is the specification; reading
never runs anything that the file brings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.errors import BadBundleError, BadInputError, GeoMvmfError, UsageError
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.model import bundle_content, bundle_format, head_state, heads, sealed
from geo_mvmf.model.backbones import Backbone, BackboneConfig, backbone_skeleton, fill
from geo_mvmf.model.bundle_format import read_header
from geo_mvmf.model.devices import choose_device

__all__ = ["Bundle", "Head", "choose_device", "load_bundle", "read_header", "save_bundle"]

Head = heads.MvmfHead | heads.CrossEntropyHead


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A trained model, ready to predict.

    Parameters
    ----------
    backbone : Backbone
        In evaluation mode.
    head : MvmfHead or CrossEntropyHead
    spec : ImageSpec
        How images are prepared for it.
    cell_ids : array, shape (C,), uint64
        S2 cell of each component's class; 0 where the classes are no cells (k-means, polygons, mean directions).
    counts : array, shape (C,), int64
        Training images in each class.
    feature_mean, feature_std : array, shape (D,), float32
        Statistics of the features of the training images.
    metadata : dict
        "training" (a summary), "description", "licence", "responsible_use".
    digest : str
        SHA-256 of the file; empty before it was saved.
    path : Path or None
        Where it was loaded from.
    device : torch.device
    area : TrainingArea, optional
        Cells that tile the sphere, with the training images in each, where the classes do not; None: `cell_ids` do.

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> bundle = untrained_bundle()
    >>> log_mixing_weights, features = bundle.predict(np.zeros((1, 3, 32, 32), np.uint8))
    >>> log_mixing_weights.shape, features.shape
    ((1, 6), (1, 64))
    """

    backbone: Backbone
    head: Head
    spec: ImageSpec
    cell_ids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    feature_mean: npt.NDArray[np.float32]
    feature_std: npt.NDArray[np.float32]
    metadata: dict[str, Any]
    digest: str = ""
    path: Path | None = None
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    area: bundle_content.TrainingArea | None = None

    def __repr__(self) -> str:
        where = self.path or "not saved"
        return f"Bundle({self.backbone.name}, {self.num_components} components, {where})"

    @property
    def training_counts(self) -> npt.NDArray[np.int64]:
        """Training images in the class of each component, shape (C,)."""
        return self.counts

    @property
    def training_area(self) -> bundle_content.TrainingArea:
        """S2 cells that tile the sphere, and the training images in each."""
        return self.area or bundle_content.TrainingArea(self.cell_ids, self.counts)

    @property
    def num_components(self) -> int:
        """C: components of the mixture, or classes of the PlaNet baseline."""
        return len(self.cell_ids)

    @property
    def mean_directions(self) -> npt.NDArray[np.float64]:
        """Mean directions of the components, shape (C, 3).

        Raises
        ------
        UsageError
            If the head is the PlaNet baseline, which has S2 cells instead of components.
        """
        return _float64(self._mvmf_head().mean_directions)

    @property
    def log_concentrations(self) -> npt.NDArray[np.float64]:
        """Natural logarithms of the concentrations, shape (C,).

        Raises
        ------
        UsageError
            As `mean_directions`.
        """
        return _float64(self._mvmf_head().log_concentrations)

    def predict(
        self, images: Tensor | npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Predict the mixing weights of images.

        Parameters
        ----------
        images : array or Tensor, shape (N, channels, H, W), uint8
            Prepared as `spec` says.

        Returns
        -------
        log_mixing_weights : array, shape (N, C), float32
            Natural logarithms; each row sums to one after exp.
        features : array, shape (N, D), float32

        Raises
        ------
        BadInputError
            If the images have another dtype or number of channels.
        """
        pixels = torch.as_tensor(images)
        if pixels.ndim != 4 or pixels.dtype != torch.uint8:
            raise BadInputError(
                f"images of shape {tuple(pixels.shape)} and dtype {pixels.dtype}: (N, channels, H, W) uint8 is needed"
            )
        with torch.inference_mode():
            features = self.backbone(pixels.to(self.device))
            log_mixing_weights = self.head.log_mixing_weights(features)
            return _float32(log_mixing_weights), _float32(features)

    def mixture(self, log_mixing_weights: npt.ArrayLike) -> VmfMixture | CellMixture:
        """Turn mixing weights into densities.

        Parameters
        ----------
        log_mixing_weights : array_like, shape (N, C)
            As `predict` gives them.

        Returns
        -------
        VmfMixture or CellMixture
            The second for the PlaNet baseline: probability uniform on each S2 cell.

        Examples
        --------
        >>> from geo_mvmf.model.untrained import untrained_bundle
        >>> bundle = untrained_bundle()
        >>> len(bundle.mixture(bundle.predict(np.zeros((2, 3, 32, 32), np.uint8))[0]))
        2
        """
        weights = np.asarray(log_mixing_weights, dtype=np.float64)
        if isinstance(self.head, heads.MvmfHead):
            return VmfMixture(self.mean_directions, self.log_concentrations, weights)
        return heads.shared_cells(self.head.cell_ids, np.exp(weights))

    def content_sha256(self) -> str:
        """Hash everything that decides predictions: it tells bundles apart that were never saved.

        Examples
        --------
        See `geo_mvmf.predicting.predict`.
        """
        config, arrays = bundle_content.content(self)
        hasher = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, array in sorted(arrays.items()):
            hasher.update(f"{name} {array.dtype} {array.shape}".encode())
            hasher.update(array.tobytes())
        return hasher.hexdigest()

    def to(self, device: str | torch.device) -> Bundle:
        """Return the same bundle with its weights on another device.

        Parameters
        ----------
        device : str or torch.device
            As `choose_device`.
        """
        chosen = choose_device(str(device))
        return dataclasses.replace(self, backbone=self.backbone.to(chosen), head=self.head.to(chosen), device=chosen)

    def _mvmf_head(self) -> heads.MvmfHead:
        if not isinstance(self.head, heads.MvmfHead):
            raise UsageError("this bundle's head is cross_entropy (PlaNet): it has S2 cells, not components")
        return self.head


def save_bundle(bundle: Bundle, path: str | os.PathLike[str], *, half: bool = False, overwrite: bool = False) -> str:
    """Write a bundle as one file, whole or not at all.

    Parameters
    ----------
    bundle : Bundle
    path : path
        Ends in ``.safetensors``.
    half : bool
        Store the weights of backbone and head as float16: half the size, results change in the third digit.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    UsageError
        If the suffix is another one.
    BadBundleError
        If the bundle could not be loaded again (not finite, wrong shape, text too long).
    OutputError
        If the file exists, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> path = Path(tempfile.mkdtemp()) / "bundle.safetensors"
    >>> digest = save_bundle(untrained_bundle(), path)
    >>> load_bundle(path, device="cpu").digest == digest
    True
    """
    if Path(path).suffix != ".safetensors":
        raise UsageError(f"{path}: a bundle's name ends in .safetensors")
    config, arrays = bundle_content.content(bundle)
    if half:
        arrays = {name: bundle_content.halved(name, array) for name, array in arrays.items()}
    bundle_format.check_values(arrays, str(path))
    metadata = {
        "format": bundle_format.FORMAT,
        "format_version": str(bundle_format.FORMAT_VERSION),
        "config": bundle_format.config_text(config),
    }
    return sealed.write_sealed(path, arrays, metadata, overwrite=overwrite)


def load_bundle(path: str | os.PathLike[str], device: str = "auto") -> Bundle:
    """Load a bundle, checking every bit of it.

    Parameters
    ----------
    path : path
    device : str
        As `choose_device`.

    Returns
    -------
    Bundle

    Raises
    ------
    BadBundleError
        If it is not a bundle, damaged, of an unknown format, or its content breaks a rule of
        docs/bundle_format.md. Sizes are checked before memory is asked for; nothing is unpickled.
    UsageError
        If the device is not there.

    Examples
    --------
    >>> import tempfile
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> path = Path(tempfile.mkdtemp()) / "bundle.safetensors"
    >>> digest = save_bundle(untrained_bundle(), path)
    >>> load_bundle(path, device="cpu").num_components
    6
    """
    chosen = choose_device(device)
    config: dict[str, Any] = {}

    def check(header: sealed.SealedHeader) -> None:
        config.update(bundle_format.read_config(header))

    # After this no more memory is in use than the file has bytes, and every bit of it is as it was written.
    header, arrays = sealed.read_sealed(path, check=check)
    bundle_format.check_values(arrays, header.path)
    backbone = _checked_skeleton(header, config)
    fill(backbone, _tensors(arrays, "backbone."), where=header.path, error=BadBundleError)
    head = _head(_tensors(arrays, "head."), config, header.path)
    return Bundle(
        backbone=backbone.to(chosen).eval(),
        head=head.to(chosen).eval(),
        spec=_spec(config, header.path),
        **bundle_content.classes_of(arrays),
        feature_mean=arrays["feature_mean"],
        feature_std=arrays["feature_std"],
        metadata={key: config[key] for key in ("training", "description", "licence", "responsible_use")},
        digest=header.digest,
        path=Path(path),
        device=chosen,
    )


def _checked_skeleton(header: sealed.SealedHeader, config: Mapping[str, Any]) -> Backbone:
    with _as_bad_bundle(header.path):
        backbone = backbone_skeleton(BackboneConfig(**config["backbone"]))
    if backbone.num_features != config["num_features"]:
        raise BadBundleError(
            f"{header.path}: num_features is {config['num_features']}, the backbone has {backbone.num_features}"
        )
    own = {f"backbone.{name}": tuple(value.shape) for name, value in backbone.state_dict().items()}
    given = {name: entry.shape for name, entry in header.tensors.items() if name.startswith("backbone.")}
    if own != given:
        wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise BadBundleError(
            f"{header.path}: {len(wrong)} tensors do not fit backbone {backbone.name}; first: {wrong[0]!r} is "
            f"{given.get(wrong[0], 'missing')}, needed {own.get(wrong[0], 'nothing')}"
        )
    return backbone


def _tensors(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }


def _head(tensors: dict[str, Tensor], config: Mapping[str, Any], path: str) -> Head:
    tensors["weight"] = tensors["weight"].float()
    with _as_bad_bundle(path):
        return head_state.head_from_state(tensors, config["head"])


def _spec(config: Mapping[str, Any], path: str) -> ImageSpec:
    with _as_bad_bundle(path):
        spec = ImageSpec.from_dict(config["image"])
    if spec.channels != config["backbone"]["channels"]:
        raise BadBundleError(
            f"{path}: images have {spec.channels} channels, the backbone takes {config['backbone']['channels']}"
        )
    return spec


@contextlib.contextmanager
def _as_bad_bundle(path: str) -> Iterator[None]:
    try:
        yield
    except (GeoMvmfError, TypeError, ValueError, KeyError) as error:
        raise BadBundleError(f"{path}: the configuration does not make a model: {error}") from error


def _float64(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()
