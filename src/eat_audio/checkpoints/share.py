"""Prepare a model for sharing, with a model card, and upload it to the Hugging Face Hub.

The card holds what is recorded and nothing else: the scores that `eat finetune` and `eat evaluate`
wrote beside the model, the recipe, the fingerprint of the clips, the versions.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from transformers import PreTrainedConfig

from eat_audio.audio import fbank
from eat_audio.checkpoints.load import load_model_and_features, method_of, on_disk
from eat_audio.checkpoints.released_files import read_settings
from eat_audio.errors import CheckpointError, EatError
from eat_audio.models import save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel, several_labels
from eat_audio.text import printable, shortened
from eat_audio.training.checkpoint import model_folder
from eat_audio.writing import folder_aside, write_json, write_text

NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
"""Licences as the Hub spells them: mit, apache-2.0, cc-by-4.0, other, ..."""
SHOWN_LABELS = 20
FILES = {"soft_labels", "labels", "tokenizer", "teacher"}
"""Settings that name files, beside `data`."""
MARKUP = set("<>&|`*_[]()\\#~!$")
"""Characters with a meaning in HTML or Markdown."""


def prepare(source: str | Path, out: Path, *, name: str, licence: str) -> Path:
    """Write a model, its front end, its card and its scores into a folder.

    Args:
        source: See `load_model`.
        out: A folder that does not exist yet.
        name: The name of the model, "owner/name" on the Hub.
        licence: Of the weights, as the Hub spells it.

    Raises:
        EatError: The model cannot be loaded, the folder exists, or the licence or the name cannot
            be one.
    """
    if not LICENCE.fullmatch(licence):
        raise EatError(
            f"licence {shortened(licence)}: expected a word such as mit, cc-by-4.0 or other"
        )
    if not NAME.fullmatch(name):
        raise EatError(f"{shortened(name)}: expected a name as the Hub has them, OWNER/NAME")
    if out.exists():
        raise EatError(f"{out}: exists already; expected the name of a new folder")
    path = on_disk(source)
    model, features = load_model_and_features(path)
    folder = path.parent if path.is_file() else model_folder(path)
    scores, run = _read_scores(folder / "evaluation.json"), _read_json(folder / "run.json")
    card = model_card(model, features, name=name, licence=licence, scores=scores, run=run)
    with folder_aside(out) as aside:
        save(model, features, aside)
        if scores is not None:
            write_json(aside / "evaluation.json", scores)
        write_text(aside / "README.md", card)
    return out


def upload(source: str | Path, name: str, *, licence: str, private: bool = False) -> str:
    """Upload a model, as `prepare` writes it, to the Hugging Face Hub; return its address.

    Raises:
        EatError: It cannot be prepared, or the Hub does not accept it.
    """
    with TemporaryDirectory() as aside:
        folder = prepare(source, Path(aside, "model"), name=name, licence=licence)
        hub = HfApi()
        try:
            address = hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Share a model")
        except Exception as error:  # a server may send anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EatError(f"{name}: the Hugging Face Hub does not take it ({reason})") from error
    return str(address)


def model_card(
    model: AudioModel,
    features: AudioFeatureExtractor,
    *,
    name: str,
    licence: str,
    scores: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
) -> str:
    """Return the Markdown page of a model: what it is, how to use it, how good it is.

    Args:
        model: An encoder or a classifier.
        features: Its front end.
        name: The name of the model, "owner/name" on the Hub.
        licence: Of the weights.
        scores: The content of `evaluation.json`.
        run: The content of `run.json`.
    """
    config: PreTrainedConfig = model.config
    recipe = (run or {}).get("recipe")
    recipe = _without_folders(recipe if isinstance(recipe, dict) else {})
    spec, classifies = method_of(config, recipe), isinstance(model, AudioClassifier)
    header: dict[str, Any] = {
        "library_name": "transformers",
        "license": licence,
        "pipeline_tag": "audio-classification" if classifies else "feature-extraction",
        "tags": ["audio", "eat-audio", config.model_type, f"arxiv:{spec.arxiv}"],
    }
    rows = []
    if scores is not None:
        data = recipe.get("data")
        result = EvalResult(
            task_type="audio-classification",
            dataset_type="audio",
            dataset_name=data if isinstance(data, str) and data else "clips of its owner",
            metric_type=scores["metric"],
            metric_value=round(scores["value"], 4),
        )
        header |= {"model_name": name.rpartition("/")[2], "eval_results": [result]}
        rows = [row for row in scores["classes"] if row["clips"]]
        rows.sort(key=lambda row: row[scores["metric"]])
    kind = "encoder"
    if classifies:
        several = "several labels a clip" if several_labels(config) else "one label a clip"
        kind = f"classifier of {config.num_labels} labels ({several})"
    versions = ", ".join(
        f"{package.replace('_', '-')} {_escaped(run[package], 40)}"
        for package in ("eat_audio", "torch", "transformers")
        if run is not None and package in run
    )
    settings = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["escaped"] = _escaped
    return environment.get_template("card.md.j2").render(
        header=ModelCardData(**header).to_yaml(),
        title=name if NAME.fullmatch(name) else _escaped(name),
        name=name,
        method=spec.title,
        arxiv=spec.arxiv,
        kind=kind,
        config=config,
        size=sum(parameter.numel() for parameter in model.parameters()),
        features=features,
        front_end=features.front_end,
        as_it_is=features.normalization == fbank.AS_IT_IS,
        classifies=classifies,
        auto="AutoModelForAudioClassification" if classifies else "AutoModel",
        scores=scores,
        rows=rows,
        shown=SHOWN_LABELS,
        run=run,
        versions=versions,
        settings=settings.replace("```", "'''").replace("<", "&lt;"),
    )


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the folders in which files were on their owner's machine."""
    private = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = _without_folders(value)
        elif name == "data" and isinstance(value, list):
            value = [_last_part(str(one)) for one in value]
        elif isinstance(value, str) and (name == "data" or (name in FILES and _is_fixed(value))):
            value = _last_part(value)
        private[name] = value
    return private


