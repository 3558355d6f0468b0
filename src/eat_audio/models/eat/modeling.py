"""The EAT encoder and classifier as Hugging Face models.

    tokens = blocks(pre_norm([CLS, patches(x) + positions]))

Parameters carry the names of the released checkpoints
(`model.local_encoder.proj`, `model.extra_tokens`, `model.blocks.N.attn.qkv`,
`model.pre_norm`, `model.fc_norm`, `model.head`), so released files load as they are.

Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer" (2401.03497).
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from eat_audio.errors import CheckpointError
from eat_audio.models.common.base import GradientCheckpointingLayer
from eat_audio.models.common.layers import (
    MLP,
    Attention,
    PatchEmbedding,
    check_spectrogram,
    drop_path,
    init_patch_embedding,
    patch_mask,
    pool,
    sincos_positions,
)
from eat_audio.models.common.modeling import (
    SIZES,
    AudioClassifier,
    AudioConfig,
    AudioEncoder,
    AudioModel,
    EncoderOutput,
)

POSITIONS = "fixed_positional_encoder.positions"
"""The name in released files; the values are computed here."""
SLACK = 1e-3
"""How far released positions are from the computed ones at most: half precision rounds them, also
those that have been made float32 since."""
SLACK_OF_BFLOAT16 = 4e-3
ROWS = 8
"""128 mel bins in patches of 16."""
POOLINGS = ("cls", "mean", "linear_softmax", "statistics")


class EATConfig(AudioConfig):
    """The shape of an EAT encoder; field names are those of the released `config.json`.

    Args:
        embed_dim: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        pos_length: Columns of the position table (one column is 16 frames, 160 ms); longer clips
            get a longer table.
        pooling: The vector of a clip: "cls", "mean" of the patches, "linear_softmax" over them, or
            "statistics" (CLS, mean and deviation of the patches).
        head_norm_eps: Epsilon of the norm before the classifier: 1e-5 in the released Hugging
            Face models, 1e-6 in the released fine-tuning code.
    """

    sizes = SIZES | {"large": {"embed_dim": 1024, "depth": 24, "num_heads": 16}}  # section 4.1
    finetune_fields = {"drop_path": "end_drop_path_rate"}
    finetune_constants = {
        "head_norm_eps": 1e-6,
        "head_norm": True,
        "model_variant": "finetune",
    }
    model_type = "eat"

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        stride: int = 16,
        in_chans: int = 1,
        mel_bins: int = 128,
        num_classes: int = 527,
        model_variant: str = "pretrain",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        activation_dropout: float = 0.0,
        post_mlp_drop: float = 0.0,
        start_drop_path_rate: float = 0.0,
        end_drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        norm_affine: bool = True,
        layer_norm_first: bool = False,
        fixed_positions: bool = True,
        pos_length: int = 768,
        pooling: str = "cls",
        head_norm_eps: float = 1e-5,
        head_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        # released files have max_length, which transformers keeps for text generation
        pos_length = kwargs.pop("max_length", pos_length)
        super().__init__(locals(), **kwargs)

    def _validate(self) -> None:
        self._validate_width()
        self._validate_choice("pooling", POOLINGS)
        if self.layer_norm_first or not self.fixed_positions:
            raise ValueError("only post-norm encoders with fixed positions exist (as released)")
        if self.in_chans != 1 or self.stride != self.patch_size:
            raise ValueError("only one channel and patches side by side (stride = patch_size)")


def columns_of(positions: Any, width: int | None = None) -> int:
    """Return how many columns a file's table of positions (1, N, D) has, of width D if given.

    Raises:
        CheckpointError: It is no such table, or not the one that is computed here.
    """
    shape = tuple(positions.shape) if isinstance(positions, Tensor) else None
    flat = not shape or len(shape) != 3 or shape[0] != 1 or not all(shape) or shape[1] % ROWS
    if not shape or flat or width not in (None, shape[2]):
        expected = f"(1, columns * 8, {width or 'width'})"
        raise CheckpointError(f"has positions of shape {shape}; expected {expected}")
    computed = sincos_positions(shape[1] // ROWS, ROWS, shape[2])
    slack = SLACK_OF_BFLOAT16 if positions.dtype == torch.bfloat16 else SLACK
    same = computed.shape == shape[1:]
    if not same or not (positions[0].float() - computed).abs().max() <= slack:  # nor a NaN
        raise CheckpointError("has other positions than EAT's fixed ones (learned, perhaps)")
    return shape[1] // ROWS


class Block(GradientCheckpointingLayer):
    """A transformer block whose norms follow the residual sums (post-norm), as in data2vec 2.0.

    x = norm1(x + attn(x));  update = mlp(x);  x = norm2(x + update)
    """

    attention: ClassVar[type[Attention]] = Attention

    def __init__(self, config: AudioConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, config.norm_eps, config.norm_affine)
        self.attn = self.attention(
            width,
            config.num_heads,
            bias=config.qkv_bias,
            dropout=config.attn_drop_rate,
            config=config,
        )
        self.norm2 = nn.LayerNorm(width, config.norm_eps, config.norm_affine)
        self.mlp = MLP(width, int(width * config.mlp_ratio), config.activation_dropout)
        self.dropout = config.drop_rate
        self.update_dropout = config.post_mlp_drop
        first, last = config.start_drop_path_rate, config.end_drop_path_rate
        self.drop_path = first + (last - first) * index / max(config.depth - 1, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (R, N, D) -> (tokens, update): the update is what the MLP adds, before norm2."""
        mixed = F.dropout(self.attn(x, mask), self.dropout, self.training)
        x = self.norm1(x + drop_path(mixed, self.drop_path, self.training))
        update = self.mlp(x)
        added = F.dropout(update, self.update_dropout, self.training)
        return self.norm2(x + drop_path(added, self.drop_path, self.training)), update


