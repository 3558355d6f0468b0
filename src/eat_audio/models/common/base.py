"""The base classes of models: transformers' own, or plain modules where a model is only run.

`transformers.modeling_utils` imports what generation, quantization and sharding need, which costs
more than half of the time of `eat predict` of one file. A process that calls
`models.use_plain_modules` first has models with the same layers, names and outputs without it:
they encode, but cannot be saved, trained or given to transformers.
"""

from typing import TYPE_CHECKING

from torch import nn

from eat_audio.models import plain_modules

if TYPE_CHECKING or not plain_modules():
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer
else:
    GradientCheckpointingLayer = nn.Module

    class PreTrainedModel(nn.Module):
        """A module with a configuration, whose weights come from a file."""

        _keys_to_ignore_on_load_unexpected = None

        def __init__(self, config):
            super().__init__()
            self.config = config

        def post_init(self):
            """Leave the weights as they are: they are loaded next."""

        @property
        def dtype(self):
            """The type of the weights."""
            return next(self.parameters()).dtype


__all__ = ["GradientCheckpointingLayer", "PreTrainedModel"]
