"""Pre-training on a GPU: as on a CPU, beside the plain way, from sound, and where time goes."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_parts.scale import Scale
from benchmarks.speed import model as speed
from benchmarks.speed.data import sound
from benchmarks.speed.measure import Work, compare
from eat_audio.audio import to_int16
from eat_audio.data.corpus import Clip
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import Batch, ClipBatches, collate, training_batches
from eat_audio.models import METHODS, save
from eat_audio.pretraining.beats.tokenizer import TokenizerPretraining
from eat_audio.pretraining.eat import EATPretraining
from eat_audio.pretraining.method import PretrainRun, run_settings
from eat_audio.training.loop import fit
from eat_audio.training.metrics_log import TrainingLog
from eat_audio.training.optim import Optim, adamw, parameter_groups
from eat_audio.training.run import Hooks, Trainer, with_prefix

Results = Iterator[tuple[str, Any]]

SMALL: dict[str, dict[str, Any]] = {
    "eat": {"masks": 2, "block": [3, 3], "mask_noise": 0.0, "utterance_weight": 1.0},
    "audiomae": {"decoder": {"width": 96, "depth": 2, "heads": 6, "bias_dropout": 0.0}},
    "beats": {"dropout": 0.0, "layerdrop": 0.0},
    "beats_tokenizer": {"dropout": 0.0, "layerdrop": 0.0},
}
"""Methods without draws of a device's own generator, which differ between a CPU and a GPU."""
WITHIN = 2e-2
"""Relative distance of losses that rounding explains after some steps."""
CUT = 0.16
"""Seconds that make a clip one column of patches shorter."""
KERNELS = 25


class _Stopped(Exception):
    """The run is stopped as if it had been killed."""


def clips(seconds: list[float]) -> Batch:
    """Return a batch of sounds of so many seconds, always the same."""
    waveforms = [
        to_int16(torch.from_numpy(sound(length, seed=seed))) for seed, length in enumerate(seconds)
    ]
    names = [Clip(id=f"clip {number}", path="") for number in range(len(seconds))]
    return collate(names, waveforms, 0, 0)


def small_run(method: str, device: str, steps: int, **changes: Any) -> PretrainRun:
    """Return a method's settings at tiny size."""
    shared = {"encoder": {"size": "tiny"}, "clips": {"seconds": 2.56}, "batch": 4, "log_every": 1}
    if device == "cpu" and steps < 20:  # a dry run
        shared["encoder"] = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    optim = {"lr": 1e-4, "warmup": 0}
    fields = {"method": method, "device": device, "steps": steps, "optim": optim}
    return run_settings(method).model_validate(shared | fields | SMALL[method] | changes)


def small_trainer(run: PretrainRun) -> Trainer:
    """Return a tiny objective, the same on every device, with clips of three lengths."""
    torch.manual_seed(0)
    features = METHODS[run.config().model_type].feature_extractor()
    objective = run.build_objective(features, **run.untrained_inputs(features, None))
    if isinstance(objective, TokenizerPretraining):  # k-means draws from the device's generator
        objective.codebook.initialize(F.normalize(torch.randn(objective.codebook.codes.shape)))
    batch = clips([2.56, 2.5, 1.3, 2.56])

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return (batch for _ in range(start, stop))

    return Trainer(objective.to(run.on()).train(), run, open_batches=batches)


def parity(scale: Scale) -> Results:
    """Yield the losses of every method on a CPU and on the device, and whether a run resumes."""
    steps = 20 if scale.is_gpu else 2
    for method in SMALL:
        losses = {}
        for device, precision in dict.fromkeys(
            (("cpu", "fp32"), (scale.device, "fp32"), (scale.device, "bf16"))
        ):
            run = small_run(method, device, steps, precision=precision)
            losses[f"{device} {precision}"] = _losses(small_trainer(run))
        reference, *others = losses.values()
        apart = max(
            abs(value - expected) / abs(expected)
            for other in others
            for value, expected in zip(other, reference, strict=True)
        )
        yield method, {"losses": losses, "difference": apart, "met": apart <= WITHIN}
    for fixed in (True, False):
        run = small_run("eat", scale.device, 6, deterministic=fixed, save_every=3)
        with tempfile.TemporaryDirectory() as scratch:
            complete, resumed = _trained_twice(run, Path(scratch))
        name = f"a resumed run is the same, deterministic={str(fixed).lower()}"
        yield name, {"to the bit": complete == resumed, "losses": [complete, resumed]}


def _losses(trainer: Trainer) -> list[float]:
    values: list[float] = []
    _fit(trainer, log=lambda step, metrics: values.append(metrics["loss"]))
    return values


def _fit(trainer: Trainer, **hooks: Callable[..., None]) -> None:
    """Run the loop alone: nothing is saved, and no folder is needed."""
    run = trainer.settings
    fit(
        trainer.objective,  # type: ignore[arg-type]
        trainer.batches(),
        trainer.optimizer,
        run,
        run.optim,
        **hooks,
    )


