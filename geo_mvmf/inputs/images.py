"""Any image of a table -> the pixels a model takes: photos by `photos`, georeferenced rasters by `scenes`.

`ImageSpec` says how a model wants its images; it is stored in the bundle, so that prediction prepares them as
training did. Nothing but pixels is taken from a file: no name, no EXIF, no position.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import BadInputError, ImageError, UsageError
from geo_mvmf.inputs import photos, scenes
from geo_mvmf.inputs.chip_files import read_description
from geo_mvmf.inputs.photos import PIXEL_BUDGET
from geo_mvmf.inputs.raster_files import is_georeferenced
from geo_mvmf.inputs.stretches import apply_stretch, check_stretch

Pixels = npt.NDArray[np.uint8]
ImagePath = str | os.PathLike[str]

_GROUND_TOLERANCE = 0.01  # share by which a scene may be smaller than the model's chips, or a chip differ from them
_LEAST_VALID = 0.9  # share of a chip at a scene's centre; the corners of a turned scene of just that size are missing
_MOST_CELLS = 4e9  # raster cells under one chip: minutes of reading
_AHEAD = 4  # images read ahead per thread
_MOST_JSON_BYTES = 1 << 20
_GREY = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R BT.601)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a model wants its images.

    Parameters
    ----------
    resize : int
        Shorter side in pixels before cropping; of a scene, the pixels of `ground_km`.
    crop : int
        Side of the centred square that is taken.
    bands : tuple of int, optional
        Bands of a raster, from 1. None: all colour bands, which must then be `channels` in number.
    stretch : tuple of (low, high), optional
        Per band: what becomes 0 and 255. None: 8-bit values as they are.
    ground_km : float, optional
        Side of a satellite chip on the ground. None: photos.
    channels : int
        Channels of the pixels.

    Raises
    ------
    UsageError
        If sizes are not positive or do not fit each other.

    Examples
    --------
    >>> ImageSpec(256, 224).channels
    3
    """

    resize: int
    crop: int
    bands: tuple[int, ...] | None = None
    stretch: tuple[tuple[float, float], ...] | None = None
    ground_km: float | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UsageError(f"crop {self.crop} must be between 1 and resize {self.resize} pixels")
        if self.channels < 1:
            raise UsageError(f"channels {self.channels} must be at least 1")
        if self.bands is not None and (len(self.bands) != self.channels or min(self.bands) < 1):
            raise UsageError(f"bands {self.bands} must be {self.channels} numbers from 1, one for each channel")
        if self.stretch is not None:
            check_stretch(self.stretch, self.channels)
        if self.ground_km is not None and not (math.isfinite(self.ground_km) and self.ground_km > 0.0):
            raise UsageError(f"ground_km {self.ground_km} must be positive")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-able values.

        Returns
        -------
        dict

        Examples
        --------
        >>> ImageSpec(64, 64, ground_km=475.0).to_dict()["ground_km"]
        475.0
        """
        values = dataclasses.asdict(self)
        values["bands"] = None if self.bands is None else list(self.bands)
        values["stretch"] = None if self.stretch is None else [list(pair) for pair in self.stretch]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        """Make a spec of what `to_dict` gave.

        Parameters
        ----------
        values : mapping

        Returns
        -------
        ImageSpec

        Raises
        ------
        UsageError
            If a field is unknown, missing or wrong.

        Examples
        --------
        >>> ImageSpec.from_dict(ImageSpec(256, 224).to_dict()) == ImageSpec(256, 224)
        True
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise UsageError(f"image field {min(unknown)!r} is unknown; there are {', '.join(sorted(known))}")
        try:
            bands, stretch, ground_km = (values.get(name) for name in ("bands", "stretch", "ground_km"))
            return cls(
                int(values["resize"]),
                int(values["crop"]),
                None if bands is None else tuple(int(band) for band in bands),
                None if stretch is None else tuple((float(low), float(high)) for low, high in stretch),
                None if ground_km is None else float(ground_km),
                int(values.get("channels", 3)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"image settings {dict(values)!r} are incomplete or wrong: {error}") from error


def spec_of_chips(folder: ImagePath, *, crop: int | None = None) -> ImageSpec:
    """Read from a folder of chips how they were cut.

    Parameters
    ----------
    folder : path
        What `chips.cut_chips` wrote.
    crop : int, optional
        Side of the centred square that is taken; the whole chip when None.

    Returns
    -------
    ImageSpec
        For a model of such chips: it takes scenes by the same bands, stretch and ground size.

    Raises
    ------
    BadInputError
        If the folder holds no usable chips.json.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> text = '{"size": 64, "bands": [1, 2, 3], "stretch": null, "ground_km": 475.0, "channels": 3}'
    >>> _ = (folder / "chips.json").write_text(text)
    >>> spec_of_chips(folder).ground_km
    475.0
    """
    path = Path(folder) / "chips.json"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_JSON_BYTES))
        fields = {name: found[name] for name in ("bands", "stretch", "ground_km", "channels")}
        return ImageSpec.from_dict({"resize": found["size"], "crop": crop or found["size"], **fields})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: does not say how chips were cut: {error}") from error


