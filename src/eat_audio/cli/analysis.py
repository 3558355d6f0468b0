"""Commands that examine models and runs: evaluate, report, probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AllowRemote, AsJSON, Device, Precision, ReadLayers, show_table
from eat_audio.cli.inference import load_predictor
from eat_audio.errors import SettingError
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def evaluate(
    model: Annotated[
        str,
        Argument(help="A fine-tuned model; with --events also the folder that eat detect wrote."),
    ],
    *,
    data: Annotated[
        str | None,
        Option(
            help="Labeled clips: a manifest, or a folder in a known layout; with --events the "
            "folder of the recordings, if they are not beside the annotations."
        ),
    ] = None,
    events: Annotated[
        Path | None,
        Option(help="Annotated onsets and offsets: a table, or files of Raven or Audacity."),
    ] = None,
    split: Annotated[
        list[str] | None, Option(help="Only these splits or folds (may be repeated).")
    ] = None,
    seconds: Annotated[
        float | None, Option(help="How much of every clip is used; all of it by default.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for evaluation.json and .csv.")] = None,
    allow_remote: AllowRemote = False,
    as_json: AsJSON = False,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Score a fine-tuned model on labeled clips, or detected events against annotated ones.

    Clips: accuracy or mAP, and class by class. Events: event-based and segment-based F1, PSDS1.

    Example: eat evaluate events/ --events owls.csv
    """
    from dataclasses import asdict

    if data is None and events is None:
        raise SettingError("expected --data with labeled clips, or --events with annotations")
    if events is not None and (split or seconds):
        raise SettingError("--split and --seconds: not with --events")
    if events is not None:
        from eat_audio.inference.evaluate_events import evaluate_events

        def load() -> Any:
            return load_predictor(model, device, precision)

        scores = evaluate_events(model, events, data, load)
        if out is not None:
            scores.write(out)
        print_json(asdict(scores)) if as_json else show_event_scores(scores)
        return
    from eat_audio.evaluation.evaluate import evaluate_model

    result = evaluate_model(
        model,
        str(data),
        splits=tuple(split or ()),
        seconds=seconds,
        device=device,
        precision=precision,
    )
    if out is not None:
        result.write(out)
    if as_json:
        print_json(asdict(result))
    else:
        show_evaluation(result)


@app.command()
def report(
    run: Annotated[Path, Argument(help="The folder of a pre-training or a fine-tuning.")],
    out: Annotated[
        Path | None, Option("-o", "--out", help="The file; report.html in that folder by default.")
    ] = None,
    data: Annotated[
        str | None, Option(help="Labeled clips to search for nearest neighbors.")
    ] = None,
) -> None:
    """Write one page about a run: curves, masks, neighbors, scores; works while it trains, too.

    Example: eat report runs/esc50 -o esc50.html
    """
    from eat_audio.report.report import write_report

    print_lines(write_report(run, out, data))


@app.command()
def probe(
    model: Annotated[str, Argument(help="An encoder: a run's folder, a model folder, a Hub id.")],
    *,
    data: Annotated[str, Option(help="Labeled clips: a manifest, or a folder in a known layout.")],
    kind: Annotated[
        list[str] | None,
        Option(help="linear (by default), knn, attentive, prototype or gated; may be repeated."),
    ] = None,
    knn: Annotated[bool, Option("--knn", hidden=True, help="The same as --kind knn.")] = False,
    neighbors: Annotated[
        int, Option("--neighbors", "--neighbours", min=1, help="How many clips vote.")
    ] = 10,
    prototypes: Annotated[
        int, Option(min=1, max=20_000, help="Prototypes of the kinds prototype and gated.")
    ] = 200,
    seconds: Annotated[float, Option(min=0.1, help="Seconds of every clip that are used.")] = 10.24,
    seeds: Annotated[int, Option(min=0, help="Random encoders to compare it with.")] = 3,
    layers: ReadLayers = None,
    clips: Annotated[int | None, Option(min=2, help="Use at most so many clips.")] = None,
    allow_remote: AllowRemote = False,
    as_json: AsJSON = False,
    precision: Precision = "fp32",
) -> None:
    """Measure how well simple classifiers work on the features of a frozen encoder.

    linear, knn: of one vector per clip. "both" is the CLS token and the mean of the patches,
    "statistics" their deviation, too. attentive: learned queries over the patches. prototype: the
    nearest patch to each learned prototype. gated: the same in a learned mean of all layers.
    Beside them: encoders of the same shape with random weights, and log-mel statistics.

    --layers adds mean, deviation and deviation over time of each of these layers, and of all of
    them together; attentive and prototype take each of them, and gated weights them.

    Example: eat probe runs/tiny --data ESC-50/ --kind linear --kind gated
    """
    from dataclasses import asdict

    from eat_audio.evaluation.probe import probe_encoder

    kinds = [*dict.fromkeys([*(kind or ["linear"]), *(["knn"] if knn else [])])]
    result = probe_encoder(
        model,
        data,
        kinds=kinds,
        seconds=seconds,
        seeds=seeds,
        neighbors=neighbors,
        prototypes=prototypes,
        max_clips=clips,
        layers=layers,
        precision=precision,
    )
    if as_json:
        print_json(asdict(result))
        return
    _show(result, kinds)
    for message in result.unreadable:
        print_lines(f"skipped: {message}", error=True)


