"""Audio-MAE's objective gives the released numbers, and the same ones in any batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_batches import noise_batch
from torch import Tensor

from conftest import golden_sets, needs, sidecar, tensors
from eat_audio.masking import Masks, random_masks
from eat_audio.models.audiomae.modeling import AudioMAEConfig
from eat_audio.models.common.feature_extraction import AudioMAEFeatureExtractor
from eat_audio.pretraining.audiomae import (
    AudioMAEMethod,
    AudioMAEPretraining,
    DecoderSettings,
    LocalDecoder,
    grid_masks,
    window_offsets,
)
from eat_audio.rng import clip_keys
from eat_audio.training.optim import Optim, parameter_groups

LOCAL = golden_sets("mae_local*.json")
GLOBAL = golden_sets("mae_global*.json")
RANDOM = golden_sets("random_masking*.json")
RUNS = [(path, "ratio80") for path in LOCAL]
RUNS += [(path, run) for path in GLOBAL for run in ("global70", "mask2d")]
each_run = pytest.mark.parametrize(
    ("path", "run"), RUNS, ids=lambda x: x.stem if isinstance(x, Path) else x
)


def local_name(name: str) -> str:
    """A recorded parameter's name here."""
    for expected, actual in {
        "decoder_blocks": "decoder.blocks",
        "meta_mlp.fc1": "position_bias.0",
        "meta_mlp.fc2": "position_bias.3",
        "mask_token": "decoder.mask_token",
        "decoder_": "decoder.",
    }.items():
        name = name.replace(expected, actual)
    return name if name.startswith("decoder.") else f"student.model.{name}"


