"""What a bundle's header says, and the rules it must keep; docs/bundle_format.md is the specification.

Needs no torch, so that ``geo-mvmf info`` is quick. A bundle comes from strangers: its configuration is data with
bounds, never a path that is opened nor a name that is imported.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2_ids
from geo_mvmf.errors import BadBundleError
from geo_mvmf.model import sealed

FORMAT = "geo_mvmf bundle"
FORMAT_VERSION = 1
MAX_CONFIG_BYTES = 65536
MAX_COMPONENTS = 2**24
MAX_FEATURES = 65536
MAX_CHANNELS = 64
MAX_LOG_CONCENTRATION = 60.0  # as of any mixture, above 0 and below
MAX_PIXELS = 4096
RESPONSIBLE_USE = (
    "A density over the Earth is a region, not a proof: never act on a person or a place because of it alone."
)

_KEYS = {
    "backbone", "num_features", "num_components", "head", "image", "training", "description", "licence",
    "responsible_use",
}  # fmt: skip
_BACKBONE_KEYS = {"name", "channels", "width", "stem_stride", "pool", "embedding", "normalisation"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FLOATS = ("F32", "F16")


def config_text(config: Mapping[str, Any]) -> str:
    """Write a configuration as the JSON that goes into the header.

    Parameters
    ----------
    config : mapping
        As `check_config` wants it.

    Raises
    ------
    BadBundleError
        If it breaks a rule: what could not be read again is not written.

    Examples
    --------
    >>> config_text({})
    Traceback (most recent call last):
    geo_mvmf.errors.BadBundleError: bundle: the configuration lacks backbone, description, head, image, licence,
    num_components, num_features, responsible_use, training
    """
    check_config(config, "bundle")
    try:
        text = json.dumps(config, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise BadBundleError(f"bundle: the configuration holds what JSON cannot: {error}") from error
    _check_length(text, "bundle")
    return text


def read_config(header: sealed.SealedHeader) -> dict[str, Any]:
    """Take the configuration out of a header and check it, and the tensors it implies.

    Parameters
    ----------
    header : SealedHeader

    Returns
    -------
    dict
        The checked configuration.

    Raises
    ------
    BadBundleError
        Naming the clause that is violated.

    Examples
    --------
    >>> read_config(sealed.SealedHeader("a.safetensors", {}, {}, "0" * 64))
    Traceback (most recent call last):
    geo_mvmf.errors.BadBundleError: a.safetensors: format None is not 'geo_mvmf bundle', so this is no bundle
    """
    path = header.path
    _check_format(header)
    text = header.metadata.get("config", "")
    _check_length(text, path)
    try:
        config = sealed.loads_strict(text)
    except ValueError as error:
        raise BadBundleError(f"{path}: the configuration is not valid JSON: {error}") from error
    check_config(config, path)
    check_tensors(header, config)
    return dict(config)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a bundle says about itself, without torch and without its weights.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict
        The configuration, and "digest" (said, not verified: `load_bundle` verifies), "num_parameters",
        "file_bytes" and "format_version".

    Raises
    ------
    BadBundleError
        If the file is no bundle.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.pth"
    >>> _ = path.write_bytes(bytes.fromhex("8004") + bytes(100))
    >>> try:
    ...     read_header(path)
    ... except BadBundleError as error:
    ...     print(str(error).split(": ")[1])
    this is a pickle, not a .safetensors file; opening one can run any program, so it is refused
    """
    header = sealed.read_sealed_header(path)
    config = read_config(header)
    sizes = [math.prod(entry.shape) for name, entry in header.tensors.items() if name.startswith("backbone.")]
    return {
        **config,
        "digest": header.digest,
        "num_parameters": sum(sizes) + config["num_components"] * (config["num_features"] + 1),
        "file_bytes": os.stat(path).st_size,  # noqa: PTH116  the path may be a str
        "format_version": FORMAT_VERSION,
    }


def check_config(config: object, path: str) -> None:
    """Check a configuration against its rules.

    Parameters
    ----------
    config : object
        Parsed JSON, or what is about to be written.
    path : str
        What messages begin with.

    Raises
    ------
    BadBundleError
        Naming the entry, its value and its range.

    Examples
    --------
    >>> check_config([], "a.safetensors")
    Traceback (most recent call last):
    geo_mvmf.errors.BadBundleError: a.safetensors: the configuration is a list, not an object
    """
    if not isinstance(config, dict):
        raise BadBundleError(f"{path}: the configuration is a {type(config).__name__}, not an object")
    _check_keys(config, _KEYS | ({"num_cells"} & config.keys()), "the configuration", path)
    _check_integer(config, "num_features", 1, MAX_FEATURES, path)
    _check_integer(config, "num_components", 1, MAX_COMPONENTS, path)
    if "num_cells" in config:
        _check_integer(config, "num_cells", 1, MAX_COMPONENTS, path)
    _check_backbone(config["backbone"], path)
    _check_head(config["head"], path)
    _check_image(config["image"], path)
    _check_free(config["training"], "training", 5, path)
    for key, length in (("description", 4000), ("licence", 400), ("responsible_use", 1000)):
        _check_text(config[key], key, length, path)


