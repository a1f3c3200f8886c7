"""QGIS style documents (QML) as XML trees: symbols, rules, fields, raster classes.

Only what QGIS 3.22 to 4 read alike is written: symbol layers as `Option` maps. The text of a document is built by
an XML library, so no column or file name can break out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

_HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_VERSION = "3.22.0"


class Colour(NamedTuple):
    """A colour of 8 bits a channel; alpha 255 is opaque."""

    red: int
    green: int
    blue: int
    alpha: int = 255

    @property
    def hex(self) -> str:
        """``#rrggbb``, without alpha.

        Examples
        --------
        >>> Colour(255, 0, 16).hex
        '#ff0010'
        """
        return f"#{self.red:02x}{self.green:02x}{self.blue:02x}"

    @property
    def numbers(self) -> str:
        """``red,green,blue,alpha`` as symbols want it.

        Examples
        --------
        >>> Colour(255, 0, 16).numbers
        '255,0,16,255'
        """
        return f"{self.red},{self.green},{self.blue},{self.alpha}"


class Rule(NamedTuple):
    """One line of a legend: which features it stands for, and their symbol.

    A rule with `children` is a heading; it has no symbol of its own.
    """

    label: str
    expression: str = ""
    symbol: ET.Element | None = None
    children: tuple[Rule, ...] = ()


class Band(NamedTuple):
    """One class of a raster: the values up to `upper` (those above the class before)."""

    upper: float
    colour: Colour
    label: str


def document(parts: Iterable[ET.Element]) -> str:
    """Write a QML document.

    Parameters
    ----------
    parts : iterable of Element
        The children of `<qgis>`.

    Returns
    -------
    str
        With the document type that QGIS writes.

    Examples
    --------
    >>> document([text_element("mapTip", "<b>")]).splitlines()[1]
    '<qgis version="3.22.0">'
    """
    root = ET.Element("qgis", {"version": _VERSION})
    root.extend(parts)
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def text_element(tag: str, text: str) -> ET.Element:
    """Make an element that holds text.

    Parameters
    ----------
    tag, text : str

    Examples
    --------
    >>> ET.tostring(text_element("blendMode", "6"), encoding="unicode")
    '<blendMode>6</blendMode>'
    """
    element = ET.Element(tag)
    element.text = text
    return element


def marker(
    fill: Colour,
    size: float,
    *,
    outline: Colour,
    outline_width: float = 0.2,
    expressions: Mapping[str, str] | None = None,
) -> ET.Element:
    """Make a round point symbol.

    Parameters
    ----------
    fill, outline : Colour
    size, outline_width : float
        Millimetres.
    expressions : mapping of str to str, optional
        QGIS expressions that give each feature its own fillColor, outlineColor, outlineWidth; the values above are for
        the legend.

    Examples
    --------
    >>> marker(Colour(0, 0, 0), 2.0, outline=Colour(9, 9, 9)).get("type")
    'marker'
    """
    options = {"name": "circle", "color": fill.numbers, "size": f"{size:g}", "size_unit": "MM"}
    options |= {"scale_method": "diameter", **_outline(outline, outline_width)}
    return _symbol("marker", "SimpleMarker", options, expressions or {})


def fill(colour: Colour, *, outline: Colour | None = None, outline_width: float = 0.3) -> ET.Element:
    """Make a polygon symbol.

    Parameters
    ----------
    colour : Colour
        Its alpha lets the map shine through.
    outline : Colour, optional
        None draws no outline.
    outline_width : float
        Millimetres.

    Examples
    --------
    >>> fill(Colour(0, 0, 0, 60)).get("type")
    'fill'
    """
    edge = {"outline_style": "no"} if outline is None else _outline(outline, outline_width)
    return _symbol("fill", "SimpleFill", {"color": colour.numbers, "style": "solid", **edge}, {})


def rule_renderer(rules: Sequence[Rule], *, order_by: str = "") -> ET.Element:
    """Draw features by rules.

    Parameters
    ----------
    rules : sequence of Rule
    order_by : str
        Column; features with large values are drawn first, so small ones lie on top.

    Examples
    --------
    >>> renderer = rule_renderer([Rule("all", "TRUE", fill(Colour(0, 0, 0)))])
    >>> renderer.find("rules/rule").get("label")
    'all'
    """
    renderer = ET.Element(
        "renderer-v2",
        {"type": "RuleRenderer", "symbollevels": "0", "forceraster": "0", "enableorderby": str(int(bool(order_by)))},
    )
    root = ET.SubElement(renderer, "rules", {"key": "geo_mvmf"})
    symbols = ET.SubElement(renderer, "symbols")
    for rule in rules:
        _add_rule(root, symbols, rule)
    if order_by:
        order = ET.SubElement(renderer, "orderby")
        ET.SubElement(order, "orderByClause", {"asc": "0", "nullsFirst": "1"}).text = f'"{order_by}"'
    return renderer


def fields(aliases: Mapping[str, str], *, file_fields: Iterable[str] = ()) -> list[ET.Element]:
    """Name fields for people, and show some as files.

    Parameters
    ----------
    aliases : mapping of str to str
        Column to the words shown in its place, in the order of the columns.
    file_fields : iterable of str
        Columns that hold the name of a picture, shown in the form.

    Examples
    --------
    >>> [element.tag for element in fields({"path": "Photo"}, file_fields=["path"])]
    ['fieldConfiguration', 'aliases']
    """
    configuration, names = ET.Element("fieldConfiguration"), ET.Element("aliases")
    for index, (column, alias) in enumerate(aliases.items()):
        ET.SubElement(names, "alias", {"field": column, "index": str(index), "name": alias})
    for column in file_fields:
        field = ET.SubElement(configuration, "field", {"name": column, "configurationFlags": "None"})
        widget = ET.SubElement(field, "editWidget", {"type": "ExternalResource"})
        # DocumentViewer 1 shows the file as a picture below its name.
        options = {"DocumentViewer": ("int", "1"), "FileWidget": ("bool", "true"), "StorageMode": ("int", "0")}
        _option_map(ET.SubElement(widget, "config"), options)
    return [configuration, names]


def discrete_raster(bands: Sequence[Band], *, minimum: float, maximum: float, band: int = 1) -> ET.Element:
    """Draw a raster band by classes of its values.

    Parameters
    ----------
    bands : sequence of Band
        Ascending; the last one may end at infinity.
    minimum, maximum : float
        Of the values.
    band : int
        From 1.

    Examples
    --------
    >>> pipe = discrete_raster([Band(float("inf"), Colour(0, 0, 0), "all")], minimum=0.0, maximum=1.0)
    >>> pipe.find("rasterrenderer/rastershader/colorrampshader/item").get("value")
    'inf'
    """
    pipe = ET.Element("pipe")
    # Values, not colours, are interpolated: classes get smooth edges when zoomed in, means when zoomed out.
    smooth = {"enabled": "true", "zoomedInResamplingMethod": "bilinear", "zoomedOutResamplingMethod": "average"}
    ET.SubElement(ET.SubElement(pipe, "provider"), "resampling", smooth | {"maxOversampling": "2"})
    attributes = {"type": "singlebandpseudocolor", "band": str(band), "opacity": "1", "alphaBand": "-1"}
    extremes = {"classificationMin": f"{minimum:.17g}", "classificationMax": f"{maximum:.17g}"}
    renderer = ET.SubElement(pipe, "rasterrenderer", attributes | extremes)
    ET.SubElement(renderer, "rasterTransparency")
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        {"colorRampType": "DISCRETE", "classificationMode": "1", "clip": "0"},
    )
    for entry in bands:
        value = {"value": f"{entry.upper:.17g}", "label": entry.label}
        ET.SubElement(shader, "item", value | {"color": entry.colour.hex, "alpha": str(entry.colour.alpha)})
    ET.SubElement(pipe, "brightnesscontrast", {"brightness": "0", "contrast": "0", "gamma": "1"})
    ET.SubElement(pipe, "huesaturation", {"saturation": "0", "grayscaleMode": "0", "colorizeOn": "0"})
    ET.SubElement(pipe, "rasterresampler", {"maxOversampling": "2"})
    ET.SubElement(pipe, "resamplingStage").text = "provider"
    return pipe


def _outline(colour: Colour, width: float) -> dict[str, str]:
    return {
        "outline_color": colour.numbers,
        "outline_style": "solid",
        "outline_width": f"{width:g}",
        "outline_width_unit": "MM",
        "joinstyle": "round",
    }


def _symbol(kind: str, layer_class: str, options: dict[str, str], expressions: Mapping[str, str]) -> ET.Element:
    symbol = ET.Element("symbol", {"type": kind, "alpha": "1", "clip_to_extent": "1", "force_rhr": "0"})
    layer = ET.SubElement(symbol, "layer", {"class": layer_class, "pass": "0", "enabled": "1", "locked": "0"})
    _option_map(layer, {name: ("QString", value) for name, value in options.items()})
    if expressions:
        properties = _data_defined(ET.SubElement(layer, "data_defined_properties"))
        for name, expression in expressions.items():
            option = ET.SubElement(properties, "Option", {"type": "Map", "name": name})
            _options(option, {"active": ("bool", "true"), "expression": ("QString", expression), "type": ("int", "3")})
    return symbol


def _data_defined(parent: ET.Element) -> ET.Element:
    top = ET.SubElement(parent, "Option", {"type": "Map"})
    _options(top, {"name": ("QString", "")})
    properties = ET.SubElement(top, "Option", {"type": "Map", "name": "properties"})
    _options(top, {"type": ("QString", "collection")})
    return properties


def _option_map(parent: ET.Element, options: Mapping[str, tuple[str, str]]) -> None:
    _options(ET.SubElement(parent, "Option", {"type": "Map"}), options)


def _options(parent: ET.Element, options: Mapping[str, tuple[str, str]]) -> None:
    for name, (kind, value) in options.items():
        ET.SubElement(parent, "Option", {"type": kind, "name": name, "value": value})


def _add_rule(parent: ET.Element, symbols: ET.Element, rule: Rule) -> None:
    attributes = {"label": rule.label, "key": f"rule_{len(list(symbols))}_{len(list(parent))}_{rule.label}"}
    if rule.expression:
        attributes["filter"] = rule.expression
    if rule.symbol is not None:
        attributes["symbol"] = name = str(len(list(symbols)))
        rule.symbol.set("name", name)
        symbols.append(rule.symbol)
    element = ET.SubElement(parent, "rule", attributes)
    for child in rule.children:
        _add_rule(element, symbols, child)
