"""A trained model -> a folder with a card, and that folder -> the Hugging Face Hub.

The card says what is known and nothing else: the scores that `eat finetune` and `eat evaluate`
wrote beside the model, the recipe, the clips' fingerprint, the versions that ran. What may be done
with the weights only their owner knows, so the licence is asked for.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from transformers import PreTrainedConfig

from eat_audio.checkpoints.folder import folder_aside
from eat_audio.checkpoints.load import load_model_and_features, on_disk, read_settings
from eat_audio.errors import CheckpointError, EatError
from eat_audio.models import METHODS, save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel, several_labels
from eat_audio.text import printable, shortened
from eat_audio.training.checkpoint import model_folder
from eat_audio.writing import write_json, write_text

NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
"""What a model may be called."""
LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
"""How the Hub spells licences: mit, apache-2.0, cc-by-4.0, other, ..."""
SHOWN_LABELS = 20
MARKUP = set("<>&|`*_[]()\\#~!$")
"""What HTML or Markdown might take for its own."""


def prepare(place: str | Path, out: Path, *, name: str, licence: str) -> Path:
    """Write what is to be shared into a folder: model, front end, card, scores.

    Args:
        place: What `load_model` knows.
        out: A folder that does not exist yet.
        name: What the model is to be called, "owner/name" on the Hub.
        licence: Of the weights, as the Hub spells it.

    Raises:
        EatError: The model cannot be loaded, the folder is there, or the licence is no such word.
    """
    if not LICENCE.fullmatch(licence):
        raise EatError(
            f"licence {shortened(licence)}: expected a word such as mit, cc-by-4.0 or other"
        )
    if not NAME.fullmatch(name):
        raise EatError(f"{shortened(name)}: expected a name as the Hub has them, OWNER/NAME")
    if out.exists():
        raise EatError(f"{out}: is there already; expected the name of a new folder")
    here = on_disk(place)
    model, features = load_model_and_features(here)
    folder = here.parent if here.is_file() else model_folder(here)
    scores, run = _scores(folder / "evaluation.json"), _told(folder / "run.json")
    card = model_card(model, features, name=name, licence=licence, scores=scores, run=run)
    with folder_aside(out) as aside:
        save(model, features, aside)
        if scores is not None:
            write_json(aside / "evaluation.json", scores)
        write_text(aside / "README.md", card)
    return out


def upload(place: str | Path, name: str, *, licence: str, private: bool = False) -> str:
    """Put a model on the Hugging Face Hub, as `prepare` writes it.

    Returns:
        The address of its page.

    Raises:
        EatError: It cannot be prepared, or the Hub does not take it.
    """
    with TemporaryDirectory() as aside:
        folder = prepare(place, Path(aside, "model"), name=name, licence=licence)
        hub = HfApi()
        try:
            address = hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Share a model")
        except Exception as error:  # servers may answer anything
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
    """The page of a model, in the Hub's Markdown: what it is, how to use it, how good it is.

    Args:
        model: An encoder or a classifier.
        features: Its front end.
        name: What it is called, "owner/name" on the Hub.
        licence: Of the weights.
        scores: What `eat finetune` wrote into `evaluation.json`.
        run: What it wrote into `run.json`.
    """
    config: PreTrainedConfig = model.config
    spec = METHODS[config.model_type]
    classifies = isinstance(model, AudioClassifier)
    told: dict[str, Any] = {
        "library_name": "transformers",
        "license": licence,
        "pipeline_tag": "audio-classification" if classifies else "feature-extraction",
        "tags": ["audio", "eat-audio", config.model_type, f"arxiv:{spec.arxiv}"],
    }
    if scores is not None:
        recipe = (run or {}).get("recipe")
        corpus = _without_folders(recipe if isinstance(recipe, dict) else {}).get("data")
        corpus = corpus if isinstance(corpus, str) and corpus else "clips of its owner"
        told |= {"model_name": name.rpartition("/")[2], "eval_results": [_result(scores, corpus)]}
    parts = [
        f"# {name if NAME.fullmatch(name) else _shown(name)}",
        _what_it_is(model, features, spec.title, spec.arxiv),
        _use(name, classifies=classifies),
    ]
    if scores is not None:
        parts.append(_table_of(scores))
    if run is not None:
        parts.append(_how_it_was_made(run))
    parts.append(_limits(model))
    return f"---\n{ModelCardData(**told).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _result(scores: dict[str, Any], corpus: str) -> EvalResult:
    return EvalResult(
        task_type="audio-classification",
        dataset_type="audio",
        dataset_name=corpus,
        metric_type=scores["metric"],
        metric_value=round(scores["value"], 4),
    )


def _what_it_is(model: AudioModel, features: AudioFeatureExtractor, method: str, paper: str) -> str:
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    kind = "encoder"
    if isinstance(model, AudioClassifier):
        several = "several labels a clip" if several_labels(config) else "one label a clip"
        kind = f"classifier of {config.num_labels} labels ({several})"
    return (
        f"{method} ([arXiv {paper}](https://arxiv.org/abs/{paper})) {kind}: "
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}, {size:,} parameters. "
        f"It hears mono sound at 16 kHz as log-mel (128 bins, every 10 ms), normalized with mean "
        f"{features.mean:g} and standard deviation {features.std:g}."
    )


def _use(name: str, *, classifies: bool) -> str:
    call = "predict(clip)  # labels with scores" if classifies else "embed(clip).clip  # one vector"
    auto = "AutoModelForAudioClassification" if classifies else "AutoModel"
    return f"""## Use

