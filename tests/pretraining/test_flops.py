"""Counted operations are those of the released step and of formulas, and grow as they should."""

from typing import Any

import pytest
import torch

from eat_audio import config as recipe
from eat_audio.models import METHODS
from eat_audio.models.beats.modeling import BEATsConfig
from eat_audio.pretraining.beats.objective import BEATsRun
from eat_audio.pretraining.flops import REST, Cost, encoding, pretraining
from eat_audio.pretraining.method import PretrainRun
from eat_audio.pretraining.run import schema

SHALLOW = ["encoder.depth=1", "clips.seconds=1"]


def settings_of(name: str, *changes: str) -> PretrainRun:
    return recipe.load(schema, name, list(changes))


def count(name: str, *changes: str, **kwargs: Any) -> Cost:
    return pretraining(settings_of(name, *changes), **kwargs)


# ---- published or recorded numbers ----


def test_eat_base_costs_what_the_released_step_does() -> None:
    cost = count("eat_base_as2m")
    assert cost.total == pytest.approx(1083e9, rel=0.01)
    # The released decoder predicts visible patches, too, without any use.
    unused = 2 * 16 * 102 * 768**2
    assert sum(cost.forward.values()) + unused == pytest.approx(425.73e9, abs=5e6)


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("eat_base", 1077.1),
        ("sslam_base", 1224.2),  # 1,230 less what the released decoder predicts without use
        ("audiomae_base", 210.1),
        ("beats_iter1", 144.7),
        ("beats_tokenizer_iter2", 476.4),
    ],
)
def test_base_models_cost_what_was_counted_on_paper(name: str, giga: float) -> None:
    assert count(name).total == pytest.approx(giga * 1e9, rel=0.005)


# ---- formulas on paper ----


def linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def block(tokens: int, width: int, hidden: int) -> int:
    maps = linear(tokens, width, 4 * width) + linear(tokens, width, 2 * hidden)
    return maps + 4 * tokens**2 * width


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_step_of_eat_costs_what_its_layers_do(kernel: int, groups: int) -> None:
    changes = [*SHALLOW, "masks=2", "block=[2,2]", "encoder.mlp_ratio=3"]
    cost = count("eat_tiny", *changes, f"decoder.kernel={kernel}", f"decoder.groups={groups}")
    width, patches, visible = 192, 7 * 8, 11
    layers = settings_of("eat_tiny").decoder.layers  # type: ignore[attr-defined]
    embedding = linear(patches, 256, width)
    decoder = 2 * layers * linear(patches, kernel**2 * width // groups, width)
    decoder += 2 * linear(patches - visible, width, width)
    student = 2 * block(visible + 1, width, 3 * width)
    assert cost.forward.pop(REST) == pytest.approx(2 * embedding, rel=1e-3)  # student and teacher
    assert cost.forward == {
        "teacher": block(patches + 1, width, 3 * width),
        "student": student,
        "decoder": decoder,
    }
    assert cost.backward == 2 * student + 2 * decoder + embedding  # none of the teacher


def test_local_attention_costs_less_than_global_attention() -> None:
    local = count("audiomae_tiny", "encoder.depth=1")
    everywhere = count("audiomae_tiny", "encoder.depth=1", "decoder.attention=global")
    assert local.forward["decoder"] < everywhere.forward["decoder"]
    assert local.forward["student"] == everywhere.forward["student"]


@pytest.mark.parametrize("method", ["eat", "audiomae", "beats", "bat"])
@pytest.mark.parametrize("seconds", [0.02, 3.3])
def test_encoding_costs_what_its_layers_do(method: str, seconds: float) -> None:
    config = METHODS[method].config.named("small")
    columns = {0.02: 1, 3.3: 20 if method == "beats" else 21}[seconds]
    width, depth, patches = config.hidden_size, config.num_hidden_layers, columns * 8
    tokens = patches + (method != "beats")
    expected = linear(patches, 256, width) + depth * block(tokens, width, 4 * width)
    cost = encoding(config, seconds)
    assert cost.backward == 0
    if method in ("beats", "bat"):  # of both: gates; embeds in two maps, and convolves positions
        assert expected < cost.total < 1.5 * expected
    else:
        assert cost.total == expected


# ---- how costs grow ----


@pytest.mark.parametrize(
    ("seconds", "giga"), [(1, 122), (5, 539), (20, 2158), (30, 3328), (60, 7118), (120, 16174)]
)
def test_cost_grows_with_length_a_little_faster_than_the_clip(seconds: int, giga: int) -> None:
    cost = count("eat_base_as2m", f"clips.seconds={seconds}", "block=[2,2]")
    assert cost.total == pytest.approx(giga * 1e9, rel=0.01)


def test_every_mask_costs_the_same_and_the_teacher_is_paid_once() -> None:
    masks = (1, 2, 16, 32)
    totals = [count("eat_base", f"masks={number}").total for number in masks]
    per_mask = totals[1] - totals[0]
    once = totals[0] - per_mask
    assert totals == pytest.approx([once + number * per_mask for number in masks])
    assert (once, per_mask) == pytest.approx((97.6e9, 61.6e9), rel=0.01)


def test_stored_labels_cost_nothing_while_training() -> None:
    stored = count("beats_iter2", "labels=FOLDER")
    learned = count("beats_iter2", "tokenizer=RUN")
    assert "tokenizer" not in stored.forward
    assert stored.total == learned.total - learned.forward["tokenizer"]
    assert stored.backward == learned.backward


def test_a_tokenizer_costs_as_much_as_the_run_that_made_it_says() -> None:
    settings = settings_of("beats_tiny_iter2", "tokenizer=RUN")
    usual = pretraining(settings)
    other = pretraining(
        settings, producer=settings_of("beats_tiny_tokenizer", "encoder.size=small")
    )
    assert other.forward["tokenizer"] > 4 * usual.forward["tokenizer"]
    assert other.forward["predictor"] < usual.forward["predictor"]  # 256 codes, not 1,024


@pytest.mark.parametrize("target", ["patches", "logits"])
def test_a_larger_teacher_costs_more(target: str) -> None:
    settings = settings_of("beats_tiny_tokenizer", f"target={target}")
    base = BEATsRun()
    assert base.config().to_dict() == BEATsConfig().to_dict()
    larger = pretraining(settings, producer=base)
    assert larger.forward["teacher"] > 10 * pretraining(settings).forward["teacher"]


def test_only_beats_computes_less_for_a_short_clip() -> None:
    for name, less in (("beats_iter1", True), ("eat_base", False), ("audiomae_base", False)):
        whole, short = count(name).forward, count(name, seconds=5.0).forward
        assert (short["student"] < whole["student"]) is less


def test_a_clip_longer_than_a_run_reads_costs_no_more() -> None:
    assert count("beats_iter1", seconds=60.0) == count("beats_iter1")


def test_parts_add_up_and_nothing_is_left_on_a_device() -> None:
    for name in ("eat_tiny", "audiomae_tiny", "beats_tiny_iter1", "beats_tiny_tokenizer"):
        state = torch.get_rng_state()
        cost = count(name)
        assert cost.total == sum(cost.forward.values()) + cost.backward
        assert min(cost.forward.values()) >= 0 < cost.backward
        assert torch.equal(torch.get_rng_state(), state)
