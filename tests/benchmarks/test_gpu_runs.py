"""The two runs that are prepared for a GPU, at tiny size on a CPU."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_parts.scale import CPU
from benchmarks.gpu_slot import PARTS, Part, run

from benchmarks import gpu_pretrain
from eat_audio import config
from eat_audio.checkpoints.load import load_model
from eat_audio.data.synthetic import FAMILIES, write_corpus
from eat_audio.errors import EatError
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.run import schema

QUICK = ("parity", "fit")
"""Parts that take a second or two."""


# of torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning")
@pytest.mark.parametrize(
    "part",
    [pytest.param(p, marks=() if p.name in QUICK else pytest.mark.slow) for p in PARTS],
    ids=lambda part: part.name,
)
def test_every_part_runs_to_its_end_and_writes_its_file(part: Part, tmp_path: Path) -> None:
    document = run(replace(part, seconds=1_000), CPU, tmp_path, 1_000)
    assert "error" not in document, document["traceback"]
    assert "left_out" not in document and document["results"]
    written = json.loads((tmp_path / f"gpu_{part.name}.json").read_text(encoding="utf-8"))
    assert written["results"].keys() == document["results"].keys()
    if part.name == "parity":
        assert all(value.get("met", True) for value in document["results"].values())
        assert all(value.get("to the bit", True) for value in document["results"].values())


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 460 < 480


def test_a_part_that_fails_or_takes_too_long_keeps_what_it_has(tmp_path: Path) -> None:
    def failing(_):
        yield "first", 1
        raise ValueError("no such kernel")

    def endless(_):
        while True:
            yield "again", 1

    failed = run(Part("failing", 9, failing), CPU, tmp_path, 9)
    assert failed["results"] == {"first": 1} and failed["error"] == "ValueError: no such kernel"
    late = run(Part("endless", 0.5, endless), CPU, tmp_path, 9)
    assert late["results"] == {"again": 1} and "left_out" in late
    assert json.loads((tmp_path / "gpu_failing.json").read_text())["error"] == failed["error"]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Some recordings in one file."""
    listing = write_corpus(tmp_path / "clips", clips_per_family=3, seconds=1.3, seed=0)
    assert gpu_pretrain.pack(listing, tmp_path / "pool.tar") == 3 * len(FAMILIES)
    return tmp_path / "pool.tar"


TINY = ["device=cpu", "encoder.embed_dim=48", "encoder.depth=1", "encoder.num_heads=4"]
TINY += ["masks=2", "batch=2", "decoder.layers=1", "clips.seconds=1.28", "block=[2,2]"]


def test_pretraining_brings_back_an_encoder(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = [*TINY, "steps=8", "optim.warmup=2"]
    document = gpu_pretrain.train(packed, out, recipe="eat_tiny", changes=changes, seconds=900)
    assert document["complete"] and document["steps"] == document["recipe"]["save_every"] == 8
    model = load_model(out, AudioEncoder)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert len(list(out.iterdir())) <= 8


def test_pretraining_ends_in_time_though_steps_take_longer_than_those_that_were_measured(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_pretrain, "measured_step", lambda *_: 1e-9)
    document = gpu_pretrain.train(
        packed, tmp_path / "out", recipe="eat_tiny", changes=TINY, seconds=gpu_pretrain.RESERVE + 6
    )
    assert not document["complete"] and 0 < document["steps"] < document["recipe"]["steps"]
    assert load_model(tmp_path / "out", AudioEncoder)


def test_a_schedule_is_shortened_as_a_whole() -> None:
    recipe = config.load(schema, "eat_tiny", ["data=x", "steps=1000", "optim.warmup=100"])
    short = gpu_pretrain.in_time(recipe, 50)
    assert (short.steps, short.optim.warmup, short.save_every) == (50, 5, 50)
    assert short.tau.steps == round(recipe.tau.steps / 20)


def test_only_as_many_recordings_are_packed_as_there_is_room_for(
    packed: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some.tar"
    count = gpu_pretrain.pack(tmp_path / "clips", some, megabytes=0.25)
    with tarfile.open(packed) as every, tarfile.open(some) as few:
        assert 0 < count == len(few.getnames()) - 1 < len(every.getnames()) - 1
    assert some.stat().st_size <= 0.25e6


def test_no_time_for_training_is_one_sentence(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(EatError, match=r"^time for 0 steps; expected more --seconds$"):
        gpu_pretrain.train(packed, tmp_path / "out", recipe="eat_tiny", changes=TINY, seconds=1)
