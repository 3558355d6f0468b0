"""BEATs tokenizer objective: self-distillation of a teacher through a codebook.

    z          = tanh(student(x) A) B                  x a whole clip, z per patch
    code       = nearest code to z / |z|               with straight-through gradients
    prediction = estimator(code)
    L          = 1 - cos(prediction, teacher(x))  +  beta |code - z / |z||^2       per patch

L is a mean over a clip's patches, then over clips; padding counts nowhere. The paper's L has the
squared length as it is (`commit_reduction: sum`) and a term that draws codes to z; in the released
quantizer, as in this one, the former is a mean over the elements of z and the codes follow by
moving averages. Of a supervised teacher the logits of the clip are the target, for the mean of the
estimator's predictions; the paper does not say how it pools them.

Letters: B clips, N patches, D width, T' x F' the grid.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2212.09058), section 3.2.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eat_audio.audio.fbank import n_frames
from eat_audio.checkpoints.convert import read_pickled
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.config import Settings
from eat_audio.data.loader import Batch
from eat_audio.errors import CheckpointError, SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.common.modeling import AudioModel
from eat_audio.pretraining.beats.predictor import LabelPredictor
from eat_audio.pretraining.beats.quantizer import (
    Codebook,
    code_usage,
    distances,
    no_autocast,
    perplexity,
)
from eat_audio.pretraining.diagnostics import target_shares
from eat_audio.pretraining.masked_patches import feature_std
from eat_audio.pretraining.method import Pretraining, PretrainRun
from eat_audio.training.checkpoint import checkpoints

Target = Literal["patches", "logits"]
PARTS = ("projection.", "codebook.")
"""Tensors of a tokenizer beside its encoder."""


class TokenizerMethod(Settings):
    """Settings of the objective; the defaults are those of the released quantizer."""

    teacher: str | None = None
    """A BEATs model to learn from: that of the iteration before, or a fine-tuned one."""
    target: Target = "patches"
    """What the estimator predicts: the teacher's last layer in every patch, or, of a fine-tuned
    teacher, its logits of the clip."""
    codes: int = Field(1024, ge=2, le=32_767)
    """Entries of the codebook; labels are stored in 16 bits."""
    code_width: PositiveInt = 256
    codebook_memory: float = Field(0.99, ge=0, lt=1)
    """Share of a code that is kept per step."""
    commit_beta: NonNegativeFloat = 1.0
    """Weight of the distance between vectors and their codes."""
    commit_reduction: Literal["mean", "sum"] = "mean"
    """Over the elements of a vector: mean as in the released code, sum as in the paper."""
    estimator_layers: PositiveInt = 3

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """Return masks that hide nothing."""
        return random_masks(keys, grid, hidden_ratio=0.0, valid_columns=columns)


class BEATsPretrainRun(PretrainRun):
    """Settings that the two kinds of BEATs pre-training share."""

    dropout: float = Field(0.1, ge=0, lt=1)
    """Of tokens, attention weights and embedded patches, as in the released models."""
    layerdrop: float = Field(0.05, ge=0, lt=1)
    """Share of clips that a block is skipped for."""

    def config(self) -> BEATsConfig:
        """Return the Hugging Face configuration of the encoder."""
        config: Any = self.encoder.build_config("beats")
        for name in ("dropout", "attention_dropout", "dropout_input"):
            setattr(config, name, self.dropout)
        config.encoder_layerdrop = self.layerdrop
        return config

    @model_validator(mode="after")
    def _padding_is_masked(self) -> Self:
        if self.clips.released_padding:
            what = "BEATs' pre-training was not released, and masks padding"
            raise ValueError(f"clips.released_padding=true: {what}")
        return self


class BEATsObjective(Pretraining):
    """What the two BEATs objectives share: batches as long as their longest clip."""

    student: BEATsModel

    def log_mel(self, batch: Batch) -> LogMelBatch:
        """Return the spectrograms of a batch, at most `frames` long."""
        return batch_log_mel(self.features, batch, self.frames)

    def log_mel_of(
        self, features: AudioFeatureExtractor, batch: Batch, log_mel: LogMelBatch
    ) -> LogMelBatch:
        """Return the spectrograms of another front end; `log_mel` if its statistics are equal."""
        if (features.mean, features.std) == (self.features.mean, self.features.std):
            return log_mel
        return batch_log_mel(features, batch, log_mel.values.shape[1])


def batch_log_mel(features: AudioFeatureExtractor, batch: Batch, longest: int) -> LogMelBatch:
    """Return the spectrograms of a batch, as long as its longest clip or `longest` frames."""
    frames = min(n_frames(int(batch.lengths.max())), longest)
    return features.log_mel(batch.waveforms, batch.lengths, frames=frames)


class Tokenizer(nn.Module):
    """A frozen encoder, projection and codebook: spectrograms -> labels of patches."""

    def __init__(
        self, encoder: BEATsModel, projection: nn.Module, codebook: Codebook, features: Any
    ) -> None:
        super().__init__()
        self.encoder, self.projection, self.codebook = encoder, projection, codebook
        self.features: AudioFeatureExtractor = features
        self.count = len(codebook.codes)  # of labels

    def frozen(self) -> Self:
        """Return self, in evaluation mode and without gradients."""
        return self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the labels (B, T', F') of spectrograms (B, T, F), -1 where `valid` is False."""
        encoder = self.encoder.model
        patches, _ = encoder(encoder.embed(spectrogram), valid)
        x = self.projection(patches)
        with no_autocast(x):
            labels = distances(F.normalize(x.float(), dim=-1), self.codebook.codes).argmin(dim=-1)
        return on_grid(labels, valid, self.encoder.grid(spectrogram))


