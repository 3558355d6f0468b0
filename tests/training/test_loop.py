"""The loop: what a step is, what stops it, and that stopping changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from commands import Commands
from conftest import needs_data
from eat_audio.errors import CheckpointError, EatError, Interrupted, TrainingDiverged
from eat_audio.training.loop import Training, fit
from eat_audio.training.optim import Optim, adamw, parameter_groups


@dataclass
class Numbers:
    """A batch of plain numbers."""

    x: Tensor

    def to(self, device: torch.device) -> "Numbers":
        return self


class Line(nn.Module):
    """Learns y = 3 x; counts its steps; draws noise, as real objectives do."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.noise = noise
        self.steps: list[int] = []

    def forward(self, batch: Numbers, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = self.noise * torch.randn(len(batch.x), generator=generator)
        dropped = self.noise * torch.rand(())  # from torch's own generator, as dropout does
        loss = ((self.slope - 3) * batch.x + drawn + dropped).square().mean()
        return {"loss": loss}

    def after_step(self, step: int) -> None:
        self.steps.append(step)


OPTIM = Optim(lr=0.1, warmup=0, weight_decay=0.0, clip=0.0)


def numbers(start: int = 0, batch: int = 4) -> Iterator[Numbers]:
    for step in range(start, 10_000):
        yield Numbers(torch.arange(step * batch, (step + 1) * batch).float() % 7)


def train(line: Line, training: Training, batches: Iterator[Numbers], **options: object) -> Line:
    optimizer = adamw(parameter_groups(line.named_parameters(), OPTIM), OPTIM)
    fit(line, batches, optimizer, training, OPTIM, **options)  # type: ignore[arg-type]
    return line


def test_it_learns() -> None:
    line = train(Line(), Training(steps=200, device="cpu"), numbers())
    assert line.slope.item() == pytest.approx(3, abs=1e-2)
    assert line.steps == list(range(1, 201))


def test_accumulating_two_halves_is_one_whole_batch() -> None:
    whole = train(Line(), Training(steps=5, batch=4), numbers(batch=4))
    halves = train(Line(), Training(steps=5, batch=2, accumulate=2), numbers(batch=2))
    assert halves.slope.item() == pytest.approx(whole.slope.item(), rel=1e-6)


def test_micro_batches_count_by_their_weight() -> None:
    class Weighted(Line):
        def forward(self, batch: Numbers, generator: torch.Generator) -> dict[str, Tensor]:
            weight = batch.x.sum() + 1
            total = ((self.slope - 3) * batch.x).square().sum()
            return {"loss": total / weight, "weight": weight}

    def gradient(training: Training, batches: Iterator[Numbers]) -> float:
        line = Weighted()
        optimizer = adamw(parameter_groups(line.named_parameters(), OPTIM), OPTIM)
        fit(line, batches, optimizer, training, OPTIM)
        return optimizer.state[line.slope]["exp_avg"].item() / 0.1

    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    parts = iter([Numbers(x[:2]), Numbers(x[2:])])
    ours = gradient(Training(steps=1, accumulate=2), parts)
    expected = 2 * -3 * x.square().sum().item() / (x.sum().item() + 2)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_the_logged_metrics_are_those_of_the_whole_step() -> None:
    parts = iter([Numbers(torch.ones(2)), Numbers(3 * torch.ones(2))])
    logged: dict[int, dict[str, float]] = {}
    train(Line(), Training(steps=1, accumulate=2), parts, log=logged.__setitem__)
    assert logged[1]["loss"] == pytest.approx((9 * 1 + 9 * 9) / 2)


def test_precision_decides_how_losses_are_computed() -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        training = Training(precision=precision)  # type: ignore[arg-type]
        with training.autocast(torch.device("cpu")):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype

    observed: list[torch.dtype] = []

    class Watching(Line):
        def forward(self, batch: Numbers, generator: torch.Generator) -> dict[str, Tensor]:
            observed.append((self.slope[None] @ self.slope[:, None]).dtype)
            return super().forward(batch, generator)

    train(Watching(), Training(steps=1, precision="bf16"), numbers())
    assert observed == [torch.bfloat16]


@pytest.mark.parametrize(
    "device",
    ["nonsense", "foo", "cuda:99", "meta", "mps", "cpu:x", "", "cuda:-1", "x" * 5_000, "\x1b[2J"],
)
def test_a_device_that_cannot_be_used_is_named_in_a_short_sentence(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(EatError, match=r"^device=.*: cannot be used here") as error:
        Training(device=device).on()
    messages = str(error.value)
    assert "one of this machine: cpu" in messages and len(messages) < 300 and "\n" not in messages


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is here")
def test_cuda_where_there_is_none_says_why() -> None:
    with pytest.raises(EatError, match=r"device=cuda: cannot be used here \(.*cpu$"):
        Training(device="cuda").on()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    observed: list[object] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        train(
            Line(),
            Training(steps=1),
            numbers(),
            on_step=lambda _: observed.append(signal.getsignal(signal.SIGHUP)),
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert observed == [signal.SIG_IGN]


def test_noise_is_a_function_of_seed_and_step() -> None:
    def run(seed: int) -> float:
        torch.manual_seed(time.time_ns() % 1_000)  # whatever happened before
        return train(Line(noise=1.0), Training(steps=5, seed=seed), numbers()).slope.item()

    assert run(1) == run(1) != run(2)


BROKEN = Numbers(torch.tensor([torch.inf, 1.0]))


def test_a_gradient_that_is_not_finite_is_left_out_reported_and_counted() -> None:
    messages: list[str] = []
    logged: dict[int, dict[str, float]] = {}
    parts = [Numbers(torch.ones(2)), BROKEN, Numbers(torch.ones(2)), BROKEN, BROKEN]
    training = Training(steps=5, log_every=1, patience=3)
    line = train(Line(), training, iter(parts), on_warning=messages.append, log=logged.__setitem__)
    assert [words.split(",")[0] for words in messages] == [f"step {s}: left out" for s in (1, 3, 4)]
    assert "its gradient is" in messages[0] and "(loss inf)" in messages[0]
    assert [logged[step]["skipped"] for step in range(1, 6)] == [0, 1, 1, 2, 3]
    assert line.steps == [1, 3] and line.slope.isfinite().all()


def test_weights_and_moments_stay_as_they_were_at_a_step_that_is_left_out() -> None:
    def after(*parts: Numbers) -> dict[str, Tensor]:
        line = Line()
        optimizer = adamw(parameter_groups(line.named_parameters(), OPTIM), OPTIM)
        fit(line, iter(parts), optimizer, Training(steps=len(parts)), OPTIM)
        return optimizer.state[line.slope] | {"slope": line.slope.detach()}

    one, other = after(Numbers(torch.ones(2))), after(Numbers(torch.ones(2)), BROKEN)
    assert {name: value.item() for name, value in one.items()} == {
        name: value.item() for name, value in other.items()
    }


def test_training_gives_up_after_too_many_of_them_in_a_row() -> None:
    parts = [Numbers(torch.ones(2)), *[BROKEN] * 3]
    line = Line()
    with pytest.raises(TrainingDiverged, match=r"step 3: left out, .* 3 times in a row: given up"):
        train(line, Training(steps=9, patience=3), iter(parts))
    assert line.slope.isfinite().all()


def test_a_checkpoint_that_cannot_be_written_ends_nothing_but_the_last_one() -> None:
    messages: list[str] = []

    def save(step: int) -> None:
        if step in full:
            raise CheckpointError(f"step-{step}: cannot be written (no space)")

    full = {2, 4}
    training = Training(steps=5, save_every=2)
    train(Line(), training, numbers(), save=save, on_warning=messages.append)
    assert messages == [f"step-{s}: cannot be written (no space); training goes on" for s in (2, 4)]
    full = {5}
    with pytest.raises(CheckpointError, match="step-5"):
        train(Line(), training, numbers(), save=save)


def test_an_interrupt_saves_the_step_that_was_being_made() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    saved: list[int] = []

    def interrupting() -> Iterator[Numbers]:
        for step, batch in enumerate(numbers()):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted, match="stopped after step 4 of 50"):
        train(Line(), Training(steps=50), interrupting(), save=saved.append)
    assert saved == [4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_logging_and_saving_happen_when_asked_and_at_the_end() -> None:
    logged: dict[int, dict[str, float]] = {}
    saved: list[int] = []
    training = Training(steps=7, log_every=3, save_every=4)
    train(Line(), training, numbers(), log=logged.__setitem__, save=saved.append)
    assert list(logged) == [3, 6, 7] and saved == [4, 7]
    assert {"loss", "gradient_norm", "lr", "seconds"} <= set(logged[7])


RECIPE = [
    "eat_tiny",
    "steps=24",
    "optim.warmup=4",
    "batch=2",
    "accumulate=2",
    "masks=2",
    "save_every=3",
    "log_every=2",
    "clips.seconds=1.0",
    "block=[3,3]",
    "encoder.embed_dim=48",
    "encoder.depth=2",
    "decoder.groups=4",
]


@needs_data
def test_a_killed_run_ends_at_the_same_weights_to_the_bit(
    commands: Commands, data: Path, tmp_path: Path
) -> None:
    words = ["pretrain", *RECIPE, f"data={data / 'esc10'}", 'splits=["1"]', "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    commands(*words, whole).succeeds()
    moment = int.from_bytes(os.urandom(2), "big") % 16 + 5  # any step, another one each time
    process = subprocess.Popen(
        [sys.executable, "-m", "eat_audio", *words, str(killed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    log = killed / "log.jsonl"
    while process.poll() is None:
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        if len(lines) * 2 >= moment:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.005)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"

    commands(*words, killed, "--resume").succeeds()
    last = "checkpoints/step-00000024"
    for name in ("objective.safetensors", "optimiser.safetensors", "model.safetensors"):
        one, other = load_file(whole / last / name), load_file(killed / last / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), (moment, name)
    final, expected = (
        load_file(killed / "model.safetensors"),
        load_file(whole / "model.safetensors"),
    )
    assert all(torch.equal(final[key], expected[key]) for key in expected)
    steps = [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 24
