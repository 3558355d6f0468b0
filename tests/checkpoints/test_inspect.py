"""What `eat inspect` tells about a model, and that a run keeps its recipe."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import golden_sets
from eat_audio import cli
from eat_audio import config as recipe
from eat_audio.checkpoints.convert import read_pickled
from eat_audio.data.synthetic import write_corpus
from eat_audio.finetune import FinetuneRun
from eat_audio.finetune import run as finetune
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.pretraining.eat import EATRun
from eat_audio.pretraining.run import run as pretrain

TINY = [
    *("encoder.embed_dim=32", "encoder.depth=1", "encoder.num_heads=2", "clips.seconds=1.6"),
    *("steps=3", "optim.warmup=1", "batch=2", "log_every=1", "save_every=2", "device=cpu"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pre`, an encoder pre-trained for three steps, and `fine`, a classifier made of it."""
    folder = tmp_path_factory.mktemp("runs")
    data = f"data={write_corpus(folder / 'clips', clips_per_family=3, seconds=1.6, seed=0)}"
    own = ["masks=2", "block=[3,3]"]
    pretrain(recipe.load(EATRun, "eat_tiny", [*TINY, *own, data]), out=folder / "pre")
    start, settings = (
        str(folder / "pre"),
        recipe.load(FinetuneRun, "eat_tiny_finetune", [*TINY, data]),
    )
    finetune(settings, out=folder / "fine", start=start)
    return folder


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def inspect(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eat", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return inspect


def told(inspect: Any, place: Path) -> dict[str, Any]:
    code, said, err = inspect(place, "--json")
    assert code == 0, err
    return json.loads(said)


def test_an_encoder_is_told_with_its_shape_and_front_end(runs: Path, inspect: Any) -> None:
    found = told(inspect, runs / "pre")
    assert (found["kind"], found["held_by"], found["labels"]) == ("encoder", "run", None)
    assert (found["embed_dim"], found["depth"], found["num_heads"]) == (32, 1, 2)
    assert found["front_end"].keys() == {"mean", "std", "released_padding"}
    assert found["step"] == 3 and found["versions"].keys() == {"eat_audio", "torch", "transformers"}


def test_a_classifier_is_told_with_its_labels_and_that_it_was_made_of_an_encoder(
    runs: Path, inspect: Any
) -> None:
    encoder, classifier = told(inspect, runs / "pre"), told(inspect, runs / "fine")
    assert classifier["kind"] == "classifier" and classifier["labels"] > 1
    assert classifier["started_from"] not in (None, "random weights")
    assert classifier["encoder_fingerprint"] != encoder["encoder_fingerprint"]  # it has learnt


def test_a_checkpoint_of_a_run_is_told_with_its_own_step_and_weights(
    runs: Path, inspect: Any
) -> None:
    first = told(inspect, runs / "pre" / "checkpoints" / "step-00000002")
    last = told(inspect, runs / "pre" / "checkpoints" / "step-00000003")
    assert (first["held_by"], first["step"], last["step"]) == ("run checkpoint", 2, 3)
    assert first["fingerprint"] != last["fingerprint"]
    assert last["fingerprint"] == told(inspect, runs / "pre")["fingerprint"]


@pytest.mark.parametrize(("name", "kind"), [("pre", EATRun), ("fine", FinetuneRun)])
def test_the_recipe_of_a_run_can_be_run_again(
    name: str, kind: type[recipe.Settings], runs: Path, inspect: Any, tmp_path: Path
) -> None:
    kept = told(inspect, runs / name)["recipe"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    again = recipe.load(kind, tmp_path / "again.yaml")
    assert again.model_dump(mode="json") == kept
    assert again.data == str(runs / "clips" / "clips.csv")


@pytest.fixture(scope="module")
def released() -> Path:
    """A pre-training checkpoint of the released trainer: student, teacher, decoder, positions."""
    return golden_sets("fp16_pretrain.pt")[0]


def test_a_released_file_is_told_although_nobody_wrote_down_how_it_was_made(
    released: Path, inspect: Any
) -> None:
    found = told(inspect, released)
    assert (found["kind"], found["method"], found["held_by"]) == ("encoder", "eat", "model")
    assert (found["recipe"], found["step"], found["size"]) == (None, None, None)
    assert (found["embed_dim"], found["parameters"]) == (48, 97_296)
    assert found["front_end"] == {"mean": -4.268, "std": 4.569, "released_padding": False}


def test_of_a_released_file_every_tensor_is_accounted_for(released: Path, inspect: Any) -> None:
    held = told(inspect, released)["file"]
    state = read_pickled(released)["model"]
    assert held["dtype"] == "float32"
    assert held["tensors"] == len(state) - 1 + len(state["_ema"])
    assert held["tensors"] == held["used"] + sum(held["not_used"].values())
    assert held["not_used"] == {
        "teacher of pre-training": len(state["_ema"]),
        "decoder of pre-training": 6,
        "positions, which are computed": 1,
    }


def test_weights_of_half_precision_are_said_to_be_so(tmp_path: Path, inspect: Any) -> None:
    model = EATModel(EATConfig(embed_dim=16, depth=1, num_heads=2))
    model.half().save_pretrained(tmp_path)
    assert told(inspect, tmp_path)["file"]["dtype"] == "float16"


def test_the_configuration_and_the_usual_size_are_told(tmp_path: Path, inspect: Any) -> None:
    EATModel(EATConfig.named("tiny", pooling="mean")).save_pretrained(tmp_path)
    found = told(inspect, tmp_path)
    assert (found["size"], found["pooling"]) == ("tiny", "mean")
    assert found["configuration"]["norm_eps"] == 1e-6
    assert found["front_end"] is None  # the folder says nothing of one


def test_the_table_says_the_same_without_what_is_not_known(runs: Path, inspect: Any) -> None:
    code, said, _ = inspect(runs / "fine")
    rows = dict(line.split("\t") for line in said.splitlines()[:-1])
    assert code == 0 and rows["kind"] == "classifier" and rows["recipe.optim.warmup"] == "1"
    assert rows["fingerprint"] == told(inspect, runs / "fine")["fingerprint"]
    assert "size" not in rows and "recipe.encoder.size" in rows


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[1]", "holds [1]; expected a JSON object"), ("{", "cannot be read as JSON")],
)
def test_a_record_that_is_none_gets_one_sentence(
    text: str, sentence: str, runs: Path, inspect: Any, tmp_path: Path
) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(runs / "pre" / file, tmp_path)
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    code, said, err = inspect(tmp_path)
    assert code == 2 and not said
    assert err.startswith(f"eat: {tmp_path / 'run.json'}: {sentence}") and err.count("\n") == 1


def test_a_place_without_a_model_gets_one_sentence(inspect: Any, tmp_path: Path) -> None:
    code, said, err = inspect(tmp_path)
    assert code == 2 and not said
    assert err == f"eat: {tmp_path}: holds no model (no config.json, no checkpoint)\n"
