"""Base classes of all configurations and models, and what is computed from logits.

A method's own file defines how its encoder turns a batch into patches (`AudioModel.encode`) and
how its classifier turns those into logits (`AudioClassifier.logits`).

Shapes: B clips, T frames of 10 ms, N = T' x F' patches (time-major), D width.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
import transformers  # its parts are imported when they are used
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.errors import CheckpointError, DataError, SettingError
from eat_audio.models.common.base import PreTrainedModel
from eat_audio.models.common.layers import masked_mean, read_out
from eat_audio.text import shortened

if TYPE_CHECKING:
    from transformers import modeling_outputs

AUDIOSET_CLASSES = 527
WINDOW_SECONDS = 10.24
"""The 1024 frames that released models were trained on."""
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 6, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
"""Sizes of vision transformers; tiny trains on a laptop."""
NEUTRAL = {"drop_path": 0.0, "hidden_columns": 0.0, "hidden_rows": 0.0, "gradient_decay": 1.0}
"""Settings of fine-tuning that concern the encoder, and their values that change nothing."""

Layers = str | Sequence[int]
"""Layers to read out: "last", "all", numbers such as "3,5" or (3, 5); see `layer_numbers`."""


class AudioConfig(PreTrainedConfig):
    """The shape of an encoder: what the configurations of all methods share.

    `thresholds`, of a classifier, are the scores from which on a label counts, one per class.
    `vector_layers` are the layers whose read-out its head classifies, not the pooled vector.
    """

    attribute_map = {
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
    }
    sizes: ClassVar[dict[str, dict[str, int]]]
    """The usual ones by name."""
    has_cls: ClassVar[bool] = True
    """Whether a CLS token stands before the patches."""
    finetune_fields: ClassVar[dict[str, str]] = {}
    """The settings of fine-tuning that this encoder has, and the fields they set."""
    finetune_constants: ClassVar[dict[str, Any]] = {}
    """Fields that are different in every classifier."""
    front_end_fields: ClassVar[tuple[str, ...]] = ()  # arguments of the front end, too

    def __init__(self, fields: Mapping[str, Any], **kwargs: Any) -> None:
        """Take the `locals()` of a method's own `__init__` as fields."""
        num_classes = fields["num_classes"]
        for name in fields.keys() - {"self", "kwargs", "num_classes", "__class__"}:
            setattr(self, name, fields[name])
        self._validate()
        if "num_labels" not in kwargs and "id2label" not in kwargs:
            kwargs["num_labels"] = num_classes
        super().__init__(**kwargs)
        thresholds = thresholds_of(self)
        if thresholds is not None and len(thresholds) != self.num_labels:
            raise ValueError(f"{len(thresholds)} thresholds of {self.num_labels} labels")
        layers, depth = vector_layers_of(self), self.num_hidden_layers
        if layers is not None and len({*layers} & {*range(depth + 1)}) < max(len(layers), 1):
            raise ValueError(f"vector_layers={layers} of {depth} blocks")
        # transformers does not save two labels without names, so the number is kept here, too
        self.num_classes = self.num_labels or num_classes

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _validate(self) -> None:
        """Raise ValueError where fields contradict each other."""

    def _validate_width(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}"
            )
        if self.embed_dim % 4:
            raise ValueError(
                f"embed_dim={self.embed_dim} is not divisible by 4 (positions need it)"
            )
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves the MLP no width")

    def _validate_grid(self) -> None:
        if self.mel_bins < self.patch_size or self.mel_bins % self.patch_size:
            raise ValueError(
                f"mel_bins={self.mel_bins} is not a multiple of patch_size={self.patch_size}"
            )
        if self.pos_length < 1:
            raise ValueError(f"pos_length={self.pos_length}: 1 or more is expected")
        self._validate_choice("pos_layout", ("released", "correct"))

    def _validate_choice(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"{name}={getattr(self, name)}: expected one of {', '.join(choices)}")

    @classmethod
    def named(cls, size: str, **changes: Any) -> Self:
        """Return one of the usual sizes, with changes by transformers' names or our own.

        `mlp_ratio`, the width inside an MLP as a multiple of a token's, is of any method.
        """
        changes = {cls.attribute_map.get(name, name): x for name, x in changes.items()}
        return cls(**cls.sizes[size] | changes)

    @property
    def pooled_size(self) -> int:
        """The width of a clip's vector: D, with the pooling "statistics" 3D, or 2D without CLS."""
        parts = 2 + self.has_cls if self.pooling == "statistics" else 1
        return parts * self.hidden_size

    @property
    def head_size(self) -> int:
        """The width of what the head of a classifier is given: see `vector_layers`."""
        layers = vector_layers_of(self)
        return 3 * len(layers) * self.hidden_size if layers is not None else self.pooled_size

    def finetune_overrides(self, settings: Mapping[str, float]) -> dict[str, Any]:
        """Return the fields that settings of fine-tuning change; `settings` has names of `NEUTRAL`.

        Raises:
            ValueError: A setting that this kind of encoder does not have is not neutral.
        """
        overrides = dict(self.finetune_constants)
        for name, value in settings.items():
            if name in self.finetune_fields:
                overrides[self.finetune_fields[name]] = value
            elif value != NEUTRAL[name]:
                raise ValueError(
                    f"{name}={value:g}: an encoder of {self.model_type} has no such setting; "
                    f"expected {NEUTRAL[name]:g}"
                )
        return overrides

    def for_labels(
        self, names: Sequence[str], *, several: bool, pooling: str, **settings: float
    ) -> Self:
        """Return the same encoder with a classifier of these labels.

        Args:
            names: The labels.
            several: Whether a clip may have several of them.
            pooling: What stands for a whole clip.
            **settings: Of fine-tuning; see `finetune_overrides`.
        """
        head = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "num_classes": len(names),
            "pooling": pooling,
            "problem_type": f"{'multi' if several else 'single'}_label_classification",
        }
        fields = {**self.to_dict(), **self.finetune_overrides(settings), **head}
        for name in ("thresholds", "vector_layers"):
            fields.pop(name, None)  # they belong to the labels before
        return type(self)(**fields)


