"""Fine-tuning of every method: what is frozen, low-rank additions, patches left out, pooling."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eat_audio.checkpoints.load import load_features
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError
from eat_audio.finetune import (
    FreshEncoder,
    freeze,
    run,
    start_from,
)
from eat_audio.models import METHODS, model_types, save
from eat_audio.models.common.lora import add_lora
from eat_audio.training.optim import Optim
from small_finetuning import SMALL, settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of made sounds, ten classes of five clips."""
    folder = tmp_path_factory.mktemp("made") / "sounds"
    write_corpus(folder, clips_per_family=5, seconds=1.0, seed=0)
    (folder / "clips.csv").unlink()
    return folder


def of(method: str, **changes: Any) -> FreshEncoder:
    """The small encoder of a method."""
    return SMALL.model_copy(update={"method": method} | changes)


each_method = pytest.mark.parametrize("method", model_types())


@each_method
def test_an_encoder_of_any_method_is_fine_tuned_from_a_folder_and_from_nothing(
    made: Path, tmp_path: Path, method: str
) -> None:
    spec = METHODS[method]
    encoder = spec.encoder(of(method).config())
    save(encoder, spec.feature_extractor(mean=-1.0, std=3.0), tmp_path / "encoder")
    changes = settings(made, encoder=SMALL, steps=1, optim=Optim(lr=1e-9))
    done = run(changes, out=tmp_path / "out", start=tmp_path / "encoder")
    assert done.evaluation is not None and done.evaluation.clips == 10
    tuned = spec.classifier.from_pretrained(tmp_path / "out")
    kept = tuned.model.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        if name in kept:  # the norm after the last block of Audio-MAE is not
            torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-6)
    features = load_features(tmp_path / "out")
    assert type(features) is spec.feature_extractor and features.std == 3.0
    fresh, its_own = start_from(None, settings(made, encoder=of(method)), open_corpus(made))
    assert type(fresh) is spec.classifier and type(its_own) is spec.feature_extractor
    assert its_own.std == spec.feature_extractor().std


@each_method
def test_what_is_frozen_is_the_first_blocks_and_all_before_them(made: Path, method: str) -> None:
    model, _ = start_from(None, settings(made, encoder=of(method)), open_corpus(made))
    freeze(model, 1)
    learns = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert learns - {"fc_norm"} == {"blocks", "head"}
    for number, block in enumerate(model.model.blocks):
        assert all(p.requires_grad == (number == 1) for p in block.parameters())
    with pytest.raises(SettingError, match="freeze=3: the encoder has 2 blocks"):
        freeze(model, 3)


@each_method
def test_low_rank_additions_to_all_linear_maps_of_all_blocks_learn_and_so_does_the_head(
    made: Path, method: str
) -> None:
    pytest.importorskip("peft")
    model, _ = start_from(None, settings(made, encoder=of(method)), open_corpus(made))
    add_lora(model, 2)
    added = {n.partition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    maps = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert added == {f"model.blocks.{n}.{name}" for n in range(2) for name in maps}
    learns = {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert {n.split(".")[1] for n in learns} - {"fc_norm"} == {"head"}


def test_an_encoder_of_audio_mae_learns_from_a_part_of_every_clip(made: Path) -> None:
    changes = settings(made, encoder=of("audiomae"), hidden_columns=0.5, hidden_rows=0.25)
    model, _ = start_from(None, changes, open_corpus(made))
    x = torch.randn(2, 64, 128)
    model.train()
    assert model.encode(x).patches.shape[1] == 2 * 6  # of 4 columns and 8 rows
    model.eval()
    assert model.encode(x).patches.shape[1] == 4 * 8


@pytest.mark.parametrize("method", [name for name in model_types() if name != "audiomae"])
def test_other_encoders_cannot_leave_patches_out(made: Path, method: str) -> None:
    changes = settings(made, encoder=of(method), hidden_rows=0.2)
    with pytest.raises(
        SettingError,
        match=f"hidden_rows=0.2: an encoder of {method} has no such setting; expected 0",
    ):
        start_from(None, changes, open_corpus(made))


def test_a_pooling_that_an_encoder_does_not_know_is_refused(made: Path, tmp_path: Path) -> None:
    spec = METHODS["beats"]
    save(spec.encoder(of("beats").config()), spec.feature_extractor(), tmp_path)
    changes = settings(made, encoder=SMALL.model_copy(update={"pooling": "cls"}))
    with pytest.raises(SettingError, match=r"encoder.pooling=cls: expected one of mean, linear"):
        start_from(tmp_path, changes, open_corpus(made))


@each_method
def test_pooling_is_that_of_the_encoder_unless_another_is_wanted(
    made: Path, tmp_path: Path, method: str
) -> None:
    spec, corpus = METHODS[method], open_corpus(made)
    save(spec.encoder(of(method).config()), spec.feature_extractor(), tmp_path)
    assert SMALL.pooling == "mean"
    changes = settings(made, encoder=SMALL.model_copy(update={"pooling": None}))
    assert start_from(tmp_path, changes, corpus)[0].config.pooling == "mean"
    usual = start_from(None, settings(made, encoder=of(method, pooling=None)), corpus)[0]
    assert usual.config.pooling == ("cls" if method in ("bat", "eat") else "mean")
