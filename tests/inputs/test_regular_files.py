"""The gate of every foreign file: what is no regular file is refused, and the content decides what it is."""

import os
import socket
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import BadInputError, ImageError
from geo_mvmf.inputs import regular_files

KINDS = {
    "jpeg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "tiff": b"II*\x00",
    "heif": b"\x00\x00\x00\x18ftypheic",
    "sqlite": b"SQLite format 3\x00",
    "parquet": b"PAR1",
    "json": b' \r\n{"type": 1}',
    "xml": b"\xef\xbb\xbf <VRTDataset/>",
    "text": b"path,longitude\r\na.jpg,7\r\n",
    "unknown": b"\x80\x04\x95pickle",
}


@pytest.mark.parametrize(("kind", "content"), KINDS.items())
def test_content_decides_whatever_the_name(kind, content, tmp_path):
    for name in ("a.jpg", "a.gpkg", "a"):
        path = tmp_path / name
        path.write_bytes(content)
        assert regular_files.sniff(path) == kind


@given(st.binary(max_size=64))
def test_sniffing_has_an_answer_for_any_bytes(head):
    assert regular_files.sniff_bytes(head) in KINDS


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
def test_any_text_without_markup_is_text(text):
    kind = regular_files.sniff_bytes(text.encode())
    first = text.lstrip()[:1].lstrip("\ufeff")
    assert kind == "text" or first in tuple("<{[") or not first


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("http://127.0.0.1/a.jpg", "refused"),
        ("HTTPS://x/a.jpg", "refused"),
        ("file:///etc/passwd", "refused"),
        ("zip+s3://x/a", "refused"),
        ("/vsicurl/http://127.0.0.1/a.jpg", "refused"),
        ("/VSIZIP/a.zip/b.jpg", "refused"),
        ("a\0.jpg", "refused"),
        ("/dev/null", "refused"),
        ("/dev/zero", "refused"),
        ("/", "refused"),
        ("", "missing"),
        ("GTIFF_DIR:1:nothing.tif", "missing"),
        ("nothing.jpg", "missing"),
        ("/etc/passwd/a.jpg", "missing"),
        ("x" * 5000, "unreadable"),
    ],
)
def test_what_is_no_existing_regular_file_is_refused_by_both_doors(path, status):
    for door in (regular_files.check_regular_file, regular_files.open_regular_file, regular_files.sniff):
        with pytest.raises(ImageError) as caught:
            door(path)
        assert caught.value.status == status
        assert isinstance(caught.value, BadInputError)
        assert len(str(caught.value)) < 600


def test_a_driver_prefix_loses_its_meaning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("GTIFF_DIR:1:a.tif").write_bytes(b"II*\x00")
    checked = regular_files.check_regular_file("GTIFF_DIR:1:a.tif", suffixes=(".tif",))
    assert checked.is_absolute()
    assert not str(checked).startswith("GTIFF_DIR")


def test_suffixes_are_compared_without_case(tmp_path):
    path = tmp_path / "A.TIF"
    path.write_bytes(b"II*\x00")
    assert regular_files.check_regular_file(path, suffixes=(".tif",)) == path
    with pytest.raises(ImageError, match=r"'\.TIF' is not one of \.png"):
        regular_files.check_regular_file(path, suffixes=(".png",))


def _within(seconds, call):
    """Run a call that must not hang; give what it raised."""
    caught: list[BaseException] = []

    def run():
        try:
            call()
        except ImageError as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "hangs"
    return caught[0]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    for door in (regular_files.check_regular_file, regular_files.open_regular_file, regular_files.sniff):
        assert _within(5, lambda door=door: door(tmp_path / "x.jpg")).status == "refused"


def test_broken_twin_a_plain_open_waits_for_the_pipe(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    thread = threading.Thread(target=lambda: open(tmp_path / "x.jpg", "rb").close(), daemon=True)  # noqa: PTH123  the twin
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    os.close(os.open(tmp_path / "x.jpg", os.O_WRONLY | os.O_NONBLOCK))  # release it
    thread.join(5)


def test_sockets_links_and_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.jpg")
        Path("loop.jpg").symlink_to("loop.jpg")
        Path("dangling.jpg").symlink_to("nowhere.jpg")
        Path("pipe.jpg").symlink_to("pipe")
        os.mkfifo("pipe")
        for name, status in {"s": "refused", "loop": "refused", "dangling": "missing", "pipe": "refused"}.items():
            with pytest.raises(ImageError) as caught:
                regular_files.open_regular_file(f"{name}.jpg")
            assert caught.value.status == status


@pytest.fixture
def house(tmp_path):
    """A permitted folder and a secret beside it."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "inside" / "a.jpg").write_text("photo")
    return tmp_path


def test_links_may_not_leave_the_permitted_folders(house):
    (house / "inside" / "out.jpg").symlink_to(house / "secret.txt")
    (house / "inside" / "in.jpg").symlink_to(house / "inside" / "a.jpg")
    with regular_files.open_regular_file(house / "inside" / "in.jpg", inside=[house / "inside"]) as file:
        assert file.read() == b"photo"
    for path in (house / "inside" / "out.jpg", house / "inside" / ".." / "secret.txt"):
        with pytest.raises(ImageError, match="outside the permitted folders"):
            regular_files.open_regular_file(path, inside=[house / "inside"])


def _exchange_while_opening(monkeypatch, house, opened=os.open):
    """Put a link to the secret in the photo's place for the moment of opening, and the photo back."""
    photo, aside = house / "inside" / "a.jpg", house / "inside" / "aside"

    def exchanged(path, flags, *rest):
        photo.rename(aside)
        photo.symlink_to(house / "secret.txt")
        descriptor = opened(path, flags, *rest)
        photo.unlink()
        aside.rename(photo)
        return descriptor

    monkeypatch.setattr(os, "open", exchanged)


def test_an_exchange_between_check_and_open_is_noticed(house, monkeypatch):
    _exchange_while_opening(monkeypatch, house)
    with pytest.raises(ImageError, match="exchanged"):
        regular_files.open_regular_file(house / "inside" / "a.jpg", inside=[house / "inside"])


def test_broken_twin_checking_the_name_only_gives_the_secret_away(house, monkeypatch):
    _exchange_while_opening(monkeypatch, house)
    path = house / "inside" / "a.jpg"
    assert path.resolve().is_relative_to(house / "inside")  # the check of the twin passes
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
        assert file.read() == b"secret"


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_as_a_path_gives_an_answer(text):
    try:
        found = regular_files.check_regular_file(text)
    except ImageError:
        return
    assert found.is_file()


def test_descriptors_are_not_leaked(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    before = psutil.Process().num_fds()
    for _ in range(20):
        with pytest.raises(ImageError):
            regular_files.open_regular_file(tmp_path / "a.jpg", inside=[tmp_path / "other"])
    assert psutil.Process().num_fds() <= before + 1
