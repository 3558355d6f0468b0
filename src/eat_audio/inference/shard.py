"""Use a model on many machines: units of work, their rows, and the job that writes them.

The core that every scheduler needs, without any of them:

    list_units(inputs, predictor)           files and folders -> stretches of about 600 s
    unit_rows(unit, predictor, task)        a pure function: stretch -> rows
    open_parts(out, shard, task.schema, task.record(predictor))   (`data.parts`): a claim, with
        parts.missing(stamps), parts.add(id, stamp, rows), parts.fail(id, sentence)
    job_status(out)                         (`data.parts`): how far the shards are

`run_shard` puts them together. A task is `UnitFormat` (vectors), `Labels` or `Events`. A part has
the columns `unit`, `path`, `start` (seconds from the start of the file; with `path` it names the
unit), those of the task, and `size` and `modified` (ns) of the file. The vectors of clips have
`columns` (valid ones of 160 ms, the weight of this unit in the mean of its recording, see
`windows.mean_of_units`), those of windows `onset` and `offset` (seconds from the start of the
file), those of frames and patches `seconds` (the middle of their 160 ms), those of patches `row`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import pyarrow as pa

from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.data.parts import Shard, Stamp, open_parts
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.detect import Event, Rules, detect
from eat_audio.inference.embed import Summary, made_by
from eat_audio.inference.inputs import file_source, find_recordings, storable
from eat_audio.inference.predictor import Prediction, Predictor
from eat_audio.inference.rows import WINDOW_COLUMNS, Stored, vector_rows
from eat_audio.inference.storage import Origin
from eat_audio.inference.windows import (
    COLUMN_SAMPLES,
    Array,
    Level,
    Unit,
    check_level,
    read_error,
    units_of,
)
from eat_audio.models.common.modeling import Layers, layer_numbers
from eat_audio.progress import track
from eat_audio.text import shortened

Dtype = Literal["float32", "float16"]


class UnitTask(Protocol):
    """What is computed for every unit, and stored in its rows."""

    cuts: ClassVar[bool]
    """Whether a recording may be cut into units."""

    @property
    def schema(self) -> pa.Schema: ...
    def record(self, predictor: Predictor) -> dict[str, Any]: ...
    def results(
        self, units: Iterable[Unit], predictor: Predictor
    ) -> Iterator[Any | AudioError]: ...
    def rows(self, unit: Unit, stamp: Stamp | None, result: Any) -> list[pa.RecordBatch]: ...


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    names = [("unit", pa.string()), ("path", pa.string()), ("start", pa.float64())]
    return pa.schema([*names, *columns, ("size", pa.int64()), ("modified", pa.int64())])


@dataclass(frozen=True)
class UnitFormat:
    """The vectors of `eat embed`; `layers` as in `Predictor.embed`.

    Raises:
        SettingError: There is no such level or type, or no frame every `hop_ms`.
    """

    level: Level = "clip"
    hop_ms: int = 160
    dtype: Dtype = "float32"
    layers: Layers | None = None
    cuts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_level(self.level, self.hop_ms)
        if self.dtype not in get_args(Dtype):
            raise SettingError(f"dtype={shortened(self.dtype)}: expected float32 or float16")

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        columns = [("columns", pa.int32())] if self.level == "clip" else [("seconds", pa.float32())]
        columns = WINDOW_COLUMNS if self.level == "window" else columns
        columns += [("row", pa.int8())] if self.level == "patch" else []
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        return _schema(*columns, ("embedding", pa.list_(value)))

    def record(self, predictor: Predictor) -> dict[str, Any]:
        """Return all that decides the rows."""
        layers = self.layers
        if layers is not None:
            layers = layer_numbers(layers, predictor.model.n_blocks)
        return made_by(predictor, self.level, self.hop_ms, layers) | {"dtype": self.dtype}

    def results(
        self, units: Iterable[Unit], predictor: Predictor
    ) -> Iterator[tuple[Array, ...] | AudioError]:
        """Yield the vectors of every unit, and its columns, or what is wrong with it."""
        options: dict[str, Any] = {"hop_ms": self.hop_ms, "layers": self.layers}
        return predictor.embed_units(units, self.level, **options)

    def rows(
        self, unit: Unit, stamp: Stamp | None, result: tuple[Array, ...]
    ) -> list[pa.RecordBatch]:
        """Return a row per vector; none of a unit behind the end of its file."""
        return rows_of(unit, stamp, result, self)


@dataclass(frozen=True)
class Labels:
    """The labels of `eat predict`, of every unit."""

    top_k: int = 12
    cuts: ClassVar[bool] = True

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows: `labels` and `scores` are lists, the likeliest first."""
        return _schema(("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())))

    def record(self, predictor: Predictor) -> dict[str, Any]:
        """Return all that decides the rows."""
        return made_by(predictor, "clip", 160) | {"level": "labels", "top_k": self.top_k}

    def results(
        self, units: Iterable[Unit], predictor: Predictor
    ) -> Iterator[list[Prediction] | AudioError]:
        """Yield the labels of every unit, or what is wrong with it."""
        return predictor.predict_many(units, self.top_k)

    def rows(
        self, unit: Unit, stamp: Stamp | None, result: list[Prediction]
    ) -> list[pa.RecordBatch]:
        """Return one row; none of a unit behind the end of its file."""
        row = {"labels": [p.label for p in result], "scores": [p.score for p in result]}
        rows = [_cells(unit, stamp) | row] if result else []
        return [pa.RecordBatch.from_pylist(rows, self.schema)]


@dataclass(frozen=True)
class Events:
    """The events of `eat detect`; recordings are not cut, as events cross borders of units."""

    rules: Rules = field(default_factory=Rules)
    cuts: ClassVar[bool] = False

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        times = [(name, pa.float64()) for name in ("onset", "offset")]
        return _schema(*times, ("label", pa.string()), ("score", pa.float32()))

    def record(self, predictor: Predictor) -> dict[str, Any]:
        """Return all that decides the rows."""
        return made_by(predictor, "clip", 160) | {"level": "events", "rules": asdict(self.rules)}

    def results(
        self, units: Iterable[Unit], predictor: Predictor
    ) -> Iterator[list[Event] | AudioError]:
        """Yield the events in every recording, or what is wrong with it."""
        for unit in units:
            try:
                yield detect(file_source(unit.path), predictor, self.rules).events
            except AudioError as error:
                yield error
            except OSError as error:
                yield read_error(unit.path, error)

    def rows(self, unit: Unit, stamp: Stamp | None, result: list[Event]) -> list[pa.RecordBatch]:
        """Return a row per event."""
        rows = [_cells(unit, stamp) | asdict(event) for event in result]
        return [pa.RecordBatch.from_pylist(rows, self.schema)]


def list_units(
    inputs: Iterable[str | Path], predictor: Predictor, *, cut: bool = True
) -> Iterator[tuple[Unit, Stamp | None]]:
    """Yield the units of files, and of all recordings in folders, each with its file's version.

    The header of every file is read. A file that cannot be opened is one unit, as is a file in
    which no position can be reached without decoding all before it (M4A, Ogg), or any file if the
    windows of the predictor overlap, or unless `cut`: then no header is read.

    Raises:
        AudioError: An input does not exist.
    """
    cut = cut and predictor.hop == predictor.frames // PATCH_FRAMES * COLUMN_SAMPLES
    for path in find_recordings(inputs):
        try:
            units = units_of(path, predictor.hop) if cut else [Unit(str(path))]
        except AudioError:  # reading it will say why
            units = [Unit(str(path))]
        stamp = Origin.of(path).stamp
        yield from ((unit, stamp) for unit in units)


def unit_rows(
    unit: Unit, predictor: Predictor, task: UnitTask, *, stamp: Stamp | None = None
) -> list[pa.RecordBatch]:
    """Return the rows of a unit: a function of the file, the model and the arguments alone.

    Raises:
        AudioError: It cannot be read.
    """
    (result,) = task.results([unit], predictor)
    if isinstance(result, AudioError):
        raise result
    return task.rows(unit, stamp, result)


def run_shard(
    inputs: Iterable[str | Path],
    predictor: Predictor,
    out: str | Path,
    task: UnitTask,
    *,
    shard: Shard | None = None,
    retry_failed: bool = False,
) -> Summary:
    """Do one shard of a task for files, and for all recordings in folders; write its rows as parts.

    Args:
        inputs: Files and folders, the same for all shards.
        predictor: From `load`.
        out: A folder, the same for all shards; see `data.parts` and the top of this file.
        task: What the rows are.
        shard: The share of this process; all of it if None.
        retry_failed: Try the units again that an earlier job could not read.

    Raises:
        EatError: An input does not exist; or `out` cannot be written, holds something else, or is
            written by another job.
    """
    listed = list_units(inputs, predictor, cut=task.cuts)
    units = {unit.id: (unit, stamp) for unit, stamp in listed}
    with open_parts(Path(out), shard or Shard(), task.schema, task.record(predictor)) as parts:
        stamps = {unit: stamp for unit, (_, stamp) in units.items()}
        missing = parts.missing(stamps, retry_failed=retry_failed)
        results = task.results((units[unit][0] for unit in missing), predictor)
        failed = []
        for unit, result in zip(missing, track(results, "units", len(missing)), strict=True):
            if isinstance(result, AudioError):
                failed.append(storable(result))
                parts.fail(unit, failed[-1])
            else:
                parts.add(unit, units[unit][1], task.rows(*units[unit], result))
        return Summary(len(missing) - len(failed), parts.units - len(missing), failed)


def rows_of(
    unit: Unit, stamp: Stamp | None, result: tuple[Array, ...], form: UnitFormat
) -> list[pa.RecordBatch]:
    """Return a row per vector of a unit; none if it has no columns."""
    vectors, columns = result
    if not columns.any():
        return []
    spans = columns if form.level == "window" else None
    cells = _cells(unit, stamp) | ({"columns": int(columns)} if form.level == "clip" else {})
    first = round(unit.start * 1000 / form.hop_ms)
    return list(vector_rows([Stored(cells, vectors, first, spans)], form.schema, form.hop_ms))


def _cells(unit: Unit, stamp: Stamp | None) -> dict[str, Any]:
    """Return what is the same in all rows of a unit, by column."""
    size, modified = stamp or (None, None)
    cells = {"unit": unit.id, "path": storable(unit.path), "start": unit.start}
    return cells | {"size": size, "modified": modified}
