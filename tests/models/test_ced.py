"""CED and Dasheng give the released numbers, from sound to labels, and convert there and back."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import eat, golden_sets, sidecar, tensors
from eat_audio.audio import load_int16
from eat_audio.checkpoints.convert import write
from eat_audio.checkpoints.load import (
    contents,
    load_model,
    load_model_and_features,
    method_of,
)
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.errors import CheckpointError, SettingError
from eat_audio.finetune import FinetuneRun, FreshEncoder, start_from
from eat_audio.models.ced.modeling import CEDConfig, CEDForAudioClassification, CEDModel
from eat_audio.models.common.feature_extraction import CEDFeatureExtractor
from eat_audio.models.common.modeling import EncoderOutput, scores_of
from eat_audio.pretraining.method import run_settings

CED, DASHENG = golden_sets("golden.json", "CED"), golden_sets("golden.json", "Dasheng")
EVERY = [*CED, *DASHENG]


def by_folder(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.parent.name)


def close(actual: Tensor, path: Path, key: str, kind: str) -> None:
    """Compare with recorded values, of which a set may hold every n-th token only."""
    record = sidecar(path)
    step = re.search(r"every (\d+)\w\w token", record["expected"][key]["what"])
    step = step or re.search(r"every (\d+)\w\w$", record["expected"][key]["what"])
    atol = float(record["tolerance"][kind].split()[1])
    actual = actual[:, :: int(step[1])] if step else actual
    expected = tensors(path.with_name("expected"))[key]
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def released_order(patches: Tensor, path: Path) -> Tensor:
    """Patches of columns of four: by frequency first, as in CED's released code."""
    return patches.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2) if path in CED else patches


def file_of(path: Path) -> Path:
    (file,) = (one for one in path.parent.glob("*.pt") if one.name != "head_only.pt")
    return file


@torch.no_grad()
def encoded(model: Any, features: Any, waveform: Tensor) -> EncoderOutput:
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]))
    return model.encode(batch.values, batch.attention_mask)


def valid_patches(output: EncoderOutput) -> Tensor:
    return output.patches if output.valid is None else output.patches[:, output.valid[0]]


@by_folder(EVERY)
def test_a_clip_gives_the_released_decibels_tokens_and_probabilities(path: Path) -> None:
    waveform = load_int16(path.with_name("short.wav"))
    model, features = load_model_and_features(file_of(path))
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]))
    expected = tensors(path.with_name("expected"))["short.mel_db"]
    frames = int(batch.frames[0])
    decibels = batch.values[:, :frames:2].transpose(1, 2)
    torch.testing.assert_close(decibels, expected[..., : decibels.shape[2]], rtol=0, atol=2e-3)
    output = encoded(model, features, waveform)
    close(released_order(valid_patches(output), path), path, "short.tokens", "tokens")
    if isinstance(model, CEDForAudioClassification):
        scores = scores_of(model.logits(output), model.config)
        close(scores, path, "short.probabilities", "probabilities")

    model, features = load_model_and_features(path.parent / "hf")
    output = encoded(model, features, waveform)
    close(released_order(valid_patches(output), path), path, "hf.short.hidden", "tokens")
    if isinstance(model, CEDForAudioClassification):
        scores = scores_of(model.logits(output), model.config)
        close(scores, path, "hf.short.logits_field", "probabilities")
        settings = json.loads((path.parent / "hf" / "config.json").read_text(encoding="utf-8"))
        assert {str(n): name for n, name in model.config.id2label.items()} == settings["id2label"]


@by_folder(DASHENG)
def test_a_long_clip_is_encoded_in_chunks_of_which_the_last_is_short(path: Path) -> None:
    output = encoded(
        *load_model_and_features(file_of(path)), load_int16(path.with_name("long.wav"))
    )
    close(valid_patches(output), path, "long.tokens_2025", "tokens")


@by_folder(DASHENG)
def test_the_classifier_of_audioset_gives_the_released_probabilities(
    path: Path, tmp_path: Path
) -> None:
    state = torch.load(file_of(path), weights_only=True)["model"]
    head = torch.load(path.with_name("head_only.pt"), weights_only=True)
    torch.save(state | head, tmp_path / "dasheng_audioset.pt")
    model, features = load_model_and_features(tmp_path / "dasheng_audioset.pt")
    assert isinstance(model, CEDForAudioClassification)
    logits = model.logits(encoded(model, features, load_int16(path.with_name("short.wav"))))
    close(scores_of(logits, model.config), path, "short.probabilities", "probabilities")


