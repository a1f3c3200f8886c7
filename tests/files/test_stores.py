import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.files import store_format, store_rows, stores
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.s2 import cell_ids, centre
from geo_mvmf.sphere import random_directions

ROOT = Path(__file__).parents[2]


def make_components(size=40, kind="vmf", seed=0):
    generator = np.random.default_rng(seed)
    directions = random_directions(size, generator)
    cells = np.sort(cell_ids(directions, 8))
    if kind == "cell":
        directions = centre(cells)
    concentrations = np.full(size, np.nan) if kind == "cell" else generator.uniform(2.0, 8.0, size)
    return stores.Components(kind, directions, concentrations, generator.integers(0, 9, size), cells)


def make_logs(images, size=40, seed=1, width=3.0):
    logs = np.random.default_rng(seed).normal(size=(images, size)) * width
    return logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))


def make_rows(images):
    return pd.DataFrame(
        {
            "image_id": [f"Ærø {i}.jpg" for i in range(images)],
            "status": ["ok"] * images,
            "message": pd.Series([None] * images, dtype=object),
            "longitude": np.linspace(-180.0, 179.0, images),
            "n_parts_90": pd.array([1, None] * images, dtype="Int64")[:images],
            "in_training_area": pd.array([True, None, False] * images, dtype="boolean")[:images],
            "flag": np.arange(images) % 2 == 0,
            "count": np.arange(images),
        }
    )


LOGS = make_logs(6)
LOGS[2] = np.nan


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "a.nc"
    stores.write_store(
        path,
        rows=make_rows(6).assign(status=["ok", "ok", "missing", "ok", "ok", "ok"]),
        pruned=stores.prune(LOGS),
        components=make_components(),
        run={"bundle": "0f" * 32, "root": "/photos", "options": {"estimator": "mode"}},
    )
    return path


@pytest.fixture
def stored(written, tmp_path):
    """A file of the test's own, which it may damage, and the weights in it."""
    return shutil.copy(written, tmp_path / "a.nc"), LOGS.copy()


def same_frames(a, b):
    pd.testing.assert_frame_equal(a, b, check_dtype=True)


