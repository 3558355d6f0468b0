"""A small convolutional network, trained from scratch: the reference for whatever is pre-trained.

Four blocks of convolution, batch norm, ReLU and pooling on log-mel of 64 bins and 20 ms; mean and
maximum over time of every channel in every row of the last map. Trained on random crops with
masked stripes, tested on whole clips; the network of the last step counts.

Shapes: B clips, T frames of 20 ms, F = 64 bins, C channels of the last block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.data.transforms import spec_augment
from eat_audio.evaluation.metrics import Array

BINS = 64
"""Of the spectrograms, see `coarse`."""


@dataclass(frozen=True)
class Settings:
    """How the network is trained."""

    channels: tuple[int, ...] = (16, 32, 64, 96)
    frames: int = 128
    """Of a crop, 20 ms each."""
    steps: int = 800
    batch: int = 16
    lr: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.3
    mask: float = 0.2
    """Longest silenced stripe in time and in frequency, as a share of each."""


class SmallCNN(nn.Module):
    """Logits of log-mel spectrograms."""

    def __init__(self, classes: int, settings: Settings) -> None:
        super().__init__()
        first = settings.channels[0]
        blocks = [nn.Conv2d(1, first, 5, stride=2, padding=2, bias=False), *_norm(first)]
        for inputs, outputs in pairwise(settings.channels):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *_norm(outputs)]
            blocks += [nn.AvgPool2d(2, ceil_mode=True)]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(settings.dropout)
        rows = BINS // 2 ** len(settings.channels)
        self.head = nn.Linear(2 * rows * settings.channels[-1], classes)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Return logits (B, classes) of spectrograms (B, T, F)."""
        maps = self.blocks(spectrogram[:, None])  # (B, C, T / 16, F / 16)
        columns = maps.transpose(2, 3).flatten(1, 2)  # (B, C F / 16, T / 16)
        return self.head(self.dropout(torch.cat([columns.mean(dim=2), columns.amax(dim=2)], dim=1)))


def _norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def coarse(log_mel: Tensor) -> Tensor:
    """Return (T, F) of a log-mel (frames of 10 ms, 128 bins): means over two frames and two bins.

    Frames of digital silence are left out: a crop of nothing else teaches nothing.
    """
    audible = log_mel[log_mel.amax(dim=1) > log_mel.min()]
    log_mel = audible if len(audible) > 1 else log_mel
    return F.avg_pool2d(log_mel[None], 2, ceil_mode=True)[0]


def cnn_predictions(
    train: Sequence[Tensor],
    labels: Array,
    test: Sequence[Tensor],
    *,
    multi_label: bool,
    seed: int,
    settings: Settings,
) -> Array:
    """Train on spectrograms (T, F) with labels; return scores (clips, classes) of the others."""
    stacked = torch.cat(list(train))
    mean, std = stacked.mean(dim=0), stacked.std(dim=0)
    clips = [(clip - mean) / std for clip in train]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallCNN(labels.shape[1], settings)
        _fit(model, clips, torch.from_numpy(labels), seed, settings, multi_label=multi_label)
    with torch.inference_mode():
        scores = torch.cat([model(((clip - mean) / std)[None]) for clip in test])
    return (scores.sigmoid() if multi_label else scores.softmax(dim=1)).numpy()


def _fit(
    model: SmallCNN,
    clips: Sequence[Tensor],
    labels: Tensor,
    seed: int,
    settings: Settings,
    *,
    multi_label: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    weights = model.parameters()
    optimizer = torch.optim.AdamW(weights, settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1
    )
    order = torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order = torch.cat([order, torch.randperm(len(clips), generator=generator)])
        numbers, order = order[: settings.batch], order[settings.batch :]
        batch = torch.stack([_crop(clips[n], settings.frames, generator) for n in numbers.tolist()])
        targets = labels[numbers]
        batch = spec_augment(
            batch,
            torch.rand(4, len(batch), generator=generator),
            longest_time=batch.shape[1] * settings.mask,
            longest_frequency=batch.shape[2] * settings.mask,
        )
        logits = model(batch)
        if multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(batch)
        else:
            loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _crop(clip: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Return so many frames of a clip (T, F), from a random place; short clips are repeated."""
    if len(clip) < frames:
        clip = clip.repeat(-(-frames // len(clip)), 1)
    start = int(torch.randint(len(clip) - frames + 1, (), generator=generator))
    return clip[start : start + frames]
