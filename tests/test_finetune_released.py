"""Fine-tuning computes what the released trainer has computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.data import transforms as augment
from eat_audio.models.common.losses import classification_loss
from eat_audio.models.eat.checkpoint import encoder_names
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates

SETS = golden_sets("finetune_tiny_*.json")


each = pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)


LOSSES = {"audioset": "bce_per_label", "esc50": "cross_entropy", "spcv2": "bce_per_clip"}


POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "linear_softmax"}


def classifier(path: Path, task: str, mode: str = "CLS_TOKEN") -> EATForAudioClassification:
    """Our classifier with the recorded weights of one task."""
    state_path = path.with_name(path.name.replace("finetune_", "pretrain_")).with_name(
        path.stem.replace("finetune_", "pretrain_") + "_state.safetensors"
    )
    changes = sidecar(state_path)["model_cfg"]
    recorded = tensors(path)
    model = EATForAudioClassification(
        EATConfig(
            embed_dim=changes["embed_dim"],
            depth=changes["depth"],
            num_heads=changes["num_heads"],
            mlp_ratio=changes["mlp_ratio"],
            norm_eps=changes["norm_eps"],
            num_classes=len(recorded[f"{task}.head.bias"]),
            pooling=POOLINGS[mode],
            head_norm_eps=1e-6,
        )
    )
    student = {
        key.removeprefix("student."): value
        for key, value in tensors(state_path).items()
        if key.startswith("student.")
    }
    head = {
        key.removeprefix(f"{task}."): value
        for key, value in recorded.items()
        if key.startswith((f"{task}.head.", f"{task}.fc_norm."))
    }
    model.load_state_dict(encoder_names(student) | encoder_names(head))
    return model.eval()


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


def our_name(name: str) -> str:
    return next(iter(encoder_names({name: torch.empty(0)})))


@each
def test_features_and_logits_are_as_released(path: Path) -> None:
    recorded = tensors(path)
    images = recorded["imgs"][:, 0]
    for task in LOSSES:
        for mode in POOLINGS:
            model = classifier(path, task, mode)
            output = model(images, output_hidden_states=True)
            close(output.logits, recorded[f"{task}.eval_logits.{mode}"])
        close(output.hidden_states[-1], recorded["features_all"])


@each
def test_a_shorter_clip_gives_the_released_logits(path: Path) -> None:
    recorded = tensors(path)
    model = classifier(path, "audioset")
    close(
        model(recorded["half_length.imgs"][:, 0]).logits,
        recorded["half_length.eval_logits.CLS_TOKEN"],
    )


@each
def test_losses_and_gradients_are_as_released(path: Path) -> None:
    recorded, record = tensors(path), sidecar(path)["scalars"]
    for case, changes in record.items():
        task, phase, mode = case.split(".")
        model = classifier(path, task, mode)
        images, labels = recorded["imgs"][:, 0], recorded[f"{task}.labels"]
        if phase == "train" and task == "esc50":
            labels = augment.smooth(labels, 0.1)
        if phase == "train" and changes["lam"] is not None:
            images, labels = (
                augment.mixup(images, changes["lam"]),
                augment.mixup(labels, changes["lam"]),
            )
        logits = model(images).logits
        close(logits, recorded[f"{case}.logits"])
        loss = classification_loss(logits, labels, LOSSES[task])["loss"]
        assert loss.item() == pytest.approx(changes["final_loss"], rel=1e-4), case
        if f"{case}._predictions" in recorded:
            close(logits.sigmoid(), recorded[f"{case}._predictions"])
        loss.backward()
        parameters = dict(model.named_parameters())
        for key, theirs in recorded.items():
            if key.startswith(f"{case}.grad."):
                gradient = parameters[our_name(key.removeprefix(f"{case}.grad."))].grad
                assert gradient is not None
                limit = 1e-3 * theirs.abs().max().item()
                torch.testing.assert_close(gradient, theirs, rtol=0, atol=limit)


@each
def test_three_steps_of_fine_tuning_end_where_the_released_trainer_ends(path: Path) -> None:
    recorded, changes = tensors(path), sidecar(path)["trainer_3_steps"]
    config = changes["config"]
    model = classifier(path, "audioset").train()
    optim = Optim(
        lr=config["lr"],
        min_lr=config["min_lr"],
        warmup=config["warmup"],
        betas=tuple(config["betas"]),
        weight_decay=config["weight_decay"],
        decay_all=True,
        layer_decay=config["layer_decay"],
        clip=0.0,
    )
    groups = parameter_groups(model.named_parameters(), optim, layers=model)
    optimizer = adamw(groups, optim)
    for index, step in enumerate(changes["steps"]):
        set_rates(optimizer, optim, index, config["max_update"])
        by_name = {n: g for g in optimizer.param_groups for n in g["names"]}
        for name, rate in step["lr"].items():
            assert by_name[our_name(name)]["lr"] == pytest.approx(rate, rel=1e-9)
        logits = model(recorded["imgs"][:, 0]).logits
        losses = classification_loss(logits, recorded["audioset.labels"], "bce_per_label")
        assert losses["loss"].item() == pytest.approx(step["loss"], rel=1e-4)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        )
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    ours: dict[str, Any] = dict(model.named_parameters())
    for key, theirs in recorded.items():
        if key.startswith("train3_after."):
            mine = ours[our_name(key.removeprefix("train3_after."))].detach()
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
