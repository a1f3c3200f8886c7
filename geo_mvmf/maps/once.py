"""What depends on the components alone, made once for all images: found again by content, in any thread."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Made = TypeVar("Made")


class OncePerComponents(Generic[Made]):
    """A function of components that remembers what it made last.

    Every batch, and every thread's share of it, comes with a mixture of its own over equal components, so they are
    told apart by content; arrays that cannot be written to are known again without a look at their content, and what is
    made of them stays when something has to go that is of components of a few images alone. A lock is held while
    something is made: threads that ask for the same wait for it, where `functools.lru_cache` would let each make its
    own.

    Parameters
    ----------
    make : callable
        From mean directions (C, 3) and log concentrations (C,) to anything; it must not change them.
    kept : int
        Results that are remembered, at least 1; of those that need not stay, the one not asked for longest goes first.

    Examples
    --------
    >>> count = OncePerComponents(lambda directions, concentrations: [len(directions)])
    >>> first, second = (count(np.eye(3), np.zeros(3)) for _ in range(2))
    >>> first, first is second
    ([3], True)
    """

    def __init__(self, make: Callable[[FloatArray, FloatArray], Made], *, kept: int = 2) -> None:
        self._make, self._kept = make, kept
        self._made: OrderedDict[bytes, Made] = OrderedDict()
        self._lasting: set[bytes] = set()
        self._lock = threading.Lock()
        self._last: tuple[tuple[weakref.ref[FloatArray], ...], bytes] = ((), b"")

    def __call__(self, mean_directions: FloatArray, log_concentrations: FloatArray) -> Made:
        """Give what belongs to these components, made now or before.

        Parameters
        ----------
        mean_directions : ndarray of float64, shape (C, 3)
            Unit vectors.
        log_concentrations : ndarray of float64, shape (C,)
            Natural logarithms of kappa.

        Returns
        -------
        object
            The same one for all who ask: it must not be changed.
        """
        key = self._digest(mean_directions, log_concentrations)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(mean_directions, log_concentrations)
            self._made.move_to_end(key)
            if _is_fixed(mean_directions, log_concentrations):
                self._lasting.add(key)
            found = self._made[key]
            while len(self._made) > self._kept:
                goes = next((each for each in self._made if each not in self._lasting), next(iter(self._made)))
                del self._made[goes]
                self._lasting.discard(goes)
            return found

    def _digest(self, *components: FloatArray) -> bytes:
        """Digest of the content; of arrays that nobody can change the one that was taken before."""
        known, digest = self._last
        if all(one is other() for one, other in zip(components, known, strict=False)) and known:
            return digest
        digest = hashlib.blake2b(b"".join(array.tobytes() for array in components)).digest()
        if _is_fixed(*components):
            self._last = tuple(map(weakref.ref, components)), digest  # at once, for whichever thread reads it next
        return digest


def _is_fixed(*components: FloatArray) -> bool:
    """Tell whether nobody can change these arrays."""
    return not any(array.flags.writeable or array.base is not None for array in components)
