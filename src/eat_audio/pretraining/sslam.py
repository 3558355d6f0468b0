"""SSLAM pre-training objective: EAT's, on clips as they are and on mixtures of two.

    x'_b        = max(x_b, x_g)                     in the mixed columns M_b, x_b in the others
    y           = norm( mean over layers of norm( teacher_l(x) ) )      of clips and of mixtures
    u           = mean over patches of norm( norm( teacher_L(x) ) )     of the last layer(s) L
    r_b         = (y_b + y'_g) / 2                  in M_b, y_b in the others
    L_frame     = || decoder(student(visible x)) - y ||^2   hidden patches of clips and mixtures
    L_retention = || decoder(student(visible x')) - r ||^2  hidden patches of mixtures
    L_utterance = || student_cls - u ||^2                   of clips and mixtures
    L           = L_frame + v * L_retention + w * L_utterance

x are normalized log-mels, g is the other clip of b's pair, its guest, and y'_g are its targets when
the teacher encodes only its patches in M_b: all of a clip but two windows of time. Where either
clip has ended, nothing is mixed. Norms, means and the teacher are those of EAT.

The released code mixes each clip of a micro-batch with the one before it, in columns that are the
same for all and unseeded. Here neighbors in the order of the epoch are mixed in pairs, in columns
that depend on clip and epoch, so that a loss depends on neither batch, accumulation nor GPUs.

Letters: B clips, K masks per clip, R = 2 * B * K rows, T frames, T' x F' the grid, N patches, M of
them at most mixed, H hidden ones per mask, D width.

Alex et al., "SSLAM: Enhancing Self-Supervised Models with Audio Mixtures for Polyphonic
Soundscapes" (2506.12222).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from safetensors import safe_open
from torch import Tensor

from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.checkpoints.convert import read_pickled
from eat_audio.checkpoints.load import contents, on_disk
from eat_audio.data.loader import Batch
from eat_audio.errors import CheckpointError
from eat_audio.masking import Masks
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.common.released import model_state
from eat_audio.models.eat.checkpoint import DECODER
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.diagnostics import target_shares
from eat_audio.pretraining.eat import EATMethod, EATPretraining, EATRun, instance_norm
from eat_audio.pretraining.masked_patches import (
    feature_std,
    gather_tokens,
    hidden_patches,
    mean_over_hidden,
    scatter_tokens,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun
from eat_audio.rng import clip_keys, hash_id, random_bits
from eat_audio.training.checkpoint import checkpoints

WINDOWS = hash_id("sslam: windows that are not mixed")
SHAPE = ("model_type", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps")


class SSLAMMethod(EATMethod):
    """Settings of the objective; the defaults are those of the released second stage."""

    masks: PositiveInt = 8
    """Masks per clip, and the same again per mixture; the teacher encodes both once."""
    utterance_weight: float = Field(192.0, ge=0)
    """Weight w of the utterance loss. The released "cls_loss: 1" is a sum over its 12 clips x 2 x 8
    masks, hence 192; short or small runs collapse with it and need about 1."""
    utterance_layers: PositiveInt | None = 1
    """How many of the teacher's last layers make the utterance target; those of the other targets
    if not set."""
    retention_weight: float = Field(1.0, ge=0)
    """Weight v of the retention loss."""
    mixing: bool = True
    """Train on mixtures, too; if not, what is left is EAT's objective."""
    window: float = Field(15 / 64, ge=0, lt=0.25)
    """Length of each of the two windows that are not mixed, as a share of the clip; 0 mixes all."""
    start: str | None = None
    """A run of EAT or SSLAM, or a released .pt file of either, to start from: its student, teacher
    and decoder, and its statistics unless `clips.statistics` is set; random weights if not set."""


