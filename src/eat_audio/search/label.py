"""Label vectors on disk: a few examples of sounds, answers to some questions, then a classifier.

    label.json        what is labeled: vectors, classes, examples
    judgements.csv    the answers, written anew after every one: label,path,start,seconds,answer
    config.json, model.safetensors, preprocessor_config.json    the model, at the end

The questions follow from the answers alone, so a job that was killed goes on where it was. The
model is the encoder of the vectors with a linear head on them, so that its scores are those by
which the questions were chosen.

Shapes: N vectors, n of them candidates, D width.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eat_audio.checkpoints.load import spec_of
from eat_audio.errors import DataError, SettingError
from eat_audio.evaluation.metrics import Array
from eat_audio.inference.inputs import storable
from eat_audio.inference.predictor import Predictor
from eat_audio.models import save
from eat_audio.models.common.modeling import AudioClassifier
from eat_audio.search.index import Index
from eat_audio.search.learn import Head, Learner, Standard
from eat_audio.text import csv_cell, from_csv_cell
from eat_audio.writing import ASIDE, write_json, write_text, written_aside

CANDIDATES = 20_000
"""Vectors that are candidates at most: half of them the nearest to the examples, half evenly from
all."""
OF_LABELS = ("id2label", "label2id", "num_classes", "problem_type")
"""Fields of a configuration that belong to the labels."""
ANSWERS = {"yes": True, "no": False, "skip": None}
RECORD, JUDGEMENTS = "label.json", "judgements.csv"
COLUMNS = ["label", "path", "start", "seconds", "answer"]


@dataclass(frozen=True)
class Question:
    """Whether a candidate is of a class."""

    label: str
    row: int
    """Of the index."""
    path: str
    start: float
    """Seconds from the start of the recording."""
    seconds: float
    """inf: to the end of the recording."""
    score: float
    """The probability by what is known so far."""


@dataclass(frozen=True)
class LabelResult:
    """What a class was learned from, and how well."""

    label: str
    yes: int
    """Examples and candidates that are of the class, in vectors."""
    no: int
    kind: str
    f1: float | None
    """In cross-validation over what is judged; None: of too few recordings."""
    threshold: float
    candidates: int
    """Candidates that reach the threshold."""

    def cells(self) -> tuple[str, ...]:
        """Return what a table shows of it; see `TITLES`."""
        f1 = "" if self.f1 is None else f"{self.f1:.2f}"
        numbers = (str(self.yes), str(self.no), self.kind, f1, f"{self.threshold:.2f}")
        return self.label, *numbers, str(self.candidates)


TITLES = ("label", "yes", "no", "classifier", "F1 in cross-validation", "threshold", "reach it")
"""Of the columns of a table of results."""


def classifier(
    predictor: Predictor, made_by: Mapping[str, Any], names: Sequence[str]
) -> AudioClassifier:
    """Return the encoder of stored vectors with a head for these labels, which is still zero."""
    encoder = predictor.model
    config = encoder.config.for_labels(names, several=True, pooling=encoder.config.pooling)
    # of fine-tuning, only the labels: the encoder stays as it was when it made the vectors
    fields = encoder.config.to_dict() | {name: getattr(config, name) for name in OF_LABELS}
    fields |= {"vector_layers": made_by.get("layers"), "thresholds": None}
    model = spec_of(config).classifier(type(config)(**fields))
    heads = ("model.head.", "model.fc_norm.")
    weights = encoder.state_dict().items()
    own = {name: tensor.float() for name, tensor in weights if not name.startswith(heads)}
    missing, unknown = model.load_state_dict(own, strict=False)
    assert not unknown and all(name.startswith(heads) for name in missing)
    torch.nn.init.zeros_(model.model.head.weight)
    torch.nn.init.zeros_(model.model.head.bias)
    return model.eval()


@torch.no_grad()
def set_heads(model: AudioClassifier, heads: Sequence[Head]) -> None:
    """Write heads of normed vectors, and their thresholds, into a classifier."""
    model.model.head.weight.copy_(torch.from_numpy(np.stack([head.weight for head in heads])))
    model.model.head.bias.copy_(torch.tensor([head.bias for head in heads]))
    model.config.thresholds = [round(head.threshold, 4) for head in heads]


@torch.no_grad()
def normed(model: AudioClassifier, vectors: NDArray[Any]) -> Array:
    """Return stored vectors (n, D) as they enter the head of a classifier."""
    return model.normed(torch.from_numpy(np.asarray(vectors, np.float32))).numpy()


class LabelJob:
    """Questions about the vectors of an index, and a model from the answers.

    Args:
        index: The vectors.
        predictor: The model that made them.
        examples: Recordings of every class, by its label.
        negatives: Recordings of none of them.
        out: The folder for answers and model, locked by the caller.

    Raises:
        DataError: Another model made the vectors, or the folder holds another job.
        AudioError: An example cannot be read.
    """

    def __init__(
        self,
        index: Index,
        predictor: Predictor,
        examples: Mapping[str, Sequence[Path]],
        negatives: Sequence[Path] = (),
        *,
        out: Path,
    ) -> None:
        self.index, self.out, self.features = index, out, predictor.features
        self.judgements: list[list[str]] = []
        files = {label: [storable(path) for path in paths] for label, paths in examples.items()}
        self.record = {
            "vectors": json.loads(json.dumps(index.made_by)),
            "rows": len(index),
            "examples": files,
            "negatives": [storable(path) for path in negatives],
        }
        earlier = self._earlier()
        sounds = {
            path: index.embed_as_stored(predictor, path) for path in _all_files(examples, negatives)
        }
        self.model = classifier(predictor, index.made_by, list(examples))
        self.rows = _candidates(index, np.concatenate([*sounds.values()]))
        vectors = normed(self.model, index.stored(self.rows))
        self.standard = Standard.of(vectors)
        pool = self.standard(vectors)
        recordings = [index.paths[row] for row in self.rows]
        given = {os.path.realpath(path) for path in sounds}
        real = {path: os.path.realpath(index.folder / path) for path in set(recordings)}
        closed = {n for n, path in enumerate(recordings) if real[path] in given}
        self.learners = {}
        for label, paths in examples.items():
            used = [(path, True) for path in paths] + [(path, False) for path in negatives]
            inputs = [normed(self.model, sounds[path]) for path, _ in used]
            self.learners[label] = Learner(
                pool,
                recordings,
                self.standard(np.concatenate(inputs)),
                np.repeat([positive for _, positive in used], [len(x) for x in inputs]),
                np.repeat([str(path) for path, _ in used], [len(x) for x in inputs]).tolist(),
                closed=set(closed),
            )
        self.numbers = {self._place(row): n for n, row in enumerate(self.rows)}
        for row in earlier:
            self._repeat(row)
        write_json(out / RECORD, self.record)  # now that all examples could be read

    def _earlier(self) -> list[list[str]]:
        """Return the answers of an earlier job in the folder."""
        record, table = self.out / RECORD, self.out / JUDGEMENTS
        for leftover in self.out.glob(f".*{ASIDE}"):  # of a job that was killed
            leftover.unlink(missing_ok=True)
        if not record.exists():
            return []
        try:
            content: Any = json.loads(record.read_text(encoding="utf-8"))
            text = table.read_text(encoding="utf-8") if table.exists() else ""
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{self.out}: cannot be read ({error})") from error
        if content != self.record:
            settings = self.record | content if isinstance(content, dict) else {}
            names = [n for n in settings if content.get(n) != self.record.get(n)]
            raise DataError(
                f"{self.out}: holds labels of another {', '.join(names) or 'kind'}; expected "
                "nothing, or the same job to go on with"
            )
        return list(csv.reader(io.StringIO(text, newline="")))[1:]

    def _repeat(self, row: list[str]) -> None:
        """Repeat an answer of an earlier job."""
        number = None
        if len(row) == len(COLUMNS) and row[0] in self.learners and row[4] in ANSWERS:
            number = self.numbers.get((from_csv_cell(row[1]), *row[2:4]))
        if number is None:
            raise DataError(f"{self.out / JUDGEMENTS}: '{','.join(row)}' is no answer of this job")
        self.judgements.append(row)
        self.learners[row[0]].judge(number, ANSWERS[row[4]])

    def _place(self, row: int) -> tuple[str, ...]:
        """Return the path, start and length of a row of the index, as they are written."""
        index = self.index
        return index.paths[row], f"{index.start[row]:.2f}", f"{index.seconds[row]:.2f}"

    @property
    def judged(self) -> int:
        """How many candidates are judged, without those that were skipped."""
        return sum(row[4] != "skip" for row in self.judgements)

    def questions(self, budget: int) -> Iterator[Question]:
        """Yield questions, the classes in turn, until so many judgements are made in all.

        Every question is to be followed by `answer`, before the next one.
        """
        labels = list(self.learners)
        while labels and self.judged < budget:
            label = labels[len(self.judgements) % len(labels)]
            learner = self.learners[label]
            head = _named(label, learner.draft)
            number = learner.next(head)
            if number is None:
                labels.remove(label)
                continue
            score = float(head.scores(learner.pool[number : number + 1])[0])
            row = int(self.rows[number])
            start, seconds = float(self.index.start[row]), float(self.index.seconds[row])
            yield Question(label, row, self.index.paths[row], start, seconds, score)

    def answer(self, question: Question, answer: str) -> None:
        """Take an answer, "yes", "no" or "skip", and save it."""
        if answer not in ANSWERS:
            raise SettingError(f"answer={answer}: expected one of {', '.join(ANSWERS)}")
        path, *times = self._place(question.row)
        self.judgements.append([question.label, csv_cell(path), *times, answer])
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *self.judgements])
        write_text(self.out / JUDGEMENTS, text.getvalue())
        number = self.numbers[self._place(question.row)]
        self.learners[question.label].judge(number, ANSWERS[answer])

    def finish(self) -> list[LabelResult]:
        """Write the model; return how every class was learned."""
        heads, results = [], []
        for label, learner in self.learners.items():
            head = _named(label, learner.head)
            heads.append(self.standard.raw(head))
            answers = list(learner.judged.values())
            yes = int(learner.positive.sum()) + sum(answers)
            no = len(learner.positive) + len(answers) - yes
            reached = int((head.scores(learner.pool) >= head.threshold).sum())
            results.append(LabelResult(label, yes, no, head.kind, head.f1, head.threshold, reached))
        set_heads(self.model, heads)
        with TemporaryDirectory() as folder:
            save(self.model, self.features, Path(folder))
            for file in sorted(Path(folder).iterdir()):
                with written_aside(self.out / file.name) as aside:
                    shutil.copyfile(file, aside)
        return results


def _named(label: str, make: Callable[[], Head]) -> Head:
    """Return a head; what cannot be learned from is reported with the label."""
    try:
        return make()
    except DataError as error:
        raise DataError(f"{label}: {error}") from None


def _candidates(index: Index, examples: Array) -> NDArray[np.int64]:
    """Return the rows of an index that may be judged, at most `CANDIDATES`, in order."""
    if len(index) <= CANDIDATES:
        return np.arange(len(index))
    half = CANDIDATES // 2
    _, nearest = index.search(index.queries(examples).mean(axis=0), half)
    return np.union1d(nearest[0], np.linspace(0, len(index) - 1, half).astype(np.int64))


def _all_files(examples: Mapping[str, Sequence[Path]], negatives: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys([*chain(*examples.values()), *negatives]))
