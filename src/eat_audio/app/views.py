"""Turn what was analyzed into the HTML of the page, by the macros of `views.html.j2`.

Names and labels are escaped. Sound, pictures and files to download are inside the HTML, as data:
URLs: the server keeps no file of a visitor.
"""

import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from eat_audio.app.analysis import Analysis
from eat_audio.app.similar import Query, Similar
from eat_audio.inference.detect import Detection, Rules, as_csv, as_label_track
from eat_audio.inference.storage import plain_stem
from eat_audio.report import figures
from eat_audio.report.report import probe_charts, read_run, training_charts
from eat_audio.search.excerpts import Excerpt
from eat_audio.search.label import TITLES, LabelResult, Question

LANES = 6
"""Labels whose probabilities over time are shown."""
TABLE_ROWS = 12
IMAGE_COLUMNS = 600


@cache
def _macros() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("views.html.j2").module


def notice(sentences: Iterable[str], kind: str = "note") -> str:
    """Return sentences that a screen reader reads out; `kind` is note, warning or error."""
    return _macros().notice(list(sentences), kind)


def player(analysis: Analysis) -> str:
    """Return the recording with the browser's own controls."""
    url = figures.data_url(analysis.flac(), "audio/flac")
    return _macros().player(analysis.name, analysis.seconds, url)


def tags_view(analysis: Analysis, rules: Rules) -> str:
    """Return the spectrogram, the labels over time, and the labels of the whole recording."""
    highest = dict(zip(analysis.labels, analysis.scores.max(axis=0).tolist(), strict=True))
    for one in analysis.predictions:
        highest[one.label] = max(highest.get(one.label, 0.0), one.score)
    numbers = sorted(range(len(analysis.labels)), key=lambda n: -highest[analysis.labels[n]])
    width = 100 * len(analysis.scores) * rules.hop / analysis.seconds  # the last step is cut
    lanes = []
    for number in numbers[:LANES]:
        label, scores = analysis.labels[number], analysis.scores[:, number]
        at = int(scores.argmax()) * rules.hop
        description = f"{label} over time: up to {scores.max():.2f}, at {at:.1f} s"
        lanes.append((label, "", description, figures.area(scores), width, ()))
    rows = [(p.label, p.score) for p in analysis.predictions[:TABLE_ROWS]]
    return _timeline(analysis, lanes) + _macros().tags(rows)


def events_view(analysis: Analysis, detection: Detection) -> str:
    """Return the spectrogram, the events in lanes and in a table, and their files."""
    share = 100 / analysis.seconds
    lanes = []
    for n, label in enumerate(dict.fromkeys(event.label for event in detection.events)):
        spans = [
            (event.onset * share, (event.offset - event.onset) * share, 0.45 + 0.55 * event.score)
            for event in detection.events
            if event.label == label
        ]
        lanes.append((label, figures.COLORS[n % len(figures.COLORS)], "", None, 0, spans))
    stem = plain_stem(analysis.name)
    files = [
        (f"{stem}.csv", "Download CSV", _file_url(as_csv(detection), "text/csv")),
        (f"{stem}.txt", "Download Audacity labels", _file_url(as_label_track(detection))),
    ]
    return _timeline(analysis, lanes) + _macros().events(detection.events, files)


def _timeline(analysis: Analysis, lanes: Sequence[tuple[Any, ...]]) -> str:
    image = figures.thumbnail(analysis.detection.spectrogram, columns=IMAGE_COLUMNS, rows=128)
    times = figures.marked_times(analysis.seconds)
    ticks = [(100 * time / analysis.seconds, figures.clock(time)) for time in times]
    return _macros().timeline(analysis.name, analysis.seconds, image, lanes, ticks)


def _file_url(text: str, kind: str = "text/plain") -> str:
    return figures.data_url(text.encode(), f"{kind};charset=utf-8")


# ---- search ----


def query_view(query: Query) -> str:
    """Return the sound that is searched with; that of a row plays at once."""
    return _macros().query(query.name, query.excerpt, query.row is not None)


def matches_view(matches: Sequence[Similar]) -> str:
    """Return similar sounds, most similar first; the map shows their points larger."""
    return _macros().matches(matches)


# ---- labels ----


def question_view(
    question: Question, name: str, progress: str, excerpt: Excerpt | None, problem: str
) -> str:
    """Return a candidate that is to be judged, with its sound, or why that cannot be read."""
    return _macros().question(question, name, progress, excerpt, problem)


def labels_view(rows: Sequence[LabelResult], folder: str) -> str:
    """Return how every class was learned, and where the model is."""
    return _macros().labels(TITLES, [row.cells() for row in rows], folder)


# ---- training ----


def find_runs(folder: Path) -> list[str]:
    """Return the runs in a folder, by their paths in it, the one that logged last first."""
    records = [path for level in ("", "*/", "*/*/") for path in folder.glob(f"{level}run.json")]
    runs = {path.parent for path in records if not path.parent.name.startswith("step-")}
    return [run.relative_to(folder).as_posix() for run in sorted(runs, key=_logged, reverse=True)]


def _logged(run: Path) -> float:
    """Return when a run last logged, in seconds since 1970; 0 before the first line."""
    try:
        return (run / "log.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def log_state(run: Path) -> tuple[float, int]:
    """Return what changes when a run logs: the time and the size of its log."""
    file = run / "log.jsonl"
    return (_logged(run), file.stat().st_size) if file.is_file() else (0.0, 0)


def run_view(path: Path, name: str) -> str:
    """Return the curves of a run as far as it is.

    Raises:
        CheckpointError: It is no run's folder.
    """
    run = read_run(path)
    total = run.recipe.get("steps")
    facts = [("step", f"{run.steps_done:,}" + (f" of {total:,}" if total else ""))]
    if np.isfinite(loss := run.last("train/loss")):
        facts.append(("loss", figures.short(loss)))
    if np.isfinite(speed := run.last("perf/clips_per_second_now")):
        facts.append(("clips per second", figures.short(speed)))
    if logged := _logged(path):
        facts.append(("last logged", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(logged))))
    charts = probe_charts(run) + training_charts(run) if run.rows else []
    return _macros().run(name, facts, charts)
