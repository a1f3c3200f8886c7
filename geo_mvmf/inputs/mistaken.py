"""What a file is, in words: for messages to somebody who gave it in place of another."""

from __future__ import annotations

import os
from pathlib import Path

from geo_mvmf.inputs.regular_files import open_regular_file, sniff_bytes

HEAD_BYTES = 4096
PREDICTIONS = "a NetCDF-4 (HDF5) file, as predictions are"
BUNDLE = "a .safetensors file, as bundles are"
_KINDS = {
    "tiff": "a TIFF",
    "sqlite": "a GeoPackage (SQLite)",
    "parquet": "a Parquet table",
    "json": "JSON",
    "xml": "XML",
    "text": "text",
} | dict.fromkeys(("jpeg", "png", "webp", "heif"), "a picture")


def in_words(path: str | os.PathLike[str]) -> str:
    """Tell what a file is by its first bytes.

    Parameters
    ----------
    path : path
        An existing regular file.

    Returns
    -------
    str
        Empty where they say nothing.

    Raises
    ------
    ImageError
        As `regular_files.open_regular_file`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.nc"
    >>> _ = path.write_text("Notes on photos")
    >>> in_words(path)
    'text'
    """
    with open_regular_file(path) as file:
        return words_of(file.read(HEAD_BYTES))


def words_of(head: bytes) -> str:
    """Tell what a file is; see `in_words`.

    Parameters
    ----------
    head : bytes
        The first `HEAD_BYTES`, or the whole file.

    Examples
    --------
    >>> words_of(b"%PDF-1.7" + bytes(8)), words_of(b"path,longitude,latitude")
    ('', 'text')
    """
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return PREDICTIONS
    if 2 < int.from_bytes(head[:8], "little") < 1 << 27 and head[8:9] == b"{":
        return BUNDLE
    return _KINDS.get(sniff_bytes(head), "")


def folder_with(path: str | os.PathLike[str], name: str) -> str:
    """Tell that somebody gave a folder in place of the file in it.

    Parameters
    ----------
    path : path
    name : str
        Of the file, as our commands call it; without one the only file with its suffix will do, but for checkpoints,
        hidden files and any TOML, which many programs write.

    Returns
    -------
    str
        Empty where there is no such file, or it is no folder.

    Examples
    --------
    >>> folder_with("/no/such/album", "predictions.nc")
    ''
    """
    inside = Path(path) / name
    found = [inside] if inside.is_file() else []
    if not found and inside.suffix != ".toml":
        others = Path(path).glob(f"*{inside.suffix}")
        found = [file for file in others if not file.name.startswith((".", "checkpoint-"))]
    return f"{path} is a folder; {found[0]} lies in it" if len(found) == 1 else ""
