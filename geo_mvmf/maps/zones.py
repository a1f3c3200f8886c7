"""Zones: the probability of every polygon of a layer for every image, and what follows from it.

Of vMF components each zone's probability is computed once, exactly (`maps.borders`, `maps.zone_moments`), and every
image is one product of its mixing weights; of S2 cells it is the cells' shares of area (`maps.cell_shares`). Zones may
overlap, and what lies in none is said.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy import sparse

from geo_mvmf.errors import UsageError
from geo_mvmf.inputs.polygons import read_polygons
from geo_mvmf.maps import borders, zone_moments
from geo_mvmf.maps.cell_shares import cell_shares
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.mixture import CellMixture, VmfMixture, require_mixture
from geo_mvmf.suggestions import suggestion

FloatArray = npt.NDArray[np.float64]

_MANY = 20_000_000  # edges times wide components from which moments are quicker
_NOTHING = 1e-12
_VALUES_AT_ONCE = 1 << 22

NO_ZONE = "in_no_zone"
"""Column of the probability outside all zones."""


def zone_probabilities(
    mixture: VmfMixture | CellMixture,
    polygons: geopandas.GeoDataFrame | str | os.PathLike[str],
    *,
    name_column: str | None = None,
    image_ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Give the probability of every polygon for every image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    polygons : GeoDataFrame or path
        Z zones, as `inputs.polygons.read_polygons` reads them: any CRS, across +-180, over poles, overlapping.
    name_column : str, optional
        Column that names the zones; default "name" in whatever case, else the row number is the name.
    image_ids : sequence of str, optional
        N names; default "0", "1" ...

    Returns
    -------
    DataFrame
        N x Z rows: image_id, zone (row number of the polygon), name, probability. Of a VmfMixture to about 1e-7 (of
        components beyond log kappa 34, to 3e-15 sqrt(kappa)).

    Raises
    ------
    UsageError
        If there is no such column, or names do not fit the images.
    BadInputError
        If the polygons cannot be read.

    Examples
    --------
    >>> north = geopandas.GeoDataFrame({"name": ["north"]}, geometry=[shapely.box(-180, 0, 180, 90)], crs="OGC:CRS84")
    >>> table = zone_probabilities(VmfMixture([[1.0, 0.0, 0.0]], [3.0], [[0.0]]), north)
    >>> table["name"][0], round(float(table["probability"][0]), 6)
    ('north', 0.5)
    """
    return Zones.read(polygons, name_column=name_column).of(mixture, image_ids).tidy()


