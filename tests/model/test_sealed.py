"""The file format under bundles and checkpoints: every bit counts, and nothing is believed before it is checked."""

import hashlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import BadBundleError, OutputError
from geo_mvmf.model import sealed


def craft(entries, data, *, metadata=None, pad=True):
    """A file whose digest is right, so that what is wrong is the clause under test."""
    metadata = {"format": "x", "sha256": "0" * 64} if metadata is None else metadata
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8) if pad else b""
    raw = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(raw + data).hexdigest().encode()
    return raw.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1) + data


def entry(begin, end, shape=(2,), dtype="F64"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.array(7, np.int64), "c": np.ones((2, 3), np.float16)}
    sealed.write_sealed(path, arrays, {"format": "x", "text": 'Ægir "quoted" and \\'})
    return path


def test_the_crafted_file_itself_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(craft({"a": entry(0, 16)}, bytes(16)))
    assert sealed.read_sealed(path)[1]["a"].tolist() == [0.0, 0.0]


def test_arrays_and_texts_come_back_exactly(small):
    header, arrays = sealed.read_sealed(small)
    assert header.metadata == {"format": "x", "text": 'Ægir "quoted" and \\'}
    assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert (arrays["b"].shape, int(arrays["b"])) == ((), 7)
    assert (arrays["c"].dtype, arrays["c"].shape) == (np.float16, (2, 3))


def test_the_reference_implementation_reads_the_same(small):
    expected = safetensors.numpy.load_file(small)
    for name, array in sealed.read_sealed(small)[1].items():
        np.testing.assert_array_equal(array, expected[name])


