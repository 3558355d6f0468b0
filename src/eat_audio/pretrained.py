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
from eat_audio.weights import Foreign, read

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
        place: A run's folder, a model folder, its `.safetensors` file, a released `.pt`, `.pth`
            or `.bin` file, or, where nothing of that name is here, a Hub id.
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
def find_with_front_end(
    place: str | Path, kind: type[M], *, teacher: bool = False
) -> tuple[M, AudioFeatureExtractor]: ...
@overload
def find_with_front_end(
    place: str | Path, kind: None = None, *, teacher: bool = False
) -> tuple[AudioEncoder | AudioClassifier, AudioFeatureExtractor]: ...


def find_with_front_end(
    place: str | Path, kind: type[AudioModel] | None = None, *, teacher: bool = False
) -> tuple[AudioEncoder | AudioClassifier, AudioFeatureExtractor]:
    """What `find_model` finds, and its front end: the one beside it, or its method's own.

    Args:
        place: See `find_model`.
        kind: See `find_model`.
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


def contents(place: str | Path, *, teacher: bool = False) -> Foreign:
    """All that a place holds, not yet compared with what its model needs.

    Args:
        place: See `find_model`.
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


def family_of(config: PreTrainedConfig) -> Family:
    """The classes of the method that a configuration belongs to."""
    return families()[config.model_type]


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


def _pickled(here: Path) -> bool:
    """Whether this is a torch file (.pt, .pth, .bin), which `weights` reads."""
    return os.path.isfile(here) and here.suffix != ".safetensors"


def _folder(here: Path, *, hollow: bool = False) -> Foreign:
    """A folder's model; `hollow`: shapes on the meta device instead of tensors."""
    folder, files = _weight_files(here)
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    config = _config(folder)
    family = family_of(config)
    if hollow:
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    else:
        tensors = _tensors(files)
    told = family.classifier.__name__ in str(config.architectures)
    features = None if hollow else load_features(here)
    return Foreign(
        config, tensors, told or "model.head.weight" in tensors, features or family.features(), {}
    )


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
        hint = (
            " (the pickle pytorch_model.bin beside it is read only if named itself)"
            if pickled
            else ""
        )
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
    place: Path, held: Foreign, kind: type[AudioModel] | None
) -> AudioEncoder | AudioClassifier:
    """A model of exactly what is held, copied; a dry run if that is on the meta device."""
    family, state = family_of(held.config), held.tensors
    classifies = held.classifier if kind is None else issubclass(kind, AudioClassifier)
    ours = family.classifier if classifies else family.encoder
    if kind is not None and not issubclass(ours, kind):
        raise CheckpointError(f"{place}: holds {ours.__name__}; expected {kind.__name__}")
    try:
        if held.config.num_hidden_layers > len(state):
            raise ValueError(f"{held.config.num_hidden_layers} blocks of {len(state)} tensors")
        with torch.device("meta"):
            model = ours(held.config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{place}: describes no such model ({_line(error)})") from error
    state = _exactly(place, model, state)
    copies = {name: t.to(torch.float32, copy=True) for name, t in state.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _exactly(place: Path, model: AudioModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model and no others; what its class knows to be of no use is left out."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["$^"]))
    state = {n: tensor for n, tensor in state.items() if n in expected or not ignored.search(n)}
    names = [f"no {name}" for name in expected if name not in state]
    names += [f"an unknown {name}" for name in state if name not in expected]
    shapes = [
        f"{name} of shape {tuple(tensor.shape)} instead of {tuple(expected[name])}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name]
    ]
    kinds = [f"{n} of {x.dtype}" for n, x in state.items() if not x.is_floating_point()]
    if wrong := names + shapes + kinds:
        told = "does not hold exactly the tensors of"
        if expected.keys().isdisjoint(state):
            told = "holds none of the tensors of"
        elif len(shapes) > len(expected) // 2:
            told, wrong = "holds tensors of another size than the settings of", shapes + names
        parts = "".join(c if c.isprintable() else "?" for c in ", ".join(wrong[:3]))
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{place}: {told} {type(model).__name__}: {parts}{more}")
    return state


def _line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
