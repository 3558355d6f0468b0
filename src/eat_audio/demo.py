"""Run pre-training, probing, fine-tuning and prediction on labeled clips, and report the results.

Each stage is the function behind a command. All files lie in one folder.
"""

import io
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from eat_audio import config, finetune
from eat_audio.audio import SAMPLE_RATE
from eat_audio.data import synthetic
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.manifest import write_csv
from eat_audio.data.splits import cross_validation, sample
from eat_audio.data.statistics import measure
from eat_audio.errors import EatError
from eat_audio.evaluation import probe
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.finetune import FinetuneRun
from eat_audio.inference.predictor import Prediction, load
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
OUTPUTS = (RECORD, "sound", "clips.csv", "unlabeled.csv", "pretrained", "finetuned", "scratch")
"""What a demo writes, beside `unseen.wav` and `report.html`."""


@dataclass
class Results:
    """Everything that a demo has measured."""

    corpus: str
    train: int
    """Clips to train on."""
    test: int
    """Clips to test on."""
    probes: probe.ProbeResult
    """Of the pre-trained encoder, one with random weights, and log-mel statistics."""
    evaluation: Evaluation
    """Of the model that was fine-tuned from the pre-trained encoder."""
    from_scratch: Evaluation
    path: str
    """Of the predicted recording."""
    truth: str
    """Its labels."""
    predictions: list[Prediction]
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took."""


@threadpool_limits.wrap(limits=1)  # threads that wait for one another take longer than one alone
def run(
    *,
    out: Path,
    data: Path | None = None,
    clips_per_family: int = CLIPS_PER_FAMILY,
    pretraining: Sequence[str] = (),
    finetuning: Sequence[str] = (),
) -> Results:
    """Run all stages and write `out/report.html`.

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
    corpus = None if data is None else probe.labeled_corpus(data)
    seconds = config.load(EATRun, "eat_demo", pretraining).clips.seconds
    prepare_folder(out, data)
    manifest, stages = out / "clips.csv", Stages(total=7)

    with stages.begin("the corpus"):
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
    with stages.begin("log-mel statistics"):
        measured = measure(train)
        if data is not None:
            usual = measured.seconds / measured.clips
            seconds = round(min(max(usual, SHORTEST), LONGEST), 2)
        mean, std = measured.statistics.mean, measured.statistics.std
        clips = [f"clips.seconds={seconds}", f"clips.statistics=[{mean:.4f},{std:.4f}]"]
    with stages.begin("pre-training without labels"):
        settings = config.load(EATRun, "eat_demo", [*clips, *pretraining])
        settings = settings.model_copy(update={"data": str(out / "unlabeled.csv")})
        pretrain.run(settings, out=out / "pretrained")
    with stages.begin("linear probes: pre-trained, random weights, log-mel"):
        probes = probe.probe_encoder(out / "pretrained", manifest, seconds=seconds, seeds=1)
        for name, score in probe_rows(probes):
            print_lines(f"{'':13}{name:38}{as_percent(score)}")
    loss = ["loss=bce_per_label", "augment.label_smoothing=0"] if train.multi_label else []
    tuning = config.load(FinetuneRun, "eat_demo_finetune", [*clips, *loss, *finetuning])
    tuning = tuning.model_copy(update={"data": str(manifest)})
    evaluations = []
    for name, folder in (("the pre-trained encoder", "finetuned"), ("scratch", "scratch")):
        with stages.begin(f"fine-tuning with labels, from {name}"):
            start = out / "pretrained" if folder == "finetuned" else None
            tuned = finetune.run(tuning, out=out / folder, start=start).evaluation
            assert tuned is not None
            evaluations.append(tuned)
            print_lines(f"{'':13}{tuned.metric} {as_percent(tuned.value)}")
    with stages.begin("predicting a clip that it was not trained on, and the report"):
        path, truth = write_unseen(out / "unseen.wav", None if data is None else test, seconds)
        predictions = load(out / "finetuned").predict(out / "unseen.wav", top_k=5)
        tuned, scratch = evaluations
        results = Results(
            corpus.name, len(train), tuned.clips, probes, tuned, scratch, path, truth, predictions
        )
    results.stages = stages.seconds
    commands = next_commands(out, data)
    write_text(out / "report.html", render(results, out, commands))
    write_json(out / RECORD, {"demo": "finished"} | asdict(results))
    _print_results(results, out, commands)
    return results


