"""The BAT encoder and classifier as Hugging Face models: EAT's, with gated attention.

    tokens = blocks(pre_norm([CLS, patches(x) + positions]))
    block:   x = norm1(x + proj(attention(x) * sigmoid(gate(x))));  x = norm2(x + mlp(x))

Positions are those of Audio-MAE, in the released order by default. Clips of more than `pos_length`
columns of patches are encoded in chunks of so many, positions beginning anew in each.
Parameters carry the names of EAT's encoder; `bat/checkpoint.py` has the released ones.

Letters: R rows (a clip or some of its patches), N patches (time-major), D width.

Ghaffari et al., "BAT: Better Audio Transformer Guided by Convex Gated Probing" (2602.16305).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from eat_audio.errors import CheckpointError
from eat_audio.models.common.layers import (
    Attention,
    WrappedPositions,
    masked_mean,
    position_layout,
)
from eat_audio.models.common.modeling import SIZES, AudioClassifier, AudioConfig, AudioEncoder
from eat_audio.models.eat.modeling import (
    POOLINGS,
    Block,
    EATClassifier,
    EATEncoder,
    EATPreTrainedModel,
)

RELEASED_NAMES = {
    "cls_token": "extra_tokens",
    "patch_embed.": "local_encoder.",
    "head.ln.": "fc_norm.",
    "head.fc.": "head.",
}
"""How released names begin, and ours behind "model."; all others are the same."""
POSITIONS = "pos_embed"
"""The name in released files; the values are computed here."""
COMPUTED = "positions, which are computed"


class BATConfig(AudioConfig):
    """The shape of a BAT encoder.

    Args:
        embed_dim: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        norm_eps: Epsilon of the norms of the encoder.
        pos_layout: "correct": a patch has the position of its column and row. "released": of
            column n mod `pos_length` and row n div `pos_length`, n being its number in the
            time-major sequence; a mistake that the released weights were trained with.
        pos_length: Columns of patches that are encoded at once (one column is 16 frames, 160 ms).
        pooling: The vector of a clip: "cls", "mean" of the patches, "linear_softmax" over them, or
            "statistics" (CLS, mean and deviation of the patches).
        head_norm_eps: Epsilon of the norm before the classifier.
        start_drop_path_rate: Stochastic depth of the first block.
        end_drop_path_rate: Stochastic depth of the last block.
    """

    sizes = SIZES
    finetune_fields = {"drop_path": "end_drop_path_rate"}
    model_type = "bat"
    qkv_bias, norm_affine, head_norm = True, True, True
    drop_rate, activation_dropout, post_mlp_drop = 0.0, 0.0, 0.0

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
        pos_layout: str = "released",
        pos_length: int = 64,
        pooling: str = "cls",
        head_norm_eps: float = 1e-6,
        attn_drop_rate: float = 0.0,
        start_drop_path_rate: float = 0.0,
        end_drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(locals(), **kwargs)

    def _validate(self) -> None:
        self._validate_width()
        self._validate_grid()
        self._validate_choice("pooling", POOLINGS)


class GatedAttention(Attention):
    """Self-attention whose mix of values is multiplied by a gate of the token it is for."""

    def __init__(self, width: int, heads: int, **settings: Any) -> None:
        super().__init__(width, heads, **settings)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.proj(self.attended(*self.split(x), mask) * self.gate(x).sigmoid())


class GatedBlock(Block):
    """EAT's block with gated attention."""

    attention = GatedAttention


