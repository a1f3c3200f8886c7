"""Coordinate reference systems from untrusted places, and the way from them to longitude and latitude.

A CRS text can be an address, a path to a grid or a pipeline. So users name a CRS by its code only, files give
theirs as a code, WKT or PROJJSON without references to other files, and PROJ's network stays off while either is
used.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
from pyproj.exceptions import CRSError, ProjError
from pyproj.network import (  # type: ignore[attr-defined]  # public by its documentation, but not re-exported
    is_network_enabled,
    set_network_enabled,
)

from geo_mvmf.errors import AmbiguousInputError, BadInputError, UsageError

FloatArray = npt.NDArray[np.float64]

CRS84 = "OGC:CRS84"
"""WGS 84 with longitude first: what every layer is brought to."""

ASSIGN_CRS = "ogr2ogr -a_srs EPSG:n new.gpkg FILE (QGIS: Assign projection)"
"""What gives a layer another CRS, where no option of ours does."""

_CODE = re.compile(r"EPSG:\d{4,6}|OGC:CRS84", re.IGNORECASE)
_URN = re.compile(r"urn:ogc:def:crs:(EPSG|OGC):[\d.]*:(\w+)", re.IGNORECASE)
_SAME_AS_CRS84 = {("OGC", "CRS84"), ("EPSG", "4326")}
_MAX_DEFINITION = 65_536  # characters; a long WKT has about 5000
# Definitions that make PROJ open other files or addresses (grids, pipelines, init files).
_REFERENCES = re.compile(r"parameterfile|bound_?crs|nadgrids|geoidgrids|\+init|https?:|pipeline", re.IGNORECASE)


def parse_crs(value: str | pyproj.CRS) -> pyproj.CRS:
    """Read the CRS that a user names.

    Parameters
    ----------
    value : str or pyproj.CRS
        "EPSG:n" or "OGC:CRS84"; an object is taken as it is.

    Returns
    -------
    pyproj.CRS

    Raises
    ------
    UsageError
        For any other text, or a code that PROJ does not know.

    Examples
    --------
    >>> parse_crs("EPSG:3857").name
    'WGS 84 / Pseudo-Mercator'
    >>> parse_crs("+proj=utm +zone=32")
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: crs '+proj=utm +zone=32' is not of the form EPSG:n or OGC:CRS84
    """
    if isinstance(value, pyproj.CRS):
        return value
    text = str(value).strip()
    if not _CODE.fullmatch(text):
        meant = f"; did you mean EPSG:{text}?" if re.fullmatch(r"\d{4,6}", text) else ""
        raise UsageError(f"crs {text[:200]!r} is not of the form EPSG:n or OGC:CRS84{meant}")
    try:
        return _from_code(*text.upper().split(":"))
    except CRSError as error:
        raise UsageError(f"crs {text!r} is not known to PROJ {pyproj.proj_version_str}") from error


def file_crs(definition: str | dict[str, Any], where: str) -> pyproj.CRS | None:
    """Read the CRS that a file states.

    Parameters
    ----------
    definition : str or dict
        "EPSG:n", "OGC:CRS84", their URN forms, WKT, or PROJJSON.
    where : str
        The file, for messages.

    Returns
    -------
    pyproj.CRS or None
        None where the file says itself that the CRS is not known.

    Raises
    ------
    BadInputError
        If the definition is too long, refers to other files, or is not understood.

    Examples
    --------
    >>> file_crs("urn:ogc:def:crs:EPSG::2154", "a.geojson").name
    'RGF93 v1 / Lambert-93'
    """
    if isinstance(definition, dict):  # the address of PROJJSON's schema is never followed
        definition = {name: value for name, value in definition.items() if name != "$schema"}
    text = definition.strip() if isinstance(definition, str) else json.dumps(definition)
    if text.lower() in ("", "undefined", "null"):
        return None
    if len(text) > _MAX_DEFINITION:
        raise BadInputError(f"{where}: a CRS definition of {len(text)} characters is refused")
    code = _stated_code(definition)
    if code is None and (reference := _REFERENCES.search(text)):
        raise BadInputError(f"{where}: a CRS that refers to other files ({reference[0]!r}) is refused")
    try:
        crs = _from_code(*code) if code is not None else _from_definition(definition)
    except (CRSError, ProjError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInputError(
            f"{where}: the CRS {text[:200]!r} is not understood; assign one of EPSG to it (QGIS: Assign projection)"
        ) from error
    return None if crs.is_engineering else crs


def stated_crs(stated: pyproj.CRS | None, where: str) -> pyproj.CRS:
    """Insist on the CRS that a layer states, where no option could.

    Parameters
    ----------
    stated : pyproj.CRS or None
        From the file.
    where : str
        The file, for messages.

    Raises
    ------
    BadInputError
        If it states none.

    Examples
    --------
    >>> stated_crs(parse_crs("EPSG:4326"), "a.gpkg").name
    'WGS 84'
    """
    if stated is None:
        raise BadInputError(f"{where}: the CRS is unknown; {ASSIGN_CRS}")
    return stated


def resolve_crs(
    stated: pyproj.CRS | None, wanted: str | pyproj.CRS | None, where: str, *, otherwise: str = ASSIGN_CRS
) -> pyproj.CRS:
    """Decide on the CRS of a layer: what it states; what the user says only where it states none.

    Parameters
    ----------
    stated : pyproj.CRS or None
        From the file.
    wanted : str, pyproj.CRS or None
        The option ``crs``.
    where : str
        The file, for messages.
    otherwise : str
        What somebody can do who does not have the option, for messages.

    Raises
    ------
    AmbiguousInputError
        If neither is there.
    UsageError
        If both are there and differ.

    Examples
    --------
    >>> resolve_crs(None, None, "a.gpkg")
    Traceback (most recent call last):
    geo_mvmf.errors.AmbiguousInputError: a.gpkg: the CRS is unknown; set it to EPSG:n or OGC:CRS84 (crs=)
    """
    if wanted is None:
        if stated is None:
            problem = f"{where}: the CRS is unknown"
            raise AmbiguousInputError(problem, "crs", f"set it to EPSG:n or {CRS84}", otherwise)
        return stated
    chosen = parse_crs(wanted)
    if stated is not None and stated != chosen and not (is_crs84(stated) and is_crs84(chosen)):
        raise UsageError(f"{where} states the CRS {stated.name!r}; leave out crs={chosen.name!r} or correct the file")
    return chosen


def to_longitude_latitude(x: npt.ArrayLike, y: npt.ArrayLike, crs: pyproj.CRS) -> tuple[FloatArray, FloatArray]:
    """Transform coordinates to OGC:CRS84.

    Parameters
    ----------
    x, y : array_like of float, shape (n,)
        Easting (or longitude) first, whatever axis order the CRS declares.
    crs : pyproj.CRS
        Theirs.

    Returns
    -------
    longitude, latitude : ndarray of float64, shape (n,)
        Degrees; infinite or NaN where there is no answer.

    Raises
    ------
    BadInputError
        If there is no way from this CRS to longitude and latitude.

    Examples
    --------
    >>> longitude, latitude = to_longitude_latitude([0.0], [6446275.84], parse_crs("EPSG:3857"))
    >>> round(float(latitude[0]), 4)
    50.0
    """
    x, y = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    if is_crs84(crs):
        return x, y
    try:
        with network_off():
            transformer = pyproj.Transformer.from_crs(crs, CRS84, always_xy=True)
            longitude, latitude = transformer.transform(x, y, errcheck=False)
    except ProjError as error:
        raise BadInputError(f"there is no transformation from {crs.name!r} to {CRS84}") from error
    return np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)


def is_crs84(crs: pyproj.CRS) -> bool:
    """Tell whether coordinates in a CRS are longitude and latitude of WGS 84 already, whatever the axis order.

    Parameters
    ----------
    crs : pyproj.CRS
        Any.

    Examples
    --------
    >>> is_crs84(parse_crs("EPSG:4326")), is_crs84(parse_crs("EPSG:4258"))
    (True, False)
    """
    return crs.to_authority(min_confidence=100) in _SAME_AS_CRS84


@contextlib.contextmanager
def network_off() -> Iterator[None]:
    """Keep PROJ from fetching grids, whatever the environment says; the setting is put back afterwards.

    Examples
    --------
    >>> with network_off():
    ...     is_network_enabled()
    False
    """
    before = is_network_enabled()
    set_network_enabled(active=False)
    try:
        yield
    finally:
        set_network_enabled(active=before)


def _from_code(authority: str, code: str) -> pyproj.CRS:
    with network_off():
        return pyproj.CRS.from_authority(authority, code)


def _from_definition(definition: str | dict[str, Any]) -> pyproj.CRS:
    with network_off():
        if isinstance(definition, dict):
            return pyproj.CRS.from_json_dict(definition)
        return pyproj.CRS.from_wkt(definition)


def _stated_code(definition: str | dict[str, Any]) -> tuple[str, str] | None:
    if isinstance(definition, dict):
        named = definition.get("id")
        text = f"{named.get('authority')}:{named.get('code')}" if isinstance(named, dict) else ""
    else:
        text = definition.strip()
    match = _URN.fullmatch(text)
    text = f"{match[1]}:{match[2]}" if match else text
    if not _CODE.fullmatch(text):
        return None
    authority, code = text.upper().split(":")
    return authority, code
