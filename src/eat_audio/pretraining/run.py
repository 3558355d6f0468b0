"""Pre-train an encoder: a recipe and a corpus become a model folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eat_audio.audio import fbank
from eat_audio.data.corpus import Corpus, mixed
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipSettings, training_batches
from eat_audio.data.scan import contents_fingerprint
from eat_audio.errors import SettingError
from eat_audio.evaluation.monitor import Monitor
from eat_audio.models import DEFAULT_METHOD, METHODS, save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.lora import merge_lora
from eat_audio.models.common.modeling import AudioModel
from eat_audio.pretraining.method import Pretraining, PretrainRun, run_settings
from eat_audio.training.checkpoint import lock_run_dir
from eat_audio.training.distributed import ProcessGroup, full_tensor, init_process_group
from eat_audio.training.metrics_log import TrainingLog
from eat_audio.training.run import Hooks, Trainer, with_prefix

M = TypeVar("M", bound=AudioModel)
LEAST_REACH = 0.85
"""Share of hidden patches with a visible one within a decoder's reach; less is warned of. The
released base run has 0.89."""
RELEASED_INPUT_STD = 0.5
"""The deviation of (x - mean) / (2 std), as front ends compute it."""


def schema(recipe: dict[str, Any]) -> type[PretrainRun]:
    """Return the settings of the method that a recipe names; of the default if it names none.

    Raises:
        SettingError: There is no such method.
    """
    return run_settings(str(recipe.get("method", DEFAULT_METHOD)))


def run(settings: PretrainRun, *, out: Path, resume: bool = False) -> Path:
    """Pre-train an encoder.

    Args:
        settings: The resolved recipe.
        out: Folder for checkpoints, logs and the finished model.
        resume: Continue the run in `out`.

    Returns:
        `out`, loadable by `eat_audio.load` and `AutoModel.from_pretrained`.

    Raises:
        SettingError: `data` is not set.
        EatError: The data, the checkpoints or the device cannot be used.
    """
    process_group = init_process_group(settings.on())
    with process_group.reporting_lost_peers():
        _pretrain(settings, out, resume, process_group)
    return out


def _pretrain(settings: PretrainRun, out: Path, resume: bool, process_group: ProcessGroup) -> None:
    corpus = corpus_of(settings)
    trainer = make_trainer(settings, corpus, process_group)
    objective = trainer.objective
    assert isinstance(objective, Pretraining)
    features = objective.features

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save(objective.student, features, folder, state=with_prefix(state, "student."))

    def hooks(log: TrainingLog) -> Hooks:
        guard = CollapseGuard(objective, log, after=settings.optim.warmup)
        monitor = make_monitor(settings, objective, log)
        monitor(0)
        return Hooks(guard.write, monitor)

    with lock_run_dir(out, process_group):
        trainer.train(
            out,
            title=f"pretrain {settings.method}",
            data=corpus.fingerprint(),
            contents=contents_fingerprint(corpus) + objective.input_contents(),
            origin={"features": features.to_dict()},
            export=export,
            resume=resume,
            hooks=hooks,
        )


def corpus_of(settings: PretrainRun) -> Corpus:
    """Open the clips that a recipe names."""
    if settings.data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER")
    if isinstance(settings.data, str):
        corpus = open_corpus(settings.data)
        return corpus.select(*settings.splits) if settings.splits else corpus
    corpora = [open_corpus(data) for data in settings.data]
    if settings.splits:
        corpora = [c.select(*settings.splits) if len(c.splits) > 1 else c for c in corpora]
    corpus = mixed(corpora, settings.data_shares)
    unset = settings.clips.statistics is None and _has_log_mel_of_corpora(settings.method)
    if unset and len({one.statistics for one in corpora}) > 1:
        raise SettingError(
            f"{corpus.name}: have different statistics; expected clips.statistics=[MEAN,STD] or "
            "the name of a known corpus"
        )
    return corpus


def make_trainer(
    settings: PretrainRun,
    corpus: Corpus,
    process_group: ProcessGroup,
    *,
    clips: Corpus | None = None,
) -> Trainer:
    """Return a method's objective with all that trains it, on `clips` if not on all of `corpus`."""
    torch.manual_seed(settings.seed)
    features = make_features(corpus, settings.clips, method=settings.method)
    objective = settings.build_objective(features)
    objective.to(settings.on()).train()
    steps = ClipBatches(
        clips or corpus,
        settings.clips,
        batch=settings.batch,
        seed=settings.seed,
        rank=process_group.rank,
        ranks=process_group.ranks,
    )
    return Trainer(
        objective,
        settings,
        open_batches=partial(training_batches, steps, pin=settings.on().type == "cuda"),
        process_group=process_group,
    )


