"""How fast is a search, what memory does it take, and what does usearch miss?

    OMP_NUM_THREADS=2 python -m benchmarks.search --count 100_000 1_000_000
    OMP_NUM_THREADS=2 python -m benchmarks.search --recall 100_000

`--count` times the exact search for the first ten of so many vectors of 768 numbers, one query at a
time. Memory is what the process has of its own (VmRSS less RssFile: the mapped matrix is not in
it) after the queries, less the same before the index was opened. `--recall` makes a graph and
compares it with the exact search, on vectors made of 1,000 sounds (centers of rank 32 with
deviations of the same rank and noise in all dimensions) and, where EAT_DATA has ESC-10, on the
frames of its clips. Every row is put into `benchmarks/results/search.json` at once.
"""

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.speed.measure import host
from eat_audio.inference.predictor import load
from eat_audio.inference.windows import Array
from eat_audio.progress import print_lines, track
from eat_audio.search.index import LINES, MATRIX, SOURCE, STATISTICS, Index, open_index, unit_length

RESULT = Path(__file__).parent / "results" / "search.json"
WIDTH, K, QUERIES = 768, 10, 20
CENTERS, RANK, NOISE = 1_000, 32, 0.1
CHUNK = 50_000


def made_vectors(count: int, generator: np.random.Generator) -> Array:
    """Vectors of `CENTERS` kinds of sounds: (count, WIDTH)."""
    fixed = np.random.default_rng(1)
    basis = fixed.standard_normal((RANK, WIDTH), np.float32) / RANK**0.5
    centers = fixed.standard_normal((CENTERS, RANK), np.float32)
    low = centers[generator.integers(CENTERS, size=count)]
    low += 0.5 * generator.standard_normal((count, RANK), np.float32)
    return low @ basis + NOISE * generator.standard_normal((count, WIDTH), np.float32)


