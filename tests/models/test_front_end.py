"""One front end: a clip gets the same spectrogram in every use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import needs_data
from eat_audio.audio import load_audio
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipSettings
from eat_audio.evaluation.evaluate import predict_corpus
from eat_audio.evaluation.probe import clip_vectors
from eat_audio.finetune import Classification, FinetuneRun
from eat_audio.inference.predictor import load, predict_files
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATEncoder, EATForAudioClassification
from eat_audio.pretraining.eat import EATMethod, EATPretraining

SHAPE: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SECONDS = 5.12
FRAMES = 512


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every spectrogram that an encoder is given, in order."""
    spectrograms: list[Tensor] = []
    embed = EATEncoder.embed

    def recording(self: EATEncoder, spectrogram: Tensor) -> Tensor:
        spectrograms.append(spectrogram.detach().clone())
        return embed(self, spectrogram)

    monkeypatch.setattr(EATEncoder, "embed", recording)
    return spectrograms


@needs_data
@pytest.mark.parametrize("released_padding", [False, True])
def test_a_clip_has_the_same_spectrogram_in_training_evaluation_and_use(
    data: Path, tmp_path: Path, encoded: list[Tensor], released_padding: bool
) -> None:
    esc10 = open_corpus(data / "esc10")
    corpus = Corpus("one", esc10.clips[7:8], esc10.label_names)
    features = EATFeatureExtractor(mean=-6.627, std=5.359, released_padding=released_padding)
    clips = ClipSettings(seconds=SECONDS, released_padding=released_padding)
    batch = ClipBatches(corpus, clips, batch=1, seed=0)[0]
    generator = torch.Generator()

    config = EATConfig(**SHAPE, num_classes=10)
    config.problem_type = "single_label_classification"
    pretraining = EATPretraining(config, EATMethod(masks=2), features, frames=FRAMES)
    pretraining(batch, generator)  # the teacher, then the student

    model = EATForAudioClassification(config)
    settings = FinetuneRun(clips=clips, steps=100)
    Classification(model, features, settings)(batch, generator)

    predict_corpus(model, features, corpus, clips)
    clip_vectors(model, features, corpus, clips)

    model.save_pretrained(tmp_path)
    features.save_pretrained(tmp_path)
    predictor = load(tmp_path, device="cpu")
    list(predict_files([corpus.clips[0].path], predictor))
    predictor.embed(load_audio(corpus.clips[0].path))
    inputs = features(load_audio(corpus.clips[0].path).numpy(), sampling_rate=16_000)
    model(**inputs)

    assert len(encoded) == 8
    shortest = min(spectrogram.shape[1] for spectrogram in encoded)
    assert shortest >= 498  # what five seconds have
    for spectrogram in encoded:
        assert torch.equal(spectrogram[:, :498], encoded[0][:, :498])
    assert encoded[0].std() > 0.1
