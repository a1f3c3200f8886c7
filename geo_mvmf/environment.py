"""What this installation is made of: Python, libraries, devices.

torch is asked in a process of its own, so that a broken installation is a line of the answer and not a crash.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys

from geo_mvmf import __version__

PROTOCOL = 1
_TORCH = (
    "import ctypes, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9)\n"  # ends with whoever asks
    "import json, torch; n = torch.cuda.device_count(); used = 'eager'\n"
    "if n:\n"  # else there is no choice
    "    from geo_mvmf.model import epilogue_choice; used = epilogue_choice.current()\n"
    "print(json.dumps([torch.__version__, "
    "['cpu'] + [f'cuda:{i} {torch.cuda.get_device_name(i)}' for i in range(n)], used]))"
)


def describe() -> dict[str, object]:
    """Describe the installation.

    Returns
    -------
    dict
        python, executable, geo_mvmf, protocol, torch, devices, epilogues (what does the losses' element-wise work on
        CUDA), gdal, proj and the versions of the main libraries; what is missing is said in its place.

    Examples
    --------
    >>> describe()["geo_mvmf"] == __version__
    True
    """
    torch, devices, epilogues = _torch()
    libraries = {
        name: _version(name) for name in ("torchvision", "geopandas", "rasterio", "pyogrio", "xarray", "pyarrow")
    }
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "geo_mvmf": __version__,
        "protocol": PROTOCOL,
        "torch": torch,
        "devices": devices,
        "epilogues": epilogues,
        "gdal": _native("rasterio", "__gdal_version__"),
        "proj": _native("pyproj", "__proj_version__"),
        **libraries,
    }


def _torch() -> tuple[str, list[str], str]:
    command = [sys.executable, "-X", "utf8", "-I", "-c", _TORCH]
    try:
        done = subprocess.run(  # noqa: S603 (fixed)
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be asked: {error}", [], "unknown"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"not usable: {reason}", [], "unknown"
    version, devices, epilogues = json.loads(done.stdout)
    return version, devices, epilogues


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _native(module: str, attribute: str) -> str:
    try:
        return str(getattr(importlib.import_module(module), attribute))
    except (ImportError, OSError) as error:
        return f"not usable: {error}"
