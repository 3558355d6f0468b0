"""Load models and their front ends from folders, files and the Hugging Face Hub.

Strict: every tensor is accounted for, or it is an error. Safe: no code beside the weights is run,
no pickle is executed, and sizes are compared before memory is taken.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import Statistics
from eat_audio.checkpoints import hub
from eat_audio.checkpoints.convert import ConvertedCheckpoint, read
from eat_audio.checkpoints.released_files import read_settings, weights_of
from eat_audio.errors import CheckpointError, DataError
from eat_audio.models import METHODS, ModelSpec, model_types, zoo
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder, AudioModel
from eat_audio.progress import print_lines
from eat_audio.text import SENTENCE, shortened
from eat_audio.training.records import checkpoints, model_folder

M = TypeVar("M", AudioEncoder, AudioClassifier)
AnyModel = AudioEncoder | AudioClassifier

HUB_FILES = hub.FILES
INVALID = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError)
"""What contradictory settings make a configuration or a model raise."""
LARGEST = 100_000
"""No number that describes a model is larger."""
LARGEST_TABLE = 2**24
"""Numbers in a table of positions; a large model's has 6 million."""
INTEGERS = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "U16": torch.int32, "U32": torch.int64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    "U64": torch.int64,
}
"""Integer types by their names in safetensors files."""
PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")


def _are_labels(value: object) -> bool:
    """Whether this is {"0": "cat", "1": "dog"}, without gaps."""
    if not isinstance(value, dict) or len(value) > LARGEST:
        return False
    numbers = {str(number) for number in range(len(value))}
    return set(value) == numbers and all(isinstance(label, str) for label in value.values())


def _are_thresholds(value: object) -> bool:
    """Whether this is [0.2, 0.5, ...]."""
    return isinstance(value, list) and all(type(x) in (int, float) and 0 <= x <= 1 for x in value)