def same_stores(a, b):
    same_frames(a.rows, b.rows)
    assert a.run == b.run
    assert a.components.digest == b.components.digest
    for mine, theirs in zip(vars(a.pruned()).values(), vars(b.pruned()).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_is_written_is_read(stored):
    path, logs = stored
    back = stores.open_store(path)
    same_frames(
        back.rows,
        make_rows(6)
        .astype({"image_id": object, "status": object})
        .assign(status=pd.Series(["ok", "ok", "missing", "ok", "ok", "ok"], dtype=object)),
    )
    assert back.run == {"bundle": "0f" * 32, "root": "/photos", "options": {"estimator": "mode"}}
    assert back.is_predicted.tolist() == [True, True, False, True, True, True]
    assert back.components.digest == make_components().digest
    images = [5, 0, 1, 3, 4]
    dense = back.log_mixing_weights(images)
    assert np.exp(dense).sum(axis=1) == pytest.approx(1.0)
    assert np.abs(np.exp(dense) - np.exp(logs[images])).max() < 1e-4
    for i, image in enumerate(images):
        np.testing.assert_array_equal(dense[i], back.log_mixing_weights([image])[0])
    with pytest.raises(BadInputError, match=r"image 2 has no prediction \(status missing\)"):
        back.log_mixing_weights([1, 2])


def test_stored_weights_are_written_again_without_change(stored, tmp_path):
    back = stores.open_store(stored[0])
    again = tmp_path / "again.nc"
    stores.write_store(again, rows=back.rows, pruned=back.pruned(), components=back.components, run=back.run)
    other = stores.open_store(again)
    np.testing.assert_array_equal(back.pruned().log_weight, other.pruned().log_weight)
    np.testing.assert_array_equal(back.residual, other.residual)
    same_frames(back.rows, other.rows)


def test_the_same_content_gives_the_same_bytes(stored, tmp_path):
    back = stores.open_store(stored[0])
    files = [tmp_path / "1.nc", tmp_path / "2.nc"]
    for path in files:
        stores.write_store(path, rows=back.rows, pruned=back.pruned(), components=back.components, run=back.run)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_texts_that_many_rows_have_are_in_memory_once(tmp_path):
    rows = pd.DataFrame(
        {"name": [f"{i}.jpg" for i in range(3000)], "status": ["ok", "missing", None] * 1000}, dtype=object
    )
    path = tmp_path / "a.nc"
    pruned = stores.prune(np.full((3000, 40), np.nan))
    stores.write_store(path, rows=rows, pruned=pruned, components=make_components(), run={})
    back = stores.open_store(path).rows
    pd.testing.assert_frame_equal(back, rows)
    assert len({id(text) for text in back["status"]}) == 3


def test_a_text_that_a_row_has_in_two_columns_is_in_memory_once(tmp_path):
    names = [f"a/{i}.jpg" for i in range(3000)]
    rows = pd.DataFrame({"image_id": names, "number": 1.0, "path": [None, *names[1:]]}).astype({"path": object})
    path = tmp_path / "a.nc"
    pruned = stores.prune(np.full((3000, 40), np.nan))
    stores.write_store(path, rows=rows, pruned=pruned, components=make_components(), run={})
    back = stores.open_store(path).rows
    assert back["path"].tolist() == [None, *names[1:]]
    assert all(a is b for a, b in zip(back["image_id"][1:], back["path"][1:], strict=True))


def test_cells_are_stored_like_components(tmp_path):
    components = make_components(kind="cell")
    path = tmp_path / "cells.nc"
    stores.write_store(path, rows=make_rows(3), pruned=stores.prune(make_logs(3)), components=components, run={})
    back = stores.open_store(path)
    assert back.components.kind == "cell"
    np.testing.assert_array_equal(back.components.cell_ids, components.cell_ids)


@pytest.mark.parametrize("images", [0, 3])
def test_a_run_without_any_prediction_is_a_file_too(tmp_path, images):
    pruned = stores.prune(np.full((images, 40), np.nan))
    path = tmp_path / "none.nc"
    stores.write_store(path, rows=make_rows(images), pruned=pruned, components=make_components(), run={})
    back = stores.open_store(path)
    assert len(back) == images
    assert not back.is_predicted.any()
    assert back.log_mixing_weights([]).shape == (0, 40)
    stores.write_part(
        tmp_path / "parts", 0, rows=make_rows(images), pruned=pruned, components=make_components(), run={}
    )
    assert len(stores.merge_parts(tmp_path / "parts", tmp_path / "merged.nc", run={})) == images


TEXTS = st.one_of(st.none(), st.text(max_size=20))
COLUMNS = st.one_of(
    st.tuples(st.just("text"), st.lists(TEXTS, min_size=5, max_size=5)),
    st.tuples(st.just("float"), st.lists(st.floats(), min_size=5, max_size=5)),
    st.tuples(
        st.just("Int64"), st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=5, max_size=5)
    ),
    st.tuples(st.just("boolean"), st.lists(st.one_of(st.none(), st.booleans()), min_size=5, max_size=5)),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(max_size=12), COLUMNS, max_size=4))
def test_any_columns_of_any_names_come_back(tmp_path_factory, described):
    rows = pd.DataFrame(index=range(5))
    for name, (kind, values) in described.items():
        dtype = {"text": object, "float": float}.get(kind, kind)
        rows[name] = pd.Series(values, dtype=dtype)
    path = tmp_path_factory.mktemp("rows") / "a.nc"
    stores.write_store(path, rows=rows, pruned=stores.prune(make_logs(5)), components=make_components(), run={})
    back = stores.open_store(path).rows
    assert list(back.columns) == list(rows.columns)
    for name, (kind, values) in described.items():
        got = [None if pd.isna(value) else value for value in back[name].tolist()]
        odd = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
        expected = [
            odd.sub("\N{REPLACEMENT CHARACTER}", v) if isinstance(v, str) else None if pd.isna(v) else v for v in values
        ]
        assert got == expected, (name, kind)


