"""Divide a long job among processes that share nothing but its output folder.

A unit of work has an id. With N shards, process I (from 0) does the units whose ids hash to I; the
processes need not run at the same time, on the same machine, or know of each other.

    out/
      _job.json                      the settings, the same for all shards
      part-2-of-7-00000001.parquet   rows of complete units; the metadata names the units
      _shards/2-of-7/                .lock, held while the shard is at work
      _shards/2-of-7/manifest.json   units of the shard; "complete" when none is missing

A part is written aside, by a thread while the next one is computed, and renamed: after a kill at
any moment a unit is in one part with all of its rows, or in none. Names with an underscore are
ignored by readers of Parquet folders.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eat_audio.errors import DataError, OutputError, SettingError
from eat_audio.lock import lock_folder
from eat_audio.rng import hash_id
from eat_audio.writing import is_aside, remove_leftovers, write_json, written_aside

PART_SECONDS = 30
"""Work that a killed process may lose."""
PART_BYTES = 32_000_000
"""Rows held in memory before they are written."""
JOB, SHARDS, MANIFEST = "_job.json", "_shards", "manifest.json"
PART = re.compile(r"part-(\d+)-of-(\d+)-(\d{8})\.parquet")
UNITS = b"eat_audio_units"
"""Key, in the metadata of a part, of its complete and its failed units."""
Stamp = tuple[int, int]
"""Size and time of the last change (ns) of a file."""


@dataclass(frozen=True)
class Shard:
    """The share of the units that one process does."""

    index: int = 0
    """From 0 to `count` - 1."""
    count: int = 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Return the shard that "I/N" names, or "auto" or "auto/N" in an array of jobs.

        auto: SLURM_ARRAY_TASK_ID, _MIN and _COUNT of Slurm, or JOB_COMPLETION_INDEX of Kubernetes
        with JOB_COMPLETIONS, which the manifest of the job has to set.

        Raises:
            SettingError: It names none.
        """
        index, _, count = text.partition("/")
        if index == "auto":
            index, tasks = _array_task(text, environment)
            count = count or tasks
        if not (re.fullmatch(r"[0-9]{1,9}", index) and re.fullmatch(r"[0-9]{1,9}", count)):
            raise SettingError(f"shard={text}: expected I/N, with I from 0 to N - 1, or auto")
        if int(index) >= int(count):
            raise SettingError(f"shard={index}/{count}: expected I from 0 to N - 1")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def owns(self, unit: str) -> bool:
        """Return whether a unit belongs to this shard."""
        return hash_id(unit) % self.count == self.index


def _array_task(text: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the index and the number of the tasks of an array of jobs; empty if not known."""
    if (task := environment.get("SLURM_ARRAY_TASK_ID", "")).isdecimal():
        count = environment.get("SLURM_ARRAY_TASK_COUNT", "")
        ends = [environment.get(f"SLURM_ARRAY_TASK_{name}", task) for name in ("MIN", "MAX")]
        if text == "auto" and int(ends[1]) - int(ends[0]) + 1 != int(count or 0):
            raise SettingError(
                f"shard=auto: the tasks of the Slurm array, {ends[0]} to {ends[1]}, are {count}; "
                "expected --array=0-N without gaps, or shard=auto/N"
            )
        return str(int(task) - (int(ends[0]) if text == "auto" else 0)), count
    if (index := environment.get("JOB_COMPLETION_INDEX", "")).isdecimal():
        return index, environment.get("JOB_COMPLETIONS", "")
    raise SettingError(
        f"shard={text}: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; expected I/N"
    )


@dataclass
class Part:
    """What a part says of its units."""

    path: Path
    done: dict[str, Stamp | None]
    """By id, the version of the file that a unit is of."""
    failed: dict[str, str]
    """By id, what is wrong with a unit."""

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Read the metadata of a part.

        Raises:
            DataError: It is none.
        """
        try:
            record = json.loads((pq.read_schema(path).metadata or {})[UNITS])
            done = {unit: stamp and (stamp[0], stamp[1]) for unit, stamp in record["done"].items()}
            return cls(path, done, dict(record["failed"]))
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path}: is no part of a sharded job ({error})") from error


