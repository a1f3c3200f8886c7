"""Parts of a prediction share one file of components: written once, whole or not at all, known by its content."""

import dataclasses
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.files import store_parts, stored_predictions, stores
from geo_mvmf.s2 import cell_ids
from geo_mvmf.sphere import random_directions


def components_of(size=300, seed=0):
    generator = np.random.default_rng(seed)
    directions = random_directions(size, generator)
    cells = np.sort(cell_ids(directions, 8))
    return stores.Components("vmf", directions, generator.uniform(2, 8, size), np.arange(size), cells)


def write(folder, number, components, run=()):
    logs = np.random.default_rng(number).normal(size=(2, len(components)))
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    rows = pd.DataFrame({"image_id": [f"{number} {i}" for i in range(2)], "status": "ok"})
    stores.write_part(folder, number, rows=rows, pruned=stores.prune(logs), components=components, run=dict(run))


def shared_file(folder):
    (found,) = Path(folder).glob("components-*.nc")
    return found


def test_components_are_written_once_and_parts_do_not_grow_with_them(tmp_path):
    sizes = {}
    for size in (300, 30_000):
        folder, components = tmp_path / str(size), components_of(size)
        logs = np.log(np.full((2, size), 1e-9))
        logs[:, :2] = np.log((1.0 - 1e-9 * (size - 2)) / 2.0)
        kept, stamp = stores.prune(logs), None
        for number in range(3):
            rows = pd.DataFrame({"image_id": ["a", "b"]})
            stores.write_part(folder, number, rows=rows, pruned=kept, components=components, run={})
            stamp = stamp or shared_file(folder).stat()
        assert (shared_file(folder).stat().st_ino, shared_file(folder).stat().st_mtime_ns) == (
            stamp.st_ino,
            stamp.st_mtime_ns,
        )
        sizes[size] = stores.part_path(folder, 2).stat().st_size
        assert shared_file(folder).stat().st_size > 48 * size
    assert abs(sizes[30_000] - sizes[300]) < 100  # how well they are deflated


def test_a_part_is_no_predictions_file_and_its_components_are_none(tmp_path):
    write(tmp_path, 0, components_of())
    for path in tmp_path.iterdir():
        with pytest.raises(BadInputError, match=r"not a predictions file.*predict again, and it goes on"):
            stores.open_store(path)
    with pytest.raises(BadInputError, match=r"made with another bundle.*remove the folder"):
        stores.open_part(stores.part_path(tmp_path, 0), components_of(seed=1))


