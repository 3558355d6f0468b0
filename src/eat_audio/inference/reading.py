"""Read recordings, or compute on them, ahead in threads: both leave Python's lock alone."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from queue import Full, Queue, SimpleQueue
from typing import TypeVar

import torch

MAX_READERS = 16
"""More threads wait for Python's lock."""
INPUTS_AHEAD, ITEMS_AHEAD = 4, 8
"""Most inputs per thread that are open or wait, and items of each."""
POLL_SECONDS = 0.1
"""How often a thread that waits checks whether it is still needed."""

Input = TypeVar("Input")
Item = TypeVar("Item")


def reader_count(device: torch.device) -> int:
    """Return how many threads read for a model: none if it has one core of a CPU, else one.

    A GPU is fed by all cores but one, up to `MAX_READERS`.
    """
    if device.type != "cpu":
        return max(1, min((os.cpu_count() or 2) - 1, MAX_READERS))
    return int(os.cpu_count() != 1 and os.environ.get("OMP_NUM_THREADS") != "1")


def read_ahead(
    inputs: Iterable[Input], read: Callable[[Input], Iterator[Item]], *, threads: int
) -> Iterator[Item]:
    """Yield the items of every input, in order, while threads make the next ones.

    Args:
        inputs: Taken as they are needed.
        read: Return the items of one input.
        threads: How many inputs are read at a time; 0: each when its turn comes.
    """
    if not threads:
        for audio in inputs:
            yield from read(audio)
        return
    ended = threading.Event()
    tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    # not an executor's threads: what is left of these does not hold up the end of the process
    readers = [threading.Thread(target=_work, args=(tasks,), daemon=True) for _ in range(threads)]
    for reader in readers:
        reader.start()
    queues: deque[Queue[Item | _End]] = deque()
    remaining = iter(inputs)
    try:
        while True:
            while len(queues) < INPUTS_AHEAD * threads:
                try:
                    audio = next(remaining)
                except StopIteration:
                    break
                queue: Queue[Item | _End] = Queue(ITEMS_AHEAD)
                tasks.put(partial(copy_context().run, _fill, queue, read, audio, ended))
                queues.append(queue)
            if not queues:
                return
            yield from _items(queues.popleft())
    finally:
        ended.set()
        for _ in readers:
            tasks.put(None)
        for reader in readers:
            reader.join()


def _work(tasks: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (task := tasks.get()) is not None:
        task()


class _End:
    """The end of an input, with an exception that is to be raised where the items are used."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _fill(
    queue: "Queue[Item | _End]",
    read: Callable[[Input], Iterator[Item]],
    audio: Input,
    ended: threading.Event,
) -> None:
    """Put the items of an input into its queue, until `ended`."""
    try:
        for item in () if ended.is_set() else read(audio):
            _put(queue, item, ended)
            if ended.is_set():
                return
        _put(queue, _End(), ended)
    except BaseException as error:
        _put(queue, _End(error), ended)


def _put(queue: "Queue[Item | _End]", item: "Item | _End", ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            return queue.put(item, timeout=POLL_SECONDS)
        except Full:
            pass


def _items(queue: "Queue[Item | _End]") -> Iterator[Item]:
    while not isinstance(item := queue.get(), _End):
        yield item
    if item.error is not None:
        raise item.error