@dataclass(frozen=True)
class EncoderOutput:
    """The output of an encoder for a batch."""

    clip: Tensor
    """(B, `config.pooled_size`): the vector of a clip, pooled as the configuration says."""
    cls: Tensor | None
    """(B, D): the CLS token, where the method has one."""
    patches: Tensor
    """(B, N, D)"""
    states: Sequence[Tensor]
    """The tokens before every block and after the last, a CLS token first: (B, N or 1 + N, D); if
    they are not kept, the last alone."""
    valid: Tensor | None
    """(B, N): False for patches of padding; None if there are none."""

    def layer(self, number: int) -> Tensor:
        """Return the patches after so many blocks, 0 being what enters the first: (B, N, D)."""
        return self.states[number][:, -self.patches.shape[1] :]

    def layers(self, numbers: Sequence[int]) -> Tensor:
        """Return the patches of several layers side by side: (B, N, layers * D)."""
        return torch.cat([self.layer(number) for number in numbers], dim=2)


@dataclass(frozen=True)
class Features:
    """The features of a batch of clips, by level."""

    clip: Tensor
    """(B, D): one vector per clip."""
    frames: Tensor
    """(B, T', D): one vector per 160 ms, the mean over frequency."""
    patches: Tensor
    """(B, T', F', D): one vector per 160 ms and 16 mel bins."""
    valid: Tensor
    """(B, T'): False for columns of padding."""
    seconds: Tensor
    """(T',): the middle of every column, from the start of the clip."""