def objective(path: Path) -> AudioMAEPretraining:
    """Our objective with the shape and the weights of a recorded set."""
    meta = sidecar(path)["config"]
    local = path in LOCAL
    decoder = DecoderSettings(
        attention="local" if local else "global",
        width=meta["decoder_embed_dim"],
        depth=16 if local else meta["decoder_depth"],
        heads=16 if local else meta["decoder_num_heads"],
        mlp_ratio=meta["mlp_ratio"],
    )
    shape = {name: meta[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    config = AudioMAEConfig(**shape, norm_eps=meta["norm_eps"])
    method = AudioMAEMethod(
        decoder=decoder,
        hidden_ratio=meta["mask_ratio"],
        normalized=meta.get("norm_pix_loss", False),
    )
    model = AudioMAEPretraining(config, method, AudioMAEFeatureExtractor(), frames=1_024).eval()
    state = {n.removeprefix("sd."): x for n, x in tensors(path).items() if n.startswith("sd.")}
    model.load_state_dict(
        {local_name(n): x for n, x in state.items() if not n.endswith("pos_embed")}
    )
    return model


def spectrograms(path: Path) -> Tensor:
    """What a set was recorded with; that of the global decoder has the first clip only."""
    if path in LOCAL:
        return tensors(path)["spec_i8"][:, 0].float() / 32
    local = path.with_name(path.name.replace("mae_global", "mae_local"))
    if not local.is_file():
        pytest.skip(f"{path.name}: its clips are in {local.name}, which is not there")
    return spectrograms(local)[:1]


def recorded_masks(mask: Tensor) -> Masks:
    """The released mask (B, N), 1 = hidden, as ours."""
    hidden = mask.bool()[:, None]
    order = (~hidden).to(torch.uint8).sort(dim=2, descending=True, stable=True).indices
    return Masks(visible=order[..., : int((~hidden[0]).sum())], hidden=hidden)


def close(actual: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# ---- the released numbers ----


@each_run
@torch.no_grad()
def test_the_decoder_gives_the_recorded_predictions(path: Path, run: str) -> None:
    method, record = objective(path), tensors(path)
    needs(record, f"{run}.mask")
    source, masks = spectrograms(path), recorded_masks(record[f"{run}.mask"])
    decoder = method.decoder
    cls, visible = method.encode_visible(source, masks)
    decoder_input, grid = decoder.decoder_input(visible, masks), method.student.grid(source)
    states = decoder.states(cls, decoder_input, grid, None)
    # every fourth token was recorded, of the global decoder counted from CLS on
    where = slice(0, None, 4) if path in LOCAL else slice(3, None, 4)
    for index, state in enumerate([decoder_input, *states]):
        name = f"{run}.dec_block{index - 1}_s0" if index else f"{run}.dec_in_s0"
        if name in record:
            close(state[0, where], record[name][-len(state[0, where]) :])

    prediction = decoder.pred(decoder.norm(states[-1]))
    hidden_ids = masks.hidden_ids[:, 0, :, None].expand(-1, -1, prediction.shape[2])
    close(decoder(cls, visible, masks, grid), prediction.gather(1, hidden_ids))
    close(prediction[:, ::8], record[f"{run}.pred_every8"])
    close(prediction.mean(dim=2), record[f"{run}.pred_token_mean"])
    close(prediction.square().mean(dim=2).sqrt(), record[f"{run}.pred_token_rms"])
    error = (prediction - method.targets(source)).square().mean(dim=2)
    torch.testing.assert_close(error, record[f"{run}.loss_per_token"], rtol=1e-5, atol=2e-5)


@each_run
@torch.no_grad()
def test_losses_are_the_recorded_ones(path: Path, run: str) -> None:
    method, record = objective(path), tensors(path)
    needs(record, f"{run}.mask")
    source, masks = spectrograms(path), recorded_masks(record[f"{run}.mask"])
    trained_on = "loss_normpix" if method.method.normalized else "loss_rawpix"
    assert record[f"{run}.{trained_on}"] == record[f"{run}.loss"]
    for normalized, name in ((True, "loss_normpix"), (False, "loss_rawpix")):
        method.method = method.method.model_copy(update={"normalized": normalized})
        loss = method.losses(source, masks)["loss"].item()
        assert loss == pytest.approx(record[f"{run}.{name}"].item(), abs=1e-6)


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_gradients_are_the_recorded_ones(path: Path) -> None:
    method, record = objective(path), tensors(path)
    masks = recorded_masks(record["ratio80.mask"])
    method.losses(spectrograms(path), masks)["loss"].backward()
    parameters = dict(method.named_parameters())
    for name, norm in zip(sidecar(path)["param_names"], record["grad.norms"], strict=True):
        gradient = parameters[local_name(name)].grad
        assert gradient is not None, name
        assert gradient.norm().item() == pytest.approx(norm.item(), rel=2e-3, abs=1e-4), name
    for name, actual in {
        "cls_token": "student.model.cls_token",
        "patch_embed": "student.model.patch_embed.proj.weight",
        "mask_token": "decoder.mask_token",
        "tau1": "decoder.blocks.1.attn.tau",
        "meta1_fc1": "decoder.blocks.1.attn.position_bias.0.weight",
    }.items():
        gradient, expected = parameters[actual].grad, record[f"grad.{name}"]
        assert gradient is not None
        close(gradient, expected, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_windows_are_the_recorded_ones(path: Path) -> None:
    method, record = objective(path), tensors(path)
    decoder, grid = method.decoder, method.student.grid(spectrograms(path))
    assert isinstance(decoder, LocalDecoder)
    offsets = window_offsets(decoder.window, torch.empty(0))
    close(offsets.flatten(0, 1), record["swin.rel_coords_log"])
    bias = decoder.blocks[0].attn.position_bias(offsets).permute(2, 0, 1)
    close(bias[None], record["swin.rel_bias_block0"])
    attended = decoder._mask(torch.empty(1, *grid, 1), decoder.shift, None)
    assert attended is not None
    assert torch.equal(attended[0, :, 0], record["swin.attn_mask_block1"] == 0)


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_what_decays_is_what_was_recorded(path: Path) -> None:
    whole = objective(path)
    groups = parameter_groups(whole.named_parameters(), Optim(weight_decay=1e-4), layers=whole)
    actual = {name: group["weight_decay"] for group in groups for name in group["names"]}
    for group in sidecar(path)["adamw_groups"]:
        for name in group["names"]:
            assert actual.pop(local_name(name)) == group["weight_decay"], name
    assert not actual


@pytest.mark.parametrize("path", RANDOM, ids=lambda path: path.stem)
def test_as_many_patches_stay_visible_as_recorded(path: Path) -> None:
    record = tensors(path)
    for name, mask in record.items():
        if name.endswith(".mask"):
            ratio = int(name.removeprefix("rm")[:2]) / 100
            keys = clip_keys(0, 0, torch.arange(len(mask)), 1)
            masks = random_masks(keys, (mask.shape[1], 1), hidden_ratio=ratio)
            assert masks.visible.shape[2] == record[name.replace("mask", "x_masked")].shape[1]
            assert torch.equal(masks.hidden.sum(dim=2)[:, 0], mask.long().sum(dim=1))


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_defaults_are_those_of_the_published_run(path: Path) -> None:
    meta, ours = sidecar(path)["config"], AudioMAEMethod()
    assert ours.hidden_ratio == meta["mask_ratio"] and ours.normalized is meta["norm_pix_loss"]
    assert list(ours.decoder.window) == meta["window"] and ours.decoder.shift == (2, 0)
    assert (ours.decoder.depth, ours.decoder.heads) == (16, 16)


# ---- what the released code does not promise ----


def small(attention: str = "local", **changes: Any) -> AudioMAEPretraining:
    torch.manual_seed(0)
    config = AudioMAEConfig(embed_dim=32, depth=2, num_heads=2)
    decoder = DecoderSettings(attention=attention, width=32, depth=4, heads=4)
    method = AudioMAEMethod(decoder=decoder, **changes)
    return AudioMAEPretraining(config, method, AudioMAEFeatureExtractor(), frames=256, seed=1)


@pytest.mark.parametrize("columns", [1, 3, 6, 12, 13])
@pytest.mark.parametrize("masking", ["patches", "grid"])
@pytest.mark.parametrize("attention", ["local", "global"])
@torch.no_grad()
def test_a_clips_loss_does_not_depend_on_its_padding(
    attention: str, masking: str, columns: int
) -> None:
    method = small(attention, masking=masking).eval()
    keys, valid_columns = clip_keys(0, 0, torch.tensor([5]), 1), torch.tensor([columns])
    spectrogram = torch.randn(1, columns * 16, 128)
    losses = []
    for longest, filling in ((columns, 0.0), (16, 0.0), (16, 100.0), (23, -7.0)):
        padding = torch.full((1, (longest - columns) * 16, 128), filling)
        masks = method.method.sample_masks(keys, (longest, 8), valid_columns)
        assert (
            masks.hidden.sum() + (1 if masks.visible_valid is None else masks.visible_valid).sum()
            == columns * 8
        )
        padded = torch.cat([spectrogram, padding], dim=1)
        valid = torch.arange(longest * 8)[None] < columns * 8
        losses.append(method.losses(padded, masks, valid=valid)["loss"])
    assert losses[0] > 0
    for other in losses[1:]:
        close(other, losses[0], atol=1e-5)


def test_grid_masks_hide_whole_columns_and_rows_and_no_padding() -> None:
    keys = clip_keys(0, 0, torch.arange(4), 1)
    last = torch.tensor([16, 10, 3, 1])
    masks = grid_masks(keys, (16, 8), hidden=(0.5, 0.25), valid_columns=last)
    assert masks.visible_valid is not None
    for row, columns in enumerate(last.tolist()):
        visible = masks.visible[row, 0][masks.visible_valid[row, 0]]
        kept = max(columns // 2, 1)
        assert len(visible) == kept * 6 and int(visible.max()) < columns * 8
        assert len((visible // 8).unique()) == kept and len((visible % 8).unique()) == 6
        assert masks.hidden[row].sum() == columns * 8 - len(visible)
        assert not masks.hidden[row, 0, visible].any()
        slots = masks.visible[row, 0]
        assert len(slots.unique()) == len(slots)
        assert (slots[~masks.visible_valid[row, 0]] >= columns * 8).all()
        whole = grid_masks(keys[row : row + 1], (columns, 8), hidden=(0.5, 0.25))
        assert torch.equal(whole.visible[0, 0], visible)


@pytest.mark.parametrize("attention", ["local", "global"])
def test_a_few_steps_lower_the_loss(attention: str) -> None:
    method = small(attention).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    batch, losses = noise_batch([1, 2]), []
    for step in range(8):
        loss = method(batch, torch.Generator())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step + 1)
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_weights_begin_as_released() -> None:
    decoder = small().decoder
    assert 0.01 < decoder.mask_token.std() < 0.03
    for name, parameter in decoder.named_parameters():
        if name.endswith("tau"):
            assert parameter.eq(1).all()
        elif "norm" not in name and name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif parameter.ndim == 2:  # xavier: uniform, of variance 2 / (inside + outside)
            wide = (2 / sum(parameter.shape)) ** 0.5
            assert 0.8 < parameter.std().item() / wide < 1.2, name
            assert parameter.abs().max() <= 3**0.5 * wide


def test_the_bias_of_positions_is_thinned_out_while_training_only() -> None:
    method = small().train()
    masks = method.method.sample_masks(clip_keys(0, 0, torch.tensor([1]), 1), (16, 8), None)
    spectrogram = torch.randn(1, 256, 128)
    first, second = (method.losses(spectrogram, masks)["loss"] for _ in range(2))
    assert first != second
    first, second = (method.eval().losses(spectrogram, masks)["loss"] for _ in range(2))
    assert first == second


@torch.no_grad()
def test_half_the_digits_give_nearly_the_same_loss() -> None:
    for attention in ("local", "global"):
        method = small(attention).eval()
        batch = noise_batch([1, 2])
        exact = method(batch, torch.Generator())["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = method(batch, torch.Generator())["loss"]
        assert mixed.dtype == torch.float32
        assert mixed.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 100}, "decoder.width=100 is not divisible by 4 and decoder.heads=16"),
        ({"shift": (4, 0)}, "expected at least 0 and less than decoder.window"),
    ],
)
def test_decoders_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DecoderSettings(**changes)