@dataclasses.dataclass(frozen=True, eq=False)
class ZoneProbabilities:
    """Probabilities of zones for a batch of images.

    Parameters
    ----------
    image_ids : ndarray of str, shape (N,)
    names : ndarray of str, shape (Z,)
    probabilities : ndarray of float64, shape (N, Z)
        Where zones overlap they need not sum to 1.
    in_no_zone : ndarray of float64, shape (N,)
        Probability outside all zones.

    Examples
    --------
    >>> found = ZoneProbabilities(np.array(["a"]), np.array(["x", "y"]), np.array([[0.2, 0.7]]), np.array([0.1]))
    >>> found.top(1)[["rank", "name", "probability"]].to_numpy().tolist()
    [[1, 'y', 0.7]]
    """

    image_ids: npt.NDArray[np.object_]
    names: npt.NDArray[np.object_]
    probabilities: FloatArray
    in_no_zone: FloatArray

    def tidy(self) -> pd.DataFrame:
        """One row per image and zone.

        Returns
        -------
        DataFrame
            N x Z rows: image_id, zone, name, probability.
        """
        images, zones = self.probabilities.shape
        return pd.DataFrame(
            {
                "image_id": np.repeat(self.image_ids, zones),
                "zone": np.tile(np.arange(zones), images),
                "name": np.tile(self.names, images),
                "probability": self.probabilities.ravel(),
            }
        )

    def top(self, number: int) -> pd.DataFrame:
        """Rank the most probable zones of each image.

        Parameters
        ----------
        number : int
            How many; of equal ones the first of the layer comes first.

        Returns
        -------
        DataFrame
            Of each image `number` rows (fewer where there are fewer zones): image_id, rank from 1, zone, name,
            probability, in_no_zone.
        """
        order = self._order(number)  # (N, k)
        images, ranks = order.shape
        return pd.DataFrame(
            {
                "image_id": np.repeat(self.image_ids, ranks),
                "rank": np.tile(np.arange(1, ranks + 1), images),
                "zone": order.ravel(),
                "name": self.names[order].ravel(),
                "probability": np.take_along_axis(self.probabilities, order, axis=1).ravel(),
                NO_ZONE: np.repeat(self.in_no_zone, ranks),
            }
        )

    def columns(self, number: int = 3) -> pd.DataFrame:
        """Give the most probable zones as columns to stand beside the points.

        Parameters
        ----------
        number : int
            How many.

        Returns
        -------
        DataFrame
            N rows: zone_1, zone_1_probability, zone_2 ..., in_no_zone.
        """
        order = self._order(number)
        found: dict[str, object] = {}
        for k in range(order.shape[1]):
            found[f"zone_{k + 1}"] = self.names[order[:, k]]
            found[f"zone_{k + 1}_probability"] = np.take_along_axis(self.probabilities, order[:, k : k + 1], 1)[:, 0]
        return pd.DataFrame({**found, NO_ZONE: self.in_no_zone}, index=pd.RangeIndex(len(self.image_ids)))

    def expected(self) -> pd.DataFrame:
        """Count the images of an album by zone.

        Returns
        -------
        DataFrame
            Z rows: zone, name, expected_images (the sum of the probabilities) and standard_deviation (the root of
            the sum of p (1 - p)), right where the images' places are independent of each other.
        """
        p = self.probabilities
        return pd.DataFrame(
            {
                "zone": np.arange(len(self.names)),
                "name": self.names,
                "expected_images": p.sum(axis=0),
                "standard_deviation": np.sqrt((p * (1.0 - p)).sum(axis=0)),
            }
        )

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        if number < 1:
            raise UsageError(f"{number} zones per image were asked for; it must be at least 1")
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :number].astype(np.int64)


