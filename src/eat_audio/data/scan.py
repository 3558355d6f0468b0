"""Many files -> what each of them holds: rate, channels, true length, and which are the same.

In columns, because there may be millions; in threads, because decoding and digesting leave
Python's lock alone.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import AudioFacts, audio_claims, audio_facts, collected_warnings
from eat_audio.errors import AudioError
from eat_audio.progress import track

AT_ONCE = 32
"""Files that wait for each thread; few, so that an interrupt is heard soon."""
CUT = 0.1
"""Seconds that a file may lack of what it claims, before that is worth a word: codecs round."""
DIGEST = 32
"""Hexadecimal digits of the digest (BLAKE2b, 128 bits) by which contents are compared."""


class Files:
    """What is known of each of many files, in columns."""

    def __init__(self, paths: list[str], sizes: NDArray[np.int64]) -> None:
        self.paths = paths
        self.sizes = sizes
        self.samples = np.zeros(len(paths), np.int64)
        self.rates = np.ones(len(paths), np.int32)
        self.channels = np.zeros(len(paths), np.int16)
        self.digests = np.zeros(len(paths), f"S{DIGEST}")
        """Empty where no other file has the same size."""
        self.cut = np.zeros(len(paths), bool)
        self.warned: dict[int, list[str]] = {}
        """What is to be known of those that can be used, where there is something."""
        self.failed: dict[int, str] = {}
        """What is wrong with those that cannot be used."""

    @classmethod
    def of(cls, paths: list[str]) -> "Files":
        """Files of which no more than the size is known."""
        sizes = (os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths)
        return cls(paths, np.fromiter(sizes, np.int64, len(paths)))

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which cannot be used."""
        which = np.zeros(len(self.paths), bool)
        which[list(self.failed)] = True
        return which

    @property
    def sentences(self) -> list[str]:
        """Why, in the order of the files."""
        return [self.failed[number] for number in sorted(self.failed)]

    def read(self, *, quick: bool, jobs: int) -> None:
        """Decode all files, and digest those that have another one's size."""
        _, kinds, times = np.unique(self.sizes, return_inverse=True, return_counts=True)
        alike = times[kinds] > 1
        look = self._ask if quick else self._hear

        def safely(number: int) -> None:
            try:
                self.paths[number].encode()
                with collected_warnings() as messages:
                    look(number)
                if messages and not self.cut[number]:
                    self.warned[number] = messages
                if alike[number] and not quick:
                    self._digest(number)
            except AudioError as error:
                self.failed[number] = str(error)
            except UnicodeEncodeError:
                self.failed[number] = f"{self.paths[number]!r}: its name is not UTF-8 text"
            except OSError as error:
                self.failed[number] = f"{self.paths[number]}: cannot be read ({error.strerror})"

        for _ in track(_by_threads(safely, len(self.paths), jobs), "listen", len(self.paths)):
            pass

    def fail(self, number: int, reason: str) -> None:
        """Note that a file cannot be used after all."""
        self.failed[number] = f"{self.paths[number]}: {reason}"

    def _ask(self, number: int) -> None:
        self._note(number, audio_claims(self.paths[number]))

    def _hear(self, number: int) -> None:
        facts, claims = audio_facts(self.paths[number]), audio_claims(self.paths[number])
        self.cut[number] = facts.seconds < claims.seconds - CUT
        self._note(number, facts)

    def _note(self, number: int, facts: AudioFacts) -> None:
        self.samples[number] = facts.samples
        self.rates[number] = facts.rate
        self.channels[number] = facts.channels

    def _digest(self, number: int) -> None:
        with open(self.paths[number], "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST // 2))
        self.digests[number] = digest.hexdigest()


def _by_threads(work: Callable[[int], None], count: int, jobs: int) -> Iterator[None]:
    """Do the work for 0, 1, ... in threads: decoding leaves Python's lock alone."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for first in range(0, count, AT_ONCE * jobs):
            yield from pool.map(work, range(first, min(count, first + AT_ONCE * jobs)))
    finally:
        pool.shutdown(cancel_futures=True)