def parts_of(out: Path) -> list[Part]:
    """Return the parts in a folder, in the order of their names."""
    return [Part.read(path) for path in sorted(out.glob("part-*.parquet"))]


class Parts:
    """Writer of one shard's parts; see `open_parts`."""

    def __init__(self, out: Path, shard: Shard, schema: pa.Schema) -> None:
        self.out, self.shard, self.schema = out, shard, schema
        self.folder = out / SHARDS / str(shard)
        self.parts = [part for part in parts_of(out) if self._may_hold_ours(part.path)]
        self.units = self.listed = 0
        self.writer = ThreadPoolExecutor(1, "write")
        self.writing: tuple[Part, Future[None]] | None = None
        self.number = max((int(p.path.stem[-8:]) for p in self.parts), default=0)
        self._clear()

    def _may_hold_ours(self, path: Path) -> bool:
        match = PART.fullmatch(path.name)
        index, count = (int(match[1]), int(match[2])) if match else (-1, -1)
        return count != self.shard.count or index == self.shard.index

    def _clear(self) -> None:
        self.waiting: list[pa.RecordBatch] = []
        self.done: dict[str, Stamp | None] = {}
        self.failed: dict[str, str] = {}
        self.bytes, self.since = 0, time.monotonic()

    def missing(
        self, stamps: Mapping[str, Stamp | None], *, retry_failed: bool = False
    ) -> list[str]:
        """Return the ids of this shard's units, among those given, that are to be done.

        Rows of files that have changed since are removed, but not those of a file whose version is
        not known now. Units that failed are left out, unless `retry_failed`.
        """
        ours = {unit: stamp for unit, stamp in stamps.items() if self.shard.owns(unit)}
        self.units = len(ours)
        for part in self.parts:
            changed = {u for u, stamp in part.done.items() if ours.get(u) not in (None, stamp)}
            if changed:
                self._remove(part, changed)
        done = {unit for part in self.parts for unit in part.done}
        failed = {unit for part in self.parts for unit in part.failed}
        skipped = done if retry_failed else done | failed
        self.listed = len(ours.keys() | set(filter(self.shard.owns, done | failed)))
        self._write_manifest()
        return [unit for unit in ours if unit not in skipped]

    def add(self, unit: str, stamp: Stamp | None, rows: Iterable[pa.RecordBatch]) -> None:
        """Hold the rows of a unit, and write all that are held now and then."""
        batches = list(rows)
        self.waiting += batches
        self.bytes += sum(batch.nbytes for batch in batches)
        self.done[unit] = stamp
        self._flush_if_due()

    def fail(self, unit: str, sentence: str) -> None:
        """Record what is wrong with a unit."""
        self.failed[unit] = sentence
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        if self.bytes > PART_BYTES or time.monotonic() - self.since > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Begin to write what is held as a part, once the one before is complete."""
        self.wait()
        if self.done or self.failed:
            self.number += 1
            path = self.out / f"part-{self.shard}-{self.number:08d}.parquet"
            part = Part(path, self.done, self.failed)
            self.writing = part, self.writer.submit(self._write, part, self.waiting)
        self._clear()

    def wait(self) -> None:
        """Wait until the last part is complete.

        Raises:
            OutputError: It cannot be written.
        """
        if self.writing is not None:
            (part, result), self.writing = self.writing, None
            result.result()
            self.parts.append(part)

    def _write(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        record = json.dumps({"done": part.done, "failed": part.failed})
        schema = self.schema.with_metadata({UNITS: record.encode()})
        table = pa.Table.from_batches(batches, self.schema).combine_chunks()
        with written_aside(part.path) as aside:
            pq.write_table(table.cast(schema), aside)

    def _remove(self, part: Part, units: set[str]) -> None:
        """Write a part again without some of its units."""
        table = pq.read_table(part.path, partitioning=None)
        kept = pc.invert(pc.is_in(table["unit"], value_set=pa.array(units, pa.string())))
        part.done = {unit: stamp for unit, stamp in part.done.items() if unit not in units}
        self._write(part, table.filter(kept).cast(self.schema).to_batches())

    def _write_manifest(self) -> None:
        done = {unit for part in self.parts for unit in part.done if self.shard.owns(unit)}
        failed = {u for part in self.parts for u in part.failed if self.shard.owns(u)} - done
        left = self.listed - len(done) - len(failed)
        manifest = {"shard": self.shard.index, "of": self.shard.count, "units": self.listed}
        manifest |= {"done": len(done), "failed": len(failed), "complete": left == 0}
        write_json(self.folder / MANIFEST, manifest)


@contextmanager
def open_parts(
    out: Path, shard: Shard, schema: pa.Schema, settings: Mapping[str, Any]
) -> Iterator[Parts]:
    """Open a folder for one shard of a job; no other process may do the same shard meanwhile.

    Args:
        out: The folder; it is made.
        shard: The share of this process.
        schema: Columns of the rows; one is `unit`, text.
        settings: All that decides the rows, as JSON can hold it; the same for every shard.

    Raises:
        DataError: The folder holds something else.
        OutputError: The shard is being done, or one of another number of shards, or the folder
            cannot be written.
    """
    _check_job(out, settings)
    with ExitStack() as stack:
        stack.enter_context(lock_folder(out / SHARDS / str(shard)))
        for other in sorted((out / SHARDS).glob("*-of-*")):
            if not other.name.endswith(f"-of-{shard.count}"):
                try:
                    with lock_folder(other):
                        pass
                except OutputError as error:
                    raise OutputError(
                        f"{out}: shard {other.name} is at work ({error}); shards of "
                        f"{shard.count} can begin when it has ended"
                    ) from error
        _check_job(out, settings)
        write_json(out / JOB, dict(settings) | {"shards": shard.count})
        parts = Parts(out, shard, schema)
        for number in range(1, parts.number + 2):
            remove_leftovers(out / f"part-{shard}-{number:08d}.parquet")
        stack.callback(parts.writer.shutdown)
        try:
            yield parts
        except BaseException:
            with suppress(OutputError):  # what ended the job is the error to report
                parts.flush()
                parts.wait()
            raise
        parts.flush()
        parts.wait()
        parts._write_manifest()


def read_job(out: Path) -> dict[str, Any]:
    """Return the settings of the job in a folder.

    Raises:
        DataError: There is none.
    """
    try:
        record = json.loads((out / JOB).read_text(encoding="utf-8"))
        if isinstance(record, dict) and isinstance(record.get("shards"), int):
            return record
        reason = f"{JOB} is not of this program"
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise DataError(f"{out}: is no folder of a sharded job ({reason})")


def _check_job(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise DataError if a folder holds anything but a job with these settings."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() and all(is_aside(path) or path.name == SHARDS for path in out.iterdir()):
        return  # another shard is about to write the settings
    record = read_job(out)
    plain = json.loads(json.dumps(settings))
    names = [name for name in record | plain if record.get(name) != plain.get(name)]
    names = [name for name in names if name != "shards"]
    if names:
        raise DataError(
            f"{out}: holds a job with another {', '.join(names)}; expected nothing, or the same job"
        )


@dataclass
class ShardStatus:
    """How far a shard is."""

    shard: Shard
    units: int | None
    """Units of the shard; None until it has been started."""
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By id, what is wrong with a unit."""

    @property
    def missing(self) -> int | None:
        """Units that are neither done nor failed; None if the number of units is not known."""
        return None if self.units is None else self.units - self.done - len(self.failed)


def job_status(out: Path) -> list[ShardStatus]:
    """Return how far every shard of a job is, also while it is at work.

    Raises:
        DataError: The folder holds no such job.
    """
    count = read_job(out)["shards"]
    parts = parts_of(out)
    done = {unit for part in parts for unit in part.done}
    failed = {unit: text for part in parts for unit, text in part.failed.items()}
    states = [ShardStatus(Shard(index, count), None) for index in range(count)]
    for state in states:
        with suppress(OSError, ValueError, KeyError, TypeError):  # it has not been started
            text = (out / SHARDS / str(state.shard) / MANIFEST).read_text(encoding="utf-8")
            state.units = int(json.loads(text)["units"])
    for unit in done:
        states[hash_id(unit) % count].done += 1
    for unit in failed.keys() - done:
        states[hash_id(unit) % count].failed[unit] = failed[unit]
    return states
