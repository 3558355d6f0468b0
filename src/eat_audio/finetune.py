"""Fine-tune a classifier on labeled clips: labels, losses, LoRA, test and cross-validation.

The model of the last step is kept: choosing the best one on the test clips would flatter it.

Source: the released `models/EAT_audio_classification.py`, `tasks/mae_image_classification.py`
and scripts, as observed (the recorded sets `finetune_tiny_a`, `augment_a`).
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.checkpoints.load import load_features, load_model, spec_of
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import Batch, ClipBatches, ClipSettings, training_batches, whole_patches
from eat_audio.data.scan import contents_fingerprint
from eat_audio.data.soft_labels import with_soft_labels
from eat_audio.data.splits import Roles, hold_out, role_of, train_and_test
from eat_audio.data.transforms import Augmentation, augment
from eat_audio.errors import DataError, SettingError
from eat_audio.evaluation.evaluate import Evaluation, evaluate_scores, predict_corpus
from eat_audio.evaluation.metrics import STRENGTH
from eat_audio.evaluation.probe import fit_head
from eat_audio.models import DEFAULT_METHOD, save
from eat_audio.models.common import modeling
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.lora import add_lora, merge_lora
from eat_audio.models.common.losses import classification_loss
from eat_audio.models.common.modeling import NEUTRAL, AudioClassifier, AudioEncoder
from eat_audio.pretraining.ema import update_ema
from eat_audio.pretraining.method import EncoderSettings
from eat_audio.pretraining.run import in_full, make_features
from eat_audio.progress import print_lines
from eat_audio.rng import clip_keys
from eat_audio.training.checkpoint import fingerprint, lock_run_dir
from eat_audio.training.distributed import ProcessGroup, distribute_like, init_process_group
from eat_audio.training.optim import LayeredObjective, Optim
from eat_audio.training.run import Trainer, TrainSettings, with_prefix
from eat_audio.writing import write_json


class FreshEncoder(EncoderSettings):
    """The encoder to start from if none is given; `pooling` counts in any case."""

    method: str = DEFAULT_METHOD

    def config(self) -> PreTrainedConfig:
        """Return the Hugging Face configuration of that encoder."""
        return self.build_config(self.method)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self.config()  # raises if the numbers do not go together
        return self


class FinetuneRun(TrainSettings):
    """All settings of a fine-tuning run."""

    task: Literal["finetune"] = "finetune"
    data: str | None = None
    """A manifest (.tsv, .csv), or a folder in one of the supported layouts, with labels."""
    soft_labels: str | None = None
    """A .parquet file of a teacher's class probabilities, for classes and clips without labels."""
    train_splits: tuple[str, ...] = ()
    """Splits to learn from; by default "train", or all folds but the tested one."""
    test_splits: tuple[str, ...] = ()
    """Splits to be tested on; by default "test" or "eval", a fold, or a fifth held out."""
    loss: Literal["cross_entropy", "bce_per_clip", "bce_per_label", "bce_mean"] = "cross_entropy"
    """cross_entropy (ESC-50); binary cross-entropies summed over classes and divided by the clips
    (EAT on Speech Commands) or by the labels of the batch (EAT on AudioSet); or their mean over
    clips and classes (Audio-MAE)."""
    encoder: FreshEncoder = FreshEncoder()
    """The shape, if training starts from nothing; `encoder.pooling` counts in any case."""
    layers: Literal["all"] | tuple[int, ...] | None = None
    """Layers whose read-out the head classifies, in place of the pooled vector."""
    hidden_columns: float = Field(0.0, ge=0, lt=1)
    """Share of the columns of patches that are hidden from an Audio-MAE encoder in training."""
    hidden_rows: float = Field(0.0, ge=0, lt=1)
    """Share of the rows of patches that are hidden from it."""
    gradient_decay: float = Field(1.0, gt=0, le=1)
    """The gradient is multiplied by it at the input of every block of a BEATs encoder, as in its
    released code; not `optim.layer_decay`, for AdamW takes hardly any notice of it."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; earlier ones proportionally less."""
    freeze: NonNegativeInt = 0
    """So many first blocks, and all before them, do not learn."""
    lora: NonNegativeInt = 0
    """Rank of the additions that learn in place of the encoder's own weights, which stay as they
    are (LoRA, through the package peft); 0: the weights themselves learn."""
    head_start: Literal["random", "probe"] = "random"
    """probe: the head begins as the logistic regression of the training clips on the features of
    the encoder as it is, standardized; a low `optim.lr` then changes neither by much."""
    head_start_c: PositiveFloat = STRENGTH
    """scikit-learn's C of that regression, the inverse of its regularization."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is then tested and kept as the model: the
    mean of all steps until those are 1 / (1 - ema); 0: the weights of the last step."""
    clips: ClipSettings = ClipSettings()
    augment: Augmentation = Augmentation()
    optim: Optim = Optim(lr=5e-5, min_lr=1e-6, layer_decay=0.65, clip=0.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.augment.mixup and self.batch % 2:
            raise ValueError(f"batch={self.batch}: mixup needs an even number")
        if self.soft_labels is not None and self.loss == "cross_entropy":
            raise ValueError("soft_labels: loss=cross_entropy has no place for them; say bce_mean")
        if self.freeze and self.lora:
            raise ValueError(f"freeze={self.freeze}: with lora={self.lora} all blocks are frozen")
        return self


class Classification(LayeredObjective):
    """The loss of labeled clips through the front end, augmentation and a classifier."""

    def __init__(
        self, model: AudioClassifier, features: AudioFeatureExtractor, settings: FinetuneRun
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.settings = settings
        self.frames = whole_patches(settings.clips.seconds)
        self.average: AudioClassifier | None = None

    @property
    def result(self) -> AudioClassifier:
        """The model that is tested and kept."""
        return self.average or self.model

    def start_average(self) -> None:
        """Keep the average of the weights from now on, if the settings say so."""
        if self.settings.ema:
            self.average = copy.deepcopy(self.model).requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of a batch and its share of right predictions."""
        with torch.no_grad():
            spectrogram, mask, labels = self.prepare(batch, generator)
        logits = self.model(spectrogram, mask).logits.float()
        kind, some_missing = self.settings.loss, self.settings.soft_labels is not None
        losses = classification_loss(logits, labels, kind, some_missing=some_missing)
        right = (logits.argmax(dim=1) == labels.nan_to_num().argmax(dim=1)).float().mean()
        return losses | {"accuracy": right.detach()}

    def prepare(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return augmented spectrograms (B, T, F), a mask of valid frames (B, T), and labels."""
        return augment(
            batch,
            self.settings.augment,
            lambda waveforms: self.features.log_mel(waveforms, batch.lengths, frames=self.frames),
            keys=clip_keys(self.settings.seed, batch.epochs, batch.clips, 1)[:, 0],
            generator=generator,
            roll_padding=self.features.released_padding,
        )

    def after_step(self, step: int) -> None:
        """Move the average of the weights, if there is one; `step` optimizer steps are done."""
        if self.average is not None:
            decay = min(self.settings.ema, 1 - 1 / step)
            update_ema(self.average.parameters(), self.model.parameters(), decay)


# ---- the model ----


def start_from(
    start: str | Path | None, settings: FinetuneRun, corpus: Corpus
) -> tuple[AudioClassifier, AudioFeatureExtractor]:
    """Return a classifier on a pre-trained encoder, or on a fresh one if `start` is None.

    Raises:
        SettingError: The encoder's method does not have a setting.
        CheckpointError: There is no encoder.
    """
    encoder = None if start is None else load_model(start, AudioEncoder)
    config = settings.encoder.config() if encoder is None else encoder.config
    config = classifier_config(config, settings, corpus)
    model = spec_of(config).classifier(config)
    features = None
    if start is not None and encoder is not None:
        model.model.load_state_dict(encoder.model.state_dict(), strict=False)
        features = load_features(start)
    if features is None or settings.clips.statistics is not None:
        features = make_features(corpus, settings.clips, method=config.model_type)
        for name in config.front_end_fields:
            setattr(features, name, getattr(config, name))
    features.released_padding = settings.clips.released_padding
    return model, features


def classifier_config(config: Any, settings: FinetuneRun, corpus: Corpus) -> PreTrainedConfig:
    """Return an encoder's configuration as that of a classifier of a corpus' labels."""
    changes = {name: getattr(settings, name) for name in NEUTRAL}
    try:
        config.finetune_overrides(changes)
    except ValueError as error:
        raise SettingError(str(error)) from None
    try:
        head = config.for_labels(
            corpus.label_names,
            several=corpus.multi_label,
            pooling=settings.encoder.pooling or config.pooling,
            **changes,
        )
    except ValueError as error:
        raise SettingError(f"an encoder of {config.model_type}: encoder.{error}") from None
    if settings.layers is not None:
        head.vector_layers = [*modeling.layer_numbers(settings.layers, head.num_hidden_layers)]
    return head


def freeze(model: AudioClassifier, blocks: int) -> None:
    """Exclude the first blocks, and all before them, from training."""
    if blocks > model.n_blocks:
        raise SettingError(f"freeze={blocks}: the encoder has {model.n_blocks} blocks")
    for name, parameter in model.named_parameters():
        if blocks and model.block_of(name) < blocks:
            parameter.requires_grad_(False)


def start_head(objective: Classification, train: Corpus) -> str:
    """Replace the head by a logistic regression on the encoder's features of training clips.

    Returns:
        How well the regression does on those clips: one sentence.
    """
    settings = objective.settings
    head = fit_head(
        in_full(objective.model),
        objective.features,
        train,
        settings.clips,
        softmax=settings.loss == "cross_entropy",
        strength=settings.head_start_c,
    )
    for model in filter(None, (objective.model, objective.average)):
        for name, parameter in model.model.head.named_parameters():
            full = torch.from_numpy(getattr(head, name)).to(parameter.dtype)
            parameter.data.copy_(distribute_like(full, parameter.data))
    return f"the head begins as a logistic regression (C={settings.head_start_c:g}): {head.fit}"


# ---- a run ----


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning run."""

    out: Path
    evaluation: Evaluation | None
    note: str = ""
    """What was tested if the data do not name it, or that nothing was: one sentence."""


def run(
    settings: FinetuneRun,
    *,
    out: Path,
    start: str | Path | None,
    resume: bool = False,
    corpus: Corpus | None = None,
) -> Finetuned:
    """Fine-tune a classifier, then test it on clips that it was not trained on.

    Args:
        settings: The resolved recipe.
        out: Folder for checkpoints, logs, the finished model and its evaluation.
        start: A pre-trained model (a folder or a Hub id); None: random weights.
        resume: Continue the run in `out`.
        corpus: The labeled clips, if they are already open.
    """
    group = init_process_group(settings.on())
    with group.reporting_lost_peers():
        corpus = corpus or open_labeled(settings)
        train, test = split(corpus, settings)
        trainer, origin = make_trainer(settings, corpus, train, start, group)
        objective = trainer.objective
        assert isinstance(objective, Classification)
        model, features = objective.model, objective.features

        def export(folder: Path, state: dict[str, Tensor]) -> None:
            kept = with_prefix(state, "average." if settings.ema else "model.")
            save(model, features, folder, state=merge_lora(kept))

        def prepare() -> None:
            if settings.head_start == "probe":
                sentence = start_head(objective, train)
                if group.is_main:
                    print_lines(sentence, error=True)

        with lock_run_dir(out, group):
            trainer.train(
                out,
                title="finetune",
                data=train.fingerprint(),
                contents=contents_fingerprint(train),
                origin=origin,
                export=export,
                resume=resume,
                prepare=prepare,
            )
            evaluation = None if test is None else _test(settings, objective, test, out, group)
    return Finetuned(out, evaluation, tested_note(corpus, settings, test))


def make_trainer(
    settings: FinetuneRun,
    corpus: Corpus,
    train: Corpus,
    start: str | Path | None,
    group: ProcessGroup,
) -> tuple[Trainer, dict[str, Any]]:
    """Return the objective with all that trains it on `train`, and what it begins with."""
    torch.manual_seed(settings.seed)
    model, features = start_from(start, settings, corpus)
    weights = {
        name: tensor
        for name, tensor in model.model.state_dict().items()
        if not name.startswith(("fc_norm.", "head."))
    }
    origin = {
        "encoder": "random weights" if start is None else fingerprint(weights),
        "features": features.to_dict(),
    }
    objective = Classification(model, features, settings).to(settings.on()).train()
    freeze(model, settings.freeze)
    add_lora(model, settings.lora)
    objective.start_average()
    steps = ClipBatches(
        train,
        settings.clips,
        batch=settings.batch,
        seed=settings.seed,
        rank=group.rank,
        ranks=group.ranks,
    )
    batches = partial(training_batches, steps, pin=settings.on().type == "cuda")
    return Trainer(objective, settings, open_batches=batches, process_group=group), origin


def _test(
    settings: FinetuneRun, objective: Classification, test: Corpus, out: Path, group: ProcessGroup
) -> Evaluation:
    model = objective.result
    if group.ranks > 1:  # what is in memory may be a slice
        group.barrier()
        model = load_model(out, AudioClassifier)
        nn.Module.to(model, settings.on())
    scores = predict_corpus(model, objective.features, test, settings.clips)
    evaluation = evaluate_scores(scores, test.label_names, multi_label=test.multi_label)
    if group.is_main:
        evaluation.write(out)
    return evaluation


def open_labeled(settings: FinetuneRun) -> Corpus:
    """Open the corpus that a recipe names.

    Raises:
        SettingError: None is named, or its clips have no labels, or only one, or too many for the
            loss.
    """
    if settings.data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER with labels")
    corpus = open_corpus(settings.data, several=settings.loss != "cross_entropy")
    if settings.soft_labels is not None:
        return with_soft_labels(corpus, settings.soft_labels)
    if not corpus.label_names:
        reason = "".join(f"; {note}" for note in corpus.notes)
        raise SettingError(f"data={settings.data}: its clips have no labels to learn{reason}")
    if corpus.multi_label and settings.loss == "cross_entropy":
        raise SettingError(
            f"data={settings.data}: its clips have several labels, for which loss=cross_entropy "
            "is no loss; expected bce_per_clip, bce_per_label or bce_mean"
        )
    _refuse_one_label(corpus, f"data={settings.data}")
    return corpus


def _refuse_one_label(corpus: Corpus, where: str) -> None:
    """Raise unless the clips differ in their labels, or have soft ones."""
    if corpus.soft_labels is not None:
        return
    labels, first = corpus.table.labels()
    names = [corpus.label_names[number] for number in np.unique(labels)]
    if len(names) == 1 and bool((np.diff(first) == 1).all()):
        raise SettingError(f"{where}: one label only ({names[0]}); nothing to tell apart")


def split(corpus: Corpus, settings: FinetuneRun) -> tuple[Corpus, Corpus | None]:
    """Return the clips to train on and those to test on.

    Raises:
        SettingError: The splits do not say which to train on, or those have one label only.
    """
    splits = corpus.splits
    if corpus.soft_labels is not None and not corpus.labeled():
        return corpus.select(*(settings.train_splits or Roles.of(splits).train or splits)), None
    named = {*settings.train_splits, *settings.test_splits}
    if corpus.folds and not settings.test_splits:
        raise SettingError(
            f"{corpus.name}: has folds {', '.join(splits)}; say test_splits=[{splits[-1]}] "
            "or --cross-validate"
        )
    if len(splits) == 1 and not named and role_of(splits[0]) not in ("valid", "test"):
        corpus = hold_out(corpus.as_split("train"), 0.2, seed=settings.seed)
        splits = corpus.splits
    try:
        train, test = train_and_test(splits, train=settings.train_splits, test=settings.test_splits)
    except DataError as error:
        raise SettingError(f"{corpus.name}: {error}") from None
    if both := sorted({*train} & {*test}):
        raise SettingError(f"{', '.join(both)}: both trained and tested on")
    train_clips = corpus.select(*train)
    _refuse_one_label(train_clips, f"{corpus.name}, {', '.join(train)}")
    for names in filter(None, (train, test)):
        if not corpus.select(*names).table.labels()[0].size:
            raise SettingError(f"{corpus.name}, {', '.join(names)}: not one clip has a label")
    tested = corpus.select(*test) if test else None
    if tested is not None and corpus.soft_labels is not None:
        tested = tested.labeled()  # those that have labels of their own
    return train_clips, tested


def tested_note(corpus: Corpus, settings: FinetuneRun, test: Corpus | None) -> str:
    """Return what was tested where the data do not name it, as one sentence; else nothing."""
    if test is None:
        valid = ", ".join(Roles.of(corpus.splits).valid)
        first = valid.partition(",")[0]
        unused = f" ({valid}: not trained on; test_splits=[{first}] tests it)" if valid else ""
        return f"no test split: nothing was tested{unused}"
    if len(corpus.splits) == 1 and not settings.test_splits:
        return f"no test split: {len(test)} of {len(corpus)} clips were held out and tested"
    return ""


@dataclass(frozen=True)
class CrossValidation:
    """The scores of every fold, each of a model that was not trained on it."""

    metric: str
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return mean(self.scores.values())

    @property
    def std(self) -> float:
        """Standard deviation over folds."""
        return stdev(self.scores.values())


def cross_validate(
    settings: FinetuneRun, *, out: Path, start: str | None, resume: bool = False
) -> CrossValidation:
    """Fine-tune once per fold, testing on that fold; finished folds are only tested again.

    Args:
        settings: The recipe.
        out: Folder for a folder per fold and `cross_validation.json`.
        start: The encoder; "{fold}" in it is replaced by the tested fold, so that an encoder
            that was pre-trained without that fold can be named.
        resume: Continue the folds in `out`.
    """
    corpus = open_labeled(settings)
    folds = settings.test_splits or corpus.folds
    if len(folds) < 2:
        raise SettingError(
            f"{corpus.name}: has splits {', '.join(corpus.splits)}; cross-validation needs folds "
            "(a column fold, or folders fold1, fold2, ...)"
        )
    scores: dict[str, float] = {}
    metric = ""
    for fold in folds:
        encoder = start.replace("{fold}", fold) if start else None
        one = settings.model_copy(update={"test_splits": (fold,)})
        finished = run(one, out=out / f"fold-{fold}", start=encoder, resume=resume, corpus=corpus)
        assert finished.evaluation is not None
        metric, scores[fold] = finished.evaluation.metric, finished.evaluation.value
    result = CrossValidation(metric, scores)
    record = {"metric": metric, "folds": scores, "mean": result.mean, "spread": result.std}
    write_json(out / "cross_validation.json", record)
    return result
