"""What a teacher hears -> a tokenizer: BEATs' self-distilled one, from the second iteration on.

    z      = tanh(student(x) A) B                  x a whole clip, z per patch
    code   = nearest code to z / |z|               gradients pass it as if it were not there
    guess  = estimator(code)
    L      = 1 - cos(guess, teacher(x))  +  beta |code - z / |z||^2         per patch

L is a mean over a clip's patches, then over clips; padding counts nowhere. The paper's L has the
squared length as it is (`commit_reduction: sum`) and a term that draws codes to z; in the released
quantizer the former is a mean over the elements of z and the codes follow by moving averages, and
so it is here. A supervised teacher is listened to for its logits of the whole clip, with the mean
of the estimator's guesses beside them; how the paper pools them, it does not say.

Letters: B clips, N patches, T' x F' the grid.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2212.09058), section 3.2.
"""

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.audio.fbank import n_frames
from eat_audio.checkpoints.convert import read_pickled
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.config import Settings
from eat_audio.data.loader import Batch
from eat_audio.errors import CheckpointError, SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import (
    AudioFeatureExtractor,
    BEATsFeatureExtractor,
    LogMelBatch,
)
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.common.modeling import AudioModel, EncoderOutput
from eat_audio.pretraining.beats.predictor import LabelPredictor
from eat_audio.pretraining.beats.quantizer import Codebook, code_usage, distances, perplexity
from eat_audio.pretraining.masked_patches import feature_std
from eat_audio.pretraining.method import Pretraining, PretrainRun, collapse_warning
from eat_audio.training.checkpoint import checkpoints

PARTS = ("projection.", "codebook.")
"""What a tokenizer has beside its encoder."""


class TokenizerMethod(Settings):
    """All that makes the objective what it is; the defaults are those of the released quantizer."""

    teacher: str | None = None
    """A BEATs model to learn from: that of the iteration before, or a fine-tuned one."""
    target: Literal["patches", "logits"] = "patches"
    """What the estimator guesses: the teacher's last layer in every patch, or, of a fine-tuned
    teacher, its logits of the clip."""
    codes: int = Field(1024, ge=2, le=32_767)
    """Entries of the codebook; labels are stored in 16 bits."""
    code_width: PositiveInt = 256
    codebook_memory: float = Field(0.99, ge=0, lt=1)
    """How much of a code stays per step."""
    commit_beta: NonNegativeFloat = 1.0
    """Weight of the distance between vectors and their codes."""
    commit_reduction: Literal["mean", "sum"] = "mean"
    """Over the elements of a vector: mean as in the released code, sum as in the paper."""
    estimator_layers: PositiveInt = 3

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """All of every clip, by their keys (B, 1): nothing is hidden from a tokenizer."""
        return random_masks(keys, grid, hidden_ratio=0.0, valid_columns=columns)


class BEATsPretrainRun(PretrainRun):
    """What the two kinds of BEATs pre-training share."""

    dropout: float = Field(0.1, ge=0, lt=1)
    """Of tokens, attention weights and embedded patches, as in the released models."""
    layerdrop: float = Field(0.05, ge=0, lt=1)
    """Share of clips that a block is left out for."""

    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration of the encoder."""
        config = self.encoder.build_config("beats")
        for name in ("dropout", "attention_dropout", "dropout_input"):
            setattr(config, name, self.dropout)
        config.encoder_layerdrop = self.layerdrop
        return config

    @model_validator(mode="after")
    def _padding_is_not_heard(self) -> Self:
        if self.clips.released_padding:
            raise ValueError(
                "clips.released_padding=true: BEATs' pre-training was not released, and hears none"
            )
        return self


def batch_log_mel(features: AudioFeatureExtractor, batch: Batch, longest: int) -> LogMelBatch:
    """Log-mel spectrograms of a batch, as long as its longest clip or `longest` frames."""
    frames = min(n_frames(int(batch.lengths.max())), longest)
    return features.log_mel(batch.waveforms, batch.lengths, frames=frames)


def log_mel_again(
    features: AudioFeatureExtractor,
    before: AudioFeatureExtractor,
    batch: Batch,
    spectrograms: LogMelBatch,
) -> LogMelBatch:
    """Those of a second front end; `spectrograms`, of `before`, if its statistics are the same."""
    if (features.mean, features.std) == (before.mean, before.std):
        return spectrograms
    return batch_log_mel(features, batch, spectrograms.values.shape[1])


class Tokenizer(nn.Module):
    """An encoder, a projection and a codebook, none of which learns: clips -> labels."""

    def __init__(
        self,
        encoder: BEATsModel,
        projection: nn.Sequential,
        codebook: Codebook,
        features: AudioFeatureExtractor,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.codebook = codebook
        self.features = features

    @property
    def count(self) -> int:
        """How many labels there are."""
        return len(self.codebook.codes)

    def frozen(self) -> Self:
        """The same, where nothing learns any more."""
        return self.requires_grad_(False).eval()

    @torch.no_grad()
    def labels(self, spectrogram: Tensor, real: Tensor | None = None) -> Tensor:
        """The labels of the patches of spectrograms (B, T, F): (B, T', F'), -1 for padding.

        `real` (B, N) says which patches are not; no others are listened to.
        """
        inside = self.encoder.model
        patches, _ = inside(inside.embed(spectrogram), real)
        x = self.projection(patches)
        with torch.autocast(x.device.type, enabled=False):
            found = distances(F.normalize(x.float(), dim=-1), self.codebook.codes).argmin(dim=-1)
        return on_grid(found, real, self.encoder.grid(spectrogram))


def on_grid(labels: Tensor, real: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Labels (B, N) -> (B, T', F'), -1 where they are of padding."""
    if real is not None:
        labels = labels.masked_fill(~real, -1)
    return labels.unflatten(1, grid)


