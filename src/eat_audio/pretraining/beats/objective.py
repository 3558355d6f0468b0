"""BEATs pre-training objective: predict the tokenizer's label of every hidden patch.

    label = tokenizer(x)                        of every patch, from the whole clip
    p     = predictor(student(visible x), 0 elsewhere)
    L     = -log p(label)                       of the hidden patches

L is a mean over a clip's hidden patches, then over clips, whatever the batch; padding is neither
encoded nor attended to nor predicted. Positions enter only as distances between the patches that a
module is given. The first iteration's labels are nearest neighbors under a random projection; those
of later iterations come from a tokenizer that the model of the iteration before has taught.

Letters: B clips, N patches, V visible and H hidden ones, D width, T' x F' the grid, K codes.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2212.09058); the random
projection from Chiu et al., "Self-supervised Learning with Random-projection Quantizer for Speech
Recognition" (2202.01855).
"""

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.data.loader import Batch, whole_patches
from eat_audio.errors import SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.models.common.layers import masked_mean
from eat_audio.pretraining.beats import quantizer
from eat_audio.pretraining.beats.predictor import LabelPredictor
from eat_audio.pretraining.beats.quantizer import Codebook, code_usage
from eat_audio.pretraining.beats.stored_labels import StoredLabels
from eat_audio.pretraining.beats.tokenizer import (
    BEATsObjective,
    BEATsPretrainRun,
    Tokenizer,
    TokenizerRun,
    load_tokenizer,
    on_grid,
    projection,
)
from eat_audio.pretraining.diagnostics import label_shares
from eat_audio.pretraining.masked_patches import (
    gather_tokens,
    hidden_patches,
    mean_over_hidden,
    scatter_tokens,
    visible_patches,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun

SILENCE = 1e-8
"""Variance below which a patch is silence, whose rounding errors must not become a pattern."""


class RandomTokenizerSettings(Settings):
    """The tokenizer of the first iteration. The paper does not say what is normalized; taken
    literally (none, none, none), nearly all patches get the few labels of the shortest codes.
    """

    codes: int = Field(1024, ge=2, le=32_767)
    width: PositiveInt = 256
    """What patches of 256 values are projected to."""
    input_norm: Literal["none", "patch", "dim"] = "patch"
    """patch: every patch to mean 0 and variance 1, so that loudness does not decide; dim: every
    value of a patch over those of its clip."""
    projection_norm: Literal["none", "l2", "layernorm"] = "l2"
    code_norm: Literal["none", "l2"] = "l2"


class BEATsMethod(Settings):
    """Settings of the objective; the defaults are the paper's where it gives them."""

    tokenizer: str | None = None
    """A run of method beats_tokenizer, or a released tokenizer file, whose labels are predicted; if
    neither this nor `labels` is set, those of a random projection."""
    labels: str | None = None
    """A folder written by `eat tokenize`, instead of the tokenizer itself."""
    random: RandomTokenizerSettings = RandomTokenizerSettings()
    hidden_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of a clip's patches to hide."""
    predictor_layers: PositiveInt = 3
    fill: Literal["zeros", "learned"] = "zeros"
    """What replaces hidden patches in the predictor's input: zeros, or one learned token."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _labels_have_one_source(self) -> Self:
        if self.tokenizer and self.labels:
            both = f"tokenizer={self.tokenizer} and labels={self.labels}"
            raise ValueError(f"{both}: expected one of them")
        return self

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """Sample random masks by the clips' keys (B, 1)."""
        return random_masks(keys, grid, hidden_ratio=self.hidden_ratio, valid_columns=columns)


class RandomTokenizer(quantizer.Float32Buffers):
    """A frozen random projection and random codes: patches -> numbers of their nearest codes."""

    projection: Tensor
    codes: Tensor

    def __init__(
        self, settings: RandomTokenizerSettings, features: Any, *, patch: int, seed: int
    ) -> None:
        super().__init__()
        self.features: AudioFeatureExtractor = features
        self.settings, self.patch = settings, patch
        self.count = settings.codes
        inputs, width = patch**2, settings.width
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(inputs, width, generator=generator, device="cpu")
        self.register_buffer("projection", projection * (2 / (inputs + width)) ** 0.5)  # Xavier
        codes = torch.randn(settings.codes, width, generator=generator, device="cpu")
        self.register_buffer("codes", F.normalize(codes) if settings.code_norm == "l2" else codes)

    @torch.no_grad()
    def forward(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the labels (B, T', F') of spectrograms (B, T, F), -1 for padding."""
        side = self.patch
        with quantizer.no_autocast(spectrogram):
            squares = spectrogram.float().unflatten(2, (-1, side)).unflatten(1, (-1, side))
            grid = squares.shape[1], squares.shape[3]
            x = self._normalized(squares.transpose(2, 3).flatten(3).flatten(1, 2), valid)
            z = x @ self.projection  # (B, N, 256) -> (B, N, width)
            if self.settings.projection_norm == "l2":
                z = F.normalize(z, dim=-1)
            elif self.settings.projection_norm == "layernorm":
                z = F.layer_norm(z, z.shape[-1:])
            return on_grid(quantizer.distances(z, self.codes).argmin(dim=-1), valid, grid)

    def _normalized(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return patches (B, N, 256), normalized by `input_norm`."""
        if self.settings.input_norm == "none":
            return x
        if self.settings.input_norm == "patch":
            variance, mean = torch.var_mean(x, dim=2, keepdim=True, correction=0)
        else:
            mean = masked_mean(x, valid)[:, None]
            variance = masked_mean((x - mean).square(), valid)[:, None]
        normalized = (x - mean) * variance.clamp(min=SILENCE).rsqrt()
        return torch.where(variance > SILENCE, normalized, 0.0)


class ConstantLabels(nn.Module):
    """Label 0 everywhere, in place of stored labels, to count operations with."""

    count = 1024

    def __init__(self, features: AudioFeatureExtractor) -> None:
        super().__init__()
        self.features = features

    def forward(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return labels (B, T', F')."""
        return torch.zeros_like(spectrogram[:, ::16, ::16], dtype=torch.int64)


class BEATsPretraining(BEATsObjective):
    """BEATs objective: predict the tokenizer's label of every hidden patch."""

    frozen = ("tokenizer",)
    collapse_limits: ClassVar = {
        "target_perplexity": ("labels", 3.0),
        "prediction_perplexity": ("predictions", 1.01),
    }
    method: BEATsMethod
    tokenizer: RandomTokenizer | Tokenizer | ConstantLabels | None
    stored: StoredLabels | None

    def build(
        self, config: BEATsConfig, tokenizer: Tokenizer | ConstantLabels | None = None
    ) -> None:
        """Create tokenizer or stored labels, student and predictor."""
        method = self.method
        self.tokenizer, self.stored = tokenizer, None
        if tokenizer is None and method.labels is not None:
            self.stored = StoredLabels(method.labels)
            seconds = self.stored.seconds
            if whole_patches(seconds) != self.frames:
                raise SettingError(
                    f"{method.labels}: holds labels of the first {seconds:g} s of clips; "
                    f"expected clips.seconds={seconds:g}"
                )
        elif tokenizer is None and method.tokenizer is not None:
            self.tokenizer = load_tokenizer(method.tokenizer)
        elif tokenizer is None:
            self.tokenizer = RandomTokenizer(
                method.random, self.features, patch=config.patch_size, seed=self.seed
            )
        self.count = (self.stored or self.tokenizer).count  # type: ignore[union-attr]
        self.student = BEATsModel(config)
        self.predictor = LabelPredictor(
            config, layers=method.predictor_layers, inputs=None, outputs=self.count
        )
        self.mask_token: nn.Parameter | None = None
        if method.fill == "learned":
            self.mask_token = nn.Parameter(0.02 * torch.randn(config.encoder_embed_dim))

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch; the generator is not used."""
        log_mel, masks, _ = self.masked_batch(batch)
        return self.losses(log_mel, masks, self.labels(batch, log_mel))

    @torch.no_grad()
    def labels(self, batch: Batch, log_mel: LogMelBatch) -> Tensor:
        """Return the labels of all patches (B, T', F'), -1 for padding."""
        grid = self.student.grid(log_mel.values)
        if self.stored is not None:
            labels = self.stored.lookup(batch, grid)
            return labels.to(log_mel.values.device, non_blocking=True)
        assert self.tokenizer is not None
        log_mel = self.log_mel_of(self.tokenizer.features, batch, log_mel)
        return self.tokenizer(log_mel.values, log_mel.patch_mask(grid[1]))

    def losses(self, log_mel: LogMelBatch, masks: Masks, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses above, for labels (B, T', F')."""
        hidden_ids, weights = hidden_patches(masks)  # (B, H), (B, H)
        valid = log_mel.patch_mask(self.student.grid(log_mel.values)[1])
        visible = self.encode_visible(log_mel.values, masks)  # (B, V, D)
        x = self.decoder_input(visible, masks)  # (B, N, D)
        encoded = self.predictor.hidden_states(x, valid)  # (B, N, D)
        logits = self.predictor.predict(gather_tokens(encoded, hidden_ids)).float()  # (B, H, K)

        labels = labels.flatten(1)
        target = labels.gather(1, hidden_ids).clamp(min=0)  # 0 for padding, whose weight is 0
        error = F.cross_entropy(
            logits.transpose(1, 2),
            target,
            reduction="none",
            label_smoothing=self.method.label_smoothing,
        )
        with torch.no_grad():
            prediction = logits.argmax(dim=2)
            target_usage = code_usage(target, weights, self.count)
            prediction_usage = code_usage(prediction, weights, self.count)
            visible_accuracy = self._visible_accuracy(encoded, masks, labels)
        return {
            "loss": mean_over_hidden(error, weights),
            "accuracy": _accuracy(prediction == target, weights),
            "visible_accuracy": visible_accuracy,
            **{f"target_{name}": value for name, value in target_usage.items()},
            "prediction_used": prediction_usage["used"],
            "prediction_perplexity": prediction_usage["perplexity"],
            **label_shares(labels, valid, self.count),
        }

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> Tensor:
        """Return the student's tokens (B, V, D) of the visible patches alone, in their order."""
        student = self.student.model
        ids, valid = visible_patches(masks)
        return student(gather_tokens(student.embed(spectrogram), ids), valid)[0]

    def decoder_input(self, visible: Tensor, masks: Masks) -> Tensor:
        """Return the grid (B, N, D) of visible tokens (B, V, D), with one token for all others."""
        fill = visible.new_zeros(visible.shape[2]) if self.mask_token is None else self.mask_token
        background = fill.to(visible.dtype).expand(len(visible), masks.n_patches, -1)
        return scatter_tokens(visible, masks.visible[:, 0], background)

    def _visible_accuracy(self, encoded: Tensor, masks: Masks, labels: Tensor) -> Tensor:
        """Return the accuracy on visible patches, which is not trained for."""
        ids, valid = visible_patches(masks)
        prediction = self.predictor.predict(gather_tokens(encoded.detach(), ids)).argmax(dim=2)
        weights = torch.ones_like(ids) if valid is None else valid
        return _accuracy(prediction == labels.gather(1, ids), weights.float())

    def input_contents(self) -> str:
        """Return a fingerprint of the stored labels, if there are any."""
        return f", labels {self.stored.contents()}" if self.stored is not None else ""


def _accuracy(correct: Tensor, weights: Tensor) -> Tensor:
    return (correct * weights).sum() / weights.sum().clamp(min=1)


class BEATsRun(BEATsMethod, BEATsPretrainRun):
    """Settings of a BEATs pre-training run."""

    objective: ClassVar[type[Pretraining]] = BEATsPretraining
    mask_description: ClassVar[str] = (
        "The student encodes some patches of a clip; the predictor predicts the labels that a "
        "tokenizer of the whole clip gives to all others."
    )
    input_setting: ClassVar[str | None] = "tokenizer"

    method: Literal["beats"] = "beats"

    def untrained_inputs(
        self, features: AudioFeatureExtractor, producer: PretrainRun | None
    ) -> dict[str, Any]:
        """Return a tokenizer with random weights, where the run would load one."""
        if self.labels is not None:
            return {"tokenizer": ConstantLabels(features)}
        if self.tokenizer is None:
            return {}
        run = producer or TokenizerRun(encoder=self.encoder)
        assert isinstance(run, TokenizerRun)
        config, book = run.config(), Codebook(run.codes, run.code_width)
        between = projection(config, run.code_width)
        return {"tokenizer": Tokenizer(BEATsModel(config), between, book, features).frozen()}

    @model_validator(mode="after")
    def _stored_labels_are_of_beginnings(self) -> Self:
        expected: dict[str, Any] = {
            "crop": "start",
            "silence": "keep",
            "short": "pad",
            "roll": False,
        }
        for name, value in expected.items() if self.labels else ():
            if (given := getattr(self.clips, name)) != value:
                raise ValueError(
                    f"clips.{name}={given}: stored labels are of the beginnings of clips; "
                    f"expected clips.{name}={value}, or tokenizer=RUN instead of labels"
                )
        return self


RUN = BEATsRun
