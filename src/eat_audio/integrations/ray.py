"""Embed on a Ray cluster: `eat embed --on ray`, and a class for `Dataset.map_batches`.

    rows = units.map_batches(Embed, fn_constructor_kwargs={"model": "runs/tiny"},
                             batch_format="pyarrow", batch_size=None, **actor_pool(4, free))

Ray distributes the units of work of `inference.shard`; the process that began the job writes the
same folder of parts as a plain job, and a job goes on from there, with or without Ray.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from eat_audio.data.parts import Parts, Shard, Stamp, open_parts
from eat_audio.errors import AudioError, EatError, SettingError
from eat_audio.inference.embed import Summary
from eat_audio.inference.inputs import storable
from eat_audio.inference.predictor import load
from eat_audio.inference.shard import UnitFormat, list_units, rows_of
from eat_audio.inference.windows import Unit
from eat_audio.models.common.modeling import WINDOW_SECONDS
from eat_audio.progress import print_lines, track

UNITS_OF_BLOCK = {"cpu": 8, "cuda": 64}
"""Units, of up to 600 s, that are one task: about a minute of work, and what a lost actor loses."""
MOST_BLOCKS = 20_000
FREE = 0.1
"""Share of the CPUs that actors leave to Ray: it waits for ever, silently, if they take all."""
BATCH = pa.schema(
    [
        ("path", pa.binary()),  # of the system, which need not be text
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
    ]
)
"""Columns of units; `path` alone is enough."""


class Embed:
    """Embed units: a batch of them, as a table, to the rows of their vectors.

    A unit that cannot be read becomes one row with its `error`, and no vector; so does one without
    vectors, whose `error` is null. `number` counts the rows of a unit, `rows` is how many they are.

    Args:
        model: See `inference.predictor.load`; every machine has to see it under this name.
        device: Of the model.
        precision: Of its weights, fp32 or bf16: what auto means may differ between machines.
        window: Seconds of its windows.
        form: Settings of `UnitFormat`.
    """

    def __init__(
        self,
        model: str | None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        window: float = WINDOW_SECONDS,
        **form: Any,
    ) -> None:
        self.form = UnitFormat(**form)
        self.schema = result_schema(self.form)
        self.predictor = load(model, device=device, precision=precision, window=window)
        if self.predictor.device.type == "cpu":
            torch.set_num_threads(1)  # an actor has one CPU

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()  # what single cells are in Arrow is no str
        units = [
            Unit(os.fsdecode(row["path"]), row.get("start") or 0.0, row.get("seconds"))
            for row in rows
        ]
        results = self.form.results(units, self.predictor)
        tables = []
        for row, unit, result in zip(rows, units, results, strict=True):
            batches: list[pa.RecordBatch] = []
            if not isinstance(result, AudioError):
                size, modified = row.get("size"), row.get("modified")
                stamp = None if size is None or modified is None else (size, modified)
                batches = rows_of(unit, stamp, result, self.form)
            table = pa.Table.from_batches(batches, self.form.schema)
            error = storable(result) if isinstance(result, AudioError) else None
            tables.append(self._numbered(unit, table, error))
        return pa.concat_tables(tables)

    def _numbered(self, unit: Unit, table: pa.Table, error: str | None) -> pa.Table:
        if not len(table):
            empty = {"unit": unit.id, "number": 0, "rows": 1, "error": error}
            return pa.Table.from_pylist([empty], self.schema)
        columns = {name: table[name] for name in table.column_names}
        columns["number"] = np.arange(len(table), dtype=np.int32)
        columns["rows"] = np.full(len(table), len(table), np.int32)
        columns["error"] = pa.nulls(len(table), pa.string())
        return pa.table(columns).cast(self.schema)


def result_schema(form: UnitFormat) -> pa.Schema:
    """Return the columns of what `Embed` returns."""
    counts = [("number", pa.int32()), ("rows", pa.int32()), ("error", pa.string())]
    return pa.schema([*form.schema, *(pa.field(*column) for column in counts)])


def unit_blocks(units: Iterable[tuple[Unit, Stamp | None]], size: int) -> Iterator[pa.Table]:
    """Yield tables of `size` units each: Ray makes a block of each, and of a short list only one.

    A block is what an actor does at a time.
    """
    rows: list[dict[str, Any]] = []
    for unit, stamp in units:
        version = dict(zip(("size", "modified"), stamp or (None, None), strict=True))
        stretch = {"start": unit.start, "seconds": unit.seconds}
        rows.append({"path": os.fsencode(unit.path)} | stretch | version)
        if len(rows) == size:
            yield pa.Table.from_pylist(rows, BATCH)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, BATCH)


def actor_pool(actors: int | None, free: Mapping[str, float], *, gpu: bool = False) -> dict:
    """Return the options of `map_batches` for a pool of actors that a cluster has room for.

    Args:
        actors: How many at most; as many as there is room for if None.
        free: What Ray has available: CPU, GPU.
        gpu: Whether every actor gets a GPU.

    Raises:
        SettingError: There is not so much room. Ray would wait for ever without a word.
    """
    cpus = free.get("CPU", 0.0)
    room = int(cpus * (1 - FREE)) or int(cpus >= 1)
    what = f"{cpus:g} free CPUs, a tenth of which Ray needs"
    if gpu:
        room, what = min(room, int(free.get("GPU", 0))), f"{free.get('GPU', 0):g} free GPUs, {what}"
    if not 1 <= (actors or room) <= room:
        raise SettingError(
            f"{actors or 'a'} actors on a cluster with {what}, would wait for ever; "
            f"expected at most {room}"
        )
    from ray.data import ActorPoolStrategy

    count = actors or room
    share = min(1.0, cpus * (1 - FREE) / count)
    pool = {"compute": ActorPoolStrategy(min_size=1, max_size=count), "num_cpus": share}
    return pool | ({"num_gpus": 1} if gpu else {})


def embed_on_ray(
    inputs: Iterable[str | Path],
    model: str | None,
    out: str | Path,
    *,
    address: str = "ray",
    actors: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    window: float = WINDOW_SECONDS,
    form: UnitFormat | None = None,
    retry_failed: bool = False,
    **init: Any,
) -> Summary:
    """Write the vectors of files and folders as parts, as `run_shard` does, computed on Ray.

    Args:
        inputs: Files, folders and URLs, which all machines see under the same names.
        model: The same.
        out: A folder that this process can write; see `data.parts`.
        address: "ray" for the cluster of RAY_ADDRESS, or this machine if that is not set; or
            `ray://HOST:10001`.
        actors: Processes that embed, at most.
        device: auto takes GPUs if the cluster has some.
        precision: See `Embed`.
        window: See `Embed`.
        form: What the rows are.
        retry_failed: Try the units again that an earlier job could not read.
        init: More arguments of `ray.init`.

    Raises:
        EatError: As `run_shard`; or Ray is not installed, cannot be reached or has no room.
    """
    form, out = form or UnitFormat(), Path(out)
    predictor = load(model, device="cpu", precision=precision, window=window)
    units = {unit.id: (unit, stamp) for unit, stamp in list_units(inputs, predictor)}
    with open_parts(out, Shard(), form.schema, form.record(predictor)) as parts:
        stamps = {unit: stamp for unit, (_, stamp) in units.items()}
        missing = parts.missing(stamps, retry_failed=retry_failed)
        skipped = len(units) - len(missing)
        if not missing:
            return Summary(0, skipped, [])
        print_lines(
            f"{len(missing)} units; Ray takes a minute to begin: for less than an hour of work, "
            "embed without --on",
            error=True,
        )
        with _connected(address, init) as free:
            gpu = device.startswith("cuda") or (device == "auto" and free.get("GPU", 0) >= 1)
            options = actor_pool(actors, free, gpu=gpu)
            options["fn_constructor_kwargs"] = {
                **{"model": model, "device": "cuda" if gpu else "cpu", "precision": precision},
                "window": window,
                **vars(form),
            }
            size = max(UNITS_OF_BLOCK["cuda" if gpu else "cpu"], len(missing) // MOST_BLOCKS)
            blocks = unit_blocks((units[unit] for unit in missing), size)
            failed = _store(parts, stamps, _results(list(blocks), options), len(missing), form)
    return Summary(len(missing) - len(failed), skipped, failed)


@contextmanager
def _connected(address: str, init: dict[str, Any]) -> Iterator[Mapping[str, float]]:
    """Connect to Ray, or start it on this machine; yield what it has available."""
    try:
        import ray
    except ImportError:
        raise EatError("--on ray: needs Ray; install it (pip install 'eat-audio[ray]')") from None
    if not (address == "ray" or address.startswith("ray://")):
        raise SettingError(f"--on {address}: expected ray, or ray://HOST:10001")
    mine = not ray.is_initialized()
    try:
        if mine and address == "ray":
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
            ray.init(**quiet | init)
        elif mine:
            ray.init(address, **init)
        free = ray.available_resources()
    except Exception as error:  # Ray raises bare ones where it does not start in time
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EatError(f"--on {address}: Ray cannot be reached ({reason})") from error
    try:
        yield free
    finally:
        if mine:
            ray.shutdown()


def _results(blocks: list[pa.Table], options: dict[str, Any]) -> Iterator[pa.Table]:
    """Yield what the actors return, block by block, in any order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    units = ray.data.from_arrow(blocks)
    rows = units.map_batches(Embed, batch_format="pyarrow", batch_size=None, **options)
    try:
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, EatError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, EatError):
            raise type(cause)(*cause.args) from error
        raise