```python
import eat_audio as eat  # pip install eat-audio

clip = eat.load_audio("dog.wav")
eat.load("{name}").{call}
```

With transformers alone, after `import eat_audio`; no code of this repository is run:

```python
from transformers import AutoFeatureExtractor, {auto}

features = AutoFeatureExtractor.from_pretrained("{name}")
model = {auto}.from_pretrained("{name}")
outputs = model(**features(clip.numpy(), sampling_rate=16_000))
```"""


def _table_of(scores: dict[str, Any]) -> str:
    metric = scores["metric"]
    known = [row for row in scores["classes"] if row["clips"]]
    known.sort(key=lambda row: row[metric])
    absent = scores["without_positive"]
    left_out = f"; {absent} classes without a clip are not counted" if absent else ""
    lines = [
        "## Results",
        "",
        f"{metric} **{scores['value']:.2%}** on {scores['clips']} clips that training did not "
        f"hear, {len(known)} classes{left_out}.",
        "",
        f"| label | clips | {metric} |",
        "| --- | --- | --- |",
        *(
            f"| {_shown(r['label'])} | {r['clips']} | {r[metric]:.1%} |"
            for r in known[:SHOWN_LABELS]
        ),
    ]
    if len(known) > SHOWN_LABELS:
        lines += ["", f"The {SHOWN_LABELS} weakest of {len(known)}; all are in `evaluation.json`."]
    return "\n".join(lines)


def _how_it_was_made(run: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name.replace('_', '-')} {_shown(run[name], 40)}"
        for name in ("eat_audio", "torch", "transformers")
        if name in run
    )
    recipe = run.get("recipe")
    told = _without_folders(recipe if isinstance(recipe, dict) else {})
    settings = yaml.safe_dump(told, sort_keys=False, allow_unicode=True).strip()
    settings = settings.replace("```", "'''").replace("<", "&lt;")
    return f"""## Training

Clips: {_shown(run.get("data", "not recorded"))}. Made with {versions or "unknown versions"}.

<details><summary>All settings</summary>

```yaml
{settings}
```

</details>"""


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings; where clips lay on somebody's machine is nobody else's business."""
    told = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = _without_folders(value)
        elif name == "data" and isinstance(value, str):
            value = Path(value.rstrip("/")).name
        told[name] = value
    return told


def _limits(model: AudioModel) -> str:
    said = (
        "It knows what it was trained on. It was not trained to transcribe speech. Scores are "
        "not calibrated, and recordings unlike those it heard may be misjudged without a sign."
    )
    if not isinstance(model, AudioClassifier):
        said += " It has no classifier: `eat finetune` teaches it labels."
    return f"## Limits\n\n{said}"


def _shown(text: object, longest: int = 200) -> str:
    """Text from outside as it stands: no HTML, no Markdown, one line."""
    text = printable(str(text)[:longest])
    return "".join(f"&#{ord(c)};" if c in MARKUP else c for c in text)


def _scores(path: Path) -> dict[str, Any] | None:
    """What `eat finetune` wrote, if it has all that a card says of it; None if there is none."""
    scores = _told(path)
    if scores is None:
        return None
    metric, classes = scores.get("metric"), scores.get("classes")
    fits = (
        isinstance(metric, str)
        and metric.isidentifier()
        and all(type(scores.get(n)) is int for n in ("clips", "without_positive"))
        and type(scores.get("value")) in (int, float)
        and isinstance(classes, list)
        and all(_is_class(one, metric) for one in classes)
    )
    if not fits:
        raise CheckpointError(f"{path}: holds no scores; `eat evaluate` writes them anew")
    return scores


def _is_class(row: object, metric: str) -> bool:
    if not isinstance(row, dict) or type(row.get("clips")) is not int:
        return False
    score = row.get(metric)
    return isinstance(row.get("label"), str) and (
        type(score) in (int, float) if row["clips"] else score is None or type(score) is float
    )


def _told(path: Path) -> dict[str, Any] | None:
    """What a JSON file says; None if there is none."""
    if not path.is_file():
        return None
    return read_settings(path)
