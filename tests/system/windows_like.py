"""Make this Python as much like one on Windows as can be on Linux, then run a script; not a test itself.

What Windows has not is taken away (fcntl, fork, O_CLOEXEC, ...), its lock of msvcrt is put in place, and what it
refuses is refused: opening a folder, flushing what was opened for reading, and renaming, replacing or removing a file
that this process has open or mapped, or a folder with such a file. Paths, and what libraries of C do, stay as they are.

Usage: python -X warn_default_encoding windows_like.py few|all SCRIPT [ARGUMENT ...]; few or all libraries are begun
before, as they are, for what they do on Windows is their own affair.
"""

import contextlib
import errno
import importlib
import os
import runpy
import shutil
import signal
import sys
import tempfile
import types
import warnings
from pathlib import Path

ABSENT_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios")
ABSENT = {
    os: "O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC chown fchmod fork forkpty getegid geteuid getgid "
    "getloadavg getpgid getpgrp getuid killpg mkfifo nice pidfd_open posix_fadvise posix_fallocate register_at_fork "
    "sched_getaffinity setsid statvfs sysconf wait3 wait4",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGUSR1 SIGXFSZ alarm pthread_kill pthread_sigmask setitimer "
    "sigwait",
}
FEW = "click ctypes json multiprocessing.connection platform queue subprocess"
ALL = (
    "PIL.Image asyncio concurrent.futures.process dask.array geopandas h5netcdf h5py matplotlib.pyplot "
    "multiprocessing.popen_spawn_posix pyarrow pyogrio pyproj rasterio.shutil rasterio.warp safetensors.numpy "
    "scipy.optimize scipy.sparse scipy.spatial shapely torch torchvision uuid xarray"
)


def become_windows(libraries):
    """Change this process for good."""
    with warnings.catch_warnings(action="ignore", category=EncodingWarning):
        import fcntl as kernel

        for name in libraries.split():
            importlib.import_module(name)
    for name in ABSENT_MODULES:
        sys.modules[name] = None
    for module, names in ABSENT.items():
        for name in names.split():
            delattr(module, name)
    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking_by(kernel), LK_UNLCK=0, LK_NBLCK=2)
    os.open, os.fsync, os.kill = opening_by(os.open), flushing_by(kernel, os.fsync), kill
    os.unlink, os.remove, os.rmdir = [refusing(of, 1) for of in (os.unlink, os.remove, os.rmdir)]
    os.rename, os.replace = [refusing(of, 2) for of in (os.rename, os.replace)]
    shutil._use_fd_functions = False  # for folders that are opened
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # as tempfile itself does where open files keep their names
    sys.platform = "win32"
    warnings.filterwarnings("error", category=EncodingWarning, module="geo_mvmf")  # unnamed, it is that of the country


def locking_by(kernel):
    def locking(descriptor, mode, size):
        try:
            kernel.flock(descriptor, kernel.LOCK_EX | kernel.LOCK_NB if mode else kernel.LOCK_UN)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    return locking


def opening_by(system):
    def open_file(path, flags, mode=0o777):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system(path, flags, mode)

    return open_file


def flushing_by(kernel, system):
    def flush(descriptor):
        if kernel.fcntl(descriptor, kernel.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        system(descriptor)

    return flush


def kill(process, number):
    raise AssertionError(f"os.kill({process}, {number}): on Windows an end, or an event of a console")


def refusing(system, paths_at_first):
    def checked(*paths, **more):
        for path in paths[:paths_at_first]:
            if held := files_in_use() & files_of(Path(path)):
                raise PermissionError(errno.EACCES, f"The file is in use: {held}", str(path))
        return system(*paths, **more)

    return checked


def files_in_use():
    """What this process has open or mapped: (device, inode) of each."""
    opened = list(Path("/proc/self/fd").iterdir())
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    mapped = {line[line.index("/") :] for line in lines if "/" in line}
    return {found for name in (*opened, *mapped) for found in file_of(Path(name))}


def files_of(path):
    """A file that is no link, or the files of a folder."""
    if path.is_symlink():
        return set()
    return {found for each in (path, *path.rglob("*")) if each.is_file() for found in file_of(each)}


def file_of(path):
    with contextlib.suppress(OSError):
        found = path.stat()
        yield found.st_dev, found.st_ino


if __name__ == "__main__":
    become_windows(FEW if sys.argv[1] == "few" else f"{FEW} {ALL}")
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
