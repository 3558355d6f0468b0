"""The probe: fixed, the same for every encoder, and beside what has to be beaten."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import eat, needs_data
from eat_audio.audio.fbank import log_mel
from eat_audio.cli import analysis
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings, ordered_batches
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError
from eat_audio.evaluation import token_probe
from eat_audio.evaluation.metrics import linear_score
from eat_audio.evaluation.probe import (
    clip_vectors,
    log_mel_statistics,
    probe_encoder,
    random_like,
)
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return write_corpus(folder, clips_per_family=6, seconds=1.0, seed=0)


@pytest.fixture(scope="module")
def corpus(listing: Path) -> Corpus:
    return open_corpus(listing)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, in whose encoder a probe looks."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    EATForAudioClassification(EATConfig(**SHAPE)).save_pretrained(folder)
    EATFeatureExtractor(mean=-5.0, std=4.0).save_pretrained(folder)
    return folder


def linear_scores(
    model: Any, features: Any, train: Corpus, test: Corpus, seconds: float = 1.0
) -> dict[str, float]:
    """Scores of a linear classifier by view."""
    clips = ClipSettings(seconds=seconds)
    fitted, tested = (clip_vectors(model, features, corpus, clips) for corpus in (train, test))
    return {
        name: linear_score(
            view,
            fitted.labels,
            tested.views[name],
            tested.labels,
            multi_label=train.multi_label,
        )
        for name, view in fitted.views.items()
    }


def model() -> EATModel:
    torch.manual_seed(0)
    return EATModel(EATConfig(**SHAPE))


def test_the_same_encoder_gets_the_same_score_above_chance(corpus: Corpus) -> None:
    train, test = corpus.select("train"), corpus.select("test")
    one, other = (linear_scores(model(), EATFeatureExtractor(), train, test) for _ in range(2))
    assert one == other and list(one) == ["cls", "mean", "both", "statistics"]
    assert max(one.values()) > 0.1


def test_vectors_belong_to_their_clips_and_the_encoder_stays_as_it_was(corpus: Corpus) -> None:
    encoder = model().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = clip_vectors(
        encoder, EATFeatureExtractor(), corpus, ClipSettings(seconds=1.0), batch=7
    )
    assert result.cls.shape == result.mean.shape == (len(corpus), 32)
    assert result.views["both"].shape == (len(corpus), 64)
    assert result.views["statistics"].shape == (len(corpus), 96)
    assert result.ids == [clip.id for clip in corpus.clips]
    assert result.labels.argmax(axis=1).tolist() == [clip.labels[0] for clip in corpus.clips]
    assert encoder.training and np.isfinite(result.cls).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_log_mel_statistics_are_those_of_every_clip_by_itself(corpus: Corpus) -> None:
    (batch, *_) = ordered_batches(corpus, ClipSettings(seconds=0.8), batch=3)
    rows = log_mel_statistics(batch)
    alone = log_mel(batch.waveforms[1, : int(batch.lengths[1])])
    assert torch.equal(rows[1, :128], alone.mean(dim=0))
    assert torch.equal(rows[1, 128:], alone.std(dim=0, correction=0))
    assert rows.shape == (3, 256)


def test_a_random_encoder_is_another_for_each_seed_and_leaves_torchs_draws_alone() -> None:
    like = model()
    state = torch.get_rng_state()
    one, same, other = (random_like(like, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.model.extra_tokens, same.model.extra_tokens)
    assert not torch.equal(one.model.extra_tokens, other.model.extra_tokens)


@pytest.fixture(scope="module")
def compared(saved: Path, listing: Path) -> Any:
    return probe_encoder(saved, listing, seconds=1.0, seeds=2, kinds=("linear", "knn"), neighbors=3)


def test_an_encoder_is_compared_view_by_view_with_random_ones_and_log_mel(compared: Any) -> None:
    assert [(row.features, row.encoder) for row in compared.rows] == [
        ("CLS token", "this one"),
        ("CLS token", "random (2)"),
        ("mean of patches", "this one"),
        ("mean of patches", "random (2)"),
        ("both", "this one"),
        ("both", "random (2)"),
        ("statistics", "this one"),
        ("statistics", "random (2)"),
        ("log-mel statistics", "none"),
    ]
    for row in compared.rows:
        assert 0 <= row.linear.mean <= 1 and row.knn is not None and 0 <= row.knn.mean <= 1
        assert row.linear.std >= 0 and row.effective_rank >= 1
    assert compared.chance == pytest.approx(0.1) and compared.classes == 10
    assert compared.std_over == "resampled test clips" and "tested on" in compared.split


def test_an_encoder_without_a_cls_token_is_probed_by_the_mean_of_its_patches(
    corpus: Corpus, listing: Path, tmp_path: Path
) -> None:
    config = BEATsConfig.named("tiny", encoder_layers=1, encoder_embed_dim=48, conv_pos=16)
    beats, features = BEATsModel(config), BEATsFeatureExtractor()
    parts = (corpus.select("train"), corpus.select("test"))
    scores = linear_scores(beats, features, *parts)
    assert list(scores) == ["mean", "statistics"]
    beats.save_pretrained(tmp_path)
    features.save_pretrained(tmp_path)
    rows = probe_encoder(tmp_path, listing, seconds=1.0, seeds=1).rows
    expected = ["mean of patches"] * 2 + ["statistics"] * 2 + ["log-mel statistics"]
    assert [row.features for row in rows] == expected
    assert rows[0].linear.mean == scores["mean"]


def test_a_split_corpus_is_scored_as_the_plain_probe_scores_it(
    compared: Any, saved: Path, corpus: Corpus
) -> None:
    encoder = EATModel.from_pretrained(saved)
    features = EATFeatureExtractor(mean=-5.0, std=4.0)
    plain = linear_scores(encoder, features, corpus.select("train"), corpus.select("test"))
    assert [compared.rows[n].linear.mean for n in (0, 2, 4, 6)] == list(plain.values())


def test_layers_are_probed_one_by_one_and_together(saved: Path, listing: Path) -> None:
    result = probe_encoder(saved, listing, seconds=1.0, seeds=1, layers="all")
    named = [(row.features, row.encoder) for row in result.rows]
    assert named[8:-1] == [
        ("layer 1", "this one"),
        ("layer 2", "this one"),
        ("layers 1, 2", "this one"),
        ("layers 1, 2", "random (1)"),
    ]
    last = probe_encoder(saved, listing, seconds=1.0, seeds=1, layers="last").rows[8:-1]
    assert [(row.features, row.encoder) for row in last] == [
        ("layer 2", "this one"),
        ("layer 2", "random (1)"),
    ]
    assert last[0].linear == result.rows[9].linear
    with pytest.raises(
        SettingError, match=r"layers='0,3': expected last, all, or different numbers"
    ):
        probe_encoder(saved, listing, layers="0,3")


def test_tokens_are_probed_layer_by_layer_and_weighted(
    saved: Path,
    listing: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(token_probe, "STEPS", 2)
    kinds = ("attentive", "prototype", "gated")
    settings = {"seconds": 1.0, "seeds": 1, "prototypes": 4, "max_clips": 40}
    result = probe_encoder(saved, listing, kinds=kinds, **settings)
    rows = {(row.features, row.encoder): row for row in result.token_rows}
    last, both = "patches of layer 2", "tokens of layers 1, 2"
    assert list(rows) == [(x, y) for x in (last, both) for y in ("this one", "random (1)")]
    row = rows[last, "this one"]
    assert row.attentive and row.prototype and row.gated is None and result.rows == []
    assert rows[both, "random (1)"].gated and rows[both, "this one"].attentive is None
    analysis._show(result, ["gated", "attentive"])
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split("\t")[2:] == ["gated accuracy", "attentive accuracy", "effective rank"]
    score = f"{100 * row.attentive.mean:.1f} ± {100 * row.attentive.std:.1f} %"
    assert first.split("\t") == [last, "this one", "", score, ""]
    layers = probe_encoder(saved, listing, kinds=kinds, layers="0,1", **settings)
    assert [(row.features, row.encoder) for row in layers.token_rows] == [
        ("patches of layer 0", "this one"),
        ("patches of layer 1", "this one"),
        ("tokens of layers 0, 1", "this one"),
        ("tokens of layers 0, 1", "random (1)"),
    ]


def test_an_unknown_kind_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = eat(monkeypatch, capsys, "probe", "runs", "--data", "x", "--kind", "svm")
    expected = "eat: --kind svm: expected linear, knn, attentive, prototype or gated\n"
    assert code == 2 and err == expected


def test_folds_are_tested_one_by_one(saved: Path, listing: Path, tmp_path: Path) -> None:
    corpus = open_corpus(listing)
    rows = ["path,label,split"]
    for number, clip in enumerate(corpus.clips[:45]):
        rows.append(f"{clip.path},{corpus.label_names[clip.labels[0]]},{number % 3 + 1}")
    (tmp_path / "folds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    result = probe_encoder(saved, tmp_path / "folds.csv", seconds=1.0, seeds=0, max_clips=40)
    assert result.split == "3 folds, each tested once" and result.std_over == "folds"
    assert result.clips == 40 and len(result.rows) == 5
    assert all(row.knn is None for row in result.rows)


def test_the_command_prints_a_table_and_json_with_the_same_numbers(
    saved: Path,
    listing: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("probe", saved, "--data", listing, "--seconds", 1, "--seeds", 1, "--clips", 40)
    kinds = ("--kind", "linear", "--kind", "knn")
    code, table, _ = eat(monkeypatch, capsys, *arguments, "--knn")
    assert code == 0
    code, printed, _ = eat(monkeypatch, capsys, *arguments, *kinds, "--json")
    result = json.loads(printed)
    assert code == 0 and len(result["rows"]) == 9
    for row in result["rows"]:
        assert f"{100 * row['linear']['mean']:.1f} ± {100 * row['linear']['std']:.1f} %" in table
        assert f"{row['effective_rank']:.1f}" in table


def test_clips_without_labels_end_the_command_with_a_sentence(
    saved: Path,
    listing: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = open_corpus(listing).clips[0].path
    code, _, err = eat(monkeypatch, capsys, "probe", saved, "--data", clip)
    assert code == 2 and "fewer than two labels" in err and err.startswith("eat: ")


@needs_data
def test_several_labels_are_probed_by_map(data: Path) -> None:
    corpus = open_corpus(data / "audioset_mini")
    train, test = (
        Corpus(split, corpus.select(split).clips[:20], corpus.label_names, multi_label=True)
        for split in ("train", "eval")
    )
    scores = linear_scores(model(), EATFeatureExtractor(), train, test)
    assert 0 < max(scores.values()) <= 1