def test_names_that_would_clash_inside_the_file_do_not(tmp_path):
    rows = pd.DataFrame({"image": ["a"], "width_1": [1.0], "x__missing": [None], "x": [None], "column_0000": ["b"]})
    path = tmp_path / "a.nc"
    stores.write_store(path, rows=rows, pruned=stores.prune(make_logs(1)), components=make_components(), run={})
    back = stores.open_store(path).rows
    assert list(back.columns) == list(rows.columns)
    assert back["column_0000"].tolist() == ["b"]
    doubled = pd.concat([rows, rows], axis=1)
    with pytest.raises(ValueError, match="same name"):
        stores.write_store(
            tmp_path / "b.nc", rows=doubled, pruned=stores.prune(make_logs(1)), components=make_components(), run={}
        )
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_parts_merge_to_what_one_file_would_hold(tmp_path):
    logs, rows = make_logs(10), make_rows(10)
    logs[[0, 4, 5, 6]] = np.nan
    folder = tmp_path / "parts"
    for number, (start, stop) in enumerate([(0, 4), (4, 7), (7, 10)]):
        part = rows.iloc[start:stop]
        pruned = stores.prune(logs[start:stop])
        stores.write_part(folder, number, rows=part, pruned=pruned, components=make_components(), run={"part": number})
    assert stores.existing_parts(folder) == [0, 1, 2]
    merged = stores.merge_parts(folder, tmp_path / "all.nc", run={"whole": True})
    whole = tmp_path / "whole.nc"
    stores.write_store(
        whole,
        rows=rows,
        pruned=stores.prune(logs),
        components=make_components(),
        run={"whole": True},
    )
    same_stores(merged, stores.open_store(whole))
    assert merged.run == {"whole": True}


def test_mean_directions_of_very_many_components_are_as_they_are(tmp_path, monkeypatch):
    content = {"rows": make_rows(3), "pruned": stores.prune(make_logs(3)), "components": make_components(), "run": {}}
    stores.write_store(tmp_path / "deflated.nc", **content)
    monkeypatch.setattr(store_format, "_LARGE_DIRECTIONS", 40 * 24)
    stores.write_store(tmp_path / "plain.nc", **content)
    same_stores(stores.open_store(tmp_path / "plain.nc"), stores.open_store(tmp_path / "deflated.nc"))
    with h5py.File(tmp_path / "plain.nc") as plain, h5py.File(tmp_path / "deflated.nc") as deflated:
        assert (plain["mean_directions"].compression, deflated["mean_directions"].compression) == (None, "gzip")
        assert plain["mean_directions"].fletcher32
        assert plain["cell_ids"].compression == "gzip"


def test_merging_goes_block_by_block(tmp_path, monkeypatch):
    from geo_mvmf.files import stored_predictions

    folder = tmp_path / "parts"
    for number in range(2):
        pruned = stores.prune(make_logs(9, seed=number), tail=0.0)
        stores.write_part(folder, number, rows=make_rows(9), pruned=pruned, components=make_components(), run={})
    at_once = stores.merge_parts(folder, tmp_path / "1.nc", run={})
    monkeypatch.setattr(stored_predictions, "_ENTRIES_AT_ONCE", 100)
    assert max(len(block) for block in at_once.blocks()) == 2
    in_blocks = stores.merge_parts(folder, tmp_path / "2.nc", run={})
    few = in_blocks.log_mixing_weights(range(18))
    monkeypatch.undo()
    same_stores(in_blocks, at_once)
    np.testing.assert_array_equal(few, at_once.log_mixing_weights(range(18)))


