"""Commands that use a model: evaluate, predict, embed, convert, inspect."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer import Argument, Option

from eat_audio.cli.console import (
    AsJSON,
    Device,
    ModelPlace,
    Places,
    end_of_job,
    expanded,
    show_table,
)
from eat_audio.errors import EatError
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def evaluate(
    model: Annotated[str, Argument(help="A fine-tuned model: a folder or a Hub id.")],
    *,
    data: Annotated[str, Option(help="A manifest, or a folder in a known layout.")],
    split: Annotated[
        list[str] | None, Option(help="Only these splits or folds (may be repeated).")
    ] = None,
    seconds: Annotated[
        float | None, Option(help="How much of every clip is heard; all of it by default.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for evaluation.json and .csv.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Score a fine-tuned model on labeled clips: accuracy or mAP, and class by class."""
    from dataclasses import asdict

    from eat_audio.evaluation.evaluate import evaluate_model

    result = evaluate_model(model, data, splits=tuple(split or ()), seconds=seconds)
    if out is not None:
        result.write(out)
    if as_json:
        print_json(asdict(result))
    else:
        show_evaluation(result)


@app.command()
def predict(
    places: Places,
    *,
    model: ModelPlace,
    top_k: Annotated[int, Option(min=1, help="Labels per file.")] = 12,
    as_json: Annotated[bool, Option("--json", help="One JSON object per line and file.")] = False,
    device: Device = "auto",
) -> None:
    """Tell what is heard in files: labels with scores.

    Example: eat predict dog.wav recordings/ --model runs/esc50 --top-k 5
    """
    from eat_audio.inference.predictor import load, predict_files

    failed = []
    for heard in predict_files(expanded(places), load(model, device=device), top_k=top_k):
        if as_json:
            labels = [{"label": p.label, "score": p.score} for p in heard.predictions]
            line = {"path": heard.path, "predictions": labels, "error": heard.error}
            print_json(line)
        elif heard.error is None:
            rows = [(p.label, f"{p.score:.3f}") for p in heard.predictions]
            show_table(heard.path, ("label", "score"), rows, heading=True)
        if heard.error is not None:
            failed.append(heard.error)
    end_of_job(failed)


@app.command()
def embed(
    places: Places,
    *,
    model: ModelPlace,
    out: Annotated[Path, Option("-o", "--out", help="A .parquet file, or a folder of .npy.")],
    level: Annotated[
        str, Option(help="clip: one vector; frame: one per --hop; patch: and per 16 mel bins.")
    ] = "clip",
    hop: Annotated[int, Option(help="Milliseconds from frame to frame: 160, 80 or 40.")] = 160,
    device: Device = "auto",
) -> None:
    """Turn files into vectors; what is already in --out is not done again.

    Example: eat embed recordings/ --model runs/tiny -o vectors.parquet
    """
    from eat_audio.inference.embed import check_output, embed_files
    from eat_audio.inference.predictor import load

    check_output(out)
    predictor = load(model, device=device)
    done = embed_files(expanded(places), predictor, out, level=cast(Any, level), hop_ms=hop)
    already = f", {done.skipped} were there already" if done.skipped else ""
    print_lines(f"{out}: {done.done} files embedded{already}")
    end_of_job(done.failed)


@app.command()
def convert(
    place: Annotated[str, Argument(help="A released file, a model folder, a run or a Hub id.")],
    out: Annotated[Path, Argument(help="Where to: a new folder; with --to released a new file.")],
    *,
    to: Annotated[
        str,
        Option(
            help="eat-audio: a folder as here; released: a .pt as the authors' own code has it "
            "(fairseq, too, means this); released-hf: a folder as EAT's on the Hub, without code."
        ),
    ] = "eat-audio",
    teacher: Annotated[
        bool, Option("--teacher", help="The teacher of pre-training instead of the student.")
    ] = False,
) -> None:
    """Write a model in another layout, bit by bit the same, without running anything in a file.

    Example: eat convert EAT-base_epoch30_pt.pt models/eat_base
    """
    from eat_audio.checkpoints.convert import write
    from eat_audio.checkpoints.licence import licence_of
    from eat_audio.checkpoints.load import load_model_and_features, on_disk

    here = on_disk(place)
    model, features = load_model_and_features(here, teacher=teacher)
    lost = write(model, features, out, layout="released" if to == "fairseq" else to)
    print_lines(f"{out}: {type(model).__name__}, {len(model.state_dict())} tensors")
    for what in lost:
        print_lines(f"{out}: this layout has no place for {what}", error=True)
    if licence := licence_of(here):
        print_lines(f"{out}: the licence of these weights is {licence}", error=True)


@app.command()
def inspect(
    place: Annotated[str, Argument(help="A run's folder, a model folder, a file or a Hub id.")],
    *,
    as_json: AsJSON = False,
) -> None:
    """Tell what a model is: its shape, front end and labels, how it was trained, a fingerprint.

    Released files are told, too: what of them is used, and why the rest is not.

    Example: eat inspect runs/mine
    """
    told = _inspected(place)
    if as_json:
        print_json(told)
    else:
        show_table(place, ("what", "value"), list(_rows(told)))


