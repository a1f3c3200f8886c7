"""The feature cache: by content, resumable, and the same bits whatever happened in between."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from geo_mvmf import progress
from geo_mvmf.errors import BadInputError, LockedError, UsageError
from geo_mvmf.inputs import images, tables
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import feature_store, features
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.feature_store import FeatureStore
from geo_mvmf.model.features import backbone_digest, cache_features

SPEC = ImageSpec(resize=16, crop=16)


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("chip_resnet10", width=8)


@pytest.fixture
def folder(tmp_path):
    """Twelve images; number 5 is a copy of number 2, number 7 is cut off."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{number:02d}.png")
    shutil.copy(folder / "02.png", folder / "05.png")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:100])
    return folder


def run(backbone, folder, cache, **options):
    table = tables.read_image_table(folder)
    return progress.run(cache_features(backbone, table, cache, spec=SPEC, batch_size=4, workers=2, **options))


def computed(monkeypatch):
    """Paths that are decoded from now on."""
    seen, original = [], images.read_images

    def read_images(paths, spec, **options):
        paths = list(paths)
        seen.extend(path.name for path in paths)
        return original(paths, spec, **options)

    monkeypatch.setattr(images, "read_images", read_images)
    return seen


def test_each_row_has_the_features_of_its_image(backbone, folder, tmp_path):
    cache = run(backbone, folder, tmp_path / "cache", dtype="float32")
    for row in (0, 3, 11):
        pixels = images.read_image(folder / f"{row:02d}.png", SPEC)[None]
        with torch.inference_mode():
            expected = backbone(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(cache.rows(np.array([row])), expected, rtol=1e-5, atol=1e-6)


def test_a_bad_image_is_a_row_with_a_status_and_has_no_features(backbone, folder, tmp_path):
    cache = run(backbone, folder, tmp_path / "cache")
    assert cache.status[7] == "unreadable"
    assert "07.png" in cache.message[7]
    assert cache.index[7] == -1
    assert [status for row, status in enumerate(cache.status) if row != 7] == ["ok"] * 11
    with pytest.raises(BadInputError, match=r"row 7 has no features: unreadable"):
        cache.rows(np.array([1, 7]))


def test_equal_files_are_computed_once(backbone, folder, tmp_path, monkeypatch):
    seen = computed(monkeypatch)
    cache = run(backbone, folder, tmp_path / "cache")
    assert cache.index[5] == cache.index[2]
    assert sorted(seen) == [f"{number:02d}.png" for number in range(12) if number != 5]
    assert len(cache.features) == 10


def test_nothing_is_computed_again_not_even_for_renamed_files(backbone, folder, tmp_path, monkeypatch):
    first = run(backbone, folder, tmp_path / "cache")
    (folder / "07.png").unlink()
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved" / "00.png").rename(tmp_path / "moved" / "zz.png")
    seen = computed(monkeypatch)
    again = run(backbone, tmp_path / "moved", tmp_path / "cache")
    assert seen == []
    np.testing.assert_array_equal(again.rows(np.array([10])), first.rows(np.array([0])))


def test_new_images_are_added_to_old_ones(backbone, folder, tmp_path, monkeypatch):
    first = run(backbone, folder, tmp_path / "cache")
    kept = np.array(first.features)
    Image.new("RGB", (16, 16), "red").save(folder / "99.png")
    seen = computed(monkeypatch)
    again = run(backbone, folder, tmp_path / "cache")
    assert seen == ["07.png", "99.png"]
    np.testing.assert_array_equal(again.features[:10], kept)
    assert len(again.features) == 11
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_another_backbone_size_or_dtype_is_another_cache(backbone, folder, tmp_path):
    run(backbone, folder, tmp_path / "cache")
    run(build_backbone("chip_resnet10", width=8, seed=1), folder, tmp_path / "cache")
    run(backbone, folder, tmp_path / "cache", dtype="float32")
    table = tables.read_image_table(folder)
    smaller = ImageSpec(resize=16, crop=8)
    progress.run(cache_features(backbone, table, tmp_path / "cache", spec=smaller, batch_size=4))
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_digest_of_a_backbone_is_that_of_its_weights(backbone):
    other = build_backbone("chip_resnet10", width=8)
    assert backbone_digest(other) == backbone_digest(backbone)
    with torch.no_grad():
        other.network[0].weight[0, 0, 0, 0] += 1e-6
    assert backbone_digest(other) != backbone_digest(backbone)


@pytest.mark.parametrize("stop_after", range(1, 5))
def test_a_stopped_job_goes_on_with_the_same_bits(backbone, folder, tmp_path, monkeypatch, stop_after):
    whole = np.array(run(backbone, folder, tmp_path / "whole").features)
    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    job = cache_features(backbone, tables.read_image_table(folder), tmp_path / "cache", spec=SPEC, batch_size=4)
    for _ in range(stop_after):
        next(job)
    job.close()
    seen = computed(monkeypatch)
    resumed = run(backbone, folder, tmp_path / "cache")
    assert len(seen) == max(0, 11 - 4 * (stop_after - 1))  # the first event is that of looking at the files
    np.testing.assert_array_equal(np.array(resumed.features), whole)
    assert resumed.status[7] == "unreadable"


def test_a_job_killed_before_its_merge_is_committed_merges_again(backbone, folder, tmp_path, monkeypatch):
    whole = np.array(run(backbone, folder, tmp_path / "whole").features)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)  # the digests are written last, as the commit
        with pytest.raises(KeyboardInterrupt):
            run(backbone, folder, tmp_path / "cache")
    seen = computed(monkeypatch)
    resumed = run(backbone, folder, tmp_path / "cache")
    assert seen == []
    np.testing.assert_array_equal(np.array(resumed.features), whole)