def read_image(
    path: ImagePath, spec: ImageSpec, *, pixel_budget: int = PIXEL_BUDGET, inside: Iterable[ImagePath] = ()
) -> Pixels:
    """Read one image as a model wants it.

    Parameters
    ----------
    path : path
        A photo, a chip that was cut already, or (for models of satellite chips) a georeferenced raster of the
        model's ground size or larger, of which the chip at its centre is taken.
    spec : ImageSpec
    pixel_budget : int
        Most pixels that a photo may have after reduced decoding.
    inside : iterable of path
        Folders; where given, the file must lie in one of them after all symbolic links.

    Returns
    -------
    ndarray of uint8, shape (channels, crop, crop)

    Raises
    ------
    ImageError
        With the row status that this leads to; "refused" for a raster of other bands, another type or less ground
        than the model takes.

    Examples
    --------
    >>> try:
    ...     read_image("no/such.jpg", ImageSpec(8, 8))
    ... except ImageError as error:
    ...     print(error.status)
    missing
    """
    folders = tuple(inside)
    if spec.ground_km is not None and is_georeferenced(path, inside=folders):
        try:
            return _read_scene(Path(path), spec, spec.ground_km)
        except ImageError:
            raise
        except BadInputError as error:
            raise ImageError("unreadable", str(error)) from error
    if spec.channels not in (1, 3):
        raise ImageError("refused", f"{path}: has at most 3 bands and no place; the model takes {spec.channels} bands")
    pixels = photos.read_photo(path, resize=spec.resize, crop=spec.crop, pixel_budget=pixel_budget, inside=folders)
    return pixels if spec.channels == 3 else _grey(pixels)


def claimed_position(
    path: ImagePath, spec: ImageSpec, *, inside: Iterable[ImagePath] = ()
) -> tuple[float, float] | None:
    """Tell where a georeferenced raster says that it lies; judged after predicting, never an input.

    Parameters
    ----------
    path : path
    spec : ImageSpec
        Only models of satellite chips take georeferenced rasters.
    inside : iterable of path
        As `read_image`.

    Returns
    -------
    (longitude, latitude), or None
        Of the raster's middle, degrees; None where the file has no place or cannot be read.

    Examples
    --------
    >>> claimed_position("no/such.tif", ImageSpec(64, 64, ground_km=475.0)) is None
    True
    """
    if spec.ground_km is None:
        return None
    try:
        if not is_georeferenced(path, inside=inside):
            return None
        with scenes.open_scene(Path(path)) as scene:
            return scene.centre
    except BadInputError:
        return None