def projection(config: BEATsConfig, code_width: int) -> nn.Sequential:
    """From the width of the encoder to that of the codes."""
    width = config.encoder_embed_dim
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))


class Teacher(nn.Module):
    """A model that is listened to and does not learn."""

    def __init__(self, model: AudioModel, features: AudioFeatureExtractor) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.features = features

    @property
    def width(self) -> int:
        """Of what it says of a patch, or of a clip."""
        config = self.model.config
        classifies = isinstance(self.model, BEATsForAudioClassification)
        return config.num_classes if classifies else config.hidden_size

    @torch.no_grad()
    def forward(self, spectrograms: LogMelBatch) -> Tensor:
        """Its last layer (B, N, D), or, of a classifier, the logits of clips (B, C); float32."""
        encoded: EncoderOutput = self.model.encode(spectrograms.values, spectrograms.frame_mask)
        if isinstance(self.model, BEATsForAudioClassification):
            return self.model.logits(encoded).float()
        return encoded.patches.float()


class TokenizerPretraining(Pretraining):
    """Teaches `student` to say, in one code per patch, what its teacher hears."""

    student: BEATsModel

    def __init__(
        self,
        config: BEATsConfig,
        method: TokenizerMethod,
        features: BEATsFeatureExtractor,
        *,
        frames: int,
        seed: int = 0,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.features = features
        self.frames = frames
        self.teacher = teacher or load_teacher(method)
        self.student = BEATsModel(config)
        self.projection = projection(config, method.code_width)
        self.codebook = Codebook(method.codes, method.code_width, memory=method.codebook_memory)
        wanted = self.teacher.width
        self.estimator = LabelPredictor(
            config,
            layers=method.estimator_layers,
            inputs=method.code_width,
            outputs=None if wanted == config.encoder_embed_dim else wanted,
        )

    def train(self, mode: bool = True) -> Self:
        """The student learns; the teacher never does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's losses for a batch of clips; "loss" is the one to differentiate.

        `generator` draws what k-means begins with, before the first step.
        """
        with torch.no_grad():
            spectrograms = batch_log_mel(self.features, batch, self.frames)
            other = log_mel_again(self.teacher.features, self.features, batch, spectrograms)
            target = self.teacher(other)
        return self.losses(spectrograms, target, generator)

    def losses(
        self,
        spectrograms: LogMelBatch,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The equations above, for what the teacher says: (B, N, D), or (B, C) of whole clips."""
        method, inside = self.method, self.student.model
        real = spectrograms.patch_mask(self.student.grid(spectrograms.values)[1])
        patches, _ = inside(inside.embed(spectrograms.values), real)
        found = self.codebook(self.projection(patches), real, generator)
        prediction = self.estimator(found.vectors, real).float()
        if target.ndim == 2:
            prediction = masked_mean(prediction, real)
        apart = 1 - F.cosine_similarity(prediction, target, dim=-1)  # (B, N), or (B,)
        distance = (apart if target.ndim == 2 else _per_clip(apart, real)).mean()
        elements = method.code_width if method.commit_reduction == "mean" else 1
        commitment = _per_clip(found.error, real).mean() / elements
        weights = torch.ones_like(found.error) if real is None else real.float()
        counts = weights if target.ndim == 3 else torch.ones_like(apart)
        return {
            "loss": distance + method.commit_beta * commitment,
            "distance": distance,
            "commitment": commitment,
            **code_usage(found.labels, weights, method.codes),
            "codebook_perplexity": self._evenness(),
            "target_spread": feature_std(target, counts),
            "guess_spread": feature_std(prediction.detach(), counts),
        }

    @torch.no_grad()
    def _evenness(self) -> Tensor:
        """The perplexity of codes over the last steps, of which `usage` is the moving average."""
        usage = self.codebook.usage
        return perplexity(usage / usage.sum().clamp(min=1e-12))

    def after_step(self, step: int) -> None:
        """Move the codes towards what was given to them in this step."""
        self.codebook.follow()

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Codes that are all alike, or guesses."""
        return collapse_warning(
            "codes", metrics["perplexity"], below=1.5, measure="perplexity"
        ) or collapse_warning("predictions", metrics["guess_spread"])

    def tokenizer(self) -> Tokenizer:
        """What this has learnt so far; its parts are those that go on learning."""
        return Tokenizer(self.student, self.projection, self.codebook, self.features)


def _per_clip(values: Tensor, real: Tensor | None) -> Tensor:
    """Values of patches (B, N) -> their means over the real ones: (B,)."""
    return masked_mean(values[..., None], real)[:, 0]


def load_teacher(method: TokenizerMethod) -> Teacher:
    """The teacher that a recipe names.

    Raises:
        RecipeError: None is named.
        CheckpointError: It is no BEATs model, or no fine-tuned one if its logits are asked for.
    """
    if method.teacher is None:
        raise SettingError("teacher is not set; expected teacher=RUN of the iteration before")
    kind = BEATsModel if method.target == "patches" else BEATsForAudioClassification
    return Teacher(*load_model_and_features(method.teacher, kind))


def load_tokenizer(place: str | Path) -> Tokenizer:
    """The frozen tokenizer of a run, as of its newest checkpoint, or of a released file.

    Raises:
        CheckpointError: There is none, or it cannot be read safely.
    """
    here = Path(place)
    if here.is_file():
        content = read_pickled(here)
        if not beats.is_released(content):
            raise CheckpointError(f"{place}: holds no tokenizer; expected a released BEATs one")
        try:
            parts = beats.tokenizer(content)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}") from None
    else:
        newest = checkpoints(here)[-1:]
        here = newest[0] if newest else here
        parts = _saved_parts(here, place)
    encoder, features = load_model_and_features(here, BEATsModel)
    assert isinstance(encoder, BEATsModel)
    return _assembled(encoder, parts, features, place)


def _saved_parts(folder: Path, place: str | Path) -> dict[str, Tensor]:
    """What a checkpoint of a run holds of a tokenizer beside its encoder."""
    file = folder / "objective.safetensors"
    parts: dict[str, Tensor] = {}
    if file.is_file():
        try:
            with safe_open(file, "pt") as opened:
                names = [name for name in opened.keys() if name.startswith(PARTS)]  # noqa: SIM118
                parts = {name: opened.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not parts:
        raise CheckpointError(
            f"{place}: holds no tokenizer; expected the folder of a run with "
            "method=beats_tokenizer, or a released file"
        )
    return parts


def _assembled(
    encoder: BEATsModel,
    parts: dict[str, Tensor],
    features: AudioFeatureExtractor,
    place: str | Path,
) -> Tokenizer:
    codes = parts.get("codebook.codes")
    if codes is None or codes.ndim != 2:
        raise CheckpointError(f"{place}: holds no codebook; expected codes x width")
    with torch.device("meta"):  # nothing is drawn
        book, between = Codebook(*codes.shape), projection(encoder.config, codes.shape[1])
    found = Tokenizer(encoder, between, book, features)
    state = {f"encoder.{name}": x for name, x in encoder.state_dict().items()} | parts
    try:
        found.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{place}: holds no such tokenizer ({reason})") from error
    if not found.codebook.started:
        raise CheckpointError(f"{place}: its codebook is empty; it has not been trained")
    return found.frozen()


class TokenizerRun(TokenizerMethod, BEATsPretrainRun):
    """All that decides the training of a tokenizer."""

    objective: ClassVar[type[Pretraining]] = TokenizerPretraining
    mask_description: ClassVar[str] = (
        "A tokenizer hears whole clips: nothing is hidden, every patch gets a code."
    )
    input_setting: ClassVar[str | None] = "teacher"

    method: Literal["beats_tokenizer"] = "beats_tokenizer"

    def next_command(self, out: str) -> str:
        """The next iteration, which guesses this tokenizer's labels."""
        return f"eat pretrain beats_tiny_iter2 tokenizer={out} data=... --out ..."


RUN = TokenizerRun
