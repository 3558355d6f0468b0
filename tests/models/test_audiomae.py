"""Audio-MAE: the released numbers, any length, no neighbours, Hugging Face."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

from conftest import golden_sets, needs, sidecar, tensors
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.transforms import mixup, roll_and_gain
from eat_audio.models.audiomae.modeling import (
    AudioMAEConfig,
    AudioMAEForAudioClassification,
    AudioMAEModel,
    some_of_a_grid,
)
from eat_audio.models.common.feature_extraction import AudioMAEFeatureExtractor
from eat_audio.models.common.layers import sincos_positions, wrapped_positions
from eat_audio.training.optim import Optim, learning_rate, parameter_groups

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4}
PRETRAINED = golden_sets("mae_local*.json")
FINETUNED = golden_sets("vit_finetune*.json")
GRIDS = golden_sets("mae_global*.json")
SOUNDS = golden_sets("data*.json")
RATES = golden_sets("lr_schedules*.json")


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def config_of(path: Path, **more: Any) -> AudioMAEConfig:
    """The shape of a recorded encoder."""
    told = sidecar(path)["config"]
    shape = {name: told[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return AudioMAEConfig(**shape, norm_eps=told["norm_eps"], **more)


def weights(path: Path, *, norm: bool) -> dict[str, Tensor]:
    """A recorded encoder's tensors under our names."""
    state = {n.removeprefix("sd."): x for n, x in tensors(path).items() if n.startswith("sd.")}
    left_out = ("decoder", "mask_token", "pos_embed", *(() if norm else ("norm.",)))
    return {f"model.{n}": x for n, x in state.items() if not n.startswith(left_out)}


def encoder(path: Path) -> AudioMAEModel:
    model = AudioMAEModel(config_of(path)).eval()
    model.load_state_dict(weights(path, norm=True))
    return model


def classifier(path: Path, **more: Any) -> tuple[AudioMAEForAudioClassification, Tensor]:
    """A recorded classifier, and the spectrograms it was recorded with."""
    base = path.with_name(path.name.replace("vit_finetune", "mae_local"))
    classes = sidecar(path)["num_classes"]
    config = config_of(path, num_classes=classes, final_norm=False, **more)
    model = AudioMAEForAudioClassification(config).eval()
    model.load_state_dict(weights(base, norm=False) | weights(path, norm=True))
    return model, spectrograms(base)


def spectrograms(path: Path) -> Tensor:
    return tensors(path)["spec_i8"][:, 0].float() / 32


