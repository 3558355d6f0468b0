"""Masked clip -> loss: the BEATs objective, the part that dies with pre-training.

    label = tokenizer(x)                        of every patch, from the whole clip
    p     = predictor(student(visible x), 0 elsewhere)
    L     = -log p(label)                       of the hidden patches

L is a mean over a clip's hidden patches, then over clips, so that it means the same whatever the
batch; padding is neither seen, nor listened to, nor guessed. Neither half knows where a patch is
but by the distances between those it is given: the student's are those in what it sees.

The first iteration's labels are nearest neighbours under a projection that is drawn, not learnt;
those of later ones come from a tokenizer that the model of the iteration before has taught.

Letters: B clips, N patches, V visible and H hidden ones, D width, T' x F' the grid, K codes.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2212.09058); the drawn
projection from Chiu et al., "Self-supervised Learning with Random-projection Quantizer for Speech
Recognition" (2202.01855).
"""

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.data.loader import Batch, whole_patches
from eat_audio.errors import SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, LogMelBatch
from eat_audio.models.common.layers import masked_mean
from eat_audio.pretraining.beats.predictor import LabelPredictor
from eat_audio.pretraining.beats.quantizer import Float32Buffers, code_usage, distances
from eat_audio.pretraining.beats.stored_labels import StoredLabels
from eat_audio.pretraining.beats.tokenizer import (
    BEATsPretrainRun,
    Tokenizer,
    batch_log_mel,
    load_tokenizer,
    log_mel_again,
    on_grid,
)
from eat_audio.pretraining.masked_patches import hidden_patches, mean_over_hidden, select
from eat_audio.pretraining.method import Pretraining, collapse_warning
from eat_audio.rng import clip_keys

FEW = 3.0
"""Perplexity of labels below which there is little to guess."""
SILENT = 1e-8
"""Variance below which a patch is silence, whose rounding shall not become a pattern."""


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
    """All that makes the objective what it is; the defaults are the paper's where it tells them."""

    tokenizer: str | None = None
    """A run of method beats_tokenizer, or a released tokenizer file, whose labels are guessed; if
    neither this nor `labels` is set, those of a drawn projection."""
    labels: str | None = None
    """A folder that `eat tokenize` has written, instead of the tokenizer itself."""
    random: RandomTokenizerSettings = RandomTokenizerSettings()
    hidden_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of a clip's patches to hide."""
    predictor_layers: PositiveInt = 3
    fill: Literal["zeros", "learned"] = "zeros"
    """What stands in the predictor for hidden patches: zeros, or one token that learns."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _labels_have_one_source(self) -> Self:
        if self.tokenizer and self.labels:
            raise ValueError(
                f"tokenizer={self.tokenizer} and labels={self.labels}: expected one of them"
            )
        return self

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """What the student sees of clips, by their keys (B, 1); `columns` (B,) of each are real."""
        return random_masks(keys, grid, hidden_ratio=self.hidden_ratio, valid_columns=columns)


class RandomTokenizer(Float32Buffers):
    """A drawn projection and drawn codes, frozen: patches -> the numbers of their nearest codes."""

    projection: Tensor
    codes: Tensor

    def __init__(
        self,
        settings: RandomTokenizerSettings,
        features: BEATsFeatureExtractor,
        *,
        patch: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.features = features
        self.patch = patch
        generator = torch.Generator().manual_seed(seed)
        inputs, width = patch**2, settings.width
        drawn = torch.randn(inputs, width, generator=generator)
        self.register_buffer("projection", drawn * (2 / (inputs + width)) ** 0.5)  # Xavier's law
        codes = torch.randn(settings.codes, width, generator=generator)
        self.register_buffer("codes", F.normalize(codes) if settings.code_norm == "l2" else codes)

    @property
    def count(self) -> int:
        """How many labels there are."""
        return self.settings.codes

    @torch.no_grad()
    def labels(self, spectrogram: Tensor, real: Tensor | None = None) -> Tensor:
        """The labels of the patches of spectrograms (B, T, F): (B, T', F'), -1 for padding."""
        side = self.patch
        with torch.autocast(spectrogram.device.type, enabled=False):
            squares = spectrogram.float().unflatten(2, (-1, side)).unflatten(1, (-1, side))
            grid = squares.shape[1], squares.shape[3]
            x = self._normed(squares.transpose(2, 3).flatten(3).flatten(1, 2), real)  # (B, N, 256)
            z = x @ self.projection
            if self.settings.projection_norm == "l2":
                z = F.normalize(z, dim=-1)
            elif self.settings.projection_norm == "layernorm":
                z = F.layer_norm(z, z.shape[-1:])
            return on_grid(distances(z, self.codes).argmin(dim=-1), real, grid)

    def _normed(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Patches (B, N, 256), normalized as the settings say."""
        how = self.settings.input_norm
        if how == "none":
            return x
        if how == "patch":
            variance, mean = torch.var_mean(x, dim=2, keepdim=True, correction=0)
        else:
            mean = masked_mean(x, real)[:, None]
            variance = masked_mean((x - mean).square(), real)[:, None]
        loud = variance > SILENT
        return torch.where(loud, (x - mean) * variance.clamp(min=SILENT).rsqrt(), 0.0)


