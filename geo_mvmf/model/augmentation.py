"""Augmentation: changed copies of training images, a pure function of (seed, step, image index).

No generator is kept and none is advanced: every random number is a hash of the seed, the step, the row of the image
and what the number is for. So a resumed run sees the same images as an undisturbed one, whatever the number
of workers.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from geo_mvmf.errors import UsageError

_RANGES: dict[str, tuple[float, float]] = {
    "min_scale": (0.01, 1.0),
    "max_aspect": (1.0, 4.0),
    "shift": (0.0, 64.0),
    "roam": (0, 2048),
    "scale": (0.0, 1.0),
    "rotate": (0.0, 180.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 0.99),
    "saturation": (0.0, 1.0),
    "gamma": (0.0, 4.0),
    "channel_gain": (0.0, 0.99),
    "channel_offset": (0.0, 1.0),
    "noise": (0.0, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed; the defaults change nothing.

    Parameters
    ----------
    min_scale : float
        Random resized crop: smallest share of the image's area that is kept (1: no crop). Photos: 0.35. A chip has
        a known ground size, so leave it at 1 there.
    max_aspect : float
        Largest aspect ratio of that crop; 4/3 is usual.
    flip : bool
        Mirror half of the images, left to right. Off for chips: they are north up, and that is a clue.
    shift : float
        Largest shift in pixels, both ways; the border is mirrored. The true place stays where it was.
    roam : int
        Largest number of pixels, both ways, by which the square that is cut out roams over a chip that was cut larger;
        its true place moves along. So one chip stands for all places around its centre. For chips of known ground
        size only.
    scale : float
        Zoom about the centre by a factor between 1 / (1 + scale) and 1 + scale, all ratios equally often; where an
        image has no margin around what is taken of it, its border is mirrored. Chips then show up to so much more or
        less ground than `ground_km`, and their places stay: the network puts up with chips of a slightly wrong ground
        size. What prediction cuts out of a raster stays `ground_km`.
    rotate : float
        Largest rotation in degrees, both ways. Off for chips: they are north up.
    brightness : float
        Largest value added to all channels (of 0..1), both ways.
    contrast : float
        Largest relative change of the contrast about the image's mean.
    saturation : float
        Largest relative change of the distance from grey (three channels only).
    gamma : float
        Values of 0..1 are raised to a power between 1 / (1 + gamma) and 1 + gamma, one for each image: how a sensor,
        or a stretch, bends brightness.
    channel_gain, channel_offset : float
        Largest relative change, and value added, for every channel by itself: seasons, haze, sensors.
    noise : float
        Standard deviation of noise added to every pixel value (of 0..1).

    Raises
    ------
    UsageError
        If a value is out of range.

    Examples
    --------
    >>> Augmentation(channel_gain=0.1).changes_nothing
    False
    """

    min_scale: float = 1.0
    max_aspect: float = 1.0
    flip: bool = False
    shift: float = 0.0
    roam: int = 0
    scale: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0
    channel_gain: float = 0.0
    channel_offset: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise UsageError(f"augment: flip is {self.flip!r}; true or false is needed")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise UsageError(f"augment: {name} is {value!r}; {low:g}..{high:g} is allowed")
        if not isinstance(self.roam, int):
            raise UsageError(f"augment: roam is {self.roam!r}; a whole number of pixels is needed")

    @property
    def changes_nothing(self) -> bool:
        """Whether every value is the default."""
        return self == Augmentation()

    @property
    def moves_pixels(self) -> bool:
        """Whether pixels change their places."""
        stretched = self.min_scale < 1 or self.max_aspect > 1 or self.scale > 0
        return stretched or self.flip or self.shift > 0 or self.rotate > 0