def close(ours: Tensor, theirs: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


# ---- the released numbers ----


@each(PRETRAINED)
def test_the_encoder_gives_the_recorded_latents(path: Path) -> None:
    model, record = encoder(path), tensors(path)
    source = spectrograms(path)
    close(model.model.patch_embed(source)[0, ::4], record["ratio80.patch_embed_s0"])
    kept = record["ratio80.ids_keep"].long()[..., None]
    _, _, states = model.model(model.model.embed(source).take_along_dim(kept, dim=1))
    for index in range(model.config.depth - 1):
        close(states[index + 1][0], record[f"ratio80.enc_block{index}_s0"])
    close(states[-1], record["ratio80.latent"])


@each(PRETRAINED)
def test_positions_are_the_recorded_ones_to_the_last_digit(path: Path) -> None:
    recorded = tensors(path)["sd.pos_embed"][0]
    ours = encoder(path).model.positions(len(recorded) - 1, torch.empty(0))
    assert torch.equal(ours, recorded[1:])
    assert not recorded[0].any()  # the CLS token has none


@each(FINETUNED)
def test_the_classifier_gives_the_recorded_logits(path: Path) -> None:
    model, source = classifier(path)
    record = tensors(path)
    close(model(source).logits, record["logits"])
    close(model.model.fc_norm(model.encode(source).clip), record["feat"])


@each(FINETUNED)
def test_training_on_a_part_of_the_grid_gives_the_recorded_logits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = classifier(path, mask_t_prob=0.2, mask_f_prob=0.2)
    record = tensors(path)
    close(model(source).logits, record["logits"])  # nothing is hidden from a finished model
    draws = [record["masked_noise_t"], record["masked_noise_f"]]
    monkeypatch.setattr(torch, "rand", lambda *shape, device: draws.pop(0).view(shape))
    close(model.train()(source).logits, record["logits_masked"])
    assert not draws


@each(GRIDS)
def test_columns_and_rows_of_the_least_noise_are_the_recorded_ones(path: Path) -> None:
    record = tensors(path)
    needs(record, "mask2d.noise0", "mask2d.noise1", "mask2d.ids_keep")
    noise = record["mask2d.noise0"], record["mask2d.noise1"]
    ids, seen = some_of_a_grid(noise, (0.6, 0.5))
    assert seen is None
    assert torch.equal(ids.sort().values, record["mask2d.ids_keep"].long())


@each(FINETUNED)
def test_what_is_fine_tuned_learns_at_the_recorded_rates(path: Path) -> None:
    model, _ = classifier(path)
    settings = Optim(lr=1.0, layer_decay=0.75, stem_decay=True, weight_decay=5e-4)
    groups = parameter_groups(model.model.named_parameters(), settings, layers=model)
    ours = {n: (g["peak"], g["weight_decay"]) for g in groups for n in g["names"]}
    for group in sidecar(path)["layer_decay_groups_0.75_wd5e-4"]:
        for name in group["names"]:
            assert ours[name][0] == pytest.approx(group["lr_scale"]), name
            if name != "cls_token":  # which the released code lets decay in pre-training alone
                assert ours[name][1] == group["weight_decay"], name


@each(RATES)
def test_rates_are_the_recorded_ones(path: Path) -> None:
    for schedule in sidecar(path)["schedules"].values():
        told = {"peak": schedule["lr"], "min_lr": schedule["min_lr"]}
        told |= {"warmup": schedule["warmup_epochs"], "steps": schedule["epochs"]}
        for epoch, rate in schedule["points"]:
            # while warming up, the released rates grow from 0 and ours from the smallest rate
            apart = schedule["min_lr"] if epoch < schedule["warmup_epochs"] else 0.0
            assert learning_rate(epoch, **told) == pytest.approx(rate, rel=1e-9, abs=apart + 1e-18)


@each(SOUNDS)
def test_the_front_end_is_the_recorded_one(path: Path) -> None:
    record, told = tensors(path), sidecar(path)
    features = AudioMAEFeatureExtractor(released_padding=True)
    assert (features.mean, features.std) == (told["conf"]["mean"], told["conf"]["std"])
    a, b = record["wave_a"][0].float() / 32_768, record["wave_b"][0].float() / 32_768

    def hear(wave: Tensor, frames: int) -> Tensor:
        return features.log_mel(wave[None], torch.tensor([len(wave)]), frames=frames).values[0]

    close(hear(a, 1_024)[: len(record["plain"])], record["plain"], atol=1e-4)
    assert hear(a, 1_024)[-1].unique().tolist() == [record["plain_pad_value"][0].item()]
    close(hear(a, len(record["cropped"])), record["cropped"], atol=1e-4)

    gains = [draw[2] + 0.5 for draw in told["rollmag_draws"] if draw[0] == "beta"]
    louder = roll_and_gain((a - a.mean())[None], torch.tensor([len(a)]), *turned(gains))
    close(hear(louder[0], len(record["rollmag"])), record["rollmag"], atol=1e-4)

    gains = [draw[2] + 0.5 for draw in told["mixup_draws"] if draw[0] == "beta"][:2]
    pair = torch.nn.utils.rnn.pad_sequence([a - a.mean(), b - b.mean()], batch_first=True)
    pair = roll_and_gain(pair, torch.tensor([len(a), len(b)]), *turned(gains))[:, : len(a)]
    mixed = mixup(pair, told["mix_lambda"])[0]
    close(hear(mixed, len(record["mixup"])), record["mixup"], atol=1e-4)


def turned(gains: list[float]) -> tuple[Tensor, Tensor]:
    """No shift, for the recorded code never rolls, and the gains."""
    return torch.zeros(len(gains), dtype=torch.int64), torch.tensor(gains)


# ---- what the released code does not promise ----


@pytest.fixture(scope="module")
def model() -> AudioMAEModel:
    torch.manual_seed(0)
    return AudioMAEModel(AudioMAEConfig(**SMALL)).eval()


def hear(model: AudioMAEModel, *seconds: float) -> Any:
    """Features of noise clips, heard together; every clip is the same at every call."""
    waves = [
        np.random.default_rng(round(100 * s)).normal(0, 0.1, round(16_000 * s)).astype(np.float32)
        for s in seconds
    ]
    inputs = AudioMAEFeatureExtractor()(waves, sampling_rate=16_000)
    with torch.no_grad():
        return model.features(**inputs)


@pytest.mark.parametrize(
    ("layout", "attention", "pooling"),
    [("released", "sdpa", "mean"), ("correct", "eager", "cls"), ("correct", "sdpa", "cls")],
)
def test_clips_sound_the_same_alone_and_in_company(
    layout: str, attention: str, pooling: str
) -> None:
    torch.manual_seed(0)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    model = AudioMAEModel(AudioMAEConfig(**shape, pos_layout=layout, pooling=pooling)).eval()
    model.set_attn_implementation(attention)
    seconds = (0.2, 1.0, 5.0, 10.0, 30.0)
    together = hear(model, *seconds)
    for row, length in enumerate(seconds):
        alone = hear(model, length)
        columns = alone.frames.shape[1]
        assert together.valid[row].sum() == columns
        close(together.clip[row], alone.clip[0], atol=1e-5)
        close(together.patches[row, :columns], alone.patches[0], atol=1e-5)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 1.0, 10.0, 60.0])
