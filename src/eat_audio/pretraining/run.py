"""A recipe and a corpus -> a pre-trained encoder in a folder.

Puts together what the other files make: clips, features, objective, optimizer, loop, checkpoint.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eat_audio.audio import fbank as logmel
from eat_audio.data.contents import contents
from eat_audio.data.corpora import open_corpus
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import Batch, ClipBatches, ClipSettings, training_batches
from eat_audio.errors import SettingError
from eat_audio.evaluation.monitor import Monitor
from eat_audio.models import families, save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, EATFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.method import Pretraining, PretrainRun, run_settings
from eat_audio.training.checkpoint import Run, lock_run_dir
from eat_audio.training.distributed import ProcessGroup, join, share, whole
from eat_audio.training.loop import Training, fit
from eat_audio.training.metrics_log import TrainingLog
from eat_audio.training.optim import adamw, parameter_groups


def schema(recipe: dict[str, Any]) -> type[PretrainRun]:
    """The settings of the method that a recipe names; EAT if it names none.

    Raises:
        RecipeError: There is no such method.
    """
    return run_settings(str(recipe.get("method", "eat")))


def run(settings: PretrainRun, *, out: Path, resume: bool = False) -> Path:
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


def _pretrain(settings: PretrainRun, out: Path, resume: bool, team: ProcessGroup) -> None:
    if settings.data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER")
    corpus = open_corpus(settings.data)
    if settings.splits:
        corpus = corpus.select(*settings.splits)

    torch.manual_seed(settings.seed)
    config = settings.config()
    features = extractor(corpus, settings.clips, method=config.model_type)
    objective = settings.build_objective(features)
    objective.to(settings.on()).train()
    share(objective, team, how=settings.parallel)
    groups = parameter_groups(
        objective.named_parameters(), settings.optim, depth=config.num_hidden_layers
    )
    optimizer = adamw(groups, settings.optim)

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save(objective.student, features, folder, state=part(state, "student."))

    origin = {"features": features.to_dict()}
    here = Run(
        out,
        settings,
        corpus.fingerprint(),
        objective,
        optimizer,
        export,
        settings.keep,
        origin,
        team,
        contents(corpus) + objective.input_contents(),
    )
    steps = ClipBatches(
        corpus,
        settings.clips,
        batch=settings.batch,
        seed=settings.seed,
        rank=team.rank,
        ranks=team.ranks,
    )
    with lock_run_dir(out, team):
        start = here.begin(resume=resume)
        with training_log(settings, out, f"pretrain {settings.method}", start, team) as log:
            guard = CollapseGuard(objective, log, after=settings.optim.warmup)
            look = looking(settings, objective, log)
            look(0)

            def tick(done: int) -> None:
                log.tick(done)
                look(done)

            fit(
                objective,
                batches_with_log(steps, settings, start, log),
                optimizer,
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


def training_log(
    settings: Training, out: Path, title: str, start: int, team: ProcessGroup
) -> TrainingLog:
    """What a run tells while it runs; of a team, one process speaks."""
    return TrainingLog(
        out,
        title,
        steps=settings.steps,
        start=start,
        clips_per_step=settings.batch * settings.accumulate * team.ranks,
        also=settings.log,
        recipe=settings.model_dump(mode="json"),
        writes=team.is_main,
    )


def looking(
    settings: PretrainRun, objective: Pretraining, log: TrainingLog
) -> Callable[[int], None]:
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


def in_full(encoder: AudioEncoder) -> AudioEncoder:
    """An encoder whose weights are whole: itself, or a copy where they are sliced."""
    if not any(isinstance(weight, DTensor) for weight in encoder.parameters()):
        return encoder
    with torch.random.fork_rng():  # a look must not change what training draws
        copy = type(encoder)(encoder.config)
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


def extractor(corpus: Corpus, clips: ClipSettings, *, method: str) -> AudioFeatureExtractor:
    """A method's front end for a corpus: its statistics, unless the recipe says others.

    Published statistics, and those that lie beside a corpus, are of the log-mel that EAT hears. A
    front end with another log-mel knows AudioSet's only; others are told as two numbers.
    """
    kind = families()[method].features
    same = issubclass(kind, EATFeatureExtractor)
    told = clips.statistics or (corpus.statistics if same else None) or "audioset"
    if told == "audioset":
        return kind(released_padding=clips.released_padding)
    if isinstance(told, str):
        published = logmel.STATISTICS if same else {}
        if told not in published:
            known = ", ".join({"audioset": None, **published})
            raise SettingError(f"clips.statistics={told}: expected two numbers or one of {known}")
        statistics = published[told]
    else:
        statistics = logmel.Statistics(*told)
    return kind(mean=statistics.mean, std=statistics.std, released_padding=clips.released_padding)


def batches_with_log(
    steps: ClipBatches, settings: Training, start: int, log: TrainingLog
) -> Iterator[Batch]:
    """The batches of a run; the log hears of clips that cannot be read."""
    accumulate = settings.accumulate
    batches = training_batches(steps, start=start * accumulate, stop=settings.steps * accumulate)
    for batch in log.waiting(batches):
        for sentence in batch.unreadable:
            log.skip(sentence)
        yield batch


class CollapseGuard:
    """Logs every step's numbers, and says so when a run stops learning anything.

    Args:
        objective: Knows which numbers are bad.
        log: Where to.
        after: Steps of warm-up, in which nothing is said.
    """

    def __init__(self, objective: Pretraining, log: TrainingLog, *, after: int) -> None:
        self.objective = objective
        self.log = log
        self.after = after
        self.told: set[str] = set()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of a step."""
        self.log.write(step, numbers | self.objective.step_metrics(step))
        messages = self.objective.warnings(numbers) if step > self.after else {}
        for name, sentence in messages.items():
            if name not in self.told:
                self.told.add(name)
                self.log.say(f"warning: step {step}: {sentence}")
