"""Methods -> what a step of each costs, in CPU seconds on one thread.

The methods take turns, so that whatever else the machine does meets all of them alike; the first
steps of each do not count, and of the others the median does. Start-up is not in it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from eat_audio.compare.parts import Part
from eat_audio.compare.plan import Method, told
from eat_audio.data.batches import Steps, training_batches, whole_patches
from eat_audio.data.corpora import open_corpus
from eat_audio.pretrain import run as pretraining
from eat_audio.pretrain.method import PretrainRun
from eat_audio.train.loop import fit
from eat_audio.train.optim import adamw, parameter_groups

WARM = 2
"""Steps that do not count: memory is taken, clips are decoded, codebooks are begun."""
TIMED = 8
"""Steps that do."""

Clock = Callable[[], float]


def seconds_per_step(
    methods: Sequence[Method],
    part: Part,
    *,
    clock: Clock = time.process_time,
    warm: int = WARM,
    timed: int = TIMED,
) -> list[list[float]]:
    """CPU seconds of one step: of every method, stage by stage.

    Args:
        methods: What is measured, each with its own batch.
        part: Which clips they hear.
        clock: What is read before and after a step.
        warm: Steps of each that do not count.
        timed: Steps that do.
    """
    with one_thread(), TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        walks = [
            [_walk(settings) for settings in _stages(method, part, Path(place), warm + timed)]
            for method in methods
        ]
        times: list[list[list[float]]] = [[[] for _ in stages] for stages in walks]
        for _ in range(warm + timed):
            for stages, kept in zip(walks, times, strict=True):
                for walk, seconds in zip(stages, kept, strict=True):
                    before = clock()
                    next(walk)
                    seconds.append(clock() - before)
    return [[median(seconds[warm:]) for seconds in stages] for stages in times]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works on one thread, as the runs do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _stages(method: Method, part: Part, place: Path, steps: int) -> Iterator[PretrainRun]:
    """The settings of every stage; what the next one begins with is made, however little learnt."""
    out = place / method.label
    for leg in method.legs:
        changes = told(leg.usual, steps, 0, part, points=1)
        settings = leg.stage.settings(out, *changes)
        assert isinstance(settings, PretrainRun)
        if leg is not method.legs[-1]:
            short = leg.stage.settings(out, *told(leg.usual, 2, 0, part, points=1))
            assert isinstance(short, PretrainRun)
            pretraining.run(short, out=leg.stage.place(out))
        yield settings


def _walk(settings: PretrainRun) -> Iterator[None]:
    """A run that stands still after every step."""
    assert settings.data is not None
    corpus = open_corpus(settings.data).select(*settings.splits)
    torch.manual_seed(settings.seed)
    config = settings.config()
    objective = pretraining.METHODS[settings.method].objective(
        config,
        settings,
        pretraining.extractor(corpus, settings.clips, method=config.model_type),
        frames=whole_patches(settings.clips.seconds),
        seed=settings.seed,
    )
    objective.to(settings.on()).train()
    groups = parameter_groups(
        objective.named_parameters(), settings.optim, depth=config.num_hidden_layers
    )
    optimiser = adamw(groups, settings.optim)
    steps = Steps(corpus, settings.clips, batch=settings.batch, seed=settings.seed)
    batches = training_batches(steps, start=0, stop=settings.steps * settings.accumulate)
    for step in range(settings.steps):
        until = settings.model_copy(update={"steps": step + 1})
        fit(objective, batches, optimiser, until, settings.optim, start=step)
        yield
