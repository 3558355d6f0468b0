"""Search more than a million vectors with usearch, whose graph (HNSW) is made once.

The graph only proposes rows: their cosines are computed from the matrix, as exactly as those of the
exact search.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eat_audio.errors import OutputError
from eat_audio.inference.windows import Array
from eat_audio.progress import track
from eat_audio.writing import remove_leftovers, written_aside

GRAPH = "vectors.usearch"
CONNECTIVITY, EXPANSION = 32, 256
"""Neighbors of a row in the graph; candidates while it is made, and in a search."""
CHUNK = 20_000
"""Rows added at a time."""
PROPOSED = 4
"""Rows that the graph proposes for each that is returned."""


def available() -> bool:
    """Return whether usearch is installed."""
    try:
        import usearch.index  # noqa: F401
    except ImportError:
        return False
    return True


def open_graph(file: Path, vectors: NDArray[np.float16]) -> Any:
    """Return the graph of vectors (N, D), mapped into memory; make it first if there is none.

    Raises:
        OutputError: It cannot be written.
    """
    from usearch.index import Index

    settings: dict[str, Any] = {"ndim": vectors.shape[1], "metric": "ip", "dtype": "f16"}
    settings |= {"connectivity": CONNECTIVITY}
    settings |= {"expansion_add": EXPANSION, "expansion_search": EXPANSION}
    if not file.is_file():
        graph = Index(**settings)
        starts = range(0, len(vectors), CHUNK)
        for start in track(starts, "make the graph", len(starts)):
            rows = np.arange(start, min(start + CHUNK, len(vectors)))
            graph.add(rows, np.asarray(vectors[start : start + CHUNK]))
        remove_leftovers(file)
        with written_aside(file) as aside:
            graph.save(str(aside))
    graph = Index(**settings)
    try:
        graph.view(str(file))
    except RuntimeError as error:
        raise OutputError(f"{file}: cannot be read ({error}); remove it") from error
    return graph


def search(
    graph: Any, vectors: NDArray[np.float16], queries: Array, k: int
) -> tuple[Array, NDArray[np.int64]]:
    """Return the cosines of near rows (Q, K), best first, and their numbers (Q, K).

    Args:
        graph: From `open_graph`.
        vectors: (N, D), those of the graph, of unit length.
        queries: (Q, D), of unit length.
        k: Rows per query.
    """
    scores, rows = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    for number, query in enumerate(queries):
        proposed = np.sort(graph.search(query, PROPOSED * k).keys.astype(np.int64))
        cosines = vectors[proposed].astype(np.float32) @ query
        order = np.argsort(-cosines, kind="stable")[:k]
        scores[number], rows[number] = cosines[order], proposed[order]
    return scores, rows
