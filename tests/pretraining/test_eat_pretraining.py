"""EAT's objective gives the released numbers: activations, targets, losses, gradients, steps."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_batches import noise_batch
from torch import Tensor, nn

from conftest import golden_sets, needs, sidecar, tensors
from eat_audio.masking import Masks, inverse_block_masks
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.checkpoint import DECODER, encoder_names
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.eat import (
    Decoder,
    DecoderSettings,
    EATMethod,
    EATPretraining,
    EATRun,
)
from eat_audio.pretraining.ema import EMASchedule
from eat_audio.pretraining.run import CollapseGuard
from eat_audio.rng import clip_keys
from eat_audio.training.metrics_log import TrainingLog, read_log
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates

IO = golden_sets("pretrain_tiny_*_io.json", "")
STEPS = golden_sets("pretrain_tiny_*_train.json", "")
NOISE = golden_sets("pretrain_tiny_*_noise.json", "")
by_name = {"ids": lambda path: path.stem}


def decoder_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder of a released state under our names."""
    return {
        re.sub(r"^blocks\.(\d+)\.0\.", r"blocks.\1.", name.removeprefix(DECODER)): tensor
        for name, tensor in state.items()
        if name.startswith(DECODER)
    }


def model_config(path: Path) -> dict[str, Any]:
    """The released settings of a recorded run of EAT's; others of that name are skipped."""
    cfg = sidecar(path).get("model_cfg")
    if not isinstance(cfg, dict) or "decoder" not in cfg.get("modalities", {}).get("image", {}):
        pytest.skip(f"{path}: records no model_cfg of EAT")
    return cfg