class BEATsPretraining(Pretraining):
    """Teaches `student` to tell, from a quarter of the patches, what the others are called."""

    student: BEATsModel

    def __init__(
        self,
        config: BEATsConfig,
        method: BEATsMethod,
        features: BEATsFeatureExtractor,
        *,
        frames: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method = method
        self.features = features
        self.frames = frames
        self.seed = seed
        self.stored: StoredLabels | None = None
        self.tokenizer: RandomTokenizer | Tokenizer | None = None
        if method.labels is not None:
            self.stored = _stored(method.labels, frames)
            self.count = self.stored.count
        elif method.tokenizer is not None:
            self.tokenizer = load_tokenizer(method.tokenizer)
            self.count = self.tokenizer.count
        else:
            self.tokenizer = RandomTokenizer(
                method.random, features, patch=config.patch_size, seed=seed
            )
            self.count = self.tokenizer.count
        self.student = BEATsModel(config)
        self.predictor = LabelPredictor(config, layers=method.predictor_layers, outputs=self.count)
        self.mask_token: nn.Parameter | None = None
        if method.fill == "learned":
            self.mask_token = nn.Parameter(0.02 * torch.randn(config.encoder_embed_dim))

    def train(self, mode: bool = True) -> Self:
        """The student learns; the tokenizer never does."""
        super().train(mode)
        if self.tokenizer is not None:
            self.tokenizer.eval()
        return self

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's losses for a batch of clips; "loss" is the one to differentiate.

        All that is drawn is drawn by clip and epoch, so `generator` is not used.
        """
        with torch.no_grad():
            spectrograms = batch_log_mel(self.features, batch, self.frames)
            keys = clip_keys(self.seed, batch.epochs, batch.clips, 1)
            grid = self.student.grid(spectrograms.values)
            masks = self.method.sample_masks(keys, grid, spectrograms.columns)
            labels = self.labels(batch, spectrograms)
        return self.losses(spectrograms, masks, labels)

    def labels(self, batch: Batch, spectrograms: LogMelBatch) -> Tensor:
        """What the patches of a batch are called, -1 for padding: (B, T', F')."""
        grid = self.student.grid(spectrograms.values)
        if self.stored is not None:
            return self.stored.of(batch, grid).to(spectrograms.values.device)
        assert self.tokenizer is not None
        other = log_mel_again(self.tokenizer.features, self.features, batch, spectrograms)
        return self.tokenizer.labels(other.values, other.patch_mask(grid[1]))

    def losses(self, spectrograms: LogMelBatch, masks: Masks, labels: Tensor) -> dict[str, Tensor]:
        """The equations above, for labels (B, T', F')."""
        wanted, weights = hidden_patches(masks)  # (B, H), (B, H)
        seen = self.encode_visible(spectrograms.values, masks)  # (B, V, D)
        decoder_input = self.decoder_input(seen, masks)  # (B, N, D)
        valid = spectrograms.patch_mask(self.student.grid(spectrograms.values)[1])
        told = self.predictor.listen(decoder_input, valid)
        prediction = self.predictor.prediction(select(told, wanted)).float()  # (B, H, K)
        labels = labels.flatten(1)
        # padding is called 0 here, and counts for nothing
        target = labels.gather(1, wanted).clamp(min=0)
        error = F.cross_entropy(
            prediction.transpose(1, 2),
            target,
            reduction="none",
            label_smoothing=self.method.label_smoothing,
        )
        loss = mean_over_hidden(error, weights)
        with torch.no_grad():
            answers = prediction.argmax(dim=2)
            said = code_usage(answers, weights, self.count)
            seen_accuracy = self._accuracy_of_seen(told, masks, labels)
        return {
            "loss": loss,
            "accuracy": _share(answers == target, weights),
            "seen_accuracy": seen_accuracy,
            **{f"target_{name}": x for name, x in code_usage(target, weights, self.count).items()},
            "guess_used": said["used"],
            "guess_perplexity": said["perplexity"],
        }

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> Tensor:
        """The student's tokens (B, V, D) from the visible patches alone, in their order."""
        student = self.student.model
        visible = select(student.embed(spectrogram), masks.visible[:, 0])
        return student(visible, None if masks.visible_valid is None else masks.visible_valid[:, 0])[
            0
        ]

    def decoder_input(self, seen: Tensor, masks: Masks) -> Tensor:
        """The predictor's input (B, N, D): seen tokens in their places, the same in all others."""
        fill = seen.new_zeros(seen.shape[2]) if self.mask_token is None else self.mask_token
        everywhere = fill.to(seen.dtype).expand(len(seen), masks.n_patches, -1)
        return everywhere.scatter(1, masks.visible[:, 0, :, None].expand_as(seen), seen)

    def _accuracy_of_seen(self, told: Tensor, masks: Masks, labels: Tensor) -> Tensor:
        """How often visible patches would be called right, which nobody is taught."""
        visible = masks.visible[:, 0]
        answers = self.predictor.prediction(select(told.detach(), visible)).argmax(dim=2)
        seen = (
            torch.ones_like(visible) if masks.visible_valid is None else masks.visible_valid[:, 0]
        )
        return _share(answers == labels.gather(1, visible), seen.float())

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Labels that are all alike, or guesses."""
        return collapse_warning(
            "labels", metrics["target_perplexity"], below=FEW, measure="perplexity"
        ) or collapse_warning(
            "predictions", metrics["guess_perplexity"], below=1.01, measure="perplexity"
        )

    def input_contents(self) -> str:
        """Return a fingerprint of the stored labels, if there are any."""
        return f", labels {self.stored.contents()}" if self.stored is not None else ""


def _stored(folder: str, frames: int) -> StoredLabels:
    """The labels in a folder, if they are of so many frames of clips."""
    stored = StoredLabels(folder)
    if whole_patches(stored.seconds) != frames:
        raise SettingError(
            f"{folder}: holds labels of the first {stored.seconds:g} s of clips; "
            f"expected clips.seconds={stored.seconds:g}"
        )
    return stored


def _share(right: Tensor, weights: Tensor) -> Tensor:
    """The share of what is right among what counts."""
    return (right * weights).sum() / weights.sum().clamp(min=1)


class BEATsRun(BEATsMethod, BEATsPretrainRun):
    """All that decides a BEATs pre-training run."""

    objective: ClassVar[type[Pretraining]] = BEATsPretraining
    mask_description: ClassVar[str] = (
        "The student hears some patches of a clip and has to guess how a tokenizer, which hears it "
        "whole, calls all the others."
    )
    input_setting: ClassVar[str | None] = "tokenizer"

    method: Literal["beats"] = "beats"

    @model_validator(mode="after")
    def _stored_labels_are_of_beginnings(self) -> Self:
        if self.labels and self.clips.crop != "start":
            raise ValueError(
                f"clips.crop={self.clips.crop}: stored labels are of the beginnings of clips; "
                "expected clips.crop=start, or tokenizer=RUN instead of labels"
            )
        return self


RUN = BEATsRun