def _trained_twice(run: PretrainRun, scratch: Path) -> tuple[list[float], list[float]]:
    """Return the losses of a complete run, and of one that was stopped and resumed."""
    rows: dict[str, dict[int, float]] = {"complete": {}, "resumed": {}}

    def train(name: str, stop: int | None, *, resume: bool) -> None:
        trainer = small_trainer(run)
        objective: Any = trainer.objective

        def log(step: int, metrics: dict[str, float]) -> None:
            rows[name][step] = metrics["loss"]

        def on_step(step: int) -> None:
            if step == stop:
                raise _Stopped

        def export(folder: Path, state: dict[str, Tensor]) -> None:
            encoder = with_prefix(state, "student.")
            save(objective.student, objective.features, folder, state=encoder)

        def hooks(_: TrainingLog) -> Hooks:
            return Hooks(log, on_step)

        trainer.train(
            scratch / name,
            title=name,
            data="",
            contents="",
            origin={},
            export=export,
            resume=resume,
            hooks=hooks,
        )

    train("complete", None, resume=False)
    try:
        train("resumed", 5, resume=False)
    except _Stopped:  # two steps after a checkpoint, which are lost
        train("resumed", None, resume=True)
    complete, resumed = (list(dict(sorted(one.items())).values()) for one in rows.values())
    return complete, resumed


def against_plain(scale: Scale) -> Results:
    """Yield whole steps of EAT-base beside the plain way, at two batch sizes; ours at a third."""
    *pairs, alone = scale.batches
    for batch in (*pairs, alone):
        case = speed.whole_step(
            scale.size,
            scale.device,
            batch=batch,
            clones=scale.masks,
            seconds=scale.seconds,
            target=None,
        )
        name = f"batch {batch}, {scale.masks} masks, {scale.dtype}"
        try:
            if batch == alone:
                yield name, _alone(case.ours, batch, scale)
                continue
            pair = compare(case, repeats=scale.repeats, device=scale.device)
            yield (
                name,
                {
                    "difference": pair.difference,
                    "ratio": [pair.ratio, pair.ratio_lo, pair.ratio_hi],
                    "ours": vars(pair.ours),
                    "plain": vars(pair.plain),
                },
            )
        except torch.OutOfMemoryError as error:
            yield f"{name}, plain", {"out of memory": str(error)[:200]}
            yield name, _alone(case.ours, batch, scale)


def _alone(work: Work, batch: int, scale: Scale) -> dict[str, float]:
    seconds = scale.clock(work, 5 if scale.is_gpu else 1)
    return {"ms": 1e3 * seconds, "clips_s": batch / seconds}


def whole_fit(scale: Scale) -> Results:
    """Yield clips/s of the trainer itself: sound in, front end, masks, optimizer and log."""
    full, count = scale.seconds + 0.03, scale.batches[0]  # the last window needs 25 ms more
    ten = full - 0.27
    ends = [ten - CUT * (number % 8) for number in range(count)]
    cases = {
        "no padding": [full] * count,
        "all 0.24 s shorter, cut": [ten] * count,
        "lengths that differ, masked": [full, *ends[1:]],
        "a small batch, cut": [ten] * scale.batches[1],
    }
    for name, lengths in cases.items():
        yield name, _fit_rate(scale, lengths)
    if scale.data is not None:
        yield f"real sound, {scale.data.name}", _fit_rate_of_files(scale, scale.data)
    yield "waits for the device in a step", _waits(scale)


def _eat_run(scale: Scale, batch: int, steps: int, **changes: Any) -> PretrainRun:
    fields = {
        "method": "eat",
        "encoder": {"size": scale.size},
        "masks": scale.masks,
        "clips": {"seconds": scale.seconds, "memory_mb": 0} | changes.pop("clips", {}),
        "device": scale.device,
        "precision": "bf16" if scale.is_gpu else "fp32",
        "optim": {"lr": 1e-5, "warmup": 0},
        "steps": steps,
        "batch": batch,
        "log_every": 10**6,
    }
    return run_settings("eat").model_validate(fields | changes)


def _eat_trainer(run: PretrainRun, open_batches: Callable[..., Iterator[Batch]]) -> Trainer:
    torch.manual_seed(0)
    objective = run.build_objective(METHODS["eat"].feature_extractor()).to(run.on()).train()
    return Trainer(objective, run, open_batches=open_batches)


def _fit_rate(scale: Scale, lengths: list[float]) -> dict[str, float]:
    batch = clips(lengths)
    if scale.is_gpu:
        batch = batch.pin_memory()
    run = _eat_run(scale, len(lengths), scale.steps)
    trainer = _eat_trainer(run, lambda start, stop: (batch for _ in range(start, stop)))
    return _rate(trainer, len(lengths))