def test_merging_reads_a_few_columns_of_numbers_together_and_text_alone(tmp_path, monkeypatch):
    rows = pd.DataFrame({"text": ["a", "b"], **{name: [0.5, 1.5] for name in "uvwxy"}, "more": ["c", "d"], "z": [1, 2]})
    rows = rows.astype({"text": object, "more": object})
    for number in range(2):
        pruned = stores.prune(make_logs(2))
        stores.write_part(tmp_path, number, rows=rows, pruned=pruned, components=make_components(), run={})
    asked, plain = [], stores.StoredPredictions.read_columns

    def noted(part, names):
        asked.append("".join(names))
        return plain(part, names)

    monkeypatch.setattr(stores.StoredPredictions, "read_columns", noted)
    monkeypatch.setattr(stores, "_NUMBERS_AT_ONCE", 3 * 2 * 2)
    merged = stores.merge_parts(tmp_path, tmp_path / "all.nc", run={})
    assert asked[::2] == asked[1::2] == ["text", "uvw", "xy", "more", "z"]
    same_frames(merged.rows, pd.concat([rows, rows], ignore_index=True))


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    folder = tmp_path / "parts"
    with pytest.raises(BadInputError, match="no part"):
        stores.merge_parts(folder, tmp_path / "a.nc", run={})
    write = {"rows": make_rows(2), "pruned": stores.prune(make_logs(2)), "run": {}}
    stores.write_part(folder, 0, components=make_components(), **write)
    stores.write_part(folder, 2, components=make_components(), **write)
    with pytest.raises(BadInputError, match=r"part-000001\.nc is missing"):
        stores.merge_parts(folder, tmp_path / "a.nc", run={})
    stores.write_part(folder, 1, components=make_components(seed=5), **write)
    with pytest.raises(BadInputError, match="another bundle"):
        stores.merge_parts(folder, tmp_path / "a.nc", run={})
    assert not (tmp_path / "a.nc").exists()


def test_a_merge_holds_at_most_twice_the_rows_it_gives(tmp_path):
    """Putting all rows together before they were written took four times as much."""

    def write(folder, few, many):
        for number in range(many):
            rows = make_rows(few).assign(path=[f"a folder/{number} {i}.jpg" for i in range(few)])
            rows = rows.assign(**{f"number_{i}": np.arange(few) + 0.5 for i in range(20)})
            pruned = stores.prune(np.full((few, 40), np.nan))
            stores.write_part(folder, number, rows=rows, pruned=pruned, components=make_components(), run={})
        return folder

    few, many = 1000, 4
    parts = write(tmp_path / "parts", few, many)
    stores.merge_parts(write(tmp_path / "some", 2, 2), tmp_path / "some.nc", run={})  # what is imported and kept once
    tracemalloc.start()
    try:
        merged = stores.merge_parts(parts, tmp_path / "all.nc", run={})
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(merged.rows) == few * many
    assert peak < 2.0 * now


def test_parts_of_unlike_columns_merge_column_by_column(tmp_path):
    empty = pd.DataFrame({"a": pd.Series([None], dtype=object), "b": pd.Series([None], dtype=object), "d": [1]})
    full = pd.DataFrame({"a": [True], "b": [1.5], "c": ["x"], "d": [0.5]})
    for number, rows in enumerate([empty, full, empty]):
        pruned = stores.prune(make_logs(1))
        stores.write_part(tmp_path, number, rows=rows, pruned=pruned, components=make_components(), run={})
    rows = stores.merge_parts(tmp_path, tmp_path / "all.nc", run={}).rows
    expected = {"a": [None, True, None], "b": [np.nan, 1.5, np.nan], "d": [1.0, 0.5, 1.0]}
    texts = pd.Series([None, "x", None], dtype=object)
    same_frames(rows, pd.DataFrame(expected).astype({"a": "boolean"}).assign(c=texts))


def test_rows_of_a_part_that_are_damaged_stop_a_merge_that_leaves_nothing(tmp_path):
    for number in range(3):
        write = {"rows": make_rows(9), "pruned": stores.prune(make_logs(9)), "components": make_components()}
        stores.write_part(tmp_path / "parts", number, run={}, **write)
    part = stores.part_path(tmp_path / "parts", 2)
    with h5py.File(part, "r+") as file:
        where = file["rows/longitude"].id.get_chunk_info(0).byte_offset
    content = bytearray(part.read_bytes())
    content[where + 5] ^= 1
    part.write_bytes(content)
    with pytest.raises(BadInputError, match=r"part-000002\.nc: damaged"):
        stores.merge_parts(tmp_path / "parts", tmp_path / "all.nc", run={})
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_columns_that_are_empty_in_one_part_take_the_type_of_the_others():
    empty = pd.DataFrame({"a": pd.Series([None], dtype=object), "b": pd.Series([None], dtype=object)})
    full = pd.DataFrame({"a": [True], "b": [1.5], "c": ["x"]})
    a, b = (store_rows.joined_column([empty[name], full[name]]) for name in "ab")
    assert a.dtype.name == "boolean"
    assert b.dtype == np.float64


