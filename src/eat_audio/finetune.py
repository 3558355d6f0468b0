"""A pre-trained encoder and labeled clips -> a classifier, its scores, and their spread.

The model that is kept is that of the last step: choosing the best one on the test clips would
make the number too good.

Source: the released `models/EAT_audio_classification.py`, `tasks/mae_image_classification.py`
and scripts, as observed (the recorded sets `finetune_tiny_a`, `augment_a`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.adaptation import adapt, freeze, merged
from eat_audio.checkpoints.load import family_of, load_features, load_model
from eat_audio.config import Settings
from eat_audio.data import transforms as augment
from eat_audio.data.contents import contents
from eat_audio.data.corpora import hold_out, open_corpus
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import Batch, ClipBatches, ClipSettings, whole_patches
from eat_audio.data.splits import Roles, role_of, train_and_test
from eat_audio.errors import DataError, SettingError
from eat_audio.evaluation.evaluate import Evaluation, evaluate_scores, predict_corpus
from eat_audio.masking import clip_keys, uniform
from eat_audio.models import save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder
from eat_audio.pretraining.method import EncoderSettings
from eat_audio.pretraining.run import batches_with_log, extractor, part, training_log
from eat_audio.training.checkpoint import Run, fingerprint, lock_run_dir
from eat_audio.training.distributed import ProcessGroup, join, share
from eat_audio.training.loop import Training, fit
from eat_audio.training.optim import Optim, adamw, parameter_groups
from eat_audio.writing import write_json

ROLL, NOISE = 1, 2
"""Purposes of random draws."""


class Augmentation(Settings):
    """What is done to clips while training; nothing by default."""

    roll: bool = False
    """Turn the waveform in a circle and change its loudness by Beta(10, 10) + 0.5."""
    noise: bool = False
    """Add non-negative noise to the spectrogram and roll it by up to 10 frames."""
    mixup: NonNegativeFloat = 0.0
    """Mix every clip with its mirror in the batch, shares from Beta(a, a); 0: never."""
    mixup_share: float = Field(0.9, ge=0, le=1)
    """Share of batches that are mixed."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Longest stripe silenced in time and in frequency, as a share of each (SpecAugment)."""
    mask_frequency: float | None = Field(None, ge=0, lt=1)
    """The same in frequency, where it is another share than in time."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class FreshEncoder(EncoderSettings):
    """What training starts from if no encoder is given; `pooling` counts in any case."""

    method: Literal["audiomae", "beats", "eat"] = "eat"

    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration of that encoder."""
        return self.build_config(self.method)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self.config()  # says which numbers do not go together
        return self


class FinetuneRun(Training):
    """All that decides a fine-tuning run."""

    task: Literal["finetune"] = "finetune"
    data: str | None = None
    """A manifest (.tsv, .csv), or a folder in one of the known layouts, with labels."""
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
    hidden_columns: float = Field(0.0, ge=0, lt=1)
    """Share of the columns of patches that an Audio-MAE encoder does not hear while it learns."""
    hidden_rows: float = Field(0.0, ge=0, lt=1)
    """Share of the rows of patches that it does not hear."""
    gradient_decay: float = Field(1.0, gt=0, le=1)
    """The gradient becomes so much of itself at the input of every block of a BEATs encoder, as in
    its released code; not `optim.layer_decay`, for AdamW takes hardly any notice of it."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; earlier ones proportionally less."""
    freeze: NonNegativeInt = 0
    """So many first blocks, and all before them, do not learn."""
    lora: NonNegativeInt = 0
    """Rank of the additions that learn in place of the encoder's own weights, which stay as they
    are (LoRA, through the package peft); 0: the weights themselves learn."""
    clips: ClipSettings = ClipSettings()
    augment: Augmentation = Augmentation()
    optim: Optim = Optim(lr=5e-5, min_lr=1e-6, layer_decay=0.65, clip=0.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} is not shorter than steps={self.steps}"
            )
        if self.augment.mixup and self.batch % 2:
            raise ValueError(f"batch={self.batch}: mixup needs an even number")
        if self.freeze and self.lora:
            raise ValueError(f"freeze={self.freeze}: with lora={self.lora} all blocks are frozen")
        return self


