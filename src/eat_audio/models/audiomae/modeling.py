"""The Audio-MAE encoder and classifier as Hugging Face models.

    tokens = norm(blocks([CLS, patches(x) + positions]))         pre-trained
    logits = head(fc_norm(mean of the patches of blocks(...)))   fine-tuned: no norm after blocks

A pre-norm vision transformer over 16 x 16 patches of log-mel.
Parameters carry the names of the released checkpoints behind `model.` (`model.cls_token`,
`model.patch_embed.proj`, `model.blocks.N.norm1`, `model.norm`, `model.fc_norm`, `model.head`).

Letters: B clips, R rows (a clip or some of its patches), N = T' x F' patches (time-major), D width.

Huang et al., "Masked Autoencoders that Listen" (2207.06405).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from eat_audio.models.common.base import GradientCheckpointingLayer
from eat_audio.models.common.layers import (
    MLP,
    Attention,
    PatchEmbedding,
    WrappedPositions,
    check_spectrogram,
    drop_path,
    init_patch_embedding,
    patch_mask,
    pool,
)
from eat_audio.models.common.modeling import (
    SIZES,
    AudioClassifier,
    AudioConfig,
    AudioEncoder,
    AudioModel,
    EncoderOutput,
)

POOLINGS = ("cls", "mean", "statistics")


class AudioMAEConfig(AudioConfig):
    """The shape of an Audio-MAE encoder.

    Args:
        embed_dim: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        norm_eps: Epsilon of every norm.
        final_norm: Whether a norm follows the last block: in pre-trained encoders one does, in
            fine-tuned classifiers, where `fc_norm` follows the pooling, none.
        pos_layout: "correct": a patch has the position of its column and row. "released": of
            column n mod `pos_length` and row n div `pos_length`, n being its number in the
            time-major sequence; a mistake that the released weights were trained with.
        pos_length: Columns of the position table of the released checkpoints (one column is
            16 frames, 160 ms); longer clips get a longer table.
        pooling: The vector of a clip: "mean" of the patches, "cls", or "statistics" (CLS, mean and
            deviation of the patches).
        start_drop_path_rate: Stochastic depth of the first block.
        end_drop_path_rate: Stochastic depth of the last block.
        mask_t_prob: Share of columns of patches that are left out in training of a classifier.
        mask_f_prob: Share of rows.
    """

    sizes = SIZES
    finetune_fields = {
        "drop_path": "end_drop_path_rate",
        "hidden_columns": "mask_t_prob",
        "hidden_rows": "mask_f_prob",
    }
    finetune_constants = {"final_norm": False}
    model_type = "audiomae"

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        mel_bins: int = 128,
        num_classes: int = 527,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        pos_layout: str = "released",
        pos_length: int = 64,
        pooling: str = "mean",
        attn_drop_rate: float = 0.0,
        start_drop_path_rate: float = 0.0,
        end_drop_path_rate: float = 0.0,
        mask_t_prob: float = 0.0,
        mask_f_prob: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(locals(), **kwargs)

    def _validate(self) -> None:
        self._validate_width()
        self._validate_grid()
        self._validate_choice("pooling", POOLINGS)
        for name in ("mask_t_prob", "mask_f_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more and less than 1 needed")


class Block(GradientCheckpointingLayer):
    """A transformer block whose norms come first: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: AudioConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, config.norm_eps)
        self.attn = Attention(
            width, config.num_heads, bias=True, dropout=config.attn_drop_rate, config=config
        )
        self.norm2 = nn.LayerNorm(width, config.norm_eps)
        self.mlp = MLP(width, int(width * config.mlp_ratio))
        first, last = config.start_drop_path_rate, config.end_drop_path_rate
        self.drop_path = first + (last - first) * index / max(config.depth - 1, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (R, N, D) -> tokens; `mask` (R, 1, 1, N) is True where a key is valid."""
        x = x + drop_path(self.attn(self.norm1(x), mask), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class AudioMAEEncoder(nn.Module):
    """The encoder as a plain module with every layer's output."""

    def __init__(self, config: AudioMAEConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.patch_embed = PatchEmbedding(width, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps) if config.final_norm else nn.Identity()
        self.positions = WrappedPositions(config, width)

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Log-mel (B, T, F), or (B, 1, T, F), -> patches with positions (B, N, D)."""
        spectrogram = check_spectrogram(
            spectrogram, patch=self.config.patch_size, bins=self.config.mel_bins
        )
        dtype = self.cls_token.dtype  # of the weights: models can be loaded in half precision
        patches = self.patch_embed(spectrogram.to(dtype))
        return patches + self.positions(patches.shape[1], patches).to(dtype)

    def forward(
        self, patches: Tensor, valid: Tensor | None = None, *, all_states: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode embedded patches (R, N, D), all of a clip or some in any order.

        Args:
            patches: From `embed`, or a selection.
            valid: (R, N), False for patches that are not attended to; None if all are valid.
            all_states: Keep the tokens before and after every block; else the last alone.

        Returns:
            CLS (R, D); patches (R, N, D); the tokens before every block and after the last (and
            after the norm that follows it), each (R, 1 + N, D) with the CLS token first.
        """
        cls = self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype)
        x = torch.cat([cls, patches], dim=1)
        mask = None if valid is None else F.pad(valid, (1, 0), value=True)[:, None, None]
        states = [x]
        for block in self.blocks:
            x = block(x, mask)
            states = [*states, x] if all_states else [x]
        x = states[-1] = self.norm(x)
        return x[:, 0], x[:, 1:], states


class AudioMAEClassifier(AudioMAEEncoder):
    """An encoder with a norm and a linear head on its pooled output."""

    def __init__(self, config: AudioMAEConfig) -> None:
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.head_size, config.norm_eps)
        self.head = nn.Linear(config.head_size, config.num_classes)