@dataclass(frozen=True)
class Mixture:
    """What the clips of a batch are mixed with."""

    guests: Tensor
    """Row of the clip that each clip is mixed with (B,), int64."""
    frames: Tensor
    """Frames of each clip that are mixed (B, T), bool."""
    columns: int
    """Columns that are mixed in each clip; with padding, the most that may be."""

    def mix(self, spectrogram: Tensor) -> Tensor:
        """Return the mixtures (B, T, F) of normalized log-mel (B, T, F)."""
        louder = torch.maximum(spectrogram, spectrogram[self.guests])
        return torch.where(self.frames[..., None], louder, spectrogram)

    def patches(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of mixed patches (B, M) of a grid with `rows`, and which are (B, M).

        Those that are not fill up the rows of clips with fewer mixed patches.
        """
        mixed = self.frames[:, ::PATCH_FRAMES]  # (B, T')
        order = mixed.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        columns = order[:, : self.columns]
        ids = columns[..., None] * rows + torch.arange(rows, device=order.device)
        return ids.flatten(1), mixed.gather(1, columns).repeat_interleave(rows, dim=1)


class SSLAMPretraining(EATPretraining):
    """SSLAM objective: EAT's on clips and mixtures, and the mean of both sources in mixtures."""

    method: SSLAMMethod

    def build(self, config: EATConfig, *, load: bool = True) -> None:
        """Create student, decoder and teacher; `load` the weights that `start` names, if any."""
        super().build(config)
        if load and self.method.start is not None:
            features = load_start(self, self.method.start)
            if self.method.clips.statistics is None:  # type: ignore[attr-defined]
                kind, padding = type(self.features), self.features.released_padding
                self.features = kind(mean=features.mean, std=features.std, released_padding=padding)

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch of pairs; the generator gives the decoder's noise."""
        log_mel, masks, valid = self.masked_batch(batch, self.method.masks)
        mixture = None
        if self.method.mixing:
            mixture = self.sample_mixture(batch, log_mel)
            visible, hidden = (torch.cat([x, x]) for x in (masks.visible, masks.hidden))
            some = masks.visible_valid
            masks = Masks(visible, hidden, None if some is None else torch.cat([some, some]))
        noise = self.sample_noise(masks, generator)
        return self.losses(log_mel.values, masks, valid=valid, noise=noise, mixture=mixture)

    @torch.no_grad()
    def sample_mixture(self, batch: Batch, log_mel: LogMelBatch) -> Mixture:
        """Sample what the clips of a batch are mixed with, by their keys, and where."""
        share, total = self.method.window, log_mel.values.shape[1] // PATCH_FRAMES
        lengths, counts = torch.full_like(batch.clips, total), [total]
        if log_mel.columns is not None:
            lengths, counts = log_mel.columns, list(range(1, total + 1))
        most = max(count - 2 * int(count * share) for count in counts)
        keys = clip_keys(self.seed, batch.epochs, batch.clips, 1)[:, 0]
        width = (lengths.double() * share).long()
        bits = random_bits(keys, 2, purpose=WINDOWS)
        first = bits[:, 0] % (lengths // 2).clamp(min=1)
        second = first + width + bits[:, 1] % (lengths - 2 * width - first)
        column = torch.arange(total, device=keys.device)
        mixed = column < lengths[:, None]
        for begin in (first[:, None], second[:, None]):
            mixed = mixed & ((column < begin) | (column >= begin + width[:, None]))
        mixed = mixed.repeat_interleave(PATCH_FRAMES, dim=1)
        guests = torch.arange(len(keys), device=keys.device) ^ 1
        guests = guests.clamp(max=len(keys) - 1)  # one clip alone, whose operations are counted
        if (sound := log_mel.frame_mask) is not None:
            mixed = mixed & sound & sound[guests]
        return Mixture(guests, mixed, most)

    def losses(
        self,
        spectrogram: Tensor,
        masks: Masks,
        *,
        valid: Tensor | None = None,
        noise: Tensor | None = None,
        mixture: Mixture | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses above for normalized log-mel (B, T, F).

        With a mixture, masks and the decoder's noise (R, N, D) are of the clips, then of the
        mixtures. `valid` patches (B, N) are not padding.
        """
        if mixture is not None:
            spectrogram = torch.cat([spectrogram, mixture.mix(spectrogram)])
            valid = None if valid is None else torch.cat([valid, valid])
        noise = self.sample_noise(masks, None) if noise is None else noise
        grid = self.student.grid(spectrogram)
        hidden_ids, weights = hidden_patches(masks)  # (R, H), (R, H)
        clip = torch.arange(len(spectrogram), device=spectrogram.device)
        clip = clip.repeat_interleave(masks.per_clip)  # (R,)

        y, u, r = self.all_targets(spectrogram, valid, mixture)  # of 2B, 2B and B clips
        cls, visible = self.encode_visible(spectrogram, masks)  # (R, D), (R, V, D)
        x = self.decoder_input(visible, masks, noise)  # (R, N, D)
        valid_rows = None if valid is None else valid[clip]
        prediction = self.decoder(x, grid, hidden_ids, valid_rows).float()  # (R, H, D)

        scale = y.shape[-1] ** -0.5
        hidden_y = _rows(y, hidden_ids, clip)
        error = (prediction - hidden_y).square().sum(dim=2) * scale
        frame = mean_over_hidden(error, weights)
        utterance = ((cls.float() - u[clip]).square().sum(dim=1) * scale).mean()
        parts = {"frame": frame, "utterance": utterance}
        loss = frame + self.method.utterance_weight * utterance
        clips = len(y)
        if r is not None:
            clips, mixed = len(r), len(prediction) // 2  # the first mixture and its first row
            hidden_r = _rows(r, hidden_ids[mixed:], clip[:mixed])
            error = (prediction[mixed:] - hidden_r).square().sum(dim=2) * scale
            parts["retention"] = mean_over_hidden(error, weights[mixed:])
            loss = loss + self.method.retention_weight * parts["retention"]
        return {
            "loss": loss,
            **parts,
            "target_std": feature_std(hidden_y, weights),
            "prediction_std": feature_std(prediction, weights),
            **target_shares(y[:clips], None if valid is None else valid[:clips]),
        }

    @torch.no_grad()
    def all_targets(
        self, spectrogram: Tensor, valid: Tensor | None, mixture: Mixture | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return y (2B, N, D), u (2B, D) and r (B, N, D) of clips, then mixtures (2B, T, F)."""
        patches = self.teacher.embed(spectrogram)  # (2B, N, D)
        _, _, _, updates = self.teacher(patches, valid, all_states=False)
        layers = self.method.average_layers or len(updates)
        last = self.method.utterance_layers or layers
        y = averaged(updates, layers, valid)
        u = masked_mean(y if last == layers else averaged(updates, last, valid), valid)
        if mixture is None:
            return y, u, None

        ids, mixed = mixture.patches(self.student.grid(spectrogram)[1])  # (B, M), (B, M)
        some = None if valid is None else mixed
        guests = gather_tokens(patches[: len(ids)][mixture.guests], ids)
        _, _, _, updates = self.teacher(guests, some, all_states=False)
        own = gather_tokens(y[: len(ids)], ids)
        mean = (own + averaged(updates, layers, some)) / 2
        mean = mean if some is None else torch.where(some[..., None], mean, own)
        return y, u, scatter_tokens(mean, ids, y[: len(ids)])


def averaged(updates: list[Tensor], layers: int, valid: Tensor | None) -> Tensor:
    """Return the normalized mean of the last layers' updates (B, 1 + N, D), CLS left out."""
    total = sum(instance_norm(update[:, 1:].float(), valid) for update in updates[-layers:])
    assert isinstance(total, Tensor)
    return F.layer_norm(total / layers, total.shape[-1:])


def _rows(tokens: Tensor, ids: Tensor, clip: Tensor) -> Tensor:
    """Return the tokens (R, H, D) with numbers (R, H) of the clip (R,) of each row."""
    index = (ids + clip[:, None] * tokens.shape[1]).flatten()
    return tokens.flatten(0, 1)[index].view(*ids.shape, -1)


def load_start(objective: SSLAMPretraining, start: str) -> AudioFeatureExtractor:
    """Copy student, teacher and decoder of a run or released file, and return its front end.

    Raises:
        CheckpointError: It lacks one of them, or has an encoder or decoder of another shape.
    """
    path = on_disk(start)
    path = path.parent if path.suffix == ".safetensors" else path
    path = (checkpoints(path) or [path])[-1]
    checkpoint, expected = contents(path), objective.student.config
    for name in SHAPE:
        other, own = (getattr(config, name, None) for config in (checkpoint.config, expected))
        if other != own:
            raise CheckpointError(f"{start}: its encoder has {name}={other}; expected {own}")
    teacher = contents(path, teacher=True).tensors
    weights = {f"student.{name}": tensor for name, tensor in checkpoint.tensors.items()}
    weights |= {f"teacher.{name.removeprefix('model.')}": x for name, x in teacher.items()}
    weights |= _decoder(path)
    both = (weights, objective.state_dict())
    for name in sorted(both[0].keys() | both[1].keys()):
        other, own = (list(x[name].shape) if name in x else "nothing" for x in both)
        if other != own:
            raise CheckpointError(f"{start}: has {other} as {name}; expected {own}")
    objective.load_state_dict(weights)
    return checkpoint.features


def _decoder(path: Path) -> dict[str, Tensor]:
    """Return the tensors "decoder.*" of a checkpoint of a run or of a released file."""
    if path.is_dir():
        with safe_open(path / "objective.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith("decoder.")]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    state = {n: x for n, x in model_state(read_pickled(path)).items() if n.startswith(DECODER)}
    layers = re.compile(rf"{re.escape(DECODER)}((blocks\.\d+)\.0)?")
    return {layers.sub(r"decoder.\2", name): tensor for name, tensor in state.items()}


class SSLAMRun(SSLAMMethod, EATRun):
    """Settings of an SSLAM pre-training run."""

    objective: ClassVar[type[Pretraining]] = SSLAMPretraining
    mask_description: ClassVar[str] = (
        "The teacher encodes the whole clip, and its mixture with another clip. The student "
        "encodes a few blocks of each and predicts the features of all other patches."
    )
    input_setting: ClassVar[str | None] = "start"

    method: Literal["sslam"] = "sslam"  # type: ignore[assignment]

    def untrained_inputs(
        self, features: AudioFeatureExtractor, producer: PretrainRun | None
    ) -> dict[str, Any]:
        """Return that nothing is loaded."""
        return {"load": False}

    @model_validator(mode="after")
    def _mixtures_and_targets_fit(self) -> Self:
        if self.mixing and self.batch % 2:
            raise ValueError(f"batch={self.batch}: expected an even number, to mix clips in pairs")
        layers, depth = self.utterance_layers or 1, self.config().depth
        if layers > depth:
            raise ValueError(f"utterance_layers={layers}: the encoder has {depth} layers")
        return self


RUN = SSLAMRun
