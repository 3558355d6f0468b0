"""The encoders of CED and Dasheng, with or without a classifier, as Hugging Face models.

    tokens = norm(blocks(patches(bn(x)) + time positions + frequency positions))
    logits = head(fc_norm(mean of the tokens))

A pre-norm vision transformer without a CLS token, over decibels of 64 mel bins, each of which is
normalized by a mean and a variance that were learned, too. A column of 160 ms has four patches: in
CED 16 x 16, by frequency, in Dasheng all bins of 40 ms, one after the other. Clips of more than
`pos_length` columns are encoded in chunks of so many, positions beginning anew in each.

Letters: B clips, N patches (time-major), D width, T'' x F'' patches by time and by frequency.

Dinkel et al., "CED: Consistent ensemble distillation for audio tagging" (2308.11957); Dinkel et
al., "Scaling up masked audio encoder learning for general audio classification" (2406.06992).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from eat_audio.models.audiomae.modeling import Block
from eat_audio.models.beats.modeling import POOLINGS, patches_valid
from eat_audio.models.common.layers import check_spectrogram, init_patch_embedding, pool
from eat_audio.models.common.modeling import (
    SIZES,
    AudioClassifier,
    AudioConfig,
    AudioEncoder,
    AudioModel,
    EncoderOutput,
)

RELEASED_NAMES = {"init_bn.1.": "init_bn.", "outputlayer.0.": "fc_norm.", "outputlayer.1.": "head."}
"""How released names begin, and ours behind "model."; all others are the same."""
PATCHES = ((16, 16), (64, 4))
"""Bins and frames of a patch, in CED and in Dasheng."""
COUNT = "num_batches_tracked"


class CEDConfig(AudioConfig):
    """The shape of a CED or Dasheng encoder.

    Args:
        embed_dim: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        patch_bins: Mel bins of a patch: 16 in CED, all 64 in Dasheng.
        patch_frames: Frames of a patch: 16 in CED, 4 in Dasheng.
        norm_eps: Epsilon of the norms of the encoder.
        pos_length: Columns of 16 frames that are encoded at once.
        pooling: The vector of a clip: "mean" of the patches, "linear_softmax" over them, or
            "statistics" (their mean and deviation).
        head_norm_eps: Epsilon of the norm before the classifier.
        start_drop_path_rate: Stochastic depth of the first block.
        end_drop_path_rate: Stochastic depth of the last block.
    """

    sizes = SIZES | {
        "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
        "mini": {"embed_dim": 256, "depth": 12, "num_heads": 4},
    }
    has_cls = False
    finetune_fields = {"drop_path": "end_drop_path_rate"}
    front_end_fields = ("patch_frames",)
    model_type = "ced"
    patch_size = 16
    """Frames of a column, which has as many patches as it has bins / 16."""

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_bins: int = 16,
        patch_frames: int = 16,
        mel_bins: int = 64,
        num_classes: int = 527,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        pos_length: int = 63,
        pooling: str = "mean",
        head_norm_eps: float = 1e-5,
        attn_drop_rate: float = 0.0,
        start_drop_path_rate: float = 0.0,
        end_drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(locals(), **kwargs)

    def _validate(self) -> None:
        self._validate_width()
        self._validate_choice("pooling", POOLINGS)
        if (self.patch_bins, self.patch_frames) not in PATCHES or self.mel_bins != 64:
            raise ValueError(
                f"patches of {self.patch_bins} of {self.mel_bins} bins and {self.patch_frames} "
                "frames: expected 16 of 64 and 16, or 64 of 64 and 4"
            )
        if self.pos_length < 1:
            raise ValueError(f"pos_length={self.pos_length}: 1 or more is expected")


class MelNorm(nn.Module):
    """A batch norm over mel bins with fixed statistics, those of the training data."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, bins: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.empty(bins)), nn.Parameter(torch.empty(bins))
        self.register_buffer("running_mean", torch.zeros(bins))
        self.register_buffer("running_var", torch.ones(bins))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Decibels (B, T, F) -> (B, T, F), float32."""
        scale = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()
        return (spectrogram.float() - self.running_mean.float()) * scale + self.bias.float()


class MelPatches(nn.Module):
    """Spectrograms (B, T, F) -> patches (B, T'', F'', D); the map reads bins before frames."""

    def __init__(self, config: CEDConfig) -> None:
        super().__init__()
        self.side = config.patch_bins, config.patch_frames
        self.proj = nn.Conv2d(1, config.embed_dim, self.side, self.side)

    def forward(self, spectrogram: Tensor) -> Tensor:
        bins, frames = self.side
        squares = spectrogram.unflatten(2, (-1, bins)).unflatten(1, (-1, frames))
        squares = squares.permute(0, 1, 3, 4, 2).flatten(3)  # (B, T'', F'', bins * frames)
        return F.linear(squares, self.proj.weight.flatten(1), self.proj.bias)


class CEDEncoder(nn.Module):
    """The encoder as a plain module with every layer's output."""

    def __init__(self, config: CEDConfig) -> None:
        super().__init__()
        width, times = config.embed_dim, config.pos_length * 16 // config.patch_frames
        self.config = config
        self.init_bn = MelNorm(config.mel_bins)
        self.patch_embed = MelPatches(config)
        self.time_pos_embed = nn.Parameter(torch.empty(1, width, 1, times))
        rows = config.mel_bins // config.patch_bins
        self.freq_pos_embed = nn.Parameter(torch.empty(1, width, rows, 1))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps)

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Decibels (B, T, F), or (B, 1, T, F), -> patches with positions (B, N, D)."""
        bins = self.config.mel_bins
        spectrogram = check_spectrogram(spectrogram, patch=self.config.patch_size, bins=bins)
        patches = self.patch_embed(self.init_bn(spectrogram).to(self.time_pos_embed.dtype))
        times = self.time_pos_embed[0, :, 0].T  # (times, D)
        numbers = torch.arange(patches.shape[1], device=patches.device) % len(times)
        return (patches + times[numbers, None] + self.freq_pos_embed[0, :, :, 0].T).flatten(1, 2)

    def forward(
        self, patches: Tensor, valid: Tensor | None = None, *, all_states: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode embedded patches (B, N, D), chunk by chunk.

        Args:
            patches: From `embed`.
            valid: (B, N), False for patches that are not attended to; None if all are valid.
            all_states: Keep the tokens before and after every block; else the last alone.

        Returns:
            Patches (B, N, D); the tokens before every block and after the last (and after the norm
            that follows it), each (B, N, D).
        """
        longest = self.config.pos_length * (self.config.mel_bins // self.config.patch_size)
        parts = patches.split(longest, dim=1)
        masks = [None] * len(parts) if valid is None else valid.split(longest, dim=1)
        encoded = [
            self._states(part, mask, all_states=all_states)
            for part, mask in zip(parts, masks, strict=True)
        ]
        states = [torch.cat(chunks, dim=1) for chunks in zip(*encoded, strict=True)]
        return states[-1], states

    def _states(self, x: Tensor, valid: Tensor | None, *, all_states: bool) -> list[Tensor]:
        mask = None
        if valid is not None:  # a clip without any in this chunk attends to all: none counts
            mask = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None]
        states = [x]
        for block in self.blocks:
            x = block(x, mask)
            states = [*states, x] if all_states else [x]
        states[-1] = self.norm(x)
        return states