def read_as_documented(path):
    """Runs the page's own example, where neither geo_mvmf nor torch can be imported."""
    page = (ROOT / "docs" / "predictions_file.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    blocked = "import sys\nfor name in ('geo_mvmf', 'torch', 'pandas', 'xarray'):\n    sys.modules[name] = None\n"
    shown = "print(json.dumps([image_id, weights.tolist(), header['run']]))\n"
    code = blocked + code.replace('"predictions.nc"', repr(str(path))) + shown
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_documented_format_is_enough_to_read_the_file(stored):
    path, _ = stored
    image_id, weights, run = read_as_documented(path)
    back = stores.open_store(path)
    assert image_id == "Ærø 0.jpg"
    assert run == back.run
    np.testing.assert_allclose(weights, np.exp(back.log_mixing_weights([0])[0]), rtol=1e-12)


def test_the_file_opens_where_torch_cannot_be_imported(stored):
    code = f"""
        import sys
        sys.modules["torch"] = sys.modules["torchvision"] = None
        from geo_mvmf.files import stores
        from geo_mvmf.mixture import VmfMixture
        back = stores.open_store({str(stored[0])!r})
        c = back.components
        mixture = VmfMixture(
            mean_directions=c.mean_directions,
            log_concentrations=c.log_concentrations,
            log_mixing_weights=back.log_mixing_weights([0, 1]),
        )
        print(mixture.log_density([[1.0, 0.0, 0.0]]).tolist())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True, cwd=ROOT)
    back = stores.open_store(stored[0])
    here = VmfMixture(
        mean_directions=back.components.mean_directions,
        log_concentrations=back.components.log_concentrations,
        log_mixing_weights=back.log_mixing_weights([0, 1]),
    ).log_density([[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(json.loads(done.stdout), here)


def test_other_programs_see_the_rows(stored):
    with xarray.open_dataset(stored[0], group="rows", engine="h5netcdf") as dataset:
        ids = [value.decode() if isinstance(value, bytes) else value for value in dataset["image_id"].values.tolist()]
        assert ids == [f"Ærø {i}.jpg" for i in range(6)]
        assert dataset["flag"].dtype == bool
        assert dataset["longitude"].values[0] == -180.0
    with xarray.open_dataset(stored[0], engine="h5netcdf") as dataset:
        assert dataset.sizes["component"] == 40


# Files of others, and damaged ones


def changed(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name, values, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def outside(file):
    secret = Path(file.filename).parent / "secret.bin"
    secret.write_bytes(bytes(6 * 8))
    del file["residual"]
    file.create_dataset("residual", (6,), np.float64, external=[(str(secret), 0, 48)])


def virtual(file):
    del file["residual"]
    layout = h5py.VirtualLayout((6,), np.float64)
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (6,))
    file.create_virtual_dataset("residual", layout)


def linked(kind):
    def change(file):
        del file["residual"]
        file["residual"] = kind

    return change


def header(**parts):
    def change(file):
        found = json.loads(file["header"][...].tobytes()) | parts
        del file["header"]
        file["header"] = np.frombuffer(json.dumps(found).encode(), dtype="S1")

    return change


def huge(file):
    del file["residual"]
    file.create_dataset("residual", (2**40,), np.float64, chunks=(1024,))


def entry(position, name, value):
    def change(file):
        file[name][position] = value

    return change


ATTACKS = {
    "format gone": lambda file: file.attrs.__delitem__("format"),
    "format of text with variable length": lambda file: file.attrs.__setitem__("format", stores.FORMAT),
    "another format": lambda file: file.attrs.__setitem__("format", np.bytes_("other")),
    "version 2": lambda file: file.attrs.__setitem__("format_version", 2),
    "array of another file": outside,
    "virtual array": virtual,
    "soft link": linked(h5py.SoftLink("/offsets")),
    "external link": linked(h5py.ExternalLink("/etc/other.h5", "x")),
    "array gone": lambda file: file.__delitem__("mean_directions"),
    "array turned group": lambda file: (file.__delitem__("residual"), file.create_group("residual")),
    "claims 8 TB": huge,
    "text of variable length": replace("residual", ["x"] * 6),
    "unknown filter": replace("residual", np.zeros(6), compression="lzf", chunks=(6,)),
    "directions of length 0": replace("mean_directions", np.zeros((40, 3))),
    "directions not finite": replace("mean_directions", np.full((40, 3), np.nan)),
    "directions of two numbers": replace("mean_directions", np.ones((40, 2))),
    "fewer counts": replace("training_counts", np.zeros(39, np.int64)),
    "negative counts": replace("training_counts", np.full(40, -1)),
    "concentrations not finite": replace("log_concentrations", np.full(40, np.inf)),
    "offsets fall": replace("image_offset", np.array([0, 9, 3, 4, 5, 6, 7])),
    "offsets too far": replace("image_offset", np.array([0, 1, 2, 3, 4, 5, 10**9])),
    "offsets of other rows": replace("image_offset", np.array([0, 1, 2])),
    "residual above one": replace("residual", np.full(6, 1.5)),
    "residual not finite": replace("residual", np.full(6, np.nan)),
    "component beyond": entry(0, "entry_component", 40),
    "component twice": entry(1, "entry_component", 0),
    "weight above one": entry(0, "entry_log_weight", 1.0),
    "weight not finite": entry(0, "entry_log_weight", np.nan),
    "header no JSON": replace("header", np.frombuffer(b"{", dtype="S1")),
    "header no UTF-8": replace("header", np.frombuffer(b"\xff\xfe", dtype="S1")),
    "header a list": replace("header", np.frombuffer(b"[]", dtype="S1")),
    "unknown kind": header(kind="gauss"),
    "unknown column": header(columns=[{"name": "a", "variable": "b", "kind": "text"}]),
    "column from elsewhere": header(columns=[{"name": "a", "variable": "../residual", "kind": "text"}]),
    "column of unknown kind": header(columns=[{"name": "a", "variable": "image_id", "kind": "object"}]),
    "rows gone": lambda file: file.__delitem__("rows"),
    "text no UTF-8": lambda file: file["rows/image_id"].__setitem__((0, 0), b"\xff"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_is_not_as_specified_is_refused(stored, name):
    path, _ = stored
    changed(path, ATTACKS[name])
    with pytest.raises(BadInputError, match=re.escape(path.name)):
        stores.open_store(path).log_mixing_weights([0])


def test_the_file_of_the_attacks_is_good_without_them(stored):
    changed(stored[0], lambda file: file.attrs.__setitem__("note", 1))
    assert np.isfinite(stores.open_store(stored[0]).log_mixing_weights([0])).all()


@pytest.mark.parametrize("content", [b"", b"path,longitude\n", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(999)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.nc"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=re.escape("a.nc")):
        stores.open_store(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    for name in ("pipe.nc", "missing.nc", "."):
        with pytest.raises(BadInputError):
            stores.open_store(tmp_path / name)


DAMAGE = """
import sys, faulthandler
from pathlib import Path
import numpy as np
from geo_mvmf.errors import BadInputError
from geo_mvmf.files import stores
source, flips, cuts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
generator = np.random.default_rng(int(sys.argv[4]))
raw = source.read_bytes()
whole = stores.open_store(source)
images = np.flatnonzero(whole.is_predicted)
expected = whole.log_mixing_weights(images)
def outcome(data):
    faulthandler.dump_traceback_later(20, exit=True)
    target = source.with_name("damaged.nc")
    target.write_bytes(data)
    try:
        found = stores.open_store(target)
        dense = found.log_mixing_weights(images)
    except BadInputError:
        return "refused"
    same = found.rows.equals(whole.rows) and found.run == whole.run and np.array_equal(dense, expected)
    return "same" if same else "DIFFERENT"
seen = []
for _ in range(flips):
    data = bytearray(raw)
    data[generator.integers(len(raw))] ^= 1 << int(generator.integers(8))
    seen.append(outcome(bytes(data)))
for _ in range(cuts):
    seen.append("cut " + outcome(raw[: generator.integers(len(raw))]))
print(sorted(set(seen)))
"""


def damage(path, flips, cuts, seed):
    command = [sys.executable, "-c", DAMAGE, str(path), str(flips), str(cuts), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout.strip(), done.stderr[-2000:]


def test_no_wrong_bit_and_no_cut_goes_unnoticed_or_hangs(stored):
    code, seen, errors = damage(stored[0], 60, 20, 0)
    assert (code, seen) == (0, "['cut refused', 'refused', 'same']"), errors


@pytest.mark.hard
def test_no_wrong_bit_and_no_cut_goes_unnoticed_or_hangs_in_many_trials(stored):
    code, seen, errors = damage(stored[0], 2500, 500, 1)
    assert (code, seen) == (0, "['cut refused', 'refused', 'same']"), errors


# Crashes, kills and full disks


def test_a_failing_writer_leaves_the_old_file_and_no_debris(stored, monkeypatch):
    path, _ = stored
    before = path.read_bytes()
    write = {"rows": make_rows(3), "pruned": stores.prune(make_logs(3)), "components": make_components(), "run": {}}
    for name in ("write_head", "write_entries", "write_header"):
        with monkeypatch.context() as patch:
            patch.setattr(store_format, name, lambda *_, **options: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                stores.write_store(path, overwrite=True, **write)
            stores_folder = path.parent / "parts"
            with pytest.raises(ZeroDivisionError):
                stores.write_part(stores_folder, 0, **write)
        assert stores.existing_parts(stores_folder) == []
        assert all(path.name.startswith("components-") for path in stores_folder.iterdir())  # whole: no debris
        shutil.rmtree(stores_folder)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(OutputError, match="exists already"):
        stores.write_store(path, **write)


def write_parts_for_ever(folder):
    write = {"rows": make_rows(50), "pruned": stores.prune(make_logs(50)), "components": make_components(), "run": {}}
    number = len(stores.existing_parts(folder))
    while True:
        stores.write_part(folder, number, **write)
        number += 1


@pytest.mark.hard
def test_a_killed_prediction_goes_on_after_its_last_whole_part(tmp_path):
    code = f"""
        import importlib.util
        spec = importlib.util.spec_from_file_location("t", {__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print("ready", flush=True)
        module.write_parts_for_ever(module.Path({str(tmp_path)!r}))
    """
    generator = np.random.default_rng(0)
    numbers = []
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT)
        child.stdout.readline()
        wanted = len(numbers) + int(generator.integers(1, 4))  # however slow the machine: it is between two parts
        while len(stores.existing_parts(tmp_path)) < wanted and child.poll() is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        numbers = stores.existing_parts(tmp_path)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= wanted
        for number in numbers[-3:]:
            assert len(stores.open_part(stores.part_path(tmp_path, number), make_components())) == 50
    write = {"rows": make_rows(50), "pruned": stores.prune(make_logs(50)), "components": make_components(), "run": {}}
    stores.write_part(tmp_path, len(numbers), **write)  # the next writer sweeps
    (shared,) = (p.name for p in tmp_path.iterdir() if not p.name.startswith("part-"))
    assert shared == f"components-{make_components().digest[:32]}.nc"


MEMORY = """
import sys
from pathlib import Path
from geo_mvmf.files import stores
stores.merge_parts(Path(sys.argv[1]), Path(sys.argv[2]), run={})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.hard
def test_merging_needs_no_more_memory_for_more_parts(tmp_path):
    size = 32769
    components = make_components(size)
    logs = make_logs(64, size, width=0.5)
    peaks = []
    for parts in (2, 12):
        for number in range(parts):
            stores.write_part(
                tmp_path / f"{parts}",
                number,
                rows=make_rows(64),
                pruned=stores.prune(logs),
                components=components,
                run={},
            )
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"{parts}"), str(tmp_path / f"{parts}.nc")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout))
    assert peaks[1] - peaks[0] < 40_000  # kB; the ten further parts hold 160 MB of weights
