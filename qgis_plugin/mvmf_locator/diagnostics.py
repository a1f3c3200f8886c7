# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report of a fault needs, as Markdown without the names of people. Pure Python: no qgis."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_HOMES = re.compile(r"(?i)([a-z]:)?[\\/]+(?:home|users)[\\/]+[^\\/\s\"'<>|:;,)\]]+(?: [^\\/\s\"'<>|:;,)\]]+(?=[\\/]))*")


def redacted(text: str, home: str | None = None) -> str:
    """Write ~ for every home folder: the user's own wherever it lies, and whatever looks like one."""
    home = os.path.expanduser("~") if home is None else home
    own = {home, home.replace("\\", "/"), home.replace("/", "\\")}
    for each in sorted(own, key=len, reverse=True):
        if len(each.strip("\\/")) > 1:
            text = re.sub(re.escape(each.rstrip("\\/")) + r"(?![^\\/\s\"'<>|:;,)\]])", "~", text, flags=re.IGNORECASE)
    return _HOMES.sub("~", text)


def markdown(facts: Mapping[str, Any], *, home: str | None = None) -> str:
    """Write facts as a list that can be pasted into an issue; no value can end the block that it stands in."""
    lines = [f"{name}: {_one_line(value)}" for name, value in facts.items()]
    body = redacted("\n".join(lines), home).replace("```", "'''")
    return f"### Geo MvMF diagnostics\n\n```text\n{body}\n```\n"


def _one_line(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split())
