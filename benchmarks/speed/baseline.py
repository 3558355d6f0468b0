"""Weights and a batch -> losses or vectors, by the plainest way: what `eat bench` measures against.

EAT's steps in the shape of the released code, operation by operation and as directly as they can
be written: student and teacher embed the clips each for itself, every clone has its own copy of
them, attention is four products and a softmax over all scores, the decoder turns its maps over
around every norm, hidden patches are found with boolean masks, targets are repeated for every
clone, and the teacher and the optimizer go through the weights one by one.

It reads the weights of our own modules, so that both ways can be held against each other to the
last digits. It stays plain: what makes a step faster belongs into the package, not here.

Letters: B clips, K masks (clones) per clip, R = B * K, N patches, V visible ones, D width, T' x F'
the grid.

Source: the released `models/EAT_pretraining.py`, `models/base.py`, `models/modules.py` and the
optimizer of fairseq, as observed (section 3 of the released code's facts; recorded sets
`pretrain_tiny_a`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.audio import load_audio, to_int16
from eat_audio.finetune import classification_loss
from eat_audio.inference.predictor import Predictor
from eat_audio.masking import Masks
from eat_audio.models.common.layers import Attention
from eat_audio.models.eat.modeling import Block, EATClassifier, EATEncoder
from eat_audio.pretraining.eat import Decoder, EATPretraining


def pretraining_losses(
    objective: EATPretraining, spectrogram: Tensor, masks: Masks
) -> dict[str, Tensor]:
    """One step's losses of whole clips (B, T, F), as `EATPretraining.losses` gives them."""
    student, teacher = objective.student.model, objective.teacher
    columns, rows = objective.student.grid(spectrogram)
    hidden = masks.hidden.flatten(0, 1)  # (R, N)
    targets = target(teacher, spectrogram, objective.method.average_layers)  # (B, N, D)

    # what the student sees of every clone
    patches = embed(student, spectrogram).repeat_interleave(masks.per_clip, dim=0)  # (R, N, D)
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    count = int((~hidden[0]).sum().item())
    kept = order[:, :count, None].expand(-1, -1, patches.shape[2])
    tokens, _ = encode(student, patches.gather(1, kept))
    cls, seen = tokens[:, 0], tokens[:, 1:]

    # the decoder's map: seen tokens, and noise behind them, back in their places
    noise = seen.new_empty(len(seen), hidden.shape[1] - count, seen.shape[2])
    noise.normal_(0.0, objective.method.mask_noise)
    place = order.argsort(dim=1)[..., None].expand(-1, -1, seen.shape[2])
    decoder_input = torch.cat([seen, noise], dim=1).gather(1, place)
    prediction = decode(objective.decoder, decoder_input, (columns, rows))  # (R, N, D)

    y = targets.float().repeat_interleave(masks.per_clip, dim=0)
    scale = 1 / math.sqrt(y.shape[2])
    guessed, wanted = prediction[hidden].float(), y[hidden]  # (R * H, D)
    frame = ((guessed - wanted) ** 2).sum(dim=1).mul(scale).mean()
    utterance = ((cls.float() - y.mean(dim=1)) ** 2).sum(dim=1).mul(scale).mean()
    with torch.no_grad():
        spreads = [(one.var(dim=0) + 1e-6).sqrt().mean() for one in (wanted, guessed)]
    return {
        "loss": frame + objective.method.utterance_weight * utterance,
        "frame": frame,
        "utterance": utterance,
        "target_std": spreads[0],
        "prediction_std": spreads[1],
    }