class CEDClassifier(CEDEncoder):
    """An encoder with a norm and a linear head on its pooled output."""

    def __init__(self, config: CEDConfig) -> None:
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.head_size, config.head_norm_eps)
        self.head = nn.Linear(config.head_size, config.num_classes)


def renamed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under our names, and why others of a released state are not used."""
    named, ignored = {}, {}
    for name, tensor in state.items():
        plain = name.removeprefix("encoder.")
        if plain.endswith(COUNT):
            ignored[name] = "number of training batches"
            continue
        begin = next((old for old in RELEASED_NAMES if plain.startswith(old)), "")
        named[f"model.{RELEASED_NAMES.get(begin, '')}{plain.removeprefix(begin)}"] = tensor
    return named, ignored


class CEDPreTrainedModel(AudioModel):
    """Initialization and encoding of all CED and Dasheng models."""

    config_class = CEDConfig
    config: CEDConfig
    model: CEDEncoder
    _no_split_modules = ["Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as vision transformers are: normal with 0.02, norms that change nothing."""
        if isinstance(module, CEDEncoder):
            init.normal_(module.time_pos_embed, std=0.02)
            init.normal_(module.freq_pos_embed, std=0.02)
        elif isinstance(module, nn.Conv2d):
            init_patch_embedding(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | MelNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the positions."""
        return {"model.time_pos_embed", "model.freq_pos_embed"}

    @classmethod
    def convert_tensors(
        cls, tensors: dict[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, str]:
        """Rename the tensors of a released folder."""
        if "encoder.time_pos_embed" not in tensors:
            return {}
        ours, ignored = renamed(tensors)
        tensors.clear()
        tensors.update(ours)
        return ignored

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode decibels (B, T, 64), whose valid frames are given by a mask (B, T)."""
        valid = patches_valid(attention_mask, 16, self.grid(input_values)[1])
        embedded = self.model.embed(input_values)
        patches, states = self.model(embedded, valid, all_states=all_states)
        return EncoderOutput(
            pool(self.config.pooling, None, patches, valid), None, patches, states, valid
        )


class CEDModel(CEDPreTrainedModel, AudioEncoder):
    """The encoder: decibels in, one vector per clip and per patch out."""

    _keys_to_ignore_on_load_unexpected = [r"model\.(head|fc_norm)\."]
    network = CEDEncoder


class CEDForAudioClassification(CEDPreTrainedModel, AudioClassifier):
    """Encoder and classifier: decibels in, logits out."""

    model: CEDClassifier
    network = CEDClassifier