@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.sampled_from(sorted(sealed.DTYPES)), min_size=1),
    st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda key: key != "sha256"), st.text(max_size=20)),
)
@settings(max_examples=40, deadline=None)
def test_any_content_survives_and_the_order_of_mappings_does_not_matter(tmp_path_factory, names, metadata):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(len(names))
    arrays = {name: rng.integers(0, 99, (2, 3)).astype(sealed.DTYPES[kind]) for name, kind in names.items()}
    first = sealed.write_sealed(folder / "1", arrays, metadata)
    again = sealed.write_sealed(folder / "2", dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    header, found = sealed.read_sealed(folder / "1")
    assert first == again
    assert header.metadata == metadata
    assert all((found[name] == array).all() and found[name].dtype == array.dtype for name, array in arrays.items())


@pytest.mark.hard
def test_every_single_flipped_bit_is_detected(small):
    sealed.write_sealed(small, {"a": np.arange(9, dtype=np.uint8)}, {}, overwrite=True)
    content = small.read_bytes()
    unseen_by_the_reference = 0
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        small.write_bytes(damaged)
        with pytest.raises(BadBundleError):
            sealed.read_sealed(small)
        unseen_by_the_reference += _reference_reads(bytes(damaged))
    # the broken twin: the plain format, without our digest, loads most of them without a word
    assert unseen_by_the_reference > 0.2 * 8 * len(content)


def _reference_reads(content):
    try:
        safetensors.numpy.load(content)
    except (safetensors.SafetensorError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return False
    return True


def test_every_truncation_and_every_added_byte_is_detected(small):
    content = small.read_bytes()
    for length in range(len(content)):
        small.write_bytes(content[:length])
        with pytest.raises(BadBundleError):
            sealed.read_sealed(small)
    small.write_bytes(content + b"\0")
    with pytest.raises(BadBundleError, match="header describes"):
        sealed.read_sealed(small)


ATTACKS = {
    "gap": (craft({"a": entry(8, 24)}, bytes(24)), "gap or an overlap"),
    "overlap": (craft({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)), "gap or an overlap"),
    "unused bytes at the end": (craft({"a": entry(0, 16)}, bytes(24)), "describes 16 bytes"),
    "more promised than there is": (craft({"a": entry(0, 8 * 10**12, (10**12,))}, bytes(16)), "describes"),
    "size unlike the shape": (craft({"a": entry(0, 16, (3,))}, bytes(16)), "needs 24 bytes"),
    "shape product beyond 64 bits": (craft({"a": entry(0, 16, (2**40, 2**40))}, bytes(16)), "needs"),
    "negative dimension": (craft({"a": entry(0, 16, (-1, -2))}, bytes(16)), "positive integers"),
    "zero dimension": (craft({"a": entry(0, 0, (0,))}, b""), "positive integers"),
    "truth value as a number": (craft({"a": entry(False, 16)}, bytes(16)), "two integers"),
    "fraction as a number": (craft({"a": entry(0, 16.0)}, bytes(16)), "two integers"),
    "nine dimensions": (craft({"a": entry(0, 8, (1,) * 9)}, bytes(8)), "positive integers"),
    "three offsets": (craft({"a": {**entry(0, 16), "data_offsets": [0, 8, 16]}}, bytes(16)), "two integers"),
    "unknown dtype": (craft({"a": entry(0, 16, dtype="BF16")}, bytes(16)), "dtype 'BF16'"),
    "dtype that is a list": (craft({"a": entry(0, 16, dtype=["F64"])}, bytes(16)), "dtype"),
    "unknown entry": (craft({"a": {**entry(0, 16), "path": "/etc/passwd"}}, bytes(16)), "nothing else"),
    "tensor that is a text": (craft({"a": "F64"}, b""), "nothing else"),
    "no tensors": (craft({}, b""), "0 tensors"),
    "no metadata": (b"\x02" + bytes(7) + b"{}", "no __metadata__"),
    "no digest": (craft({"a": entry(0, 16)}, bytes(16), metadata={"format": "x"}), "no SHA-256"),
    "digest in capitals": (craft({}, b"", metadata={"sha256": "A" * 64}), "no SHA-256"),
    "digest twice": (craft({}, b"", metadata={"sha256": "1" * 64, "b": "1" * 64}), "once"),
    "metadata that is no text": (craft({}, b"", metadata={"sha256": "0" * 64, "n": 3}), "of texts"),
    "header that is a list": (b"\x08" + bytes(7) + b"[[[[[[[[", "brace"),
    "header that is no JSON": (b"\x08" + bytes(7) + b"{x:1}   ", "not valid JSON"),
    "header that is no UTF-8": (b"\x08" + bytes(7) + b"{\xff\xfe}    ", "not valid JSON"),
    "nesting": ((200008).to_bytes(8, "little") + b'{"a":' + b"[" * 200003, "not valid JSON"),
    "same key twice": (b"\x10" + bytes(7) + b'{"a":1,"a":2}   ', "occurs twice"),
    "NaN": (b"\x10" + bytes(7) + b'{"a":NaN}       ', "NaN is not"),
    "header longer than the file": ((10**6).to_bytes(8, "little") + b"{}", "header would be"),
    "header of 2**63 bytes": ((2**63).to_bytes(8, "little") + b"{}", "header would be"),
    "empty file": (b"", "header would be"),
    "seven bytes": (b"\x02" + bytes(6), "header would be"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "this is a pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_violated_clause_has_its_error(tmp_path, name):
    content, message = ATTACKS[name]
    path = tmp_path / "attack.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(BadBundleError, match=message) as caught:
            sealed.read_sealed(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2 * len(content) + 4e6  # nothing is allocated because a header says so


def test_zip_and_tar_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(1))
    with pytest.raises(BadBundleError, match="zip archive"):
        sealed.read_sealed(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO(b""))
    with pytest.raises(BadBundleError, match="tar archive"):
        sealed.read_sealed(path)


@pytest.mark.timeout(10)
def test_pipes_devices_folders_and_missing_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", "/dev/zero", tmp_path, tmp_path / "missing", "http://example.org/a"):
        with pytest.raises(BadBundleError):
            sealed.read_sealed(path)


def test_the_check_is_called_before_any_array_is_made(small):
    def check(header):
        assert header.tensors["a"].shape == (5,)
        raise BadBundleError("not this one")

    with pytest.raises(BadBundleError, match="not this one"):
        sealed.read_sealed(small, check=check)


def test_an_existing_file_is_not_replaced_unasked(small):
    before = small.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        sealed.write_sealed(small, {"a": np.ones(1)}, {})
    assert small.read_bytes() == before


@pytest.mark.parametrize("array", [np.ones(1, complex), np.array(["a"]), np.ones(0), np.ones(1, object)])
def test_arrays_that_the_format_lacks_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="cannot be stored"):
        sealed.write_sealed(tmp_path / "a", {"x": array}, {})
