"""How QGIS draws the layers: made from the data, with legends in words and colour-blind-safe colours.

Points: the size tells the radius that holds 90 % of the probability, the colour (cividis) the area it covers. Both
matter: a photo that could be from one of two towns has a large radius and a small area. A grey ring is an image outside
what the model knows: its density is a number without ground (the colours have a grey of their own, so it is hollow).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree as ET

from geo_mvmf.files import qml
from geo_mvmf.files.qml import Band, Colour, Rule

ALIASES: Mapping[str, str] = {
    "image_id": "Image",
    "path": "File",
    "filename": "File name",
    "captured_at": "Captured at",
    "status": "Status",
    "message": "Message",
    "longitude": "Longitude (°)",
    "latitude": "Latitude (°)",
    "estimator": "Estimator",
    "component_weight": "Weight of the component (0..1)",
    "density_max": "Highest density (km⁻²)",
    "probability": "Probability (0..1)",
    "probability_25_km": "Probability within 25 km (0..1)",
    "probability_200_km": "Probability within 200 km (0..1)",
    "area_50_km2": "Area holding 50 % (km²)",
    "area_90_km2": "Area holding 90 % (km²)",
    "radius_90_km": "Radius holding 90 % (km)",
    "n_parts_90": "Parts of the 90 % region",
    "expected_error_km": "Expected error (km)",
    "information_bits": "Information (bits)",
    "in_training_area": "In the training area",
    "training_density_percentile": "Training density (percentile)",
    "feature_distance": "Distance from the training features",
    "claimed_longitude": "Claimed longitude (°)",
    "claimed_latitude": "Claimed latitude (°)",
    "claimed_level": "Credible level of the claim (0..1)",
    "true_longitude": "True longitude (°)",
    "true_latitude": "True latitude (°)",
    "error_km": "Error (km)",
    "searched_probability": "Probability searched before the truth (0..1)",
    "searched_area_km2": "Area searched before the truth (km²)",
    "expected_images": "Images expected",
    "standard_deviation": "Standard deviation (images)",
    "in_no_zone": "Probability outside all zones (0..1)",
    "level": "Credible level (0..1)",
    "area_km2": "Area (km²)",
    "n_parts": "Parts",
}
"""Column to the words, with units, that QGIS shows in its place."""

# Nunez, Anderton and Renslow (2018), "Optimizing colormaps with consideration for color vision deficiency".
CIVIDIS = (Colour(0, 34, 78), Colour(66, 78, 108), Colour(125, 124, 120), Colour(187, 175, 112), Colour(254, 232, 56))
LEVEL_COLOURS = (Colour(122, 1, 119), Colour(197, 27, 138), Colour(240, 104, 161), Colour(250, 159, 181))
"""Of credible regions, from the densest to the largest (RdPu of ColorBrewer)."""
_RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # the thresholds of accuracy_at_km
_SIZES_MM = (2.2, 2.7, 3.3, 4.0, 4.8, 5.6)
_LOG_AREAS = (0, 8)  # of the colours where no areas are known: 1 to 10^8 km2 (the Earth has 5.1 * 10^8)
_OUTLINE = Colour(255, 255, 255)  # parts the points from each other and from the regions below them
_OUTSIDE = Colour(255, 255, 255, 0)
_OUTLINE_MM = 0.2
_GREY, _HOLLOW, _RING_MM = Colour(130, 130, 130), Colour(255, 255, 255), 0.7
_ZONES = (Colour(237, 248, 251), Colour(178, 226, 226), Colour(102, 194, 164), Colour(44, 162, 95), Colour(0, 109, 44))
_SHARES = (0.0, 0.01, 0.05, 0.2, 0.5)  # of an album's images, from which the colours of zones (BuGn) begin

UNLIKE_ANY = 2.0
"""feature_distance (usually about 1) from which on an image is unlike those that the model was trained on."""


def points_style(columns: Iterable[str], *, root: str = "", areas_km2: Iterable[float] = ()) -> str:
    """Make the style of a layer of estimates.

    Parameters
    ----------
    columns : iterable of str
        Names in their order.
    root : str
        Folder that relative paths start from; the map tip shows the photo.
    areas_km2 : iterable of float
        The areas that occur; the colours span their powers of ten.

    Returns
    -------
    str
        A QML document.

    Examples
    --------
    >>> "within 25 km" in points_style(["image_id", "radius_90_km", "area_90_km2"])
    True
    """
    names = list(columns)
    logs = _log_range(areas_km2)
    rules = _radius_rules(names, logs) + _area_rules(names, logs)
    renderer = qml.rule_renderer(rules, order_by="radius_90_km" if "radius_90_km" in names else "")
    title = next((name for name in ("filename", "image_id") if name in names), "")
    tips = [qml.text_element("mapTip", _map_tip(names, root))]
    if title:
        tips.append(qml.text_element("previewExpression", f'"{title}"'))
    return qml.document([renderer, *_fields(names), *tips])


def regions_style(columns: Iterable[str], levels: Sequence[float]) -> str:
    """Make the style of a layer of credible regions.

    Parameters
    ----------
    columns : iterable of str
        Names in their order.
    levels : sequence of float
        The levels that occur, 0..1.

    Returns
    -------
    str
        A QML document: fills of 35 to 15 % opacity from the smallest level to the largest, an outline of the
        smallest only.

    Examples
    --------
    >>> "50 % of the probability" in regions_style(["image_id", "level"], [0.9, 0.5])
    True
    """
    ordered = sorted(set(levels))
    rules = [_level_rule(level, rank, len(ordered)) for rank, level in enumerate(ordered)]
    names = list(columns)
    tip = '<b>[% round("level" * 100, 1) %] % of the probability</b><br>' + _escaped('"image_id"')
    area = '<br>[% format_number("area_km2", 0) %] km²' if "area_km2" in names else ""
    renderer = qml.rule_renderer(rules, order_by="level")
    return qml.document([renderer, *_fields(names), qml.text_element("mapTip", tip + area)])


def zones_style(columns: Iterable[str], images: int) -> str:
    """Make the style of a layer of zones: the share of an album's images that each is expected to hold.

    Parameters
    ----------
    columns : iterable of str
        Names in their order.
    images : int
        How many images of the album have a prediction.

    Returns
    -------
    str
        A QML document.

    Examples
    --------
    >>> "5 % or more of the images" in zones_style(["name", "expected_images"], 48)
    True
    """
    names = list(columns)
    edges = [share * images for share in _SHARES]
    rules = []
    for low, high, share, colour in zip(edges, [*edges[1:], math.inf], _SHARES, _ZONES, strict=True):
        bound = f' AND "expected_images" < {high:.17g}' if math.isfinite(high) else ""
        label = (f"{_percent(share)} or more" if share else f"less than {_percent(_SHARES[1])}") + " of the images"
        symbol = qml.fill(colour._replace(alpha=200), outline=_GREY, outline_width=0.15)
        rules.append(Rule(label, f'"expected_images" >= {low:.17g}{bound}', symbol))
    tip = f'<b>{_escaped(chr(34) + "name" + chr(34))}</b><br>[% round("expected_images", 2) %] images expected'
    return qml.document([qml.rule_renderer(rules), *_fields(names), qml.text_element("mapTip", tip)])


def density_style(thresholds: Mapping[float, float], *, maximum: float, held: float = 1.0) -> str:
    """Make the style of a density raster from its own credible thresholds.

    Parameters
    ----------
    thresholds : mapping of float to float
        Credible level (0..1) to the least density (km-2) of its region; 0 where the raster does not hold so much.
    maximum : float
        Largest density, km-2.
    held : float
        Probability in the whole raster. What is beyond the largest region that it holds becomes one class, in the
        next level's colour: a raster of credible levels of the same density shows the same.

    Returns
    -------
    str
        A QML document; what lies outside the largest level, or has no probability, is transparent.

    Examples
    --------
    >>> "densest 50 % of the probability" in density_style({0.5: 2.0, 0.9: 1.0}, maximum=3.0)
    True
    >>> "all that this map holds (70 %)" in density_style({0.5: 2.0, 0.9: 0.0}, maximum=3.0, held=0.7)
    True
    """
    ends = [math.inf, *(_just_below(least) for least in sorted(thresholds.values(), reverse=True))]
    regions = [level for level in sorted(thresholds) if thresholds[level] > 0.0]
    labels = [f"densest {_percent(level)} of the probability" for level in regions]
    if len(regions) == len(thresholds):
        labels.append(f"outside the {_percent(regions[-1])} region")
    else:
        labels += [f"all that this map holds ({_percent(held)})"] * (held > 0.0) + ["no probability"]
    colours = [*_level_colours(len(thresholds))[: len(labels) - 1], _OUTSIDE]
    bands = [Band(*entry) for entry in zip(ends, colours, labels, strict=False)]
    return _raster_style(bands[::-1], minimum=0.0, maximum=maximum)


def level_style(levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> str:
    """Make the style of a raster of credible levels, 0 at the densest place and 1 at the least dense.

    Parameters
    ----------
    levels : sequence of float
        Where the classes end, 0..1.

    Returns
    -------
    str
        A QML document.

    Examples
    --------
    >>> "within the 95 % region" in level_style()
    True
    """
    ordered = sorted(levels)
    colours = [*_level_colours(len(ordered)), _OUTSIDE]
    labels = [f"within the {_percent(level)} region" for level in ordered]
    labels.append(f"outside the {_percent(ordered[-1])} region")
    bands = [Band(*entry) for entry in zip([*ordered, math.inf], colours, labels, strict=True)]
    return _raster_style(bands, minimum=0.0, maximum=1.0)


def outside_expression(columns: Iterable[str]) -> str:
    """Make the QGIS expression that is true for rows outside what the model knows.

    Parameters
    ----------
    columns : iterable of str
        Names in their order.

    Returns
    -------
    str
        Empty where no column says so. An image is outside if its estimate lies in no S2 cell with training images, or
        its features are unlike theirs.

    Examples
    --------
    >>> outside_expression(["feature_distance"])
    'coalesce("feature_distance" > 2, FALSE)'
    """
    names = set(columns)
    # text in our files, a truth value where somebody made one of it
    area = """coalesce(lower(to_string("in_training_area")) IN ('no', 'false', '0'), FALSE)"""
    distance = f'coalesce("feature_distance" > {UNLIKE_ANY:g}, FALSE)'
    parts = [area] * ("in_training_area" in names) + [distance] * ("feature_distance" in names)
    return " OR ".join(parts)


def _just_below(value: float) -> float:
    """Where a class ends, if the next one begins with the value: the raster holds float32."""
    return value * (1.0 - 1e-7)


def _log_range(areas_km2: Iterable[float]) -> tuple[int, int]:
    """Powers of ten, in km2, between which most areas lie; the few beyond take the last colours."""
    logs = sorted(math.log10(max(area, 1.0)) for area in areas_km2 if math.isfinite(area))
    if not logs:
        return _LOG_AREAS
    few = len(logs) // 20
    low = math.floor(logs[few])
    return low, max(math.ceil(logs[-1 - few]), low + 1)


def _radius_rules(names: Sequence[str], logs: tuple[int, int]) -> list[Rule]:
    colour = _area_expression(logs) if "area_90_km2" in names else ""
    looks = {"fillColor": colour} if colour else {}
    if outside := outside_expression(names):
        looks["fillColor"] = f"CASE WHEN {outside} THEN '{_HOLLOW.hex}'{f' ELSE {colour}' if colour else ''} END"
        # an expression that yields nothing would keep the look of the feature drawn before
        looks["outlineColor"] = f"CASE WHEN {outside} THEN '{_GREY.hex}' ELSE '{_OUTLINE.hex}' END"
        looks["outlineWidth"] = f"CASE WHEN {outside} THEN {_RING_MM:g} ELSE {_OUTLINE_MM:g} END"
    if "radius_90_km" not in names:
        return [Rule("Estimate", "", qml.marker(CIVIDIS[3], _SIZES_MM[1], outline=_OUTLINE, expressions=looks))]
    edges = (0.0, *_RADII_KM, math.inf)
    rules = []
    for index, size in enumerate(_SIZES_MM):
        low, high = edges[index], edges[index + 1]
        parts = [f'"radius_90_km" > {low:g}'] * (index > 0) + [f'"radius_90_km" <= {high:g}'] * math.isfinite(high)
        label = f"within {high:g} km" if math.isfinite(high) else f"farther than {low:g} km"
        fill = _cividis(1.0 - index / (len(_SIZES_MM) - 1))
        rules.append(Rule(label, " AND ".join(parts), qml.marker(fill, size, outline=_OUTLINE, expressions=looks)))
    grey = qml.marker(_GREY, _SIZES_MM[1], outline=_OUTLINE)
    unknown = Rule("not known", '"radius_90_km" IS NULL', grey)
    return [Rule("Size: 90 % of the probability is", children=(*rules, unknown))]


def _area_rules(names: Sequence[str], logs: tuple[int, int]) -> list[Rule]:
    # These rules match nothing: they are there to be read in the legend.
    ring = qml.marker(_HOLLOW, 3.0, outline=_GREY, outline_width=_RING_MM)
    grey = Rule("outside what the model knows", "FALSE", ring)
    outside = (grey,) if outside_expression(names) else ()
    if "area_90_km2" not in names:
        return list(outside)
    low, high = logs
    powers = [10.0**power for power in range(low, high + 1, math.ceil((high - low) / 4))]
    areas = [powers[0], 3.0 * powers[0], powers[1]] if high == low + 1 else powers
    rules = [
        Rule(
            f"on {area:,.0f} km²".replace(",", " "),
            "FALSE",
            qml.marker(_area_colour(area, logs), 3.0, outline=_OUTLINE),
        )
        for area in areas
    ]
    return [Rule("Colour: 90 % of the probability is", children=(*rules, *outside))]


def _area_colour(area_km2: float, logs: tuple[int, int]) -> Colour:
    return _cividis(1.0 - (math.log10(area_km2) - logs[0]) / (logs[1] - logs[0]))


def _area_expression(logs: tuple[int, int]) -> str:
    stops = ", ".join(f"{i / (len(CIVIDIS) - 1):g}, '{colour.hex}'" for i, colour in enumerate(CIVIDIS))
    position = f'1 - (log10(max("area_90_km2", 1)) - {logs[0]}) / {logs[1] - logs[0]}.0'
    return f"ramp_color(create_ramp(map({stops})), max(0, min(1, {position})))"


def _cividis(position: float) -> Colour:
    scaled = min(max(position, 0.0), 1.0) * (len(CIVIDIS) - 1)
    index = min(int(scaled), len(CIVIDIS) - 2)
    share = scaled - index
    low, high = CIVIDIS[index], CIVIDIS[index + 1]
    return Colour(*(round(a + share * (b - a)) for a, b in zip(low[:3], high[:3], strict=True)))


def _level_rule(level: float, rank: int, count: int) -> Rule:
    colour = LEVEL_COLOURS[0]
    opacity = 0.35 - 0.20 * rank / max(count - 1, 1)
    symbol = qml.fill(colour._replace(alpha=round(255 * opacity)), outline=colour if rank == 0 else None)
    return Rule(f"{_percent(level)} of the probability", f'abs("level" - {level:.17g}) < 1e-9', symbol)


def _level_colours(count: int) -> list[Colour]:
    """Colours from the densest region to the largest."""
    last = len(LEVEL_COLOURS) - 1
    return [LEVEL_COLOURS[round(i * last / max(count - 1, 1))] for i in range(count)]


def _raster_style(bands: Sequence[Band], *, minimum: float, maximum: float) -> str:
    pipe = qml.discrete_raster(bands, minimum=minimum, maximum=maximum)
    multiply = "6"  # QPainter's mode as QGIS numbers it: the map below stays readable
    return qml.document([pipe, qml.text_element("blendMode", multiply)])


def _fields(names: Sequence[str]) -> list[ET.Element]:
    aliases = {name: ALIASES.get(name, "") for name in names}
    return qml.fields(aliases, file_fields=[name for name in ("path",) if name in names])


def _map_tip(names: Sequence[str], root: str) -> str:
    lines = [f"<b>{_escaped(chr(34) + name + chr(34))}</b>" for name in ("filename", "image_id") if name in names][:1]
    if "radius_90_km" in names:
        lines.append('90 % of the probability within [% format_number("radius_90_km", 1) %] km')
    if "area_90_km2" in names:
        lines.append('on [% format_number("area_90_km2", 0) %] km²')
    if outside := outside_expression(names):
        lines.append(f"[% if({outside}, 'outside what the model knows', '') %]")
    if "error_km" in names:
        lines.append("[% coalesce('error ' || format_number(\"error_km\", 1) || ' km', '') %]")
    picture = f'<img src="[% {_address(root)} %]" width="320"><br>' if "path" in names else ""
    return picture + "<br>".join(lines)


def _escaped(expression: str) -> str:
    """Make the text of an expression unable to act as HTML."""
    return f"[% {_replaced(expression, {'&': '&amp;', '<': '&lt;', '>': '&gt;', chr(34): '&quot;'})} %]"


def _address(root: str) -> str:
    quoted = root.replace("'", "''").rstrip("/")
    absolute = f'if(regexp_match("path", \'^(/|[A-Za-z]:)\'), "path", \'{quoted}/\' || "path")'
    coded = _replaced(absolute, {character: f"%{ord(character):X}" for character in '%#?"<>&'})
    return f"'file:///' || regexp_replace({coded}, '^/+', '')"


def _replaced(expression: str, changes: Mapping[str, str]) -> str:
    """Replace one after another: QGIS's replace() with a map would do it in an order of its own, and code twice."""
    for old, new in changes.items():
        expression = f"replace({expression}, '{old}', '{new}')"
    return expression


def _percent(level: float) -> str:
    return f"{100.0 * level:.4g} %"
