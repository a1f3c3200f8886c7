# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest line between two places, as a map can draw it. Pure Python: no qgis."""

from __future__ import annotations

import math

_STEP = math.radians(1.0)


def great_circle(longitude, latitude, to_longitude, to_latitude):
    """Give the parts, lists of (longitude, latitude) in degrees a degree apart, of a line that is split at ±180."""
    first, last = _direction(longitude, latitude), _direction(to_longitude, to_latitude)
    cosine = sum(a * b for a, b in zip(first, last))
    across = [b - cosine * a for a, b in zip(first, last)]
    sine = math.sqrt(sum(value * value for value in across))
    angle = math.atan2(sine, cosine)
    if sine < 1e-12:  # the same place, or opposite ones: then any way is as short
        across, sine = _any_across(first), 1.0
    steps = max(1, math.ceil(angle / _STEP))
    turns = [angle * step / steps for step in range(1, steps)]
    places = [_place([math.cos(t) * a + math.sin(t) * b / sine for a, b in zip(first, across)]) for t in turns]
    return _split([(longitude, latitude), *places, (to_longitude, to_latitude)])


def _split(places):
    parts = [[places[0]]]
    for place in places[1:]:
        before = parts[-1][-1]
        if abs(place[0] - before[0]) > 180.0:
            edge = math.copysign(180.0, before[0])
            beyond = place[0] + 2.0 * edge
            share = (edge - before[0]) / (beyond - before[0]) if beyond != before[0] else 0.0
            latitude = before[1] + share * (place[1] - before[1])
            parts[-1].append((edge, latitude))
            parts.append([(-edge, latitude)])
        parts[-1].append(place)
    return parts


def _direction(longitude, latitude):
    turn, height = math.radians(longitude), math.radians(latitude)
    return (math.cos(height) * math.cos(turn), math.cos(height) * math.sin(turn), math.sin(height))


def _place(direction):
    x, y, z = direction
    return math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))


def _any_across(direction):
    x, y, _ = direction
    other = (-y, x, 0.0) if math.hypot(x, y) > 1e-6 else (1.0, 0.0, 0.0)
    length = math.sqrt(sum(value * value for value in other))
    return [value / length for value in other]
