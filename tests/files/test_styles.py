import math
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from geo_mvmf.files import qml, styles

HOSTILE = """'; DROP TABLE run; -- <img src="x"> & "quoted" [% 1 + 1 %] \\"""


def parse(document):
    assert document.startswith("<!DOCTYPE qgis")
    return ET.fromstring(document.split("\n", 1)[1])  # noqa: S314  our own document


def labels(root, tag):
    return [element.get("label") for element in root.iter(tag)]


def colours(root):
    return [option.get("value") for option in root.iter("Option") if option.get("name") == "color"]


def test_points_are_sized_by_radius_and_coloured_by_area():
    root = parse(styles.points_style(["image_id", "radius_90_km", "area_90_km2"]))
    sizes = [float(o.get("value")) for o in root.iter("Option") if o.get("name") == "size"]
    assert sizes[:6] == sorted(set(sizes[:6]))
    assert "within 25 km" in labels(root, "rule")
    assert "Colour: 90 % of the probability is" in labels(root, "rule")
    expressions = {o.get("value") for o in root.iter("Option") if o.get("name") == "expression"}
    assert len(expressions) == 1
    assert '"area_90_km2"' in expressions.pop()
    assert root.find("renderer-v2/orderby/orderByClause").text == '"radius_90_km"'


@pytest.mark.parametrize(
    ("areas", "legend"),
    [
        ([], ["1", "100", "10 000", "1 000 000", "100 000 000"]),
        ([math.nan, 2e6, 3e6, 9e6], ["1 000 000", "3 000 000", "10 000 000"]),
        ([0.0, 1.0], ["1", "3", "10"]),
        ([5e3, *[2e4] * 50, 3e6], ["10 000", "30 000", "100 000"]),  # the two beyond take the last colours
        ([2e3, 4e5], ["1 000", "10 000", "100 000", "1 000 000"]),
    ],
)
def test_the_colours_span_the_areas_that_occur(areas, legend):
    root = parse(styles.points_style(["radius_90_km", "area_90_km2"], areas_km2=areas))
    assert [label for label in labels(root, "rule") if label.startswith("on ")] == [f"on {area} km²" for area in legend]


@pytest.mark.parametrize("columns", [[], ["image_id"], ["area_90_km2"], ["radius_90_km"], ["path", "status"]])
def test_any_columns_have_a_style(columns):
    root = parse(styles.points_style(columns))
    assert labels(root, "rule")
    assert [alias.get("field") for alias in root.iter("alias")] == columns


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.0001, 25.0, 200.0, 750.0, 2500.0, 20000.0])
def test_every_radius_belongs_to_one_class(radius):
    root = parse(styles.points_style(["radius_90_km"]))
    filters = [r.get("filter") for r in root.iter("rule") if r.get("filter") and "IS NULL" not in r.get("filter")]
    clauses = [f.replace('"radius_90_km"', str(radius)).replace("AND", "and") for f in filters]
    held = []
    for clause in clauses:
        parts = [re.fullmatch(r"\s*(\S+) (<=|>) (\S+)\s*", part).groups() for part in clause.split("and")]
        held.append(all(float(a) <= float(b) if op == "<=" else float(a) > float(b) for a, op, b in parts))
    assert sum(held) == 1


def test_rows_outside_what_the_model_knows_are_grey():
    columns = ["image_id", "radius_90_km", "area_90_km2", "in_training_area", "feature_distance"]
    root = parse(styles.points_style(columns))
    expressions = {o.get("value") for o in root.iter("Option") if o.get("name") == "expression"}
    assert len(expressions) == 3
    expression = next(each for each in expressions if "ramp_color" in each)
    area = """coalesce(lower(to_string("in_training_area")) IN ('no', 'false', '0'), FALSE)"""
    assert expression.startswith(f"CASE WHEN {area}")
    assert """coalesce("feature_distance" > 2, FALSE) THEN '#ffffff' ELSE ramp_color""" in expression
    assert "outside what the model knows" in labels(root, "rule")
    assert "outside what the model knows" in root.find("mapTip").text
    plain = parse(styles.points_style(columns[:3]))  # a layer that does not say so greys nothing
    assert "outside what the model knows" not in labels(plain, "rule")
    bare = {o.get("value") for o in parse(styles.points_style(["feature_distance"])).iter("Option")}
    assert "CASE WHEN coalesce(\"feature_distance\" > 2, FALSE) THEN '#ffffff' END" in bare
    # cividis has a grey of its own: a ring, not a disk, tells them apart
    assert "CASE WHEN coalesce(\"feature_distance\" > 2, FALSE) THEN '#828282' ELSE '#ffffff' END" in bare