def some_of_a_grid(
    noise: tuple[Tensor, Tensor], hidden: tuple[float, float], valid: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the patches in the columns and rows of the least noise.

    Args:
        noise: One number per column (R, T') and per row (R, F').
        hidden: Shares of columns and of rows to leave out; what stays is rounded down, but one.
        valid: (R, T'), False for columns of padding, which are never kept; None if there are none.

    Returns:
        Patch numbers (R, M), by column and row of rising noise, and which of them are valid
        (R, M): a row with fewer valid columns keeps fewer; None if all are.
    """
    per_column, per_row = noise
    columns, rows = per_column.shape[1], per_row.shape[1]
    kept_columns, kept_rows = (
        max(int(count * (1 - share)), 1)
        for count, share in zip((columns, rows), hidden, strict=True)
    )
    kept_valid = None
    if valid is not None:
        per_column = per_column.masked_fill(~valid, torch.inf)
        kept = (valid.sum(dim=1).double() * (1 - hidden[0])).long().clamp(min=1)
        kept_valid = torch.arange(kept_columns, device=valid.device) < kept[:, None]
        kept_valid = kept_valid.repeat_interleave(kept_rows, dim=1)
    first = per_column.argsort(dim=1)[:, :kept_columns, None] * rows
    return (first + per_row.argsort(dim=1)[:, None, :kept_rows]).flatten(1), kept_valid


class AudioMAEPreTrainedModel(AudioModel):
    """Initialization and encoding of all Audio-MAE models."""

    config_class = AudioMAEConfig
    config: AudioMAEConfig
    model: AudioMAEEncoder
    _no_split_modules = ["Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as released: maps by Xavier's law, the head with nearly nothing."""
        if isinstance(module, AudioMAEEncoder):
            init.normal_(module.cls_token, std=0.02)
            if isinstance(module, AudioMAEClassifier):
                init.trunc_normal_(module.head.weight, std=2e-5)
        elif isinstance(module, nn.Conv2d):
            init_patch_embedding(module)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode spectrograms (B, T, 128), whose valid frames are given by a mask (B, T)."""
        valid = patch_mask(attention_mask, self.config.patch_size, self.grid(input_values)[1])
        return self._run(self.model.embed(input_values), valid, all_states=all_states)

    def _run(self, patches: Tensor, valid: Tensor | None, *, all_states: bool) -> EncoderOutput:
        cls, patches, states = self.model(patches, valid, all_states=all_states)
        clip = pool(self.config.pooling, cls, patches, valid)
        return EncoderOutput(clip, cls, patches, states, valid)


class AudioMAEModel(AudioMAEPreTrainedModel, AudioEncoder):
    """The encoder: normalized log-mel in, one vector per clip and per patch out."""

    _keys_to_ignore_on_load_unexpected = [r"model\.(head|fc_norm)\."]

    network = AudioMAEEncoder


class AudioMAEForAudioClassification(AudioMAEPreTrainedModel, AudioClassifier):
    """Encoder and classifier: normalized log-mel in, logits out.

    While it trains, a share of every clip's columns and rows of patches, drawn from torch's
    generator, is left out (`mask_t_prob`, `mask_f_prob`): paper section 3.3.
    """

    model: AudioMAEClassifier
    network = AudioMAEClassifier

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode spectrograms (B, T, 128); in training, what is left of them."""
        hidden = (self.config.mask_t_prob, self.config.mask_f_prob)
        if not (self.training and any(hidden)):
            return super().encode(input_values, attention_mask, all_states=all_states)
        patches = self.model.embed(input_values)
        clips, (columns, rows) = len(patches), self.grid(input_values)
        noise = [torch.rand(clips, count, device=patches.device) for count in (columns, rows)]
        valid = patch_mask(attention_mask, self.config.patch_size, 1)
        ids, kept_valid = some_of_a_grid((noise[0], noise[1]), hidden, valid)
        kept = patches.take_along_dim(ids[..., None], dim=1)
        return self._run(kept, kept_valid, all_states=all_states)