class AudioModel(PreTrainedModel):
    """An encoder of log-mel patches, with or without a classifier."""

    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    network: ClassVar[type[nn.Module] | None] = None
    """The class of the attribute `model`, made from the configuration."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if self.network is not None:
            self.model = self.network(config)
            self.post_init()

    def encode(
        self, input_values: Tensor, attention_mask: Tensor | None = None, *, all_states: bool = True
    ) -> EncoderOutput:
        """Encode spectrograms (B, T, 128), whose valid frames are given by a mask (B, T)."""
        raise NotImplementedError

    @property
    def n_blocks(self) -> int:
        """The number of transformer blocks."""
        return self.config.num_hidden_layers

    def block_of(self, name: str) -> int:
        """Return the block of a parameter: -1 if before them all, `n_blocks` if behind them."""
        if re.search(r"(^|\.)(fc_norm|head)\.", name):
            return self.n_blocks
        block = re.search(r"(^|\.)blocks\.(\d+)\.", name)
        return int(block[2]) if block else -1

    def no_weight_decay(self) -> set[str]:
        """Return the parameters, beside biases and norms, that no weight decay is for."""
        return set()

    def full_rate(self) -> set[str]:
        """Return the parameters that train at the full rate wherever they are."""
        return set()

    @classmethod
    def convert_tensors(
        cls, tensors: dict[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, str]:
        """Make a file's tensors those of this model; return what is left out, and why.

        What is computed here is removed; tensors under released names get ours.

        Raises:
            CheckpointError: A tensor is not what is computed.
        """
        return {}

    def grid(self, input_values: Tensor) -> tuple[int, int]:
        """Return the columns (time) and rows (frequency) of patches of an input."""
        side: int = self.config.patch_size
        return input_values.shape[-2] // side, input_values.shape[-1] // side

    def features(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        layers: Layers | None = None,
    ) -> Features:
        """Return the features of a batch by level: clip, frames (with their times), patches.

        With `layers`, a patch has the vectors of those layers side by side, and the clip the means
        of all of them over its patches, their standard deviations, and those over time alone, see
        `read_out`: (B, 3 L D).
        """
        encoded = self.encode(input_values, attention_mask, all_states=layers is not None)
        clip, patches = encoded.clip, encoded.patches
        columns, rows = self.grid(input_values)
        if layers is not None:
            numbers = layer_numbers(layers, self.n_blocks)
            patches = encoded.layers(numbers)
            clip = read_out(patches, encoded.valid, rows)
        grid = patches.unflatten(1, (columns, rows))
        if encoded.valid is None:
            valid, frames = grid.new_ones(len(grid), columns, dtype=torch.bool), grid.mean(dim=2)
        else:
            valid_grid = encoded.valid.view(-1, columns, rows)
            valid, frames = valid_grid.any(dim=2), _mean_of_rows(grid, valid_grid)
        seconds = (torch.arange(columns, device=grid.device) + 0.5) * self.config.patch_size * 0.01
        return Features(clip, frames, grid, valid, seconds)

    def _keeps_states(self, requested: bool | None) -> bool:
        return bool(self.config.output_hidden_states if requested is None else requested)


def layer_numbers(layers: Layers, depth: int) -> tuple[int, ...]:
    """Return the numbers of an encoder's layers: n is what leaves the n-th of `depth` blocks.

    0 is what enters the first one; "all" are 1 to `depth`.

    Raises:
        SettingError: There are no such layers, or one is named twice.
    """
    named: dict[str, tuple[int, ...]] = {"last": (depth,), "all": tuple(range(1, depth + 1))}
    if isinstance(layers, str) and layers in named:
        return named[layers]
    try:
        parts = layers.split(",") if isinstance(layers, str) else map(index, layers)
        numbers = tuple(map(int, parts))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or len({*numbers} & {*range(depth + 1)}) < len(numbers):
        raise SettingError(
            f"layers={shortened(layers)}: expected last, all, or different numbers from 0 (what "
            f"enters the first block) to {depth}, such as {depth // 2},{depth}"
        )
    return numbers


def _mean_of_rows(grid: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid rows of every column, over all where none is: (B, T', D)."""
    counted = valid | ~valid.any(dim=2, keepdim=True)
    return masked_mean(grid.flatten(0, 1), counted.flatten(0, 1)).view(*grid.shape[:2], -1)


class AudioEncoder(AudioModel):
    """An encoder: normalized log-mel in, one vector per clip and per patch out."""

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> "modeling_outputs.BaseModelOutputWithPooling | tuple[Tensor, ...]":
        """Encode a batch.

        Args:
            input_values: Normalized log-mel (B, T, 128), T a multiple of 16.
            attention_mask: (B, T), 1 for frames of the clip, 0 for padding; None if none is.
            output_hidden_states: Also return the tokens before every block and after the last.
            return_dict: Whether to return an object (default) or a tuple.
            **kwargs: Ignored, for callers that pass what other models need.

        Returns:
            `last_hidden_state` (B, 1 + N, D) with the CLS token first, (B, N, D) from encoders
            without one; `pooler_output` (B, D).
        """
        keep = self._keeps_states(output_hidden_states)
        encoded = self.encode(input_values, attention_mask, all_states=keep)
        output = transformers.modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=encoded.states[-1],
            pooler_output=encoded.clip,
            hidden_states=tuple(encoded.states) if keep else None,
        )
        return output if return_dict is not False else output.to_tuple()