class Classification(nn.Module):
    """Labeled clips -> a loss, through the front end, the augmentations and the classifier."""

    def __init__(
        self,
        model: AudioClassifier,
        features: AudioFeatureExtractor,
        settings: FinetuneRun,
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.settings = settings
        self.frames = whole_patches(settings.clips.seconds)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's loss and share of right answers."""
        assert batch.labels is not None
        with torch.no_grad():
            spectrogram, mask, labels = self.prepare(batch, generator)
        logits = self.model(spectrogram, mask).logits.float()
        losses = classification_loss(logits, labels, self.settings.loss)
        right = (logits.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
        return losses | {"accuracy": right.detach()}

    def prepare(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Spectrograms (B, T, F), what of them is real, and labels, all of them augmented."""
        told = self.settings.augment
        waveforms, labels = batch.waveforms, batch.labels
        assert labels is not None
        keys = clip_keys(self.settings.seed, batch.epochs, batch.clips, 1)[:, 0]
        if told.roll:
            lengths = batch.lengths.to(waveforms.device, non_blocking=True)
            shift = (uniform(keys, 1, purpose=ROLL)[:, 0] * lengths).long()
            gain = augment.beta_gain(len(labels), generator)
            waveforms = augment.roll_and_gain(waveforms, lengths, shift, gain) / 32_768
        spectrograms = self.features.log_mel(waveforms, batch.lengths, frames=self.frames)
        spectrogram, frames = spectrograms.values, spectrograms.frames
        if told.noise:
            draws = uniform(keys, 2, purpose=NOISE)
            noise = torch.rand(spectrogram.shape, generator=generator, device=spectrogram.device)
            shift = (draws[:, 1] * 20).long() - 10
            turned = frames.clamp(max=self.frames)
            if self.features.released_padding:
                turned = torch.full_like(frames, self.frames)
            spectrogram = augment.noise_and_roll(spectrogram, turned, noise, draws[:, 0], shift)
        labels = augment.smooth(labels, told.label_smoothing)
        mask = spectrograms.frame_mask
        if told.mixup and bool(
            torch.rand((), generator=generator, device=generator.device) < told.mixup_share
        ):
            share = augment.beta(1, told.mixup, generator)
            spectrogram, labels = augment.mixup(spectrogram, share), augment.mixup(labels, share)
            mask = None if mask is None else mask | mask.flip(0)
        frequency = told.mask if told.mask_frequency is None else told.mask_frequency
        if told.mask or frequency:
            draws = torch.rand(4, len(labels), generator=generator, device=spectrogram.device)
            spectrogram = augment.spec_augment(
                spectrogram,
                draws,
                longest_time=spectrogram.shape[1] * told.mask,
                longest_frequency=spectrogram.shape[2] * frequency,
            )
        return spectrogram, mask, labels

    def after_step(self, step: int) -> None:
        """Nothing follows a step of fine-tuning."""


def classification_loss(logits: Tensor, labels: Tensor, kind: str) -> dict[str, Tensor]:
    """The loss of logits (B, C) against probabilities (B, C), by its released name.

    With "weight", micro-batches of one step are averaged by their number of labels.
    """
    if kind == "cross_entropy":
        return {"loss": F.cross_entropy(logits, labels)}
    total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    if kind == "bce_mean":
        return {"loss": total / labels.numel()}
    if kind == "bce_per_clip":
        return {"loss": total / len(labels)}
    count = labels.sum().clamp(min=1.0)
    return {"loss": total / count, "weight": count}


def start_from(
    place: str | Path | None, settings: FinetuneRun, corpus: Corpus
) -> tuple[AudioClassifier, AudioFeatureExtractor]:
    """A classifier for a corpus on a pre-trained encoder, or on a fresh one if `place` is None.

    Raises:
        RecipeError: The encoder's method does not know a setting.
        CheckpointError: There is no encoder.
    """
    encoder = None if place is None else load_model(place, AudioEncoder)
    config = settings.encoder.config() if encoder is None else encoder.config
    config = labeled(config, settings, corpus)
    model = family_of(config).classifier(config)
    if place is None or encoder is None:
        return model, extractor(corpus, settings.clips, method=config.model_type)
    model.model.load_state_dict(encoder.model.state_dict(), strict=False)
    features = load_features(place)
    if settings.clips.statistics is not None or features is None:
        features = extractor(corpus, settings.clips, method=config.model_type)
    features.released_padding = settings.clips.released_padding
    return model, features


def labeled(config: Any, settings: FinetuneRun, corpus: Corpus) -> PreTrainedConfig:
    """An encoder's configuration as that of a classifier of a corpus' labels."""
    method = config.model_type
    try:
        config = config.for_labels(
            corpus.label_names,
            several=corpus.multi_label,
            drop_path=settings.drop_path,
            pooling=settings.encoder.pooling or config.pooling,
        )
    except ValueError as error:
        raise SettingError(f"an encoder of {method} cannot learn so: encoder.{error}") from None
    hidden = {"mask_t_prob": settings.hidden_columns, "mask_f_prob": settings.hidden_rows}
    if any(hidden.values()) and not hasattr(config, "mask_t_prob"):
        raise SettingError(
            f"hidden_columns={settings.hidden_columns:g}, hidden_rows={settings.hidden_rows:g}: "
            f"an encoder of {method} hears all patches; expected 0"
        )
    if hasattr(config, "mask_t_prob"):
        config.update(hidden)
    if hasattr(config, "layer_wise_gradient_decay_ratio"):
        config.layer_wise_gradient_decay_ratio = settings.gradient_decay
    elif settings.gradient_decay != 1:
        raise SettingError(
            f"gradient_decay={settings.gradient_decay:g}: an encoder of {method} has none; "
            "expected 1, and perhaps optim.layer_decay"
        )
    return config


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning run."""

    out: Path
    evaluation: Evaluation | None
    note: str = ""
    """What was tested if the data do not say it, or that nothing was: one sentence."""


def run(
    settings: FinetuneRun,
    *,
    out: Path,
    start: str | Path | None,
    resume: bool = False,
    corpus: Corpus | None = None,
) -> Finetuned:
    """Fine-tune a classifier, then test it on the clips it has not heard.

    Args:
        settings: The resolved recipe.
        out: Folder for checkpoints, logs, the finished model and its evaluation.
        start: A pre-trained model (a folder or a Hub id); None: from random weights.
        resume: Continue what is in `out`.
        corpus: The labeled clips, if they are already open.
    """
    team = join(settings.on())
    with team.working():
        return _finetune(settings, out, start, resume, corpus or open_labeled(settings), team)


def _finetune(
    settings: FinetuneRun,
    out: Path,
    start: str | Path | None,
    resume: bool,
    corpus: Corpus,
    team: ProcessGroup,
) -> Finetuned:
    train, test = split(corpus, settings)

    torch.manual_seed(settings.seed)
    model, features = start_from(start, settings, corpus)
    encoder = model.model.state_dict()
    known = {n: x for n, x in encoder.items() if not n.startswith(("fc_norm.", "head."))}
    origin = {"encoder": fingerprint(known), "features": features.to_dict()}
    if start is None:
        origin["encoder"] = "random weights"
    objective = Classification(model, features, settings).to(settings.on()).train()
    freeze(model, settings.freeze)
    adapt(model, settings.lora)
    share(objective, team, how=settings.parallel)
    depth = model.config.num_hidden_layers
    groups = parameter_groups(objective.named_parameters(), settings.optim, depth=depth)
    optimizer = adamw(groups, settings.optim)

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save(model, features, folder, state=merged(part(state, "model.")))

    data = train.fingerprint()
    here = Run(out, settings, data, objective, optimizer, export, settings.keep, origin, team)
    here = replace(here, contents=contents(train))
    steps = ClipBatches(
        train,
        settings.clips,
        batch=settings.batch,
        seed=settings.seed,
        rank=team.rank,
        ranks=team.ranks,
    )
    with lock_run_dir(out, team):
        first = here.begin(resume=resume)
        with training_log(settings, out, "finetune", first, team) as log:
            fit(
                objective,
                batches_with_log(steps, settings, first, log),
                optimizer,
                settings,
                settings.optim,
                start=first,
                team=team,
                log=log.write,
                say=log.say,
                tick=log.tick,
                save=here.save,
            )
        here.finish()
        note = tested_note(corpus, settings, test)
        if test is None:
            return Finetuned(out, None, note)
        if team.ranks > 1:  # what is in memory may be a slice
            team.wait()
            model = load_model(out, AudioClassifier)
            nn.Module.to(model, settings.on())
        scores = predict_corpus(model, features, test, settings.clips)
        evaluation = evaluate_scores(scores, corpus.label_names, multi_label=corpus.multi_label)
        if team.is_main:
            evaluation.write(out)
        return Finetuned(out, evaluation, note)


def open_labeled(settings: FinetuneRun) -> Corpus:
    """The corpus a recipe names.

    Raises:
        RecipeError: None is named, or its clips have no labels, or only one, or too many for the
            loss.
    """
    if settings.data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER with labels")
    corpus = open_corpus(settings.data, several=settings.loss != "cross_entropy")
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


def _refuse_one_label(corpus: Corpus, place: str) -> None:
    """Raise unless the clips differ in their labels."""
    labels, first = corpus.table.labels()
    names = [corpus.label_names[number] for number in np.unique(labels)]
    if len(names) == 1 and bool((np.diff(first) == 1).all()):
        raise SettingError(f"{place}: one label only ({names[0]}); nothing to tell apart")


def split(corpus: Corpus, settings: FinetuneRun) -> tuple[Corpus, Corpus | None]:
    """Clips to learn from and clips to be tested on.

    Raises:
        RecipeError: It is not known which to learn from, or they have one label only.
    """
    there = corpus.splits
    named = {*settings.train_splits, *settings.test_splits}
    if corpus.folds and not settings.test_splits:
        raise SettingError(
            f"{corpus.name}: has folds {', '.join(there)}; say test_splits=[{there[-1]}] "
            "or --cross-validate"
        )
    if len(there) == 1 and not named and role_of(there[0]) not in ("valid", "test"):
        corpus = hold_out(corpus.as_split("train"), 0.2, seed=settings.seed)
        there = corpus.splits
    try:
        train, test = train_and_test(there, train=settings.train_splits, test=settings.test_splits)
    except DataError as error:
        raise SettingError(f"{corpus.name}: {error}") from None
    if set(train) & set(test):
        raise SettingError(f"{', '.join(sorted(set(train) & set(test)))}: both learnt and tested")
    learnt = corpus.select(*train)
    _refuse_one_label(learnt, f"{corpus.name}, {', '.join(train)}")
    for names in filter(None, (train, test)):
        if not corpus.select(*names).table.labels()[0].size:
            raise SettingError(f"{corpus.name}, {', '.join(names)}: not one clip has a label")
    return learnt, corpus.select(*test) if test else None


def tested_note(corpus: Corpus, settings: FinetuneRun, test: Corpus | None) -> str:
    """Return what was tested where the data do not name it, as one sentence; else nothing."""
    if test is None:
        valid = Roles.of(corpus.splits).valid
        unused = (
            f" ({', '.join(valid)}: not learnt from; test_splits=[{valid[0]}] tests it)"
            if valid
            else ""
        )
        return "no test split: nothing was tested" + unused
    if len(corpus.splits) == 1 and not settings.test_splits:
        return f"no test split: {len(test)} of {len(corpus)} clips were held out and tested"
    return ""


@dataclass(frozen=True)
class CrossValidation:
    """The scores of every fold, each tested by a model that has not heard it."""

    metric: str
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return mean(self.scores.values())

    @property
    def spread(self) -> float:
        """Standard deviation over folds."""
        return stdev(self.scores.values())


def cross_validate(
    settings: FinetuneRun, *, out: Path, start: str | None, resume: bool = False
) -> CrossValidation:
    """Fine-tune once per fold, testing on that fold; finished folds are only tested again.

    Args:
        settings: The recipe.
        out: Gets a folder per fold and `cross_validation.json`.
        start: The encoder; "{fold}" in it stands for the tested fold, so that an encoder
            that was pre-trained without that fold can be named.
        resume: Go on with what is in `out`, fold by fold.
    """
    corpus = open_labeled(settings)
    tested = settings.test_splits or corpus.folds
    if len(tested) < 2:
        raise SettingError(
            f"{corpus.name}: has splits {', '.join(corpus.splits)}; cross-validation needs folds "
            "(a column fold, or folders fold1, fold2, ...)"
        )
    scores: dict[str, float] = {}
    metric = ""
    for fold in tested:
        place = start.replace("{fold}", fold) if start else None
        one = settings.model_copy(update={"test_splits": (fold,)})
        finished = run(one, out=out / f"fold-{fold}", start=place, resume=resume, corpus=corpus)
        assert finished.evaluation is not None
        metric, scores[fold] = finished.evaluation.metric, finished.evaluation.value
    result = CrossValidation(metric, scores)
    write_json(
        out / "cross_validation.json",
        {"metric": metric, "folds": scores, "mean": result.mean, "spread": result.spread},
    )
    return result
