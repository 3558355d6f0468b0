"""A monitor scores an encoder in training, and leaves the run as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipSettings, training_batches, whole_patches
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import DataError
from eat_audio.evaluation.monitor import Monitor, MonitorSettings
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.pretraining.eat import EATPretraining, EATRun
from eat_audio.training.loop import fit
from eat_audio.training.optim import adamw, parameter_groups

CLIPS = ClipSettings(seconds=1.0)
VIEWS = ("cls", "mean", "both")
SETTINGS = EATRun.model_validate(
    {
        "steps": 6,
        "batch": 4,
        "masks": 2,
        "block": [3, 3],
        "device": "cpu",
        "clips": {"seconds": 1.0},
        "decoder": {"layers": 1},
        "encoder": {"embed_dim": 32, "depth": 2, "num_heads": 2},
        "optim": {"warmup": 1},
        "log_every": 1,
    }
)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return write_corpus(folder, clips_per_family=6, seconds=1.0, seed=0)


def monitor(listing: Path, **changes: Any) -> Monitor:
    settings = MonitorSettings(data=str(listing), **changes)
    return Monitor(settings, EATFeatureExtractor(), clips=CLIPS, steps=6)


def encoder(seed: int = 0, **changes: Any) -> EATModel:
    torch.manual_seed(seed)
    return EATModel(EATConfig(**{"embed_dim": 32, "depth": 2, "num_heads": 2} | changes))


def trained(listing: Path, probe: Monitor | None) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """A short pre-training with stochastic depth; its weights, and all it logged."""
    torch.manual_seed(0)
    config = EATConfig(embed_dim=32, depth=2, num_heads=2, drop_path=0.5)
    objective = EATPretraining(config, SETTINGS, EATFeatureExtractor(), frames=whole_patches(1.0))
    objective.train()
    optimizer = adamw(
        parameter_groups(objective.named_parameters(), SETTINGS.optim, layers=objective),
        SETTINGS.optim,
    )
    steps = ClipBatches(open_corpus(listing), CLIPS, batch=4, seed=0)
    logged: list[Any] = []

    def on_step(step: int) -> None:
        if probe is not None and probe.due(step):
            assert probe(step, objective.student)

    def log(step: int, numbers: dict[str, float]) -> None:
        logged.append({n: x for n, x in numbers.items() if n != "seconds"})

    if probe is not None:
        probe(0, objective.student)
    batches = training_batches(steps, start=0, stop=SETTINGS.steps)
    fit(objective, batches, optimizer, SETTINGS, SETTINGS.optim, log=log, on_step=on_step)
    return objective.state_dict(), logged


def test_a_run_with_a_monitor_is_the_run_without_it(listing: Path) -> None:
    weights, log = trained(listing, None)
    monitored_weights, monitored_log = trained(listing, monitor(listing, every=2, clips=30))
    assert log == monitored_log and len(log) == 6
    assert all(torch.equal(weights[name], x) for name, x in monitored_weights.items())


def test_modes_gradients_and_random_numbers_are_left_alone(listing: Path) -> None:
    model = encoder().train()
    model.model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for step in (0, 1):
        monitor(listing, clips=20)(step, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model(torch.randn(1, 112, 128)).pooler_output.sum().backward()  # cached positions are usable


def test_all_views_are_scored_and_scores_are_shares(listing: Path) -> None:
    numbers = monitor(listing)(5, encoder())
    names = {f"{kind}_accuracy_{view}" for kind in ("linear", "knn") for view in VIEWS}
    more = {f"{kind}_{view}" for kind in ("effective_rank", "variance") for view in VIEWS[:2]}
    assert set(numbers) == names | more | {"monitor_seconds"}
    assert all(0 <= numbers[name] <= 1 for name in names)
    assert all(1 <= numbers[f"effective_rank_{view}"] <= 32 for view in VIEWS[:2])


def test_an_encoder_without_a_cls_token_is_scored_by_the_mean_of_its_patches(
    listing: Path,
) -> None:
    config = BEATsConfig.named("tiny", encoder_layers=1, encoder_embed_dim=48, conv_pos=16)
    settings = MonitorSettings(data=str(listing), clips=20)
    probe = Monitor(settings, BEATsFeatureExtractor(), clips=CLIPS, steps=6)
    for step in (0, 6):
        numbers = probe(step, BEATsModel(config))
        assert set(numbers) == {
            "linear_accuracy_mean",
            "knn_accuracy_mean",
            "effective_rank_mean",
            "variance_mean",
            "monitor_seconds",
        }
        assert "(mean)" in probe.summary(step, numbers)


def test_step_0_is_a_random_encoder_whatever_has_been_learned(listing: Path) -> None:
    probe = monitor(listing, clips=30)

    def numbers(step: int, model: EATModel) -> dict[str, float]:
        return {n: x for n, x in probe(step, model).items() if n != "monitor_seconds"}

    trained_encoder = encoder(seed=5)
    assert numbers(0, trained_encoder) == numbers(0, encoder(seed=6)) == numbers(3, encoder(seed=0))
    assert numbers(0, trained_encoder) != numbers(3, trained_encoder)


def test_a_collapsed_encoder_shows(listing: Path) -> None:
    model = encoder()
    for block in model.model.blocks:
        block.requires_grad_(False)
    healthy = monitor(listing)(1, model)
    with torch.no_grad():  # all patches are the same
        model.model.local_encoder.proj.weight.mul_(1e-4)
        model.model.local_encoder.proj.weight[1:] = 0
    collapsed = monitor(listing)(1, model)
    assert collapsed["variance_mean"] < 0.01 * healthy["variance_mean"]
    assert collapsed["effective_rank_mean"] < 0.5 * healthy["effective_rank_mean"]


def test_it_is_due_every_so_many_steps_and_at_the_end(listing: Path) -> None:
    probe = monitor(listing, every=4)
    assert [step for step in range(7) if probe.due(step)] == [4, 6]


def test_only_so_many_clips_are_kept_and_always_the_same_ones(listing: Path) -> None:
    one, other = (monitor(listing, clips=17) for _ in range(2))
    assert len(one.labels) == 17 and (one.labels == other.labels).all()
    assert sum(len(batch.frames) for batch in one.spectrograms) == 17
    assert {batch.values.shape[1] for batch in one.spectrograms} == {112}


def test_several_labels_per_clip_are_scored_by_map(listing: Path) -> None:
    corpus = open_corpus(listing)
    rows = ["path,label"]
    for clip in corpus.clips[:30]:
        rows.append(f"{clip.path},{corpus.label_names[clip.labels[0]]};{clip.labels[0] % 2}")
    several = listing.with_name("several.csv")
    several.write_text("\n".join(rows) + "\n", encoding="utf-8")
    probe = monitor(several)
    numbers = probe(2, encoder())
    assert {"linear_map_both", "knn_map_both"} <= set(numbers)
    assert "mAP" in probe.summary(2, numbers) and "step 2" in probe.summary(2, numbers)


def test_clips_that_cannot_be_read_are_left_out_and_named(listing: Path, tmp_path: Path) -> None:
    for label in ("low", "high"):
        (tmp_path / label).mkdir()
        for number in range(4):
            noise = np.random.default_rng(number).normal(size=16_000) * 0.1
            soundfile.write(tmp_path / label / f"{number}.wav", noise, 16_000)
    (tmp_path / "low" / "0.wav").write_bytes(b"no sound")
    probe = monitor(tmp_path)
    assert len(probe.labels) == 7 and len(probe.unreadable) == 1
    assert np.isfinite(list(probe(1, encoder()).values())).all()


def test_clips_without_labels_are_refused(listing: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(DataError, match="fewer than two labels"):
        monitor(tmp_path)
