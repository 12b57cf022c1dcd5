"""Read clips ahead of the one who uses them: several at once, in order, never more than a few in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(
    sources: Iterable[S], read: Callable[[S], T], *, workers: int = 4, ahead: int = 8
) -> Iterator[tuple[S, Future[T]]]:
    """Apply `read` to each source in threads (decoders release Python's lock) and give the results in order.

    Args:
        sources: taken one by one, only when they can be started.
        read: for instance `partial(read_clip, count=16, threads=1)`.
        workers: threads.
        ahead: sources started and not yet handed over, the one that is waited for included.

    Yields:
        (source, finished future): `future.result()` is what `read` returned, or raises what it raised for this source.

    Example:
        >>> for path, clip in read_ahead(paths, partial(read_clip, count=16, threads=1)):
        ...     frames = clip.result().frames
    """
    if workers < 1 or ahead < 1:
        raise ValueError(f"{workers} workers, {ahead} ahead; expected 1 or more")
    pending: deque[tuple[S, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read_ahead")
    try:
        for source in sources:
            pending.append((source, pool.submit(read, source)))
            if len(pending) == ahead:
                yield _finished(pending)
        while pending:
            yield _finished(pending)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(pending: deque[tuple[S, Future[T]]]) -> tuple[S, Future[T]]:
    source, future = pending.popleft()
    future.exception()  # waits
    return source, future