def on_grid(labels: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Return labels (B, N) as (B, T', F'), -1 for padding."""
    if valid is not None:
        labels = labels.masked_fill(~valid, -1)
    return labels.unflatten(1, grid)


def projection(config: BEATsConfig, code_width: int) -> nn.Sequential:
    """Return the map from the width of the encoder to that of the codes."""
    width = config.encoder_embed_dim
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))


class Teacher(nn.Module):
    """A frozen model and its front end; for the target "logits", a classifier."""

    def __init__(
        self, model: AudioModel, features: AudioFeatureExtractor, target: Target = "patches"
    ) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.features, self.target = features, target
        config = self.model.config
        self.width = config.num_classes if target == "logits" else config.hidden_size

    @torch.no_grad()
    def forward(self, log_mel: LogMelBatch) -> Tensor:
        """Return the last layer (B, N, D), or the logits of clips (B, C); float32."""
        mask = log_mel.attention_mask
        encoded = self.model.encode(log_mel.values, mask, all_states=False)
        target = self.model.logits(encoded) if self.target == "logits" else encoded.patches
        return target.float()


class TokenizerPretraining(BEATsObjective):
    """BEATs tokenizer objective: predict the teacher's features from one code per patch."""

    frozen = ("teacher",)
    collapse_limits: ClassVar = {
        "perplexity": ("codes", 1.5),
        "prediction_std": ("predictions", 0.1),
    }
    method: TokenizerMethod

    def build(self, config: BEATsConfig, teacher: Teacher | None = None) -> None:
        """Create teacher, student, projection, codebook and estimator."""
        method = self.method
        self.teacher = teacher or load_teacher(method)
        self.student = BEATsModel(config)
        self.projection = projection(config, method.code_width)
        self.codebook = Codebook(method.codes, method.code_width, decay=method.codebook_memory)
        width = self.teacher.width
        self.estimator = LabelPredictor(
            config,
            layers=method.estimator_layers,
            inputs=method.code_width,
            outputs=None if width == config.encoder_embed_dim else width,
        )

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch; the generator initializes k-means before the first step."""
        with torch.no_grad():
            log_mel = self.log_mel(batch)
            target = self.teacher(self.log_mel_of(self.teacher.features, batch, log_mel))
        return self.losses(log_mel, target, generator)

    def losses(
        self, log_mel: LogMelBatch, target: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the losses above for the teacher's features (B, N, D), or logits (B, C)."""
        method, student = self.method, self.student.model
        valid = log_mel.patch_mask(self.student.grid(log_mel.values)[1])
        patches, _ = student(student.embed(log_mel.values), valid)
        code = self.codebook(self.projection(patches), valid, generator)
        prediction = self.estimator(code.vectors, valid).float()
        if target.ndim == 2:
            prediction = masked_mean(prediction, valid)
        error = 1 - F.cosine_similarity(prediction, target, dim=-1)  # (B, N), or (B,)
        distance = (error if target.ndim == 2 else _clip_mean(error, valid)).mean()
        elements = method.code_width if method.commit_reduction == "mean" else 1
        commitment = _clip_mean(code.error, valid).mean() / elements
        weights = torch.ones_like(code.error) if valid is None else valid.float()
        target_weights = weights if target.ndim == 3 else torch.ones_like(error)
        with torch.no_grad():
            usage = self.codebook.usage
            codebook_perplexity = perplexity(usage / usage.sum().clamp(min=1e-12))
        return {
            "loss": distance + method.commit_beta * commitment,
            "distance": distance,
            "commitment": commitment,
            **code_usage(code.labels, weights, method.codes),
            "codebook_perplexity": codebook_perplexity,
            "target_std": feature_std(target, target_weights),
            "prediction_std": feature_std(prediction.detach(), target_weights),
            **(target_shares(target, valid) if target.ndim == 3 else {}),
        }

    def after_step(self, step: int) -> None:
        """Move the codes towards the vectors of this step."""
        self.codebook.update()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer learned so far; it shares the modules that go on training."""
        return Tokenizer(self.student, self.projection, self.codebook, self.features)


def _clip_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the means (B,) of values (B, N) over the valid patches."""
    return masked_mean(values[..., None], valid)[:, 0]


def load_teacher(method: TokenizerMethod) -> Teacher:
    """Load the teacher that a recipe names.

    Raises:
        SettingError: None is named.
        CheckpointError: It is no BEATs model, or for its logits no fine-tuned one.
    """
    if method.teacher is None:
        raise SettingError("teacher is not set; expected teacher=RUN of the iteration before")
    kind = BEATsModel if method.target == "patches" else BEATsForAudioClassification
    model, features = load_model_and_features(method.teacher, kind)
    return Teacher(model, features, method.target)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the frozen tokenizer of a run, of its newest checkpoint, or of a released file.

    Raises:
        CheckpointError: There is none, or it cannot be read safely.
    """
    folder = Path(path)
    if folder.is_file():
        content = read_pickled(folder)
        if not beats.is_released(content):
            raise CheckpointError(f"{path}: holds no tokenizer; expected a released BEATs one")
        try:
            tensors = beats.tokenizer(content)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    else:
        folder = (checkpoints(folder) or [folder])[-1]
        tensors = _saved_tensors(folder / "objective.safetensors")
        if not tensors:
            raise CheckpointError(
                f"{path}: holds no tokenizer; expected the folder of a run with "
                "method=beats_tokenizer, or a released file"
            )
    encoder, features = load_model_and_features(folder, BEATsModel)
    assert isinstance(encoder, BEATsModel)
    codes = tensors.get("codebook.codes")
    if codes is None or codes.ndim != 2:
        raise CheckpointError(f"{path}: holds no codebook; expected codes x width")
    with torch.device("meta"):  # no random numbers
        codebook, between = Codebook(*codes.shape), projection(encoder.config, codes.shape[1])
    tokenizer = Tokenizer(encoder, between, codebook, features)
    state = {f"encoder.{name}": x for name, x in encoder.state_dict().items()} | tensors
    try:
        tokenizer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: holds no such tokenizer ({reason})") from error
    if not tokenizer.codebook.started:
        raise CheckpointError(f"{path}: its codebook is empty; it has not been trained")
    return tokenizer.frozen()


def _saved_tensors(file: Path) -> dict[str, Tensor]:
    """Return what the objective of a run, if it is there, holds of a tokenizer."""
    if not file.is_file():
        return {}
    try:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(PARTS)]  # noqa: SIM118
            return {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


class TokenizerRun(TokenizerMethod, BEATsPretrainRun):
    """Settings of the training of a tokenizer."""

    objective: ClassVar[type[Pretraining]] = TokenizerPretraining
    mask_description: ClassVar[str] = (
        "A tokenizer encodes whole clips: nothing is hidden, every patch gets a code."
    )
    input_setting: ClassVar[str | None] = "teacher"

    method: Literal["beats_tokenizer"] = "beats_tokenizer"

    def untrained_inputs(
        self, features: AudioFeatureExtractor, producer: PretrainRun | None
    ) -> dict[str, Any]:
        """Return a teacher with random weights."""
        kind: Any = BEATsModel if self.target == "patches" else BEATsForAudioClassification
        return {"teacher": Teacher(kind((producer or self).config()), features, self.target)}

    def next_command(self, out: str) -> str:
        """Return the command of the next iteration, which predicts this tokenizer's labels."""
        return f"eat pretrain beats_tiny_iter2 tokenizer={out} data=... --out ..."


RUN = TokenizerRun
