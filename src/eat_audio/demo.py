"""Run every kind of work, and report the results: the `eat demo` command.

First the model that ships labels real recordings; then an encoder is trained on other clips.
Each stage is the function behind a command. All files lie in one folder.
"""

import io
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from eat_audio import config, finetune
from eat_audio.audio import SAMPLE_RATE
from eat_audio.checkpoints import shipped
from eat_audio.data import synthetic
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.manifest import write_csv
from eat_audio.data.splits import cross_validation, sample
from eat_audio.data.statistics import measure
from eat_audio.errors import EatError
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.evaluation.probe import ProbeResult, labeled_corpus, probe_encoder
from eat_audio.finetune import FinetuneRun
from eat_audio.inference.predictor import load
from eat_audio.pretraining import run as pretrain
from eat_audio.pretraining.eat import EATRun
from eat_audio.progress import print_lines
from eat_audio.report import report
from eat_audio.report.figures import as_percent, data_url, with_error
from eat_audio.training.checkpoint import read_json
from eat_audio.writing import write_json, write_text

CLIPS_PER_FAMILY = 60
UNSEEN = 1_000_003
"""Seed of the predicted clip; that of the corpus is 0."""
MOST_TRAIN, MOST_TEST = 600, 300
"""Clips of a larger corpus that are used."""
SHORTEST, LONGEST = 2.0, 5.0
"""Seconds of a user's clips that are used: room for a visible block, and a limit to the time."""
RECORD = "demo.json"
"""Marks the folder of a demo, which a later one may overwrite."""
OUTPUTS = [RECORD, "sound", "clips.csv", "unlabeled.csv", "pretrained", "finetuned", "scratch"]
OUTPUTS += ["unseen.wav", "report.html"]
EXAMPLES = shipped.FOLDER / "examples"
"""Real recordings, CC0, that the model that ships has learned nothing from."""
CREDIT = "From ESC-10's held-out fold, CC0; their authors are in weights/attribution/esc10.csv."
PROBED = {"this one": ", pre-trained", "random (1)": ", random weights", "none": ""}


