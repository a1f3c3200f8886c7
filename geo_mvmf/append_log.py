"""Logs of one JSON object a line; a killed process costs its last line at most."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geo_mvmf import durable
from geo_mvmf.errors import ImageError, OutputError
from geo_mvmf.inputs.regular_files import check_regular_file


class AppendLog:
    r"""A log of one JSON object a line, appended and flushed line by line.

    Parameters
    ----------
    path : path
        Made when missing. A half-written last line (of a killed process) is cut off first.

    Raises
    ------
    OutputError
        If the file cannot be made or opened for writing, or what has its name is no regular file: a pipe would be
        waited for.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> with AppendLog(path) as log:
    ...     log.write({"step": 1})
    >>> path.read_text()
    '{"step": 1}\n'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with durable.output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _check_kind(self.path)
            _cut_half_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system.

        Parameters
        ----------
        record : mapping
            JSON-able values.

        Raises
        ------
        OutputError
            If the disk refuses.
        """
        with durable.output_errors(self.path):
            self._file.write(json.dumps(dict(record), ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_kind(path: Path) -> None:
    if not path.exists():
        return
    try:
        check_regular_file(path)
    except ImageError as error:
        raise OutputError(f"{error}, and a log cannot be kept in it: move it away, or choose another folder") from error


def _cut_half_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            file.truncate(end)
