"""Summarize scores and costs in a table and in sentences.

Costs are means over all runs of a method; scores are means over parts for every seed, then mean
and standard deviation over seeds. The speed-up is the paper's: how much less one method has spent
by the time it is as good as another is in the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from benchmarks.compare_methods.plan import Method, Plan
from benchmarks.compare_methods.runs import Results, Run
from eat_audio.report.figures import short


@dataclass(frozen=True)
class Score:
    """Percent: a mean over seeds, and their standard deviation if there are several."""

    mean: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")


@dataclass(frozen=True)
class Mark:
    """A point of a curve: a cost and a score."""

    minutes: float
    """CPU minutes; nan if unknown."""
    clips: int
    probe: Score


@dataclass(frozen=True)
class Row:
    """A method in the result."""

    method: str
    title: str
    steps: str
    """Of all stages."""
    clips: int
    epochs: float
    cpu_hours: float
    """Of one pre-training, nan if unknown; so is `clips_per_second`."""
    clips_per_second: float
    gflop_per_clip: float
    tflop: float
    curve: tuple[Mark, ...]
    random: Score
    """The probe of encoders with random weights."""
    finetuned: Score | None = None
    scratch: Score | None = None
    """The same fine-tuning from random weights."""

    @property
    def probe(self) -> Score:
        """In the end."""
        return self.curve[-1].probe


@dataclass(frozen=True)
class Summary:
    """The result of a comparison."""

    metric: str
    budget: str
    reference: str
    """The method whose score the others have to reach."""
    rows: tuple[Row, ...]
    log_mel: float
    """Percent: the same classifier without any encoder."""
    seeds: int
    parts: int

    def row(self, method: str) -> Row:
        """Of a method."""
        return next(row for row in self.rows if row.method == method)


def summarize(plan: Plan, results: Results) -> Summary:
    """Means and spreads of everything."""
    return Summary(
        metric=results.metric,
        budget=str(plan.request.budget),
        reference=plan.request.compared_with,
        rows=tuple(_row(plan, results, method) for method in plan.methods),
        log_mel=100 * mean(results.log_mel),
        seeds=plan.request.seeds,
        parts=len(plan.parts),
    )


def _row(plan: Plan, results: Results, method: Method) -> Row:
    runs = [run for run in results.runs if run.method == method.label]
    curve = []
    for place in range(len(runs[0].points)):
        points = [run.points[place] for run in runs]
        minutes = _mean([p.cpu_seconds for p in points]) / 60
        curve.append(Mark(minutes, points[0].clips, _score(runs, [p.probe for p in points])))
    seconds = _mean([run.cpu_seconds for run in runs])
    part_clips = [len(plan.corpus.select(*part.train)) for part in plan.parts]
    return Row(
        method=method.label,
        title=method.title,
        steps=" + ".join(f"{leg.steps:,}" for leg in method.legs),
        clips=method.clips,
        epochs=method.clips / mean(part_clips),
        cpu_hours=seconds / 3600,
        clips_per_second=method.clips / seconds,
        gflop_per_clip=1e3 * method.tflop / method.clips,
        tflop=method.tflop,
        curve=tuple(curve),
        random=over([100 * mean(parts) for parts in results.random[method.label]]),
        finetuned=_optional(runs, [run.finetuned for run in runs]),
        scratch=_optional(runs, [run.scratch for run in runs]),
    )


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return mean(numbers) if numbers else math.nan


def _optional(runs: Sequence[Run], values: Sequence[float | None]) -> Score | None:
    numbers = [value for value in values if value is not None]
    return _score(runs, numbers) if len(numbers) == len(runs) else None


def _score(runs: Sequence[Run], values: Sequence[float]) -> Score:
    """The score of runs, each with its value between 0 and 1."""
    by_seed: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        by_seed.setdefault(run.seed, []).append(100 * value)
    return over([mean(parts) for parts in by_seed.values()])


def over(seeds: Sequence[float]) -> Score:
    """Mean and spread of what every seed has reached, in percent."""
    return Score(mean(seeds), stdev(seeds) if len(seeds) > 1 else None)


# ---- what the numbers say ----


def speed_up(row: Row, reference: Row) -> float | None:
    """How much less a method has spent when it is as good as the reference in the end.

    Nothing is guessed between the points of a curve, so it is rather too small than too large.

    Returns:
        1 for the reference itself, None for a method that does not get there.
    """
    if row is reference:
        return 1.0
    for mark in row.curve:
        if mark.probe.mean >= reference.probe.mean:
            return reference.curve[-1].minutes / mark.minutes
    return None


def verdict(summary: Summary) -> list[str]:
    """Return sentences: the winner, its lead, and reasons for doubt."""
    return [
        _winner(summary, "probe"),
        *([_winner(summary, "finetuned")] if all(row.finetuned for row in summary.rows) else []),
        *_reached(summary),
        *_nothing_learnt(summary),
        *([] if summary.seeds > 1 else ["One seed gives no spread; --seeds adds more."]),
    ]


def _winner(summary: Summary, kind: str) -> str:
    """The best two, by their probe or after fine-tuning."""
    scores = {row.method: getattr(row, kind) for row in summary.rows}
    order = sorted(scores, key=lambda method: -scores[method].mean)
    best = scores[order[0]]
    when = "Best" if kind == "probe" else "Best after fine-tuning"
    how = f"{summary.metric}, linear probe" if kind == "probe" else summary.metric
    sentence = f"{when}, with {summary.budget} of pre-training each: {order[0]}, {best} % ({how})"
    if len(order) == 1:
        return sentence + "."
    second = scores[order[1]]
    gap = best.mean - second.mean
    sentence += f"; next {order[1]}, {second} %"
    if gap == 0:
        return sentence + ": no difference."
    if best.spread is None:
        return sentence + f": {gap:.1f} points."
    spread = math.hypot(best.spread, second.spread)
    within = "within" if gap <= spread else "more than"
    return sentence + f": {gap:.1f} points, which is {within} the spread over seeds ({spread:.1f})."


def _reached(summary: Summary) -> list[str]:
    """Which methods get as far as the reference, and for how much less."""
    reference = summary.row(summary.reference)
    goal = f"the {reference.probe.mean:.1f} % that {reference.method} ends with"
    sentences = []
    for row in summary.rows:
        if row is reference:
            continue
        factor = speed_up(row, reference)
        if factor is None:
            sentences.append(f"{row.method} does not reach {goal}.")
        elif math.isfinite(factor):
            sentences.append(
                f"{row.method} reaches {goal} at {_times(factor)} its pre-training cost."
            )
    return sentences


def _times(factor: float) -> str:
    return f"1/{factor:.1f} of" if factor >= 1 else f"{1 / factor:.1f} times"


def _nothing_learnt(summary: Summary) -> list[str]:
    """Return sentences about encoders that are no better than their baselines."""
    sentences = [
        f"{row.method} is no better than random weights ({row.random} %) for a linear probe."
        for row in summary.rows
        if row.probe.mean <= row.random.mean
    ]
    sentences += [
        f"{row.method}, fine-tuned, is no better than the same from scratch ({row.scratch} %)."
        for row in summary.rows
        if row.finetuned and row.scratch and row.finetuned.mean <= row.scratch.mean
    ]
    below = [row.method for row in summary.rows if row.probe.mean < summary.log_mel]
    if below:
        who = f"{', '.join(below)} {'is' if len(below) == 1 else 'are'}"
        level = f"log-mel statistics without any encoder ({summary.log_mel:.1f} %)"
        sentences.append(f"{who} below {level}.")
    return sentences


# ---- the table ----


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Columns, one for every method, and rows; of log-mel statistics there is only a score."""
    reference = summary.row(summary.reference)
    rows = {
        "steps": [row.steps for row in summary.rows],
        "clips": [f"{row.clips:,}" for row in summary.rows],
        "epochs": [short(round(row.epochs, 1)) for row in summary.rows],
        "CPU-hours": [_or_dash(row.cpu_hours) for row in summary.rows],
        "clips per CPU second": [_or_dash(row.clips_per_second) for row in summary.rows],
        "GFLOP per clip": [f"{row.gflop_per_clip:.3g}" for row in summary.rows],
        "TFLOP": [f"{row.tflop:.3g}" for row in summary.rows],
        f"linear probe, {summary.metric}, %": [str(row.probe) for row in summary.rows],
        "the same, random weights": [str(row.random) for row in summary.rows],
    }
    probe = list(rows)[-2]
    if any(row.finetuned for row in summary.rows):
        rows[f"fine-tuned, {summary.metric}, %"] = [_cell(row.finetuned) for row in summary.rows]
        rows["the same, from scratch"] = [_cell(row.scratch) for row in summary.rows]
    speed_ups = [_speed_up_cell(row, reference) for row in summary.rows]
    rows[f"speed-up over {summary.reference}"] = speed_ups
    beside = {probe: f"{summary.log_mel:.1f}"}
    columns = ["", *(row.method for row in summary.rows), "log-mel statistics"]
    return columns, [[name, *cells, beside.get(name, "")] for name, cells in rows.items()]


def _or_dash(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _cell(score: Score | None) -> str:
    return "-" if score is None else str(score)


def _speed_up_cell(row: Row, reference: Row) -> str:
    if row is reference:
        return "1 (reference)"
    factor = speed_up(row, reference)
    if factor is None:
        return "not reached"
    return f"{factor:.1f}" if math.isfinite(factor) else "-"


def about(summary: Summary) -> str:
    """Return how to read the numbers."""
    over_seeds = f"{summary.seeds} seeds" if summary.seeds > 1 else "1 seed"
    parts = f"{summary.parts} folds" if summary.parts > 1 else "1 test split"
    spread = "; ±: standard deviation over seeds" if summary.seeds > 1 else ""
    return (
        f"Costs are those of one pre-training, start-up included. Scores: mean over {over_seeds} "
        f"and {parts}{spread}. Speed-up: how much less CPU time a method has spent at the first "
        f"point at which its probe is as good as that of {summary.reference} in the end."
    )


def markdown(summary: Summary) -> str:
    """The sentences and the table."""
    columns, rows = table(summary)
    lines = [f"- {sentence}" for sentence in verdict(summary)]
    lines += ["", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", about(summary)]) + "\n"