class BATEncoder(EATEncoder):
    """The encoder as a plain module with every layer's output."""

    block = GatedBlock

    def __init__(self, config: BATConfig) -> None:
        super().__init__(config)
        self.table = WrappedPositions(config, config.embed_dim)

    def positions(self, columns: int, rows: int, like: Tensor) -> Tensor:
        """Return positions (columns * rows, D) of a grid, anew in every chunk."""
        longest = self.config.pos_length
        if columns <= longest:
            return self.table(columns * rows, like)
        chunks = self.table(longest * rows, like).repeat(-(-columns // longest), 1)
        return chunks[: columns * rows]

    def forward(
        self, patches: Tensor, valid: Tensor | None = None, *, all_states: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Encode embedded patches (R, N, D), chunk by chunk; see `EATEncoder.forward`.

        A CLS token is the mean over the chunks that have a valid patch, however short.
        """
        longest = self.config.pos_length * (self.config.mel_bins // self.config.patch_size)
        if patches.shape[1] <= longest:
            return super().forward(patches, valid, all_states=all_states)
        parts = patches.split(longest, dim=1)
        counted, valid_parts = None, [None] * len(parts)
        if valid is not None:
            valid_parts = valid.split(longest, dim=1)
            counted = torch.stack([part.any(dim=1) for part in valid_parts], dim=1)
        encode = super().forward
        outputs = [
            encode(part, valid_part, all_states=all_states)
            for part, valid_part in zip(parts, valid_parts, strict=True)
        ]
        _, _, *layers = zip(*outputs, strict=True)
        states, updates = (
            [_joined(chunks, counted) for chunks in zip(*of_chunks, strict=True)]
            for of_chunks in layers
        )
        return states[-1][:, 0], states[-1][:, 1:], states, updates


def _joined(chunks: Sequence[Tensor], counted: Tensor | None) -> Tensor:
    """CLS tokens averaged over chunks, of which some are counted (R, chunks), then all patches."""
    cls = masked_mean(torch.stack([tokens[:, 0] for tokens in chunks], dim=1), counted)
    return torch.cat([cls[:, None], *(tokens[:, 1:] for tokens in chunks)], dim=1)


class BATClassifier(BATEncoder, EATClassifier):
    """An encoder with a norm and a linear head on its pooled output."""


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Initialize as released: maps by Xavier's law, the patch embedding as torch does.

    What the released code does to a head is not known; here it begins as EAT's.
    """
    if isinstance(module, BATEncoder):
        init.normal_(module.extra_tokens, std=0.02)
        if isinstance(module, BATClassifier):
            init.normal_(module.head.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under our names, without positions, of a state under released ones."""
    named = {}
    for name, tensor in state.items():
        if name != POSITIONS:
            begin = next((old for old in RELEASED_NAMES if name.startswith(old)), "")
            named[f"model.{RELEASED_NAMES.get(begin, '')}{name.removeprefix(begin)}"] = tensor
    return named


class BATPreTrainedModel(EATPreTrainedModel):
    """Initialization of all BAT models; they encode as EAT's do."""

    config_class = BATConfig
    model: BATEncoder
    _no_split_modules = ["GatedBlock"]
    _keys_to_ignore_on_load_unexpected: list[str] | None = None

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def full_rate(self) -> set[str]:
        """Return the norm before the blocks, as in the released fine-tuning."""
        return {"model.pre_norm.weight", "model.pre_norm.bias"}

    @classmethod
    def convert_tensors(
        cls, tensors: dict[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, str]:
        """Rename the tensors of a released file; compare its positions with the computed ones."""
        table = tensors.get(POSITIONS)
        if "cls_token" not in tensors:
            return {}
        ours = renamed(tensors)
        tensors.clear()
        tensors.update(ours)
        if table is None:
            return {}
        if not table.is_meta:
            layout = position_layout(table, config.mel_bins // config.patch_size)
            if layout != (config.pos_layout, config.pos_length):
                raise CheckpointError("has other positions than its settings say")
        return {POSITIONS: COMPUTED}


class BATModel(BATPreTrainedModel, AudioEncoder):
    """The encoder: spectrograms in, one vector per clip and per patch out."""

    _keys_to_ignore_on_load_unexpected = [r"model\.(head|fc_norm)\."]
    network = BATEncoder


class BATForAudioClassification(BATPreTrainedModel, AudioClassifier):
    """Encoder and classifier: spectrograms in, logits out."""

    model: BATClassifier
    network = BATClassifier