def check_tensors(header: sealed.SealedHeader, config: Mapping[str, Any]) -> None:
    """Check that the tensors of the head and the statistics are those that the configuration implies.

    Parameters
    ----------
    header : SealedHeader
    config : mapping
        A checked configuration.

    Raises
    ------
    BadBundleError
        Naming the tensor.

    Examples
    --------
    >>> config = {"num_components": 6, "num_features": 2, "head": {"kind": "mvmf"}}
    >>> check_tensors(sealed.SealedHeader("a.safetensors", {}, {}, "0" * 64), config)
    Traceback (most recent call last):
    geo_mvmf.errors.BadBundleError: a.safetensors: tensor head.weight is missing
    """
    expected = expected_tensors(config)
    for name, (dtypes, shape) in expected.items():
        entry = header.tensors.get(name)
        if entry is None:
            raise BadBundleError(f"{header.path}: tensor {name} is missing")
        if entry.dtype not in dtypes or entry.shape != shape:
            raise BadBundleError(
                f"{header.path}: tensor {name} is {entry.dtype} of shape {entry.shape}; the configuration needs "
                f"{' or '.join(dtypes)} of shape {shape}"
            )
    for name in header.tensors:
        if name not in expected and not name.startswith("backbone."):
            raise BadBundleError(f"{header.path}: tensor {name!r} does not belong in a bundle")


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Dtypes and shapes of every tensor outside the backbone.

    Parameters
    ----------
    config : mapping
        Needs "num_components", "num_features" and "head"; "num_cells" where the components' classes do not tile the
        sphere.

    Returns
    -------
    dict of str to (dtypes, shape)

    Examples
    --------
    >>> expected_tensors({"num_components": 6, "num_features": 2, "head": {"kind": "mvmf"}})["head.weight"]
    (('F32', 'F16'), (6, 2))
    """
    c, d = config["num_components"], config["num_features"]
    cells = config.get("num_cells", c)
    tensors: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "head.weight": (_FLOATS, (c, d)),
        "head.bias": (("F32",), (c,)),
        "cell_ids": (("U64",), (cells,)),
        "counts": (("I64",), (cells,)),
        "feature_mean": (("F32",), (d,)),
        "feature_std": (("F32",), (d,)),
    }
    if "num_cells" in config:
        tensors["component_counts"] = ("I64",), (c,)
    if config["head"]["kind"] == "mvmf":
        tensors["head.mean_directions"] = (("F64",), (c, 3))
        tensors["head.log_concentrations"] = (("F64",), (c,))
    else:
        tensors["head.cell_ids"] = (("U64",), (c,))
    return tensors


def check_values(arrays: Mapping[str, npt.NDArray[Any]], path: str) -> None:
    """Check what only the values can show: finite, unit directions, concentrations, valid S2 cells, no negative counts.

    Parameters
    ----------
    arrays : mapping of str to array
        All tensors of a bundle.
    path : str
        What messages begin with.

    Raises
    ------
    BadBundleError
        Naming the tensor.

    Examples
    --------
    >>> check_values({"head.bias": np.array([np.nan])}, "a.safetensors")
    Traceback (most recent call last):
    geo_mvmf.errors.BadBundleError: a.safetensors: tensor head.bias holds values that are not finite
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadBundleError(f"{path}: tensor {name} holds values that are not finite")
    if any((arrays[name] < 0).any() for name in ("counts", "component_counts", "feature_std") if name in arrays):
        raise BadBundleError(f"{path}: counts or feature_std hold negative values")
    _check_cells(arrays["cell_ids"], path)
    directions = arrays.get("head.mean_directions")
    if directions is not None:
        if (worst := np.abs(np.linalg.norm(directions, axis=1) - 1.0).max()) > 1e-6:
            raise BadBundleError(f"{path}: a mean direction has length 1 +- {worst:.3g}; unit vectors are needed")
        logs, limit = arrays["head.log_concentrations"], MAX_LOG_CONCENTRATION
        if (beyond := np.flatnonzero(np.abs(logs) > limit)).size:
            at = beyond[0]
            raise BadBundleError(f"{path}: log concentration {logs[at]:.6g} of component {at} is beyond +-{limit:g}")


def _check_format(header: sealed.SealedHeader) -> None:
    form, version = header.metadata.get("format"), header.metadata.get("format_version")
    if form != FORMAT:
        raise BadBundleError(f"{header.path}: format {form!r} is not {FORMAT!r}, so this is no bundle")
    if version != str(FORMAT_VERSION):
        raise BadBundleError(
            f"{header.path}: bundle format version {version!r}; this geo_mvmf reads version {FORMAT_VERSION}: "
            "update geo_mvmf, or train again"
        )
    if set(header.metadata) != {"format", "format_version", "config"}:
        raise BadBundleError(f"{header.path}: the header's metadata holds unknown entries {sorted(header.metadata)}")


