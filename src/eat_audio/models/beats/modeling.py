"""The BEATs encoder and classifier as Hugging Face models.

    tokens = proj(norm(patches(x)));  tokens = norm(tokens + gelu(conv(tokens))) -> blocks
    x      = norm1(a x + attn(x));    x      = norm2(a x + mlp(x)),        a = (2 depth)^(1/4)
    scores = q k^T / sqrt(d) + gate(q) * bias(key - query)

A convolution over the time-major sequence and a bias by distance in it are the only positions, so
clips may have any length. As released, patches of padding are 0 before that convolution and are not
attended to; since a sequence is padded with zeros, too, a clip's result does not depend on padding.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2212.09058); DeepNorm from
"DeepNet" (2203.00555), which has the factor a; the gated bias from WavLM (2110.13900).
"""

import math
from collections.abc import Callable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from eat_audio.models.common.base import GradientCheckpointingLayer
from eat_audio.models.common.layers import (
    MLP,
    Attention,
    PatchEmbedding,
    check_spectrogram,
    convolve,
    masked_mean,
    pool,
)
from eat_audio.models.common.modeling import (
    AudioClassifier,
    AudioConfig,
    AudioEncoder,
    AudioModel,
    EncoderOutput,
    vector_layers_of,
)

SIZES: dict[str, dict[str, int]] = {
    name: {
        "embed_dim": width // 3 * 2,
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": width // 64,
    }
    for name, width, layers in (("tiny", 192, 6), ("small", 384, 12), ("base", 768, 12))
}
"""Base as released; tiny and small train on a laptop."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
POOLINGS = ("mean", "linear_softmax", "statistics")


class BEATsConfig(AudioConfig):
    """The shape of a BEATs encoder; field names are those of the released `cfg`.

    Args:
        embed_dim: Width of an embedded patch, before it is projected to that of a token.
        layer_norm_first: Norms come before attention and MLP; not together with `deep_norm`.
        deep_norm: Residual streams grow by (2 layers)^(1/4) before every sum.
        dropout: Of tokens, and of what attention and MLP add to them.
        encoder_layerdrop: Share of clips for which a block is skipped in training.
        conv_pos: Taps of the convolution that gives tokens their positions.
        relative_position_embedding: Whether scores are biased by distance.
        num_buckets: Number of biases, for the ranges of distances in both directions.
        max_distance: Where the last range begins.
        gru_rel_pos: Whether every query gates its biases.
        layer_wise_gradient_decay_ratio: Factor of the gradient at the input of every block.
        predictor_dropout: Of patches, before the classifier.
        pooling: The vector of a clip: "mean" of the patches (and of their logits, as released),
            "linear_softmax" over them, or "statistics" (their mean and deviation).
    """

    sizes = SIZES
    has_cls = False
    finetune_fields = {
        "drop_path": "encoder_layerdrop",
        "gradient_decay": "layer_wise_gradient_decay_ratio",
    }
    # as in the released fine-tuned models nothing is dropped but blocks
    finetune_constants = dict.fromkeys(
        ("dropout", *(f"{part}_dropout" for part in ("attention", "activation", "predictor"))), 0.0
    ) | {"dropout_input": 0.0}
    model_type = "beats"
    attribute_map = {
        "hidden_size": "encoder_embed_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "patch_size": "input_patch_size",
    }

    def __init__(
        self,
        input_patch_size: int = 16,
        embed_dim: int = 512,
        conv_bias: bool = False,
        encoder_layers: int = 12,
        encoder_embed_dim: int = 768,
        encoder_ffn_embed_dim: int = 3072,
        encoder_attention_heads: int = 12,
        activation_fn: str = "gelu",
        layer_norm_first: bool = False,
        deep_norm: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        dropout_input: float = 0.1,
        encoder_layerdrop: float = 0.05,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
        relative_position_embedding: bool = True,
        num_buckets: int = 320,
        max_distance: int = 800,
        gru_rel_pos: bool = True,
        layer_wise_gradient_decay_ratio: float = 1.0,
        predictor_dropout: float = 0.0,
        pooling: str = "mean",
        mel_bins: int = 128,
        num_classes: int = 527,
        **kwargs: Any,
    ) -> None:
        super().__init__(locals(), **kwargs)

    def _validate(self) -> None:
        width, side = self.encoder_embed_dim, self.input_patch_size
        for part in ("encoder_attention_heads", "conv_pos_groups"):
            if width % getattr(self, part):
                raise ValueError(
                    f"encoder_embed_dim={width} is not divisible by {part}={getattr(self, part)}"
                )
        if self.mel_bins % side or side % (self.mel_bins // side):
            raise ValueError(
                f"input_patch_size={side} does not fit {self.mel_bins} mel bins; expected so many "
                "patches of them that their number divides its frames (8 patches of 16 in 128)"
            )
        self._validate_choice("activation_fn", tuple(ACTIVATIONS))
        self._validate_choice("pooling", POOLINGS)
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other")
        if self.gru_rel_pos and not self.relative_position_embedding:
            raise ValueError("gru_rel_pos needs relative_position_embedding, which it gates")
        if (
            self.num_buckets < 4
            or self.num_buckets % 4
            or self.max_distance * 4 <= self.num_buckets
        ):
            raise ValueError(
                f"num_buckets={self.num_buckets}, max_distance={self.max_distance}: expected a "
                "multiple of 4, and more than a quarter of it"
            )

    @classmethod
    def named(cls, size: str, **changes: Any) -> Self:
        """Return one of the usual sizes, with changes; see `AudioConfig.named`."""
        if "mlp_ratio" in changes:
            width = changes.get("hidden_size", cls.sizes[size]["encoder_embed_dim"])
            changes["encoder_ffn_embed_dim"] = int(changes.pop("mlp_ratio") * width)
        return super().named(size, **changes)

    @property
    def residual_scale(self) -> float:
        """DeepNorm's alpha, the factor of a residual stream before something is added."""
        return (2 * self.encoder_layers) ** 0.25 if self.deep_norm else 1.0

    @property
    def branch_scale(self) -> float:
        """DeepNorm's beta, the gain of initial weights of what is added to a residual stream."""
        return (8 * self.encoder_layers) ** -0.25