def test_clips_of_any_length_are_heard(model: AudioMAEModel, seconds: float) -> None:
    heard = hear(model, seconds)
    columns = -(-max(1, 1 + (round(seconds * 16_000) - 400) // 160) // 16)
    assert heard.clip.shape == (1, 48)
    assert heard.patches.shape == (1, columns, 8, 48)
    assert heard.clip.isfinite().all()


@pytest.mark.parametrize("layout", ["released", "correct"])
def test_a_longer_position_table_begins_like_the_shorter_one(layout: str) -> None:
    model = AudioMAEModel(AudioMAEConfig(**SMALL, pos_layout=layout))
    short = model.model.positions(80, torch.empty(0)).clone()
    long = model.model.positions(16_000, torch.empty(0))
    assert len(short) == 80 and len(long) == 16_000
    assert torch.equal(long[:80], short)


def test_correct_positions_are_columns_and_rows_and_released_ones_are_not() -> None:
    correct = wrapped_positions(512, 48, period=8)
    torch.testing.assert_close(correct, sincos_positions(64, 8, 48), rtol=0, atol=1e-5)
    released = wrapped_positions(512, 48, period=64)
    assert torch.equal(released[3 * 64 + 17, :24], correct[17 * 8, 24:])  # "column" 17
    assert torch.equal(released[3 * 64 + 17, 24:], correct[3, :24])  # "row" 3


def test_a_model_that_trains_hears_a_part_of_each_clip_and_no_padding() -> None:
    columns = torch.arange(10) < torch.tensor([[10], [6], [1]])
    noise = torch.rand(3, 10), torch.rand(3, 8)
    ids, seen = some_of_a_grid(noise, (0.5, 0.25), columns)
    assert seen is not None
    assert ids.shape == (3, 5 * 6)
    assert seen.sum(dim=1).tolist() == [5 * 6, 3 * 6, 1 * 6]  # never fewer than one column
    for row, last in enumerate((10, 6, 1)):
        heard = ids[row][seen[row]]
        assert len(heard.unique()) == len(heard) and int(heard.max()) < 8 * last
        assert len((heard % 8).unique()) == 6


def test_a_short_clip_is_trained_on_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AudioMAEConfig(**SMALL, num_classes=3, mask_t_prob=0.4, mask_f_prob=0.3)
    model = AudioMAEForAudioClassification(config).train()
    noise = [torch.rand(1, 16), torch.rand(1, 8)]
    x, mask = torch.randn(1, 256, 128), torch.arange(256)[None] < 70
    logits = []
    for frames in (80, 256):
        draws = [noise[0][:, : frames // 16], noise[1]]
        monkeypatch.setattr(torch, "rand", lambda *_, d=draws, **__: d.pop(0))
        logits.append(model(x[:, :frames], mask[:, :frames]).logits)
        assert not draws  # something was left out
    close(logits[0], logits[1], atol=1e-5)


def test_a_part_of_the_grid_is_drawn_anew_in_every_step_of_training() -> None:
    config = AudioMAEConfig(**SMALL, mask_t_prob=0.2, mask_f_prob=0.2)
    model = AudioMAEForAudioClassification(config)
    x = torch.randn(1, 160, 128)
    assert model.train().encode(x).patches.shape == (1, 8 * 6, 48)
    assert not torch.equal(model.encode(x).clip, model.encode(x).clip)
    model.eval()
    assert torch.equal(model.encode(x).clip, model.encode(x).clip)


def test_a_fresh_head_says_next_to_nothing() -> None:
    model = AudioMAEForAudioClassification(AudioMAEConfig(**SMALL, num_classes=5)).eval()
    assert model(torch.randn(2, 64, 128)).logits.abs().max() < 1e-2
    assert 0 < model.model.head.weight.std() < 1e-4
    assert 0.01 < model.model.cls_token.std() < 0.03


def test_a_spectrogram_that_is_no_whole_number_of_patches_is_refused(model: AudioMAEModel) -> None:
    with pytest.raises(ValueError, match="17 frames x 128 bins does not fit"):
        model(torch.zeros(1, 17, 128))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"embed_dim": 100, "num_heads": 12}, "embed_dim=100 is not divisible by num_heads=12"),
        ({"embed_dim": 6, "num_heads": 1}, "embed_dim=6 is not divisible by 4"),
        ({"mel_bins": 100}, "mel_bins=100 is not a multiple of patch_size=16"),
        ({"pooling": "max"}, "pooling=max: expected one of cls, mean"),
        ({"pos_layout": "learnt"}, "pos_layout=learnt: expected one of released, correct"),
        ({"mask_t_prob": 1.0}, "mask_t_prob=1.0: 0 or more and less than 1"),
        ({"mlp_ratio": 1e-5}, "leaves the MLP no width"),
    ],
)
def test_impossible_shapes_are_refused(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AudioMAEConfig(**told)


def test_models_survive_saving_and_the_auto_classes_know_them(tmp_path: Path) -> None:
    config = AudioMAEConfig(**SMALL, pos_layout="correct").for_labels(
        ["a", "b", "c"], several=True, drop_path=0.1, pooling="mean"
    )
    saved = AudioMAEForAudioClassification(config).eval()
    saved.save_pretrained(tmp_path)
    AudioMAEFeatureExtractor(mean=-1.0, std=2.0).save_pretrained(tmp_path)
    x = torch.randn(2, 64, 128)

    again = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert type(again) is AudioMAEForAudioClassification
    assert again.config.pos_layout == "correct" and again.config.id2label[2] == "c"
    assert torch.equal(again(x).logits, saved(x).logits)
    taken_out = AutoModel.from_pretrained(tmp_path).eval()
    assert type(taken_out) is AudioMAEModel
    output, expected = taken_out(x), saved(x, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.hidden_states[-1])
    assert torch.equal(output.pooler_output, expected.hidden_states[-1][:, 1:].mean(dim=1))
    assert AutoFeatureExtractor.from_pretrained(tmp_path).std == 2.0

    ours, features = load_model_and_features(tmp_path)
    assert type(ours) is AudioMAEForAudioClassification
    assert torch.equal(ours(x).logits, saved(x).logits)
    assert type(features) is AudioMAEFeatureExtractor


def test_a_pretrained_encoder_is_loaded_strictly(tmp_path: Path, model: AudioMAEModel) -> None:
    model.save_pretrained(tmp_path)
    again, features = load_model_and_features(tmp_path)
    x = torch.randn(1, 64, 128)
    assert type(again) is AudioMAEModel
    assert torch.equal(again(x).pooler_output, model(x).pooler_output)
    assert features.mean == -4.2677393


def test_a_classifier_takes_all_of_a_pretrained_encoder_but_its_last_norm() -> None:
    pretrained = AudioMAEModel(AudioMAEConfig(**SMALL))
    config = pretrained.config.for_labels(["a", "b"], several=False, drop_path=0.1, pooling="mean")
    model = AudioMAEForAudioClassification(config)
    found = model.model.load_state_dict(pretrained.model.state_dict(), strict=False)
    assert found.unexpected_keys == ["norm.weight", "norm.bias"]
    assert all(name.startswith(("fc_norm.", "head.")) for name in found.missing_keys)
    assert [block.drop_path for block in model.model.blocks] == pytest.approx([0, 0.05, 0.1])


def test_the_pipeline_of_transformers_classifies(tmp_path: Path) -> None:
    AudioMAEForAudioClassification(AudioMAEConfig(**SMALL, num_classes=5)).save_pretrained(tmp_path)
    AudioMAEFeatureExtractor().save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    answers = classify(noise, top_k=3)
    assert [set(answer) for answer in answers] == [{"score", "label"}] * 3


def test_gradient_checkpointing_does_not_change_gradients() -> None:
    x, gradients = torch.randn(2, 32, 128), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = AudioMAEModel(AudioMAEConfig(**SMALL)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        model(x).pooler_output.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, checkpointed)


def test_half_the_digits_give_nearly_the_same(model: AudioMAEModel) -> None:
    x, mask = torch.randn(2, 64, 128), torch.arange(64) < torch.tensor([[64], [40]])
    exact = model(x, mask).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x, mask).pooler_output
    torch.manual_seed(0)
    half = AudioMAEModel(AudioMAEConfig(**SMALL)).eval().to(torch.bfloat16)
    output = half(x, mask).pooler_output
    assert output.dtype == torch.bfloat16
    close(mixed.float(), exact, atol=0.05)
    close(output.float(), exact, atol=0.05)
