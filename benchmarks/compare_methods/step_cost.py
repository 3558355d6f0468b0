"""Measure the CPU seconds of a step of every method, on one thread.

The methods take turns of a few steps, so that whatever else the machine does meets all of them
alike; the first step of a turn does not count, as it finds the processor's caches full of another
method, and of the others the median does. Every step gets the same few clips: those that a run
keeps in memory are decoded in its first epoch only, which would count for too much here. That
epoch and start-up are not included.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.compare_methods.folds import Part
from benchmarks.compare_methods.plan import Method, run_changes
from eat_audio.data.splits import sample
from eat_audio.pretraining import run as pretraining
from eat_audio.pretraining.method import PretrainRun
from eat_audio.training.distributed import SINGLE_PROCESS

TURNS = 5
"""How often it is each method's turn; the first turn does not count, for memory is taken in it,
clips are decoded and codebooks begun."""
TURN = 4
"""Steps in a turn, of which the first does not count."""

Clock = Callable[[], float]


def seconds_per_step(
    methods: Sequence[Method],
    part: Part,
    *,
    clock: Clock = time.process_time,
    turns: int = TURNS,
) -> list[list[float]]:
    """CPU seconds of one step: of every method, stage by stage.

    Args:
        methods: What is measured, each with its own batch.
        part: The clips.
        clock: What is read before and after a step.
        turns: How often it is each one's turn.
    """
    with one_thread(), TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        walks = [
            [_walk(settings) for settings in _stages(method, part, Path(place), turns * TURN)]
            for method in methods
        ]
        times: list[list[list[float]]] = [[[] for _ in stages] for stages in walks]
        for turn in range(turns):
            for stages, kept in zip(walks, times, strict=True):
                for walk, seconds in zip(stages, kept, strict=True):
                    took = [_timed(walk, clock) for _ in range(TURN)]
                    seconds += took[1:] if turn else []
    return [[median(seconds) for seconds in stages] for stages in times]


def _timed(walk: Iterator[None], clock: Clock) -> float:
    before = clock()
    next(walk)
    return clock() - before


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
    """Yield the settings of every stage; all but the last are run for two steps before."""
    out = place / method.label
    for leg in method.legs:
        changes = run_changes(leg.defaults, steps, 0, part, points=1)
        settings = leg.stage.settings(out, *changes)
        assert isinstance(settings, PretrainRun)
        if leg is not method.legs[-1]:
            short = leg.stage.settings(out, *run_changes(leg.defaults, 2, 0, part, points=1))
            assert isinstance(short, PretrainRun)
            pretraining.run(short, out=leg.stage.path(out))
        yield settings


def _walk(settings: PretrainRun) -> Iterator[None]:
    """A run that stops after every step."""
    corpus = pretraining.corpus_of(settings)
    few = sample(corpus, settings.batch * settings.accumulate)
    trainer = pretraining.make_trainer(settings, corpus, SINGLE_PROCESS, clips=few)
    yield from trainer.step_by_step()