def objective(path: Path, batch: int) -> EATPretraining:
    """Our objective with the shape and the weights of a recorded set, for its batch size."""
    cfg = model_config(path)
    image, decoder = cfg["modalities"]["image"], cfg["modalities"]["image"]["decoder"]
    config = EATConfig(
        embed_dim=cfg["embed_dim"],
        depth=cfg["depth"],
        num_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
        norm_eps=cfg["norm_eps"],
    )
    method = EATMethod(
        decoder=DecoderSettings(
            layers=decoder["decoder_layers"],
            groups=decoder["decoder_groups"],
            kernel=decoder["decoder_kernel"],
            width=decoder.get("decoder_dim"),
        ),
        masks=cfg["clone_batch"],
        hidden_ratio=image["mask_prob"],
        utterance_weight=cfg["cls_loss"] * batch * cfg["clone_batch"],  # summed, not averaged
        average_layers=cfg["average_top_k_layers"],
        tau=EMASchedule(
            start=cfg["ema_decay"], end=cfg["ema_end_decay"], steps=cfg["ema_anneal_end_step"]
        ),
    )
    model = EATPretraining(config, method, EATFeatureExtractor(), frames=image["target_length"])
    state = tensors(path.with_name(state_name(path)))
    student = {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}
    teacher = {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    model.student.load_state_dict(encoder_names(student))
    model.decoder.load_state_dict(decoder_names(student))
    model.teacher.load_state_dict(
        {k.removeprefix("model."): v for k, v in encoder_names(teacher).items()}
    )
    return model


def state_name(path: Path) -> str:
    return path.stem.rsplit("_", 1)[0] + "_state.safetensors"


def recorded_masks(mask: Tensor, clips: int) -> Masks:
    """The released mask (B*K, N), 1 = hidden, as ours."""
    hidden = mask.bool().view(clips, -1, mask.shape[1])
    count = int((~hidden[0, 0]).sum())
    visible = (~hidden).to(torch.uint8).sort(dim=2, descending=True, stable=True).indices
    return Masks(visible=visible[..., :count], hidden=hidden)


def in_recorded_order(tokens: Tensor, ids_keep: Tensor, masks: Masks) -> Tensor:
    """Our visible tokens (R, V, D), which ascend, in the order the released code kept them."""
    place = torch.searchsorted(masks.visible.flatten(0, 1).contiguous(), ids_keep.long())
    return tokens.gather(1, place[..., None].expand_as(tokens))


def names(model: EATPretraining) -> dict[str, nn.Parameter]:
    """Our parameters under the released names."""
    values = {}
    for name, parameter in model.student.model.named_parameters():
        plain = name.replace("pre_norm", "context_encoder.norm")
        inside = plain.startswith(("extra_tokens", "local_encoder", "context_encoder"))
        values[("modality_encoders.IMAGE." if inside else "") + plain] = parameter
    for name, parameter in model.decoder.named_parameters():
        layer = name.replace(".weight", ".0.weight").replace(".bias", ".0.bias")
        plain = layer if name.startswith("blocks") else name
        values["modality_encoders.IMAGE.decoder." + plain] = parameter
    return values


def close(model: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    torch.testing.assert_close(model, expected, rtol=rtol, atol=atol)


def close_but_for_a_few(model: Tensor, expected: Tensor) -> None:
    """Weights after steps of Adam, which makes much of a gradient that is nearly zero."""
    difference = (model - expected).abs()
    assert difference.mean() < 5e-7 and difference.max() < 1e-4
    assert int((difference > 2e-6).sum()) <= max(1, difference.numel() // 4_096)


@pytest.fixture(params=IO, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[EATPretraining, dict[str, Tensor], Any]:
    path = request.param
    record = tensors(path)
    return objective(path, len(record["source"])), record, sidecar(path)


def test_every_layer_of_the_student_is_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    student = model.student.model
    source = record["source"][:, 0]
    close(student.local_encoder(source), record["student.patch_embed"])
    if "student.patch_plus_pos" in record:
        close(student.embed(source)[:1], record["student.patch_plus_pos"])

    masks = recorded_masks(record["mask"], len(source))
    embedded = student.embed(source).repeat_interleave(masks.per_clip, dim=0)
    order = record["ids_keep"].long()
    kept = embedded.gather(1, order[..., None].expand(-1, -1, embedded.shape[2]))
    cls, patches, states, updates = student(kept)
    if "student.ctx_out" in record:
        close(states[0], record["student.ctx_out"])
    for depth in range(len(updates)):
        if f"student.block{depth}.x" in record:
            close(states[depth + 1], record[f"student.block{depth}.x"])
        if f"student.block{depth}.ffn" in record:
            close(updates[depth], record[f"student.block{depth}.ffn"])
    close(states[-1], record["student.encoder_out"])
    close(cls, record["cls_pred"])


def test_gathering_visible_patches_gives_the_released_tokens(recorded: Any) -> None:
    model, record, _ = recorded
    masks = recorded_masks(record["mask"], len(record["source"]))
    cls, visible = model.encode_visible(record["source"][:, 0], masks)
    close(cls, record["cls_pred"])
    ordered = in_recorded_order(visible, record["ids_keep"], masks)
    close(ordered, record["student.encoder_out"][:, 1:])


def test_targets_are_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    source = record["source"][:, 0]
    _, _, states, updates = model.teacher(model.teacher.embed(source))
    if "teacher.ctx_out" in record:
        close(states[0], record["teacher.ctx_out"])
    for depth, update in enumerate(updates):
        if f"teacher.block{depth}.ffn" in record:
            close(update, record[f"teacher.block{depth}.ffn"])
    targets = model.targets(source)
    close(targets, record["targets"])
    close(targets.mean(dim=1), record["cls_target"])


def test_the_decoder_is_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    source, masks = record["source"][:, 0], recorded_masks(record["mask"], len(record["source"]))
    _, visible = model.encode_visible(source, masks)
    noise = torch.zeros(len(visible), masks.n_patches, visible.shape[2])
    decoder_input = model.decoder_input(visible, masks, noise)
    if "student.encoder_out_dense" in record:
        dense = record["student.encoder_out_dense"]
        close(decoder_input[: len(dense)], dense)
    needs(record, "decoder.out")
    everything = torch.arange(masks.n_patches).expand(len(visible), -1)
    close(
        model.decoder(decoder_input, model.student.grid(source), everything), record["decoder.out"]
    )


def test_losses_and_gradients_are_as_released(recorded: Any) -> None:
    model, record, meta = recorded
    source, masks = record["source"][:, 0], recorded_masks(record["mask"], len(record["source"]))
    noise = torch.zeros(masks.hidden.flatten(0, 1).shape + (model.student.config.embed_dim,))
    losses = model.losses(source, masks, noise=noise)
    losses["loss"].backward()

    recorded_values = meta["scalars"]
    parts = recorded_values["loss_parts_over_sample_size"]
    weight = model.method.utterance_weight
    assert losses["loss"].item() == pytest.approx(
        recorded_values["final_loss(=total_sum/sample_size)"], 1e-4
    )
    assert losses["frame"].item() == pytest.approx(parts["IMAGE_regression"], 1e-4)
    assert weight * losses["utterance"].item() == pytest.approx(parts["cls"], 1e-4)
    assert losses["prediction_std"].item() == pytest.approx(recorded_values["pred_var"], 1e-2)
    assert losses["target_std"].item() == pytest.approx(recorded_values["target_var"], 1e-2)

    checked = 0
    for name, parameter in names(model).items():
        assert parameter.grad is not None, name
        norm = recorded_values["grad_l2_per_param"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, 1e-3), name
        if f"grad.{name}" in record:
            expected = record[f"grad.{name}"]
            limit = 1e-3 * expected.abs().max().item()
            close(parameter.grad, expected, rtol=0, atol=limit)
            checked += 1
    assert checked == sum(key.startswith("grad.") for key in record)


def test_the_teacher_follows_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    with torch.no_grad():
        for parameter in model.student.parameters():
            delta = 0.01 * (torch.arange(parameter.numel()) % 7 - 3)
            parameter.add_(delta.view_as(parameter))
    model.method = model.method.model_copy(
        update={"tau": EMASchedule(start=model.method.tau.start, end=model.method.tau.start)}
    )
    model.after_step(1)
    actual = {
        k.replace("model.", "", 1): v
        for k, v in encoder_names(
            {f"model.{k}": v for k, v in model.teacher.state_dict().items()}
        ).items()
    }
    expected = encoder_names(
        {k.removeprefix("ema_after."): v for k, v in record.items() if k.startswith("ema_after.")}
    )
    if not expected:
        pytest.skip("the recorded set has no ema_after.*")
    for name, tensor in expected.items():
        close(actual[name.removeprefix("model.")], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", NOISE, **by_name)
def test_noise_stands_in_for_hidden_patches_as_released(path: Path) -> None:
    record, recorded_values = tensors(path), sidecar(path)
    io = path.with_name(path.name.replace("_noise", "_io"))
    needs(record, "source", "mask", "mask_noise_dense")
    model = objective(io, len(record["source"]))
    masks = recorded_masks(record["mask"], len(record["source"]))
    losses = model.losses(record["source"][:, 0], masks, noise=record["mask_noise_dense"].clone())
    size = recorded_values["sample_size"]
    frame, cls = recorded_values["loss_sum"]["IMAGE_regression"], recorded_values["loss_sum"]["cls"]
    assert losses["loss"].item() == pytest.approx(recorded_values["final_loss"], 1e-4)
    assert losses["frame"].item() == pytest.approx(frame / size, 1e-4)
    weighted = losses["utterance"].item() * model.method.utterance_weight
    assert weighted == pytest.approx(cls / size, 1e-4)
    close(model.targets(record["source"][:, 0]), record["targets"])


@pytest.mark.parametrize("path", STEPS, **by_name)
def test_four_steps_of_training_end_where_the_released_trainer_ends(path: Path) -> None:
    record, recorded_values = tensors(path), sidecar(path)
    io = tensors(path.with_name(path.name.replace("_train", "_io")))
    model = objective(path.with_name(path.name.replace("_train", "_io")), len(io["source"]))
    rates, adam = recorded_values["lr_schedule"], recorded_values["optimizer"]
    optim = Optim(
        lr=rates["lr"],
        min_lr=rates["min_lr"],
        warmup=rates["warmup_updates"],
        betas=tuple(adam["betas"]),
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
        decay_all=True,
        clip=adam["clip_norm"],
    )
    groups = parameter_groups(model.named_parameters(), optim, layers=model)
    optimizer = adamw(groups, optim)
    masks = recorded_masks(io["mask"], len(io["source"]))
    shape = masks.hidden.flatten(0, 1).shape + (model.student.config.embed_dim,)

    for step, meta in enumerate(recorded_values["steps"]):
        set_rates(optimizer, optim, step, rates["max_update"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(meta["lr_used"], 1e-9)
        losses = model.losses(io["source"][:, 0], masks, noise=torch.zeros(shape))
        assert losses["loss"].item() == pytest.approx(meta["loss_over_sample_size"], 1e-4)
        losses["loss"].backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        assert norm.item() == pytest.approx(meta["grad_norm_before_clip"], 1e-4)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 < len(
            recorded_values["steps"]
        ):  # the released trainer moves the teacher one step later
            model.after_step(step + 1)

    ours_now = names(model)
    for name, expected in record.items():
        kind, _, parameter = name.partition(".")
        if kind == "student_after":
            actual = ours_now[parameter].detach()
            if parameter.endswith("qkv.bias"):  # the key's third has no gradient but rounding
                width = len(expected) // 3
                keep = torch.cat([torch.arange(width), torch.arange(2 * width, 3 * width)])
                actual, expected = actual[keep], expected[keep]
            close_but_for_a_few(actual, expected)
        elif kind == "ema_after":
            plain = next(iter(encoder_names({parameter: expected}))).removeprefix("model.")
            close_but_for_a_few(model.teacher.state_dict()[plain], expected)
        elif kind in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[ours_now[parameter]][kind]
            limit = 1e-3 * expected.abs().max().item()
            close(moment, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("path", IO, **by_name)
def test_defaults_are_those_of_the_released_run(path: Path) -> None:
    """The recorded run is small, but what it did not change is what the base run used."""
    cfg, model = model_config(path), EATMethod()
    image = cfg["modalities"]["image"]
    assert model.hidden_ratio == image["mask_prob"] and model.adjust == image["mask_prob_adjust"]
    assert model.block == (image["mask_length"], image["mask_length"])
    assert (model.tau.start, model.tau.end) == (cfg["ema_decay"], cfg["ema_end_decay"])
    assert model.tau.steps == cfg["ema_anneal_end_step"]
    assert model.utterance_weight == 12 * model.masks * cfg["cls_loss"]


# ---- what the released code does not promise ----


def small(**changes: Any) -> EATPretraining:
    torch.manual_seed(0)
    config = EATConfig(embed_dim=32, depth=2, num_heads=2)
    method = EATMethod(masks=3, decoder=DecoderSettings(layers=2, groups=4), **changes)
    return EATPretraining(config, method, EATFeatureExtractor(), frames=256, seed=1).train()


def test_a_short_clips_losses_do_not_depend_on_its_padding() -> None:
    model = small().eval()
    keys = clip_keys(0, 0, torch.tensor([5]), 3)
    spectrogram = torch.randn(1, 12 * 16, 128)
    columns = torch.tensor([12])
    alone_masks = inverse_block_masks(keys, (12, 8))
    noise = 0.01 * torch.randn(3, 96, 32)
    alone = model.losses(spectrogram, alone_masks, noise=noise.clone())
    for filling in (0.0, 100.0):
        padded = torch.cat([spectrogram, torch.full((1, 4 * 16, 128), filling)], dim=1)
        masks = inverse_block_masks(keys, (16, 8), valid_columns=columns)
        longer = torch.cat([noise, torch.full((3, 32, 32), filling)], dim=1)
        valid = torch.arange(128)[None] < 96
        beside = model.losses(padded, masks, valid=valid, noise=longer)
        for name in ("loss", "frame", "utterance"):
            torch.testing.assert_close(beside[name], alone[name], rtol=1e-5, atol=1e-5)
    reference = torch.cat([model.targets(spectrogram), torch.zeros(1, 32, 32)], dim=1)
    close(model.targets(padded, valid)[:, :96], reference[:, :96], rtol=1e-5, atol=1e-5)


def test_a_batch_of_short_clips_uses_only_the_clips() -> None:
    model = small()
    visible: list[Any] = []
    losses = model.losses
    model.losses = lambda *a, **kw: visible.append(kw["valid"]) or losses(*a, **kw)
    batch = noise_batch([1, 2])
    batch.lengths = torch.tensor([16_000, 41_600])
    generator = torch.Generator().manual_seed(0)
    first = model(batch, generator)["loss"]
    assert visible[0].sum(dim=1).tolist() == [7 * 8, 16 * 8]
    batch.waveforms[0, 16_000:] = 12_345
    second = model(batch, generator.manual_seed(0))["loss"]
    assert torch.equal(first, second)


def test_masks_of_one_clip_differ_under_several_masks() -> None:
    keys = clip_keys(1, 0, torch.tensor([5]), 3)
    hidden = EATMethod().sample_masks(keys, (16, 8), None).hidden[0]
    assert not torch.equal(hidden[0], hidden[1])


def test_an_utterance_loss_that_is_all_of_the_loss_is_reported_once(tmp_path: Path) -> None:
    messages: list[str] = []
    log = TrainingLog(tmp_path, "test", steps=9, clips_per_step=1)
    log.message = messages.append  # type: ignore[method-assign]
    guard = CollapseGuard(small(utterance_weight=2.0), log, after=0)
    messages.clear()  # what the decoder does not reach
    healthy = {"loss": 1.0, "frame": 0.6, "utterance": 0.2, "target_std": 1.0}
    guard.write(1, healthy)
    assert not messages
    for step in (2, 3):
        guard.write(step, healthy | {"utterance": 0.48})
    assert len(messages) == 1 and "utterance loss is 96%" in messages[0]
    assert read_log(tmp_path)[0]["optim/tau"] == EATMethod().tau.decay(1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder": {"groups": 5}}, "decoder.groups=5 does not divide the width 768"),
        ({"average_layers": 13}, "average_layers=13: the encoder has 12 layers"),
        ({"encoder": {"mlp_ratio": 1e-5}}, "leaves the MLP no width"),
        ({"optim": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"seed": 10**18}, "less than or equal"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EATRun(**changes)


# ---- a decoder of another width ----


def released_decoder(decoder: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """What Decoder2d of data2vec 2.0 does to grid tokens (R, N, D), in maps with channels first."""
    layers = [layer for layer in decoder.blocks if isinstance(layer, nn.Conv2d)]
    x = x.transpose(1, 2).unflatten(2, grid)
    for layer in layers:
        mixed = layer(x).movedim(1, 3)
        mixed = nn.functional.layer_norm(mixed, mixed.shape[3:]).movedim(3, 1)
        update = nn.functional.gelu(mixed)
        x = x + update if x.shape[1] == update.shape[1] else update
    return decoder.proj(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("width", [16, 64, None])
def test_a_decoder_of_another_width_is_as_released(width: int | None) -> None:
    torch.manual_seed(0)
    model = Decoder(32, DecoderSettings(layers=3, groups=4, width=width))
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    inside = width or 32
    assert shapes[0] == (inside, 8, 3, 3) and shapes[1] == (inside, inside // 4, 3, 3)
    assert shapes[-1] == (32, inside)
    x, everything = torch.randn(2, 40, 32), torch.arange(40).expand(2, -1)
    close(model(x, (5, 8), everything), released_decoder(model, x, (5, 8)), atol=1e-5)


def test_a_narrower_decoder_learns_the_same_from_the_same_seed() -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        method = EATMethod(masks=2, decoder=DecoderSettings(layers=2, groups=4, width=8))
        config = EATConfig(embed_dim=32, depth=1, num_heads=2)
        model = EATPretraining(config, method, EATFeatureExtractor(), frames=64)
        adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        masks = inverse_block_masks(
            clip_keys(0, torch.zeros(2, dtype=torch.int64), torch.arange(2), 2),
            (4, 8),
            hidden_ratio=0.8,
            block=(2, 2),
            adjust=0.07,
        )
        values = []
        for _ in range(3):
            noise = model.sample_noise(masks, torch.Generator().manual_seed(1))
            loss = model.losses(torch.ones(2, 64, 128), masks, noise=noise)["loss"]
            values.append(loss.item())
            loss.backward()
            adam.step()
            adam.zero_grad()
        return values

    first = losses()
    assert losses() == first and first[-1] < first[0]


def test_the_decoder_has_to_fit_its_groups() -> None:
    with pytest.raises(ValueError, match="groups=16 does not divide the width 100"):
        EATRun(data="x", decoder=DecoderSettings(width=100))
