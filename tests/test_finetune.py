"""Fine-tuning gives the released numbers, and its protocol is honest."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import needs_data
from eat_audio.checkpoints.load import load_features
from eat_audio.data import transforms as augment
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import Batch, ClipBatches, ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.data.transforms import Augmentation
from eat_audio.errors import CheckpointError, SettingError
from eat_audio.evaluation.evaluate import evaluate_model, evaluate_scores, predict_corpus
from eat_audio.finetune import (
    Classification,
    cross_validate,
    run,
    split,
    start_from,
)
from eat_audio.models import save
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.lora import add_lora
from eat_audio.models.common.losses import classification_loss
from eat_audio.models.eat.modeling import EATForAudioClassification, EATModel
from eat_audio.training.optim import Optim
from small_finetuning import SMALL, settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of made sounds, ten classes of five clips."""
    folder = tmp_path_factory.mktemp("made") / "sounds"
    write_corpus(folder, clips_per_family=5, seconds=1.0, seed=0)
    (folder / "clips.csv").unlink()
    return folder


def test_clips_that_are_tested_are_never_learnt(made: Path) -> None:
    corpus = open_corpus(made)
    train, test = split(corpus, settings(made))
    assert test is not None and len(train) + len(test) == len(corpus)
    assert not {clip.path for clip in train.clips} & {clip.path for clip in test.clips}
    again, _ = split(corpus, settings(made))
    other, _ = split(corpus, settings(made, seed=1))
    assert train.clips == again.clips != other.clips


def test_what_is_learnt_and_tested_at_once_is_refused(made: Path) -> None:
    corpus = open_corpus(made)
    with pytest.raises(SettingError, match="train: both trained and tested on"):
        split(corpus, settings(made, train_splits=("train",), test_splits=("train",)))


def listed(made: Path, folder: Path, header: str, *cells: str) -> Path:
    """A table of clips, two classes in turn; each with what else its cell says."""
    names = sorted(made.iterdir())[:2]
    rows = [
        f"{sorted(names[n % 2].iterdir())[n // 2]},{names[n % 2].name},{cell}\n"
        for n, cell in enumerate(cells)
    ]
    (folder / "clips.csv").write_text(f"path,label,{header}\n{''.join(rows)}", encoding="utf-8")
    return folder / "clips.csv"