def uniform(seed: int, step: int, rows: npt.NDArray[np.int64], purpose: int) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1) that depend on nothing but the arguments.

    Parameters
    ----------
    seed, step : int
    rows : array, shape (N,), int64
        Indices of the images.
    purpose : int
        What the numbers are for.

    Returns
    -------
    array, shape (N,), float64
        From splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), 53 bits.

    Examples
    --------
    >>> uniform(0, 5, np.array([7, 8]), 1).round(6).tolist() == uniform(0, 5, np.array([7, 8]), 1).round(6).tolist()
    True
    """
    return (_hash(seed, step, rows, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def roamed(options: Augmentation, *, seed: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How far the square that `augment` cuts out lies from the middle of each image.

    Parameters
    ----------
    options : Augmentation
    seed, step : int
    rows : array, shape (N,), int64
        Index of each image in the table.

    Returns
    -------
    array, shape (N, 2), int64
        Pixels to the right (east) and downwards (south), each in -roam..roam, all equally often.

    Examples
    --------
    >>> roamed(Augmentation(), seed=0, step=1, rows=np.array([3])).tolist()
    [[0, 0]]
    """
    draws = [uniform(seed, step, rows, purpose) for purpose in (9, 10)]
    return np.floor(np.stack(draws, axis=1) * (2 * options.roam + 1)).astype(np.int64) - options.roam