class AudioClassifier(AudioModel):
    """An encoder with a classifier: normalized log-mel in, logits out."""

    def head_input(self, encoded: EncoderOutput) -> Tensor:
        """Return what the linear head classifies: (B, `config.head_size`)."""
        layers = vector_layers_of(self.config)
        rows = self.config.mel_bins // self.config.patch_size
        read = None if layers is None else read_out(encoded.layers(layers), encoded.valid, rows)
        return self.normed(encoded.clip if read is None else read)

    def normed(self, vectors: Tensor) -> Tensor:
        """Return vectors of clips as they enter the linear head: (B, `config.head_size`)."""
        return self.model.fc_norm(vectors)

    def logits(self, encoded: EncoderOutput) -> Tensor:
        """Return the logits of encoded clips: (B, classes)."""
        return self.model.head(self.head_input(encoded))

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> "modeling_outputs.SequenceClassifierOutput | tuple[Tensor, ...]":
        """Classify a batch; see `AudioEncoder.forward` for the other arguments.

        Args:
            input_values: See `AudioEncoder.forward`, as all others but the labels.
            attention_mask: See there.
            labels: Class numbers (B,), or 0/1 per class (B, classes) for several at a time; for
                `num_labels=1`, or the problem type "regression", floats (B,) or (B, classes).
            output_hidden_states: See `AudioEncoder.forward`.
            return_dict: See `AudioEncoder.forward`.
            **kwargs: Ignored.

        Returns:
            `logits` (B, classes) and, with labels, `loss`: cross-entropy of class numbers, binary
            cross-entropy of several, mean squared error in regression.

        Raises:
            DataError: Labels of a type or shape that does not fit.
        """
        keep = self._keeps_states(output_hidden_states)
        states = keep or vector_layers_of(self.config) is not None
        encoded = self.encode(input_values, attention_mask, all_states=states)
        logits = self.logits(encoded)
        output = transformers.modeling_outputs.SequenceClassifierOutput(
            loss=None if labels is None else _loss(logits, labels, self.config),
            logits=logits,
            hidden_states=tuple(encoded.states) if keep else None,
        )
        return output if return_dict is not False else output.to_tuple()


def require_classifier(model: AudioModel) -> AudioClassifier:
    """Return the model; raise CheckpointError if it is an encoder."""
    if not isinstance(model, AudioClassifier):
        raise CheckpointError(
            "the model is an encoder without a classifier; eat finetune trains one"
        )
    return model


def label_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of the classes, in their order; LABEL_0 and so on for missing ones."""
    names: dict[Any, str] = config.id2label or {}
    return tuple(names.get(n, f"LABEL_{n}") for n in range(config.num_labels or 0))


def _loss(logits: Tensor, labels: Tensor, config: PreTrainedConfig) -> Tensor:
    clips, classes = logits.shape
    given = f"labels of type {str(labels.dtype).removeprefix('torch.')}, {tuple(labels.shape)}"
    if is_regression(config):
        if not labels.is_floating_point() or labels.numel() != logits.numel():
            raise DataError(
                f"{given}: expected floats, one for each of {clips} clips and {classes} outputs "
                "(regression); to tell classes apart takes num_labels=2 or more"
            )
        return F.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
    if labels.ndim == 2:
        if labels.shape != logits.shape:
            raise DataError(f"{given}: expected ({clips},), or 0 and 1 of ({clips}, {classes})")
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if labels.shape != (clips,) or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"{given}: expected numbers of classes, int64, ({clips},)")
    return F.cross_entropy(logits, labels.long())


def thresholds_of(config: PreTrainedConfig) -> list[float] | None:
    """Return the scores from which on labels count, one per class; None if all of them do."""
    return getattr(config, "thresholds", None)


def vector_layers_of(config: PreTrainedConfig) -> list[int] | None:
    """Return the layers whose read-out a head classifies; None: it classifies the pooled vector."""
    return getattr(config, "vector_layers", None)


def several_labels(config: PreTrainedConfig) -> bool:
    """Return whether clips have several labels; if the config does not say: those of AudioSet."""
    if config.problem_type is None:
        return config.num_labels == AUDIOSET_CLASSES
    return config.problem_type == "multi_label_classification"


def is_regression(config: PreTrainedConfig) -> bool:
    """Return whether the outputs are numbers; as in transformers, a single output is one."""
    if config.problem_type is None:
        return config.num_labels == 1
    return config.problem_type == "regression"


def scores_of(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Turn logits (B, classes) into scores of the same shape.

    Probabilities: of each class by itself (sigmoid) where clips may have several labels, else of
    all together (softmax). The outputs of a regression stay as they are.
    """
    if several_labels(config):
        return logits.sigmoid()
    return logits if is_regression(config) else logits.softmax(dim=1)