def _is_fixed(location: str) -> bool:
    """Return whether a file is named by its absolute path or its URL, and not by a Hub id."""
    return location.startswith("~") or Path(location).is_absolute() or "://" in location


def _last_part(location: str) -> str:
    """Return the name of a file, without its folder; of a URL also without its signature."""
    path = location.partition("?")[0] if "://" in location else location
    return Path(path.rstrip("/")).name


def _escaped(text: object, longest: int = 200) -> str:
    """Return text as one line without HTML or Markdown."""
    text = printable(str(text)[:longest])
    return "".join(f"&#{ord(c)};" if c in MARKUP else c for c in text)


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_settings(path) if path.is_file() else None


def _read_scores(path: Path) -> dict[str, Any] | None:
    """Read an `evaluation.json`, if there is one, with all that a card needs."""
    scores = _read_json(path)
    if scores is None:
        return None
    metric, classes = scores.get("metric"), scores.get("classes")
    valid = (
        isinstance(metric, str)
        and metric.isidentifier()
        and all(type(scores.get(n)) is int for n in ("clips", "without_positive"))
        and type(scores.get("value")) in (int, float)
        and isinstance(classes, list)
        and all(_is_class(row, metric) for row in classes)
    )
    if not valid:
        raise CheckpointError(f"{path}: holds no scores; `eat evaluate` writes them anew")
    return scores


def _is_class(row: object, metric: str) -> bool:
    if not isinstance(row, dict) or type(row.get("clips")) is not int:
        return False
    score = row.get(metric)
    return isinstance(row.get("label"), str) and (
        type(score) in (int, float) if row["clips"] else score is None or type(score) is float
    )
