"""SSLAM's objective gives the released numbers: mixtures, targets, losses, gradients, steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_eat_pretraining import (
    close,
    close_but_for_a_few,
    decoder_names,
    in_recorded_order,
    names,
    recorded_masks,
)
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.checkpoint import encoder_names
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.eat import DecoderSettings
from eat_audio.pretraining.sslam import Mixture, SSLAMMethod, SSLAMPretraining, averaged
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates

IO = golden_sets("pretrain_tiny_*_io.json", "SSLAM")
STEPS = golden_sets("pretrain_tiny_*_train.json", "SSLAM")
NOISE = golden_sets("pretrain_tiny_*_noise.json", "SSLAM")
FEATURES = golden_sets("features_tiny_*.json", "SSLAM")
by_name = {"ids": lambda path: path.stem}


def objective(path: Path) -> SSLAMPretraining:
    """Our objective with the shape and the weights of a recorded set."""
    cfg = sidecar(path)
    decoder, weight = cfg["decoder"], 2 * cfg["B"] * cfg["clone_batch"]  # summed, not averaged
    config = EATConfig(
        embed_dim=cfg["embed_dim"],
        depth=cfg["depth"],
        num_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
        norm_eps=cfg["norm_eps"],
    )
    method = SSLAMMethod(
        decoder=DecoderSettings(
            layers=decoder["decoder_layers"],
            groups=decoder["decoder_groups"],
            kernel=decoder["decoder_kernel"],
            width=decoder["decoder_dim"],
        ),
        masks=cfg["clone_batch"],
        utterance_weight=cfg["cls_loss"] * weight,
        average_layers=cfg["average_top_k_layers"],
        utterance_layers=cfg["cls_target_layers"],
    )
    model = SSLAMPretraining(config, method, EATFeatureExtractor(), frames=cfg["T"])
    state = tensors(path.with_name(path.name.rsplit("_", 1)[0] + "_state.json"))
    student = {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}
    teacher = {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    model.student.load_state_dict(encoder_names(student))
    model.decoder.load_state_dict(decoder_names(student))
    named = encoder_names(teacher).items()
    model.teacher.load_state_dict({k.removeprefix("model."): v for k, v in named})
    return model


def mixture_of(path: Path, windows: Tensor) -> Mixture:
    """The released mixture: one pair of windows, and the clip before each clip of the batch."""
    cfg = sidecar(path)
    columns, width = cfg["T"] // 16, cfg["window_columns"]
    mixed = torch.ones(cfg["B"], columns, dtype=torch.bool)
    for first in windows.tolist():
        mixed[:, first : first + width] = False
    guests = (torch.arange(cfg["B"]) - 1) % cfg["B"]
    return Mixture(guests, mixed.repeat_interleave(16, dim=1), columns - 2 * width)


def io_of(path: Path, kind: str) -> Path:
    """The recorded inputs that a set of another kind belongs to."""
    return path.with_name(path.name.replace(f"_{kind}", "_io"))


def losses_of(model: SSLAMPretraining, path: Path, step: int, noise: Tensor | None = None) -> Any:
    """Our losses of the recorded inputs with the windows of a step."""
    record = tensors(path)
    masks = recorded_masks(torch.cat([record["mask"], record["mask"]]), 2 * sidecar(path)["B"])
    if noise is None:
        noise = torch.zeros(masks.hidden.flatten(0, 1).shape + (model.student.config.embed_dim,))
    mixture = mixture_of(path, record["windows"][step])
    return model.losses(record["source"][:, 0], masks, noise=noise, mixture=mixture)


@pytest.fixture(params=IO, ids=lambda path: path.stem)
def recorded(
    request: pytest.FixtureRequest,
) -> tuple[SSLAMPretraining, dict[str, Tensor], Mixture, Path]:
    record = tensors(request.param)
    mixture = mixture_of(request.param, record["windows"][0])
    return objective(request.param), record, mixture, request.param


def test_mixtures_are_as_released(recorded: Any) -> None:
    _, record, mixture, _ = recorded
    mixed = mixture.mix(record["source"][:, 0])
    assert torch.equal(mixed, record["mixed_source"][:, 0])
    assert not torch.equal(mixed, record["source"][:, 0])


def test_the_student_encodes_clips_and_mixtures_as_released(recorded: Any) -> None:
    model, record, mixture, _ = recorded
    source = record["source"][:, 0]
    masks = recorded_masks(torch.cat([record["mask"], record["mask"]]), 2 * len(source))
    both = torch.cat([source, mixture.mix(source)])
    cls, visible = model.encode_visible(both, masks)
    close(cls, record["student.encoder_out"][:, 0])
    ordered = in_recorded_order(visible, record["ids_keep"], masks)
    close(ordered, record["student.encoder_out"][:, 1:])

    rows = len(visible) // 2
    x = model.decoder_input(visible, masks, torch.zeros(2 * rows, masks.n_patches, cls.shape[1]))
    close(x[[0, rows]], record["decoder.in"])
    everything = torch.arange(masks.n_patches).expand(4, -1)
    chosen = x[[0, 1, rows, rows + 1]]
    close(model.decoder(chosen, model.student.grid(source), everything), record["decoder.out"])


def test_the_teacher_encodes_clips_mixtures_and_the_mixed_patches_of_guests_as_released(
    recorded: Any,
) -> None:
    model, record, mixture, _ = recorded
    source = record["source"][:, 0]
    count = len(source)
    both = torch.cat([source, mixture.mix(source)])
    patches = model.teacher.embed(both)
    _, _, states, updates = model.teacher(patches)
    close(states[0][[0, count]], record["teacher.ctx_out"])
    for depth, update in enumerate(updates):
        close(update[[0, count]], record[f"teacher.block{depth}.ffn"])
    ids, mixed = mixture.patches(8)
    assert mixed.all()
    _, _, states, updates = model.teacher(patches[:count][:, ids[0]])
    close(states[0][:1], record["teacher.dropped.input"])
    for depth, update in enumerate(updates):
        close(update[:1], record[f"teacher.dropped.block{depth}.ffn"])
    close(averaged(updates, model.method.average_layers, None), record["targets.partner"])


def test_targets_are_as_released(recorded: Any) -> None:
    model, record, mixture, _ = recorded
    source = record["source"][:, 0]
    both = torch.cat([source, mixture.mix(source)])
    y, u, r = model.all_targets(both, None, mixture)
    close(y, record["targets.frame"])
    close(u, record["targets.cls"])
    close(r, record["targets.retention"])
    close(model.targets(source), record["targets.own"])


def test_losses_and_gradients_are_as_released(recorded: Any) -> None:
    model, record, _, path = recorded
    losses = losses_of(model, path, 0)
    losses["loss"].backward()
    values, means = sidecar(path)["scalars"], list(sidecar(path)["scalars"]["means"].values())
    total = values["final_loss(=total_sum/sample_size)"]
    assert losses["loss"].item() == pytest.approx(total, 1e-5)
    parts = [losses[name].item() for name in ("frame", "retention", "utterance")]
    assert parts == pytest.approx(means, 1e-5)
    weighted = model.method.utterance_weight * losses["utterance"].item()
    released = values["loss_parts_over_sample_size"]
    assert weighted == pytest.approx(released["eat_cls_loss"], 1e-5)
    assert losses["prediction_std"].item() == pytest.approx(values["pred_var"], 1e-2)
    assert losses["target_std"].item() == pytest.approx(values["target_var"], 1e-2)

    checked = 0
    for name, parameter in names(model).items():
        assert parameter.grad is not None, name
        norm = values["grad_l2_per_param"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, 1e-3), name
        if f"grad.{name}" in record:
            expected = record[f"grad.{name}"]
            close(parameter.grad, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
            checked += 1
    assert checked == sum(key.startswith("grad.") for key in record) > 0


@pytest.mark.parametrize("path", NOISE, **by_name)
def test_noise_stands_in_for_hidden_patches_as_released(path: Path) -> None:
    record, values = tensors(path), sidecar(path)["scalars"]
    io = io_of(path, "noise")
    model, mask = objective(io), tensors(io)["mask"].bool()
    noise = torch.zeros(2, *mask.shape, model.student.config.embed_dim)
    noise[torch.stack([mask, mask])] = record["mask_noise_hidden"].float()
    losses = losses_of(model, io, 1, noise.flatten(0, 1))
    total = values["final_loss(=total_sum/sample_size)"]
    assert losses["loss"].item() == pytest.approx(total, 1e-5)
    parts = values["loss_parts_over_sample_size"]
    assert losses["frame"].item() == pytest.approx(parts["eat_patch_loss"], 1e-5)
    assert losses["retention"].item() == pytest.approx(parts["mix_patch_loss"], 1e-5)


@pytest.mark.parametrize("path", STEPS, **by_name)
def test_four_steps_of_training_end_where_the_released_code_ends(path: Path) -> None:
    record, meta = tensors(path), sidecar(path)
    io = io_of(path, "train")
    model, windows = objective(io), tensors(io)["windows"]
    rates, adam = meta["lr_schedule"], meta["optimizer"]
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
    optimizer = adamw(parameter_groups(model.named_parameters(), optim, layers=model), optim)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, values in enumerate(meta["steps"]):
        assert windows[step].tolist() == values["windows"]
        set_rates(optimizer, optim, step, rates["max_update"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(values["lr_used"], 1e-9)
        losses = losses_of(model, io, step)
        assert losses["loss"].item() == pytest.approx(values["loss_over_sample_size"], 1e-5)
        assert losses["retention"].item() == pytest.approx(values["mix_patch_loss"], 1e-5)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        assert norm.item() == pytest.approx(values["grad_norm_before_clip"], 1e-4)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 < len(meta["steps"]):  # the released teacher follows one step later
            model.after_step(step + 1)

    ours, teacher = names(model), model.teacher.state_dict()
    for name, expected in record.items():
        kind, _, parameter = name.partition(".")
        if kind == "student_after":
            actual = ours[parameter].detach()
        else:
            actual = teacher[
                next(iter(encoder_names({parameter: expected}))).removeprefix("model.")
            ]
        if parameter.endswith("qkv.bias"):  # the key's third has no gradient but rounding
            actual, expected = (x.unflatten(0, (3, -1))[[0, 2]] for x in (actual, expected))
        close_but_for_a_few(actual, expected)


@pytest.mark.parametrize("path", FEATURES, **by_name)
def test_features_of_the_student_are_as_released(path: Path) -> None:
    record, weights = tensors(path), sidecar(path)["weights"]
    io = path.with_name(weights.replace("_state", "_io.json"))
    student, source = objective(io).student.model, tensors(io)["source"][:, 0]
    for spectrogram, name in ((source, "features"), (source[:, :-32], "features_short")):
        _, _, states, _ = student(student.embed(spectrogram))
        close(states[-1], record[name], atol=1e-5)