def _fit_rate_of_files(scale: Scale, data: Path) -> dict[str, float]:
    run = _eat_run(
        scale, scale.batches[0], scale.steps, clips={"workers": 14 if scale.is_gpu else 0}
    )
    steps = ClipBatches(open_corpus(data), run.clips, batch=run.batch, seed=0)
    return _rate(_eat_trainer(run, partial(training_batches, steps, pin=scale.is_gpu)), run.batch)


def _rate(trainer: Trainer, batch: int) -> dict[str, float]:
    """Return clips/s of the later steps of a run; the last of them waits for the device."""
    run, ends = trainer.settings, [time.perf_counter()]
    _fit(
        trainer,
        on_step=lambda done: ends.append(time.perf_counter()),
        log=lambda step, metrics: ends.append(time.perf_counter()),
    )
    warm = 5 if run.steps > 10 else 1
    seconds = ends[-1] - ends[warm]
    return {"clips_s": batch * (run.steps - warm) / seconds, "first_step_s": ends[1] - ends[0]}


def _waits(scale: Scale) -> dict[str, int] | str:
    """Return the lines that wait for the device after the first steps, and how often they do."""
    if not scale.is_gpu:
        return "only a GPU is waited for"
    run = _eat_run(scale, 4, 9)
    batch = clips([scale.seconds] * 4).pin_memory()
    trainer = _eat_trainer(run, lambda start, stop: (batch for _ in range(start, stop)))

    def on_step(done: int) -> None:
        torch.cuda.set_sync_debug_mode("warn" if 4 <= done < 8 else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(trainer, on_step=on_step)
    places: dict[str, int] = {}
    for warning in caught:
        if "synchron" in str(warning.message):
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            places[place] = places.get(place, 0) + 1
    return places


def profile(scale: Scale) -> Results:
    """Yield the kernels that two steps spend their time in, and the share that the GPU is idle."""
    objective, step, inputs = _fresh_step(scale)
    for example in inputs[:3]:
        step(example)
    scale.wait()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if scale.is_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    begin = time.perf_counter()
    with torch.profiler.profile(activities=activities) as trace:
        for example in inputs[:2]:
            step(example)
        scale.wait()
    wall = time.perf_counter() - begin
    on_gpu = torch.autograd.DeviceType.CUDA
    rows = [
        (
            row.key,
            row.self_device_time_total if scale.is_gpu else row.self_cpu_time_total,
            row.count,
        )
        for row in trace.key_averages()
        if not scale.is_gpu or row.device_type == on_gpu
    ]
    busy = sum(row[1] for row in rows)
    yield (
        "two steps",
        {
            "wall_ms": 1e3 * wall,
            "kernels_ms": busy / 1e3,
            "idle": 1 - busy / 1e6 / wall,
            "kernels": sum(row[2] for row in rows),
        },
    )
    top = sorted(rows, key=lambda row: -row[1])[:KERNELS]
    yield (
        "kernels",
        [
            {"name": name[:90], "ms": taken / 1e3, "share": taken / max(busy, 1), "calls": calls}
            for name, taken, calls in top
        ],
    )


def _fresh_step(
    scale: Scale,
) -> tuple[EATPretraining, Callable[[speed.Example], Tensor], list[speed.Example]]:
    """Return an objective, its whole step of training, and batches for it."""
    objective = speed.fresh_objective(scale.size, scale.device, scale.seconds)
    method = objective.method.model_copy(update={"masks": scale.masks})
    optim = Optim(lr=1e-5)
    optimizer = adamw(
        parameter_groups(objective.named_parameters(), optim, layers=objective), optim
    )

    def step(example: speed.Example) -> Tensor:
        with speed.autocast(scale.device, scale.dtype):
            loss = speed.our_losses(objective, method, example)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(1)
        return loss.detach()

    batch = scale.batches[0]
    return objective, step, speed.examples(objective, method, batch, scale.seconds, scale.device)


def compiled(scale: Scale) -> Results:
    """Yield clips/s of a step as it is, and with what may make it faster."""
    batch = scale.batches[0]
    objective, step, inputs = _fresh_step(scale)

    def measured(work: Callable[[speed.Example], Tensor]) -> dict[str, float]:
        return {"clips_s": batch / scale.clock(partial(work, inputs[0]))}

    yield "eager", measured(step)
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        yield "cuDNN benchmark", measured(step)
        objective.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield "cuDNN benchmark, decoder weights channels-last", measured(step)
    finally:
        torch.backends.cudnn.benchmark = before
    del objective, step
    other, step, inputs = _fresh_step(scale)
    expected = _fresh_step(scale)[1](inputs[0]).item()
    for block in (*other.student.model.blocks, *other.teacher.blocks):
        block.compile()
    if scale.is_gpu:
        other.decoder.compile()
    begin = time.perf_counter()
    first = step(inputs[0]).item()
    yield (
        "compiled by block",
        {
            "first_call_s": time.perf_counter() - begin,
            "difference": abs(first - expected) / abs(expected),
        }
        | measured(step),
    )
