"""Commands that use a model: predict, embed, detect, convert, inspect."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from typer import Argument, Option

from eat_audio.cli.console import (
    AsJSON,
    AudioPaths,
    Compile,
    Device,
    ModelSource,
    Precision,
    ReadLayers,
    ShardName,
    end_of_job,
    expanded,
    show_skipped,
    show_table,
)
from eat_audio.errors import EatError, SettingError
from eat_audio.models import use_plain_modules
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


def _show_status(out: Path | None) -> None:
    """Print how far the shards of a job are, and end the command."""
    if out is None:
        return
    from eat_audio.data.parts import job_status

    states = job_status(out)
    rows = []
    for state in states:
        missing = "not started" if state.missing is None else state.missing
        rows.append((str(state.shard.index), state.done, len(state.failed), missing))
    show_table(str(out), ("shard", "done", "failed", "missing"), rows)
    for state in states:
        show_skipped(list(state.failed.values()))
    raise typer.Exit


RetryFailed = Annotated[
    bool,
    Option("--retry-failed", help="Try again what an earlier job with --shard could not read."),
]
Status = Annotated[
    Path | None,
    Option(
        "--status",
        metavar="OUT",
        is_eager=True,
        callback=_show_status,
        help="Show what is done, failed and missing in the folder of a job with --shard.",
    ),
]


@app.command()
def predict(
    inputs: AudioPaths,
    *,
    model: ModelSource = None,
    top_k: Annotated[int, Option(min=1, help="Labels per file.")] = 12,
    as_json: Annotated[bool, Option("--json", help="One JSON object per line and file.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    shard: ShardName = None,
    out: Annotated[
        Path | None, Option("-o", "--out", help="With --shard: a folder of Parquet parts.")
    ] = None,
    retry_failed: RetryFailed = False,
    status: Status = None,
) -> str | None:
    """Label files: the likeliest labels of each, with scores.

    Without --model it is the tagger that ships with the package; where none of its labels reaches
    its threshold, the answer is "no known sound".

    Example: eat predict dog.wav recordings/ --model runs/esc50 --top-k 5
    """
    use_plain_modules()
    from eat_audio.inference.predictor import predict_files

    if (shard is None) != (out is None):
        raise SettingError("--shard and --out: expected both, or none of them")
    _check_retry(retry_failed, shard)
    predictor = load_predictor(model, device, precision, compile)
    if shard is not None:
        from eat_audio.inference.shard import Labels

        return _run_shard(inputs, predictor, out, Labels(top_k), shard, retry_failed)
    failed = []
    for result in predict_files(expanded(inputs), predictor, top_k=top_k):
        if as_json:
            print_json(asdict(result))
        elif result.error is None:
            rows = [(p.label, f"{p.score:.3f}") for p in result.predictions]
            show_table(result.path, ("label", "score"), rows, heading=True)
        failed += [result.error] if result.error is not None else []
    end_of_job(failed)
    return None


@app.command()
def embed(
    inputs: AudioPaths,
    *,
    model: ModelSource = None,
    out: Annotated[Path, Option("-o", "--out", help="A .parquet file, or a folder of .npy.")],
    level: Annotated[
        str,
        Option(
            help="clip: one vector; window: one per --seconds; frame: one per --hop; patch: and "
            "per 16 mel bins."
        ),
    ] = "clip",
    seconds: Annotated[
        float | None,
        Option(min=0.16, max=10.24, help="Of a window: a multiple of 0.16; 3 are taken as 3.04."),
    ] = None,
    hop: Annotated[int, Option(help="Milliseconds from frame to frame: 160, 80 or 40.")] = 160,
    on: Annotated[
        str | None, Option("--on", help="ray, or ray://HOST:10001: embed on a Ray cluster.")
    ] = None,
    actors: Annotated[int | None, Option(min=1, help="Processes that embed there.")] = None,
    layers: ReadLayers = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    shard: ShardName = None,
    dtype: Annotated[
        str, Option(help="With --shard or --on: float32, or float16: half the room.")
    ] = "float32",
    retry_failed: RetryFailed = False,
    status: Status = None,
) -> str | None:
    """Turn files into vectors; what is already in --out is not done again.

    With --layers, frames and patches have the vectors of those layers side by side, and clips
    the mean of each over all patches, then the deviations, and those over time.

    Example: eat embed recordings/ --model runs/tiny -o vectors.parquet
             eat embed recordings/ --level window --seconds 3 -o windows.parquet
    """
    if on is None:  # Ray's processes have their own models
        use_plain_modules()
    from eat_audio.inference.shard import UnitFormat

    if on is not None and shard is not None:
        raise SettingError(f"--shard {shard}: not with --on; Ray divides the work itself")
    if actors is not None and on is None:
        raise SettingError(f"--actors {actors}: expected with --on")
    if on is not None and compile:
        raise SettingError("--compile: not with --on; embed on this machine instead")
    form = UnitFormat(cast(Any, level), hop, cast(Any, dtype), layers)
    if (level == "window") != (seconds is not None):
        raise SettingError("--seconds and --level window: expected both, or none of them")
    window = None if seconds is None else round(seconds / 0.16) * 0.16
    if on is not None:
        from eat_audio.integrations.ray import embed_on_ray

        options: dict[str, Any] = {"address": on, "actors": actors, "device": device, "form": form}
        options |= {"precision": "fp32" if precision == "auto" else precision}
        options |= {"retry_failed": retry_failed} | ({"window": window} if window else {})
        done = embed_on_ray(expanded(inputs), model, out, **options)
        print_lines(f"{out}: {done.done} units embedded, {done.skipped} were there already")
        end_of_job(done.failed)
        return None
    from eat_audio.inference.embed import check_output, embed_files

    if shard is not None:
        predictor = load_predictor(model, device, precision, compile, window)
        return _run_shard(inputs, predictor, out, form, shard, retry_failed)
    _check_retry(retry_failed, shard)
    if dtype != "float32":
        raise SettingError(f"--dtype {dtype}: expected with --shard (0/1: all of it)")
    check_output(out)
    predictor = load_predictor(model, device, precision, compile, window)
    paths, kind = expanded(inputs), cast(Any, level)
    done = embed_files(paths, predictor, out, level=kind, hop_ms=hop, layers=layers)
    already = f", {done.skipped} were there already" if done.skipped else ""
    print_lines(f"{out}: {done.done} files embedded{already}")
    end_of_job(done.failed)
    if out.suffix.lower() != ".parquet" or level == "patch":  # what cannot be searched
        return None
    named = "" if model is None else f" --model {shlex.quote(model)}"
    return f"eat search FILE --in {shlex.quote(str(out))}{named}"


@app.command()
def detect(
    inputs: AudioPaths,
    *,
    model: ModelSource = None,
    out: Annotated[Path, Option("-o", "--out", help="Folder for five files per recording.")],
    window: Annotated[float, Option(help="Seconds around one step: a multiple of 0.16.")] = 1.92,
    hop: Annotated[float, Option(help="Seconds of one step: a multiple of 0.01.")] = 0.16,
    median: Annotated[float, Option(help="Seconds of the median filter; 0: none.")] = 0.8,
    on: Annotated[float, Option(help="Probability that an event has to reach.")] = 0.5,
    off: Annotated[float, Option(help="Probability below which it ends.")] = 0.3,
    gap: Annotated[float, Option(help="Seconds between two events that become one.")] = 0.0,
    shortest: Annotated[float, Option(help="Seconds; shorter events are left out.")] = 0.0,
    quiet: Annotated[float, Option(help="dBFS of a step below which it has no event.")] = -70.0,
    top: Annotated[int | None, Option(help="Labels per file at most; the surest ones.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    shard: ShardName = None,
    retry_failed: RetryFailed = False,
    status: Status = None,
) -> str | None:
    """Detect events in files: onset, offset, label and score of each.

    Any fine-tuned model will do. For dog.wav: dog.csv, dog.json, dog.txt (a label track for
    Audacity), dog.Table.1.selections.txt (a selection table for Raven) and dog.svg (a picture).

    Example: eat detect dog.wav recordings/ --model runs/esc50 -o events/
    """
    use_plain_modules()
    from eat_audio.inference.detect import Rules, detect_files
    from eat_audio.report.figures import timeline

    _check_retry(retry_failed, shard)
    rules = Rules(window, hop, median, on, off, gap, shortest, quiet, top)
    predictor = load_predictor(model, device, precision, compile)
    if shard is not None:
        from eat_audio.inference.shard import Events

        return _run_shard(inputs, predictor, out, Events(rules), shard, retry_failed)
    failed = []
    for result in detect_files(expanded(inputs), predictor, out, rules, plot=timeline):
        if result.detection is None:
            failed.append(result.error or "")
            continue
        rows = [
            (f"{e.onset:.2f}", f"{e.offset:.2f}", e.label, f"{e.score:.3f}")
            for e in result.detection.events
        ]
        show_table(result.path, ("onset", "offset", "label", "score"), rows, heading=True)
    end_of_job(failed)
    return None


def load_predictor(
    model: str | None,
    device: str,
    precision: str,
    compile: bool = False,
    window: float | None = None,
) -> Any:
    """Load a model for inference, and divide the threads of the CPU."""
    from eat_audio.inference.predictor import load
    from eat_audio.training.hardware import divide_threads

    options = {} if window is None else {"window": window}
    predictor = load(model, device=device, precision=precision, compile=compile, **options)
    if predictor.device.type == "cpu":
        workers = divide_threads(predictor.model.config.hidden_size)
        predictor.workers = 1 if compile else workers  # which threads cannot share
    return predictor


def _check_retry(retry_failed: bool, shard: str | None) -> None:
    if retry_failed and shard is None:
        raise SettingError("--retry-failed: expected with --shard (0/1: all of it)")


def _run_shard(
    inputs: list[str], predictor: Any, out: Any, task: Any, name: str, retry_failed: bool
) -> str:
    """Do one shard of a task, and print what was done; return the next step."""
    from eat_audio.data.parts import Shard
    from eat_audio.inference.shard import run_shard

    shard = Shard.parse(name)
    arguments = expanded(inputs), predictor, out, task
    done = run_shard(*arguments, shard=shard, retry_failed=retry_failed)
    already = f", {done.skipped} were there already, or failed" if done.skipped else ""
    print_lines(f"{out}: shard {shard.index}/{shard.count}: {done.done} units done{already}")
    end_of_job(done.failed)
    return f"eat embed --status {shlex.quote(str(out))}"


@app.command()
def convert(
    source: Annotated[str, Argument(help="A released file, a model folder, a run or a Hub id.")],
    out: Annotated[Path, Argument(help="Where to: a new folder; with --to released a new file.")],
    *,
    to: Annotated[
        str,
        Option(
            help="eat-audio: a folder of this package; released (or fairseq): a .pt as the "
            "authors' own code has it; released-hf: a folder as EAT's on the Hub, without code."
        ),
    ] = "eat-audio",
    weights: Annotated[
        Literal["student", "teacher"],
        Option(help="teacher: the average of the student that EAT's pre-training learns from."),
    ] = "student",
    teacher: Annotated[bool, Option("--teacher", hidden=True)] = False,
) -> None:
    """Write a model in another layout, bit by bit the same, without running anything in a file.

    Example: eat convert EAT-base_epoch30_pt.pt models/eat_base
             eat convert runs/mine models/teacher --weights teacher
    """
    from eat_audio.checkpoints.convert import write
    from eat_audio.checkpoints.hub import licence_of
    from eat_audio.checkpoints.load import load_model_and_features, on_disk

    path = on_disk(source)
    model, features = load_model_and_features(path, teacher=teacher or weights == "teacher")
    lost = write(model, features, out, layout="released" if to == "fairseq" else to)
    print_lines(f"{out}: {type(model).__name__}, {len(model.state_dict())} tensors")
    for part in lost:
        print_lines(f"{out}: this layout has no place for {part}", error=True)
    if licence := getattr(model.config, "license", None) or licence_of(path):
        print_lines(f"{out}: the licence of these weights is {licence}", error=True)


@app.command()
def inspect(
    source: Annotated[str, Argument(help="A run's folder, a model folder, a file or a Hub id.")],
    *,
    as_json: AsJSON = False,
) -> None:
    """Show what a model is: its shape, front end and labels, how it was trained, a fingerprint.

    Also of released files: which of their tensors are used, and why the rest is not.

    Example: eat inspect runs/mine
    """
    description = _description(source)
    if as_json:
        print_json(description)
    else:
        show_table(source, ("what", "value"), list(_rows(description)))


def _description(source: str) -> dict[str, Any]:
    """Return the properties of a model by name; groups are mappings, missing ones are None."""
    from eat_audio.checkpoints.hub import licence_of
    from eat_audio.checkpoints.load import contents, load_features, load_model, method_of, on_disk
    from eat_audio.checkpoints.released_files import weights_of
    from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder
    from eat_audio.training.checkpoint import checkpoints, fingerprint, model_folder

    model, features = load_model(source), load_features(source)
    encoder = load_model(source, AudioEncoder)  # comparable with the one that training began with
    path = on_disk(source)
    released = weights_of(path)
    folder = released.parent if released else model_folder(path)
    record = _run_record(folder)
    if saved := checkpoints(folder):  # a finished run: its last checkpoint has the step
        record |= {"step": _run_record(saved[-1]).get("step")}
    origin = record.get("origin")
    config: Any = model.config
    kind: Any = type(config)
    classifies = isinstance(model, AudioClassifier)
    versions = ("eat_audio", "torch", "transformers")
    front_end = ("mean", "std", "released_padding")
    settings = [name for name in signature(kind).parameters if name != "kwargs"]
    return {
        "kind": "classifier" if classifies else "encoder",
        "method": method_of(config, record.get("recipe")).name,
        "held_by": "run" if saved else "run checkpoint" if "step" in record else "model",
        "size": next((n for n in kind.sizes if _shape(kind.named(n)) == _shape(config)), None),
        **_shape(config),
        "pooling": getattr(config, "pooling", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "labels": config.num_labels if classifies else None,
        "licence": getattr(config, "license", None)
        or licence_of(path if path.is_file() else folder),
        "front_end": features and {name: getattr(features, name) for name in front_end},
        "fingerprint": fingerprint(model.state_dict()),
        "encoder_fingerprint": fingerprint(encoder.model.state_dict()),
        "file": _tensor_counts(contents(source), model.state_dict()),
        "configuration": {name: getattr(config, name) for name in settings},
        "started_from": origin.get("encoder") if isinstance(origin, dict) else None,
        "step": record.get("step"),
        "processes": record.get("processes"),
        "data": record.get("data"),
        "versions": {name: record[name] for name in versions if name in record},
        "recipe": record.get("recipe"),
    }


def _tensor_counts(content: Any, needed: dict[str, Any]) -> dict[str, Any]:
    """Return how a model's tensors are stored, and how many are used and not used, and why."""
    unused = Counter(content.ignored.values())
    unused["positions, which are computed"] += sum(name not in needed for name in content.tensors)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in content.tensors.values()}
    return {
        "dtype": " and ".join(sorted(dtypes)),
        "tensors": len(content.tensors) + len(content.ignored),
        "used": len(needed),
        "not_used": {reason: count for reason, count in unused.items() if count},
    }


def _shape(config: Any) -> dict[str, int]:
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    return dict(zip(("embed_dim", "depth", "num_heads"), sizes, strict=True))


def _run_record(folder: Path) -> dict[str, Any]:
    """Return a run's record beside its model; empty if no run made it."""
    from eat_audio.training.checkpoint import read_json

    path = folder / "run.json"
    record: object = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise EatError(f"{path}: is no record of a run; expected a JSON object")
    return record


def _rows(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{"optim": {"lr": 1}} -> ("optim.lr", "1"); None has no row."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