def _show(result: Any, kinds: Sequence[str]) -> None:
    """Print the rows of a probe, and what was measured."""
    names = [f"{'k-NN' if kind == 'knn' else kind} {result.metric}" for kind in kinds]
    rows = []
    for row in [*result.rows, *result.token_rows]:
        scores = [getattr(row, kind, None) for kind in kinds]
        cells = [f"{100 * s.mean:.1f} ± {100 * s.std:.1f} %" if s else "" for s in scores]
        rank = f"{row.effective_rank:.1f}" if row in result.rows else ""
        rows.append((row.features, row.encoder, *cells, rank))
    columns = ("features", "encoder", *names, "effective rank")
    show_table(f"Probe on {result.corpus}", columns, rows)
    print_lines(
        f"{result.clips} clips, {result.classes} labels, {result.split}; "
        f"by chance {100 * result.chance:.1f} %",
        f"±: standard deviation over {result.std_over}; of random encoders, over their seeds",
    )


def show_evaluation(evaluation: Any) -> None:
    """Print the scores of the classes, weakest first, and the overall score."""
    metric = evaluation.metric
    classes = sorted((c for c in evaluation.classes if c["clips"]), key=lambda c: c[metric])
    rows = [(c["label"], str(c["clips"]), f"{c[metric]:.1%}") for c in classes]
    show_table("Classes", ("label", "clips", metric), rows)
    notes = []
    if evaluation.without_positive:
        notes.append(f"{evaluation.without_positive} classes without a clip are not counted")
    if evaluation.unreadable:
        notes.append(f"{len(evaluation.unreadable)} unreadable clips are left out")
    note = f" ({'; '.join(notes)})" if notes else ""
    total = f"{metric} {evaluation.value:.2%} on {evaluation.clips} clips"
    print_lines(f"{total}, {len(classes)} classes{note}")
    for message in evaluation.unreadable:
        print_lines(f"skipped: {message}", error=True)


def show_event_scores(scores: Any) -> None:
    """Print the scores of the labels, weakest first, and the overall scores."""
    header = ("label", "events", "detections", "precision", "recall", "event F1", "segment F1")
    rows = []
    for row in sorted(scores.classes, key=lambda row: row["event_f1"]):
        label, annotated, detected, *values = row.values()
        shares = (f"{value:.1%}" for value in values)
        rows.append((label, str(annotated), str(detected), *shares))
    show_table("Events", header, rows)
    hours = "" if scores.hours is None else f", {scores.hours:.2f} h"
    psds1 = "not known (needs the length of every recording)"
    if scores.psds1 is not None:
        psds1 = f"{scores.psds1:.4f} (at {scores.operating_points} thresholds)"
    print_lines(
        f"{scores.recordings} recordings{hours}; means over {len(rows)} labels in parentheses",
        f"event F1 {scores.event_f1:.2%} ({scores.event_f1_macro:.2%}), segment F1 "
        f"{scores.segment_f1:.2%} ({scores.segment_f1_macro:.2%}), PSDS1 {psds1}",
    )
    if scores.not_scored:
        count, labels = sum(scores.not_scored.values()), len(scores.not_scored)
        print_lines(f"not scored: {count} detections of {labels} labels without annotations")
    for message in scores.unreadable:
        print_lines(f"skipped: {message}", error=True)