@threadpool_limits.wrap(limits=1)  # threads that wait for one another take longer than one alone
def run(
    *,
    out: Path,
    data: Path | None = None,
    clips_per_family: int = CLIPS_PER_FAMILY,
    pretraining: Sequence[str] = (),
    finetuning: Sequence[str] = (),
) -> dict[str, Any]:
    """Run all stages, write `out/report.html`, and return what `out/demo.json` holds.

    Args:
        out: New, empty, or the folder of an earlier demo, whose files are replaced.
        data: Labeled clips; synthetic ones if None.
        clips_per_family: Clips of each of the ten synthetic classes.
        pretraining: Settings that differ from the recipe eat_demo, as "key=value".
        finetuning: The same for eat_demo_finetune.

    Raises:
        EatError: `out` holds something else, or `data` cannot be used.
    """
    transformers_logging.disable_progress_bar()
    corpus = None if data is None else labeled_corpus(data)
    seconds = config.load(FinetuneRun, "eat_demo_finetune", finetuning).clips.seconds
    prepare_folder(out, data)
    manifest, clock, times = out / "clips.csv", time.perf_counter(), dict[str, float]()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter() - clock
        print_lines(f"[{start:4.0f} s] {len(times) + 1}/8 {name}")
        yield
        times[name] = time.perf_counter() - clock - start

    with stage("real recordings, labeled by the model that ships"):
        answers = label_examples()
        print_lines(*(f"{'':13}{file}: {label} {score}" for file, label, score in answers))
    with stage("the corpus"):
        if corpus is None:
            made = synthetic.write_corpus(
                out / "sound", clips_per_family=clips_per_family, seconds=seconds
            )
            corpus = replace(open_corpus(made), name="synthetic sounds")
        train, test = split(corpus)
        write_csv(replace(corpus, clips=(*train.clips, *test.clips)), manifest)
        bare = tuple(replace(clip, labels=()) for clip in train.clips)
        unlabeled = replace(train, clips=bare, label_names=(), multi_label=False)
        write_csv(unlabeled, out / "unlabeled.csv")
        print_lines(f"{'':13}{corpus.name}: {len(train)} clips to train on, {len(test)} to test on")
    with stage("log-mel statistics"):
        measured = measure(train)
        if data is not None:
            seconds = min(max(measured.seconds / measured.clips, SHORTEST), LONGEST)
        mean, std = measured.statistics.mean, measured.statistics.std / 2  # inputs of deviation 1
        inputs = f"clips.statistics=[{mean:.4f},{std:.4f}]"
        clips, crops = ([f"clips.seconds={s:.2f}", inputs] for s in (seconds, seconds / 2))
    with stage("pre-training without labels"):
        settings = config.load(EATRun, "eat_demo", [*crops, *pretraining])
        settings = settings.model_copy(update={"data": str(out / "unlabeled.csv")})
        pretrain.run(settings, out=out / "pretrained")
    with stage("linear probes: pre-trained, random weights, log-mel"):
        probes = probe_encoder(out / "pretrained", manifest, seconds=seconds, seeds=1)
    loss = ["loss=bce_per_label", "augment.label_smoothing=0"] if train.multi_label else []
    tuning = config.load(FinetuneRun, "eat_demo_finetune", [*clips, *loss, *finetuning])
    tuning = tuning.model_copy(update={"data": str(manifest)})
    with stage("fine-tuning with labels, from the pre-trained encoder"):
        tuned = finetune.run(tuning, out=out / "finetuned", start=out / "pretrained").evaluation
    with stage("fine-tuning with labels, from scratch"):
        scratch = finetune.run(tuning, out=out / "scratch", start=None).evaluation
    assert tuned is not None and scratch is not None
    with stage("predicting a clip that it was not trained on, and the report"):
        path, label = write_unseen(out / "unseen.wav", None if data is None else test, seconds)
        predictions = load(out / "finetuned").predict(out / "unseen.wav", top_k=5)
        label_scores = [(one.label, one.score) for one in predictions]
        scores = score_rows(probes, tuned, scratch)
        title = f"{tuned.metric} on {tuned.clips:,} test clips of {corpus.name}"
        columns = ("recording", "likeliest label", "score")
        sections: list[report.Section] = [
            ("Real recordings", [("table", columns, answers), ("text", CREDIT)]),
            ("Scores", [("table", ("", title), scores), ("text", verdict(probes, tuned, scratch))]),
            (
                "A clip that it was not trained on",
                [
                    ("text", f"{path}, which is {label}:"),
                    ("audio", data_url((out / "unseen.wav").read_bytes(), "audio/wav")),
                    ("bars", "Prediction", [(*bar, "") for bar in label_scores], 0),
                ],
            ),
        ]
        for kind, folder in (("Pre-training", "pretrained"), ("Fine-tuning", "finetuned")):
            of_run = report.run_sections(report.read_run(out / folder, str(manifest)))
            sections += [(f"{kind}: {heading}", blocks) for heading, blocks in of_run]
    record = {"demo": "finished", "corpus": corpus.name, "train": len(train), "test": tuned.clips}
    record |= {"probes": asdict(probes), "finetuned": asdict(tuned), "scratch": asdict(scratch)}
    record |= {"examples": answers}
    record |= {"path": path, "label": label, "predictions": label_scores, "seconds": times}
    best = ", ".join(f"{name} {as_percent(score)}" for name, score in label_scores[:3])
    print_lines("", title, *(f"  {name:42}{score}" for name, score in scores))
    print_lines(verdict(probes, tuned, scratch), f"{path} is {label}; predicted: {best}")
    finish(out, record, sections, next_commands(out, data))
    return record


def label_examples() -> list[tuple[str, str, str]]:
    """Return the recordings that ship, and the likeliest label and score of each."""
    paths = sorted(EXAMPLES.glob("*.ogg"))
    results = zip(paths, load().predict_many(paths, top_k=1), strict=True)
    rows = []
    for path, answer in results:
        assert isinstance(answer, list), answer
        rows.append((path.name, answer[0].label, as_percent(answer[0].score)))
    return rows


def finish(
    out: Path, record: dict[str, Any], sections: list[report.Section], commands: list[str]
) -> None:
    """Write the report and the record, and print what to do next."""
    times = [(name, f"{taken:.1f}") for name, taken in record["seconds"].items()]
    sections.append(("Time", [("table", ("stage", "seconds"), times)]))
    sections.append(("Next", [("code", "\n".join(commands))]))
    lead = f"{record['train']:,} clips to train on, {record['test']:,} to test on."
    page = report.render_page(f"eat demo: {record['corpus']}", sections, lead=lead)
    write_text(out / "report.html", page)
    write_json(out / RECORD, record)
    print_lines(f"report: {out / 'report.html'}", "next:", *(f"  {line}" for line in commands))


