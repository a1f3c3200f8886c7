"""Partition: classes of training places, by S2 cells, polygons or mean directions, and what a head begins with."""

from __future__ import annotations

import dataclasses
import math

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from scipy import spatial

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.cell_mixture import find_cells
from geo_mvmf.inputs import polygons as polygon_layers
from geo_mvmf.model.cleaning import Cleaning

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]

CELL_SHARE = 0.95  # automatic concentration: this share of a component within its cell's edge (the authors' rule)
_NEIGHBOURS = 4  # on a square grid the four nearest mean directions are an edge away
_DEEPEST_LEVEL = 22  # two mean directions at one place are taken to be as far apart as cells of this level (2 m)


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Classes of training places: each has a mean direction; some kinds are S2 cells, which may tile the sphere.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (C,)
        Disjoint S2 cells, ascending; empty, (0,), where the classes are none: of k-means, polygons or mean directions.
    counts : ndarray of int64, shape (C,)
        Training locations in each class.
    mean_directions : ndarray of float64, shape (C, 3)
        Initial mean directions: cell centres, centroids of polygons, or the mean of each class's locations.
    cleaning : Cleaning
        What was wrong with the locations.
    method : str
        Which rule made it: "s2", "planet", "kmeans" or "file".
    names : tuple of str
        Of the classes, (C,); empty where they have none.
    polygons : GeoDataFrame, optional
        Rows in OGC:CRS84 that the classes consist of, with the index of each row's class in `class_index`.
    outside : int
        Used locations that are in no class: outside all polygons, or in cells that were dropped.
    dropped_cells : int
        Cells that the method made and left out.

    Examples
    --------
    >>> partition = Partition(s2.face_cells(), np.ones(6, int), s2.centre(s2.face_cells()))
    >>> len(partition), partition.tiles_sphere
    (6, True)
    """

    cell_ids: IdArray
    counts: IntArray
    mean_directions: FloatArray
    cleaning: Cleaning = dataclasses.field(default_factory=Cleaning)
    method: str = "s2"
    names: tuple[str, ...] = ()
    polygons: gpd.GeoDataFrame | None = None
    outside: int = 0
    dropped_cells: int = 0

    def __len__(self) -> int:
        return len(self.mean_directions)

    @property
    def has_cells(self) -> bool:
        """Whether the classes are S2 cells, so that a density uniform on each (PlaNet's) exists."""
        return self.cell_ids.size > 0

    @property
    def tiles_sphere(self) -> bool:
        """Whether every place on Earth is in exactly one class that is an S2 cell."""
        if not self.has_cells:
            return False
        first, last = s2.range_min(self.cell_ids), s2.range_max(self.cell_ids)
        faces = s2.face_cells()
        ends = first[0] == s2.range_min(faces[0]) and last[-1] == s2.range_max(faces[-1])
        return bool(ends and (first[1:] - last[:-1] == 2).all())  # ids of leaves are odd

    @property
    def levels(self) -> IntArray:
        """S2 level of each cell, (C,); an error for classes that are none."""
        self.check_cells("S2 level")
        return s2.level(self.cell_ids)

    @property
    def area_sr(self) -> FloatArray:
        """Area of each cell on the unit sphere, (C,); an error for classes that are none."""
        self.check_cells("area of a cell that PlaNet's density is uniform on")
        return s2.area_sr(self.cell_ids)

    def check_cells(self, what: str) -> None:
        """Make sure that the classes are S2 cells.

        Parameters
        ----------
        what : str
            What they would be needed for, for the message.

        Raises
        ------
        ValueError
            They are not.

        Examples
        --------
        >>> Partition(np.empty(0, np.uint64), np.ones(1, int), np.eye(3)[:1], method="kmeans").check_cells("area")
        Traceback (most recent call last):
        ValueError: the 1 classes of method 'kmeans' are no S2 cells: there is no area; they can initialise the mean
        directions of a mixture (head mvmf), nothing else
        """
        if not self.has_cells:
            raise ValueError(
                f"the {len(self)} classes of method {self.method!r} are no S2 cells: there is no {what}; they can "
                "initialise the mean directions of a mixture (head mvmf), nothing else"
            )

    def assign(self, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> IntArray:
        """Find the class of each location.

        Parameters
        ----------
        longitude, latitude : array_like of float, shape (n,)
            Degrees.

        Returns
        -------
        ndarray of int64, shape (n,)
            Indices of the classes: of the cell or polygon that holds the location, else (k-means, mean directions
            from a file) of the nearest mean direction. -1 where no cell or polygon does, which cannot be where the
            cells tile the sphere.

        Raises
        ------
        ValueError
            A location is not finite.

        Examples
        --------
        >>> faces = Partition(s2.face_cells(), np.ones(6, int), s2.centre(s2.face_cells()))
        >>> faces.assign([0.0, 90.0], [0.0, 0.0]).tolist()
        [0, 1]
        """
        directions = sphere.to_directions(longitude, latitude)
        if self.has_cells:
            return find_cells(self.cell_ids, s2.leaf_ids(directions))
        if self.polygons is not None:
            x, y = sphere.to_longitude_latitude(directions)  # longitudes of another turn are brought home
            rows = polygon_layers.containing(self.polygons, x, y)
            owners = np.append(self.polygons["class_index"].to_numpy(np.int64), -1)
            return np.asarray(owners[rows])
        return nearest(self.mean_directions, directions)[0]


def initial_log_concentrations(partition: Partition, value: float | str = "auto") -> FloatArray:
    """Choose the initial log concentration of each component.

    Parameters
    ----------
    partition : Partition
    value : float or "auto"
        One value for all (the paper uses 16), or per component so that 95 % of its mass lies within the edge length
        of its S2 cell. Where the classes are no cells: within the mean distance from its mean direction to the four
        nearest others, which on a square grid is the edge.

    Returns
    -------
    ndarray of float64, shape (C,)
        Natural logarithms of kappa.

    Raises
    ------
    ValueError
        The value is neither a finite number nor "auto".

    Examples
    --------
    >>> faces = Partition(s2.face_cells(), np.ones(6, int), s2.centre(s2.face_cells()))
    >>> initial_log_concentrations(faces, 16.0).tolist()[:1], round(float(initial_log_concentrations(faces)[0]), 1)
    ([16.0], 1.2)
    """
    if value == "auto":
        reach = s2.edge_length(partition.levels) if partition.has_cells else spacing(partition.mean_directions)
        return vmf.log_concentration_for(np.minimum(reach, np.pi), CELL_SHARE)
    if isinstance(value, str) or not np.isfinite(value):
        raise ValueError(f"initial log concentration {value!r} must be a finite number or 'auto'")
    return np.full(len(partition), float(value))


def spacing(mean_directions: FloatArray) -> FloatArray:
    """Give the mean distance from each mean direction to the four nearest others.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.

    Returns
    -------
    ndarray of float64, shape (C,)
        Radians; pi / 2 where there is no other or all are farther, and at least the edge of an S2 cell of level 22.

    Examples
    --------
    >>> spacing(np.eye(3)).round(3).tolist()  # each has two others, a quarter of a circle away
    [1.571, 1.571, 1.571]
    """
    others = min(_NEIGHBOURS, len(mean_directions) - 1)
    if others < 1:
        return np.full(len(mean_directions), math.pi / 2.0)
    chords = np.asarray(spatial.cKDTree(mean_directions).query(mean_directions, others + 1)[0], dtype=np.float64)
    angles = 2.0 * np.arcsin(np.minimum(chords[:, 1:] / 2.0, 1.0))  # the nearest is itself, or one at the same place
    return np.asarray(np.clip(angles.mean(axis=1), float(s2.edge_length(_DEEPEST_LEVEL)), math.pi / 2.0))


def nearest(mean_directions: FloatArray, directions: FloatArray) -> tuple[IntArray, FloatArray]:
    """Find the nearest mean direction of each direction.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    directions : ndarray of float64, shape (n, 3)
        Unit vectors.

    Returns
    -------
    indices : ndarray of int64, shape (n,)
        Of mean directions.
    chords : ndarray of float64, shape (n,)
        Straight distances to them.

    Examples
    --------
    >>> nearest(np.eye(3), np.array([[0.6, 0.8, 0.0]]))[0].tolist()
    [1]
    """
    chords, found = spatial.cKDTree(mean_directions).query(directions)  # the least chord is the least angle
    return np.asarray(found, dtype=np.int64), np.asarray(chords, dtype=np.float64)


def means_of_locations(directions: FloatArray, classes: IntArray, defaults: FloatArray) -> tuple[FloatArray, IntArray]:
    """Average the locations of each class.

    Parameters
    ----------
    directions : ndarray of float64, shape (n, 3)
        Unit vectors.
    classes : ndarray of int64, shape (n,)
        Index of the class of each; -1 for none.
    defaults : ndarray of float64, shape (C, 3)
        What a class without locations keeps, or one whose locations have no mean because they cancel.

    Returns
    -------
    means : ndarray of float64, shape (C, 3)
        Unit vectors.
    counts : ndarray of int64, shape (C,)

    Examples
    --------
    >>> means, counts = means_of_locations(np.eye(3), np.array([0, 0, -1]), np.eye(3)[[2, 2]])
    >>> means.round(3).tolist(), counts.tolist()
    ([[0.707, 0.707, 0.0], [0.0, 0.0, 1.0]], [2, 0])
    """
    inside = classes >= 0
    size = len(defaults)
    counts = np.bincount(classes[inside], minlength=size)
    totals = np.stack([np.bincount(classes[inside], directions[inside, k], size) for k in range(3)], axis=-1)
    length = np.linalg.norm(totals, axis=1)
    known = length > 1e-9 * counts
    means = defaults.copy()
    means[known] = totals[known] / length[known, None]
    return means, counts.astype(np.int64)
