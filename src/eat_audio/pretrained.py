"""A place -> the model that lies there, and its front end.

A run's folder, a model folder, a file, a Hub id. Strict: every tensor is accounted for, or it is an
error. Safe: nothing that lies beside the weights is run, no pickle is loaded unrestrictedly, and
what a file claims to hold is compared with what a model needs before memory is taken for it.
"""

import inspect
import os
import re
from pathlib import Path
from typing import TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.errors import CheckpointError, DataError
from eat_audio.logmel import Statistics
from eat_audio.models import Family, families
from eat_audio.models.base import AudioClassifier, AudioEncoder, AudioModel
from eat_audio.models.features import AudioFeatureExtractor
from eat_audio.train.checkpoint import model_folder, read_json
from eat_audio.weights import load_fairseq

M = TypeVar("M", AudioEncoder, AudioClassifier)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
HUB_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
]
ALWAYS = {"architectures", "problem_type", "num_labels", "id2label", "label2id", "max_length"}
"""What is taken from any `config.json`, beside the settings that its method knows."""
LARGEST = 100_000
"""No number that describes a model is larger."""
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")


@overload
def find_model(place: str | Path, kind: type[M]) -> M: ...
@overload
def find_model(place: str | Path, kind: None = None) -> AudioEncoder | AudioClassifier: ...


def find_model(
    place: str | Path, kind: type[AudioModel] | None = None
) -> AudioEncoder | AudioClassifier:
    """Load a model, strictly and without running anything that lies beside its weights.

    Args:
        place: A run's folder, a model folder, its `.safetensors` file, a released fairseq `.pt`
            file, or, where nothing of that name is here, a Hub id.
        kind: What is wanted; by default a classifier if there is one, else an encoder.

    Returns:
        The model: in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: There is nothing, it cannot be read safely, or its tensors are not
            exactly those of such a model (an encoder may be taken out of a classifier).
    """
    here = on_disk(place)
    if os.path.isfile(here) and here.suffix != ".safetensors":
        try:
            released = load_fairseq(here)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{here}: is no released EAT file ({_line(error)})") from error
        classifies = isinstance(released, AudioClassifier)
        return _fill(
            here, _wanted(kind, released.config, classifies), released.config, released.state_dict()
        )

    folder, files = _weight_files(here)
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    config = _config(folder)
    classifies = family_of(config).classifier.__name__ in str(config.architectures)
    wanted = _wanted(kind, config, classifies or "model.head.weight" in shapes)
    hollow = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    _fill(here, wanted, config, hollow)
    return _fill(here, wanted, config, _tensors(files))


def family_of(config: PreTrainedConfig) -> Family:
    """The classes of the method that a configuration belongs to."""
    return families()[config.model_type]


def _wanted(
    kind: type[AudioModel] | None, config: PreTrainedConfig, classifies: bool
) -> type[AudioEncoder] | type[AudioClassifier]:
    """The method's own class for the kind that is wanted, or that is there."""
    classifier = classifies if kind is None else issubclass(kind, AudioClassifier)
    family = family_of(config)
    return family.classifier if classifier else family.encoder


def front_end(place: str | Path, model: AudioModel) -> AudioFeatureExtractor:
    """The front end that lies beside a model, or its method's own for AudioSet.

    Raises:
        CheckpointError: It cannot be read, or belongs to another kind of model.
    """
    return load_features(place) or family_of(model.config).features()


def load_features(place: str | Path) -> AudioFeatureExtractor | None:
    """The front end that lies beside a model; None where there is none, as in `.pt` files.

    Raises:
        CheckpointError: It cannot be read, or belongs to another kind of model.
    """
    here = on_disk(place)
    if os.path.isfile(here):
        if here.suffix != ".safetensors":
            return None
        here = here.parent
    folder = model_folder(here)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    told = read_json(path)
    kind = family_of(_config(folder)).features
    found = told.get("feature_extractor_type") if isinstance(told, dict) else None
    if not isinstance(told, dict) or found not in (None, kind.__name__):
        raise CheckpointError(f"{path}: describes another front end; expected {kind.__name__}")
    try:
        features: AudioFeatureExtractor = kind.from_dict(told)  # type: ignore[assignment]
        Statistics(features.mean, features.std)
    except (TypeError, ValueError, DataError) as error:
        raise CheckpointError(f"{path}: cannot be used ({_line(error)})") from error
    return features


