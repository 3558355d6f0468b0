"""Tokens on the whole grid -> a guess for each: what both halves of BEATs' pre-training throw away.

As label predictor it guesses the labels of patches that the encoder has not seen; as estimator of
the tokenizer, what a teacher hears in them.

Letters: B clips, N patches, M of them, D width.

Chen et al., "BEATs" (2212.09058), sections 3.2 and 3.3. The paper says a Transformer of 3 layers;
that its blocks are those of the encoder, without convolved positions, is how OpenBEATs reads it.
"""

from torch import Tensor, nn

from eat_audio.models.beats.modeling import BEATsConfig, BEATsPreTrainedModel, Block, RelativeBias


class _Blocks(nn.Module):
    """The estimator proper; its parts carry the names by which the encoder's are initialized."""

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

    Args:
        config: That of the encoder.
        layers: Number of blocks, which DeepNorm's factors follow.
        inputs: Width of what comes in, if it is not the encoder's.
        outputs: Width of what goes out, if it is not the encoder's.
    """

    def __init__(
        self,
        config: BEATsConfig,
        *,
        layers: int,
        inputs: int | None = None,
        outputs: int | None = None,
    ) -> None:
        changes = {"encoder_layers": layers, "relative_position_embedding": True}
        super().__init__(BEATsConfig(**{**config.to_dict(), **changes}))
        self.model = _Blocks(self.config, inputs, outputs)
        self.post_init()

    def listen(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens (B, N, ...) -> what the blocks make of them, (B, N, D).

        Nobody listens to tokens that are not `real` (B, N).
        """
        inside = self.model
        if isinstance(inside.proj, nn.Linear):  # codes are in float32, its weights perhaps not
            x = inside.proj(x.to(inside.proj.weight.dtype))
        bias = inside.relative_bias(x.shape[1])
        mask = None if real is None else real[:, None, None]
        for block in inside.blocks:
            x = block(x, mask, bias)
        return x

    def prediction(self, x: Tensor) -> Tensor:
        """What is guessed of tokens (B, M, D) that have listened: (B, M, outputs)."""
        return self.model.head(self.model.norm(x))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens (B, N, ...) -> guesses (B, N, outputs)."""
        return self.prediction(self.listen(x, real))
