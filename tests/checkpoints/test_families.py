"""Files that others made of EAT, BEATs and Audio-MAE load, give their outputs, or are refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import eat, golden_sets, sidecar, tensors
from eat_audio.audio import load_int16
from eat_audio.audio.fbank import BEATS, window_and_filters
from eat_audio.checkpoints.load import contents, load_model, load_model_and_features
from eat_audio.errors import CheckpointError
from eat_audio.models.common.modeling import AudioClassifier, EncoderOutput, label_names

AVEX = golden_sets("golden.json", "AVEX")
AVEX_EAT = [path for path in AVEX if "sl_eat" in sidecar(path)["settings"]]
AVEX_BEATS = [path for path in AVEX if path not in AVEX_EAT]
OPENBEATS = golden_sets("golden.json", "OpenBEATs")
FILLED = [*golden_sets("golden.json", "EAT"), *golden_sets("golden.json", "Audio-MAE"), *AVEX_EAT]
"""Sets whose clips are filled to 1,024 frames, padding included."""
VARIANTS = {"hf": "", "ft": "ft.", "pretrained": "pretrained."}


def by_folder(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.parent.name)


def close(actual: Tensor, path: Path, key: str, kind: str) -> None:
    """Compare with recorded values, of which a set may hold every n-th token only."""
    record = sidecar(path)
    step = re.search(r"every (\d+)", record["expected"][key]["what"])
    atol = float(record["tolerance"][kind].split()[1])
    expected = tensors(path.with_name("expected"))[key]
    actual = actual[:, :: int(step[1])] if step and kind != "logits" else actual
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=0, atol=atol)


@torch.no_grad()
def encoded(model: Any, features: Any, sound: Path, frames: int | None = None) -> EncoderOutput:
    waveform = load_int16(sound)
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]), frames=frames)
    return model.encode(batch.values, batch.attention_mask)


@by_folder(FILLED)
def test_clips_filled_to_ten_seconds_give_the_released_outputs(path: Path) -> None:
    folders = sorted(folder for folder in path.parent.iterdir() if folder.is_dir())
    for folder in folders:
        prefix = VARIANTS.get(folder.name, "sl_eat." if "-sl-" in folder.name else "ssl_eat.")
        model, features = load_model_and_features(folder)
        features.released_padding = True
        for name in ("short", "long"):
            output = encoded(model, features, path.with_name(f"{name}.wav"), 1_024)
            close(output.states[-1], path, f"{prefix}{name}.tokens", "tokens")
            has_logits = f"{prefix}{name}.logits" in sidecar(path)["expected"]
            assert isinstance(model, AudioClassifier) == has_logits
            if isinstance(model, AudioClassifier):
                close(model.logits(output), path, f"{prefix}{name}.logits", "logits")


@by_folder(AVEX_BEATS)
def test_beats_of_avex_give_the_released_outputs(path: Path) -> None:
    (folder,) = (folder for folder in path.parent.iterdir() if folder.is_dir())
    model, features = load_model_and_features(folder)
    for name in ("short", "other"):
        output = encoded(model, features, path.with_name(f"{name}.wav"))
        close(output.patches, path, f"sl_beats.{name}.patches", "patches")
        close(model.logits(output), path, f"sl_beats.{name}.logits", "logits")  # type: ignore[operator]


@by_folder(OPENBEATS)
def test_encoders_of_espnet_give_the_released_outputs_with_the_statistics_of_the_file(
    path: Path,
) -> None:
    (file,) = path.parent.glob("*.pt")
    model, features = load_model_and_features(file)
    mean, std = (sidecar(path)["settings"]["cfg"][name] for name in ("fbank_mean", "fbank_std"))
    assert (features.mean, features.std) == (mean, std)
    close(encoded(model, features, path.with_name("input.wav")).patches, path, "patches", "patches")
    features.mean, features.std = sidecar(path)["settings"]["statistics"]
    output = encoded(model, features, path.with_name("input.wav"))
    close(output.patches, path, "patches_other_statistics", "patches")
    reasons = list(contents(file).ignored.values())
    assert reasons == ["marks padding, constant"] * 2


@pytest.fixture
def finetuned(tmp_path: Path) -> Path:
    """What ESPnet wrote of a model that it fine-tuned, put together of its recorded parts."""
    if not OPENBEATS:
        pytest.skip("no recorded set of ESPnet's encoders")
    path = OPENBEATS[0]
    (file,) = path.parent.glob("*.pt")
    state = torch.load(file, weights_only=True)["model"]
    head = torch.load(path.parent / "finetune" / "head_only.pth", weights_only=True)
    torch.save({f"encoder.{name}": x for name, x in state.items()} | head, tmp_path / "model.pth")
    shutil.copy(path.parent / "finetune" / "config.yaml", tmp_path)
    return tmp_path


def test_a_model_that_espnet_fine_tuned_gives_the_released_logits(finetuned: Path) -> None:
    model, features = load_model_and_features(finetuned, AudioClassifier)
    settings = yaml.safe_load((finetuned / "config.yaml").read_text(encoding="utf-8"))
    mean, std = (settings["encoder_conf"][name] for name in ("fbank_mean", "fbank_std"))
    assert (features.mean, features.std) == (mean, std)
    cfg = sidecar(OPENBEATS[0])["settings"]["cfg"]  # what the logits were recorded with
    features.mean, features.std = cfg["fbank_mean"], cfg["fbank_std"]
    output = encoded(model, features, OPENBEATS[0].with_name("input.wav"))
    close(model.logits(output), OPENBEATS[0], "finetune.logits", "logits")
    assert label_names(model.config) == tuple(settings["token_list"][:-1])
    assert model.config.problem_type == "multi_label_classification"
    state = torch.load(finetuned / "model.pth", weights_only=True)
    lightning = {f"model.{name}": x for name, x in state.items()}
    torch.save({"state_dict": lightning, "epoch": 3}, finetuned / "other.ckpt")
    again = load_model(finetuned / "other.ckpt", AudioClassifier)
    assert torch.equal(again.model.head.weight, model.model.head.weight)


def avex(tmp_path: Path, sets: list[Path], part: str = "-sl-") -> Path:
    """A copy of a folder of AVEX."""
    if not sets:
        pytest.skip("no recorded set of AVEX")
    folders = [one for one in sets[0].parent.iterdir() if one.is_dir() and part in one.name]
    return Path(shutil.copytree(folders[0], tmp_path / folders[0].name))


@pytest.mark.parametrize("sets", [AVEX_EAT, AVEX_BEATS], ids=["EAT", "BEATs"])
def test_a_converted_classifier_of_avex_keeps_its_labels_and_its_licence(
    sets: list[Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder = avex(tmp_path, sets)
    code, _, err = eat(monkeypatch, capsys, "convert", folder, tmp_path / "out")
    sentence = "the licence of these weights is CC-BY-NC-SA-4.0"
    lines = err.splitlines()
    assert code == 0 and lines[:2] == [f"{p}: {sentence}" for p in (folder, tmp_path / "out")]
    numbers = json.loads((folder / "label_map.json").read_text(encoding="utf-8"))
    model, again = load_model(folder), load_model(tmp_path / "out")
    for one in (model, again):
        assert label_names(one.config) == tuple(sorted(numbers, key=numbers.__getitem__))
    x = torch.randn(1, 64, 128)
    assert torch.equal(model(x).logits, again(x).logits)
    assert sentence in capsys.readouterr().err

    code, out, _ = eat(monkeypatch, capsys, "inspect", folder, "--json")
    record = json.loads(out)
    assert (record["licence"], record["labels"]) == ("CC-BY-NC-SA-4.0", len(numbers))
    assert record["file"]["tensors"] == record["file"]["used"] + sum(
        record["file"]["not_used"].values()
    )


def test_without_settings_beside_them_the_name_of_the_file_decides_on_statistics(
    tmp_path: Path,
) -> None:
    folder = avex(tmp_path, AVEX_EAT)
    (folder / "train_config.yaml").unlink()
    _, features = load_model_and_features(folder)
    assert (features.mean, features.std) == (-5.553, 4.606)
    (file,) = folder.glob("*.safetensors")
    (folder / "label_map.json").unlink()
    state = {n: x for n, x in load_file(file).items() if not n.startswith("classifier.")}
    state = {n.removeprefix("backbone.").removeprefix("model."): x for n, x in state.items()}
    file.unlink()
    save_file(state, folder / "mine.safetensors")
    _, features = load_model_and_features(folder / "mine.safetensors")
    assert (features.mean, features.std) == (-4.268, 4.569)


def test_an_encoder_of_beats_needs_neither_prefix_nor_settings(tmp_path: Path) -> None:
    folder = avex(tmp_path, AVEX_BEATS)
    expected = load_model(folder).model.state_dict()
    (file,) = folder.glob("*.safetensors")
    window, filters = window_and_filters(BEATS)
    state = {n.removeprefix("backbone."): x for n, x in load_file(file).items()}
    state = {n: x for n, x in state.items() if not n.startswith("classifier.")}
    state["fbank.window"] = window / 32_768
    state["fbank.mel_fb"] = torch.nn.functional.pad(filters.T, (0, 0, 0, 1)).contiguous()
    save_file(state, tmp_path / "esp-aves2-flat.safetensors")
    model = load_model(tmp_path / "esp-aves2-flat.safetensors")
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert model.config.license == "CC-BY-NC-SA-4.0"


# ---- what is refused


def changed(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """Change the tensors of a folder's file of weights."""

    def apply(folder: Path) -> None:
        (file,) = (one for one in folder.iterdir() if one.suffix in (".safetensors", ".pth"))
        is_plain = file.suffix == ".safetensors"
        state = load_file(file) if is_plain else torch.load(file, weights_only=True)
        change(state)
        (save_file if is_plain else torch.save)(state, file)

    return apply


