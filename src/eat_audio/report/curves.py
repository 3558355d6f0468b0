"""A run's log -> charts: how training went, and what labeled clips said about the encoder."""

from collections.abc import Sequence

from eat_audio.report.drawings import SMOOTHED, Line, Points, chart, missing

Log = Sequence[dict[str, float]]
"""What `read_log` gives."""

VIEWS = (("cls", "CLS"), ("mean", "mean of patches"), ("both", "both"))
"""Features that a monitored run is looked at by."""
LOOKS = ("linear_", "knn_", "effective_rank_", "variance_")
"""How numbers that a monitor has found are called."""
UNDRAWN = ("step", "seconds", "skipped", "skipped_clips", "monitor_seconds", "gpu_memory_mb")
"""Numbers that are told elsewhere."""


def points(rows: Log, name: str) -> Points:
    """A logged number over steps."""
    return [(row["step"], row[name]) for row in rows if name in row]


def training_charts(rows: Log, *, pretraining: bool) -> list[str]:
    """Every logged number in a chart; those that belong together in one."""
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return [missing("No step is logged yet: log.jsonl is missing or holds none.")]
    names = dict.fromkeys(name for row in steps for name in row)
    left = [name for name in names if name not in UNDRAWN and not name.startswith(LOOKS)]
    about_loss = "On the training clips."
    if "tau" in names:
        about_loss = "The target moves with the teacher: it may rise while the encoder improves."
    elif pretraining:
        about_loss = "Over the patches that are guessed."
    spread = "Standard deviation over patches; near 0 would be a collapse."

    def draw(title: str, told: dict[str, str], *, shares: bool = False, note: str = "") -> str:
        """A chart of numbers and what they are called there, of those that are left."""
        there = [name for name in told if name in left]
        lines = [Line(told[n], points(steps, n), color) for color, n in enumerate(there)]
        left[:] = [name for name in left if name not in there]
        return chart(title, lines, shares=shares, note=note) if lines else ""

    parts = {name: name for name in ("loss", "frame", "utterance")}
    charts = [
        draw("Loss", parts, note=about_loss),
        draw("Training accuracy", {"accuracy": "accuracy"}, shares=True),
        draw("Spread", {"target_spread": "targets", "guess_spread": "guesses"}, note=spread),
        draw("Gradient norm", {"gradient_norm": "before clipping"}),
        draw("Learning rate", {"lr": "largest of all groups"}),
        draw("Teacher's decay", {"tau": "share that stays per step"}),
        draw(
            "Clips per second",
            {"clips_per_second_now": "since the last line", "clips_per_second": "mean"},
        ),
        draw("Waiting for data", {"data_wait": "share of the time"}, shares=True),
        draw("Memory, MB", {"memory_mb": "most held so far"}),
        *(draw(name.replace("_", " "), {name: name}) for name in list(left)),
    ]
    note = "Faint: every logged step. Strong: the mean of its neighbours."
    return [
        f'<div class="charts">{"".join(charts)}</div>',
        f'<p class="note">{note}</p>' if len(steps) > SMOOTHED else "",
    ]


def monitor_charts(rows: Log) -> str:
    """What labeled clips said about the encoder, beside one of random weights; "" if nothing."""
    rank = "How many directions the vectors use; 1 would be a collapse."
    charts = [
        _against_random(rows, f"{kind}_{metric}_", f"{title}, {shown}", shares=True)
        for kind, title in (("linear", "Linear probe"), ("knn", "Nearest neighbours"))
        for metric, shown in (("accuracy", "accuracy"), ("map", "mAP"))
    ]
    charts.append(_against_random(rows, "effective_rank_", "Effective rank", note=rank))
    charts.append(_against_random(rows, "variance_", "Variance over clips"))
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _against_random(
    rows: Log, prefix: str, title: str, *, shares: bool = False, note: str = ""
) -> str:
    """A chart with a line per view; dashed: what it was at step 0."""
    lines = []
    for color, (view, name) in enumerate(VIEWS):
        if line := points(rows, prefix + view):
            first, value = line[0]
            level = value if first == 0 else None
            lines.append(Line(name, line, color, level, "random"))
    return chart(title, lines, shares=shares, note=note) if lines else ""
