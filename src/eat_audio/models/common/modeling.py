"""What all encoders share: levels of features, the outputs of transformers, the loss of labels.

A method's own file says how its encoder turns a batch into patches (`AudioModel.encode`) and its
classifier those into logits (`AudioClassifier.logits`); the rest follows from that.

Shapes: B clips, T frames of 10 ms, N = T' x F' patches (time-major), D width.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from eat_audio.errors import DataError
from eat_audio.models.common.layers import masked_mean

AUDIOSET_CLASSES = 527
NEUTRAL = {"drop_path": 0.0, "hidden_columns": 0.0, "hidden_rows": 0.0, "gradient_decay": 1.0}
"""Settings of fine-tuning that concern the encoder, and their values that change nothing."""


class AudioConfig(PreTrainedConfig):
    """The shape of an encoder: what the configurations of all methods share."""

    sizes: ClassVar[dict[str, dict[str, int]]]
    """The usual ones by name."""
    finetune_fields: ClassVar[dict[str, str]] = {}
    """Settings of fine-tuning that this encoder has, and which fields they set."""
    finetune_constants: ClassVar[dict[str, Any]] = {}
    """Fields that are different in every classifier."""

    def __init__(self, num_classes: int = 527, **kwargs: Any) -> None:
        """Called last, when a method's own settings are set."""
        self._refuse_what_cannot_be()
        if "num_labels" not in kwargs and "id2label" not in kwargs:
            kwargs["num_labels"] = num_classes
        super().__init__(**kwargs)
        # transformers does not save two labels without names, so the number is kept here, too
        self.num_classes = self.num_labels or num_classes

    def _refuse_what_cannot_be(self) -> None:
        """Raise ValueError where settings do not go together."""

    def finetune_overrides(self, settings: Mapping[str, float]) -> dict[str, Any]:
        """Return the fields that settings of fine-tuning change, by the names of `NEUTRAL`.

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
        kind = "multi_label" if several else "single_label"
        head = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "num_classes": len(names),
            "pooling": pooling,
            "problem_type": f"{kind}_classification",
        }
        return type(self)(**{**self.to_dict(), **self.finetune_overrides(settings), **head})

    @classmethod
    def named(cls, size: str, **changes: Any) -> Self:
        """Return one of the usual sizes, with changes by transformers' names or our own.

        `mlp_ratio`, the width inside an MLP as a multiple of a token's, is of any method.
        """
        fields = cls.sizes[size] | {cls.attribute_map.get(n, n): x for n, x in changes.items()}
        return cls(**fields)


@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder makes of a batch."""

    clip: Tensor
    """(B, D): the vector that stands for a clip, pooled as the configuration says."""
    cls: Tensor | None
    """(B, D): the CLS token, where the method has one."""
    patches: Tensor
    """(B, N, D)"""
    states: Sequence[Tensor]
    """The tokens before every block and after the last, a CLS token first: (B, N or 1 + N, D)."""
    real: Tensor | None
    """(B, N): False for patches of padding; None if all are real."""


@dataclass(frozen=True)
class Features:
    """What an encoder hears in a batch of clips, by level."""

    clip: Tensor
    """(B, D): one vector per clip."""
    frames: Tensor
    """(B, T', D): one vector per 160 ms, the mean over frequency."""
    patches: Tensor
    """(B, T', F', D): one vector per 160 ms and 16 mel bins."""
    real: Tensor
    """(B, T'): False where a clip has ended and its batch goes on."""
    seconds: Tensor
    """(T',): the middle of every column, from the start of the clip."""


class AudioModel(PreTrainedModel):
    """An encoder of log-mel patches, with or without a classifier."""

    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def encode(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Spectrograms (B, T, 128), and which frames are real (B, T), through the encoder."""
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

    @classmethod
    def drop_computed(cls, tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, str]:
        """Remove from a file's tensors what is computed here; return names and reasons.

        Raises:
            CheckpointError: A tensor is not what is computed.
        """
        return {}

    def grid(self, input_values: Tensor) -> tuple[int, int]:
        """How many columns (time) and rows (frequency) of patches an input has."""
        side: int = self.config.patch_size
        return input_values.shape[-2] // side, input_values.shape[-1] // side

    def features(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Features:
        """A batch by level: clip, frames (with their times) and patches."""
        encoded = self.encode(input_values, attention_mask)
        columns, rows = self.grid(input_values)
        grid = encoded.patches.unflatten(1, (columns, rows))
        if encoded.real is None:
            here, frames = grid.new_ones(len(grid), columns, dtype=torch.bool), grid.mean(dim=2)
        else:
            real = encoded.real.view(-1, columns, rows)
            here, frames = real.any(dim=2), _mean_of_rows(grid, real)
        seconds = (torch.arange(columns, device=grid.device) + 0.5) * self.config.patch_size * 0.01
        return Features(encoded.clip, frames, grid, here, seconds)

    def _asked(self, states: Sequence[Tensor], wanted: bool | None) -> tuple[Tensor, ...] | None:
        """The states, if the caller or the configuration asks for them."""
        if wanted is None:
            wanted = self.config.output_hidden_states
        return tuple(states) if wanted else None


def _mean_of_rows(grid: Tensor, real: Tensor) -> Tensor:
    """Mean over the real rows of every column, over all where none is: (B, T', D)."""
    counted = real | ~real.any(dim=2, keepdim=True)
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
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
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
        encoded = self.encode(input_values, attention_mask)
        output = BaseModelOutputWithPooling(
            last_hidden_state=encoded.states[-1],
            pooler_output=encoded.clip,
            hidden_states=self._asked(encoded.states, output_hidden_states),
        )
        return output if return_dict is not False else output.to_tuple()


class AudioClassifier(AudioModel):
    """An encoder with a classifier: normalized log-mel in, logits out."""

    def logits(self, encoded: EncoderOutput) -> Tensor:
        """What the head says of encoded clips: (B, classes)."""
        raise NotImplementedError

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classify a batch.

        Args:
            input_values: Normalized log-mel (B, T, 128), T a multiple of 16.
            attention_mask: (B, T), 1 for frames of the clip, 0 for padding; None if none is.
            labels: Class numbers (B,), or 0/1 per class (B, classes) for several at a time; for
                `num_labels=1`, or the problem type "regression", floats (B,) or (B, classes).
            output_hidden_states: Also return the tokens before every block and after the last.
            return_dict: Whether to return an object (default) or a tuple.
            **kwargs: Ignored, for callers that pass what other models need.

        Returns:
            `logits` (B, classes) and, with labels, `loss`: cross-entropy of class numbers, binary
            cross-entropy of several, mean squared error in regression.

        Raises:
            DataError: Labels of a type or shape that does not fit.
        """
        encoded = self.encode(input_values, attention_mask)
        logits = self.logits(encoded)
        output = SequenceClassifierOutput(
            loss=None if labels is None else _loss(logits, labels, self.config),
            logits=logits,
            hidden_states=self._asked(encoded.states, output_hidden_states),
        )
        return output if return_dict is not False else output.to_tuple()


def _loss(logits: Tensor, labels: Tensor, config: PreTrainedConfig) -> Tensor:
    """The loss that the labels, the problem type and the number of classes decide on."""
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