def read_images(
    paths: Iterable[ImagePath],
    spec: ImageSpec,
    *,
    workers: int = 2,
    ahead: int | None = None,
    pixel_budget: int = PIXEL_BUDGET,
    inside: Iterable[ImagePath] = (),
) -> Generator[Pixels | ImageError, None, None]:
    """Read many images in threads, a few ahead, in their order.

    Parameters
    ----------
    paths : iterable of path
        Taken as they are needed.
    spec : ImageSpec
    workers : int
        Threads; 0 reads in the caller's.
    ahead : int, optional
        Images that are read before they are asked for; by default four per thread. A caller that takes them in
        batches lets the next batch be read while it works on one.
    pixel_budget : int
        As `read_image`.
    inside : iterable of path
        As `read_image`.

    Yields
    ------
    ndarray of uint8, shape (channels, crop, crop), or ImageError
        One for each path. Closing the generator stops the threads.

    Examples
    --------
    >>> [error.status for error in read_images(["no/such.jpg"], ImageSpec(8, 8))]
    ['missing']
    """
    folders = tuple(inside)

    def read(path: ImagePath) -> Pixels | ImageError:
        try:
            return read_image(path, spec, pixel_budget=pixel_budget, inside=folders)
        except ImageError as error:
            # without its frames, which hold the file's bytes for as long as somebody keeps the error
            return error.with_traceback(None)

    if workers < 1:
        yield from map(read, paths)
        return
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="read_images")
    try:
        yield from _in_order(pool, read, paths, _AHEAD * workers if ahead is None else max(1, ahead))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: concurrent.futures.Executor,
    read: Callable[[ImagePath], Pixels | ImageError],
    paths: Iterable[ImagePath],
    most: int,
) -> Iterator[Pixels | ImageError]:
    waiting: collections.deque[concurrent.futures.Future[Pixels | ImageError]] = collections.deque()
    for path in paths:
        waiting.append(pool.submit(read, path))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_scene(path: Path, spec: ImageSpec, ground_km: float) -> Pixels:
    with scenes.open_scene(path) as scene:
        description = read_description(scene.tags)
        bands = _bands_to_read(path, scene, spec, description)
        _check_ground(path, scene, ground_km, is_chip=description is not None)
        stretch = spec.stretch if description is None else None  # a chip of ours is stretched already
        if stretch is None and scene.dtype != np.uint8:
            raise ImageError("refused", f"{path}: holds {scene.dtype}; the model takes uint8")
        side = min(ground_km, *scene.ground_size_km) if description is not None else ground_km
        values, valid = scene.chip(*scene.centre, ground_km=side, size=spec.resize, bands=bands)
    if valid.mean() < _LEAST_VALID:
        share = f"{valid.mean():.0%} of the {ground_km:g} km at its centre"
        raise ImageError("refused", f"{path}: has data on {share}; the model needs {_LEAST_VALID:.0%}")
    trim = (spec.resize - spec.crop) // 2
    square = np.where(valid, apply_stretch(values, stretch), np.uint8(0))
    return np.ascontiguousarray(square[:, trim : trim + spec.crop, trim : trim + spec.crop])


def _bands_to_read(
    path: Path, scene: scenes.Scene, spec: ImageSpec, description: Mapping[str, Any] | None
) -> tuple[int, ...]:
    if description is not None:
        _check_description(path, spec, description)
    elif spec.bands is not None:
        if scene.count < max(spec.bands):
            raise ImageError("refused", f"{path}: has {scene.count} bands; the model takes bands {list(spec.bands)}")
        return spec.bands
    if len(scene.colour_bands) != spec.channels:
        raise ImageError("refused", f"{path}: has {len(scene.colour_bands)} bands; the model takes {spec.channels}")
    return scene.colour_bands


def _check_description(path: Path, spec: ImageSpec, description: Mapping[str, Any]) -> None:
    """Refuse a chip of ours that was not cut as the model's were, as far as the model says."""
    wanted = spec.to_dict()
    for name in ("bands", "stretch"):
        if wanted[name] is not None and description.get(name) != wanted[name]:
            raise ImageError(
                "refused", f"{path}: was cut with {name} {description.get(name)}; the model takes {wanted[name]}"
            )


def _check_ground(path: Path, scene: scenes.Scene, ground_km: float, *, is_chip: bool) -> None:
    width, height = scene.ground_size_km
    too_small = min(width, height) < ground_km * (1.0 - _GROUND_TOLERANCE)
    if too_small or (is_chip and max(width, height) > ground_km * (1.0 + _GROUND_TOLERANCE)):
        raise ImageError("refused", f"{path}: covers {width:.4g} x {height:.4g} km; the model takes {ground_km:g} km")
    cells = (ground_km / scene.pixel_km) ** 2
    if cells > _MOST_CELLS:
        raise ImageError(
            "too_large",
            f"{path}: {cells:.3g} raster cells lie under {ground_km:g} km; at most {_MOST_CELLS:g} are read",
        )


def _grey(pixels: Pixels) -> Pixels:
    weighted = np.tensordot(np.array(_GREY), pixels.astype(np.int64), axes=1)
    return ((weighted + 500) // 1000).astype(np.uint8)[None]
