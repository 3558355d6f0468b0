"""BAT's objective gives the released numbers: targets, decoder, losses, gradients, steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import golden_sets, sidecar, tensors
from eat_audio.masking import Masks
from eat_audio.models.bat.checkpoint import released_name
from eat_audio.models.bat.modeling import BATConfig, renamed
from eat_audio.models.common.feature_extraction import BATFeatureExtractor
from eat_audio.pretraining.bat import BATMethod, BATPretraining, BATRun, DecoderSettings, PromptEMA
from eat_audio.pretraining.ema import update_ema
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates

IO = golden_sets("pretrain_tiny_*_io.json", "BAT")
STEPS = golden_sets("pretrain_tiny_*_train.json", "BAT")


def objective(path: Path, **settings: Any) -> BATPretraining:
    """Our objective with the shape and the weights of a recorded set."""
    meta = sidecar(path)
    decoder = meta["decoder"]
    config = BATConfig(
        embed_dim=meta["dim"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        mlp_ratio=meta["mlp_ratio"],
        norm_eps=meta["norm_eps"],
        pos_length=meta["grid_time_x_freq"][0],
    )
    method = BATMethod(
        decoder=DecoderSettings(
            depth=decoder["depth"],
            width=decoder["dim"],
            heads=decoder["num_heads"],
            mlp_ratio=decoder["mlp_ratio"],
        ),
        masks=meta["num_views"],
        **settings,
    )
    model = BATPretraining(config, method, BATFeatureExtractor(), frames=meta["T"])
    state = tensors(path.with_name(path.stem.rsplit("_", 1)[0] + "_state"))
    student, decoder, teacher = (
        {n.removeprefix(part): x for n, x in state.items() if n.startswith(part)}
        for part in ("student.encoder.", "student.decoder.", "teacher.encoder.")
    )
    model.student.load_state_dict(renamed(student))
    model.decoder.load_state_dict(decoder)
    model.teacher.load_state_dict(
        {name.removeprefix("model."): x for name, x in renamed(teacher).items()}
    )
    return model


def recorded_masks(ids_keep: Tensor, clips: int, patches: int) -> Masks:
    visible = ids_keep.long().view(clips, -1, ids_keep.shape[1])
    hidden = torch.ones(*visible.shape[:2], patches, dtype=torch.bool).scatter(2, visible, False)
    return Masks(visible, hidden)


def names(model: BATPretraining) -> dict[str, nn.Parameter]:
    """Our parameters that are trained, under the released names."""
    values = {f"encoder.{released_name(n)}": p for n, p in model.student.named_parameters()}
    return values | {f"decoder.{name}": p for name, p in model.decoder.named_parameters()}


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.fixture(params=IO, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[BATPretraining, dict[str, Tensor], Any]:
    return objective(request.param), tensors(request.param), sidecar(request.param)


def source_and_masks(record: dict[str, Tensor]) -> tuple[Tensor, Masks]:
    source = record["source"][:, 0]
    return source, recorded_masks(record["ids_keep"], len(source), record["mask"].shape[1])


@torch.no_grad()
def test_the_student_and_its_gates_are_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    source, masks = source_and_masks(record)
    student, outputs = model.student.model, {}
    attention = student.blocks[0].attn
    attention.register_forward_hook(lambda _, x, y: outputs.update(attn=y))
    attention.gate.register_forward_hook(lambda _, x, y: outputs.update(gate=y.sigmoid()))
    student.pre_norm.register_forward_hook(lambda _, x, y: outputs.update(ctx=y))
    cls, visible = model.encode_visible(source, masks)
    close(outputs["ctx"][:2], record["student.ctx_out"])
    close(outputs["attn"][:2], record["student.block0.attn"])
    close(outputs["gate"][:2], record["student.block0.gate"])
    close(cls, record["student.cls"])
    close(visible, record["student.encoder_out"])


@torch.no_grad()
def test_targets_are_of_whole_blocks_as_released(recorded: Any) -> None:
    model, record, meta = recorded
    source = record["source"][:, 0]
    _, _, states, _ = model.teacher(model.teacher.embed(source))
    for block in range(meta["depth"]):
        close(states[block + 1][:1, 1:], record[f"teacher.block{block}.out"])
    close(model.targets(source), record["targets"])


@torch.no_grad()
def test_the_decoder_is_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    source, masks = source_and_masks(record)
    _, visible = model.encode_visible(source, masks)
    close(model.decoder.decoder_input(visible, masks)[:2], record["decoder.in"])
    rows = len(record["decoder.out"])
    hidden = masks.hidden.flatten(0, 1)[:rows]
    prediction = model.decoder(visible, masks)[:rows]
    close(prediction.flatten(0, 1), record["decoder.out"][hidden])


def test_losses_and_gradients_are_as_released(recorded: Any) -> None:
    model, record, meta = recorded
    losses = model.losses(*source_and_masks(record))
    losses["loss"].backward()
    scalars = meta["scalars"]
    assert losses["utterance"].item() == pytest.approx(scalars["global_loss"], 1e-5)
    assert losses["frame"].item() == pytest.approx(scalars["local_loss"], 1e-5)
    assert losses["loss"].item() == pytest.approx(scalars["loss"], 1e-5)
    parameters = names(model)
    assert parameters.keys() == scalars["grad_l2_per_param"].keys()
    norms = {name: p.grad.norm().item() for name, p in parameters.items() if p.grad is not None}
    assert norms == {n: pytest.approx(x, 1e-3) for n, x in scalars["grad_l2_per_param"].items()}
    expected = {n.removeprefix("grad."): x for n, x in record.items() if n.startswith("grad.")}
    assert expected
    for name, gradient in expected.items():
        actual = parameters[name].grad
        assert actual is not None
        actual = actual[:, : gradient.shape[1]] if name == "decoder.pos_embed" else actual
        close(actual, gradient, rtol=0, atol=1e-3 * gradient.abs().max().item())


def test_the_teacher_follows_as_released(recorded: Any) -> None:
    model, record, _ = recorded
    update_ema(model.teacher.parameters(), model.student.model.parameters(), 0.99)
    expected = {
        n.removeprefix("ema_after.encoder."): x
        for n, x in record.items()
        if n.startswith("ema_after.")
    }
    assert expected
    actual = {released_name(name): x for name, x in model.teacher.state_dict().items()}
    for name, tensor in expected.items():
        close(actual[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.stem)
def test_four_steps_of_training_end_where_the_released_trainer_ends(path: Path) -> None:
    record, meta = tensors(path), sidecar(path)
    io = path.with_name(path.name.replace("_train", "_io"))
    rates, ema, adam = meta["lr_schedule"], meta["ema"], meta["optimizer"]
    tau = PromptEMA(start=ema["start"], end=ema["end"], steps=ema["steps"])
    model = objective(io, tau=tau)
    optim = Optim(
        lr=rates["lr"],
        min_lr=rates["min_lr"],
        warmup=rates["warmup"],
        schedule="cosine_to_zero",
        betas=tuple(adam["betas"]),
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
        decay_all=True,
    )
    groups = parameter_groups(model.named_parameters(), optim, layers=model)
    optimizer = adamw(groups, optim)
    source = tensors(io)["source"][:, 0]
    patches = tensors(io)["mask"].shape[1]
    for step, values in enumerate(meta["steps"]):
        set_rates(optimizer, optim, step, rates["total"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(values["lr_used"], 1e-9)
        for group in optimizer.param_groups:
            group["eps"] = adam["eps"]  # theirs is torch's, not fairseq's as in all our runs
        masks = recorded_masks(record["ids_keep"][step], len(source), patches)
        losses = model.losses(source, masks)
        assert losses["utterance"].item() == pytest.approx(values["global_loss"], 1e-4)
        assert losses["frame"].item() == pytest.approx(values["local_loss"], 1e-4)
        losses["loss"].backward()
        if values["clip_norm"]:
            nn.utils.clip_grad_norm_(names(model).values(), values["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step + 1)

    ours = {f"student_after.{name}": p.detach() for name, p in names(model).items()}
    teacher = model.teacher.state_dict().items()
    ours |= {f"teacher_after.encoder.{released_name(name)}": x for name, x in teacher}
    for name, (total, norm) in meta["sum_and_l2_after"].items():
        if name.endswith("qkv.bias"):  # the key's third has no gradient but rounding
            continue
        double = ours[name].double()
        assert double.norm().item() == pytest.approx(norm, rel=1e-5), name
        assert double.sum().item() == pytest.approx(total, abs=1e-5 * double.abs().sum().item())
    checked = [name for name in record if name in ours and not name.endswith("qkv.bias")]
    assert checked
    for name in checked:
        actual = ours[name]
        actual = actual[:, : record[name].shape[1]] if name.endswith("pos_embed") else actual
        torch.testing.assert_close(actual, record[name], rtol=0, atol=5e-6, msg=name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder": {"heads": 7}}, "decoder: embed_dim=768 is not divisible by num_heads=7"),
        ({"clips": {"seconds": 20}}, "clips.seconds=20: a BAT encoder takes at most 10.24 s"),
        ({"positions": "learned"}, "positions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BATRun(**changes)