def augment(
    images: Tensor, options: Augmentation, *, size: int, seed: int, step: int, rows: npt.NDArray[np.int64]
) -> Tensor:
    """Change images.

    Parameters
    ----------
    images : Tensor, shape (N, channels, H, W), uint8
    options : Augmentation
    size : int
        Height and width of the result; where pixels do not move, it is cut out: the centre, or where `roamed` says.
    seed, step : int
    rows : array, shape (N,), int64
        Index of each image in the table: its result depends on no other image of the batch.

    Returns
    -------
    Tensor, shape (N, channels, size, size)
        uint8 where nothing changes, else float32 in 0..1.

    Examples
    --------
    >>> images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    >>> row = np.array([3])
    >>> changed = augment(images, Augmentation(brightness=0.1), size=8, seed=0, step=1, rows=row)
    >>> changed.shape, changed.dtype
    (torch.Size([1, 3, 8, 8]), torch.float32)
    """
    if options.changes_nothing:
        return _centre(images, size)
    if options.roam:
        # First, and exactly: what is cut out has the same pixels as a chip that was cut there.
        images = _cut_out(images, size, roamed(options, seed=seed, step=step, rows=rows))
    draws = _Draws(seed, step, rows, images.device)
    pixels = images.float() / 255.0
    pixels = _move(pixels, options, size, draws) if options.moves_pixels else _centre(pixels, size)
    return _colour(pixels, options, draws).clamp_(0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class _Draws:
    seed: int
    step: int
    rows: npt.NDArray[np.int64]
    device: torch.device

    def symmetric(self, purpose: int, width: float) -> Tensor:
        """Numbers in -width..width, shape (N,)."""
        numbers = (2.0 * uniform(self.seed, self.step, self.rows, purpose) - 1.0) * width
        return torch.from_numpy(numbers.astype(np.float32)).to(self.device)

    def positive(self, purpose: int) -> Tensor:
        """Numbers in 0..1, shape (N,)."""
        numbers = uniform(self.seed, self.step, self.rows, purpose).astype(np.float32)
        return torch.from_numpy(numbers).to(self.device)

    def channels(self, purpose: int, count: int, width: float) -> Tensor:
        """Numbers in -width..width, shape (N, count, 1, 1)."""
        columns = [self.symmetric(purpose + channel, width) for channel in range(count)]
        return torch.stack(columns, dim=1)[:, :, None, None]


def _hash(seed: int, step: int, rows: npt.NDArray[np.int64], purpose: int) -> npt.NDArray[np.uint64]:
    state = rows.astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for word in (purpose, step, seed):
            state = _mix(state) + np.uint64(word)
        return _mix(state)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _centre(images: Tensor, size: int) -> Tensor:
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def _cut_out(images: Tensor, size: int, offsets: npt.NDArray[np.int64]) -> Tensor:
    count, channels = images.shape[:2]
    middle = np.array([(images.shape[3] - size) // 2, (images.shape[2] - size) // 2])
    first = torch.from_numpy(offsets + middle).to(images.device)  # (N, 2) column, row
    ticks = torch.arange(size, device=images.device)
    columns, rows = first[:, :1] + ticks, first[:, 1:] + ticks  # (N, size)
    which = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return images[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _move(pixels: Tensor, options: Augmentation, size: int, draws: _Draws) -> Tensor:
    """Sample each image through its own affine map: crop, mirror, rotate, shift."""
    height, width = pixels.shape[2], pixels.shape[3]
    cropped = options.min_scale < 1 or options.max_aspect > 1
    # As the random resized crop of Szegedy et al. 2015: area uniform, logarithm of the aspect ratio uniform.
    area = options.min_scale + (1 - options.min_scale) * draws.positive(1)
    ratio = torch.exp(draws.symmetric(2, float(np.log(options.max_aspect))))
    across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    if not cropped:  # the centre, without scaling
        across, down = across * (size / width), down * (size / height)
    x_shift = draws.symmetric(3, 1.0) * (1 - across) * cropped + draws.symmetric(4, 2 * options.shift / width)
    y_shift = draws.symmetric(5, 1.0) * (1 - down) * cropped + draws.symmetric(6, 2 * options.shift / height)
    if options.scale:
        zoom = torch.exp(draws.symmetric(11, math.log1p(options.scale)))
        across, down = across / zoom, down / zoom
    mirror = torch.where(draws.positive(7) < 0.5, -1.0, 1.0) if options.flip else torch.ones_like(area)
    turn = draws.symmetric(8, float(np.radians(options.rotate)))
    first = torch.stack([mirror * across * turn.cos(), -down * turn.sin(), x_shift], dim=1)
    second = torch.stack([mirror * across * turn.sin(), down * turn.cos(), y_shift], dim=1)
    maps = torch.stack([first, second], dim=1)  # (N, 2, 3)
    grid = functional.affine_grid(maps, [len(pixels), pixels.shape[1], size, size], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _colour(pixels: Tensor, options: Augmentation, draws: _Draws) -> Tensor:
    count = pixels.shape[1]
    if options.gamma:  # first, while values are in 0..1, but for rounding
        pixels = pixels.clamp(0.0, 1.0) ** torch.exp(draws.channels(19, 1, math.log1p(options.gamma)))
    if options.contrast:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        pixels = mean + (pixels - mean) * (1 + draws.channels(16, 1, options.contrast))
    if options.saturation and count == 3:
        grey = pixels.mean(dim=1, keepdim=True)
        pixels = grey + (pixels - grey) * (1 + draws.channels(17, 1, options.saturation))
    if options.brightness:
        pixels = pixels + draws.channels(18, 1, options.brightness)
    if options.channel_gain:
        pixels = pixels * (1 + draws.channels(64, count, options.channel_gain))
    if options.channel_offset:
        pixels = pixels + draws.channels(128, count, options.channel_offset)
    if options.noise:
        pixels = pixels + _noise(pixels, options.noise, draws)
    return pixels


def _noise(pixels: Tensor, sigma: float, draws: _Draws) -> Tensor:
    size = pixels[0].numel()
    counters = np.arange(size, dtype=np.int64)
    noise = np.empty((len(pixels), size), np.float32)
    for position, row in enumerate(draws.rows):
        # Irwin-Hall of the four 16-bit parts of one hash: near enough to a normal for noise, and much quicker.
        parts = _hash(draws.seed, draws.step, counters + (int(row) << 32), 256).view(np.uint16).reshape(size, 4)
        noise[position] = parts.sum(axis=1, dtype=np.float32) / 65536.0
    noise = (noise - 2.0) * np.float32(np.sqrt(3.0))  # variance 4 / 12 to 1
    return torch.from_numpy(noise).to(pixels.device).view_as(pixels) * sigma