class Zones:
    """Polygons, ready to be given probabilities; what components or cells share with them is computed once.

    Parameters
    ----------
    polygons : GeoDataFrame
        From `inputs.polygons.read_polygons`.
    names : ndarray of str, shape (Z,)

    Examples
    --------
    >>> west = geopandas.GeoDataFrame({"NAME": ["west"]}, geometry=[shapely.box(-180, -90, 0, 90)], crs="OGC:CRS84")
    >>> Zones.read(west).names.tolist()
    ['west']
    """

    def __init__(self, polygons: geopandas.GeoDataFrame, names: npt.NDArray[np.object_]) -> None:
        self.polygons, self.names = polygons, names
        shapes = polygons.geometry.to_numpy()
        # the last one is where any zone is: what lies in none is 1 less its probability, also where zones overlap
        self._shapes = np.array([*shapes, shapely.union_all(shapes)], dtype=object)
        self._shares = OncePerComponents(self._component_shares)

    @classmethod
    def read(
        cls,
        polygons: geopandas.GeoDataFrame | str | os.PathLike[str] | Zones,
        *,
        name_column: str | None = None,
        layer: str | None = None,
    ) -> Zones:
        """Read polygons and their names.

        Parameters
        ----------
        polygons, name_column
            As `zone_probabilities`; zones that were read before are given back.
        layer : str, optional
            Of a GeoPackage with several.

        Returns
        -------
        Zones

        Raises
        ------
        UsageError
            If there is no such column.
        BadInputError
            If the polygons cannot be read.
        """
        if isinstance(polygons, Zones):
            return polygons
        found = read_polygons(polygons, layer=layer)
        own = [str(column) for column in found.columns if column != found.geometry.name]
        if name_column is None:
            name_column = next((column for column in own if column.lower() == "name"), None)
        elif name_column not in own:
            has, meant = ", ".join(own) or "none", suggestion(name_column, own)
            raise UsageError(f"the polygons have no column {name_column!r}; they have {has}{meant}")
        numbers = [str(row) for row in range(len(found))]
        given = numbers if name_column is None else found[name_column].astype(object).to_numpy()
        names = [number if pd.isna(name) else str(name) for name, number in zip(given, numbers, strict=True)]
        return cls(found, np.array(names, dtype=object))

    def of(self, mixture: VmfMixture | CellMixture, image_ids: Sequence[str] | None = None) -> ZoneProbabilities:
        """Give the zones their probabilities.

        Parameters
        ----------
        mixture, image_ids
            As `zone_probabilities`.

        Returns
        -------
        ZoneProbabilities

        Raises
        ------
        UsageError
            If names do not fit the images.
        """
        require_mixture(mixture)
        names = [str(i) for i in range(len(mixture))] if image_ids is None else list(image_ids)
        if len(names) != len(mixture):
            raise UsageError(f"{len(names)} image_ids were given for {len(mixture)} images")
        held = self._cells(mixture) if isinstance(mixture, CellMixture) else self._components(mixture)
        held = np.clip(held, 0.0, 1.0)
        return ZoneProbabilities(np.array(names, dtype=object), self.names, held[:, :-1], 1.0 - held[:, -1])

    def of_all(self, blocks: Iterable[tuple[VmfMixture | CellMixture, Sequence[str]]]) -> ZoneProbabilities:
        """Give the zones their probabilities, block after block of images.

        Parameters
        ----------
        blocks : iterable of (mixture, image_ids)

        Returns
        -------
        ZoneProbabilities
            Of all images.
        """
        found = [self.of(mixture, image_ids) for mixture, image_ids in blocks]
        return ZoneProbabilities(
            np.concatenate([np.empty(0, dtype=object), *(each.image_ids for each in found)]),
            self.names,
            np.concatenate([np.empty((0, self.names.size)), *(each.probabilities for each in found)]),
            np.concatenate([np.empty(0), *(each.in_no_zone for each in found)]),
        )

    def layer(self, found: ZoneProbabilities) -> geopandas.GeoDataFrame:
        """Join what an album says to the polygons.

        Parameters
        ----------
        found : ZoneProbabilities
            From these zones.

        Returns
        -------
        GeoDataFrame
            OGC:CRS84; zone, name, expected_images, standard_deviation, and the polygons.
        """
        return geopandas.GeoDataFrame(found.expected(), geometry=self.polygons.geometry.to_numpy(), crs="OGC:CRS84")

    def _component_shares(self, mean_directions: FloatArray, log_concentrations: FloatArray) -> sparse.csr_array:
        """Probability of every zone under every component: along the borders, or where many are wide by moments."""
        wide = log_concentrations <= zone_moments.WIDEST
        if int(wide.sum()) * self._edges.zone.size < _MANY:
            return borders.component_shares(mean_directions, log_concentrations, self._shapes)
        shape = (log_concentrations.size, self._shapes.size)
        narrow = borders.component_shares(mean_directions[~wide], log_concentrations[~wide], self._shapes).tocoo()
        rows, columns = [np.flatnonzero(~wide)[narrow.row]], [narrow.col.astype(np.int64)]
        values = [narrow.data]
        step = max(1, _VALUES_AT_ONCE // self._shapes.size)
        for start in range(0, int(wide.sum()), step):
            own = np.flatnonzero(wide)[start : start + step]
            shares = np.clip(self._moments.shares(mean_directions[own], log_concentrations[own]), 0.0, 1.0)
            row, column = np.nonzero(shares > _NOTHING)
            rows, columns = [*rows, own[row]], [*columns, column]
            values.append(shares[row, column])
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csr_array(entries, shape=shape)

    @functools.cached_property
    def _edges(self) -> borders.Edges:
        return borders.edges_of(self._shapes)

    @functools.cached_property
    def _moments(self) -> zone_moments.ZoneMoments:
        members = functools.partial(borders.members, self._shapes)
        return zone_moments.ZoneMoments(*self._edges, self._shapes.size, members)

    def _components(self, mixture: VmfMixture) -> FloatArray:
        shares = self._shares(mixture.mean_directions, mixture.log_concentrations)
        return np.asarray(np.exp(mixture.log_mixing_weights) @ shares)

    def _cells(self, mixture: CellMixture) -> FloatArray:
        cells, row = np.unique(mixture.cell_ids, return_inverse=True)
        most = np.zeros(cells.size)
        np.maximum.at(most, row, mixture.probabilities)
        weights = sparse.csr_array((mixture.probabilities, row, mixture.offsets), shape=(len(mixture), cells.size))
        return np.asarray((weights @ cell_shares(cells, most, self._shapes)).toarray())
