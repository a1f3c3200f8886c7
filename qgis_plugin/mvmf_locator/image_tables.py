# SPDX-License-Identifier: GPL-2.0-or-later
"""Files, folders and layers -> an image table for the worker: GeoJSON, which takes any name as it is."""

from __future__ import annotations

import json
import math
import os

from qgis import core
from qgis.PyQt.QtCore import QDate, QDateTime, Qt, QTime

from .protocol import WorkerFailed
from .texts import tr

SUFFIXES = (".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_ADDRESSES = ("http://", "https://", "ftp://", "/vsi")


def table_of_files(paths):
    """Write a table of files; give its path and the folder that all of them are in."""
    return _write([({"path": os.path.abspath(path)}, None) for path in paths])


def files_of_folder(folder):
    """List the images that lie in a folder itself."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    found = [name for name in sorted(names) if name.lower().endswith(SUFFIXES)]
    if not found:
        raise WorkerFailed(tr("{}: the folder holds no image").format(folder), ", ".join(SUFFIXES))
    return [os.path.join(folder, name) for name in found]


def table_of_layer(source, field, base, context, feedback):
    """Write the features of a layer with a field of paths; relative ones begin in the folder `base`."""
    names = source.fields().names()
    if field not in names:
        raise WorkerFailed(
            tr("the layer has no field {!r}").format(field), tr("Its fields: {}").format(", ".join(names))
        )
    to_degrees = core.QgsCoordinateTransform(
        source.sourceCrs(), core.QgsCoordinateReferenceSystem("EPSG:4326"), context.transformContext()
    )
    rows = []
    for feature in source.getFeatures(core.QgsFeatureRequest()):
        if feedback.isCanceled():
            break
        values = {name: _plain(feature[name]) for name in names if name not in (field, "path", "fid")}
        path = _plain(feature[field])
        rows.append((dict(values, path=_absolute(path, base)), _position(feature, to_degrees)))
    if not rows:
        raise WorkerFailed(tr("the layer of photos has no feature"), tr("Is a filter set, or only a selection used?"))
    return _write(rows)


def _write(rows):
    folders = {os.path.dirname(row["path"]) for row, _ in rows if os.path.isabs(row["path"] or "")}
    try:
        root = os.path.commonpath(folders) if folders else os.path.expanduser("~")
    except ValueError as error:
        raise WorkerFailed(tr("the images lie on several drives"), tr("Run it once for each drive.")) from error
    for row, _ in rows:
        if os.path.isabs(row["path"] or ""):  # a table that names a server (Windows) is refused, a root may lie on one
            row["path"] = os.path.relpath(row["path"], root)
    features = [{"type": "Feature", "properties": row, "geometry": place} for row, place in rows]
    path = core.QgsProcessingUtils.generateTempFilename("images.geojson")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file)
    return path, root


def _absolute(path, base):
    path = "" if path is None else str(path)
    if not path or path.lower().startswith(_ADDRESSES) or os.path.isabs(path):
        return path
    return os.path.normpath(os.path.join(base, path))


def _position(feature, to_degrees):
    geometry = feature.geometry()
    if geometry.isNull() or geometry.isEmpty():
        return None
    try:
        geometry.transform(to_degrees)
    except core.QgsCsException:
        return None
    point = geometry.centroid().asPoint()
    return {"type": "Point", "coordinates": [point.x(), point.y()]}


def _plain(value):
    """Give a value as JSON knows it."""
    if value is None or value == core.NULL:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (QDate, QTime, QDateTime)):
        return value.toString(Qt.DateFormat.ISODate)  # with the zone, where there is one
    return str(value)