def cut_short(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None  # type: ignore


POSITIONS = "backbone.model.fixed_positional_encoder.positions"
LABELS = json.dumps({f"bird {number}": number for number in range(8)} | {"bird": 9})
RATE = "model_spec: {init_config: {sample_frequency: 32000.0}}"
REFUSED: list[tuple[list[Path] | None, Callable[[Path], None], str]] = [
    (AVEX_EAT, cut_short, "is no valid safetensors file"),
    (AVEX_EAT, changed(lambda x: x[POSITIONS].fill_(-3)), "has other positions than EAT's"),
    (AVEX_EAT, changed(lambda x: x.update(extra=torch.ones(1))), "an unknown model.extra"),
    (
        AVEX_EAT,
        changed(lambda x: x.update({"classifier.bias": torch.ones(3)})),
        r"model.head.bias of shape \(3,\)",
    ),
    (AVEX_EAT, written("label_map.json", LABELS), "does not number from 0 on, each once"),
    (AVEX_EAT, written("label_map.json", "[" * 200), "cannot be read as JSON|nested too deeply"),
    (AVEX_EAT, written("train_config.yaml", "a: [" * 99), "train_config.yaml: cannot be read"),
    (
        AVEX_EAT,
        written("train_config.yaml", "model_spec: {eat_norm_mean: 1, eat_norm_std: 0}"),
        "says eat_norm_mean=1, eat_norm_std=0; expected two numbers, the second above 0",
    ),
    (AVEX_BEATS, cut_short, "is no valid safetensors file"),
    (AVEX_BEATS, written("train_config.yaml", RATE), "is of audio at 32000.0 Hz; expected 16000"),
    (
        AVEX_BEATS,
        changed(lambda x: x.update({"backbone.fbank.window": torch.ones(400)})),
        "has another fbank.window than the front end",
    ),
    (
        AVEX_BEATS,
        changed(lambda x: x.pop("backbone.encoder.layers.1.fc2.bias")),
        "no encoder.layers.1.fc2.bias",
    ),
    (
        None,
        changed(lambda x: x["encoder.raw2fbank_pad.weight"].zero_()),
        "has another raw2fbank_pad.weight",
    ),
    (None, written("config.yaml", "token_list: [a, b, c]"), "has 3 entries in token_list"),
    (None, written("config.yaml", "decoder_conf: {pooling: CLS}"), "pools by 'CLS'"),
    (
        None,
        written("config.yaml", "encoder_conf: {fbank_mean: much, fbank_std: 1}"),
        "says fbank_mean='much', fbank_std=1; expected two numbers",
    ),
]


@pytest.mark.parametrize(("sets", "change", "sentence"), REFUSED, ids=lambda x: None)
def test_what_is_not_exactly_such_a_model_is_refused_with_one_sentence(
    sets: list[Path] | None,
    change: Callable[[Path], None],
    sentence: str,
    tmp_path: Path,
    finetuned: Path,
) -> None:
    folder = finetuned if sets is None else avex(tmp_path, sets)
    change(folder)
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_model(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_a_refusal_ends_a_command_with_exit_code_2(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder = avex(tmp_path, AVEX_BEATS)
    cut_short(folder)
    code, _, err = eat(monkeypatch, capsys, "inspect", folder)
    assert code == 2 and err.startswith("eat: ") and err.count("\n") == 1