# ---- positions ----


class ConvolvedPositions(nn.Module):
    """Positions of tokens (R, N, D) from their neighbors: gelu(conv(x)), weight = g * v / |v|."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        width, self.groups = config.encoder_embed_dim, config.conv_pos_groups
        self.taps = config.conv_pos
        # transformers 5.2 would rename weight_g and weight_v, the names in released files
        self.length = nn.Parameter(torch.empty(1, 1, self.taps))
        self.direction = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(self.direction, dim=(0, 1), keepdim=True)
        weight = self.direction * (self.length / lengths)
        half = self.taps // 2
        mixed = convolve(x.transpose(1, 2), weight, self.bias, padding=half, groups=self.groups)
        # an even number of taps gives one token too many
        return F.gelu(mixed[..., : x.shape[1]]).transpose(1, 2)


def buckets(distances: Tensor, *, count: int, longest: int) -> Tensor:
    """Return the bucket (of `count`) of each distance in the sequence (key - query), int64.

    Half of the buckets are for keys that follow. In each half, the first half is of one distance
    each, the others of ranges that grow logarithmically; the last has no end.
    """
    half = count // 2
    near = half // 2
    far = distances.abs()
    # float32 and its truncation, as released
    share = torch.log(far.clamp_min(1).float() / near) / math.log(longest / near)
    ranged = near + (share * (half - near)).long()
    return torch.where(far < near, far, ranged.clamp_max(half - 1)) + half * (distances > 0)


class RelativeBias(nn.Module):
    """A learned bias for every head and distance; one table for all blocks."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        self.longest = config.max_distance
        self.table = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self._buckets: Tensor | None = None

    def forward(self, tokens: int) -> Tensor:
        """Return biases (1, H, N, N) of sequences of N tokens: row by query, column by key."""
        biases = self.table(self._distance_buckets(tokens)).t()  # (H, 2N - 1)
        ids = torch.arange(tokens, device=biases.device)
        return biases[:, ids - ids[:, None] + tokens - 1][None]

    def _distance_buckets(self, tokens: int) -> Tensor:
        """The buckets of distances from 1 - tokens to tokens - 1."""
        table, device = self._buckets, self.table.weight.device
        if table is None or len(table) < 2 * tokens - 1 or table.device != device:
            with torch.inference_mode(False):  # the table is used in training, too
                # on the CPU, whose logarithm decides at the edges of ranges
                distances = torch.arange(1 - tokens, tokens, device="cpu")
                count = self.table.num_embeddings
                table = buckets(distances, count=count, longest=self.longest).to(device)
            self._buckets = table
        middle = len(table) // 2
        return table[middle - tokens + 1 : middle + tokens]


# ---- blocks ----


