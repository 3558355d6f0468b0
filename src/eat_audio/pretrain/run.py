"""A recipe and a corpus -> a pre-trained encoder in a folder.

Puts together what the other files make: clips, features, objective, optimiser, loop, checkpoint.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eat_audio import logmel
from eat_audio.data.batches import Batch, ClipSettings, Steps, training_batches, whole_patches
from eat_audio.data.corpora import open_corpus
from eat_audio.data.corpus import Corpus
from eat_audio.errors import RecipeError
from eat_audio.models import save
from eat_audio.models.eat import SIZES, EATConfig, EATModel
from eat_audio.models.features import EATFeatureExtractor
from eat_audio.pretrain.eat import EATMethod, EATPretraining
from eat_audio.pretrain.monitor import Monitor, MonitorSettings
from eat_audio.recipe import Settings
from eat_audio.train.checkpoint import Run, claim
from eat_audio.train.distributed import Team, join, share, whole
from eat_audio.train.log import TrainingLog
from eat_audio.train.loop import Training, fit
from eat_audio.train.optim import Optim, adamw, parameter_groups

COLLAPSED = 0.1
"""Spread of the targets (about 1 when healthy) below which a run is worth nothing."""


class EncoderSettings(Settings):
    """The shape of the encoder: a usual size, and what shall differ from it."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    pooling: Literal["cls", "mean", "linear_softmax"] = "cls"
    """What stands for a whole clip when the encoder is used."""

    def config(self) -> EATConfig:
        """The Hugging Face configuration of that encoder."""
        told = {name: getattr(self, name) for name in SIZES[self.size]}
        changes = {name: value for name, value in told.items() if value is not None}
        return EATConfig.named(self.size, mlp_ratio=self.mlp_ratio, pooling=self.pooling, **changes)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self.config()  # says which numbers do not go together
        return self


class EATRun(Training, EATMethod):
    """All that decides an EAT pre-training run."""

    method: Literal["eat"] = "eat"
    data: str | None = None
    """A manifest (.tsv, .csv), or a folder in one of the known layouts."""
    splits: tuple[str, ...] = ()
    """Which splits or folds of the data to hear; all if empty."""
    encoder: EncoderSettings = EncoderSettings()
    clips: ClipSettings = ClipSettings()
    optim: Optim = Optim()
    monitor: MonitorSettings = MonitorSettings()

    @model_validator(mode="after")
    def _decoder_and_targets_fit(self) -> Self:
        config = self.encoder.config()
        if config.embed_dim % self.decoder.groups:
            raise ValueError(
                f"decoder.groups={self.decoder.groups} does not divide the width {config.embed_dim}"
            )
        if self.average_layers and self.average_layers > config.depth:
            raise ValueError(
                f"average_layers={self.average_layers}: the encoder has {config.depth} layers"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} is not shorter than steps={self.steps}"
            )
        return self


def run(settings: EATRun, *, out: Path, resume: bool = False) -> Path:
    """Pre-train an encoder.

    Args:
        settings: The resolved recipe.
        out: Folder for checkpoints, logs and the finished model.
        resume: Continue what is in `out`.

    Returns:
        `out`, loadable by `eat_audio.load` and `AutoModel.from_pretrained`.

    Raises:
        RecipeError: No data are named.
        EatError: What else the user can mend.
    """
    team = join(settings.on())
    with team.working():
        _pretrain(settings, out, resume, team)
    return out


def _pretrain(settings: EATRun, out: Path, resume: bool, team: Team) -> None:
    if settings.data is None:
        raise RecipeError("data is not set; expected data=MANIFEST or data=FOLDER")
    corpus = open_corpus(settings.data)
    if settings.splits:
        corpus = corpus.select(*settings.splits)

    torch.manual_seed(settings.seed)
    features = extractor(corpus, settings.clips)
    frames = whole_patches(settings.clips.seconds)
    config = settings.encoder.config()
    objective = EATPretraining(config, settings, features, frames=frames, seed=settings.seed)
    objective.to(settings.on()).train()
    share(objective, team, how=settings.parallel)
    groups = parameter_groups(objective.named_parameters(), settings.optim, depth=config.depth)
    optimiser = adamw(groups, settings.optim)

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save(objective.student, features, folder, state=part(state, "student."))

    origin = {"features": features.to_dict()}
    data = corpus.fingerprint()
    here = Run(out, settings, data, objective, optimiser, export, settings.keep, origin, team)
    steps = Steps(
        corpus,
        settings.clips,
        batch=settings.batch,
        seed=settings.seed,
        rank=team.rank,
        ranks=team.ranks,
    )
    with claim(out, team):
        start = here.begin(resume=resume)
        with training_log(settings, out, f"pretrain {settings.method}", start, team) as log:
            guard = CollapseGuard(settings, log)
            look = looking(settings, objective, log)
            look(0)

            def tick(done: int) -> None:
                log.tick(done)
                look(done)

            fit(
                objective,
                watched(steps, settings, start, log),
                optimiser,
                settings,
                settings.optim,
                start=start,
                team=team,
                log=guard.write,
                say=log.say,
                tick=tick,
                save=here.save,
            )
        here.finish()