def make_monitor(
    settings: PretrainRun, objective: Pretraining, log: TrainingLog
) -> Callable[[int], None]:
    """Return the function that probes the student after the steps that are due, and logs it."""
    sliced = settings.parallel == "fsdp"  # then all processes have to take part
    if settings.monitor.data is None or not (log.is_main or sliced):
        return lambda step: None
    features, clips = objective.features, settings.clips
    monitor = Monitor(settings.monitor, features, clips=clips, steps=settings.steps)
    for message in monitor.unreadable:
        log.skip(message)

    def on_step(step: int) -> None:
        if not log.has_step_zero:
            log.add(0, monitor(0, objective.student))
        if monitor.due(step):
            metrics = monitor(step, in_full(objective.student))
            log.add(step, metrics)
            log.message(monitor.summary(step, metrics))

    return on_step


def in_full(model: M) -> M:
    """Return a model with full weights: itself, or a copy where they are sliced."""
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model
    with torch.random.fork_rng():  # training must draw the same numbers as without a monitor
        copy = type(model)(model.config)
    copy.load_state_dict(merge_lora({n: full_tensor(x) for n, x in model.state_dict().items()}))
    nn.Module.to(copy, next(model.parameters()).device)
    return copy


def make_features(corpus: Corpus, clips: ClipSettings, *, method: str) -> AudioFeatureExtractor:
    """Return a method's front end with the statistics of a corpus, or those of the recipe.

    Inputs have the deviation `clips.input_std`, for which a front end keeps its `std` scaled.

    Published statistics, and those stored beside a corpus, are of EAT's log-mel. A front end with
    another log-mel has only AudioSet's by name; others must be given as two numbers.
    """
    kind = METHODS[method].feature_extractor
    same = _has_log_mel_of_corpora(method)
    published = (fbank.STATISTICS if same else {}) | {"audioset": kind.statistics}
    chosen = clips.statistics or (corpus.statistics if same else None) or "audioset"
    if isinstance(chosen, str) and chosen not in published:
        expected = f"expected two numbers or one of {', '.join(published)}"
        raise SettingError(f"clips.statistics={chosen}: {expected}")
    statistics = published[chosen] if isinstance(chosen, str) else fbank.Statistics(*chosen)
    std = statistics.std * (RELEASED_INPUT_STD / clips.input_std)
    return kind(mean=statistics.mean, std=std, released_padding=clips.released_padding)


def _has_log_mel_of_corpora(method: str) -> bool:
    """Whether statistics stored beside a corpus are of the log-mel that a method uses."""
    return METHODS[method].feature_extractor.front_end == fbank.EAT


class CollapseGuard:
    """Log the metrics of every step, and the warnings of the objective `after` the warm-up.

    What the decoder does not reach is warned of before the first step.
    """

    def __init__(self, objective: Pretraining, log: TrainingLog, *, after: int) -> None:
        self.objective = objective
        self.log = log
        self.after = after
        self.reported: set[str] = set()
        self.constant: dict[str, float] = {}
        if reach := objective.decoder_reach():
            distance, share = reach
            self.constant["decoder/reach"] = share
            if share < LEAST_REACH:
                log.message(
                    f"warning: {1 - share:.0%} of the hidden patches have no visible one within "
                    f"the {distance} patches that the decoder reaches, and are predicted by their "
                    "position alone; a smaller block, more decoder.layers or a larger "
                    "decoder.kernel brings one within reach"
                )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a step; each kind of warning only once."""
        self.log.write(step, metrics | self.objective.step_metrics(step) | self.constant)
        warnings = self.objective.warnings(metrics) if step > self.after else {}
        for name, message in warnings.items():
            if name not in self.reported:
                self.reported.add(name)
                self.log.message(f"warning: step {step}: {message}")
