"""Places with their chips, one after another: drawn, judged, cut."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import polygons
from geo_mvmf.inputs.places import DEEPEST_BLOCKS, draw_places
from geo_mvmf.inputs.scenes import Scene

Area: TypeAlias = "str | os.PathLike[str] | gpd.GeoDataFrame | BaseGeometry"
"""Polygons: a layer, by its path or read already, or a geometry in OGC:CRS84."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
"""Of seasons and parts: they become file names."""

_LEAST_ACCEPTED = 1e-3  # share of places; below it the wishes contradict the raster
_FIRST_TRIES = 5_000


class Chip(NamedTuple):
    """One chip as it was cut.

    Attributes
    ----------
    pixels : ndarray, shape (B, size, size)
        In the raster's own type.
    valid : ndarray of bool, shape (size, size)
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


class Place(NamedTuple):
    """A place and its chips.

    Attributes
    ----------
    longitude, latitude : float
        Degrees.
    chips : dict of str to Chip
        By season.
    """

    longitude: float
    latitude: float
    chips: dict[str, Chip]


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The options of `chips.cut_chips`, checked.

    Attributes
    ----------
    count, size, ground_km, bands, stretch, area, land, seed, places, min_valid, min_separation_km, parts, \
block_level, overwrite
        As `chips.cut_chips`.
    form : str
        Its `format`.

    Raises
    ------
    UsageError
        If one is out of range.
    """

    count: int
    size: int
    ground_km: float
    bands: tuple[int, ...] | None
    stretch: str | Sequence[Sequence[float]] | None
    area: Area | None
    land: Area | None
    seed: int
    places: str
    min_valid: float
    min_separation_km: float | None
    parts: dict[str, float] | None
    block_level: int | None
    form: str
    overwrite: bool

    def __post_init__(self) -> None:
        for name in ("count", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is not a positive number")
        if not self.ground_km > 0.0:
            raise UsageError(f"ground_km {self.ground_km} is not positive")
        if not 0.0 <= self.min_valid <= 1.0:
            raise UsageError(f"min_valid {self.min_valid} is not a share in 0..1")
        if self.places not in ("same", "independent"):
            raise UsageError(f"places {self.places!r} is neither 'same' nor 'independent'")
        if isinstance(self.stretch, str) and self.stretch != "auto":
            raise UsageError(f"stretch {self.stretch!r} is neither 'auto' nor pairs of (low, high)")
        self._check_parts()

    def _check_parts(self) -> None:
        if self.block_level is not None and not 0 <= self.block_level <= DEEPEST_BLOCKS:
            raise UsageError(f"block_level {self.block_level} is not in 0..{DEEPEST_BLOCKS}")
        if self.parts is None:
            if self.block_level is not None:
                raise UsageError(f"block_level {self.block_level} is given without parts; name them, or leave it out")
            return
        if len(self.parts) < 2:
            raise UsageError(f"parts {self.parts} are fewer than two; name at least two with their shares")
        for name, share in self.parts.items():
            if not NAME.fullmatch(name) or name.lower() == "chips":
                raise UsageError(
                    f"part {name!r} cannot be the name of a table; use letters, digits, '.', '_', '-', and not 'chips'"
                )
            if not (math.isfinite(share) and share > 0.0):
                raise UsageError(f"part {name!r} has the share {share}; a number above 0 is needed")


def place_series(scenes: Mapping[str, Scene], bands: tuple[int, ...], wishes: Wishes) -> list[Iterator[Place]]:
    """Give endless series of places: one for all seasons, or one for each.

    Parameters
    ----------
    scenes : mapping of str to Scene
        By season.
    bands : tuple of int
        Numbers from 1.
    wishes : Wishes

    Returns
    -------
    list of iterator of Place
        Cut as they are asked for.

    Raises
    ------
    BadInputError
        From the iterators, where too few places have data.
    """
    wanted = [_as_geometry(area) for area in (wishes.area, wishes.land) if area is not None]
    groups = [dict(scenes)] if wishes.places == "same" else [{name: scene} for name, scene in scenes.items()]
    seeds = np.random.SeedSequence(wishes.seed).spawn(len(groups))
    return [
        _places(group, bands, wanted, wishes, np.random.default_rng(seed))
        for group, seed in zip(groups, seeds, strict=True)
    ]


def _as_geometry(area: Area) -> BaseGeometry:
    if isinstance(area, BaseGeometry):
        return shapely.make_valid(area)
    return polygons.union_area(polygons.read_polygons(area))


def _places(
    scenes: Mapping[str, Scene],
    bands: tuple[int, ...],
    wanted: Sequence[BaseGeometry],
    wishes: Wishes,
    generator: np.random.Generator,
) -> Iterator[Place]:
    area = shapely.intersection_all([*(scene.footprint() for scene in scenes.values()), *wanted])
    taken = _Taken(wishes.min_separation_km)
    reasons = dict.fromkeys(("outside the raster", "too near to another", "too little data"), 0)
    accepted = 0
    for tries, (longitude, latitude) in enumerate(draw_places(area, generator)):
        if tries >= _FIRST_TRIES and accepted < _LEAST_ACCEPTED * tries:
            raise BadInputError(_too_few(wishes, accepted, tries, reasons, scenes))
        if not all(bool(scene.contains(longitude, latitude)) for scene in scenes.values()):
            reasons["outside the raster"] += 1
        elif taken.is_near(longitude, latitude):
            reasons["too near to another"] += 1
        elif (chips := _cut_all(scenes, longitude, latitude, bands, wishes)) is None:
            reasons["too little data"] += 1
        else:
            accepted += 1
            taken.add(longitude, latitude)
            yield Place(longitude, latitude, chips)


def _too_few(wishes: Wishes, accepted: int, tries: int, reasons: Mapping[str, int], scenes: Mapping[str, Scene]) -> str:
    path = next(iter(scenes.values())).paths[0]
    why = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
    return (
        f"{path}: only {accepted} of {wishes.count} places found in {tries} tries ({why}); "
        f"ask for fewer or smaller chips, a lower min_valid, or another area"
    )


def _cut_all(
    scenes: Mapping[str, Scene], longitude: float, latitude: float, bands: tuple[int, ...], wishes: Wishes
) -> dict[str, Chip] | None:
    chips = {}
    for name, scene in scenes.items():
        chip = Chip(*scene.chip(longitude, latitude, ground_km=wishes.ground_km, size=wishes.size, bands=bands))
        if chip.valid.mean() < wishes.min_valid or not chip.valid.any():
            return None
        chips[name] = chip
    return chips


class _Taken:
    """Places that later ones keep their distance from."""

    def __init__(self, separation_km: float | None) -> None:
        self._separation_km = separation_km
        self._longitude: list[float] = []
        self._latitude: list[float] = []

    def is_near(self, longitude: float, latitude: float) -> bool:
        if self._separation_km is None or not self._longitude:
            return False
        far = sphere.great_circle_distance_km(longitude, latitude, self._longitude, self._latitude)
        return bool((far < self._separation_km).any())

    def add(self, longitude: float, latitude: float) -> None:
        if self._separation_km is not None:
            self._longitude.append(longitude)
            self._latitude.append(latitude)
