"""Prediction on a Dask cluster: its workers make the parts, this process asks for them and writes them.

A part is a pure function of rows of the image table and of a bundle, so whatever becomes of a worker, another one can
make its parts again. Workers read images and the bundle by the paths they have here (a shared disk) and write nothing:
parts come back through Dask, because one process alone holds the folder they go into, and its disk may be nobody
else's. docs/distributed.md says how to start a cluster and what is promised.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import queue
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geo_mvmf import __version__, prediction_folder, progress
from geo_mvmf.errors import BadBundleError, DeviceError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import tables
from geo_mvmf.prediction_folder import Made, Make, Part
from geo_mvmf.prediction_parts import Predictor
from geo_mvmf.progress import CancelledError, Progress

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 8.0
"""So long a scheduler has to answer."""

TRIES = 3
"""How often a part is asked for whose workers died: each time Dask itself gives it to several."""

_TICK_SECONDS = 1.0  # so long nothing is heard before the cluster is looked at again
_FETCH_SECONDS = 60.0  # so long a part has to arrive; its worker may have died, and another one is making it again
_CLOSE_SECONDS = 2.0
_AHEAD = 2  # parts asked for per thread of the cluster: the next is there when one is finished

_loading = threading.Lock()


@contextlib.contextmanager
def cluster(dask: str | Client, device: str = "auto") -> Iterator[Make]:
    """Connect to a Dask cluster, to make parts there.

    Parameters
    ----------
    dask : str or distributed.Client
        Address of the scheduler, such as "tcp://host:8786", or a client, which stays open.
    device : str
        Where each worker computes, as `model.bundle.load_bundle` takes it.

    Yields
    ------
    Make
        What `predicting.predict_job` makes parts with.

    Raises
    ------
    UsageError
        If the extra is not installed, or `dask` is neither address nor client.
    DeviceError
        If no scheduler answers within `CONNECT_SECONDS`.

    Examples
    --------
    >>> with cluster("tcp://127.0.0.1:1") as make:  # doctest: +SKIP
    ...     predictions = None
    """
    client, is_ours = _client(dask)
    try:
        yield functools.partial(_make, client=client, device=device)
    finally:
        if is_ours:
            with contextlib.suppress(OSError):  # a scheduler that is gone
                client.close(timeout=_CLOSE_SECONDS)


def predict_part(request: Mapping[str, Any]) -> tuple[pd.DataFrame, stores.Pruned] | None:
    """Make one part, in a worker.

    Parameters
    ----------
    request : mapping
        As `_request` makes it.

    Returns
    -------
    (rows, pruned), or None
        As `Predictor.part`; None where nobody wants it any more.

    Raises
    ------
    DeviceError, BadBundleError
        If this worker has another geo_mvmf or another bundle than the process that asks.

    Examples
    --------
    >>> predict_part({"version": "0.0.1"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    geo_mvmf.errors.DeviceError: worker here has geo_mvmf ..., not 0.0.1, ...
    """
    if request["version"] != __version__:
        raise DeviceError(
            f"worker {_own_address()} has geo_mvmf {__version__}, not {request['version']}, which asks for parts: "
            "install the same version everywhere"
        )
    with _loading:  # once, however many threads the worker has
        shared = _predictor(**request["predictor"])
    table = request["table"]
    table.attrs |= request["attrs"]
    job = shared.of(table, has_truth=request["has_truth"]).part(0, len(table))
    try:
        return progress.run(job, lambda _: _check_wanted(request["key"]))
    except CancelledError:
        return None


@functools.lru_cache(maxsize=2)
def _predictor(
    path: str,
    digest: str,
    device: str,
    estimator: str,
    radius_km: float | None,
    batch_size: int,
    workers: int,
) -> Predictor:
    """Load a bundle once for all parts that a worker makes with it."""
    from geo_mvmf.model.bundle import load_bundle

    try:
        bundle = load_bundle(path, device)
    except BadBundleError as error:
        raise BadBundleError(
            f"worker {_own_address()}: {error}; workers open a bundle by the path it has here"
        ) from error
    if bundle.digest != digest:
        raise BadBundleError(
            f"worker {_own_address()}: {path} has digest {bundle.digest[:12]}, not {digest[:12]}: it is another bundle "
            "there, or was replaced meanwhile"
        )
    return Predictor(bundle, pd.DataFrame(), estimator, batch_size, workers, radius_km)


def _check_wanted(key: str) -> None:
    """Stop between batches once Dask has taken the task back: somebody cancelled, or the client is gone."""
    from distributed import get_worker

    try:
        task = get_worker().state.tasks.get(key)
    except ValueError:  # called outside of any worker
        return
    if task is None or task.state in ("cancelled", "released", "forgotten"):
        raise CancelledError


def _own_address() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return "here"


def _client(dask: str | Client) -> tuple[Any, bool]:
    """A client, of whose methods half are typed, and whether it is ours to close."""
    try:
        import distributed
    except ImportError as error:
        raise UsageError('prediction on a Dask cluster needs the extra: pip install "geo-mvmf[dask]"') from error
    if isinstance(dask, distributed.Client):
        if dask.asynchronous:
            raise UsageError(f"{dask!r:.80} is asynchronous; give its scheduler's address, {dask.scheduler.address}")
        return dask, False
    if not isinstance(dask, str):
        raise UsageError(f"dask is {dask!r:.80}: the address of a scheduler or a distributed.Client is wanted")
    try:
        _greet(dask)
        return distributed.Client(dask, timeout=CONNECT_SECONDS, set_as_default=False), True
    except (OSError, ValueError, MemoryError) as error:  # MemoryError: something else, whose words are taken for sizes
        raise DeviceError(
            f"{dask!r}: no Dask scheduler answers within {CONNECT_SECONDS:g} s ({_line(error)}); start one with "
            "`dask scheduler`, which prints its address, such as tcp://host:8786"
        ) from error


def _greet(address: str) -> None:
    """Connect and go: a client that reaches nobody cannot be closed for a long time."""
    import distributed
    from distributed import comm

    async def greet() -> None:
        security = distributed.Security().get_connection_args("client")
        found = await comm.connect(address, timeout=CONNECT_SECONDS, **security)
        await found.close()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # ours may have a loop that runs, as in notebooks
        thread.submit(asyncio.run, greet()).result()


def _make(
    predictor: Predictor, missing: Sequence[Part], *, client: Any, device: str
) -> Generator[Progress | Made, None, None]:
    """Ask for parts, a few more than there are threads to make them, and give them as they come."""
    predicted_by = _predicted_by(predictor, device)
    waiting = collections.deque((part, 1) for part in missing)
    asked: dict[str, tuple[Any, Part, int]] = {}
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        while waiting or asked:
            threads = _threads(client)
            while waiting and len(asked) < max(1, _AHEAD * threads):
                part, tries = waiting.popleft()
                request = _request(predictor, part, predicted_by)
                future = client.submit(predict_part, request, key=request["key"], pure=False)
                asked[future.key] = future, part, tries
                future.add_done_callback(finished.put)
            where = client.scheduler.address
            yield Progress("predict", 0, 0, f"{threads} threads at {where}" if threads else f"no worker yet at {where}")
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=_TICK_SECONDS)
                _, part, tries = asked[future.key]
                answer = _answer(future)
                del asked[future.key]
                future.release()
                if answer is None:
                    waiting.appendleft((part, _next_try(tries, predictor, part)))
                    continue
                rows, pruned = answer
                _check_weights(predictor, part, pruned)
                _check_seen(predictor, part, rows)
                yield Progress("predict", 0, 0, failures=prediction_folder.failures(rows))
                yield part, rows, pruned
    finally:
        if asked and client.status == "running":
            with contextlib.suppress(OSError):
                client.cancel([future for future, *_ in asked.values()], force=True)


def _predicted_by(predictor: Predictor, device: str) -> dict[str, Any]:
    """What every worker makes its predictor of."""
    bundle = predictor.bundle
    if bundle.path is None or not bundle.digest:
        raise UsageError(f"{bundle!r}: workers open a bundle by its path; save it with save_bundle and load it again")
    return {
        "path": str(Path(bundle.path).absolute()),
        "digest": bundle.digest,
        "device": device,
        "estimator": predictor.estimator,
        "radius_km": predictor.radius_km,
        "batch_size": predictor.batch_size,
        "workers": predictor.workers,
    }


def _request(predictor: Predictor, part: Part, predicted_by: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": __version__,
        "key": f"geo-mvmf-{uuid.uuid4().hex}",  # another one for each time: a result is wanted by one process alone
        "predictor": dict(predicted_by),
        "table": predictor.table.iloc[part.start : part.stop],
        "attrs": dict(predictor.table.attrs),
        "has_truth": predictor.has_truth,
    }


def _threads(client: Any) -> int:
    """Threads of all workers; 0 while there are none, which a cluster that scales has at first."""
    if client.status == "connecting":  # it was lost, and may come again
        return 0
    try:
        return sum(client.nthreads().values())
    except (OSError, ValueError, AttributeError) as error:
        raise _lost(client, error) from error


def _answer(future: Any) -> tuple[pd.DataFrame, stores.Pruned] | None:
    """What a worker made; None where the part has to be asked for again."""
    from distributed import KilledWorker

    try:
        found: tuple[pd.DataFrame, stores.Pruned] | None = future.result(timeout=_FETCH_SECONDS)
    except (KilledWorker, TimeoutError):
        return None
    except concurrent.futures.CancelledError as error:
        raise _lost(future.client, error) from error
    except (ImportError, RuntimeError) as error:
        if not _is_of_environments(error):  # memory that ran out, a fault of ours: as if it had been in this process
            raise
        raise DeviceError(
            f"a worker or the scheduler at {future.client.scheduler.address} cannot run geo_mvmf {__version__}: "
            f"{_line(error)}; give all of them the same environment"
        ) from error
    return found


def _is_of_environments(error: Exception) -> bool:
    """Tell a worker or scheduler that lacks what a task is made of; Dask says of a scheduler that it cannot read it."""
    return isinstance(error, ImportError) or "deserializ" in str(error).lower()


def _next_try(tries: int, predictor: Predictor, part: Part) -> int:
    if tries == TRIES:
        raise DeviceError(
            f"{TRIES} times all workers died or were lost that were given images {part.start}..{part.stop - 1} of "
            f"{len(predictor.table)}; is their memory too small? Lower the batch size ({predictor.batch_size}) or look "
            "at their logs"
        )
    return tries + 1


def _check_weights(predictor: Predictor, part: Part, pruned: stores.Pruned) -> None:
    """Refuse weights that are not of the components that this process has, before they are written beside them."""
    try:
        stores.check_weights(pruned, part.stop - part.start, predictor.components)
    except ValueError as error:
        raise DeviceError(
            f"a worker sent weights of images {part.start}..{part.stop - 1} that do not fit the bundle's "
            f"{predictor.bundle.num_components} components ({error}); its memory or the network damaged them: predict "
            "again, without that machine"
        ) from error


def _check_seen(predictor: Predictor, part: Part, rows: pd.DataFrame) -> None:
    """Refuse what a worker says of images that it cannot see: they are not missing."""
    table = predictor.table.iloc[part.start : part.stop]
    is_new = (rows["status"] == "missing").to_numpy() & (table["status"] == "ok").to_numpy()
    for path in tables.absolute_paths(table[is_new]):
        if path.exists():
            raise DeviceError(
                f"{path}: is here, but a worker cannot see it; workers read images by the paths they have here: let "
                "all machines mount that folder in the same place"
            )


def _lost(client: Any, error: BaseException) -> DeviceError:
    return DeviceError(
        f"{client.scheduler.address}: the Dask scheduler was lost, or gave up our tasks ({_line(error)}); parts that "
        "are finished are kept, and the same prediction given again goes on from them"
    )


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
