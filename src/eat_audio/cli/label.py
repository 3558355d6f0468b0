"""Command that labels stored vectors: label."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AsJSON, Device, ModelSource, Precision, show_table
from eat_audio.errors import SettingError
from eat_audio.progress import print_json, print_lines

app = typer.Typer()

ANSWERS = {
    **{"y": "yes", "yes": "yes", "n": "no", "no": "no", "s": "skip", "skip": "skip"},
    **{"q": "quit", "quit": "quit"},
}


@app.command()
def label(
    vectors: Annotated[Path, Argument(help="What `eat embed` wrote.")],
    *,
    examples: Annotated[
        list[str] | None,
        Option(metavar="LABEL=FILE[,FILE]...", help="Recordings of a sound (may be repeated)."),
    ] = None,
    negative: Annotated[
        list[Path] | None, Option(help="A recording of none of them (may be repeated).")
    ] = None,
    budget: Annotated[
        int, Option(min=0, help="Judgements in all; skipped ones do not count.")
    ] = 30,
    out: Annotated[
        Path | None, Option("-o", "--out", help="Folder for the answers and the model.")
    ] = None,
    simulate: Annotated[
        str | None,
        Option(metavar="LABELS", help="Answer by these labels instead, and measure the result."),
    ] = None,
    seeds: Annotated[int, Option(min=1, help="With --simulate: draws of examples.")] = 5,
    page: Annotated[
        bool, Option("--page", help="Answer on a page in the browser, which plays the sounds.")
    ] = False,
    model: ModelSource = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJSON = False,
) -> str | None:
    """Learn a sound from a few examples and your answers about the most useful recordings.

    Every question names a file and seconds, and plays them with --page. Answer y, n, skip or quit.
    Answers are saved at once, and the same command goes on with them. At the end the folder is a
    model for eat predict, detect and export.

    Example: eat label vectors.parquet --examples owl=a.wav,b.wav -o owl/
    """
    from eat_audio.inference.predictor import load
    from eat_audio.search.index import open_index

    if simulate is None and (out is None or not examples):
        raise SettingError("expected --examples LABEL=FILE,... and --out FOLDER, or --simulate")
    unused = {"--examples": examples, "--negative": negative, "--out": out, "--page": page}
    for option, given in unused.items() if simulate is not None else ():
        if given:
            raise SettingError(
                f"{option}: expected without --simulate, which draws examples, has all answers and "
                "writes nothing"
            )
    index = open_index(vectors)
    predictor = load(model, device=device, precision=precision)
    if simulate is not None:
        from eat_audio.search.simulate import simulate_labels

        result = simulate_labels(index, predictor, simulate, budget=budget, seeds=seeds)
        if as_json:
            averages = {"mean_f1": result.f1, "mean_all": result.all_labels, "share": result.share}
            print_json(asdict(result) | averages)
        else:
            _show_simulation(result)
        return ""
    from eat_audio.lock import lock_folder
    from eat_audio.search.label import TITLES, LabelJob

    assert out is not None
    with lock_folder(out):
        job = LabelJob(index, predictor, _parse_examples(examples or []), negative or [], out=out)
        if page:
            _answer_on_page(job, budget)
        else:
            _answer_here(job, budget)
        results = job.finish()
    if as_json:
        print_json([asdict(result) for result in results])
        return None
    show_table(str(out), TITLES, [result.cells() for result in results])
    return None


def _answer_on_page(job: Any, budget: int) -> None:
    """Serve the questions until the user ends the command."""
    from eat_audio.app.labeling import served_job
    from eat_audio.app.page import wait

    with served_job(job, budget) as address:
        print_lines(f"{address} (Ctrl+C ends it and writes the model)", error=True)
        wait()


def _answer_here(job: Any, budget: int) -> None:
    """Put the questions in the terminal."""
    for question in job.questions(budget):
        answer = _read_answer(question, len(job.judgements))
        if answer == "quit":
            break
        job.answer(question, answer)


def _parse_examples(examples: list[str]) -> dict[str, list[Path]]:
    """Return the recordings of each label, from LABEL=FILE,..."""
    parsed: dict[str, list[Path]] = {}
    for text in examples:
        label, equals, files = text.partition("=")
        if not (label and equals and files):
            raise SettingError(f"--examples {text}: expected LABEL=FILE,...")
        parsed.setdefault(label, []).extend(map(Path, files.split(",")))
    return parsed


def _read_answer(question: Any, number: int) -> str:
    """Print a question; return its answer, "quit" at the end of the input."""
    end = question.start + question.seconds
    times = f" {question.start:.1f}-{end:.1f} s" if math.isfinite(end) else ""
    while True:
        print_lines(
            f"{number + 1}: {question.label}? {question.path}{times} ({question.score:.2f})"
        )
        try:
            text = input("y, n, skip or quit: ")
        except EOFError:
            return "quit"
        if text.strip().lower() in ANSWERS:
            return ANSWERS[text.strip().lower()]


def _show_simulation(result: Any) -> None:
    """Print F1 by the number of judgements, class by class."""
    numbers = list(result.f1)
    columns = ("label", *(f"F1 after {n}" for n in numbers), "all labels")
    rows = [
        (row.label, *(f"{row.f1[n]:.3f}" for n in numbers), f"{row.all_labels:.3f}")
        for row in result.labels
    ]
    rows.append(("mean", *(f"{result.f1[n]:.3f}" for n in numbers), f"{result.all_labels:.3f}"))
    show_table(f"Labels of {result.corpus}", columns, rows)
    print_lines(
        f"{result.budget} judgements reach {result.share:.1%} of the F1 that all labels give: "
        f"{result.vectors} vectors, {result.split}, {result.seeds} seeds"
    )
