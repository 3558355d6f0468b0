"""BEATs: the released numbers, any length, no neighbours, Hugging Face."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from conftest import golden_sets, sidecar, tensors
from eat_audio.audio import fbank as logmel
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import (
    BEATsConfig,
    BEATsEncoder,
    BEATsForAudioClassification,
    BEATsModel,
    buckets,
    patches_valid,
)
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor
from eat_audio.models.common.modeling import AudioModel

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
}
PRETRAINED = golden_sets("beats_pretrained*.json")
FINETUNED = golden_sets("beats_finetuned*.json")
VARIANTS = [
    (path, name)
    for path in golden_sets("beats_variants*.json")
    for name in sidecar(path)["configs"]
]
SOUNDS = golden_sets("preprocess*.json")
INITS = golden_sets("base_init_stats*.json")
RELEASED = BEATsFeatureExtractor(released_padding=True)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])
with_and_without_mask = pytest.mark.parametrize("case", ["nomask", "mask"])


def released(settings: dict[str, Any], *states: tuple[dict[str, Tensor], str]) -> AudioModel:
    """The model that recorded tensors, found behind a prefix, are of."""
    state = {
        name.removeprefix(prefix): tensor
        for recorded, prefix in states
        for name, tensor in recorded.items()
        if name.startswith(prefix)
    }
    foreign = beats.from_released({"cfg": settings, "model": state})
    kind = BEATsForAudioClassification if foreign.classifier else BEATsModel
    model = kind(foreign.config)
    model.load_state_dict(foreign.tensors)
    return model.eval()


def encoder(path: Path, **changes: Any) -> BEATsModel:
    model = released(sidecar(path)["config"] | changes, (tensors(path), "sd."))
    assert isinstance(model, BEATsModel)
    return model


def heard(recorded: dict[str, Tensor], case: str) -> tuple[Tensor, Tensor | None]:
    """Spectrograms of recorded waves, whole, and what the recorded padding leaves of them."""
    waves = recorded["wave"]
    whole = torch.full((len(waves),), waves.shape[1])
    values = RELEASED.log_mel(waves, whole).values
    if case == "nomask":
        return values, None
    return values, RELEASED.log_mel(waves, whole - recorded["pad"].sum(dim=1)).frame_mask


# ---- the released numbers ----


@each(PRETRAINED)
@with_and_without_mask
@both_attentions
def test_every_layer_gives_the_released_numbers(path: Path, case: str, attention: str) -> None:
    recorded, model = tensors(path), encoder(path)
    model.set_attn_implementation(attention)
    inside: BEATsEncoder = model.model
    mask = heard(recorded, case)[1]
    real = patches_valid(mask, 16, 8)
    if real is not None:
        assert torch.equal(~real, recorded["mask.outmask"].bool())

    def near(ours: Tensor, name: str) -> None:
        torch.testing.assert_close(ours, recorded[f"{case}.{name}"], rtol=0, atol=2e-5)

    patches = inside.patch_proj(inside.patch_norm(recorded["nomask.patch_embedding"]))
    near(patches, "post_extract_proj")
    out, states = inside(patches, real)
    if real is not None:
        patches = patches * real[..., None]
    near(inside.positions(patches), "pos_conv")
    near(states[0], "encoder_layer_norm")
    for layer, state in enumerate(states[1:]):
        near(state, f"layer{layer}")
    near(out, "out")


def assert_like_from_sound(ours: Tensor, theirs: Tensor) -> None:
    """Near on the whole; where it is quiet, norms enlarge what log-mel in float32 is off by.

    Recorded log-mel is off by 1e-5 from the same formula in float64, and ours by less.
    """
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - theirs).abs().mean() < 2e-6


@each(PRETRAINED)
@with_and_without_mask
def test_sound_gives_the_released_numbers(path: Path, case: str) -> None:
    recorded = tensors(path)
    ours = encoder(path).encode(*heard(recorded, case)).patches
    assert_like_from_sound(ours, recorded[f"{case}.out"])


@each(PRETRAINED)
def test_a_long_clip_gives_the_released_numbers(path: Path) -> None:
    recorded = tensors(path)
    wave = recorded["long.wave"]
    values = BEATsFeatureExtractor().log_mel(wave, torch.tensor([wave.shape[1]])).values
    assert_like_from_sound(encoder(path).encode(values).patches, recorded["long.out"])


@each(FINETUNED)
def test_the_classifier_gives_the_released_probabilities(path: Path) -> None:
    base = path.with_name(path.name.replace("finetuned", "pretrained"))
    recorded, trunk = tensors(path), tensors(base)
    model = released(sidecar(path)["config"], (trunk, "sd."), (recorded, "sd."))
    for case in ("nomask", "mask"):
        ours = model(*heard(trunk, case)).logits.sigmoid()
        torch.testing.assert_close(ours, recorded[f"{case}.probs"], rtol=0, atol=2e-5)
    nothing_padded = torch.ones(len(trunk["wave"]), heard(trunk, "nomask")[0].shape[1])
    ours = model(heard(trunk, "nomask")[0], nothing_padded).logits.sigmoid()
    torch.testing.assert_close(ours, recorded["mask_allfalse.probs"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("path", "variant"), VARIANTS, ids=[f"{path.stem}-{name}" for path, name in VARIANTS]
)
@with_and_without_mask
def test_other_shapes_give_the_released_numbers(path: Path, variant: str, case: str) -> None:
    recorded = tensors(path)
    model = released(sidecar(path)["configs"][variant], (recorded, f"sd.{variant}."))
    ours = model.encode(*heard(recorded, case)).patches
    assert_like_from_sound(ours, recorded[f"{variant}.{case}"])


@each(PRETRAINED)
@pytest.mark.parametrize("decay", ["1.0", "0.6"])
def test_gradients_are_the_released_ones(path: Path, decay: str) -> None:
    recorded = tensors(path)
    model = encoder(path, layer_wise_gradient_decay_ratio=float(decay))
    (model.encode(*heard(recorded, "mask")).patches * recorded["grad.R"]).sum().backward()

    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = beats.scattered(gradients, model.config)
    norms = torch.stack([found[name].norm() for name in sidecar(path)["param_names"]])
    torch.testing.assert_close(norms, recorded[f"grad.norms_r{decay}"], rtol=2e-3, atol=1e-4)
    first = recorded[f"grad.patch_embedding_r{decay}"]
    slack = 2e-3 * first.abs().max().item()
    torch.testing.assert_close(found["patch_embedding.weight"], first, rtol=0, atol=slack)


@each(PRETRAINED)
def test_distances_are_told_apart_as_released(path: Path) -> None:
    recorded, told = tensors(path), sidecar(path)["config"]
    ours = buckets(
        torch.arange(-2_000, 2_001), count=told["num_buckets"], longest=told["max_distance"]
    )
    assert torch.equal(ours, recorded["bucket_of_rel"].long())
    bias = encoder(path).model.relative_bias
    bias(5)  # what is remembered grows
    for query in (0, 40):
        row = recorded[f"pos_bias_row{query}"]
        assert torch.equal(bias(row.shape[1])[0, :, query], row)
    assert torch.equal(bias(5)[0], bias(72)[0, :, 3:8, 3:8])


@each(INITS)
def test_weights_begin_as_released(path: Path) -> None:
    told = sidecar(path)
    with torch.device("meta"):
        model = BEATsModel(BEATsConfig(**told["config"]))
    assert sum(p.numel() for p in model.parameters()) == told["n_params_base"]
    assert model.config.residual_scale == pytest.approx(told["deep_norm_alpha"])
    assert model.config.branch_scale == pytest.approx(told["deep_norm_beta"])

    for unseen in range(1, 11):
        model.model.blocks[unseen] = torch.nn.Identity()
    for module in model.to_empty(device="cpu").modules():
        model._init_weights(module)
    found = beats.scattered(model.state_dict(), model.config)
    for name, ((mean, std, most, shape), _) in told["stats"].items():
        values = found[name].double()
        assert list(values.shape) == shape, name
        if std == 0:
            assert values.min() == values.max() == mean, name
            continue
        # both are samples of one law: five standard errors of the difference of two of them
        slack = 5 * 2**0.5 * std / values.numel() ** 0.5
        assert abs(values.mean().item() - mean) < slack, name
        assert abs(values.std().item() - std) < slack, name
        assert 0.6 < values.abs().max().item() / most < 1.6, name


# ---- the front end ----


@each(SOUNDS)
def test_log_mel_is_that_of_the_released_front_end(path: Path) -> None:
    recorded = tensors(path)
    for number, facts in enumerate(sidecar(path)["waves"]):
        wave, theirs = recorded[f"wave{number}"], recorded[f"fbank{number}"]
        raw = logmel.log_mel(wave, logmel.BEATS)
        assert raw.shape[1] == facts["frames"]
        ours = (raw - 15.41663) / (2 * 6.55582)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)

        whole = facts["frames"] // 16 * 16
        batch = BEATsFeatureExtractor().log_mel(wave, torch.tensor([wave.shape[1]]))
        assert batch.values.shape[1] == batch.frames.item() == max(whole, 16)
        assert torch.equal(batch.values[:, :whole], ours[:, :whole])
    other = BEATsFeatureExtractor(mean=15.29130, std=5.90532)
    batch = other.log_mel(recorded["wave1"], torch.tensor([11_237]))
    expected = recorded["fbank1_mean_std"][:, : batch.frames.item()]
    torch.testing.assert_close(batch.values, expected, rtol=0, atol=2e-5)


@each(SOUNDS)
def test_released_padding_lets_the_released_patches_through(path: Path) -> None:
    recorded = tensors(path)
    for number, case in enumerate(sidecar(path)["mask_cases"]):
        lengths = torch.tensor([case["n"], case["first_padded_sample"]])
        batch = RELEASED.log_mel(torch.zeros(2, case["n"]), lengths)
        released, valid = ~recorded[f"mask{number}_patches"][0].bool(), batch.patch_mask(8)
        if valid is None:
            assert released.all(), case
        else:
            assert torch.equal(valid[1], released), case
            assert torch.equal(valid, patches_valid(batch.frame_mask, 16, 8)), case
    hole = ~recorded["maskhole_frames"][:, :96].bool()
    assert torch.equal(patches_valid(hole, 16, 8), ~recorded["maskhole_patches"].bool())


def test_a_window_and_a_scale_are_all_that_sets_it_apart_from_eats() -> None:
    wave = torch.randn(1, 8_000) * 0.1
    plain = logmel.FrontEnd(scale=32_768, centered=False)
    heard = logmel.log_mel(wave) > logmel.LOG_FLOOR + 1  # not bin 3
    assert heard[..., 4:].all()
    louder = (logmel.log_mel(wave) + 2 * np.log(32_768))[heard]
    torch.testing.assert_close(logmel.log_mel(wave, plain)[heard], louder, rtol=0, atol=1e-4)
    assert (logmel.log_mel(wave, logmel.BEATS)[heard] - louder).abs().max() > 0.01


def test_frames_that_do_not_fill_a_patch_are_dropped() -> None:
    waves = torch.randn(3, 16_000)
    lengths = torch.tensor([16_000, 9_000, 500])  # 98, 54 and 1 frames
    batch = BEATsFeatureExtractor().log_mel(waves, lengths)
    values = batch.values
    assert values.shape == (3, 96, 128) and batch.frames.tolist() == [96, 48, 16]
    assert (values[1, 48:] == 0).all() and (values[2, 1:] == 0).all()
    fixed = BEATsFeatureExtractor().log_mel(waves, lengths, frames=70)
    assert fixed.values.shape == (3, 64, 128) and fixed.frames.tolist() == [64, 48, 16]
    assert torch.equal(fixed.values, values[:, :64])


def test_a_clip_shorter_than_a_patch_is_padded_to_one() -> None:
    for features in (BEATsFeatureExtractor(), RELEASED):
        values = features.log_mel(torch.randn(1, 2_000), torch.tensor([2_000])).values
        assert values.shape == (1, 16, 128)
        assert values[0, :11].abs().min() > 0 and (values[0, 11:] == 0).all()


# ---- promises ----


@pytest.fixture(scope="module")
def model() -> BEATsModel:
    torch.manual_seed(0)
    return BEATsModel(BEATsConfig(**SMALL)).eval()


def hear(model: AudioModel, *seconds: float) -> Any:
    """Features of noise clips, heard together; every clip is the same at every call."""
    waves = [
        np.random.default_rng(round(100 * s)).normal(0, 0.1, round(16_000 * s)).astype(np.float32)
        for s in seconds
    ]
    inputs = BEATsFeatureExtractor()(waves, sampling_rate=16_000)
    with torch.no_grad():
        return model.features(**inputs)


@pytest.mark.parametrize("pooling", ["mean", "linear_softmax"])
@both_attentions
def test_a_clip_sounds_the_same_alone_and_beside_longer_ones(pooling: str, attention: str) -> None:
    torch.manual_seed(0)
    shape = SMALL | {"encoder_layers": 1, "encoder_attention_heads": 2}
    model = BEATsModel(BEATsConfig(**shape, pooling=pooling)).eval()
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    lengths = (0.2, 1.0, 5.0, 10.0, 30.0) if pooling == "mean" else (0.2, 1.0, 10.0)
    together = hear(model, *lengths)
    for row, seconds in enumerate(lengths):
        alone = hear(model, seconds)
        columns = alone.frames.shape[1]
        assert together.valid[row].sum() == columns
        torch.testing.assert_close(together.clip[row], alone.clip[0], rtol=0, atol=1e-5)
        frames = together.frames[row, :columns]
        torch.testing.assert_close(frames, alone.frames[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 1.0, 10.0, 20.0])
def test_clips_of_any_length_are_heard(model: BEATsModel, seconds: float) -> None:
    heard = hear(model, seconds)
    columns = max(1, (1 + (round(seconds * 16_000) - 400) // 160) // 16)
    assert heard.clip.shape == (1, 48)
    assert heard.patches.shape == (1, columns, 8, 48)
    assert heard.clip.isfinite().all()


def test_a_classifier_says_the_same_of_a_clip_alone_and_beside_longer_ones() -> None:
    model = BEATsForAudioClassification(BEATsConfig(**SMALL, num_classes=5)).eval()
    features = BEATsFeatureExtractor()
    waves = [torch.randn(16_000).numpy() * 0.1, torch.randn(80_000).numpy() * 0.1]
    alone = model(**features(waves[0])).logits[0]
    torch.testing.assert_close(model(**features(waves)).logits[0], alone, rtol=0, atol=1e-5)


def test_some_of_the_patches_are_encoded_as_a_sequence_of_their_own(model: BEATsModel) -> None:
    """A selection is heard as if nothing had lain between: that is how BEATs is pre-trained."""
    patches = model.model.embed(torch.randn(2, 64, 128))
    some = torch.tensor([0, 3, 4, 11, 30])
    alone, states = model.model(patches[:, some])
    assert alone.shape == (2, 5, 48) and len(states) == 3
    padded = patches[:, torch.cat([some, torch.arange(5)])]
    real = torch.arange(10).expand(2, 10) < 5
    torch.testing.assert_close(model.model(padded, real)[0][:, :5], alone, rtol=0, atol=1e-5)


def test_training_drops_blocks_by_torchs_dice_and_clip_by_clip() -> None:
    model = BEATsModel(BEATsConfig(**SMALL, encoder_layerdrop=0.5)).train()
    model.config.dropout = model.config.dropout_input = model.config.attention_dropout = 0.0
    for block in model.model.blocks:
        block.dropout = block.attn.dropout = 0.0
    x = torch.randn(1, 32, 128).expand(64, -1, -1)
    torch.manual_seed(1)
    one = model.encode(x)
    torch.manual_seed(1)
    assert torch.equal(model.encode(x).patches, one.patches)
    left_out = (one.states[1] == one.states[0]).flatten(1).all(dim=1)
    assert 10 < left_out.sum() < 54
    one.patches.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert torch.equal(model.encode(x).patches, model.encode(x).patches)


def test_gradients_after_listening_without_them_are_there(model: BEATsModel) -> None:
    fresh = BEATsModel(BEATsConfig(**SMALL)).eval()
    with torch.inference_mode():
        fresh(torch.randn(1, 32, 128))
    fresh(torch.randn(1, 32, 128)).pooler_output.sum().backward()
    assert fresh.model.relative_bias.table.weight.grad is not None


def test_a_spectrogram_that_is_no_whole_number_of_patches_is_refused(model: BEATsModel) -> None:
    with pytest.raises(ValueError, match="17 frames x 128 bins does not fit"):
        model(torch.zeros(1, 17, 128))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder_attention_heads": 5}, "not divisible by encoder_attention_heads=5"),
        ({"conv_pos_groups": 7}, "not divisible by conv_pos_groups=7"),
        ({"pooling": "cls"}, "pooling=cls: expected one of mean, linear_softmax"),
        ({"activation_fn": "glu"}, "activation_fn=glu: expected one of gelu, relu"),
        ({"layer_norm_first": True}, "deep_norm and layer_norm_first exclude each other"),
        ({"relative_position_embedding": False}, "gru_rel_pos needs relative_position_embedding"),
        ({"max_distance": 80}, "num_buckets=320, max_distance=80"),
        ({"input_patch_size": 8}, "input_patch_size=8 does not fit 128 mel bins"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BEATsConfig(**changes)


def test_sizes_are_those_of_the_other_methods() -> None:
    assert BEATsConfig.named("base").to_dict() == BEATsConfig().to_dict()
    tiny = BEATsConfig.named("tiny", pooling="linear_softmax")
    shape = (tiny.hidden_size, tiny.num_hidden_layers, tiny.num_attention_heads, tiny.patch_size)
    assert shape == (192, 6, 3, 16) and tiny.pooling == "linear_softmax"


def test_fine_tuning_drops_blocks_alone() -> None:
    told = BEATsConfig(**SMALL).for_labels(["a", "b"], several=True, drop_path=0.2, pooling="mean")
    dropped = (told.dropout, told.attention_dropout, told.dropout_input, told.predictor_dropout)
    assert dropped == (0, 0, 0, 0) and told.encoder_layerdrop == 0.2
    assert told.problem_type == "multi_label_classification" and told.num_labels == 2
    assert told.encoder_embed_dim == 48


# ---- Hugging Face ----


def test_models_survive_saving_and_the_auto_classes_know_them(tmp_path: Path) -> None:
    saved = BEATsForAudioClassification(BEATsConfig(**SMALL, num_classes=5)).eval()
    saved.save_pretrained(tmp_path)
    BEATsFeatureExtractor(mean=11.72215, std=10.60431).save_pretrained(tmp_path)
    x = torch.randn(2, 64, 128)

    again = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert type(again) is BEATsForAudioClassification
    assert torch.equal(again(x).logits, saved(x).logits)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is BEATsModel
    output, expected = encoder(x), saved(x, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.hidden_states[-1])
    assert AutoFeatureExtractor.from_pretrained(tmp_path).std == 10.60431


def test_a_classifier_may_begin_with_a_saved_encoder(tmp_path: Path, model: BEATsModel) -> None:
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    grown = BEATsForAudioClassification.from_pretrained(tmp_path, num_labels=4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(grown.state_dict()[name], tensor), name
    bound = 48**-0.5
    assert 0.5 * bound < grown.model.head.weight.abs().max() <= bound


def test_gradient_checkpointing_does_not_change_gradients() -> None:
    x, gradients = torch.randn(2, 32, 128), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = BEATsModel(BEATsConfig(**SMALL, layer_wise_gradient_decay_ratio=0.5)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        model(x).pooler_output.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@both_attentions
def test_half_precision_says_nearly_the_same(model: BEATsModel, attention: str) -> None:
    half = BEATsModel(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).set_attn_implementation(attention)
    x, mask = torch.randn(2, 320, 128), torch.ones(2, 320)
    mask[0, 64:] = 0
    for frames in (64, 320):  # few tokens take another way
        exact = model(x[:, :frames], mask[:, :frames]).pooler_output
        rough = half(x[:, :frames].bfloat16(), mask[:, :frames]).pooler_output
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).norm() < 0.05 * exact.norm()
