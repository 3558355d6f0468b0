"""The steps of a model, ours and plain, side by side: training, fine-tuning, use.

Cases hold random weights and spectrograms: what they cost does not depend on what was learnt.
On a CPU that computes in bfloat16, ours in it is compared with the plain way in float32; on a GPU
both compute in bfloat16, and a step of training includes the optimizer and the teacher's.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import baseline as plain
from benchmarks.speed.measure import BUFFERS, Case, relative, turns
from eat_audio.data.loader import ClipSettings, whole_patches
from eat_audio.finetune import classification_loss
from eat_audio.masking import Masks
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel
from eat_audio.pretraining import flops
from eat_audio.pretraining.eat import EATMethod, EATPretraining, EATRun
from eat_audio.pretraining.method import EncoderSettings
from eat_audio.rng import clip_keys
from eat_audio.training.hardware import has_bfloat16
from eat_audio.training.loop import Training
from eat_audio.training.optim import Optim, adamw, parameter_groups

SECONDS = 10.24
WITHIN = {"float32": 1e-5, "bfloat16": 2e-2}
"""How far ours may be from the plain way."""
LOSS = "bce_per_label"
"""Of the fine-tuning step: that of AudioSet."""
LEVEL = 0.5
"""Standard deviation of a normalized log-mel spectrogram."""


@dataclass(frozen=True)
class Example:
    """Noise as loud as sound, and what of it the student sees."""

    spectrogram: Tensor
    masks: Masks


def pretrain(size: str, device: str, *, seconds: float = SECONDS) -> Iterator[Case]:
    """Pre-training: losses and gradients; on a GPU the whole step."""
    gpu = device.startswith("cuda")
    if gpu:
        for batch, target in ((12, 2.5), (48, 2.0)):
            yield whole_step(size, device, batch=batch, clones=16, seconds=seconds, target=target)
        return
    objective = fresh_objective(size, device, seconds)
    for clones in (4, 1):
        for dtype, target in ({"float32": 1.0} | native(2.8, device)).items():
            method = EATMethod(masks=clones, mask_noise=0.0)
            settings = settings_of(size, 2, dtype, seconds) | {"clones": clones}
            yield gradients(
                f"pre-training, {clones} clones, {in_words(settings)}",
                objective,
                partial(our_losses, objective, method),
                partial(plain_losses, objective, method),
                examples(objective, method, settings["batch"], seconds, device),
                settings,
                device,
                target=target,
                flop=step_flop(size, clones, seconds) * settings["batch"],
            )


def whole_step(
    size: str, device: str, *, batch: int, clones: int, seconds: float, target: float | None
) -> Case:
    """Losses, gradients, optimizer and teacher; each way trains weights of its own."""
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    method = EATMethod(masks=clones, mask_noise=0.0)
    ours = fresh_objective(size, device, seconds)
    theirs = copy.deepcopy(ours)
    optim = Optim(lr=1e-5, decay_all=True)
    fused = adamw(parameter_groups(ours.named_parameters(), optim, layers=ours), optim)
    looped = plain.Adam(
        [p for p in theirs.parameters() if p.requires_grad],
        optim.lr,
        optim.betas,
        optim.eps,
        optim.weight_decay,
    )

    def our_step(example: Example) -> Tensor:
        with autocast(device, dtype):
            loss = our_losses(ours, method, example)["loss"]
        loss.backward()
        fused.step()
        fused.zero_grad(set_to_none=True)
        ours.after_step(1)
        return loss.detach()

    def plain_step(example: Example) -> Tensor:
        for parameter in looped.parameters:
            parameter.grad = None
        with autocast(device, dtype):
            loss = plain_losses(theirs, method, example)["loss"]
        loss.backward()
        looped.step()
        plain.follow(
            theirs.teacher.parameters(), theirs.student.model.parameters(), method.tau.decay(1)
        )
        return loss.detach()

    inputs = examples(ours, method, batch, seconds, device)
    settings = settings_of(size, batch, dtype, seconds) | {"clones": clones}
    return Case(
        name=f"pre-training step with optimizer and EMA, {clones} clones, {in_words(settings)}",
        ours=turns(our_step, inputs),
        plain=turns(plain_step, inputs),
        clips=batch,
        # the losses that come after a step tell what both have made of the weights
        difference=lambda: max(
            relative(our_step(inputs[0]), plain_step(inputs[0])) for _ in range(2)
        ),
        within=WITHIN[dtype],
        target=target,
        flop=step_flop(size, clones, seconds) * batch,
        settings=settings,
    )


def finetune(size: str, device: str, *, seconds: float = SECONDS) -> Iterator[Case]:
    """Fine-tuning: the losses of labeled clips, and gradients."""
    gpu = device.startswith("cuda")
    torch.manual_seed(0)
    config = EATConfig.named(size)
    model = EATForAudioClassification(config).to(device).train()  # type: ignore[arg-type]
    frames = whole_patches(seconds)
    batch = 96 if gpu else 2
    inputs = [
        (LEVEL * torch.randn(batch, frames, 128), (torch.rand(batch, 527) < 0.005).float())
        for _ in range(BUFFERS)
    ]
    inputs = [(x.to(device), labels.to(device)) for x, labels in inputs]
    flop = 3 * flops.encoding(config, seconds).total * batch

    def ours(example: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return classification_loss(model(example[0]).logits.float(), example[1], LOSS)

    def theirs(example: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": plain.finetuning_loss(model.model, *example, LOSS)}

    for dtype, target in {"bfloat16": 1.8}.items() if gpu else {"float32": None}.items():
        settings = settings_of(size, batch, dtype, seconds)
        yield gradients(
            f"fine-tuning, {in_words(settings)}",
            model,
            ours,
            theirs,
            inputs,
            settings,
            device,
            target=target,
            flop=flop,
        )


def infer(size: str, device: str, *, seconds: float = SECONDS) -> Iterator[Case]:
    """Log-mel spectrograms in, tokens out."""
    gpu = device.startswith("cuda")
    torch.manual_seed(0)
    config = EATConfig.named(size)
    exact = EATModel(config).to(device).eval()  # type: ignore[arg-type]
    small = copy.deepcopy(exact).to(torch.bfloat16)
    reference = small if gpu else exact
    aims = {"bfloat16": 2.0} if gpu else {"float32": 1.0} | native(3.5, device)
    flop = flops.encoding(config, seconds).total
    for batch in (64, 1) if gpu else (4, 1):
        shape = (batch, whole_patches(seconds), 128)
        inputs = [LEVEL * torch.randn(shape, device=device) for _ in range(BUFFERS)]
        for dtype, target in aims.items():
            model = exact if dtype == "float32" else small

            @torch.inference_mode()
            def ours(x: Tensor, model: EATModel = model) -> Tensor:
                return model(x).last_hidden_state

            @torch.inference_mode()
            def theirs(x: Tensor) -> Tensor:
                return plain.vectors(reference.model, x)

            settings = settings_of(size, batch, dtype, seconds)
            yield Case(
                name=f"inference, {in_words(settings)}",
                ours=turns(ours, inputs),
                plain=turns(theirs, inputs),
                clips=batch,
                difference=partial(apart, ours, theirs, inputs[0]),
                within=WITHIN[dtype],
                target=target,
                flop=flop * batch,
                settings=settings,
            )


# ---- what cases are made of ----


def fresh_objective(size: str, device: str, seconds: float) -> EATPretraining:
    """An objective with random weights, the same at every call, whose decoder gets no noise."""
    torch.manual_seed(0)
    method = EATMethod(mask_noise=0.0)
    frames = whole_patches(seconds)
    objective = EATPretraining(
        EATConfig.named(size), method, EATFeatureExtractor(), frames=frames
    ).to(device)
    return objective.train()


def examples(
    objective: EATPretraining, method: EATMethod, batch: int, seconds: float, device: str
) -> list[Example]:
    """Noise as loud as sound, with the masks of its clips."""
    shape = (batch, whole_patches(seconds), 128)
    inputs = []
    for number in range(BUFFERS):
        spectrogram = LEVEL * torch.randn(shape, device=device)
        clips = torch.arange(batch, device=device)
        keys = clip_keys(0, number, clips, method.masks)
        masks = method.sample_masks(keys, objective.student.grid(spectrogram), None)
        inputs.append(Example(spectrogram, masks))
    return inputs


def our_losses(objective: EATPretraining, method: EATMethod, example: Example) -> dict[str, Tensor]:
    objective.method = method
    return objective.losses(example.spectrogram, example.masks)


def plain_losses(
    objective: EATPretraining, method: EATMethod, example: Example
) -> dict[str, Tensor]:
    objective.method = method
    return plain.pretraining_losses(objective, example.spectrogram, example.masks)


def gradients(
    name: str,
    module: torch.nn.Module,
    ours: Callable[[Any], dict[str, Tensor]],
    theirs: Callable[[Any], dict[str, Tensor]],
    inputs: list[Any],
    settings: dict[str, Any],
    device: str,
    *,
    target: float | None,
    flop: float,
) -> Case:
    """A case of losses and gradients of one module, on the same weights both ways."""
    reference = settings["dtype"] if device.startswith("cuda") else "float32"
    our_step = partial(step_of, module, ours, device, settings["dtype"])
    plain_step = partial(step_of, module, theirs, device, reference)

    def difference() -> float:
        mine, other = our_step(inputs[0]), plain_step(inputs[0])
        parts = mine.keys() & other.keys() & {"loss", "frame", "utterance"}
        return max(relative(mine[part], other[part]) for part in parts)

    return Case(
        name=name,
        ours=turns(our_step, inputs),
        plain=turns(plain_step, inputs),
        clips=settings["batch"],
        difference=difference,
        within=WITHIN[settings["dtype"]],
        target=target,
        flop=flop,
        settings=settings,
    )


def step_of(
    module: torch.nn.Module,
    losses: Callable[[Any], dict[str, Tensor]],
    device: str,
    dtype: str,
    example: Any,
) -> dict[str, Tensor]:
    """The losses of one example, and the gradients of all weights."""
    module.zero_grad(set_to_none=True)
    with autocast(device, dtype):
        found = losses(example)
    found["loss"].backward()
    return found


def autocast(device: str, dtype: str) -> Any:
    """What the trainer computes losses in."""
    precision = "bf16" if dtype == "bfloat16" else "fp32"
    return Training(precision=precision).autocast(torch.device(device))


def apart(ours: Callable[[Any], Tensor], theirs: Callable[[Any], Tensor], example: Any) -> float:
    return relative(ours(example), theirs(example))


def step_flop(size: str, clones: int, seconds: float) -> float:
    """Return the operations of one clip, forward and backward; those of any block are the same."""
    encoder, clips = EncoderSettings(size=size), ClipSettings(seconds=seconds)
    run = EATRun(encoder=encoder, masks=clones, block=(2, 2), clips=clips)
    return flops.pretraining(run).total


def native(target: float, device: str) -> dict[str, float]:
    """Return bfloat16 with its target, or nothing where a device only emulates it."""
    return {"bfloat16": target} if has_bfloat16(torch.device(device)) else {}


def settings_of(size: str, batch: int, dtype: str, seconds: float) -> dict[str, Any]:
    return {"size": size, "batch": batch, "dtype": dtype, "seconds": seconds}


def in_words(settings: dict[str, Any]) -> str:
    return f"batch {settings['batch']}, {settings['dtype']}"