class GatedAttention(Attention):
    """Multi-head self-attention with biased scores, where every query gates its biases."""

    def __init__(self, config: BEATsConfig) -> None:
        width, heads = config.encoder_embed_dim, config.encoder_attention_heads
        super().__init__(width, heads, bias=True, dropout=config.attention_dropout, config=config)
        self.gated = config.gru_rel_pos
        if self.gated:
            self.gate = nn.Linear(width // heads, 8)
            self.gate_scale = nn.Parameter(torch.empty(1, heads, 1, 1))

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """Mix tokens (R, N, D) under a mask of valid keys (R, 1, 1, N) and biases (1, H, N, N)."""
        q, k, v = self.split(x)
        return self.mix(q, k, v, mask if bias is None else self._biases(q, bias, mask))

    def _biases(self, q: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Biases of the scores of queries (R, H, N, d): (R or 1, H, N, N)."""
        if self.gated:
            update, reset = self.gate(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
            bias = bias * (update * (reset * self.gate_scale - 1) + 2)
        bias = bias.to(q.dtype)
        return bias if mask is None else bias.masked_fill(~mask, torch.finfo(q.dtype).min)


class Block(GradientCheckpointingLayer):
    """A transformer block; its norms follow the residual sums unless the configuration differs."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.attn = GatedAttention(config)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = MLP(
            width,
            config.encoder_ffn_embed_dim,
            config.activation_dropout,
            ACTIVATIONS[config.activation_fn],
        )
        self.norm2 = nn.LayerNorm(width)
        self.dropout = config.dropout
        self.norm_first = config.layer_norm_first
        self.scale = config.residual_scale

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """Tokens (R, N, D) -> tokens; `mask` and `bias` as in `GatedAttention`."""
        if self.norm_first:
            x = x + self._dropped(self.attn(self.norm1(x), mask, bias))
            return x + self._dropped(self.mlp(self.norm2(x)))
        x = self.norm1(x * self.scale + self._dropped(self.attn(x, mask, bias)))
        return self.norm2(x * self.scale + self._dropped(self.mlp(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


# ---- the encoder ----


class BEATsEncoder(nn.Module):
    """The encoder as a plain module that takes all patches or some."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        inner, width = config.embed_dim, config.encoder_embed_dim
        self.config = config
        self.local_encoder = PatchEmbedding(inner, config.input_patch_size, bias=config.conv_bias)
        self.patch_norm = nn.LayerNorm(inner)
        self.patch_proj = nn.Identity() if inner == width else nn.Linear(inner, width)
        self.positions = ConvolvedPositions(config)
        self.norm = nn.LayerNorm(width)
        self.relative_bias = RelativeBias(config) if config.relative_position_embedding else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.encoder_layers))

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Log-mel (B, T, F), or (B, 1, T, F), -> patches (B, N, D), without positions."""
        side = self.config.input_patch_size
        spectrogram = check_spectrogram(spectrogram, patch=side, bins=self.config.mel_bins)
        # in the precision of the weights: models can be loaded in half precision
        spectrogram = spectrogram.to(self.local_encoder.proj.weight.dtype)
        patches = self.patch_proj(self.patch_norm(self.local_encoder(spectrogram)))
        return F.dropout(patches, self.config.dropout_input, self.training)

    def forward(
        self, patches: Tensor, valid: Tensor | None = None, *, all_states: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode embedded patches (R, N, D), all of a clip or some, positioned as given.

        Args:
            patches: From `embed`, or a selection in order.
            valid: (R, N), False for patches that are not attended to; None if all are valid.
            all_states: Keep the tokens before and after every block; else the last alone.

        Returns:
            Patches (R, N, D); the tokens before every block and after the last (those are the
            patches), each (R, N, D).
        """
        settings = self.config
        x = patches if valid is None else patches.masked_fill(~valid[..., None], 0)
        x = x + self.positions(x)
        if not settings.layer_norm_first:
            x = self.norm(x)
        x = F.dropout(x, settings.dropout, self.training)
        bias = None if self.relative_bias is None else self.relative_bias(x.shape[1])
        mask = None if valid is None else valid[:, None, None]
        states = [x]
        for block in self.blocks:
            if settings.layer_wise_gradient_decay_ratio != 1:
                x = _ScaledGradient.apply(x, settings.layer_wise_gradient_decay_ratio)
            x = self._layer_drop(x, block(x, mask, bias))
            states = [*states, x] if all_states else [x]
        if settings.layer_norm_first:
            x = states[-1] = self.norm(x)
        return x, states

    def _layer_drop(self, x: Tensor, output: Tensor) -> Tensor:
        """Replace a block's output by its input, for some clips in training.

        The released code decides for whole batches; by clip, results do not depend on the batch and
        all processes use the same parameters.
        """
        share = self.config.encoder_layerdrop
        if share == 0 or not self.training:
            return output
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= share
        return torch.where(keep, output, x.to(output.dtype))


class BEATsClassifier(BEATsEncoder):
    """An encoder with a linear head on its patches."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.head_size, config.num_classes)


def patches_valid(attention_mask: Tensor | None, patch: int, rows: int) -> Tensor | None:
    """Turn a mask of valid frames (B, T) into one of patches (B, N), by the released rule.

    The n-th patch is valid if any of the n-th T / N frames is (two for patches of 16 x 16 in 128
    bins), not of its own: a column in whose middle a clip ends is valid in its first rows. The
    clips of `BEATsFeatureExtractor` end with a column, where that makes no difference.
    """
    if attention_mask is None:
        return None
    return attention_mask.bool().unflatten(1, (-1, patch // rows)).any(dim=2)


class BEATsPreTrainedModel(AudioModel):
    """Initialization and encoding of all BEATs models."""

    config_class = BEATsConfig
    config: BEATsConfig
    _no_split_modules = ["Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as released (`base_init_stats` in the tests)."""
        if isinstance(module, nn.Linear):
            self._init_linear(module)
        elif isinstance(module, nn.Conv2d):
            _init_uniform(module)
        elif isinstance(module, ConvolvedPositions):
            width, _, taps = module.direction.shape
            init.normal_(module.direction, std=2 / (taps * width) ** 0.5)
            lengths = torch.linalg.vector_norm(module.direction, dim=(0, 1), keepdim=True)
            init.copy_(module.length, lengths)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, GatedAttention) and module.gated:
            init.ones_(module.gate_scale)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _init_linear(self, layer: nn.Linear) -> None:
        """Initialize a layer by its name: transformers passes those alone that a file lacks."""
        name = next(name for name, module in self.named_modules() if module is layer)
        if ".blocks." not in name:
            return _init_uniform(layer)
        part = name.rpartition(".")[2]
        if part == "gate" or not self.config.deep_norm:
            init.normal_(layer.weight, std=0.02)
        elif part == "qkv":  # Xavier's law for each of the three, for values with less gain
            std = torch.tensor([1.0, 1.0, self.config.branch_scale]).to(layer.weight)
            std = std.repeat_interleave(layer.in_features)[:, None] * layer.in_features**-0.5
            init.copy_(layer.weight, torch.randn_like(layer.weight) * std)
        else:
            init.xavier_normal_(layer.weight, gain=self.config.branch_scale)
        init.zeros_(layer.bias)

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode spectrograms (B, T, 128), whose valid frames are given by a mask (B, T)."""
        encoder = cast(BEATsEncoder, self.model)
        side, rows = self.config.input_patch_size, self.grid(input_values)[1]
        valid = patches_valid(attention_mask, side, rows)
        embedded = encoder.embed(input_values)
        patches, states = encoder(embedded, valid, all_states=all_states)
        clip = pool(self.config.pooling, None, patches, valid)
        return EncoderOutput(clip, None, patches, states, valid)


def _init_uniform(layer: nn.Linear | nn.Conv2d) -> None:
    """Initialize as torch does: uniform up to 1 / sqrt(inputs)."""
    bound = layer.weight[0].numel() ** -0.5
    init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        init.uniform_(layer.bias, -bound, bound)


class BEATsModel(BEATsPreTrainedModel, AudioEncoder):
    """The encoder: normalized log-mel in, one vector per clip and per patch out."""

    _keys_to_ignore_on_load_unexpected = [r"model\.head\."]

    model: BEATsEncoder
    network = BEATsEncoder


class BEATsForAudioClassification(BEATsPreTrainedModel, AudioClassifier):
    """Encoder and classifier: normalized log-mel in, logits out."""

    model: BEATsClassifier
    network = BEATsClassifier

    def normed(self, vectors: Tensor) -> Tensor:
        """Return vectors of clips as they enter the linear head: (B, `config.head_size`)."""
        return F.dropout(vectors, self.config.predictor_dropout, self.training)

    def logits(self, encoded: EncoderOutput) -> Tensor:
        """Return logits (B, classes): with mean pooling, the mean of the logits of patches."""
        if self.config.pooling != "mean" or vector_layers_of(self.config) is not None:
            return super().logits(encoded)
        patches = F.dropout(encoded.patches, self.config.predictor_dropout, self.training)
        return masked_mean(self.model.head(patches), encoded.valid)
