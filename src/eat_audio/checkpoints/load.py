"""A place -> the model that lies there, and its front end.

A run's folder, a model folder, a file, a Hub id. Strict: every tensor is accounted for, or it is an
error. Safe: nothing that lies beside the weights is run, no pickle is loaded unrestrictedly, and
what a file claims to hold is compared with what a model needs before memory is taken for it.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import N_MELS, Statistics
from eat_audio.checkpoints import hub
from eat_audio.checkpoints.convert import ConvertedCheckpoint, read
from eat_audio.errors import CheckpointError, DataError
from eat_audio.models import ModelSpec, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder, AudioModel
from eat_audio.text import SENTENCE, shortened
from eat_audio.training.checkpoint import model_folder, read_json

M = TypeVar("M", AudioEncoder, AudioClassifier)

HUB_FILES = hub.FILES
SETTINGS_BYTES = 5_000_000
"""The longest file of settings; 10,000 labels have 300 KB."""
SETTINGS_DEPTH = 50
"""How deep they may be nested; transformers copies them level by level."""
_OF_SETTINGS = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError)
"""What settings that do not go together make a configuration or a model raise."""


def _all(kind: type, values: Iterable[object]) -> bool:
    return all(type(value) is kind for value in values)


def _are_labels(value: object) -> bool:
    """{"0": "cat", "1": "dog"}, without gaps."""
    numbers = [str(number) for number in range(len(value))] if isinstance(value, dict) else []
    return isinstance(value, dict) and (
        len(value) <= LARGEST
        and set(value) == set(numbers)
        and all(isinstance(label, str) for label in value.values())
    )


PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
ALWAYS: dict[str, Callable[[Any], bool]] = {
    "architectures": lambda x: (
        x is None or (isinstance(x, list) and all(isinstance(name, str) for name in x))
    ),
    "problem_type": lambda x: x is None or x in PROBLEMS,
    "num_labels": lambda x: type(x) is int and 0 <= x <= LARGEST,
    "id2label": lambda x: x is None or _are_labels(x),
    "label2id": lambda x: (
        x is None or (isinstance(x, dict) and all(type(n) is int for n in x.values()))
    ),
    "max_length": lambda x: type(x) is int and 0 < x <= LARGEST,
}
"""What is taken from any `config.json` beside the settings that its method knows, and when."""
LARGEST = 100_000
"""No number that describes a model is larger."""
LARGEST_TABLE = 2**24
"""Numbers in a table of positions; a large model's has 6 million."""
WHOLE = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "U16": torch.int32, "U32": torch.int64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    "U64": torch.int64,
}
"""What safetensors files call numbers that are whole, and what may hold those."""
OF_FRONT_END = {"feature_size": N_MELS, "sampling_rate": SAMPLE_RATE}
"""What every front end says of itself."""
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")


@overload
def load_model(place: str | Path, kind: type[M]) -> M: ...
@overload
def load_model(place: str | Path, kind: None = None) -> AudioEncoder | AudioClassifier: ...


def load_model(
    place: str | Path, kind: type[AudioModel] | None = None
) -> AudioEncoder | AudioClassifier:
    """Load a model, strictly and without running anything that lies beside its weights.

    Args:
        place: A run's folder, a model folder, its `.safetensors` file, a released `.pt`, `.pth`
            or `.bin` file, or, where nothing of that name is here, OWNER/NAME on the Hub
            (surely if written hf://OWNER/NAME; see `weights.hub`).
        kind: What is wanted, of any method or of one; by default a classifier if there is one,
            else an encoder.

    Returns:
        The model: in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: There is nothing, it cannot be read safely, or its tensors are not
            exactly those of such a model (an encoder may be taken out of a classifier).
    """
    return _find(place, kind, teacher=False)[0]


@overload
def load_model_and_features(
    place: str | Path, kind: type[M], *, teacher: bool = False
) -> tuple[M, AudioFeatureExtractor]: ...
@overload
def load_model_and_features(
    place: str | Path, kind: None = None, *, teacher: bool = False
) -> tuple[AudioEncoder | AudioClassifier, AudioFeatureExtractor]: ...


def load_model_and_features(
    place: str | Path, kind: type[AudioModel] | None = None, *, teacher: bool = False
) -> tuple[AudioEncoder | AudioClassifier, AudioFeatureExtractor]:
    """What `load_model` finds, and its front end: the one beside it, or its method's own.

    Args:
        place: See `load_model`.
        kind: See `load_model`.
        teacher: See `contents`.
    """
    return _find(place, kind, teacher=teacher)


def _find(
    place: str | Path, kind: type[AudioModel] | None, *, teacher: bool
) -> tuple[AudioEncoder | AudioClassifier, AudioFeatureExtractor]:
    here = on_disk(place)
    if not _pickled(here):  # sizes are compared before memory is taken
        _fill(here, _folder(here, hollow=True), kind)
    held = contents(here, teacher=teacher)
    return _fill(here, held, kind), held.features