def write_index(folder: Path, count: int) -> Path:
    """Write the companion that `open_index` makes, from vectors that are never whole in memory."""
    generator = np.random.default_rng(0)
    vectors = folder / f"{count}.parquet"
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), vectors)  # its stamp counts
    companion = vectors.with_suffix(".search")
    companion.mkdir()
    shape = (count, WIDTH)
    matrix = np.lib.format.open_memmap(companion / MATRIX, "w+", np.float16, shape)
    for start in track(range(0, count, CHUNK), "make vectors", -(-count // CHUNK)):
        block = made_vectors(min(CHUNK, count - start), generator)
        matrix[start : start + len(block)] = unit_length(block)
    matrix.flush()
    np.save(companion / STATISTICS, np.stack([np.zeros(WIDTH), np.ones(WIDTH)]).astype(np.float32))
    status = vectors.stat()
    source = {vectors.name: [status.st_size, status.st_mtime_ns]}
    record = {"made_by": {"level": "window"}, "folder": "/", "source": source}
    schema = pa.schema(
        [("path", pa.string()), ("start", pa.float64()), ("seconds", pa.float64())],
        {SOURCE: json.dumps(record).encode()},
    )
    numbers = np.arange(count)
    paths = pa.DictionaryArray.from_arrays(
        pa.array(numbers // 1_000, pa.int32()),
        pa.array([f"recordings/{n:06d}.wav" for n in range(-(-count // 1_000))]),
    )
    cells = [paths.cast(pa.string()), 3.04 * (numbers % 1_000), np.full(count, 3.04)]
    pq.write_table(pa.table(cells, schema=schema), companion / LINES)
    return vectors


def own_megabytes() -> float:
    """Memory of this process without what is mapped from files."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    sizes = {key: int(re.findall(rf"{key}:\s+(\d+)", text)[0]) for key in ("VmRSS", "RssFile")}
    return (sizes["VmRSS"] - sizes["RssFile"]) / 1_024


def measure_speed(count: int) -> dict[str, Any]:
    """Time exact searches in so many vectors; each of them has to find the vector it is made of."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        vectors = write_index(Path(folder), count)
        before = own_megabytes()
        start = time.perf_counter()
        index = open_index(vectors)
        opened = time.perf_counter() - start
        chosen = np.random.default_rng(2).integers(count, size=QUERIES)
        queries = np.asarray(index.vectors[chosen], np.float32)
        index.search(queries[:1], K)  # reads the matrix from the disk
        times, cpu = [], []
        for row, query in zip(chosen, queries, strict=True):
            start, used = time.perf_counter(), time.process_time()
            _, rows = index.search(query, K)
            times.append(1_000 * (time.perf_counter() - start))
            cpu.append(1_000 * (time.process_time() - used))
            assert row in rows[0]
        memory = own_megabytes() - before
    return {
        "vectors": count,
        "width": WIDTH,
        "ms_median": round(float(np.median(times)), 1),
        "ms_least": round(min(times), 1),
        "ms": [round(value, 1) for value in times],
        "cpu_ms_median": round(float(np.median(cpu)), 1),
        "open_seconds": round(opened, 2),
        "own_megabytes": round(memory, 1),
    }


def index_of(folder: Path, vectors: Array) -> Index:
    """An index of vectors in memory, whose graph is made in a folder."""
    matrix = unit_length(vectors).astype(np.float16)
    zeros = np.zeros(len(matrix))
    return Index(folder / "v.parquet", matrix, [""] * len(matrix), zeros, zeros, {}, folder)


def measure_recall(name: str, vectors: Array, queries: Array) -> dict[str, Any]:
    """Compare usearch's first ten with the exact ones."""
    with tempfile.TemporaryDirectory() as folder:
        index = index_of(Path(folder), vectors)
        start = time.perf_counter()
        index.search(queries[:1], K, exact=False)
        made = time.perf_counter() - start
        start = time.perf_counter()
        _, near = index.search(queries, K, exact=False)
        seconds = time.perf_counter() - start
        _, rows = index.search(queries, K)
    recall = np.mean([len({*a} & {*b}) / K for a, b in zip(near, rows, strict=True)])
    return {
        "of": name,
        "vectors": len(vectors),
        "width": vectors.shape[1],
        "queries": len(queries),
        "recall": round(float(recall), 4),
        "ms": round(1_000 * seconds / len(queries), 2),
        "graph_seconds": round(made, 1),
    }


def frames(data: Path) -> Array:
    """Standardized frames of ESC-10 from the model that ships: (n, D)."""
    predictor = load(precision="fp32")
    paths = sorted((data / "esc10" / "audio").glob("*.ogg"))
    results = track(predictor.embed_many(paths, "frame"), "ESC-10", len(paths))
    stacked = np.concatenate([row for row in results if isinstance(row, np.ndarray)])
    return (stacked - stacked.mean(axis=0)) / stacked.std(axis=0)


def keep(kind: str, row: NDArray[Any] | dict[str, Any]) -> None:
    """Put a row into the results, in the place of an older one of the same kind and size."""
    content: dict[str, Any] = {"command": "python -m benchmarks.search", "exact": [], "usearch": []}
    if RESULT.is_file():
        content |= json.loads(RESULT.read_text(encoding="utf-8"))
    new = dict(row) | {"host": host("cpu"), "threads": torch.get_num_threads()}
    key = ("of", "vectors", "width")
    rows = [r for r in content[kind] if [r.get(k) for k in key] != [new.get(k) for k in key]]
    content[kind] = [*rows, new]
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print_lines(json.dumps(dict(row)))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--count", type=int, nargs="*", default=[])
    parser.add_argument("--recall", type=int, nargs="*", default=[])
    options = parser.parse_args()
    for count in options.count:
        keep("exact", measure_speed(count))
    for count in options.recall:
        vectors = made_vectors(count, np.random.default_rng(0))
        keep(
            "usearch", measure_recall("made", vectors, made_vectors(100, np.random.default_rng(3)))
        )
    if options.recall and (options.data / "esc10").is_dir():
        real = frames(options.data)
        chosen = np.random.default_rng(4).permutation(len(real))
        keep("usearch", measure_recall("frames of ESC-10", real[chosen[100:]], real[chosen[:100]]))


if __name__ == "__main__":
    main()
