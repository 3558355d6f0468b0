"""Embed recordings on many machines: units of work, their rows, and the job that writes them.

The core that every scheduler needs, without any of them:

    list_units(inputs, predictor)           files and folders -> stretches of about 600 s
    unit_rows(unit, predictor, form)        a pure function: stretch -> rows
    open_parts(out, shard, form.schema, made_by)    (`data.parts`): a claim on one shard, with
        parts.missing(stamps), parts.add(id, stamp, rows), parts.fail(id, sentence)
    job_status(out)                         (`data.parts`): how far the shards are

`embed_shard` puts them together. A part has the columns `unit`, `path`, `start` (seconds from the
start of the file; with `path` it names the unit), for clips `columns` (valid columns of 160 ms, the
weight of this unit in the mean of its recording: `windows.mean_of_units`), for frames and patches
`seconds` (the middle of their 160 ms), for patches `row`, then `embedding`, `size` and `modified`
(ns) of the file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.data.parts import Parts, Shard, Stamp, open_parts
from eat_audio.errors import AudioError
from eat_audio.inference.embed import Summary, made_by
from eat_audio.inference.inputs import find_recordings, storable
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.storage import Origin, Stored, vector_rows
from eat_audio.inference.windows import (
    COLUMN_SAMPLES,
    Array,
    Level,
    Unit,
    check_level,
    units_of,
)
from eat_audio.progress import track

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class UnitFormat:
    """What the rows of a unit are.

    Raises:
        SettingError: There is no such level, or no frame every `hop_ms`.
    """

    level: Level = "clip"
    hop_ms: int = 160
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        check_level(self.level, self.hop_ms)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        columns = [("unit", pa.string()), ("path", pa.string()), ("start", pa.float64())]
        columns += [("columns", pa.int32())] if self.level == "clip" else []
        columns += [("seconds", pa.float32())] if self.level != "clip" else []
        columns += [("row", pa.int8())] if self.level == "patch" else []
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        columns += [("embedding", pa.list_(value))]
        return pa.schema([*columns, ("size", pa.int64()), ("modified", pa.int64())])


def list_units(
    inputs: Iterable[str | Path], predictor: Predictor
) -> Iterator[tuple[Unit, Stamp | None]]:
    """Yield the units of files, and of all recordings in folders, each with its file's version.

    The header of every file is read. A file that cannot be opened is one unit, as is a file in
    which no position can be reached without decoding all before it (M4A, Ogg), or any file if the
    windows of the predictor overlap.

    Raises:
        AudioError: An input does not exist.
    """
    adjacent = predictor.hop == predictor.frames // PATCH_FRAMES * COLUMN_SAMPLES
    for path in find_recordings(inputs):
        try:
            units = units_of(path, predictor.hop) if adjacent else [Unit(str(path))]
        except AudioError:  # reading it will say why
            units = [Unit(str(path))]
        stamp = Origin.of(path).stamp
        yield from ((unit, stamp) for unit in units)


def unit_rows(
    unit: Unit, predictor: Predictor, form: UnitFormat, *, stamp: Stamp | None = None
) -> list[pa.RecordBatch]:
    """Return the rows of a unit: a function of the file, the model and the arguments alone.

    Raises:
        AudioError: It cannot be read.
    """
    (result,) = predictor.embed_units([unit], form.level, hop_ms=form.hop_ms)
    if isinstance(result, AudioError):
        raise result
    return rows_of(unit, stamp, *result, form)


def embed_shard(
    inputs: Iterable[str | Path],
    predictor: Predictor,
    out: str | Path,
    *,
    shard: Shard | None = None,
    form: UnitFormat | None = None,
    retry_failed: bool = False,
) -> Summary:
    """Write the vectors of one shard of files, and of all recordings in folders, as parts.

    Args:
        inputs: Files and folders, the same for all shards.
        predictor: From `load`.
        out: A folder, the same for all shards; see `data.parts` and the top of this file.
        shard: The share of this process; all of it if None.
        form: What the rows are.
        retry_failed: Try the units again that an earlier job could not read.

    Raises:
        EatError: An input does not exist; or `out` cannot be written, holds something else, or is
            written by another job.
    """
    form, out = form or UnitFormat(), Path(out)
    units = {unit.id: (unit, stamp) for unit, stamp in list_units(inputs, predictor)}
    record = made_by(predictor, form.level, form.hop_ms) | {"dtype": form.dtype}
    with open_parts(out, shard or Shard(), form.schema, record) as parts:
        stamps = {unit: stamp for unit, (_, stamp) in units.items()}
        missing = parts.missing(stamps, retry_failed=retry_failed)
        failed = _embed(parts, [units[unit] for unit in missing], predictor, form)
        done = len(missing) - len(failed)
        return Summary(done, parts.units - len(missing), failed)


def _embed(
    parts: Parts, units: list[tuple[Unit, Stamp | None]], predictor: Predictor, form: UnitFormat
) -> list[str]:
    """Embed units; return a sentence for each that cannot be read."""
    failed = []
    stretches = (unit for unit, _ in units)
    results = predictor.embed_units(stretches, form.level, hop_ms=form.hop_ms)
    tracked = track(results, "embed", len(units))
    for (unit, stamp), result in zip(units, tracked, strict=True):
        if isinstance(result, AudioError):
            failed.append(storable(result))
            parts.fail(unit.id, failed[-1])
        else:
            parts.add(unit.id, stamp, rows_of(unit, stamp, *result, form))
    return failed


def rows_of(
    unit: Unit, stamp: Stamp | None, vectors: Array, columns: int, form: UnitFormat
) -> list[pa.RecordBatch]:
    """Return the rows of a unit from its vectors and its valid columns; none if it has none."""
    size, modified = stamp or (None, None)
    cells = {"unit": unit.id, "path": storable(unit.path), "start": unit.start, "columns": columns}
    cells |= {"size": size, "modified": modified}
    first = round(unit.start * 1000 / form.hop_ms)
    if not columns:
        return []
    return list(vector_rows([Stored(cells, vectors, first)], form.schema, form.hop_ms))