def training_log(settings: Training, out: Path, title: str, start: int, team: Team) -> TrainingLog:
    """What a run tells while it runs; of a team, one process speaks."""
    return TrainingLog(
        out,
        title,
        steps=settings.steps,
        start=start,
        clips_per_step=settings.batch * settings.accumulate * team.ranks,
        also=settings.log,
        recipe=settings.model_dump(mode="json"),
        writes=team.leads,
    )


def looking(settings: EATRun, objective: EATPretraining, log: TrainingLog) -> Callable[[int], None]:
    """What looks at the student after a step, if it is time to, and tells the log."""
    in_slices = settings.parallel == "fsdp"  # then all processes have to help
    if settings.monitor.data is None or not (log.writes or in_slices):
        return lambda step: None
    features, clips = objective.features, settings.clips
    monitor = Monitor(settings.monitor, features, clips=clips, steps=settings.steps)
    for sentence in monitor.unreadable:
        log.skip(sentence)

    def look(step: int) -> None:
        if not log.looked:
            log.add(0, monitor(0, objective.student))
        if monitor.due(step):
            numbers = monitor(step, in_full(objective.student))
            log.add(step, numbers)
            log.say(monitor.sentence(step, numbers))

    return look


def in_full(encoder: EATModel) -> EATModel:
    """An encoder whose weights are whole: itself, or a copy where they are sliced."""
    if not any(isinstance(weight, DTensor) for weight in encoder.parameters()):
        return encoder
    with torch.random.fork_rng():  # a look must not change what training draws
        copy = EATModel(encoder.config)
    copy.load_state_dict({name: whole(tensor) for name, tensor in encoder.state_dict().items()})
    nn.Module.to(copy, next(encoder.parameters()).device)
    return copy


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under what is left of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def extractor(corpus: Corpus, clips: ClipSettings) -> EATFeatureExtractor:
    """The front end for a corpus: its statistics, unless the recipe says others."""
    told = clips.statistics or corpus.statistics or "audioset"
    if isinstance(told, str):
        if told not in logmel.STATISTICS:
            known = ", ".join(logmel.STATISTICS)
            raise RecipeError(f"clips.statistics={told}: expected two numbers or one of {known}")
        statistics = logmel.STATISTICS[told]
    else:
        statistics = logmel.Statistics(*told)
    return EATFeatureExtractor(
        mean=statistics.mean, std=statistics.std, released_padding=clips.released_padding
    )


def watched(steps: Steps, settings: Training, start: int, log: TrainingLog) -> Iterator[Batch]:
    """The batches of a run; the log hears of clips that cannot be read."""
    accumulate = settings.accumulate
    batches = training_batches(steps, start=start * accumulate, stop=settings.steps * accumulate)
    for batch in log.waiting(batches):
        for sentence in batch.unreadable:
            log.skip(sentence)
        yield batch


class CollapseGuard:
    """Logs every step's numbers, and says so when a run stops learning anything."""

    def __init__(self, settings: EATRun, log: TrainingLog) -> None:
        self.settings = settings
        self.log = log
        self.told: set[str] = set()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of a step."""
        self.log.write(step, numbers | {"tau": self.settings.tau.at(step)})
        share = self.settings.utterance_weight * numbers["utterance"] / numbers["loss"]
        spread = numbers["target_spread"]
        if step > self.settings.optim.warmup and spread < COLLAPSED:
            self._tell("collapse", f"step {step}: collapsed, targets are all alike ({spread:.3g})")
        elif step > self.settings.optim.warmup and share > 0.9:
            self._tell(
                "utterance",
                f"step {step}: the utterance loss is {share:.0%} of the loss; in short or small "
                f"runs utterance_weight={self.settings.utterance_weight:g} makes encoders "
                "collapse, about 1 does not",
            )

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self.told:
            self.told.add(what)
            self.log.say(f"warning: {sentence}")