def _inspected(place: str) -> dict[str, Any]:
    """What a place says about its model, by name; groups are mappings, what is absent is None."""
    from eat_audio.checkpoints.licence import licence_of
    from eat_audio.checkpoints.load import load_features, load_model, on_disk
    from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder
    from eat_audio.training.checkpoint import checkpoints, fingerprint, model_folder

    model, features = load_model(place), load_features(place)
    encoder = load_model(place, AudioEncoder)  # comparable with where it began
    here = on_disk(place)
    folder = here.parent if here.is_file() else model_folder(here)
    record = _record(folder)
    if saved := checkpoints(folder):  # a finished run: its last checkpoint tells the step
        record |= {"step": _record(saved[-1]).get("step")}
    origin = record.get("origin")
    config = model.config
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    classifies = isinstance(model, AudioClassifier)
    return {
        "kind": "classifier" if classifies else "encoder",
        "method": config.model_type,
        "held_by": "run" if saved else "run checkpoint" if "step" in record else "model",
        "size": _size(config),
        **dict(zip(("embed_dim", "depth", "num_heads"), shape, strict=True)),
        "pooling": getattr(config, "pooling", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "labels": config.num_labels if classifies else None,
        "licence": licence_of(here if here.is_file() else folder),
        "front_end": features
        and {name: getattr(features, name) for name in ("mean", "std", "released_padding")},
        "fingerprint": fingerprint(model.state_dict()),
        "encoder_fingerprint": fingerprint(encoder.model.state_dict()),
        "file": _coverage(place, model),
        "configuration": _settings(config),
        "started_from": origin.get("encoder") if isinstance(origin, dict) else None,
        "step": record.get("step"),
        "processes": record.get("processes"),
        "data": record.get("data"),
        "versions": {
            name: record[name] for name in ("eat_audio", "torch", "transformers") if name in record
        },
        "recipe": record.get("recipe"),
    }


def _coverage(place: str, model: Any) -> dict[str, Any]:
    """How a place's tensors are stored, how many there are, are used, are not and why."""
    from collections import Counter

    from eat_audio.checkpoints.load import contents

    held, needed = contents(place), model.state_dict()
    unused = Counter(held.ignored.values())
    unused["positions, which are computed"] += sum(name not in needed for name in held.tensors)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in held.tensors.values()}
    return {
        "dtype": " and ".join(sorted(kinds)),
        "tensors": len(held.tensors) + len(held.ignored),
        "used": len(needed),
        "not_used": {why: count for why, count in unused.items() if count},
    }


def _size(config: Any) -> str | None:
    """The usual name of an encoder of this shape, if it has one."""
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    for name in ("tiny", "small", "base", "large"):
        try:
            usual = type(config).named(name)
        except KeyError:  # a size that this method does not have
            continue
        if (usual.hidden_size, usual.num_hidden_layers, usual.num_attention_heads) == shape:
            return name
    return None


def _settings(config: Any) -> dict[str, Any]:
    """What a method's configuration says, without what any model of transformers has."""
    from inspect import signature

    names = [name for name in signature(type(config)).parameters if name != "kwargs"]
    return {name: getattr(config, name) for name in names}


def _record(folder: Path) -> dict[str, Any]:
    """What a run wrote down beside its model; nothing if no run made it."""
    from eat_audio.training.checkpoint import read_json

    path = folder / "run.json"
    told: object = read_json(path) if path.is_file() else {}
    if not isinstance(told, dict):
        raise EatError(f"{path}: is no record of a run; expected a JSON object")
    return told


def _rows(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{"optim": {"lr": 1}} -> ("optim.lr", "1"); what is not known has no row."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def show_evaluation(evaluation: Any) -> None:
    """A result worth reading: the classes, weakest first, and the number."""
    known = [row for row in evaluation.classes if row["clips"]]
    known.sort(key=lambda row: row[evaluation.metric])
    rows = [(r["label"], str(r["clips"]), f"{r[evaluation.metric]:.1%}") for r in known]
    show_table("Classes", ("label", "clips", evaluation.metric), rows)
    total = f"{evaluation.metric} {evaluation.value:.2%} on {evaluation.clips} clips"
    print_lines(f"{total}, {len(known)} classes{_left_out(evaluation)}")
    for sentence in evaluation.unreadable:
        print_lines(f"skipped: {sentence}", error=True)


def _left_out(evaluation: Any) -> str:
    parts = []
    if evaluation.without_positive:
        parts.append(f"{evaluation.without_positive} classes without a clip are not counted")
    if evaluation.unreadable:
        parts.append(f"{len(evaluation.unreadable)} unreadable clips are left out")
    return f" ({'; '.join(parts)})" if parts else ""