def _check_length(text: str, path: str) -> None:
    size = len(text.encode())
    if size > MAX_CONFIG_BYTES:
        raise BadBundleError(f"{path}: the configuration has {size} bytes; {MAX_CONFIG_BYTES} are allowed")


def _check_keys(value: Mapping[str, Any], keys: set[str], what: str, path: str) -> None:
    if missing := sorted(keys - value.keys()):
        raise BadBundleError(f"{path}: {what} lacks {', '.join(missing)}")
    if unknown := sorted(set(value) - keys):
        raise BadBundleError(f"{path}: {what} holds unknown entries {', '.join(unknown)[:200]}")


def _check_integer(value: Mapping[str, Any], key: str, low: int, high: int, path: str) -> None:
    if type(value[key]) is not int or not low <= value[key] <= high:
        raise BadBundleError(f"{path}: {key} is {value[key]!r}; an integer in {low}..{high} is needed")


def _check_object(value: object, what: str, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadBundleError(f"{path}: {what} is {value!r:.60}; an object is needed")
    return value


def _check_backbone(value: object, path: str) -> None:
    backbone = _check_object(value, "backbone", path)
    # files from before there were embeddings do not name one; of normalisations only "image" is named
    backbone = {"embedding": 0, "normalisation": "fixed", **backbone}
    _check_keys(backbone, _BACKBONE_KEYS, "backbone", path)
    if not isinstance(backbone["name"], str) or not _NAME.fullmatch(backbone["name"]):
        raise BadBundleError(f"{path}: backbone name {backbone['name']!r:.60} is not a name of torchvision's kind")
    _check_integer(backbone, "channels", 1, MAX_CHANNELS, path)
    _check_integer(backbone, "width", 8, 256, path)
    _check_integer(backbone, "stem_stride", 1, 2, path)
    _check_integer(backbone, "pool", 1, 8, path)
    _check_integer(backbone, "embedding", 0, 4096, path)
    if backbone["normalisation"] not in ("fixed", "image"):
        raise BadBundleError(f"{path}: backbone normalisation {backbone['normalisation']!r:.60} is not fixed or image")


def _check_head(value: object, path: str) -> None:
    head = _check_object(value, "head", path)
    if head.get("kind") not in ("mvmf", "cross_entropy"):
        raise BadBundleError(f"{path}: head kind {head.get('kind')!r:.60} is not mvmf or cross_entropy")
    _check_free(head, "head", 1, path)


def _check_image(value: object, path: str) -> None:
    image = _check_object(value, "image", path)
    _check_keys(image, {"resize", "crop", "bands", "stretch", "ground_km", "channels"}, "image", path)
    for key, high in (("resize", MAX_PIXELS), ("crop", MAX_PIXELS), ("channels", MAX_CHANNELS)):
        if image[key] is not None:
            _check_integer(image, key, 1, high, path)
    _check_free(image, "image", 3, path)


def _check_free(value: object, what: str, depth: int, path: str) -> None:
    """Texts, numbers, truth values and null, nested at most `depth` times."""
    if isinstance(value, dict | list) and depth == 0:
        raise BadBundleError(f"{path}: {what} is nested too deeply")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_text(key, f"a key of {what}", 200, path)
            _check_free(entry, what, depth - 1, path)
    elif isinstance(value, list):
        for entry in value:
            _check_free(entry, what, depth - 1, path)
    elif isinstance(value, str):
        _check_text(value, what, 4000, path)
    elif isinstance(value, int | float):
        if not -1e300 < value < 1e300:
            raise BadBundleError(f"{path}: {what} holds {value!r:.60}, which is not a finite number")
    elif value is not None:
        raise BadBundleError(f"{path}: {what} holds a {type(value).__name__}")


def _check_text(value: object, what: str, length: int, path: str) -> None:
    if not isinstance(value, str) or len(value) > length:
        raise BadBundleError(f"{path}: {what} is {value!r:.60}; a text of at most {length} characters is needed")
    # Terminals and labels would obey control characters.
    if any(not character.isprintable() and character != "\n" for character in value):
        raise BadBundleError(f"{path}: {what} holds control characters: {value!r:.60}")


def _check_cells(cell_ids: npt.NDArray[np.uint64], path: str) -> None:
    valid = s2_ids.is_valid(cell_ids)
    if not valid.all():
        raise BadBundleError(f"{path}: cell_ids holds {int(cell_ids[~valid][0]):#x}, which is no S2 cell id")
    ordered = np.sort(cell_ids)
    if (s2_ids.range_max(ordered[:-1]) >= s2_ids.range_min(ordered[1:])).any():
        raise BadBundleError(f"{path}: the S2 cells of cell_ids overlap; a partition is needed")