def test_zones_are_coloured_by_their_share_of_the_album():
    root = parse(styles.zones_style(["name", "expected_images"], 200))
    assert labels(root, "rule")[0] == "less than 1 % of the images"
    filters = [rule.get("filter") for rule in root.iter("rule") if rule.get("filter")]
    for expected, held in ((0.0, 0), (1.99, 0), (2.0, 1), (39.9, 2), (40.0, 3), (100.0, 4), (200.0, 4)):
        clauses = [each.replace('"expected_images"', str(expected)).replace("AND", "and") for each in filters]
        true = []
        for clause in clauses:
            parts = [re.fullmatch(r"\s*(\S+) (<|>=) (\S+)\s*", part).groups() for part in clause.split("and")]
            true.append(all(float(a) < float(b) if op == "<" else float(a) >= float(b) for a, op, b in parts))
        assert np.flatnonzero(true).tolist() == [held]


def test_regions_are_more_opaque_the_smaller_and_only_the_smallest_has_an_outline():
    root = parse(styles.regions_style(["image_id", "level", "area_km2"], [0.9, 0.5, 0.8, 0.9]))
    assert labels(root, "rule") == ["50 % of the probability", "80 % of the probability", "90 % of the probability"]
    alphas = [int(colour.split(",")[3]) / 255 for colour in colours(root)]
    assert alphas == sorted(alphas, reverse=True)
    assert alphas[0] == pytest.approx(0.35, abs=0.01)
    assert alphas[-1] == pytest.approx(0.15, abs=0.01)
    outlines = [o.get("value") for o in root.iter("Option") if o.get("name") == "outline_style"]
    assert outlines == ["solid", "no", "no"]


def test_density_classes_begin_at_the_thresholds_and_what_is_outside_is_transparent():
    thresholds = {0.5: 4e-3, 0.8: 1e-3, 0.9: 2e-4, 0.95: 5e-5}
    root = parse(styles.density_style(thresholds, maximum=1e-2))
    items = list(root.iter("item"))
    uppers = [float(item.get("value")) for item in items]
    assert uppers == sorted(uppers)
    assert uppers[-1] == np.inf
    assert [int(item.get("alpha")) for item in items] == [0, 255, 255, 255, 255]
    assert items[1].get("label") == "densest 95 % of the probability"
    # discrete classes of QGIS end with their value: a raster cell just at the threshold is inside
    for upper, threshold in zip(uppers, sorted(thresholds.values()), strict=False):
        assert upper < float(np.float32(threshold))


def test_a_uniform_density_has_a_style_although_all_thresholds_are_equal():
    root = parse(styles.density_style(dict.fromkeys((0.5, 0.9), 2e-9), maximum=2e-9))
    assert len(list(root.iter("item"))) == 3


def test_levels_have_classes_in_words():
    root = parse(styles.level_style())
    assert labels(root, "item")[0] == "within the 50 % region"
    assert labels(root, "item")[-1] == "outside the 95 % region"


def test_hostile_names_cannot_leave_their_place():
    root = parse(styles.points_style([HOSTILE, "path", "filename"], root=HOSTILE))
    assert [alias.get("field") for alias in root.iter("alias")] == [HOSTILE, "path", "filename"]
    assert {element.tag for element in root} >= {"renderer-v2", "mapTip"}
    tip = root.find("mapTip").text
    assert tip.count("<img") == 1 + HOSTILE.count("<img")  # the folder's name stays inside the expression
    assert HOSTILE.replace("'", "''") in tip


def test_colours_are_those_of_cividis_for_people_who_see_colours_otherwise():
    import matplotlib as mpl

    cividis = mpl.colormaps["cividis"]
    for i, colour in enumerate(styles.CIVIDIS):
        expected = np.array(cividis(i / (len(styles.CIVIDIS) - 1))[:3]) * 255
        assert np.abs(expected - colour[:3]).max() < 6


def test_colours_know_their_forms():
    colour = qml.Colour(1, 2, 3, 4)
    assert (colour.hex, colour.numbers) == ("#010203", "1,2,3,4")
