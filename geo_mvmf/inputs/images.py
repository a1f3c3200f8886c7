"""Any image of a table -> the pixels a model takes: photos by `photos`, georeferenced rasters by `scenes`.

`ImageSpec` says how a model wants its images; it is stored in the bundle, so that prediction prepares them as
training did. Nothing but pixels is taken from a file: no name, no EXIF, no position.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import ImageError, UsageError
from geo_mvmf.inputs import photos, scenes

Pixels = npt.NDArray[np.uint8]

PIXEL_BUDGET = 64_000_000
_GROUND_TOLERANCE = 0.02  # a chip may differ from the model's ground size by so much (projection, rounding)
_AHEAD = 4  # images read ahead per thread


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a model wants its images.

    Parameters
    ----------
    resize : int
        Shorter side in pixels before cropping.
    crop : int
        Side of the centred square that is taken.
    bands : tuple of int, optional
        Bands of a raster, from 1; None: the first `channels`.
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
    >>> ImageSpec.from_dict(ImageSpec(256, 224).to_dict()) == ImageSpec(256, 224)
    True
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
        for name, given in (("bands", self.bands), ("stretch", self.stretch)):
            if given is not None and len(given) != self.channels:
                raise UsageError(f"{name} {given} are {len(given)}, but the model takes {self.channels} channels")
        if self.ground_km is not None and not self.ground_km > 0.0:
            raise UsageError(f"ground_km {self.ground_km} must be positive")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-able values.

        Returns
        -------
        dict
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
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise UsageError(f"image field {min(unknown)!r} is unknown; there are {', '.join(sorted(known))}")
        try:
            bands, stretch = values.get("bands"), values.get("stretch")
            return cls(
                int(values["resize"]),
                int(values["crop"]),
                None if bands is None else tuple(int(band) for band in bands),
                None if stretch is None else tuple((float(low), float(high)) for low, high in stretch),
                None if values.get("ground_km") is None else float(values["ground_km"]),
                int(values.get("channels", 3)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"image settings {dict(values)!r} are incomplete or wrong: {error}") from error


def read_image(path: str | os.PathLike[str], spec: ImageSpec, *, pixel_budget: int = PIXEL_BUDGET) -> Pixels:
    """Read one image as a model wants it.

    Parameters
    ----------
    path : path
        A photo, a chip that was cut already, or (for models of satellite chips) a georeferenced raster of the
        model's ground size or larger, of which the chip at its centre is taken.
    spec : ImageSpec
    pixel_budget : int
        Most pixels that a photo may have.

    Returns
    -------
    ndarray of uint8, (channels, crop, crop)

    Raises
    ------
    ImageError
        With the row status that this leads to.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.new("RGB", (20, 10), (7, 8, 9)).save(path)
    >>> read_image(path, ImageSpec(8, 8))[:, 0, 0].tolist()
    [7, 8, 9]
    """
    if spec.ground_km is not None and scenes.is_scene(path):
        return _read_scene(Path(path), spec, spec.ground_km)
    if spec.channels != 3:
        raise ImageError(
            "refused", f"{path}: the model takes {spec.channels} bands; only a georeferenced raster brings so many"
        )
    return photos.read_photo(path, resize=spec.resize, crop=spec.crop, pixel_budget=pixel_budget)


def claimed_position(path: str | os.PathLike[str], spec: ImageSpec) -> tuple[float, float] | None:
    """Tell where a georeferenced raster says that it lies; judged after predicting, never an input.

    Parameters
    ----------
    path : path
    spec : ImageSpec
        Only models of satellite chips take georeferenced rasters.

    Returns
    -------
    (longitude, latitude) in degrees, or None
    """
    if spec.ground_km is None:
        return None
    try:
        if not scenes.is_scene(path):
            return None
        with scenes.open_scene(Path(path)) as scene:
            return scene.centre
    except ImageError:
        return None


def read_images(
    paths: Sequence[Path | str], spec: ImageSpec, *, workers: int = 2, pixel_budget: int = PIXEL_BUDGET
) -> Generator[Pixels | ImageError, None, None]:
    """Read many images in threads, a few ahead, in their order.

    Parameters
    ----------
    paths : sequence of path
    spec : ImageSpec
    workers : int
        Threads; 0 reads in the caller's.
    pixel_budget : int
        As `read_image`.

    Yields
    ------
    ndarray of uint8, (channels, crop, crop), or the ImageError of an image that cannot be used

    Examples
    --------
    >>> [error.status for error in read_images(["no/such.jpg"], ImageSpec(8, 8))]
    ['missing']
    """

    def read(path: Path | str) -> Pixels | ImageError:
        try:
            return read_image(path, spec, pixel_budget=pixel_budget)
        except ImageError as error:
            return error

    if workers < 1:
        yield from (read(path) for path in paths)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[concurrent.futures.Future[Pixels | ImageError]] = collections.deque()
        try:
            for path in paths:
                waiting.append(pool.submit(read, path))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # the consumer has gone: what was not begun is not begun
                future.cancel()


def stretched(values: npt.NDArray[Any], stretch: Iterable[tuple[float, float]] | None, where: str) -> Pixels:
    """Turn raster values into 8 bits by a fixed linear stretch per band.

    Parameters
    ----------
    values : ndarray, (bands, H, W)
    stretch : iterable of (low, high), optional
        None: the values must be uint8 already.
    where : str
        File, for messages.

    Returns
    -------
    ndarray of uint8, (bands, H, W)

    Raises
    ------
    ImageError
        "refused" if values are not 8-bit and there is no stretch.

    Examples
    --------
    >>> stretched(np.array([[[0, 5000, 10000]]], np.uint16), [(0, 10000)], "a.tif").tolist()
    [[[0, 128, 255]]]
    """
    if stretch is None:
        if values.dtype != np.uint8:
            raise ImageError("refused", f"{where}: values are {values.dtype}; without a stretch only uint8 is taken")
        return values
    limits = np.asarray(list(stretch), dtype=np.float64)[:, :, None, None]
    scaled = (values.astype(np.float64) - limits[:, 0]) / np.maximum(limits[:, 1] - limits[:, 0], 1e-300)
    return np.rint(np.clip(np.nan_to_num(scaled), 0.0, 1.0) * 255.0).astype(np.uint8)


def _read_scene(path: Path, spec: ImageSpec, ground_km: float) -> Pixels:
    with scenes.open_scene(path) as scene:
        _check_scene(path, scene, spec, ground_km)
        longitude, latitude = scene.centre
        bands = spec.bands or tuple(range(1, spec.channels + 1))
        if scene.count == spec.channels:  # a chip that was cut with these bands, or a scene that has no others
            bands = tuple(range(1, spec.channels + 1))
        values, _ = scene.chip(longitude, latitude, ground_km=ground_km, size=spec.resize, bands=bands)
    trim = (spec.resize - spec.crop) // 2
    square = values[:, trim : trim + spec.crop, trim : trim + spec.crop]
    # a chip that the cutter wrote is stretched already: it is 8-bit
    already = square.dtype == np.uint8
    return np.ascontiguousarray(stretched(square, None if already else spec.stretch, str(path)))


def _check_scene(path: Path, scene: scenes.Scene, spec: ImageSpec, ground_km: float) -> None:
    wanted = max(spec.bands or (spec.channels,))
    if scene.count < spec.channels or (scene.count != spec.channels and scene.count < wanted):
        raise ImageError("refused", f"{path}: has {scene.count} bands; the model takes bands {spec.bands or wanted}")
    side = min(scene.ground_size_km)
    if side < ground_km * (1.0 - _GROUND_TOLERANCE):
        raise ImageError("refused", f"{path}: is {side:.3g} km wide; the model takes chips of {ground_km:.3g} km")