@torch.no_grad()
def filled_chunks(model: Any, features: Any, waveform: Tensor, size: int) -> list[Tensor]:
    """Patches of chunks of so many frames, the last one filled, as older released code has them."""
    frames = features.front_end.n_frames(len(waveform))
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]), frames=frames)
    norm = model.model.init_bn
    zero = norm.running_mean - norm.bias * (norm.running_var + norm.eps).sqrt() / norm.weight
    filling = zero.expand(1, -frames % size, -1)  # 0 behind the normalization
    chunks = torch.cat([batch.values, filling], dim=1).split(size, dim=1)
    return [model.encode(chunk[:, : size // 16 * 16]).patches for chunk in chunks]


@by_folder(EVERY)
def test_chunks_filled_as_in_older_released_code_give_its_numbers(path: Path) -> None:
    size = sidecar(path)["settings"]["target_length"]
    waveform = load_int16(path.with_name("long.wav"))
    model, features = load_model_and_features(file_of(path))
    chunks = filled_chunks(model, features, waveform, size)
    hub, features = load_model_and_features(path.parent / "hf")
    hub_chunks = filled_chunks(hub, features, waveform, size)
    if path in DASHENG:
        count = features.front_end.n_frames(len(waveform)) // 4
        close(torch.cat(chunks, dim=1)[:, :count], path, "long.tokens_2024", "tokens")
        close(torch.cat(hub_chunks, dim=1)[:, :count], path, "hf.long.hidden", "tokens")
        return
    scores = [model.model.head(model.normed(x.mean(dim=1))).sigmoid() for x in chunks]
    close(torch.stack(scores).mean(dim=0), path, "long.probabilities", "probabilities")
    tokens = torch.cat([released_order(chunk, path) for chunk in hub_chunks], dim=1)
    close(tokens, path, "hf.long.hidden", "tokens")
    scores = hub.model.head(hub.normed(tokens.mean(dim=1))).sigmoid()
    close(scores, path, "hf.long.logits_field", "probabilities")


@by_folder(CED)
def test_a_quiet_clip_beside_a_loud_one_gives_what_it_gives_alone(path: Path) -> None:
    clips = [load_int16(path.with_name(f"batch{number}.wav")) for number in range(2)]
    model, features = load_model_and_features(file_of(path))
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = features.log_mel(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths)
    with torch.no_grad():
        logits = model.logits(model.encode(batch.values, batch.attention_mask))
    close(logits.sigmoid(), path, "batch.alone", "probabilities")


def test_a_clip_of_dasheng_that_ends_within_a_column_has_a_token_for_each_40_ms() -> None:
    features = CEDFeatureExtractor(patch_frames=4)
    lengths = torch.tensor([100, 20 * 160, 23 * 160 + 159])
    batch = features.log_mel(torch.rand(3, 4_000) - 0.5, lengths)
    mask = batch.patch_mask(4)
    assert mask is not None and mask.sum(dim=1).tolist() == [4, 5, 6]
    assert batch.frames.tolist() == [16, 20, 24] and batch.values.shape == (3, 32, 64)
    with pytest.raises(SettingError, match="Dasheng's front end cannot be exported"):
        features.as_matrices()


# ---- files


def small(kind: Any = CEDModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    return kind(CEDConfig(embed_dim=64, depth=1, num_heads=1, num_labels=3, **changes)).eval()


@pytest.mark.parametrize("kind", [CEDModel, CEDForAudioClassification])
@pytest.mark.parametrize("patch", [(16, 16), (64, 4)], ids=["CED", "Dasheng"])
@pytest.mark.parametrize("layout", ["released", "eat-audio"])
def test_a_model_comes_back_from_each_layout(
    kind: Any, patch: tuple[int, int], layout: str, tmp_path: Path
) -> None:
    model = small(kind, patch_bins=patch[0], patch_frames=patch[1])
    write(model, CEDFeatureExtractor(patch_frames=patch[1]), tmp_path / "model.pt", layout=layout)
    again, features = load_model_and_features(tmp_path / "model.pt")
    assert type(again) is kind and features.patch_frames == patch[1]  # type: ignore[attr-defined]
    state = again.state_dict()
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())
    reasons = set(contents(tmp_path / "model.pt").ignored.values())
    constants = {"constants of the front end", "number of training batches"}
    assert reasons == (constants if layout == "released" else set())


OTHER_PATCH = {"patch_size": [16, 4], "encoder_kwargs": {"patch_size": [16, 4]}}


@by_folder(EVERY)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_fft": 1024}, "describes another model than CED or Dasheng: n_fft=1024; expected 512"),
        (OTHER_PATCH, r"patch_size=\[16, 4\]; expected 16 or \[16, 16\] or \[64, 4\]"),
        ({"encoder_kwargs": {"depth": 7}, "depth": 7}, "no model.blocks.2.norm1.weight"),
        ({"embed_dim": "wide", "encoder_kwargs": {}}, "describes no (ced|dasheng) model"),
    ],
)
def test_a_folder_with_other_settings_is_refused(
    path: Path, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(path.parent / "hf", tmp_path / "hf"))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@by_folder(EVERY)
def test_files_that_are_cut_short_or_hold_something_else_are_refused(
    path: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    content = torch.load(file_of(path), weights_only=True)
    state = content.get("model", content)
    file = tmp_path / "model.pt"
    for change, sentence in (
        (
            {"front_end.0.mel_scale.fb": torch.zeros(257, 64)},
            "has another front_end.0.mel_scale.fb",
        ),
        ({"norm.bias": torch.zeros(3)}, r"model.norm.bias of shape \(3,\)"),
        ({"extra": torch.zeros(1)}, "an unknown model.extra"),
        ({"time_pos_embed": None}, "has no time_pos_embed"),
    ):
        torch.save({n: x for n, x in (state | change).items() if x is not None}, file)
        with pytest.raises(CheckpointError, match=sentence):
            load_model(file)
    folder = Path(shutil.copytree(path.parent / "hf", tmp_path / "hf"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    file.write_bytes(file_of(path).read_bytes()[:-1_000])
    for source in (folder, file):
        code, _, err = eat(
            monkeypatch, capsys, "predict", path.with_name("short.wav"), "--model", source
        )
        assert code == 2 and err.startswith("eat: ") and err.count("\n") == 1


@by_folder(CED[:1])
def test_a_tagger_tags_a_file_with_the_labels_of_its_folder(
    path: Path, monkeypatch: Any, capsys: Any
) -> None:
    sound, folder = path.with_name("short.wav"), path.parent / "hf"
    code, out, _ = eat(monkeypatch, capsys, "predict", sound, "--model", folder, "--json")
    (record,) = json.loads(out) if out.startswith("[") else [json.loads(out)]
    expected = tensors(path.with_name("expected"))["hf.short.logits_field"][0]
    best = record["labels"][0] if "labels" in record else record["predictions"][0]
    assert code == 0 and best["label"] == f"sound {int(expected.argmax())}"


@pytest.mark.parametrize("method", ["ced", "dasheng"])
def test_pretraining_refuses_encoders_that_only_load(
    method: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=f"method={method}: 'audiomae' or"):
        run_settings(method)
    words = ("pretrain", "eat_tiny", f"method={method}", "--out", tmp_path / "run")
    code, _, err = eat(monkeypatch, capsys, *words)
    assert code == 2 and err.startswith("eat: ") and err.count("\n") == 1 and method in err


@pytest.mark.parametrize("statistics", [None, (0.0, 0.5)])
def test_a_fresh_dasheng_has_its_own_patches_in_model_and_front_end(statistics: Any) -> None:
    encoder = FreshEncoder(method="dasheng", size="tiny", depth=1)
    settings = FinetuneRun(encoder=encoder, clips=ClipSettings(statistics=statistics))
    model, features = start_from(None, settings, Corpus("two", (), ("a", "b")))
    assert (model.config.patch_bins, model.config.patch_frames) == (64, 4)
    assert features.patch_frames == 4
    assert method_of(model.config).name == "dasheng"


def test_more_heads_than_the_name_of_a_size_says_are_not_believed(tmp_path: Path) -> None:
    state = {f"encoder.{n}": x for n, x in small().model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    settings = {
        "model_type": "ced",
        "name": "ced-tiny",
        "embed_dim": 64,
        "num_heads": 2,
        "depth": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert load_model(tmp_path).config.num_heads == 2
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