def test_a_damaged_shard_is_named(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureStore, "merge", lambda self: pytest.skip("unreachable"))
    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    job = cache_features(backbone, tables.read_image_table(folder), tmp_path / "cache", spec=SPEC, batch_size=4)
    next(job), next(job)
    job.close()
    (shard,) = (tmp_path / "cache").rglob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(BadInputError, match=r"damaged.*shard-000000"):
        run(backbone, folder, tmp_path / "cache")


def test_damaged_features_are_named_before_anything_is_computed(backbone, folder, tmp_path, monkeypatch):
    run(backbone, folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("features-*.npy")
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    seen = computed(monkeypatch)
    with pytest.raises(BadInputError, match=r"features-.*damaged.*delete the folder"):
        run(backbone, folder, tmp_path / "cache")
    assert seen == []
    path.with_suffix(".sha256").unlink()  # caches of before lack it
    run(backbone, folder, tmp_path / "cache")
    Image.new("RGB", (16, 16)).save(folder / "12.png")
    run(backbone, folder, tmp_path / "cache")
    names = sorted(each.name for each in path.parent.iterdir() if each.suffix in (".npy", ".sha256"))
    assert names == ["digests-000000000011.npy", "features-000000000011.npy", "features-000000000011.sha256"]


@pytest.mark.parametrize("gone", [False, True])
def test_an_image_that_is_replaced_between_hashing_and_reading_is_not_kept(
    backbone, folder, tmp_path, monkeypatch, gone
):
    """Its features would be found under the digest of the former file for ever."""
    original, former = images.read_images, (folder / "03.png").read_bytes()

    def read_images(paths, spec, **options):
        (folder / "03.png").write_bytes((folder / "04.png").read_bytes())
        yield from original(paths, spec, **options)
        if gone:
            (folder / "03.png").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_images", read_images)
        cache = run(backbone, folder, tmp_path / "cache")
    assert (cache.status[3], cache.index[3]) == ("missing" if gone else "failed", -1)
    assert gone or cache.message[3] == "03.png: could not be read a moment ago, or changed; run again"
    assert np.isfinite(cache.rows(np.array([4]))).all()
    (folder / "03.png").write_bytes(former)
    again, fresh = run(backbone, folder, tmp_path / "cache"), run(backbone, folder, tmp_path / "fresh")
    np.testing.assert_allclose(again.rows(np.array([3])), fresh.rows(np.array([3])), atol=1e-3)
    assert not np.allclose(again.rows(np.array([3])), again.rows(np.array([4])), atol=1e-3)


def test_two_jobs_do_not_fill_the_same_cache(backbone, folder, tmp_path):
    table = tables.read_image_table(folder)
    first = cache_features(backbone, table, tmp_path / "cache", spec=SPEC, batch_size=4)
    next(first)
    with pytest.raises(LockedError):
        run(backbone, folder, tmp_path / "cache")
    first.close()
    run(backbone, folder, tmp_path / "cache")


def test_a_cache_is_locked_until_its_features_were_shown(backbone, folder, tmp_path):
    shown = []

    def show(cache):
        shown.append(np.array(cache.features))
        with pytest.raises(LockedError):
            run(backbone, folder, tmp_path / "cache")

    cache = run(backbone, folder, tmp_path / "cache", before_unlocking=show)
    np.testing.assert_array_equal(shown[0], cache.features)
    run(backbone, folder, tmp_path / "cache")


def opened(folder, dtype="float32"):
    return FeatureStore.opened(folder, 2, dtype)


def test_each_block_that_is_merged_or_checked_is_a_sign_of_life(tmp_path, monkeypatch):
    """Else the ranks that wait for a cache of terabytes would take rank 0 for dead."""
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 2)
    monkeypatch.setattr(feature_store, "_HASHED_BYTES", 96)
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    store = progress.run(opened(tmp_path))
    for shard in range(2):
        store.append([bytes([row] * 32) for row in range(2 * shard, 2 * shard + 2)], rows[2 * shard : 2 * shard + 2])
    assert len(list(opened(tmp_path))) == 2  # each shard
    merging = [(event.done, event.total) for event in store.merge()]
    assert merging == [(2, 4), (4, 4), (0, 0), (0, 0)]  # then 128 bytes of header and 32 of features
    assert len(list(opened(tmp_path))) == 2
    store.append([bytes([row] * 32) for row in (4, 5)], rows[4:])
    assert [event.done for event in store.merge() if event.total] == [2, 4, 6]
    np.testing.assert_array_equal(progress.run(progress.run(opened(tmp_path)).merge())[0], rows)


def test_features_beyond_float16_are_refused_not_rounded_to_infinity(tmp_path):
    store = progress.run(opened(tmp_path, "float16"))
    with pytest.raises(BadInputError, match=r"up to 1e\+05 do not fit into float16"):
        store.append([b"a" * 32], np.array([[-1e5, 2.0]], np.float32))


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"batch_size": 0}])
def test_wrong_options_are_named(backbone, folder, tmp_path, options):
    job = cache_features(backbone, tables.read_image_table(folder), tmp_path, spec=SPEC, **options)
    with pytest.raises(UsageError, match="needed"):
        next(job)


def test_an_empty_table_gives_an_empty_cache(backbone, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    cache = run(backbone, folder, tmp_path / "cache")
    assert (len(cache.features), cache.index.tolist()) == (0, [-1])
