"""Label stored vectors on a page: one candidate at a time, with its sound and three answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from eat_audio.app.page import served_views
from eat_audio.app.views import labels_view, notice, question_view
from eat_audio.errors import EatError
from eat_audio.search.excerpts import excerpt_of_row, name_of_row
from eat_audio.search.label import LabelJob

BUTTONS = {"yes": "Yes", "no": "No", "skip": "Skip"}
"""The answers, and what their buttons say."""


@contextmanager
def served_job(job: LabelJob, budget: int, *, port: int | None = None) -> Iterator[str]:
    """Serve the questions of a job on this machine while the context lasts; yield the address.

    Everybody who opens the page answers the same question.

    Raises:
        SettingError: Gradio is not installed, or the port is taken.
    """
    introduction = (
        "Is the sound in this recording? Answers are saved at once; what is most useful to judge "
        "comes next."
    )
    note = f"{', '.join(job.learners)}: {len(job.rows):,} candidates of {job.index.place.name}"
    view = partial(_label_view, job, budget)
    with served_views({"Label": view}, introduction, note, port=port) as address:
        yield address


def _label_view(job: LabelJob, budget: int, tab: Any) -> None:
    """Add the present question, the answers, and the button that writes the model."""
    import gradio

    questions = job.questions(budget)
    question = next(questions, None)

    def shown() -> str:
        if question is None:
            return notice([f"{len(job.judgements)} answers: no question is left. Write the model."])
        name, excerpt, problem = name_of_row(job.index, question.row), None, ""
        try:
            excerpt = excerpt_of_row(job.index, question.row)
        except EatError as error:
            problem = str(error)
        progress = f"{job.judged} of {budget} judged"
        return question_view(question, name, progress, excerpt, problem)

    def take(answer: str, number: float) -> tuple[str, int]:
        nonlocal question
        if question is not None and int(number) == len(job.judgements):  # of this very question
            job.answer(question, answer)
            question = next(questions, None)
        return shown(), len(job.judgements)

    def write() -> str:
        try:
            return labels_view(job.finish(), str(job.out))
        except EatError as error:
            return notice([str(error)], "error")

    html = gradio.HTML(shown)
    number = gradio.Number(lambda: len(job.judgements), visible=False)
    options: dict[str, Any] = {"concurrency_id": "label", "concurrency_limit": 1}
    with gradio.Row():
        for answer, title in BUTTONS.items():
            button = gradio.Button(title, variant="primary" if answer == "yes" else "secondary")
            button.click(partial(take, answer), number, [html, number], **options)
    finish, table = gradio.Button("Write the model"), gradio.HTML()
    finish.click(write, None, table, **options)