def contents(place: str | Path, *, teacher: bool = False) -> ConvertedCheckpoint:
    """All that a place holds, not yet compared with what its model needs.

    Args:
        place: See `load_model`.
        teacher: Of a pre-trained EAT `.pt` file, take the teacher instead of the student.

    Raises:
        CheckpointError: There is nothing, or it cannot be read safely.
    """
    here = on_disk(place)
    if _pickled(here):
        return read(here, teacher=teacher)
    if teacher:
        raise CheckpointError(f"{place}: holds no teacher; only pre-trained EAT .pt files do")
    return _folder(here)


def spec_of(config: PreTrainedConfig) -> ModelSpec:
    """Return the method that a configuration belongs to."""
    return model_types()[config.model_type]


def load_features(place: str | Path) -> AudioFeatureExtractor | None:
    """The front end that lies beside a model, or that of the released code for a `.pt` file.

    Returns:
        None where a folder tells of none.

    Raises:
        CheckpointError: It cannot be read, or belongs to another kind of model.
    """
    here = on_disk(place)
    if _pickled(here):
        return read(here).features
    folder = here.parent if os.path.isfile(here) else model_folder(here)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    described = read_settings(path)
    kind = spec_of(_config(folder)).feature_extractor
    found = described.get("feature_extractor_type")
    if found is not None and found != kind.__name__:
        raise CheckpointError(f"{path}: describes another front end; expected {kind.__name__}")
    for name, usual in OF_FRONT_END.items():
        if described.get(name, usual) != usual:
            raise CheckpointError(
                f"{path}: {name} is {shortened(described[name])}; expected {usual}"
            )
    # Nothing else of it counts: transformers makes an attribute of whatever it finds.
    known = {n: described[n] for n in ("mean", "std", "released_padding") if n in described}
    if not isinstance(known.get("released_padding", False), bool):
        raise CheckpointError(f"{path}: released_padding is neither true nor false")
    try:
        features: AudioFeatureExtractor = kind(**known)
        Statistics(features.mean, features.std)
    except (TypeError, ValueError, DataError) as error:
        raise CheckpointError(f"{path}: cannot be used ({_line(error)})") from error
    return features


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings, which is short and flat.

    Raises:
        CheckpointError: It is missing, too long, nested too deeply, or no JSON object.
    """
    try:
        if path.is_file() and path.stat().st_size > SETTINGS_BYTES:
            raise CheckpointError(f"{path}: is too long (more than {SETTINGS_BYTES:_} bytes)")
        found: object = read_json(path)
    except RecursionError:
        raise CheckpointError(f"{path}: is nested too deeply") from None
    level: list[object] = [found]
    for _ in range(SETTINGS_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise CheckpointError(f"{path}: is nested too deeply")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return found


def on_disk(place: str | Path) -> Path:
    """A place of this machine; what is on the Hub is fetched first (never its code).

    Raises:
        CheckpointError: Nothing is there, or the Hub does not give it.
    """
    here = Path(place)
    return here if os.path.exists(here) else hub.fetch(hub.hub_name(place))


def _pickled(here: Path) -> bool:
    """Whether this is a torch file (.pt, .pth, .bin), which `weights` reads."""
    return os.path.isfile(here) and here.suffix != ".safetensors"


def _folder(here: Path, *, hollow: bool = False) -> ConvertedCheckpoint:
    """A folder's model; `hollow`: shapes on the meta device instead of tensors."""
    folder, files = _weight_files(here)
    shapes = {name: held for file in files for name, held in _shapes(file).items()}
    config = _config(folder)
    spec = spec_of(config)
    tensors = shapes if hollow else _tensors(files)
    try:
        ignored = spec.encoder.drop_computed(tensors, config)
    except CheckpointError as error:
        raise CheckpointError(f"{here}: {error}") from None
    named = spec.classifier.__name__ in (config.architectures or [])
    classifies = named or "model.head.weight" in tensors
    features = None if hollow else load_features(here)
    return ConvertedCheckpoint(
        config, tensors, classifies, features or spec.feature_extractor(), ignored
    )


def _weight_files(here: Path) -> tuple[Path, list[Path]]:
    """The folder of a model and the `.safetensors` files that hold its weights."""
    if os.path.isfile(here):
        return here.parent, [here]
    folder = model_folder(here)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return folder, [folder / "model.safetensors"]
    parts = read_settings(index).get("weight_map")
    names = list(parts.values()) if isinstance(parts, dict) else []
    if not names or not all(isinstance(name, str) and _of_folder(name) for name in names):
        raise CheckpointError(f"{index}: does not name files of its folder")
    return folder, [folder / name for name in sorted(set(names))]


def _of_folder(name: str) -> bool:
    """Whether this is the name of a file, and of no other folder."""
    return 0 < len(os.fsencode(name)) < 256 and Path(name).name == name and name.isprintable()