@pytest.mark.parametrize(
    ("header", "learnt", "tested"),
    [
        ("split", "Train", "Test"),
        ("split", "training", "testing"),
        ("Split", "TRAIN", "EVALUATION"),
        ("subset", "train_set", "test_set"),
        ("set", "tr", "te"),
        ("partition", "train", "held-out"),
    ],
)
def test_what_is_called_a_test_in_any_spelling_is_tested_and_not_learnt(
    made: Path, tmp_path: Path, header: str, learnt: str, tested: str
) -> None:
    place = listed(made, tmp_path, header, *[learnt] * 6, *[tested] * 2)
    train, test = split(open_corpus(place), settings(place))
    assert test is not None and (len(train), len(test)) == (6, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("A A B B", "the splits are A, B, and A, B may be for training or for testing"),
        ("train train extra extra", "and extra may be for training or for testing"),
        ("dev dev eval eval", "the splits are dev, eval, and none is for training"),
        ("test test test test", "the splits are test, and none is for training"),
        ("1 1 2 2", "has folds 1, 2; say test_splits=.2. or --cross-validate"),
        ("train test train test", "one label only .*; nothing to tell apart"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(
    made: Path, tmp_path: Path, words: str, message: str
) -> None:
    place = listed(made, tmp_path, "split", *words.split())
    with pytest.raises(SettingError, match=message):
        split(open_corpus(place), settings(place))


def test_splits_that_are_not_known_may_be_named_in_the_recipe(made: Path, tmp_path: Path) -> None:
    place = listed(made, tmp_path, "split", *"A A A A B B".split())
    named = settings(place, train_splits=("A",), test_splits=("B",))
    train, test = split(open_corpus(place), named)
    assert test is not None and (len(train), len(test)) == (4, 2)


def test_that_nothing_was_tested_is_noted(made: Path, tmp_path: Path) -> None:
    place = listed(
        made, tmp_path, "split", *"train train train train Validation Validation".split()
    )
    done = run(settings(place, steps=1), out=tmp_path / "out", start=None)
    assert done.evaluation is None
    assert done.note == (
        "no test split: nothing was tested (validation: not trained on; "
        "test_splits=[validation] tests it)"
    )


def test_that_clips_were_held_out_is_noted(made: Path, tmp_path: Path) -> None:
    done = run(settings(made, steps=1), out=tmp_path / "out", start=None)
    assert done.note == "no test split: 10 of 50 clips were held out and tested"


def test_one_label_is_nothing_to_learn(made: Path, tmp_path: Path) -> None:
    one = sorted(made.iterdir())[0]
    rows = "".join(f"{path},{one.name}\n" for path in one.iterdir())
    (tmp_path / "clips.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    for place in (tmp_path / "clips.csv", one):
        with pytest.raises(SettingError, match="one label only|in that of a class"):
            run(settings(place), out=tmp_path / "out", start=None)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / one.name).symlink_to(one)
    with pytest.raises(SettingError, match=f"no labels to learn; .*{one.name}.*one label only"):
        run(settings(tmp_path / "sounds"), out=tmp_path / "out", start=None)


def test_what_lies_beside_clips_without_labels_is_named(made: Path, tmp_path: Path) -> None:
    for name in ("dog/a.wav", "cat/b.wav", "stray.wav", "labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SettingError, match=r"stray.wav lies in no class .*not used: labels.csv"):
        run(settings(tmp_path), out=tmp_path / "out", start=None)


@needs_data
def test_clips_without_a_label_are_learnt_and_scored_as_negatives(
    data: Path, tmp_path: Path
) -> None:
    tables = data / "cases" / "tables" / "negatives"
    changes = settings(tables / "train.csv", loss="bce_mean", steps=1)
    run(changes, out=tmp_path / "out", start=None)
    result = evaluate_model(tmp_path / "out", tables / "test.csv", device="cpu")
    assert (result.metric, result.clips) == ("mAP", 6)
    assert {row["label"]: row["clips"] for row in result.classes} == {
        "animal": 0,
        "cat": 2,
        "dog": 2,
    }


def test_an_encoder_is_not_evaluated(made: Path, tmp_path: Path) -> None:
    save(EATModel(SMALL.config()), EATFeatureExtractor(mean=-1.0, std=3.0), tmp_path)
    with pytest.raises(CheckpointError, match="an encoder without a classifier; eat finetune"):
        evaluate_model(tmp_path, made, device="cpu")


@needs_data
def test_folds_must_be_named_or_crossed(data: Path) -> None:
    corpus = open_corpus(data / "esc10")
    with pytest.raises(SettingError, match="has folds 1, 2, 3, 4, 5; say test_splits"):
        split(corpus, settings(data))
    train, test = split(corpus, settings(data, test_splits=("3",)))
    assert test is not None and train.splits == ("1", "2", "4", "5") and test.splits == ("3",)


def test_a_run_leaves_a_model_with_its_labels_and_its_score(made: Path, tmp_path: Path) -> None:
    done = run(settings(made), out=tmp_path / "out", start=None)
    assert done.evaluation is not None and done.evaluation.clips == 10
    model = EATForAudioClassification.from_pretrained(tmp_path / "out")
    assert set(model.config.id2label.values()) == set(open_corpus(made).label_names)
    assert (tmp_path / "out" / "evaluation.csv").is_file()


@pytest.mark.parametrize("freeze", [0, 1])
def test_fine_tuning_begins_with_the_encoder_it_is_given(
    made: Path, tmp_path: Path, freeze: int
) -> None:
    encoder = EATModel(SMALL.config())
    save(encoder, EATFeatureExtractor(mean=-1.0, std=3.0), tmp_path / "encoder")
    changes = settings(made, steps=1, optim=Optim(lr=1e-9), freeze=freeze)
    run(changes, out=tmp_path / "out", start=tmp_path / "encoder")
    tuned = EATForAudioClassification.from_pretrained(tmp_path / "out")
    for name, tensor in encoder.model.state_dict().items():
        frozen = freeze and not name.startswith("blocks.1")
        limit = 0 if frozen else 1e-6
        torch.testing.assert_close(tuned.model.state_dict()[name], tensor, rtol=0, atol=limit)
    assert EATFeatureExtractor.from_pretrained(tmp_path / "out").std == 3.0


@needs_data
def test_cross_validation_tests_every_fold_and_goes_on_where_it_was(
    data: Path, tmp_path: Path
) -> None:
    changes = settings(data / "esc10", steps=1, clips=ClipSettings(seconds=0.5))
    first = cross_validate(changes, out=tmp_path, start=None)
    assert list(first.scores) == ["1", "2", "3", "4", "5"] and 0 <= first.mean <= 1
    (tmp_path / "fold-5" / "evaluation.json").unlink()
    assert cross_validate(changes, out=tmp_path, start=None, resume=True) == first


@needs_data
def test_several_labels_per_clip_are_learnt_and_scored_by_map(data: Path, tmp_path: Path) -> None:
    changes = settings(data / "audioset_mini", loss="bce_per_label", steps=2, batch=2)
    done = run(changes, out=tmp_path / "out", start=None)
    assert done.evaluation is not None
    assert done.evaluation.metric == "mAP" and done.evaluation.without_positive == 527 - 13
    with pytest.raises(SettingError, match="loss=cross_entropy is no loss"):
        run(settings(data / "audioset_mini"), out=tmp_path / "x", start=None)


def learner(made: Path, **changes: Any) -> tuple[Classification, Batch]:
    """A classifier about to learn, and a batch of four clips of one second."""
    requested = settings(made, **changes)
    corpus = open_corpus(made)
    model, features = start_from(None, requested, corpus)
    batch = ClipBatches(corpus, requested.clips, batch=4, seed=0)[3]
    return Classification(model, features, requested), batch


def prepared(learner: Classification, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    spectrogram, mask, labels = learner.prepare(batch, torch.Generator().manual_seed(seed))
    return spectrogram, torch.ones(0) if mask is None else mask, labels


EVERYTHING = Augmentation(roll=True, noise=True, mixup=0.5, mixup_share=1.0, mask=0.3)


def test_augmentation_is_a_function_of_seed_clip_and_epoch(made: Path) -> None:
    learning, batch = learner(made, augment=EVERYTHING)
    first = prepared(learning, batch)[0]
    assert torch.equal(first, prepared(learning, batch)[0])
    assert not torch.equal(first, prepared(learning, batch, seed=1)[0])
    batch.epochs += 1
    assert not torch.equal(first, prepared(learning, batch)[0])


def test_nothing_is_changed_unless_asked(made: Path) -> None:
    learning, batch = learner(made)
    plain = learning.features.log_mel(batch.waveforms, batch.lengths, frames=112).values
    spectrogram, _, labels = prepared(learning, batch)
    assert torch.equal(spectrogram, plain) and torch.equal(labels, batch.labels)


def test_stripes_are_silenced_labels_smoothed_and_mixed_when_asked(made: Path) -> None:
    plain = prepared(*learner(made))
    silenced = prepared(*learner(made, augment=Augmentation(mask=0.5)))[0]
    changed = silenced != plain[0]
    assert changed.any() and (silenced[changed] == 0).all()
    smoothed = prepared(*learner(made, augment=Augmentation(label_smoothing=0.2)))[2]
    assert smoothed.min() == pytest.approx(0.02) and smoothed.max() == pytest.approx(0.82)
    changes = Augmentation(mixup=0.8, mixup_share=1.0)
    x, _, labels = prepared(*learner(made, augment=changes))
    share = (labels * plain[2]).sum(dim=1).max()
    assert 0.5 <= share < 1 and torch.allclose(labels.sum(dim=1), torch.ones(4))
    both = torch.stack([augment.mixup(plain[0], s) for s in (share, 1 - share)])
    assert (both - x).abs().amax(dim=(1, 2, 3)).min() < 1e-4


def test_a_louder_clip_is_not_clipped(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "beta_gain", lambda count, generator: torch.full((count,), 1.5))
    still = lambda keys, count, purpose: torch.zeros(len(keys), count)  # noqa: E731
    monkeypatch.setattr("eat_audio.data.transforms.uniform", still)
    learning, batch = learner(made, augment=Augmentation(roll=True))
    batch.waveforms = torch.randint(-32_768, 32_767, batch.waveforms.shape).to(torch.int16)
    unchanged = learning.features.log_mel(batch.waveforms, batch.lengths, frames=112)
    plain = unchanged.values
    louder = prepared(learning, batch)[0]
    step = 2 * math.log(1.5) / (2 * learning.features.std)
    shortest = int(unchanged.frames.min())
    audible = plain[:, :shortest] > plain.min() + 0.1
    difference = (louder - plain)[:, :shortest][audible]
    torch.testing.assert_close(difference, torch.full_like(difference, step), rtol=0, atol=2e-3)


def test_noise_does_not_roll_padding_into_a_clip(made: Path) -> None:
    learning, batch = learner(made, augment=Augmentation(noise=True))
    batch.lengths = torch.full_like(batch.lengths, 8_000)
    spectrogram, mask, _ = prepared(learning, batch)
    plain = learning.features.log_mel(batch.waveforms, batch.lengths, frames=112).values
    assert mask.sum(dim=1).tolist() == [48] * 4
    turned = spectrogram[:, :48].mean(dim=2).sort(dim=1).values
    still = plain[:, :48].mean(dim=2).sort(dim=1).values
    torch.testing.assert_close(turned, still, rtol=0, atol=0.11)


def test_later_blocks_are_dropped_more_often(made: Path) -> None:
    model, _ = start_from(None, settings(made, drop_path=0.4), open_corpus(made))
    assert [block.drop_path for block in model.model.blocks] == [0.0, 0.4]
    x = torch.randn(8, 32, 128)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


def test_a_resumed_run_wants_the_encoder_and_the_settings_it_began_with(
    made: Path, tmp_path: Path
) -> None:
    encoder = EATModel(SMALL.config())
    save(encoder, EATFeatureExtractor(mean=-1.0, std=3.0), tmp_path / "encoder")
    run(settings(made), out=tmp_path / "out", start=tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="was begun with"):
        run(settings(made), out=tmp_path / "out", start=None, resume=True)
    with pytest.raises(CheckpointError, match="was begun with drop_path=0.0, not drop_path=0.5"):
        changes = settings(made, drop_path=0.5)
        run(changes, out=tmp_path / "out", start=tmp_path / "encoder", resume=True)
    again = run(settings(made), out=tmp_path / "out", start=tmp_path / "encoder", resume=True)
    assert again.evaluation is not None


def test_low_rank_additions_learn_and_the_model_that_is_kept_holds_them(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = settings(made, lora=2, optim=Optim(lr=1e-2, clip=0.0))
    model, features = start_from(None, changes, open_corpus(made))
    save(model, features, tmp_path / "before")
    run(changes, out=tmp_path / "run", start=str(tmp_path / "before"))
    before = load_file(tmp_path / "before" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys(), "the model that is kept has the usual names"
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    inside = {name for name in changed if ".blocks." in name}
    assert inside == {
        name
        for name in after
        if re.search(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight", name)
    }
    behind = {name for name in after if name.startswith(("model.head.", "model.fc_norm."))}
    assert changed - inside == behind, "the classifier learns as ever"
    for name in inside:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2
    test = split(open_corpus(made), changes)[1]
    assert test is not None
    kept = EATForAudioClassification.from_pretrained(tmp_path / "run")
    scores = predict_corpus(kept, load_features(tmp_path / "run"), test, changes.clips)
    messages = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluate_scores(scores, test.label_names, multi_label=False).value == messages["value"]


def test_low_rank_additions_ask_for_the_package_they_need(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model, _ = start_from(None, settings(made), open_corpus(made))
    with pytest.raises(SettingError, match=r"lora=4: the package peft is not installed"):
        add_lora(model, 4)


# ---- any method ----


def test_binary_cross_entropies_differ_by_what_they_are_divided_by() -> None:
    logits, labels = torch.randn(6, 5), (torch.rand(6, 5) < 0.4).float()
    per_clip, per_label, mean = (
        classification_loss(logits, labels, kind)["loss"]
        for kind in ("bce_per_clip", "bce_per_label", "bce_mean")
    )
    torch.testing.assert_close(per_clip, 5 * mean)
    torch.testing.assert_close(per_label * labels.sum(), 30 * mean)


def test_stripes_in_frequency_may_be_of_another_share(made: Path) -> None:
    plain = prepared(*learner(made))[0]
    changes = Augmentation(mask=0.0, mask_frequency=0.9)
    changed = (prepared(*learner(made, augment=changes))[0] != plain)[
        :, :96
    ]  # where there is sound
    assert changed.any() and torch.equal(changed.any(dim=1), changed.all(dim=1))
