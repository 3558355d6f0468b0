"""A classifier that pools by CLS, mean and deviation goes where models go, or says why not."""

from pathlib import Path

import pytest
import torch

import eat_audio as eat
from eat_audio.checkpoints.convert import write
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.checkpoints.share import prepare
from eat_audio.errors import CheckpointError
from eat_audio.integrations import hear
from eat_audio.models import METHODS, model_types, save
from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder

METHOD_NAMES = sorted(model_types())
SOUND = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) - 0.5


def saved(folder: Path, method: str, pooling: str = "statistics") -> Path:
    spec = METHODS[method]
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = spec.config.named("tiny", **shape)
    model = spec.classifier(config.for_labels(["dog", "rain"], several=False, pooling=pooling))
    torch.nn.init.normal_(model.model.head.weight)
    save(model, spec.feature_extractor(), folder)
    return folder


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_its_scores_and_vectors_stay_the_same_when_it_is_saved_converted_and_shared(
    method: str, tmp_path: Path
) -> None:
    first = saved(tmp_path / "model", method)
    model, features = load_model_and_features(first)
    write(model, features, tmp_path / "converted")
    prepare(first, tmp_path / "shared", name="me/mine", licence="mit")
    before = eat.load(first, device="cpu", precision="fp32")
    width = (2 + METHODS[method].config.has_cls) * 48
    assert before.embed(SOUND).clip.shape == (width,) == (before.model.config.pooled_size,)
    for folder in ("converted", "shared"):
        after = eat.load(tmp_path / folder, device="cpu", precision="fp32")
        assert after.model.config.pooling == "statistics"
        assert after.predict(SOUND) == before.predict(SOUND)
        assert (after.embed(SOUND).clip == before.embed(SOUND).clip).all()
    encoder, _ = load_model_and_features(first, AudioEncoder)
    assert isinstance(model, AudioClassifier) and encoder.config.pooled_size == width


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_authors_files_have_no_place_for_it(method: str, tmp_path: Path) -> None:
    model, features = load_model_and_features(saved(tmp_path / "model", method))
    with pytest.raises(CheckpointError, match=r"pools by statistics; the released code has"):
        write(model, features, tmp_path / "model.pt", layout="released")
    assert not (tmp_path / "model.pt").exists()


def test_a_classifier_of_audio_mae_s_cls_token_is_not_written_as_one_of_the_mean(
    tmp_path: Path,
) -> None:
    model, features = load_model_and_features(saved(tmp_path / "model", "audiomae", "cls"))
    with pytest.raises(CheckpointError, match="pools by cls; the released code has the mean only"):
        write(model, features, tmp_path / "model.pt", layout="released")


def test_a_benchmark_is_given_the_widths_of_clips_and_frames(tmp_path: Path) -> None:
    model = hear.load_model(str(saved(tmp_path, "eat")))
    audio = SOUND.view(1, -1)
    assert hear.get_scene_embeddings(audio, model).shape == (1, model.scene_embedding_size)
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    assert frames.shape[2] == model.timestamp_embedding_size == 48