def _shapes(file: Path) -> dict[str, Tensor]:
    """What a file says it holds, on the meta device; sizes are compared with its length."""
    if not file.is_file():
        pickled = file.with_name("pytorch_model.bin").is_file()
        hint = (
            " (the pickle pytorch_model.bin beside it is read only if named itself)"
            if pickled
            else ""
        )
        raise CheckpointError(f"{file}: no such file{hint}")
    try:
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: _hollow(part.get_shape(), part.get_dtype()) for name, part in parts.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: is no valid safetensors file ({_line(error)})") from error


def _hollow(shape: list[int], kind: str) -> Tensor:
    return torch.empty(shape, dtype=WHOLE.get(kind, torch.float32), device="meta")


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            state |= {name: opened.get_tensor(name) for name in opened.keys()}
    return state


def _config(folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    described = read_settings(path)
    found = described.get("model_type")
    if not isinstance(found, str) or found not in model_types():
        methods = " or ".join(repr(name) for name in model_types())
        raise CheckpointError(f"{path}: model_type is {shortened(found)}; expected {methods}")
    # Nothing else of it counts: other settings of transformers may name code to be fetched.
    kind: Any = model_types()[found].config
    usual = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    known = {name: x for name, x in described.items() if name in ALWAYS or name in usual}
    for name, value in known.items():
        if not (ALWAYS[name](value) if name in ALWAYS else _of_kind(value, usual[name])):
            raise CheckpointError(f"{path}: describes no {found} model: {name}={shortened(value)}")
    try:
        config = kind(**known)
        rows = config.mel_bins // config.patch_size
        table = getattr(config, "pos_length", 0) * rows * config.hidden_size
    except _OF_SETTINGS as error:
        raise CheckpointError(f"{path}: describes no {found} model ({_line(error)})") from error
    if config.mel_bins != N_MELS or table > LARGEST_TABLE:
        wrong = f"mel_bins={config.mel_bins}" if config.mel_bins != N_MELS else "pos_length"
        raise CheckpointError(f"{path}: describes no {found} model that can hear: {wrong}")
    return config


def _of_kind(value: object, usual: object) -> bool:
    """Whether a setting may be what it is said to be, by what it usually is."""
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    if isinstance(usual, int):
        return isinstance(value, int) and 0 <= value <= LARGEST
    if isinstance(usual, float):
        return isinstance(value, int | float) and 0 <= value <= LARGEST
    return isinstance(value, str) and len(value) < SENTENCE


def _fill(
    place: Path, held: ConvertedCheckpoint, kind: type[AudioModel] | None
) -> AudioEncoder | AudioClassifier:
    """A model of exactly what is held, copied; a dry run if that is on the meta device."""
    spec, state = spec_of(held.config), held.tensors
    classifies = held.classifier if kind is None else issubclass(kind, AudioClassifier)
    ours = spec.classifier if classifies else spec.encoder
    if kind is not None and not issubclass(ours, kind):
        raise CheckpointError(f"{place}: holds {ours.__name__}; expected {kind.__name__}")
    try:
        if held.config.num_hidden_layers > len(state):
            raise ValueError(f"{held.config.num_hidden_layers} blocks of {len(state)} tensors")
        with torch.device("meta"):
            model = ours(held.config)
    except _OF_SETTINGS as error:
        raise CheckpointError(f"{place}: describes no such model ({_line(error)})") from error
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    state = _exactly(place, model, state)
    copies = {
        name: tensor.to(torch.float32 if kinds[name].is_floating_point else kinds[name], copy=True)
        for name, tensor in state.items()
    }
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _exactly(place: Path, model: AudioModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model and no others; what its class knows to be of no use is left out."""
    needed = model.state_dict()
    expected = {name: tensor.shape for name, tensor in needed.items()}
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["$^"]))
    state = {n: tensor for n, tensor in state.items() if n in expected or not ignored.match(n)}
    names = [f"no {name}" for name in expected if name not in state]
    names += [f"an unknown {name}" for name in state if name not in expected]
    shapes = [
        f"{name} of shape {tuple(tensor.shape)} instead of {tuple(expected[name])}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name]
    ]
    kinds = [
        f"{name} of {tensor.dtype} instead of {needed[name].dtype}"
        for name, tensor in state.items()
        if name in needed and tensor.is_floating_point() != needed[name].is_floating_point()
    ]
    if wrong := names + shapes + kinds:
        told = "does not hold exactly the tensors of"
        if expected.keys().isdisjoint(state):
            told = "holds none of the tensors of"
        elif len(shapes) > len(expected) // 2:
            told, wrong = "holds tensors of another size than the settings of", shapes + names
        parts = ", ".join(wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{place}: {told} {type(model).__name__}: {parts}{more}")
    return state


def _line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
