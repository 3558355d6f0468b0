"""What a demo found -> one HTML file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.evaluation.probe import Probe
from eat_audio.report.curves import Log, points
from eat_audio.report.drawings import (
    Line,
    bars,
    chart,
    page,
    percent,
    table,
    text,
    with_error,
)
from eat_audio.report.exhibits import by_class
from eat_audio.report.pictures import Example, data_url, masked

MOST_AUDIO = 1_000_000
"""Bytes of sound that are put into the page."""


@dataclass(frozen=True)
class Guess:
    """What the fine-tuned model says about a sound it has never heard."""

    path: str
    truth: str
    """Its labels."""
    wav: bytes
    """The sound itself, as a WAV file."""
    scores: Sequence[tuple[str, float]]
    """Labels, likeliest first, with their probabilities."""


@dataclass(frozen=True)
class Findings:
    """All that a report tells; every number in it was measured."""

    corpus: str
    train: int
    """Clips to learn from."""
    test: int
    """Clips to be tested on."""
    classes: int
    chance: float
    """What is reached without listening."""
    pooled: float
    """What the same linear classifier reaches on each mel bin's mean and deviation."""
    before: Probe
    after: Probe
    pretraining: Log
    finetuning: Log
    scratch: Log
    evaluation: Evaluation
    """Of the model fine-tuned from the pre-trained encoder."""
    from_scratch: Evaluation
    """Of the same model fine-tuned from random weights."""
    example: Example
    prediction: Guess
    stages: Sequence[tuple[str, float]]
    """What was done, and how many seconds it took."""
    settings: Sequence[tuple[str, str]]
    """Names and YAML of the recipes that ran."""
    versions: Sequence[tuple[str, str]]
    commands: Sequence[str]
    """What to do next."""

    @property
    def metric(self) -> str:
        """Accuracy or mAP."""
        return self.evaluation.metric


def render(found: Findings) -> str:
    """The page."""
    scores = ("fine-tuned from the pre-trained encoder", "the same from random weights")
    parts = [
        f"<h1>What a tiny encoder learnt from {found.train:,} clips</h1>",
        f"<p class=lead>{text(headline(found))}</p>",
        "<h2>What pre-training sees</h2>",
        "<p>The teacher hears the whole clip. The student hears a few blocks of it and has to "
        "predict what the teacher makes of all the rest, without any label.</p>",
        masked(found.example),
        "<h2>Does it learn?</h2>",
        '<div class="two">',
        chart(
            "Pre-training: loss",
            [
                Line(name, points(found.pretraining, name), color)
                for color, name in enumerate(("loss", "frame", "utterance"))
            ],
            note="The loss and its parts, about single patches and about whole clips. The target "
            "moves with the teacher, so the loss may rise while the encoder gets better.",
        ),
        chart(
            "Fine-tuning: loss",
            [
                Line("pre-trained", points(found.finetuning, "loss"), 0),
                Line("from scratch", points(found.scratch, "loss"), 1),
            ],
            note="On the training clips, from the pre-trained encoder and from random weights.",
        ),
        "</div>",
        "<h2>What a linear classifier finds in frozen features</h2>",
        *probe_bars(found),
        f'<p class="note">{text(_probe_caption(found))}</p>',
        "<h2>After fine-tuning</h2>",
        table(
            ("encoder", f"{found.metric} on {found.test:,} test clips"),
            [
                (name, with_error(one.metric, one.value, one.clips))
                for name, one in zip(scores, (found.evaluation, found.from_scratch), strict=True)
            ],
        ),
        f"<p>{text(verdict(found))}</p>",
        by_class(found.evaluation),
        "<h2>A sound it has never heard</h2>",
        _guess(found.prediction),
        "<h2>What was done</h2>",
        table(("stage", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in found.stages]),
        table(("software", "version"), found.versions),
        *(
            f"<details><summary>Settings: {text(name)}</summary><pre>{text(yaml)}</pre></details>"
            for name, yaml in found.settings
        ),
        "<h2>Next</h2>",
        f"<pre>{text(chr(10).join(found.commands))}</pre>",
    ]
    return page(f"eat demo: {found.corpus}", parts)


def verdict(found: Findings) -> str:
    """What pre-training brought to fine-tuning, and whether so few clips can tell."""
    with_it, without = found.evaluation, found.from_scratch
    points = 100 * (with_it.value - without.value)
    said = f"Fine-tuning reached {abs(points):.1f} points {'more' if points > 0 else 'less'} from"
    said += " the pre-trained encoder than from random weights"
    if found.metric != "accuracy":
        return f"{said}."
    error = 100 * math.hypot(_error(with_it), _error(without))
    if abs(points) < 2 * error:
        return f"{said}: within twice the standard error ({error:.1f}), so it may be chance."
    return f"{said}: more than twice the standard error ({error:.1f})."


def _error(evaluation: Evaluation) -> float:
    """Standard error of an accuracy."""
    return math.sqrt(evaluation.value * (1 - evaluation.value) / evaluation.clips)


def headline(found: Findings) -> str:
    """The result in two sentences."""
    return (
        f"{found.corpus}: {found.train:,} clips to learn from, {found.test:,} to be tested on, "
        f"{found.classes} classes. A linear classifier on frozen features went from "
        f"{percent(found.before.mean)} to {percent(found.after.mean)} {found.metric} through "
        f"pre-training without labels; fine-tuned with labels the model reaches "
        f"{with_error(found.metric, found.evaluation.value, found.evaluation.clips)}."
    )


def probe_bars(found: Findings) -> list[str]:
    """The probe on every kind of feature before and after, beside chance and pooled log-mel."""
    before, after = found.before, found.after
    assert before.cls is not None and before.both is not None
    assert after.cls is not None and after.both is not None
    views = (
        ("mean of patches", before.mean, after.mean),
        ("CLS token", before.cls, after.cls),
        ("both", before.both, after.both),
    )
    without = [
        ("by chance", found.chance, ""),
        ("log-mel statistics, no encoder", found.pooled, ""),
    ]
    return [
        '<div class="card">',
        bars([(f"{view}, pre-trained", late, "") for view, _, late in views]),
        bars([(f"{view}, random weights", early, "") for view, early, _ in views], color=1),
        bars(without, color=3),
        "</div>",
    ]


def _probe_caption(found: Findings) -> str:
    said = (
        f"{found.metric} on {found.test:,} test clips of the same logistic regression on "
        "different features: each mel bin's mean and standard deviation over the clip (no encoder "
        "at all), and the encoder's before and after pre-training."
    )
    if found.after.mean < found.pooled:
        said += " A pre-training of minutes has not caught up with plain log-mel statistics here."
    return said


def _guess(prediction: Guess) -> str:
    sound = ""
    if len(prediction.wav) < MOST_AUDIO:
        sound = f'<audio controls src="{data_url(prediction.wav, "audio/wav")}"></audio>'
    return (
        f"<p>{text(prediction.path)}, which is {text(prediction.truth)}:</p>{sound}"
        f'<div class="card">{bars((label, score, "") for label, score in prediction.scores)}</div>'
    )
