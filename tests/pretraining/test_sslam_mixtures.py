"""SSLAM mixes clips by keys and within their sound, is EAT without mixing, and goes on from EAT."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_batches import noise_batch
from test_sslam_pretraining import IO, by_name, objective
from torch import Tensor

from conftest import sidecar, tensors
from eat_audio import pipeline
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.loader import Batch
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import CheckpointError
from eat_audio.models import save
from eat_audio.models.common.feature_extraction import EATFeatureExtractor, LogMelBatch
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining import run as pretraining
from eat_audio.pretraining.eat import DecoderSettings, EATMethod, EATPretraining
from eat_audio.pretraining.sslam import SSLAMMethod, SSLAMPretraining, SSLAMRun

DECODER = DecoderSettings(layers=2, groups=4)


def small(**changes: Any) -> SSLAMPretraining:
    """A small objective, the same at every call."""
    torch.manual_seed(0)
    config = EATConfig(embed_dim=32, depth=2, num_heads=2)
    method = SSLAMMethod(masks=2, block=(2, 2), decoder=DECODER, **changes)
    return SSLAMPretraining(config, method, EATFeatureExtractor(), frames=256, seed=1)


def shortened(batch: Batch, *samples: int) -> Batch:
    """The batch with clips that end after so many samples."""
    return replace(batch, lengths=torch.tensor(samples))


def mixed_columns(model: SSLAMPretraining, batch: Batch) -> Tensor:
    """The columns of each clip that are mixed (B, T'), bool."""
    return model.sample_mixture(batch, model.log_mel(batch)).frames[:, ::16]


def test_without_mixtures_and_with_targets_of_all_layers_it_is_eat_to_the_bit() -> None:
    model = small(mixing=False, utterance_layers=None)
    torch.manual_seed(0)
    method = EATMethod(masks=2, block=(2, 2), decoder=DECODER)
    config = EATConfig(embed_dim=32, depth=2, num_heads=2)
    eat = EATPretraining(config, method, EATFeatureExtractor(), frames=256, seed=1)
    for batch in (noise_batch([1, 2]), shortened(noise_batch([1, 2, 3]), 41_600, 9_000, 30_000)):
        ours, theirs = (one(batch, torch.Generator().manual_seed(5)) for one in (model, eat))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        ours["loss"].backward()
        theirs["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in eat.named_parameters():
        assert parameter.grad is None or torch.equal(gradients[name], parameter.grad), name


def test_two_windows_of_time_that_do_not_overlap_stay_unmixed() -> None:
    model = small()
    model.frames = 1024
    batch = noise_batch(list(range(2_000)), seconds=0.02)
    values = torch.zeros(len(batch.clips), 1024, 1)
    log_mel = LogMelBatch(values, torch.full_like(batch.clips, 1024))
    mixture = model.sample_mixture(batch, log_mel)
    mixed = mixture.frames[:, ::16]
    assert mixture.columns == 34 and mixed.sum(dim=1).eq(34).all()
    unmixed = torch.nn.functional.pad(~mixed, (1, 1)).int()
    begins = (unmixed.diff(dim=1) == 1).sum(dim=1)
    assert begins.max() == 2 and begins.min() >= 1  # windows may touch
    # the released draws: 3 % of them leave out column 0, 64 to 78 % columns 45 to 50
    share = (~mixed).float().mean(dim=0)
    assert share[0] == pytest.approx(1 / 32, abs=0.015) and share[63] < 0.1
    assert all(0.6 < one < 0.82 for one in share[45:51].tolist())


def test_windows_depend_on_clip_and_epoch_and_on_nothing_else() -> None:
    model, batch = small(), noise_batch([1, 2, 3, 4])
    columns = mixed_columns(model, batch)
    assert torch.equal(mixed_columns(model, noise_batch([4, 3]))[0], columns[3])
    assert not torch.equal(mixed_columns(model, noise_batch([1, 2, 3, 4], epoch=1)), columns)
    assert len({tuple(row.tolist()) for row in columns}) > 1


def test_clips_are_mixed_in_pairs_of_neighbors() -> None:
    model, batch = small(), noise_batch([1, 2, 3, 4])
    log_mel = model.log_mel(batch)
    mixture = model.sample_mixture(batch, log_mel)
    assert mixture.guests.tolist() == [1, 0, 3, 2]
    mixed, x = mixture.mix(log_mel.values), log_mel.values
    for clip, guest in enumerate([1, 0, 3, 2]):
        inside = mixture.frames[clip]
        assert torch.equal(mixed[clip, inside], torch.maximum(x[clip], x[guest])[inside])
        assert torch.equal(mixed[clip, ~inside], x[clip, ~inside])


def test_where_one_of_two_clips_has_ended_nothing_is_mixed() -> None:
    """Padding is the mean of the corpus, louder than quiet sound: it would win the maximum."""
    model = small(window=0.0)
    batch = shortened(noise_batch([1, 2]), 41_600, 20_000)
    batch.waveforms //= 1_000
    log_mel = model.log_mel(batch)
    mixture = model.sample_mixture(batch, log_mel)
    end = int(log_mel.frames[1])
    assert mixture.frames.sum(dim=1).tolist() == [end, end] and end % 16
    mixed = mixture.mix(log_mel.values)
    assert torch.equal(mixed[:, end:], log_mel.values[:, end:])
    assert log_mel.values[0, end:-16].max() < 0  # quieter than padding

    valid = log_mel.patch_mask(8)
    y, _, r = model.all_targets(
        torch.cat([log_mel.values, mixed]), torch.cat([valid, valid]), mixture
    )
    ended = 8 * -(-end // 16)
    assert torch.equal(r[:, ended:], y[:2, ended:])
    assert not torch.isclose(r[:, :ended], y[:2, :ended]).all(dim=2).any()


def test_a_guest_that_ends_before_what_is_mixed_leaves_a_clip_as_it_is() -> None:
    model = small(window=0.24).eval()
    for number in range(40):
        batch = shortened(noise_batch([number, 99]), 41_600, 400)
        if not mixed_columns(model, batch)[0].any():
            break
    losses = model(batch, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in losses.values())
    log_mel = model.log_mel(batch)
    mixture = model.sample_mixture(batch, log_mel)
    assert not mixture.frames[0].any()
    assert torch.equal(mixture.mix(log_mel.values)[0], log_mel.values[0])


def test_the_released_padding_is_mixed_as_released() -> None:
    model = small(window=0.0)
    model.features = EATFeatureExtractor(released_padding=True)
    batch = shortened(noise_batch([1, 2]), 41_600, 20_000)
    assert model.sample_mixture(batch, model.log_mel(batch)).frames.all()


def test_defaults_are_those_of_the_released_run() -> None:
    method = SSLAMMethod()
    assert method.utterance_weight == 12 * 2 * method.masks
    assert (method.utterance_layers, method.retention_weight) == (1, 1.0)
    assert 64 * method.window == 15


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch": 1}, "batch=1: expected an even number, to mix clips in pairs"),
        ({"batch": 3}, "batch=3: expected an even number, to mix clips in pairs"),
        ({"utterance_layers": 13}, "utterance_layers=13: the encoder has 12 layers"),
        ({"window": 0.25}, "less than 0.25"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SSLAMRun(**changes)
    assert SSLAMRun(batch=1, mixing=False).batch == 1


# ---- the second stage ----

SHORT = {
    "encoder": {"size": "tiny", "embed_dim": 16, "depth": 1, "num_heads": 2},
    "clips": {"seconds": 0.64, "statistics": [-5.0, 4.0]},
    "optim": {"lr": 1e-2},
    "decoder": {"groups": 4},
    "tau": {"start": 0.5},
    "masks": 2,
    "block": [2, 2],
    "batch": 2,
    "steps": 2,
}


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EAT."""
    home = tmp_path_factory.mktemp("stages")
    listing = write_corpus(home / "made", clips_per_family=3, seconds=1.0, seed=0)
    recipe = {"method": "eat", "data": str(listing)} | SHORT
    return pretraining.run(pretraining.schema(recipe).model_validate(recipe), out=home / "run")


def second_stage(start: Path | str, **changes: Any) -> SSLAMPretraining:
    """The objective of a run that starts from another; statistics are not set."""
    recipe = SHORT | {"clips": {"seconds": 0.64}, "start": str(start)} | changes
    run = SSLAMRun.model_validate(recipe)
    objective = run.build_objective(EATFeatureExtractor())
    assert isinstance(objective, SSLAMPretraining)
    return objective


def test_it_starts_from_student_teacher_and_decoder_of_a_run_and_its_statistics(
    first_stage: Path,
) -> None:
    last = first_stage / "checkpoints" / "step-00000002"
    expected = load_file(last / "objective.safetensors")
    for start in (first_stage, last):
        model = second_stage(start)
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        assert (model.features.mean, model.features.std) == (-5.0, 4.0)
    assert any(name.startswith("decoder.") for name in expected)
    set_ = second_stage(first_stage, clips={"seconds": 0.64, "statistics": "audioset"})
    assert set_.features.mean == EATFeatureExtractor().mean


@pytest.mark.parametrize("path", IO, **by_name)
def test_it_starts_from_a_released_file(path: Path, tmp_path: Path) -> None:
    model, cfg = objective(path), sidecar(path)
    recorded = tensors(path.with_name(path.name.replace("_io", "_state")))
    state = {k.removeprefix("student."): v for k, v in recorded.items() if k[0] == "s"}
    state["_ema"] = {k.removeprefix("ema."): v for k, v in recorded.items() if k[0] == "e"}
    settings = {"model": {"num_heads": cfg["num_heads"]}}
    torch.save({"cfg": settings, "model": state}, tmp_path / "checkpoint_last.pt")
    decoder = model.method.decoder.model_dump()
    shape = {name: cfg[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    started = second_stage(
        tmp_path / "checkpoint_last.pt", encoder={"size": "tiny"} | shape, decoder=decoder
    )
    assert all(
        torch.equal(started.state_dict()[name], tensor)
        for name, tensor in model.state_dict().items()
    )
    assert started.features.mean == EATFeatureExtractor().mean


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder": {**SHORT["encoder"], "num_heads": 4}}, "num_heads=2; expected 4$"),
        (
            {"decoder": {"groups": 4, "layers": 2}},
            r"has \[16\] as decoder.blocks.2.bias; expected nothing$",
        ),
        ({"decoder": {"groups": 2}}, r"as decoder.blocks.0.weight; expected \[16, 8, 3, 3\]$"),
    ],
)
def test_a_run_of_another_shape_is_refused(
    changes: dict[str, Any], sentence: str, first_stage: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(first_stage))}: .*{sentence}"):
        second_stage(first_stage, **changes)


def test_a_model_without_a_teacher_is_refused(first_stage: Path, tmp_path: Path) -> None:
    model, features = load_model_and_features(first_stage)
    save(model, features, tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="encoder: holds no teacher"):
        second_stage(tmp_path / "encoder")


def test_both_stages_run_as_one_pipeline_and_end_at_the_same_bits_when_resumed(
    first_stage: Path, tmp_path: Path
) -> None:
    stages = ["stages: [eat_demo, sslam_tiny]"]
    (tmp_path / "both.yaml").write_text(stages[0], encoding="utf-8")
    words = [
        *("encoder.embed_dim=16", "encoder.depth=1", "encoder.num_heads=2", "decoder.groups=4"),
        *("clips.seconds=0.64", "steps=4", "save_every=2", "device=cpu", "optim.warmup=1"),
        f"data={first_stage.parent / 'made' / 'clips.csv'}",
    ]
    out, whole = tmp_path / "run", pipeline.stages_of(str(tmp_path / "both.yaml"), words)
    first, second = pipeline.run(whole, out=out)
    assert isinstance(second, SSLAMRun) and second.start == str(out / "1-eat_demo")
    weights = load_file(out / "model.safetensors")
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "model.safetensors").unlink()
    pipeline.run(whole, out=out, resume=True)
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
