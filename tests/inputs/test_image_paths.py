"""Paths in tables: none leads out of the root (QUALITY P16)."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.image_paths import PathResolver, find_images, natural_key


@pytest.fixture
def house(tmp_path):
    """A root with photos, a permitted neighbour, and a secret beside them."""
    for folder in ("root/sub", "neighbour", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("root/a.jpg", "root/sub/b.jpg", "neighbour/c.jpg", "elsewhere/secret.jpg", "secret.jpg"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_paths_inside_are_relative_to_the_root(house):
    resolver = PathResolver(house / "root")
    for given_path, path in {
        "a.jpg": "a.jpg",
        "./a.jpg": "a.jpg",
        "sub/b.jpg": "sub/b.jpg",
        "sub//b.jpg": "sub/b.jpg",
        "sub/../a.jpg": "a.jpg",
        str(house / "root" / "sub" / "b.jpg"): "sub/b.jpg",
        house / "root" / "a.jpg": "a.jpg",
    }.items():
        assert resolver.resolve(given_path) == (path, "ok", "")


HOSTILE = [
    "../secret.jpg", "sub/../../secret.jpg", "./../secret.jpg", "sub/../sub/../../secret.jpg", "..", ".", "", " ",
    "/etc/passwd", "//etc/passwd", "///etc/passwd", "/proc/self/environ", "/dev/zero", "/", "sub/", "sub/.", "sub/..",
    "../elsewhere/secret.jpg", "../root2/a.jpg", "http://127.0.0.1/a.jpg", "HTTP://x/a.jpg", "file:///etc/passwd",
    "ftp://x/y", "s3://bucket/key", "/vsicurl/http://127.0.0.1/a", "/vsizip/a.zip/b.jpg", "//vsimem/a", "/VSICURL/x",
    "C:\\Windows\\a.jpg", "C:/Windows/a.jpg", "\\\\server\\share\\a.jpg", "//server/share/a.jpg", "a\0.jpg",
    "../secret.jpg\0.jpg", "\0", "．．/secret.jpg", "..／secret.jpg", "..∕secret.jpg", "..\\secret.jpg",
    "%2e%2e/secret.jpg", "..%2fsecret.jpg", "~/secret.jpg", "$HOME/a.jpg", "`id`", "sub\\..\\..\\secret.jpg",
    "a.jpg/../../secret.jpg", "/./../etc/passwd", "\udcff.jpg", "x" * 5000, "../" * 500 + "etc/passwd", "a.jpg/b",
    "sub", "out.jpg", "outdir/secret.jpg", "loop.jpg", "chain.jpg", "pipe.jpg", "socket.jpg", "dangling.jpg",
]  # fmt: skip


def lay_traps(house):
    (house / "root" / "out.jpg").symlink_to(house / "secret.jpg")
    (house / "root" / "outdir").symlink_to(house / "elsewhere")
    (house / "root" / "loop.jpg").symlink_to("loop.jpg")
    (house / "root" / "chain.jpg").symlink_to("out.jpg")
    (house / "root" / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(house / "root" / "pipe.jpg")


@pytest.mark.parametrize("platform", ["linux", "win32"])
@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_outside_is_ok(path, platform, house, monkeypatch):
    lay_traps(house)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.chdir(house / "root")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        found = PathResolver(house / "root").resolve(path)
    assert found.status in ("missing", "refused", "unreadable")
    assert found.message
    assert len(found.message) < 6000
    found.path.encode("utf-8")  # can be written to any file
    assert "\0" not in found.path


def test_outside_is_not_even_looked_at(house, monkeypatch):
    looked = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **rest: (looked.append(str(path)), lstat(path, **rest))[1])
    resolver = PathResolver(house / "root")
    looked.clear()
    for path in ("../secret.jpg", str(house / "elsewhere" / "secret.jpg"), "/etc/passwd"):
        assert resolver.resolve(path).status == "refused"
    assert not [path for path in looked if path.endswith(("secret.jpg", "passwd"))]


def test_broken_twin_joining_paths_leads_out(house):
    joined = house / "root" / "../secret.jpg"
    assert joined.read_text() == "secret.jpg"  # what a plain join would have read
    assert PathResolver(house / "root").resolve("../secret.jpg").status == "refused"


def test_windows_has_drives_and_backslashes_and_asks_no_server(house, monkeypatch):
    (house / "root" / "C:").mkdir()
    (house / "root" / "C:" / "a.jpg").touch()  # stands for a root on that drive
    paths = {
        "sub\\b.jpg": ("sub/b.jpg", "ok"),
        "sub\\..\\a.jpg": ("a.jpg", "ok"),
        "C:\\a.jpg": ("C:/a.jpg", "ok"),
        "\\\\server\\share\\a.jpg": ("//server/share/a.jpg", "refused"),
        "sub\\..\\..\\secret.jpg": ("sub/../../secret.jpg", "refused"),
    }
    elsewhere = [PathResolver(house / "root").resolve(path).status for path in paths]
    assert elsewhere == ["missing", "missing", "refused", "refused", "missing"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert {path: PathResolver(house / "root").resolve(path)[:2] for path in paths} == paths


def test_a_permitted_folder_may_be_on_another_drive(house, monkeypatch):
    relpath = os.path.relpath

    def of_windows(path, start):
        if ".." in (found := relpath(path, start)):
            raise ValueError("path is on mount 'D:', start on mount 'C:'")
        return found

    monkeypatch.setattr(os.path, "relpath", of_windows)
    found = find_images(house / "neighbour", PathResolver(house / "root", [house / "neighbour"]))
    assert found == [((house / "neighbour" / "c.jpg").as_posix(), "ok", "")]


def test_permitted_folders_and_only_those(house):
    lay_traps(house)
    (house / "root" / "friend.jpg").symlink_to(house / "neighbour" / "c.jpg")
    resolver = PathResolver(house / "root", [house / "neighbour"])
    absolute = (house / "neighbour" / "c.jpg").as_posix()
    assert resolver.resolve(absolute) == (absolute, "ok", "")
    assert resolver.resolve("../neighbour/c.jpg") == (absolute, "ok", "")
    assert resolver.resolve("friend.jpg").status == "ok"
    assert resolver.resolve("out.jpg").status == "refused"
    assert resolver.resolve(house / "elsewhere" / "secret.jpg").status == "refused"
    assert PathResolver(house / "root").resolve("friend.jpg").status == "refused"


def test_a_neighbour_whose_name_begins_alike_is_outside(house):
    (house / "root2").mkdir()
    (house / "root2" / "a.jpg").touch()
    assert PathResolver(house / "root").resolve("../root2/a.jpg").status == "refused"


def test_a_root_behind_a_link_works(house):
    (house / "link").symlink_to(house / "root")
    resolver = PathResolver(house / "link")
    assert resolver.resolve("sub/b.jpg") == ("sub/b.jpg", "ok", "")
    assert resolver.resolve(str(house / "link" / "sub" / "b.jpg")) == ("sub/b.jpg", "ok", "")


@pytest.mark.parametrize("cell", [None, float("nan"), 5, 5.5, True, b"a.jpg", [], {}])
def test_cells_that_are_no_text_are_missing(cell, house):
    assert PathResolver(house / "root").resolve(cell).status == "missing"


@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "sub", "a.jpg", "/", "\\", "\0", "x"])).map("/".join)
)
def test_any_text_stays_inside(tmp_path_factory, text):
    base = tmp_path_factory.getbasetemp() / "any"
    (base / "root" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("root/a.jpg", "root/x", "x", "a.jpg"):
        (base / name).touch()
    found = PathResolver(base / "root").resolve(text)
    if found.status == "ok":
        assert (base / "root" / found.path).resolve().is_relative_to((base / "root").resolve())
    else:
        assert found.message


def test_roots_must_be_folders(house):
    with pytest.raises(UsageError, match=r"root .* is not an existing folder"):
        PathResolver(house / "no")
    with pytest.raises(UsageError, match="permitted root"):
        PathResolver(house / "root", [house / "secret.jpg"])


def listed(folder, **options):
    return {found.path: found.status for found in find_images(folder, PathResolver(folder), **options)}


def test_folders_are_listed_in_natural_order(tmp_path):
    names = ["img10.jpg", "img9.JPG", "IMG1.png", "b/2.tif", "b/10.webp", "b2/1.heic", "a.jpeg", ".x.jpg", ".h/a.jpg",
             "n.txt", "x.jpg.txt", "noext", "b/c/d.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a.jpeg", "b/2.tif", "b/10.webp", "b/c/d.jpg", "b2/1.heic", "IMG1.png", "img9.JPG", "img10.jpg"]
    assert list(listed(tmp_path)) == expected
    assert list(listed(tmp_path, recursive=False)) == ["a.jpeg", "IMG1.png", "img9.JPG", "img10.jpg"]


@given(st.lists(st.text(alphabet="a1B0²٣/_", max_size=8)))
def test_natural_keys_compare_whatever_they_are_made_of(names):
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def _as_lists(path):
    """The order that natural keys stand for: text, number, text, ..., part by part of the path."""
    parts = []
    for part in path.split("/"):
        pieces = re.split("([0-9]+)", part.casefold())
        parts.append([int(piece) if index % 2 else piece for index, piece in enumerate(pieces)])
    return parts, path


@settings(max_examples=40)
@given(st.lists(st.from_regex(r"[aAbB019²٣._\x01-]{1,6}(/[aB019._-]{1,5}){0,2}", fullmatch=True), max_size=9))
def test_natural_keys_sort_numbers_as_numbers(names):
    assert sorted(names, key=natural_key) == sorted(names, key=_as_lists)


def test_natural_keys_of_long_numbers():
    names = ["a" + "9" * 30, "a1" + "0" * 30, "a0001", "a1", "a", "a1b", "a/1", "a1/b"]
    assert sorted(names, key=natural_key) == sorted(names, key=_as_lists) != sorted(names)


def test_links_in_folders(house):
    lay_traps(house)
    (house / "root" / "again").symlink_to(house / "root")  # a loop of folders
    (house / "root" / "same").symlink_to(house / "root" / "sub")
    statuses = listed(house / "root")
    assert statuses["outdir"] == "refused"
    assert statuses["out.jpg"] == statuses["chain.jpg"] == statuses["pipe.jpg"] == "refused"
    assert statuses["dangling.jpg"] == "missing"
    assert [path for path, status in statuses.items() if status == "ok"] == ["a.jpg", "sub/b.jpg"]
    permitted = find_images(house / "root", PathResolver(house / "root", [house / "elsewhere"]))
    assert ("outdir/secret.jpg", "ok", "") in permitted


def test_strange_names_keep_their_row(tmp_path):
    for name in (b"\xff.jpg", b"a\nb.jpg", b" .jpg", b"-rf.jpg", "ü$(x)`'\"<img>.jpg".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    statuses = listed(tmp_path)
    assert len(statuses) == 5
    assert sorted(statuses.values()) == ["ok"] * 4 + ["refused"]
    for path in statuses:
        path.encode("utf-8")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert listed(tmp_path) == {"closed": "unreadable"}
    with pytest.raises(BadInputError, match="cannot be listed"):
        find_images(tmp_path / "closed", PathResolver(tmp_path))
