"""Threads that compute the answers of the HTTP service.

On a CPU each thread computes on one recording at a time: batches of several are no faster
(`benchmarks/serve_load.py`). A GPU takes all that wait for the same task as one batch.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from eat_audio.app.tasks import LoadedClip, Task
from eat_audio.app.uploads import Upload
from eat_audio.errors import AudioError
from eat_audio.inference.batches import DEADLINE
from eat_audio.inference.predictor import BATCH_OF_GPU, Predictor
from eat_audio.inference.reading import reader_count

GPU_THREADS = 2
"""One decodes while the other computes."""


@dataclass(frozen=True)
class Job:
    """An upload that a task is to be done on."""

    task: Task
    upload: Upload
    deadline: float
    """Reading of `time.monotonic`."""
    answer: "Future[bytes]" = field(default_factory=Future)
    """JSON."""


class Workers:
    """Threads with a queue of jobs; what bounds its length is up to the caller.

    Args:
        predictor: Its `workers` are the threads of a CPU.
        seconds: The longest recording.
    """

    def __init__(self, predictor: Predictor, seconds: float) -> None:
        self.predictor = predictor
        self.seconds = seconds
        on_cpu = predictor.device.type == "cpu"
        self.batch = 1 if on_cpu else BATCH_OF_GPU
        self.readers = None if on_cpu else ThreadPoolExecutor(reader_count(predictor.device))
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        count = predictor.workers if on_cpu else GPU_THREADS
        self.threads = [Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Let a job be done when its turn comes."""
        self.queue.put(job)

    def close(self) -> None:
        """Do what waits, and end the threads."""
        for _ in self.threads:
            self.queue.put(None)
        for thread in self.threads:
            thread.join()
        if self.readers is not None:
            self.readers.shutdown()

    def _work(self) -> None:
        while (job := self.queue.get()) is not None:
            jobs = [job]
            while len(jobs) < self.batch:
                try:
                    following = self.queue.get_nowait()
                except Empty:
                    break
                if following is None:
                    self.queue.put(None)
                    break
                jobs.append(following)
            self._do(jobs)

    def _do(self, jobs: list[Job]) -> None:
        """Answer some jobs; those whose time is over are dropped."""
        current = []
        for job in jobs:
            if job.answer.set_running_or_notify_cancel() and time.monotonic() < job.deadline:
                current.append(job)
            else:
                job.upload.file.close()
                if not job.answer.cancelled():
                    job.answer.set_exception(TimeoutError())
        loaded = self.readers.map(self._load, current) if self.readers else map(self._load, current)
        by_task: dict[Task, list[tuple[Job, LoadedClip]]] = {}
        for job, clip in zip(current, loaded, strict=True):
            if isinstance(clip, LoadedClip):
                by_task.setdefault(job.task, []).append((job, clip))
            else:
                job.answer.set_exception(clip)
        for task, pairs in by_task.items():
            self._compute(task, pairs)

    def _load(self, job: Job) -> LoadedClip | Exception:
        try:
            return job.upload.load(self.seconds)
        except Exception as error:  # of this upload alone: a bug is logged where it is awaited
            return error

    def _compute(self, task: Task, pairs: Iterable[tuple[Job, LoadedClip]]) -> None:
        jobs, clips = zip(*pairs, strict=True)
        token = DEADLINE.set(max(job.deadline for job in jobs))
        remaining = iter(jobs)
        try:
            for answer in task.answers(self.predictor, clips):
                text = "" if isinstance(answer, AudioError) else answer.model_dump_json()
                job = next(remaining)
                if isinstance(answer, AudioError):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(text.encode())
        except Exception as error:  # the thread goes on: a bug is logged where it is awaited
            for job in remaining:
                job.answer.set_exception(error)
        finally:
            DEADLINE.reset(token)
