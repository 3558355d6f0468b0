"""Transformer over the whole grid: label predictor of BEATs and estimator of its tokenizer.

Both are discarded after training. Letters: B clips, N patches, M of them, D width.

Chen et al., "BEATs" (2212.09058), sections 3.2 and 3.3. The paper says a Transformer of 3 layers;
that its blocks are those of the encoder, without convolved positions, is how OpenBEATs reads it.
"""

from torch import Tensor, nn

from eat_audio.models.beats.modeling import BEATsConfig, BEATsPreTrainedModel, Block, RelativeBias


class _Blocks(nn.Module):
    """The layers, under the names by which those of the encoder are initialized."""

    def __init__(self, config: BEATsConfig, inputs: int | None, outputs: int | None) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.proj = nn.Identity() if inputs is None else nn.Linear(inputs, width)
        self.relative_bias = RelativeBias(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Identity() if outputs is None else nn.Linear(width, outputs)


class LabelPredictor(BEATsPreTrainedModel):
    """A few of the encoder's blocks over all patches of a clip, a norm, and a linear map.

    DeepNorm's factors depend on the number of layers. Widths of inputs and outputs are the
    encoder's if None.
    """

    def __init__(
        self, config: BEATsConfig, *, layers: int, inputs: int | None, outputs: int | None
    ) -> None:
        changes = {"encoder_layers": layers, "relative_position_embedding": True}
        super().__init__(BEATsConfig(**{**config.to_dict(), **changes}))
        self.model = _Blocks(self.config, inputs, outputs)
        self.post_init()

    def hidden_states(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Pass tokens (B, N, ...) through the blocks, (B, N, D); only `valid` (B, N) are keys."""
        layers = self.model
        if isinstance(layers.proj, nn.Linear):  # codes are float32, its weights perhaps not
            x = layers.proj(x.to(layers.proj.weight.dtype))
        bias = layers.relative_bias(x.shape[1])
        mask = None if valid is None else valid[:, None, None]
        for block in layers.blocks:
            x = block(x, mask, bias)
        return x

    def predict(self, x: Tensor) -> Tensor:
        """Map encoded tokens (B, M, D) to predictions (B, M, outputs)."""
        return self.model.head(self.model.norm(x))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, ...) to predictions (B, N, outputs)."""
        return self.predict(self.hidden_states(x, valid))
