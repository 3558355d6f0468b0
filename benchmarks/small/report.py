"""The tables, the sentences and the figure, from the JSON alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.markdown import wrapped
from benchmarks.small.datasets import DATASETS, Dataset
from benchmarks.small.results import Results, Summary, summarize
from eat_audio.report.figures import COLORS, drawing, short, to_svg
from eat_audio.writing import write_text

MARKS = ("<!-- small -->\n", "<!-- end of small -->\n")
ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "results" / "small_models.md")
FIGURE = ROOT / "docs" / "results" / "small_models.svg"
CURVES = ("esc10", "urbansound8k")
"""Datasets of the figure."""
TICKS = (1, 2, 5, 10, 20, 50, 100)
"""CPU minutes on the axis of the figure."""
ROWS = {
    "log_mel": "log-mel mean and deviation, logistic regression",
    "svm": "more log-mel statistics, SVM",
    "cnn": "small CNN from scratch",
    "random_last": "random encoder, probe of the last layer",
    "random_layers": "random encoder, probe of all layers",
    "last": "**EAT-tiny**, probe of the last layer",
    "layers": "**EAT-tiny**, probe of all layers",
    "finetuned": "**EAT-tiny**, fine-tuned",
    "yamnet": "YAMNet (labels of AudioSet), frozen, logistic regression",
}
"""Systems, in the order of the table."""
PRETRAINED = ("last", "layers", "finetuned")
FIRST_PAGE = ("log_mel", "svm", "layers")
"""Systems of the table on the first page: those that every dataset was measured with."""


@dataclass(frozen=True)
class Point:
    """A checkpoint of a pre-training, and what its probes reach."""

    method: str
    step: int
    cpu_seconds: float
    last: Summary
    layers: Summary


def encoder_of(results: Results, recipe: str) -> str:
    """Return the name of the last checkpoint of a recipe that is measured; empty if none is."""
    names = [name for name in results.encoders if name.startswith(f"{recipe}@")]
    return max(names, key=lambda name: results.encoders[name]["step"], default="")


def table(results: Results, encoder: str, systems: Sequence[str] = tuple(ROWS)) -> str:
    """Return the table of these systems and all datasets as Markdown."""
    lines = [
        f"| | {' | '.join(dataset.title for dataset in DATASETS)} | CPU s |",
        f"|{'---|' * (len(DATASETS) + 2)}",
    ]
    for system in systems:
        used = encoder if system in PRETRAINED else ""
        found = [summarize(results, dataset, system, used) for dataset in DATASETS]
        cost = "" if found[0] is None else short(found[0].cpu_seconds)
        lines.append(f"| {ROWS[system]} | {' | '.join(map(_cell, found))} | {cost} |")
    return "\n".join([*lines, "", caption(results, encoder)]) + "\n"


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "not run"
    spread = "" if summary.spread is None else f", {summary.seeds} seeds {summary.spread:.1f}"
    return f"{summary.mean:.1f} ± {summary.standard_error:.1f}{spread}"


def caption(results: Results, encoder: str) -> str:
    """Return how to read the table."""
    made = results.encoders.get(encoder)
    pretraining = (
        ""
        if made is None
        else (
            f" EAT-tiny is one pre-training without labels: {made['step']:,} steps, "
            f"{made['cpu_seconds'] / 60:.0f} CPU minutes."
        )
    )
    text = (
        "Percent: accuracy; audioset_mini: macro mAP over the classes with positives. ±: standard "
        "error over test clips (clips of one recording are not independent, so it is optimistic); "
        "after the number of seeds: standard deviation over them. CPU s: one core, all five folds "
        f"of ESC-10, features included, pre-training not.{pretraining} Made by `make small`."
    )
    return wrapped(text)


# ---- score against compute


def curve(results: Results, dataset: Dataset) -> dict[str, list[Point]]:
    """Return the points of every method, by title, in the order of their cost."""
    points: dict[str, list[Point]] = {}
    for name, made in sorted(results.encoders.items(), key=lambda item: item[1]["step"]):
        last, layers = (summarize(results, dataset, kind, name) for kind in ("last", "layers"))
        if last and layers:
            point = Point(made["title"], made["step"], made["cpu_seconds"], last, layers)
            points.setdefault(made["title"], []).append(point)
    return points


def curve_table(results: Results) -> str:
    """Return every point of the figure as Markdown."""
    lines = [
        "| method | step | CPU minutes | dataset | last layer | all layers |",
        "|---|---|---|---|---|---|",
    ]
    for dataset in _curve_datasets():
        for method, points in curve(results, dataset).items():
            for point in points:
                cells = (
                    method,
                    f"{point.step:,}",
                    f"{point.cpu_seconds / 60:.1f}",
                    dataset.title,
                    f"{point.last.mean:.1f}",
                    f"{point.layers.mean:.1f}",
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Results, file: Path) -> None:
    """Draw probes against CPU seconds of pre-training: all layers solid, the last layer dashed."""
    with drawing(7.2, 3.4) as figure:
        for axes, dataset in zip(figure.subplots(1, 2), _curve_datasets(), strict=True):
            lines = curve(results, dataset).items()
            for (method, points), color in zip(lines, COLORS, strict=False):
                minutes = [point.cpu_seconds / 60 for point in points]
                axes.errorbar(
                    minutes,
                    [point.layers.mean for point in points],
                    yerr=[point.layers.standard_error for point in points],
                    label=method,
                    color=color,
                    marker="o",
                    markersize=4,
                    elinewidth=0.6,
                )
                axes.plot(minutes, [point.last.mean for point in points], "o--", color=color, ms=3)
            for system, style in (("random_layers", ":"), ("log_mel", "-."), ("cnn", "-")):
                summary = summarize(results, dataset, system)
                if summary:
                    axes.axhline(summary.mean, linestyle=style, color="#555", linewidth=0.8)
                    axes.annotate(
                        ROWS[system].split(",")[0],
                        (0.99, summary.mean),
                        xycoords=("axes fraction", "data"),
                        ha="right",
                        va="bottom",
                        fontsize=6.5,
                    )
            axes.set_xscale("log")
            axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
            axes.set_xticks([], minor=True)
            axes.set_xlim(0.7, 140)
            axes.set_xlabel("CPU minutes of pre-training, one core")
            axes.set_ylabel("probe, accuracy, %")
            axes.set_title(dataset.title, fontsize=9)
        lines = {line.get_label(): line for one in figure.axes for line in one.containers}
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=3)
        write_text(file, to_svg(figure, "Probes against the compute of pre-training"))


def _curve_datasets() -> list[Dataset]:
    return [dataset for dataset in DATASETS if dataset.name in CURVES]


# ---- who wins where


def verdict(results: Results, encoder: str) -> list[str]:
    """Return sentences on who wins where; nothing about what was not run."""
    return [
        *(sentence for dataset in DATASETS for sentence in _winner(results, dataset, encoder)),
        *(sentence for dataset in _curve_datasets() for sentence in _methods(results, dataset)),
    ]


def _winner(results: Results, dataset: Dataset, encoder: str) -> list[str]:
    found = {
        system: summarize(results, dataset, system, encoder if system in PRETRAINED else "")
        for system in ROWS
        if system != "yamnet"
    }
    measured = {name: summary for name, summary in found.items() if summary}
    ours = {name: measured[name] for name in PRETRAINED if name in measured}
    others = {name: summary for name, summary in measured.items() if name not in ours}
    if not ours or not others:
        return []
    *_, used = ours  # fine-tuned, if that was run
    rival = max(others, key=lambda name: others[name].mean)
    gap = ours[used].mean - others[rival].mean
    error = (ours[used].standard_error ** 2 + others[rival].standard_error ** 2) ** 0.5
    doubt = "more" if abs(gap) > 2 * error else "not more"
    verb = "leads" if gap > 0 else "is behind"
    plain = ROWS[used].replace("*", "")
    missing = [ROWS[name] for name in found if name not in measured and name not in PRETRAINED]
    unknown = f" Not run: {'; '.join(missing)}." if missing else ""
    return [
        f"{dataset.title}: {plain} ({ours[used].mean:.1f} %) {verb} the best system without "
        f"pre-training that was run, {ROWS[rival]} ({others[rival].mean:.1f} %), by "
        f"{abs(gap):.1f} points, {doubt} than two standard errors of the difference "
        f"({2 * error:.1f}).{unknown}"
    ]


def _methods(results: Results, dataset: Dataset) -> list[str]:
    """Return who leads at the largest cost that all methods have reached."""
    points = curve(results, dataset)
    if len(points) < 2:
        return []
    budget = min(line[-1].cpu_seconds for line in points.values())
    at_budget: Sequence[tuple[str, Summary]] = [
        (method, [p for p in line if p.cpu_seconds <= budget * 1.05][-1].layers)
        for method, line in points.items()
    ]
    order = sorted(at_budget, key=lambda pair: -pair[1].mean)
    scores = ", ".join(f"{method} {summary.mean:.1f} %" for method, summary in order)
    return [
        f"{dataset.title}, probe of all layers after at most {budget / 60:.0f} CPU minutes of "
        f"pre-training each: {scores} (standard error {order[0][1].standard_error:.1f})."
    ]


# ---- pages


def write_pages(results: Results, encoder: str) -> None:
    """Write the tables onto their pages, and draw the figure if there is a curve."""
    readme, page = PAGES
    _between(readme, table(results, encoder, FIRST_PAGE))
    sentences = "".join(f"- {sentence}\n" for sentence in verdict(results, encoder))
    text = f"{table(results, encoder)}\n{wrapped(sentences)}\n"
    if any(curve(results, dataset) for dataset in _curve_datasets()):
        draw(results, FIGURE)
        text += f"![Probes against compute]({FIGURE.name})\n\n{curve_table(results)}"
    _between(page, text)


def _between(page: Path, text: str) -> None:
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    write_text(page, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