# ---- the folder and the corpus ----


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
        for path in (out / name for name in (*OUTPUTS, "unseen.wav", "report.html")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_json(out / RECORD, {"demo": "begun"})


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Return clips to train on and to test on: a published split, or the first of the folds."""
    parts = []
    first = cross_validation(corpus.clips).indices[0]
    for name, numbers, most in zip(("train", "test"), first, (MOST_TRAIN, MOST_TEST), strict=True):
        clips = tuple(replace(corpus.clips[n], split=name) for n in numbers.tolist())
        parts.append(sample(replace(corpus, clips=clips), most))
    return parts[0], parts[1]


def write_unseen(file: Path, test: Corpus | None, seconds: float) -> tuple[str, str]:
    """Write a clip of `test`, or a new synthetic one, as WAV; return its path and its labels."""
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


# ---- output ----


@dataclass
class Stages:
    """Prints the beginning of every stage, and keeps how long each took."""

    total: int
    seconds: dict[str, float] = field(default_factory=dict)
    clock: float = field(default_factory=time.perf_counter)

    @contextmanager
    def begin(self, name: str) -> Iterator[None]:
        """Print the name of a stage; keep its time."""
        start = time.perf_counter() - self.clock
        print_lines(f"[{start:4.0f} s] {len(self.seconds) + 1}/{self.total} {name}")
        yield
        self.seconds[name] = time.perf_counter() - self.clock - start


def probe_rows(probes: probe.ProbeResult) -> list[tuple[str, float]]:
    """Return names and scores of all probes, and the score by chance."""
    names = {"this one": ", pre-trained", "random (1)": ", random weights", "none": ""}
    rows = [(f"{row.features}{names[row.encoder]}", row.linear.mean) for row in probes.rows]
    return [*rows, ("by chance", probes.chance)]


def verdict(results: Results) -> str:
    """Return what pre-training brought to fine-tuning, and whether it is more than chance."""
    tuned, scratch = results.evaluation, results.from_scratch
    points = 100 * (tuned.value - scratch.value)
    sentence = f"Fine-tuning reached {abs(points):.1f} points {'more' if points > 0 else 'less'} "
    sentence += "from the pre-trained encoder than from random weights"
    if tuned.metric != "accuracy":
        return f"{sentence}."
    error = 100 * math.sqrt(sum(e.value * (1 - e.value) / e.clips for e in (tuned, scratch)))
    if abs(points) < 2 * error:
        return f"{sentence}: within twice the standard error ({error:.1f}), so it may be chance."
    return f"{sentence}: more than twice the standard error ({error:.1f})."


def score_rows(results: Results) -> list[tuple[str, str]]:
    """Return the scores of both fine-tuned models."""
    models = (
        ("fine-tuned from the pre-trained", results.evaluation),
        ("fine-tuned from scratch", results.from_scratch),
    )
    return [(name, with_error(one.metric, one.value, one.clips)) for name, one in models]


def render(results: Results, out: Path, commands: Sequence[str]) -> str:
    """Return the page: the results, and the reports of both runs."""
    metric, manifest = results.evaluation.metric, str(out / "clips.csv")
    guesses = [(one.label, one.score, "") for one in results.predictions]
    wav = data_url((out / "unseen.wav").read_bytes(), "audio/wav")
    probes = [(name, score, "") for name, score in probe_rows(results.probes)]
    sections: list[report.Section] = [
        (
            "Scores",
            [
                ("bars", f"Linear classifier on frozen features, {metric}", probes, 0),
                (
                    "table",
                    ("model", f"{metric} on {results.test:,} test clips"),
                    score_rows(results),
                ),
                ("text", verdict(results)),
            ],
        ),
        (
            "A clip that it was not trained on",
            [
                ("text", f"{results.path}, which is {results.truth}:"),
                ("audio", wav),
                ("bars", "Prediction", guesses, 0),
            ],
        ),
    ]
    for title, folder in (("Pre-training", "pretrained"), ("Fine-tuning", "finetuned")):
        blocks = report.run_sections(report.read_run(out / folder, manifest))
        sections += [(f"{title}: {heading[0].lower()}{heading[1:]}", b) for heading, b in blocks]
    times = [(name, f"{seconds:.1f}") for name, seconds in results.stages.items()]
    sections += [("Time", [("table", ("stage", "seconds"), times)])]
    sections += [("Next", [("code", "\n".join(commands))])]
    lead = f"{results.train:,} clips to train on, {results.test:,} to test on."
    return report.render_page(f"eat demo: {results.corpus}", sections, lead=lead)


def next_commands(out: Path, data: Path | None) -> list[str]:
    """Return commands to go on with."""
    sound, model = shlex.quote(str(out / "unseen.wav")), shlex.quote(str(out / "finetuned"))
    own = shlex.quote(str(data)) if data else "YOUR_FOLDER"
    first = [] if data else ["eat demo --data YOUR_FOLDER --out runs/mine   # a folder per class"]
    return [
        f"eat predict {sound} --model {model}",
        *first,
        f"eat pretrain eat_tiny data={own} --out runs/pretrained   # longer and larger",
        f"eat finetune eat_tiny_finetune --from runs/pretrained data={own} --out runs/finetuned",
    ]


def _print_results(results: Results, out: Path, commands: Sequence[str]) -> None:
    seconds = sum(results.stages.values())
    metric = results.evaluation.metric
    print_lines(
        "", f"{metric} on {results.test:,} test clips of {results.corpus} ({seconds:.0f} s)"
    )
    for name, score in [(n, as_percent(s)) for n, s in probe_rows(results.probes)] + score_rows(
        results
    ):
        print_lines(f"  {name:38}{score}")
    scores = ", ".join(f"{one.label} {as_percent(one.score)}" for one in results.predictions[:3])
    print_lines(verdict(results), f"{results.path} is {results.truth}; the model says {scores}")
    print_lines(f"report: {out / 'report.html'}", "next:", *(f"  {line}" for line in commands))
