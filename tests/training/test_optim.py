"""Learning rates, weight decay and the optimizer do what the released trainer did."""

from pathlib import Path

import pytest
import torch

from conftest import golden_sets, sidecar, tensors
from eat_audio.finetune import FinetuneRun
from eat_audio.models.bat.checkpoint import released_name
from eat_audio.models.bat.modeling import BATConfig, BATForAudioClassification
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification
from eat_audio.pretraining.bat import PromptEMA
from eat_audio.pretraining.ema import EMASchedule
from eat_audio.training.optim import Optim, adamw, learning_rate, parameter_groups, set_rates

SCHEDULES = golden_sets("schedule_*.json")
OF_BAT = golden_sets("schedules_*.json")
TABLES = golden_sets("finetune_layer_decay_table*.json")


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_learning_rates_are_as_released(path: Path) -> None:
    records, recorded = sidecar(path)["lr"], tensors(path)
    for name, record in records.items():
        steps = recorded[f"lr.{name}.step"].tolist()
        values = recorded[f"lr.{name}.value"].tolist()
        checked = 0
        for step, value in [*zip(steps, values, strict=True), *record["samples"]]:
            if step >= record["max_update"]:
                continue  # no run takes a step beyond its last; the released cosine restarts there
            ours = learning_rate(
                step,
                peak=record["lr"],
                min_lr=record["min_lr"],
                warmup=record["warmup"],
                steps=record["max_update"],
            )
            assert ours == pytest.approx(value, rel=1e-9, abs=1e-18), (name, step)
            checked += 1
        assert checked > 50


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_the_teachers_pace_is_as_released(path: Path) -> None:
    recorded = tensors(path)
    for name, record in sidecar(path)["ema"].items():
        tau = EMASchedule(start=record["start"], end=record["end"], steps=record["end_step"])
        steps, values = recorded[f"ema.{name}.step"], recorded[f"ema.{name}.value"]
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            assert tau.decay(step) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_parameter_learns_at_the_released_rate(path: Path) -> None:
    records = sidecar(path)
    tasks = {
        name: record
        for name, record in records.items()
        if isinstance(record, dict) and "params" in record
    }
    assert tasks
    for record in tasks.values():
        depth = 1 + max(
            int(name.split(".")[2]) for name in record["params"] if name.startswith("model.blocks.")
        )
        model = EATForAudioClassification(EATConfig(embed_dim=24, depth=depth, num_heads=2))
        optim = Optim(
            lr=record["base_lr"], min_lr=1e-6, layer_decay=0.65, weight_decay=0.05, decay_all=True
        )
        groups = parameter_groups(model.named_parameters(), optim, layers=model)
        ours = {name: group for group in groups for name in group["names"]}
        assert len(ours) == len(record["params"])
        for name, expected in record["params"].items():
            plain = name.replace("modality_encoders.IMAGE.", "")
            plain = plain.replace("context_encoder.norm", "pre_norm")
            group = ours[plain if plain.startswith("model.") else f"model.{plain}"]
            assert group["peak"] == pytest.approx(expected["effective_max_lr"], rel=1e-9), name
            assert group["weight_decay"] == expected["effective_weight_decay"], name
            first = learning_rate(0, peak=group["peak"], min_lr=1e-6, warmup=10, steps=100)
            assert first == pytest.approx(expected["group_min_lr"], rel=1e-9), name


@pytest.mark.parametrize("path", OF_BAT, ids=lambda path: path.stem)
def test_rates_and_the_teachers_pace_of_bat_are_as_released(path: Path) -> None:
    cases = [case for name, case in sidecar(path).items() if name.startswith("case")]
    assert cases
    for case in cases:
        optim = Optim(
            lr=case["lr"],
            min_lr=case["min_lr"],
            warmup=case["warmup"],
            schedule="cosine_to_zero",
        )
        optimizer = adamw([{"params": [torch.zeros(1)], "peak": optim.lr}], optim)
        for update, rate in case["lr_at_update"]:
            set_rates(optimizer, optim, update, case["total"])
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9)
        start, end, steps = case["ema"]
        tau = PromptEMA(start=start, end=end, steps=steps)
        for update, decay in case["ema_decay_after_update"]:
            assert tau.decay(update + 1) == pytest.approx(decay, rel=1e-7)  # recorded in float32


@pytest.mark.parametrize("path", OF_BAT, ids=lambda path: path.stem)
def test_every_parameter_of_bat_is_fine_tuned_at_the_released_rate(path: Path) -> None:
    recorded = sidecar(path)["fine_tuning_groups"]
    model = BATForAudioClassification(BATConfig(embed_dim=24, depth=recorded["depth"], num_heads=2))
    layers = recorded["layer_decay"]
    optim = Optim(lr=1.0, layer_decay=layers, stem_decay=True, weight_decay=0.05)
    ours = {
        released_name(name): (group["peak"], group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), optim, layers=model)
        for name in group["names"]
    }
    theirs = {
        name: (pytest.approx(group["lr_scale"]), group["weight_decay"])
        for group in recorded["groups"]
        for name in group["params"]
    }
    assert ours == theirs


def test_biases_norms_and_the_cls_token_are_spared_from_decay_unless_asked() -> None:
    model = EATForAudioClassification(EATConfig(embed_dim=24, depth=2, num_heads=2))
    groups = parameter_groups(model.named_parameters(), Optim(), layers=model)
    spared = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    named = dict(model.named_parameters())
    expected = {name for name, p in named.items() if p.ndim == 1} | {"model.extra_tokens"}
    assert spared == expected


def test_a_linear_schedule_falls_along_a_line_to_its_lowest_rate() -> None:
    record = {"peak": 5.0, "min_lr": 1.0, "warmup": 4, "steps": 12, "schedule": "linear"}
    rates = [learning_rate(step, **record) for step in range(13)]
    assert rates == pytest.approx([1, 2, 3, 4, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1])


def test_an_optimizer_step_is_the_written_formula() -> None:
    """p -= lr wd p;  p -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)"""
    optim = Optim(lr=1e-2, warmup=0, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.1, decay_all=True)
    ours = torch.nn.Parameter(torch.randn(50))
    theirs = ours.detach().double().clone()
    optimizer = adamw(parameter_groups([("p", ours)], optim), optim)
    m = v = torch.zeros(50, dtype=torch.float64)
    for step in range(5):
        gradient = torch.randn(50) * 1e-3
        ours.grad = gradient.clone()
        set_rates(optimizer, optim, step, 10)
        optimizer.step()
        rate = learning_rate(step, peak=1e-2, min_lr=0.0, warmup=0, steps=10)
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.95 * v + 0.05 * gradient.double().square()
        correction = (1 - 0.95 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        theirs = theirs - rate * 0.1 * theirs - rate * correction * m / (v.sqrt() + 1e-3)
    torch.testing.assert_close(ours.detach().double(), theirs, rtol=1e-5, atol=1e-7)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="optim.warmup=20 is not shorter than steps=10"):
        FinetuneRun(steps=10, optim=Optim(warmup=20))