def finetuning_loss(model: EATClassifier, spectrogram: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The loss of whole clips (B, T, F) against labels (B, classes), see `classification_loss`."""
    return classification_loss(logits(model, spectrogram).float(), labels, kind)["loss"]


def logits(model: EATClassifier, spectrogram: Tensor) -> Tensor:
    """What a classifier with the pooling "cls" says of whole clips: (B, classes)."""
    tokens, _ = encode(model, embed(model, spectrogram))
    return model.head(model.fc_norm(tokens[:, 0]))


def vectors(model: EATEncoder, spectrogram: Tensor) -> Tensor:
    """The tokens of whole clips (B, T, F): (B, 1 + N, D), CLS first."""
    return encode(model, embed(model, spectrogram))[0]


@torch.inference_mode()
def clip_vector(predictor: Predictor, sound: str | Path | Tensor) -> Tensor:
    """The CLS vector (D,) of one sound of at most a window, on its own from file to vector."""
    waveform = sound if isinstance(sound, Tensor) else load_audio(sound)
    model = predictor.model
    device = next(model.parameters()).device
    waveforms = to_int16(waveform)[None].to(device)
    lengths = torch.tensor([waveforms.shape[1]])
    # padded to whole patches, which are masked
    spectrograms = predictor.features.log_mel(waveforms, lengths)
    values = spectrograms.values
    valid = torch.arange(values.shape[1])[:: model.config.patch_size] < spectrograms.frames.cpu()
    valid = valid.repeat_interleave(model.grid(values)[1])[None].to(device)
    encoder = model.model
    tokens, _ = encode(encoder, embed(encoder, values), valid)
    return tokens[0, 0].float().cpu()


def embed(encoder: EATEncoder, spectrogram: Tensor) -> Tensor:
    """Log-mel (B, T, F) -> patches with positions (B, N, D), by a convolution."""
    proj = encoder.local_encoder.proj
    spectrogram = spectrogram.to(proj.weight.dtype)
    maps = F.conv2d(spectrogram[:, None], proj.weight, proj.bias, stride=proj.stride)
    positions = encoder.positions(maps.shape[2], maps.shape[3], maps).to(maps.dtype)
    return maps.flatten(2).transpose(1, 2) + positions


def encode(
    encoder: EATEncoder, patches: Tensor, real: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Patches (R, N, D) -> tokens (R, 1 + N, D), CLS first, and what the MLP of each block adds."""
    cls = encoder.extra_tokens.expand(len(patches), -1, -1).to(patches.dtype)
    x = encoder.pre_norm(torch.cat([cls, patches], dim=1))
    silent = None if real is None else ~F.pad(real, (1, 0), value=True)[:, None, None]
    updates = []
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = block.norm1(x + attention(block.attn, x, silent))
        update = block.mlp.fc2(F.gelu(block.mlp.fc1(x)))
        x = block.norm2(x + update)
        updates.append(update)
    return x, updates


def attention(layer: Attention, x: Tensor, silent: Tensor | None = None) -> Tensor:
    """Every token takes from all others, score by score: (R, N, D)."""
    rows, tokens, width = x.shape
    qkv = layer.qkv(x).reshape(rows, tokens, 3, layer.heads, width // layer.heads)
    qkv = qkv.permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    scores = (q * (width // layer.heads) ** -0.5) @ k.transpose(-2, -1)
    if silent is not None:
        scores = scores.masked_fill(silent, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return layer.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, width))


@torch.no_grad()
def target(teacher: EATEncoder, spectrogram: Tensor, layers: int | None) -> Tensor:
    """The teacher's layers, normalized each, then their mean: (B, N, D) float32."""
    _, updates = encode(teacher, embed(teacher, spectrogram))
    kept = [update[:, 1:].transpose(1, 2) for update in updates[-(layers or len(updates)) :]]
    normed = [F.instance_norm(update.float()).transpose(1, 2) for update in kept]
    y = normed[0]
    for other in normed[1:]:
        y = y + other
    return F.layer_norm(y / len(normed), y.shape[-1:])


def decode(decoder: Decoder, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Grid tokens (R, N, D) -> a guess for every patch (R, N, D), in maps with channels first."""
    rows, patches, width = x.shape
    x = x.transpose(1, 2).reshape(rows, width, *grid)
    for conv in decoder.blocks:
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.contiguous()
        mixed = F.conv2d(x, weight, conv.bias, padding=conv.padding, groups=conv.groups)
        mixed = F.layer_norm(mixed.transpose(1, 3), mixed.shape[1:2]).transpose(1, 3)
        x = x + F.gelu(mixed) if x.shape == mixed.shape else F.gelu(mixed)
    return decoder.proj(x.reshape(rows, -1, patches).transpose(1, 2))


@torch.no_grad()
def follow(teacher: Iterable[Tensor], student: Iterable[Tensor], tau: float) -> None:
    """Move the teacher's weights towards the student's, one by one."""
    for old, new in zip(teacher, student, strict=True):
        old.mul_(tau)
        old.add_(new.to(old.dtype), alpha=1 - tau)


@dataclass
class Adam:
    """Adam with decoupled weight decay over parameters, one by one, in eight operations each."""

    parameters: Sequence[Tensor]
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    steps: int = 0
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients that are there."""
        self.steps += 1
        first, second = self.betas
        corrected = math.sqrt(1 - second**self.steps) / (1 - first**self.steps)
        for parameter, (mean, square) in zip(self.parameters, self.moments, strict=True):
            if parameter.grad is None:
                continue
            mean.mul_(first).add_(parameter.grad, alpha=1 - first)
            square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            divisor = square.sqrt().add_(self.eps)
            parameter.add_(parameter, alpha=-self.weight_decay * self.lr)
            parameter.addcdiv_(mean, divisor, value=-self.lr * corrected)