def test_many_writers_at_once_leave_one_file_and_whole_parts(tmp_path):
    shared = components_of()
    writers = [threading.Thread(target=write, args=(tmp_path, number, shared)) for number in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert stores.existing_parts(tmp_path) == list(range(4))
    assert shared_file(tmp_path).name == f"components-{shared.digest[:32]}.nc"
    assert len(list(tmp_path.iterdir())) == 5
    assert len(stores.merge_parts(tmp_path, tmp_path / "all.nc", run={})) == 8


def test_no_damage_of_the_components_goes_unnoticed_and_a_run_that_goes_on_mends_it(tmp_path):
    shared = components_of(40)
    write(tmp_path, 0, shared)
    path, generator = shared_file(tmp_path), np.random.default_rng(0)
    whole = path.read_bytes()
    merged = stores.merge_parts(tmp_path, tmp_path / "right.nc", run={}).path.read_bytes()
    cuts = [whole[: int(size)] for size in generator.integers(0, len(whole), 8)]
    for bit in generator.integers(0, 8 * len(whole), 40):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        cuts.append(bytes(flipped))
    refused = 0
    for damaged in cuts:
        path.write_bytes(damaged)
        try:
            assert store_parts.read_components(tmp_path, shared.digest).digest == shared.digest
        except BadInputError:
            refused += 1
    assert refused > 20  # other bits are padding, which nothing reads
    path.write_bytes(whole[:-900])
    with pytest.raises(BadInputError, match=path.name):
        stores.merge_parts(tmp_path, tmp_path / "a.nc", run={})
    assert not (tmp_path / "a.nc").exists()
    stores.keep_components(tmp_path, shared)
    assert stores.merge_parts(tmp_path, tmp_path / "a.nc", run={}).path.read_bytes() == merged


def test_whole_components_of_another_bundle_are_known_by_their_content(tmp_path, monkeypatch):
    """Nothing of such a file is damaged; without the digest, the broken twin, parts would be taken for others'."""
    shared, others = components_of(), components_of(seed=1)
    write(tmp_path / "own", 0, shared)
    write(tmp_path / "others", 0, others)
    shutil.copy(shared_file(tmp_path / "others"), shared_file(tmp_path / "own"))
    with pytest.raises(BadInputError, match="holds components of digest"):
        stores.merge_parts(tmp_path / "own", tmp_path / "a.nc", run={})
    monkeypatch.setattr(stores.Components, "digest", property(lambda _: shared.__dict__["digest"]))
    wrong = stores.merge_parts(tmp_path / "own", tmp_path / "twin.nc", run={})
    assert not np.array_equal(wrong.components.mean_directions, shared.mean_directions)


def test_components_of_other_runs_go_and_nothing_else(tmp_path):
    write(tmp_path, 0, components_of(seed=1))
    (tmp_path / "note.txt").write_text("mine")
    stores.keep_components(tmp_path, components_of())
    assert shared_file(tmp_path).name == f"components-{components_of().digest[:32]}.nc"
    assert (tmp_path / "note.txt").exists()
    inode = shared_file(tmp_path).stat().st_ino
    stores.keep_components(tmp_path, components_of())
    assert shared_file(tmp_path).stat().st_ino == inode  # what is whole is left as it is


def dying(folder, shared, step):
    """Write a part in a process that dies at a step of making bytes permanent; whether it died."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def deadly(function):
        def call(*arguments, **options):
            nonlocal count
            if count == step:
                os._exit(9)
            count += 1
            return function(*arguments, **options)

        return call

    try:
        for owner, name in ((os, "fsync"), (Path, "replace"), (store_parts.netcdf, "add_array")):
            setattr(owner, name, deadly(getattr(owner, name)))
        write(folder, 0, shared)
    finally:
        os._exit(0)


def left_behind(folder, shared):
    """What a killed writer left: parts must open, and components must be whole wherever there are any."""
    for path in folder.glob("components-*.nc"):
        store_parts.read_components(folder, shared.digest)
        assert path.stat().st_size
    for number in stores.existing_parts(folder):
        assert len(stores.open_part(stores.part_path(folder, number), shared)) == 2
        store_parts.read_components(folder, shared.digest)


@pytest.mark.hard
def test_a_writer_killed_at_any_step_leaves_whole_files_and_the_next_one_goes_on(tmp_path):
    shared, died = components_of(40), 0
    assert shared.digest
    for step in range(40):
        folder = tmp_path / f"{step}"
        if not dying(folder, shared, step):
            break
        died += 1
        left_behind(folder, shared)
        write(folder, 1, shared)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        left_behind(folder, shared)
    assert died > 10


@pytest.mark.hard
def test_the_kills_would_notice_components_that_are_written_in_place(tmp_path, monkeypatch):
    """The broken twin."""
    shared = components_of(40)
    assert shared.digest
    plain = durable.replacing

    class InPlace:
        def __init__(self, path, **_):
            self.path = Path(path)

        def __enter__(self):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path

        def __exit__(self, *_):
            pass

    def replacing(path, **options):
        return InPlace(path) if Path(path).name.startswith("components-") else plain(path, **options)

    monkeypatch.setattr(durable, "replacing", replacing)
    noticed = 0
    for step in range(8):
        assert dying(tmp_path / f"{step}", shared, step)
        try:
            left_behind(tmp_path / f"{step}", shared)
        except BadInputError:
            noticed += 1
    assert noticed


def test_what_is_damaged_while_it_is_written_is_an_error(tmp_path, monkeypatch):
    def damaged(*_, **__):
        raise BadInputError("not what was written")

    monkeypatch.setattr(stored_predictions, "_opened", damaged)
    with pytest.raises(OutputError, match="read back is damaged"):
        write(tmp_path, 0, components_of())
    assert stores.existing_parts(tmp_path) == []


def test_rows_and_weights_of_different_images_are_refused(tmp_path):
    shared = components_of()
    kept = stores.prune(np.full((3, 300), np.nan))
    with pytest.raises(ValueError, match="2 rows and weights of 3 images"):
        stores.write_part(tmp_path, 0, rows=pd.DataFrame({"a": [1, 2]}), pruned=kept, components=shared, run={})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="weights of 3 images, not of 2"):
        stores.check_weights(kept, 2, shared)
    one = stores.prune(np.log(np.full((1, 400), 1 / 400)))
    with pytest.raises(ValueError, match="beyond 300"):
        stores.check_weights(one, 1, shared)
    with pytest.raises(ValueError, match="sum to 1"):
        stores.check_weights(dataclasses.replace(one, log_weight=one.log_weight - 1), 1, components_of(400))