def prepare_folder(out: Path, data: Path | None) -> None:
    """Make the demo's folder; remove what an earlier demo wrote into it, nothing else.

    Raises:
        EatError: The folder holds something else.
    """
    if data is not None:
        folder, source = out.resolve(), data.resolve()
        if folder == source or folder in source.parents or source in folder.parents:
            raise EatError(f"{out}: one of --out and --data lies in the other; expected two places")
    if out.exists() and not out.is_dir():
        raise EatError(f"{out}: is a file; expected a folder for the demo")
    if out.is_dir() and any(out.iterdir()):
        if not (out / RECORD).is_file() or "demo" not in read_json(out / RECORD):
            raise EatError(
                f"{out}: is not empty and not a demo's (no {RECORD}); choose another --out"
            )
        for path in (out / name for name in OUTPUTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_json(out / RECORD, {"demo": "begun"})


def split(corpus: Corpus) -> list[Corpus]:
    """Return clips to train on and to test on: a published split, or the first of the folds."""
    parts = cross_validation(corpus.clips).indices[0]
    return [
        sample(
            replace(corpus, clips=tuple(replace(corpus.clips[n], split=name) for n in part)), most
        )
        for name, part, most in zip(("train", "test"), parts, (MOST_TRAIN, MOST_TEST), strict=True)
    ]


def write_unseen(file: Path, test: Corpus | None, seconds: float) -> tuple[str, str]:
    """Write a clip of `test`, or a new synthetic one, as WAV; return its path and its label."""
    if test is None:
        generator = np.random.default_rng(UNSEEN)
        label = str(generator.choice(list(synthetic.FAMILIES)))
        waveform = synthetic.synthesize(label, seconds=seconds, generator=generator)
        path = file
    else:
        clip, samples, label = next(report.readable_clips(test, seconds))
        waveform, path = samples.numpy(), Path(clip.path)
    wav = io.BytesIO()
    soundfile.write(wav, waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    file.write_bytes(wav.getvalue())
    return str(path), label


def score_rows(probes: ProbeResult, *evaluations: Evaluation) -> list[tuple[str, str]]:
    """Return names and scores: chance, linear probes, fine-tuned models."""
    rows = [("by chance", as_percent(probes.chance))]
    for row in probes.rows:
        rows.append((f"probe of {row.features}{PROBED[row.encoder]}", as_percent(row.linear.mean)))
    for name, one in zip(("the pre-trained", "scratch"), evaluations, strict=True):
        rows.append((f"fine-tuned from {name}", with_error(one.metric, one.value, one.clips)))
    return rows


def probe_margins(probes: ProbeResult, features: str) -> tuple[float, float]:
    """Return the points by which the probe of some features beats random weights and log-mel."""
    scores = {(row.features, row.encoder): row.linear.mean for row in probes.rows}
    own = scores[features, "this one"]
    log_mel = next(score for (_, encoder), score in scores.items() if encoder == "none")
    return 100 * (own - scores[features, "random (1)"]), 100 * (own - log_mel)


def verdict(probes: ProbeResult, tuned: Evaluation, scratch: Evaluation) -> str:
    """Return what pre-training brought to probes and to fine-tuning, and if it may be chance."""
    tokens, statistics = probe_margins(probes, "both"), probe_margins(probes, "statistics")
    probe = (
        f"The probe of CLS token and mean is {tokens[0]:+.1f} points from random weights and "
        f"{tokens[1]:+.1f} from log-mel statistics; with the deviation of patches, too, "
        f"{statistics[0]:+.1f} and {statistics[1]:+.1f}. "
    )
    points = 100 * (tuned.value - scratch.value)
    sentence = (
        f"{probe}Fine-tuning reached {abs(points):.1f} points {'more' if points > 0 else 'less'} "
    )
    sentence += "from the pre-trained encoder than from random weights"
    if tuned.metric != "accuracy":
        return f"{sentence}."
    error = 100 * math.sqrt(sum(e.value * (1 - e.value) / e.clips for e in (tuned, scratch)))
    if abs(points) < 2 * error:
        return f"{sentence}: within twice the standard error ({error:.1f}), so it may be chance."
    return f"{sentence}: more than twice the standard error ({error:.1f})."


def next_commands(out: Path, data: Path | None) -> list[str]:
    """Return commands to go on with."""
    sound, model = shlex.quote(str(out / "unseen.wav")), shlex.quote(str(out / "finetuned"))
    own = shlex.quote(str(data)) if data else "YOUR_FOLDER"
    return [
        f"eat predict {sound} --model {model}",
        f"eat pretrain eat_tiny data={own} --out runs/pretrained   # longer and larger",
        f"eat finetune eat_tiny_finetune --from runs/pretrained data={own} --out runs/finetuned",
    ]
