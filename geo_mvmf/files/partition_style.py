"""How QGIS draws a partition: classes coloured by their images per area, or points sized by their images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from geo_mvmf.files import qml
from geo_mvmf.files.qml import Colour, Rule

LAYERS = ("cells", "classes")
"""Names of the layers that are partitions."""

ALIASES: Mapping[str, str] = {
    "cell": "S2 cell",
    "name": "Class",
    "level": "S2 level",
    "images": "Images",
    "area_km2": "Area (km²)",
    "longitude": "Longitude of the mean direction (°)",
    "latitude": "Latitude of the mean direction (°)",
    "log_concentration": "Initial log concentration",
}

# Viridis, whose lightness grows evenly: fewest images per area first.
_COLOURS = (Colour(68, 1, 84), Colour(59, 82, 139), Colour(33, 145, 140), Colour(94, 201, 98), Colour(253, 231, 37))
_EMPTY, _OUTLINE = Colour(200, 200, 200), Colour(255, 255, 255)
_OUTLINE_MM = 0.1
_SIZES_MM = (1.4, 1.9, 2.5, 3.2, 4.0)


def partition_style(columns: Iterable[str], images: npt.ArrayLike, areas_km2: npt.ArrayLike | None) -> str:
    """Make the style of a layer of classes.

    Parameters
    ----------
    columns : iterable of str
        Names in their order.
    images : array_like of int, shape (C,)
        Training images of each class.
    areas_km2 : array_like of float, shape (C,), or None
        None for points, which are sized and coloured by their images instead.

    Returns
    -------
    str
        A QML document with five ranges of about as many classes each; classes without images are grey.

    Examples
    --------
    >>> "no image" in partition_style(["cell", "images", "area_km2"], [3, 0], [10.0, 20.0])
    True
    """
    names = list(columns)
    counts = np.asarray(images, dtype=np.float64)
    areas = None if areas_km2 is None else np.asarray(areas_km2, dtype=np.float64)
    values = counts if areas is None else counts / np.maximum(areas, 1e-12)
    edges = _edges(values[counts > 0])
    expression = '"images"' if areas is None else '("images" / "area_km2")'
    unit = "images" if areas is None else "images per km²"
    empty = _symbol(_EMPTY, _SIZES_MM[0], is_point=areas is None)
    rules = [Rule("no image", '"images" = 0', empty)]
    for rank, (low, high) in enumerate(itertools.pairwise(edges)):
        bound = f" AND {expression} < {high:.17g}" if rank + 2 < len(edges) else ""
        place = round(rank * (len(_COLOURS) - 1) / max(len(edges) - 2, 1))
        symbol = _symbol(_COLOURS[place], _SIZES_MM[place], is_point=areas is None)
        rules.append(
            Rule(f"{low:.3g} to {high:.3g} {unit}", f'"images" > 0 AND {expression} >= {low:.17g}{bound}', symbol)
        )
    tip = '[% "images" %] images'
    fields = qml.fields({name: ALIASES.get(name, "") for name in names})
    return qml.document([qml.rule_renderer(rules), *fields, qml.text_element("mapTip", tip)])


def _edges(values: npt.NDArray[np.float64]) -> Sequence[float]:
    """Quantiles, each once; rounded down at the first, so that the least value is in."""
    if not values.size:
        return []
    found = np.unique(np.quantile(values, np.linspace(0.0, 1.0, len(_COLOURS) + 1)))
    edges = [float(value) for value in found]
    return (
        [edges[0] * (1.0 - 1e-9), *edges[1:]]
        if len(edges) > 1
        else [edges[0] * (1.0 - 1e-9), math.nextafter(edges[0], math.inf)]
    )


def _symbol(colour: Colour, size: float, *, is_point: bool) -> ET.Element:
    if is_point:
        return qml.marker(colour, size, outline=_OUTLINE)
    return qml.fill(colour._replace(alpha=170), outline=_OUTLINE, outline_width=_OUTLINE_MM)
