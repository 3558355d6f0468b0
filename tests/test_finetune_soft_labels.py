"""Fine-tuning learns a teacher's probabilities where clips have no labels of their own."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eat_audio.checkpoints.load import load_model
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import CheckpointError, DataError
from eat_audio.finetune import FinetuneRun, FreshEncoder, open_labeled, run, split
from eat_audio.models.common.losses import classification_loss
from eat_audio.training.optim import Optim

SHORT: dict[str, Any] = {
    "encoder": FreshEncoder(size="tiny", embed_dim=32, depth=1, num_heads=2, pooling="mean"),
    "optim": Optim(lr=1e-3),
    "steps": 4,
    "batch": 4,
    "save_every": 2,
    "keep": 3,
    "clips": ClipSettings(seconds=1.0),
    "loss": "bce_mean",
}
OWN = ("knock", "swell")
"""The classes that clips have labels of; those of all others are the teacher's alone."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of made sounds, some labeled, and a teacher's probabilities of all of them."""
    folder = tmp_path_factory.mktemp("made")
    corpus = open_corpus(write_corpus(folder, clips_per_family=3, seconds=1.0, seed=0))
    names = [corpus.label_names[clip.labels[0]] for clip in corpus.clips]
    rows = [
        f"{Path(clip.path).relative_to(folder)},{name if name in OWN else ''},{clip.split}"
        for clip, name in zip(corpus.clips, names, strict=True)
    ]
    (folder / "some.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    teacher = {name: [float(name == other) for other in names] for name in ("alarm", "knock")}
    write(folder / "teacher.parquet", {"id": [clip.id for clip in corpus.clips], **teacher})
    return folder


def write(path: Path, columns: dict[str, list[Any]]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def settings(made: Path, **changes: Any) -> FinetuneRun:
    data = {"data": str(made / "some.csv"), "soft_labels": str(made / "teacher.parquet")}
    return FinetuneRun(**(SHORT | data | changes))


def test_nothing_is_learned_of_a_class_of_which_nothing_is_known() -> None:
    nan = float("nan")
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, nan], [nan, 0.3, nan]])
    losses = {
        kind: classification_loss(logits, labels, kind)["loss"]
        for kind in ("bce_per_clip", "bce_per_label", "bce_mean")
    }
    (gradient,) = torch.autograd.grad(sum(losses.values()), logits)
    assert torch.equal(gradient == 0, labels.isnan())
    torch.testing.assert_close(2 * losses["bce_per_clip"], 3 * losses["bce_mean"])
    torch.testing.assert_close(1.3 * losses["bce_per_label"], 3 * losses["bce_mean"])


def test_losses_of_micro_batches_add_up_whatever_labels_are_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=generator), torch.rand(6, 3, generator=generator)
    labels[:4][torch.rand(4, 3, generator=generator) < 0.7] = float("nan")
    whole = classification_loss(logits, labels, "bce_mean", some_missing=True)
    parts = [
        classification_loss(logits[rows], labels[rows], "bce_mean", some_missing=True)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    total = sum(part["loss"] * part["weight"] for part in parts)
    torch.testing.assert_close(total / sum(part["weight"] for part in parts), whole["loss"])


def test_a_model_has_the_classes_of_labels_and_teacher_and_is_tested_on_labels(
    made: Path, tmp_path: Path
) -> None:
    finished = run(settings(made), out=tmp_path / "out", start=None)
    model = load_model(tmp_path / "out")
    assert list(model.config.id2label.values()) == ["knock", "swell", "alarm"]
    assert model.config.problem_type == "multi_label_classification"
    assert finished.evaluation is not None and finished.evaluation.clips == 2


def test_clips_without_labels_alone_can_be_learned_from(made: Path, tmp_path: Path) -> None:
    rows = (made / "some.csv").read_text(encoding="utf-8").splitlines()
    bare = [row.split(",")[0] for row in rows]
    (made / "bare.csv").write_text("\n".join(bare), encoding="utf-8")
    finished = run(settings(made, data=str(made / "bare.csv")), out=tmp_path / "out", start=None)
    assert finished.evaluation is None and "nothing was tested" in finished.note
    assert list(load_model(tmp_path / "out").config.id2label.values()) == ["alarm", "knock"]


def test_of_clips_without_labels_the_split_for_training_is_trained_on(made: Path) -> None:
    rows = (made / "some.csv").read_text(encoding="utf-8").splitlines()
    unlabeled = [",".join(row.split(",")[::2]) for row in rows]
    (made / "unlabeled.csv").write_text("\n".join(unlabeled), encoding="utf-8")
    one = settings(made, data=str(made / "unlabeled.csv"))
    corpus = open_labeled(one)
    assert len(corpus.splits) > 1
    train, test = split(corpus, one)
    assert train.splits == ("train",) and test is None


def test_the_teacher_changes_what_is_learned(made: Path, tmp_path: Path) -> None:
    other = write(made / "other.parquet", {"id": ["alarm/0000"], "alarm": [0.0]})
    with pytest.warns(match="clips have neither labels nor a row"):
        run(settings(made, soft_labels=other), out=tmp_path / "one", start=None)
    run(settings(made), out=tmp_path / "two", start=None)
    one, two = (load_model(tmp_path / name).state_dict() for name in ("one", "two"))
    assert not torch.equal(one["model.head.weight"], two["model.head.weight"])


def test_a_resumed_run_ends_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    mixed = settings(made, augment={"mixup": 0.5, "label_smoothing": 0.1})
    run(mixed, out=tmp_path / "out", start=None)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000004")
    (tmp_path / "out" / "model.safetensors").unlink()
    run(mixed, out=tmp_path / "out", start=None, resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_run_does_not_go_on_with_another_teacher(made: Path, tmp_path: Path) -> None:
    table = pq.read_table(made / "teacher.parquet").to_pydict()
    copy = write(tmp_path / "teacher.parquet", table)
    run(settings(made, soft_labels=copy), out=tmp_path / "out", start=None)
    write(tmp_path / "teacher.parquet", table | {"alarm": [0.5] * len(table["alarm"])})
    with pytest.raises(CheckpointError, match="on other data"):
        run(settings(made, soft_labels=copy), out=tmp_path / "out", start=None, resume=True)


def test_probabilities_of_other_clips_and_for_cross_entropy_are_refused(made: Path) -> None:
    with pytest.raises(ValueError, match="loss=cross_entropy has no place for them"):
        settings(made, loss="cross_entropy")
    other = write(made / "others.parquet", {"id": ["none"], "alarm": [0.5]})
    with pytest.raises(DataError, match="none of its 1 rows is about a clip"):
        run(settings(made, soft_labels=other), out=made / "refused", start=None)