def _store(
    parts: Parts,
    stamps: Mapping[str, Stamp | None],
    results: Iterable[pa.Table],
    count: int,
    form: UnitFormat,
) -> list[str]:
    """Write the rows of units as they come; return a sentence for each that cannot be read."""
    failed: list[str] = []
    for unit, table in track(_by_unit(results), "embed", count):
        error = table["error"][0].as_py()
        if error is not None:
            failed.append(error)
            parts.fail(unit, error)
            continue
        rows = table.filter(table["embedding"].is_valid()).select(form.schema.names)
        parts.add(unit, stamps[unit], rows.cast(form.schema).to_batches())
    return failed


def _by_unit(results: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of every unit together; Ray cuts large blocks anywhere."""
    pieces: dict[str, list[pa.Table]] = {}
    for table in results:
        names = table["unit"].to_pylist()
        starts = [n for n, name in enumerate(names) if n == 0 or name != names[n - 1]]
        for first, end in pairwise([*starts, len(names)]):
            unit = names[first]
            pieces.setdefault(unit, []).append(table.slice(first, end - first))
            if sum(map(len, pieces[unit])) == pieces[unit][0]["rows"][0].as_py():
                yield unit, pa.concat_tables(pieces.pop(unit)).sort_by("number")
    if pieces:
        raise EatError(f"Ray returned only a part of {len(pieces)} units; run the command again")