def on_disk(place: str | Path) -> Path:
    """A place of this machine; what is on the Hub is fetched first (never its code)."""
    here = Path(place)
    if os.path.exists(here):
        return here
    if not HUB_ID.fullmatch(str(place)) or here.suffix in WEIGHTS:
        raise CheckpointError(f"{place}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place}: no such folder here, and not to be had from the Hugging Face Hub "
            f"({_line(error)})"
        ) from error


def _weight_files(here: Path) -> tuple[Path, list[Path]]:
    """The folder of a model and the `.safetensors` files that hold its weights."""
    if os.path.isfile(here):
        return here.parent, [here]
    folder = model_folder(here)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return folder, [folder / "model.safetensors"]
    told: object = read_json(index)
    parts = told.get("weight_map") if isinstance(told, dict) else None
    names = list(parts.values()) if isinstance(parts, dict) else []
    if not names or not all(isinstance(n, str) and n and Path(n).name == n for n in names):
        raise CheckpointError(f"{index}: does not name files of its folder")
    return folder, [folder / name for name in sorted(set(names))]


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """What a file says it holds; its sizes are checked against its length, nothing is loaded."""
    if not file.is_file():
        pickled = file.with_name("pytorch_model.bin").is_file()
        hint = " (pytorch_model.bin is a pickle, which could run code)" if pickled else ""
        raise CheckpointError(f"{file}: no such file{hint}")
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: is no valid safetensors file ({_line(error)})") from error


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            state |= {name: opened.get_tensor(name) for name in opened.keys()}
    return state


def _config(folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    told = read_json(path)
    found = told.get("model_type") if isinstance(told, dict) else None
    if not isinstance(found, str) or found not in families():
        methods = " or ".join(repr(name) for name in families())
        raise CheckpointError(f"{path}: model_type is {found!r}; expected {methods}")
    # Nothing else of it counts: other settings of transformers may name code to be fetched.
    kind = families()[found].config
    settings = ALWAYS | set(inspect.signature(kind).parameters)
    known = {name: value for name, value in told.items() if name in settings}
    if max((n for n in known.values() if isinstance(n, int)), default=0) > LARGEST:
        raise CheckpointError(f"{path}: describes no model (a number beyond {LARGEST})")
    try:
        return kind(**known)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{path}: describes no {found} model ({_line(error)})") from error


def _fill(
    place: Path,
    kind: type[AudioEncoder] | type[AudioClassifier],
    config: PreTrainedConfig,
    state: dict[str, Tensor],
) -> AudioEncoder | AudioClassifier:
    """A model of exactly these tensors, copied; a dry run if they are on the meta device."""
    try:
        if config.num_hidden_layers > len(state):
            raise ValueError(f"{config.num_hidden_layers} blocks of {len(state)} tensors")
        with torch.device("meta"):
            model = kind(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{place}: describes no such model ({_line(error)})") from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ignored = re.compile("|".join(kind._keys_to_ignore_on_load_unexpected or ["$^"]))
    state = {n: tensor for n, tensor in state.items() if n in expected or not ignored.search(n)}
    wrong = [f"no {name}" for name in expected if name not in state]
    wrong += [f"an unknown {name}" for name in state if name not in expected]
    wrong += [
        f"{name} of shape {tuple(tensor.shape)} instead of {tuple(expected[name])}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name]
    ]
    wrong += [f"{n} of {x.dtype}" for n, x in state.items() if not x.is_floating_point()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{place}: does not hold exactly an {kind.__name__}: {', '.join(wrong[:3])}{more}"
        )
    copies = {name: t.to(torch.float32, copy=True) for name, t in state.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