class EATEncoder(nn.Module):
    """The encoder as a plain module with every layer's output."""

    block: ClassVar[type[Block]] = Block

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.local_encoder = PatchEmbedding(width, config.patch_size)
        self.extra_tokens = nn.Parameter(torch.empty(1, 1, width))
        self.pre_norm = nn.LayerNorm(width, config.norm_eps, config.norm_affine)
        self.blocks = nn.ModuleList(self.block(config, depth) for depth in range(config.depth))
        self._positions: Tensor | None = None

    def positions(self, columns: int, rows: int, like: Tensor) -> Tensor:
        """Return positions (columns * rows, D) of a grid, on the device of `like`."""
        table = self._positions
        if table is None or len(table) < columns * rows or table.device != like.device:
            longest = max(columns, self.config.pos_length)
            table = sincos_positions(longest, rows, self.config.embed_dim).to(like.device)
            self._positions = table
        return table[: columns * rows]

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Log-mel (B, T, F), or (B, 1, T, F), -> patches with positions (B, N, D)."""
        side = self.config.patch_size
        spectrogram = check_spectrogram(spectrogram, patch=side, bins=self.config.mel_bins)
        frames, bins = spectrogram.shape[1:]
        dtype = self.extra_tokens.dtype  # of the weights: models can be loaded in half precision
        patches = self.local_encoder(spectrogram.to(dtype))
        return patches + self.positions(frames // side, bins // side, patches).to(dtype)

    def forward(
        self, patches: Tensor, valid: Tensor | None = None, *, all_states: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Encode embedded patches (R, N, D), all of a clip or some.

        Args:
            patches: From `embed`, or a selection.
            valid: (R, N), False for patches that are not attended to; None if all are valid.
            all_states: Keep the tokens before and after every block; else the last alone.

        Returns:
            CLS (R, D); patches (R, N, D); the tokens before every block and after the last,
            and every block's update, each (R, 1 + N, D) with the CLS token first.
        """
        cls = self.extra_tokens.expand(len(patches), -1, -1).to(patches.dtype)
        x = self.pre_norm(torch.cat([cls, patches], dim=1))
        mask = None if valid is None else F.pad(valid, (1, 0), value=True)[:, None, None]
        states, updates = [x], []
        for block in self.blocks:
            x, update = block(x, mask)
            states = [*states, x] if all_states else [x]
            updates.append(update)
        return x[:, 0], x[:, 1:], states, updates


class EATClassifier(EATEncoder):
    """An encoder with a norm and a linear head on its pooled output."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        norm = nn.LayerNorm(config.head_size, config.head_norm_eps)
        self.fc_norm = norm if config.head_norm else nn.Identity()
        self.head = nn.Linear(config.head_size, config.num_classes)


class EATPreTrainedModel(AudioModel):
    """Initialization and encoding of all EAT models."""

    config_class: type[AudioConfig] = EATConfig
    config: AudioConfig
    model: EATEncoder
    _no_split_modules = ["Block"]
    _keys_to_ignore_on_load_unexpected: list[str] | None = [POSITIONS]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as released (`init_stats` in the tests)."""
        if isinstance(module, EATEncoder):
            init.normal_(module.extra_tokens)
            module._positions = None
        elif isinstance(module, nn.Conv2d):
            init_patch_embedding(module)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the CLS token."""
        return {"model.extra_tokens"}

    @classmethod
    def convert_tensors(
        cls, tensors: dict[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, str]:
        """Remove the positions of a file, which are compared with those that are computed."""
        positions = tensors.pop(f"model.{POSITIONS}", None)
        if positions is None:
            return {}
        if not positions.is_meta:
            columns_of(positions, config.hidden_size)
        return {f"model.{POSITIONS}": "positions, which are computed"}

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode spectrograms (B, T, 128), whose valid frames are given by a mask (B, T)."""
        encoder = self.model
        valid = patch_mask(attention_mask, self.config.patch_size, self.grid(input_values)[1])
        embedded = encoder.embed(input_values)
        cls, patches, states, _ = encoder(embedded, valid, all_states=all_states)
        clip = pool(self.config.pooling, cls, patches, valid)
        return EncoderOutput(clip, cls, patches, states, valid)


class EATModel(EATPreTrainedModel, AudioEncoder):
    """The encoder: normalized log-mel in, one vector per clip and per patch out."""

    _keys_to_ignore_on_load_unexpected = [POSITIONS, r"model\.(head|fc_norm)\."]
    network = EATEncoder


class EATForAudioClassification(EATPreTrainedModel, AudioClassifier):
    """Encoder and classifier: normalized log-mel in, logits out."""

    model: EATClassifier
    network = EATClassifier