def _are_layers(value: object) -> bool:
    """Whether this is [0, 3, ...]."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x <= LARGEST for x in value)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "architectures": lambda x: (
        x is None or (isinstance(x, list) and all(isinstance(name, str) for name in x))
    ),
    "license": lambda x: x is None or (isinstance(x, str) and len(x) < SENTENCE),
    "problem_type": lambda x: x in PROBLEMS,
    "num_labels": lambda x: type(x) is int and 0 <= x <= LARGEST,
    "id2label": lambda x: x is None or _are_labels(x),
    "label2id": lambda x: (
        x is None or (isinstance(x, dict) and all(type(n) is int for n in x.values()))
    ),
    "thresholds": lambda x: x is None or _are_thresholds(x),
    "vector_layers": lambda x: x is None or _are_layers(x),
    "max_length": lambda x: type(x) is int and 0 < x <= LARGEST,
}
"""What any `config.json` may hold beside the arguments of its configuration."""


@overload
def load_model(source: str | Path, kind: type[M]) -> M: ...
@overload
def load_model(source: str | Path, kind: None = None) -> AnyModel: ...


def load_model(source: str | Path, kind: Any = None) -> Any:
    """Load a model.

    Args:
        source: A run's folder, a model folder, its `.safetensors` file, a released `.pt`, `.pth`
            or `.bin` file, a name of the zoo (`eat models`), or OWNER/NAME on the Hub (certainly
            if written hf://OWNER/NAME).
        kind: The class to return; by default a classifier if there is one, else an encoder.

    Returns:
        The model: in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: There is no model, it cannot be read safely, or its tensors are not
            exactly those of such a model (an encoder may be taken out of a classifier).
    """
    return load_model_and_features(source, kind)[0]


@overload
def load_model_and_features(
    source: str | Path, kind: type[M], *, teacher: bool = False
) -> tuple[M, AudioFeatureExtractor]: ...
@overload
def load_model_and_features(
    source: str | Path, kind: None = None, *, teacher: bool = False
) -> tuple[AnyModel, AudioFeatureExtractor]: ...


def load_model_and_features(
    source: str | Path, kind: type[AudioModel] | None = None, *, teacher: bool = False
) -> tuple[AnyModel, AudioFeatureExtractor]:
    """Load a model and its front end: the one beside it, or the method's own for AudioSet.

    `teacher`: of a run or checkpoint of EAT's pre-training, or of a released `.pt` file, load the
    teacher's encoder instead of the student. See `load_model` for the rest.
    """
    path = on_disk(source)
    if teacher or weights_of(path):
        checkpoint = contents(path, teacher=teacher)
        model = _empty_model(path, checkpoint, kind)
    else:
        folder = _Folder(path)
        checkpoint = folder.checkpoint(folder.shapes())
        model = _empty_model(path, checkpoint, kind)
        _exact_tensors(path, model, checkpoint.tensors)  # before memory is taken
        checkpoint = folder.checkpoint(folder.tensors())
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    tensors = _exact_tensors(path, model, checkpoint.tensors)
    for name, tensor in tensors.items():
        dtype = torch.float32 if dtypes[name].is_floating_point else dtypes[name]
        tensors[name] = tensor.to(dtype, copy=True)
    model.load_state_dict(tensors, assign=True)
    if licence := getattr(checkpoint.config, "license", None):
        _print_licence(path, licence)
    return model.eval(), checkpoint.features


@lru_cache
def _print_licence(path: Path, licence: str) -> None:
    """Print the licence of released weights, once in a process."""
    print_lines(f"{path}: the licence of these weights is {licence}", error=True)


def load_features(source: str | Path) -> AudioFeatureExtractor | None:
    """Load the front end beside a model, or that of the released code for a `.pt` file.

    Returns:
        None where a folder has none.

    Raises:
        CheckpointError: It cannot be read, or belongs to another kind of model.
    """
    path = on_disk(source)
    file = weights_of(path)
    return read(file).features if file else _Folder(path).features


def contents(source: str | Path, *, teacher: bool = False) -> ConvertedCheckpoint:
    """Return all that a checkpoint holds, not yet compared with the tensors of its model.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read safely.
    """
    path = on_disk(source)
    if file := weights_of(path):
        return read(file, teacher=teacher)
    folder = _Folder(path)
    return folder.teacher() if teacher else folder.checkpoint(folder.tensors())


def spec_of(config: PreTrainedConfig) -> ModelSpec:
    """Return the method that a configuration belongs to."""
    return model_types()[config.model_type]


def method_of(config: PreTrainedConfig, recipe: Any = None) -> ModelSpec:
    """Return the method of a model: that of the recipe of its run, else of its configuration."""
    pretrained = METHODS.get(str(recipe.get("method"))) if isinstance(recipe, dict) else None
    if pretrained is not None and pretrained.config.model_type == config.model_type:
        return pretrained
    of_shape = (
        spec
        for spec in METHODS.values()
        if spec.shape and spec.config.model_type == config.model_type
        if all(getattr(config, name) == value for name, value in spec.shape)
    )
    return next(of_shape, spec_of(config))


def on_disk(source: str | Path) -> Path:
    """Return a path on this machine; a model on the Hub is fetched first (never its code).

    Raises:
        CheckpointError: There is no such path, and no such model on the Hub.
    """
    path = Path(source)
    if os.path.exists(path):
        return path
    if (model := zoo.released().get(str(source))) is not None:
        return hub.fetch_released(model)
    name = hub.hub_name(source)
    model = next((row for row in zoo.released().values() if row.address == name), None)
    return hub.fetch_released(model) if model is not None else hub.fetch(name)


# ---- where the tensors are ----


@dataclass
class _Folder:
    """A folder of `config.json`, weights and perhaps a front end; or one file of weights in it."""

    path: Path

    def __post_init__(self) -> None:
        self.folder = self.path.parent if self.path.is_file() else model_folder(self.path)

    @cached_property
    def config(self) -> PreTrainedConfig:
        return _read_config(self.folder / "config.json")

    @cached_property
    def features(self) -> AudioFeatureExtractor | None:
        path = self.folder / "preprocessor_config.json"
        if not path.is_file():
            return None
        return _read_features(path, self.config)

    @cached_property
    def files(self) -> list[Path]:
        """The `.safetensors` files that hold the weights."""
        if self.path.is_file():
            return [self.path]
        single = self.folder / "model.safetensors"
        index = self.folder / "model.safetensors.index.json"
        if single.is_file() or not index.is_file():
            return [single]
        parts = read_settings(index).get("weight_map")
        names = list(parts.values()) if isinstance(parts, dict) else []
        if not names or not all(_is_file_name(name) for name in names):
            raise CheckpointError(f"{index}: does not name files of its folder")
        return [self.folder / name for name in sorted(set(names))]

    def shapes(self) -> dict[str, Tensor]:
        """Tensors on the meta device, from the headers of the files alone."""
        return {name: shape for file in self.files for name, shape in _shapes(file).items()}

    def tensors(self) -> dict[str, Tensor]:
        self.shapes()  # raises for files that cannot be read
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        return tensors

    def teacher(self) -> ConvertedCheckpoint:
        """The teacher, of all that the newest checkpoint of a run holds to be resumed."""
        folders = [self.folder, *reversed(checkpoints(self.folder))]
        files = [folder / "objective.safetensors" for folder in folders]
        state = next((file for file in files if file.is_file()), None)
        tensors = {}
        if state is not None and _shapes(state):  # raises if it cannot be read
            with safe_open(state, "pt") as opened:
                names = [name for name in opened.keys() if name.startswith("teacher.")]
                tensors = {
                    name.replace("teacher", "model", 1): opened.get_tensor(name) for name in names
                }
        if not tensors:
            raise CheckpointError(
                f"{self.path}: holds no teacher; only checkpoints of EAT's pre-training that can "
                "be resumed, and its released .pt files, do"
            )
        features = self.features or _front_end(self.config)
        return ConvertedCheckpoint(self.config, tensors, False, features, {})

    def checkpoint(self, tensors: dict[str, Tensor]) -> ConvertedCheckpoint:
        """Tensors, or their shapes, with what else the folder says of them."""
        spec = spec_of(self.config)
        try:
            ignored = spec.encoder.convert_tensors(tensors, self.config)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None
        named = spec.classifier.__name__ in (self.config.architectures or [])
        classifies = named or "model.head.weight" in tensors
        features = self.features or _front_end(self.config)
        return ConvertedCheckpoint(self.config, tensors, classifies, features, ignored)


def _is_file_name(name: object) -> bool:
    """Whether this is the name of a file in the same folder."""
    return (
        isinstance(name, str)
        and 0 < len(os.fsencode(name)) < 256
        and Path(name).name == name
        and name.isprintable()
    )


def _shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a file on the meta device; safetensors compares sizes with its length."""
    if not file.is_file():
        pickled = file.with_name("pytorch_model.bin").is_file()
        hint = " (the pickle pytorch_model.bin beside it is read only if named itself)"
        raise CheckpointError(f"{file}: no such file{hint if pickled else ''}")
    shapes = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                dtype = INTEGERS.get(part.get_dtype(), torch.float32)
                shapes[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except (OSError, SafetensorError) as error:
        message = _first_line(error)
        raise CheckpointError(f"{file}: is no valid safetensors file ({message})") from error
    return shapes


# ---- settings ----


def _read_config(path: Path) -> PreTrainedConfig:
    """Read a `config.json`; only arguments of our own configurations and `CHECKS` count.

    Other settings of transformers may name code to be fetched.
    """
    settings = read_settings(path)
    name = settings.get("model_type")
    if not isinstance(name, str) or name not in METHODS:
        expected = " or ".join(repr(kind) for kind in model_types())
        raise CheckpointError(f"{path}: model_type is {shortened(name)}; expected {expected}")
    spec = METHODS[name]
    kind: Any = spec.config
    if (convert := spec.converter("settings_from_released")) is not None:
        try:
            settings = convert(settings)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    defaults = {
        argument: parameter.default
        for argument, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = {n: x for n, x in settings.items() if n in CHECKS or n in defaults}
    for argument, value in arguments.items():
        check = CHECKS.get(argument)
        if not (check(value) if check else _fits(value, defaults[argument])):
            setting = f"{argument}={shortened(value)}"
            raise CheckpointError(f"{path}: describes no {name} model: {setting}")
    try:
        config: PreTrainedConfig = kind(**arguments)
        rows = config.mel_bins // config.patch_size
        table = getattr(config, "pos_length", 0) * rows * config.hidden_size
    except INVALID as error:
        raise CheckpointError(
            f"{path}: describes no {name} model ({_first_line(error)})"
        ) from error
    bins = spec.feature_extractor.front_end.mel_bins
    if config.mel_bins != bins or table > LARGEST_TABLE:
        setting = f"mel_bins={config.mel_bins}" if config.mel_bins != bins else "pos_length"
        raise CheckpointError(f"{path}: describes no {name} model that can be run: {setting}")
    return config


def _fits(value: object, default: object) -> bool:
    """Whether a setting is of the type and size of its default."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        types = int if isinstance(default, int) else (int, float)
        return isinstance(value, types) and 0 <= value <= LARGEST
    return isinstance(value, str) and len(value) < SENTENCE


def _front_end(config: PreTrainedConfig, **arguments: Any) -> AudioFeatureExtractor:
    """The front end of a model, by default with the method's own statistics."""
    fields = {name: getattr(config, name) for name in config.front_end_fields}
    return spec_of(config).feature_extractor(**fields, **arguments)


def _read_features(path: Path, config: PreTrainedConfig) -> AudioFeatureExtractor:
    """Read a `preprocessor_config.json`; only statistics and `released_padding` count."""
    settings, kind = read_settings(path), spec_of(config).feature_extractor
    if (convert := spec_of(config).converter("front_end_from_released")) is not None:
        try:
            settings = convert(settings)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    if settings.get("feature_extractor_type") not in (None, kind.__name__):
        raise CheckpointError(f"{path}: describes another front end; expected {kind.__name__}")
    constants = {"feature_size": kind.front_end.mel_bins, "sampling_rate": SAMPLE_RATE}
    for name, value in constants.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{path}: {name} is {shortened(settings[name])}; expected {value}"
            )
    arguments = {n: settings[n] for n in ("mean", "std", "released_padding") if n in settings}
    if not isinstance(arguments.get("released_padding", False), bool):
        raise CheckpointError(f"{path}: released_padding is neither true nor false")
    try:
        features = _front_end(config, **arguments)
        Statistics(features.mean, features.std)
    except (TypeError, ValueError, DataError) as error:
        raise CheckpointError(f"{path}: cannot be used ({_first_line(error)})") from error
    return features


# ---- the model ----


def _empty_model(
    path: Path, checkpoint: ConvertedCheckpoint, kind: type[AudioModel] | None
) -> AnyModel:
    """Build the model of a checkpoint on the meta device."""
    config, spec = checkpoint.config, spec_of(checkpoint.config)
    classifies = checkpoint.classifier if kind is None else issubclass(kind, AudioClassifier)
    model_class = spec.classifier if classifies else spec.encoder
    if kind is not None and not issubclass(model_class, kind):
        raise CheckpointError(f"{path}: holds {model_class.__name__}; expected {kind.__name__}")
    try:
        if config.num_hidden_layers > len(checkpoint.tensors):
            raise ValueError(
                f"{config.num_hidden_layers} blocks of {len(checkpoint.tensors)} tensors"
            )
        with torch.device("meta"):
            return model_class(config)
    except INVALID as error:
        raise CheckpointError(f"{path}: describes no such model ({_first_line(error)})") from error


def _exact_tensors(path: Path, model: AudioModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model without what its class ignores.

    Raises:
        CheckpointError: One is missing, unknown, or of another shape or kind.
    """
    expected = model.state_dict()
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["$^"]))
    state = {n: tensor for n, tensor in state.items() if n in expected or not ignored.match(n)}
    common = {name: tensor for name, tensor in state.items() if name in expected}
    names = [f"no {name}" for name in expected if name not in state]
    names += [f"an unknown {name}" for name in state if name not in expected]
    shapes = [
        f"{name} of shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in common.items()
        if tensor.shape != expected[name].shape
    ]
    types = [
        f"{name} of {tensor.dtype} instead of {expected[name].dtype}"
        for name, tensor in common.items()
        if tensor.is_floating_point() != expected[name].is_floating_point()
    ]
    if wrong := names + shapes + types:
        summary = "does not hold exactly the tensors of"
        if not common:
            summary = "holds none of the tensors of"
        elif len(shapes) > len(expected) // 2:
            summary = "holds tensors of another size than the settings of"
            wrong = shapes + names
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        details = ", ".join(wrong[:3])
        raise CheckpointError(f"{path}: {summary} {type(model).__name__}: {details}{more}")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
