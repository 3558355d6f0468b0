"""Labeled clips, made here or a user's own -> everything the package does, in a few minutes.

The steps are those of real work, in their order: look at the corpus, probe an encoder of random
weights, pre-train it without labels, probe it again, fine-tune it, predict. All of it lies in one
folder afterwards, with a report that shows what was measured.
"""

import io
import json
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np
import soundfile
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from eat_audio import config as recipe
from eat_audio import finetune
from eat_audio.audio import SAMPLE_RATE, audio_seconds
from eat_audio.audio import fbank as logmel
from eat_audio.checkpoints.load import load_model, spec_of
from eat_audio.data import synthetic
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings, ordered_batches
from eat_audio.data.manifest import write_csv
from eat_audio.data.splits import Roles, hold_out, train_and_test
from eat_audio.data.storage import sound_of
from eat_audio.errors import AudioError, DataError, EatError
from eat_audio.evaluation import probe
from eat_audio.evaluation.metrics import linear_score
from eat_audio.finetune import FinetuneRun
from eat_audio.inference.predictor import load
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining import run as pretrain
from eat_audio.pretraining.eat import EATRun
from eat_audio.progress import print_lines
from eat_audio.report.drawings import percent, with_error
from eat_audio.report.exhibits import label_of, masked_clips, readable
from eat_audio.report.of_demo import Findings, Guess, render, verdict
from eat_audio.report.pictures import Example
from eat_audio.report.report import short_names
from eat_audio.rng import hash_id
from eat_audio.training.checkpoint import read_json
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_json, write_text

RECIPES = ("eat_demo", "eat_demo_finetune")
CLIPS_PER_FAMILY = 60
UNSEEN = 1_000_003
"""Seed of the clip to be predicted; that of the corpus is 0."""
MOST_TRAIN, MOST_TEST = 600, 300
"""Of a larger corpus only so many clips are used."""
SHARE_TESTED = 0.2
SHORTEST, LONGEST = 2.0, 5.0
"""Seconds of a user's clips that are heard: room for one visible block, and a limit to the time."""
TOLD = 5
"""Labels that are told of the predicted clip."""
RECORD = "demo.json"
"""Says that a folder is a demo's, which a later one may write over."""
OURS = (
    RECORD,
    "sound",
    "unlabeled.csv",
    "pretrained",
    "finetuned",
    "scratch",
    "unseen.wav",
    "report.html",
)
"""All that a demo writes into its folder."""


@threadpool_limits.wrap(limits=1)
def run(
    *,
    out: Path,
    data: Path | None = None,
    clips_per_family: int = CLIPS_PER_FAMILY,
    pretraining: Sequence[str] = (),
    finetuning: Sequence[str] = (),
) -> Findings:
    """Go the whole way and write `out/report.html`.

    On one thread: the models are small, and on a machine that has other work to do, threads that
    wait for one another took four times as long as one alone.

    Args:
        out: New, empty, or the folder of an earlier demo, whose files are then replaced.
        data: Labeled clips in any layout that `open_corpus` knows; made here if None.
        clips_per_family: How many clips of each of the ten families are made.
        pretraining: Settings that differ from the recipe eat_demo, as "key=value".
        finetuning: The same for eat_demo_finetune.

    Raises:
        EatError: `out` holds something else, or `data` cannot be used.
    """
    transformers_logging.disable_progress_bar()
    corpus = None if data is None else _opened(data)
    clips = recipe.load(EATRun, RECIPES[0], pretraining).clips
    begin(out, data)
    stages = Stages(total=7)

    with stages.tell("making ten families of sounds" if corpus is None else "the corpus"):
        if corpus is None:
            corpus = _made(out / "sound", clips_per_family, clips.seconds)
        else:
            clips = clips.model_copy(update={"seconds": usual_seconds(corpus)})
        train, test = parts(corpus)
        stages.say(f"{corpus.name}: {len(train)} clips to learn from, {len(test)} to be tested on")
    with stages.tell("log-mel statistics, and a linear probe of them"):
        pooled = listen(train, test, clips)
        stages.say(f"{pooled.metric} {percent(pooled.score)}, by chance {percent(pooled.chance)}")
    clips = clips.model_copy(update={"statistics": (pooled.mean, pooled.std)})
    settings = _settings(train, out, clips, pretraining, finetuning)

    with stages.tell("linear probe of an encoder with random weights"):
        before = probed(None, train, test, settings.pretrain)
        stages.say(_probe_line(before))
    with stages.tell("pre-training without labels"):
        pretrain.run(settings.pretrain, out=out / "pretrained")
    with stages.tell("linear probe of the pre-trained encoder"):
        after = probed(out / "pretrained", train, test, settings.pretrain)
        stages.say(_probe_line(after))
    both = replace(train, clips=(*train.clips, *test.clips))
    with stages.tell("fine-tuning with labels, from the pre-trained encoder and from scratch"):
        tuned = finetune.run(
            settings.finetune, out=out / "finetuned", start=out / "pretrained", corpus=both
        ).evaluation
        scratch = finetune.run(
            settings.finetune, out=out / "scratch", start=None, corpus=both
        ).evaluation
        assert tuned is not None and scratch is not None
        stages.say(f"{tuned.metric} {percent(tuned.value)}, from scratch {percent(scratch.value)}")
    with stages.tell("predicting a sound it has not heard, and the report"):
        prediction = guessed(out, test, made=data is None, settings=settings.pretrain)
        found = Findings(
            corpus=corpus.name,
            train=len(train),
            test=tuned.clips,
            classes=len({label for clip in train.clips for label in clip.labels}),
            chance=pooled.chance,
            pooled=pooled.score,
            before=before,
            after=after,
            pretraining=short_names(read_log(out / "pretrained")),
            finetuning=short_names(read_log(out / "finetuned")),
            scratch=short_names(read_log(out / "scratch")),
            evaluation=tuned,
            from_scratch=scratch,
            example=_example(test, settings.pretrain),
            prediction=prediction,
            stages=stages.done,
            settings=[
                (name, recipe.dump(one))
                for name, one in zip(RECIPES, (settings.pretrain, settings.finetune), strict=True)
            ],
            versions=_versions(),
            commands=_commands(out, data),
        )
    write_text(out / "report.html", render(found))
    write_json(out / RECORD, _record(found))
    _tell(found, out, stages.seconds)
    return found


# ---- the folder ----


def begin(out: Path, data: Path | None) -> None:
    """Make the demo's folder; what an earlier demo wrote into it is removed, nothing else.

    Raises:
        EatError: The folder is somebody else's.
    """
    if data is not None:
        mine, theirs = out.resolve(), data.resolve()
        if mine == theirs or mine in theirs.parents or theirs in mine.parents:
            raise EatError(f"{out}: one of --out and --data lies in the other; expected them apart")
    if out.exists() and not out.is_dir():
        raise EatError(f"{out}: is a file; expected a folder for the demo")
    if out.is_dir() and any(out.iterdir()):
        if not (out / RECORD).is_file() or "demo" not in read_json(out / RECORD):
            raise EatError(
                f"{out}: is not empty and not a demo's (no {RECORD}); choose another --out"
            )
        for name in OURS:
            place = out / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {"demo": "begun"})


def _record(found: Findings) -> dict[str, object]:
    """The numbers, for programs."""
    return {
        "demo": "finished",
        "corpus": found.corpus,
        "clips": {"train": found.train, "test": found.test},
        "metric": found.metric,
        "chance": found.chance,
        "log_mel": found.pooled,
        "probe_before": vars(found.before),
        "probe_after": vars(found.after),
        "finetuned": found.evaluation.value,
        "from_scratch": found.from_scratch.value,
        "seconds": dict(found.stages),
    }


# ---- the corpus ----


def _made(folder: Path, clips_per_family: int, seconds: float) -> Corpus:
    listing = synthetic.write_corpus(folder, clips_per_family=clips_per_family, seconds=seconds)
    return replace(open_corpus(listing), name="synthetic sounds")


def _opened(data: Path) -> Corpus:
    """The user's clips, if they can be learnt.

    Raises:
        DataError: They have no labels, or only one.
    """
    corpus = open_corpus(data)
    used = {label for clip in corpus.clips for label in clip.labels}
    if len(used) < 2:
        found = f"one label, {corpus.label_names[min(used)]!r}" if used else "no labels"
        raise DataError(
            f"{data}: its clips have {found}; expected a folder per class, at least two, or a "
            "manifest with labels"
        )
    return corpus


def usual_seconds(corpus: Corpus) -> float:
    """How much of every clip to hear: about as much as there is, within limits."""
    lengths = []
    for clip in sample(corpus, 100).clips:
        try:
            lengths.append(clip.seconds or audio_seconds(sound_of(clip)) - clip.start)
        except AudioError:
            continue  # named when it is to be learnt
    usual = float(np.percentile(lengths, 90)) if lengths else LONGEST
    return round(min(max(usual, SHORTEST), LONGEST), 2)


def parts(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Clips to learn from and clips to be tested on, as splits "train" and "test"."""
    there = corpus.splits
    tested = list(Roles.of(there).tested) if len(there) > 1 else []
    if not tested and corpus.folds:
        tested = [there[-1]]
    if not tested:
        every = replace(corpus, clips=tuple(replace(clip, split="train") for clip in corpus.clips))
        corpus, tested = hold_out(every, SHARE_TESTED, seed=0), ["test"]
    learnt, _ = train_and_test(corpus.splits, test=tested)
    return (
        _named(sample(corpus.select(*learnt), MOST_TRAIN), "train"),
        _named(sample(corpus.select(*tested), MOST_TEST), "test"),
    )


def _named(corpus: Corpus, split: str) -> Corpus:
    return replace(corpus, clips=tuple(replace(clip, split=split) for clip in corpus.clips))


def sample(corpus: Corpus, most: int) -> Corpus:
    """At most so many clips, the same ones every time, in their order."""
    chosen = set(sorted(corpus.clips, key=lambda clip: hash_id(f"demo {clip.id}"))[:most])
    return replace(corpus, clips=tuple(clip for clip in corpus.clips if clip in chosen))


# ---- before anything is learnt ----


@dataclass(frozen=True)
class Pooled:
    """What plain log-mel statistics say about a corpus."""

    mean: float
    std: float
    """Of the log-mel of all training clips together."""
    metric: str
    score: float
    """Of a linear classifier on every clip's mean and standard deviation per mel bin."""
    chance: float
    """Of the commonest label; of random scores where clips have several."""


def listen(train: Corpus, test: Corpus, clips: ClipSettings) -> Pooled:
    """Hear every clip once, without a model."""
    seen = logmel.RunningStatistics()
    sides = []
    for corpus in (train, test):
        vectors, labels = [], []
        for batch in ordered_batches(corpus, clips, batch=32):
            if batch.ids:
                assert batch.labels is not None
                told = seen.add if corpus is train else (lambda values: None)
                vectors.append(probe.log_mel_statistics(batch, told).numpy())
                labels.append(batch.labels.numpy())
        if not vectors:
            raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")
        sides += [np.concatenate(vectors), np.concatenate(labels)]
    known, known_labels, unknown, truth = sides
    if train.multi_label:
        chance = float(truth.mean(axis=0)[truth.any(axis=0)].mean())
    else:
        chance = float(truth[:, known_labels.sum(axis=0).argmax()].mean())
    score = linear_score(known, known_labels, unknown, truth, multi_label=train.multi_label)
    total = seen.result()
    metric = "mAP" if train.multi_label else "accuracy"
    return Pooled(round(total.mean, 4), round(total.std, 4), metric, score, chance)


# ---- the runs ----


@dataclass(frozen=True)
class Recipes:
    """The two recipes, complete."""

    pretrain: EATRun
    finetune: FinetuneRun


def _settings(
    train: Corpus,
    out: Path,
    clips: ClipSettings,
    pretraining: Sequence[str],
    finetuning: Sequence[str],
) -> Recipes:
    """The recipes with what the corpus decides; pre-training gets no labels to see."""
    unlabeled = replace(
        train,
        clips=tuple(replace(clip, labels=()) for clip in train.clips),
        label_names=(),
        multi_label=False,
    )
    write_csv(unlabeled, out / "unlabeled.csv")
    place = f"data={json.dumps(str(out / 'unlabeled.csv'))}"
    loss = ["loss=bce_per_label", "augment.label_smoothing=0"] if train.multi_label else []
    steps = [
        _steps(recipe.load(EATRun, RECIPES[0]), clips.seconds),
        _steps(recipe.load(FinetuneRun, RECIPES[1]), clips.seconds),
    ]
    heard = {"clips": clips}
    first = recipe.load(EATRun, RECIPES[0], [place, steps[0], *pretraining])
    second = recipe.load(FinetuneRun, RECIPES[1], [steps[1], *loss, *finetuning])
    return Recipes(first.model_copy(update=heard), second.model_copy(update=heard))


def _steps(usual: EATRun | FinetuneRun, seconds: float) -> str:
    """Fewer steps for longer clips, so that the demo takes as long as with its own."""
    steps = round(usual.steps * min(1.0, usual.clips.seconds / seconds))
    return f"steps={max(steps, usual.optim.warmup + 1)}"


def probed(place: Path | None, train: Corpus, test: Corpus, settings: EATRun) -> probe.Probe:
    """The linear probe of an encoder in a folder, or of what pre-training starts from."""
    encoder: AudioEncoder
    if place is None:
        torch.manual_seed(settings.seed)
        config = settings.config()
        encoder = spec_of(config).encoder(config)
    else:
        encoder = load_model(place, AudioEncoder)
    encoder.to(settings.on())  # type: ignore[arg-type]
    features = pretrain.make_features(train, settings.clips, method=settings.method)
    return probe.linear_probe(encoder, features, train, test, settings.clips)


def _example(test: Corpus, settings: EATRun) -> Example:
    """The first clip that can be read, and a mask that pre-training would draw for it."""
    features = pretrain.make_features(test, settings.clips, method=settings.method)
    return next(masked_clips(test, settings, features))


def guessed(out: Path, test: Corpus, *, made: bool, settings: EATRun) -> Guess:
    """Ask the fine-tuned model about one sound, which is kept as `unseen.wav`."""
    place = out / "unseen.wav"
    if made:
        generator = np.random.default_rng(UNSEEN)
        truth = str(generator.choice(list(synthetic.FAMILIES)))
        waveform = synthetic.synthesize(truth, seconds=settings.clips.seconds, generator=generator)
        shown = str(place)
    else:
        clip, sound = next(readable(test, settings.clips.seconds))
        truth, waveform, shown = label_of(clip, test), sound.numpy(), str(clip.path)
    wav = io.BytesIO()
    soundfile.write(wav, waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    place.write_bytes(wav.getvalue())
    likeliest = load(out / "finetuned").predict(place, top_k=TOLD)
    scores = [(one.label, one.score) for one in likeliest]
    return Guess(shown, truth, wav.getvalue(), scores)


# ---- what is told ----


@dataclass
class Stages:
    """Announces each stage with the time so far, and keeps how long each took."""

    total: int
    done: list[tuple[str, float]] = field(default_factory=list)
    clock: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.clock

    @contextmanager
    def tell(self, name: str) -> Iterator[None]:
        """Say what begins; remember how long it took."""
        start = self.seconds
        print_lines(f"[{start:4.0f} s] {len(self.done) + 1}/{self.total} {name}")
        yield
        self.done.append((name, self.seconds - start))

    def say(self, message: str) -> None:
        """A result of the stage."""
        print_lines(f"             {message}")


def _probe_line(found: probe.Probe) -> str:
    assert found.cls is not None and found.both is not None
    return (
        f"{found.metric} on the CLS token {percent(found.cls)}, on the mean of the patches "
        f"{percent(found.mean)}, on both {percent(found.both)}"
    )


def _versions() -> list[tuple[str, str]]:
    names = ("eat-audio", "torch", "transformers", "numpy", "scikit-learn")
    return [("Python", python_version()), *((name, version(name)) for name in names)]


def _commands(out: Path, data: Path | None) -> list[str]:
    place, model = shlex.quote(str(out / "unseen.wav")), shlex.quote(str(out / "finetuned"))
    own = shlex.quote(str(data)) if data else "YOUR_FOLDER"
    first = [] if data else ["eat demo --data YOUR_FOLDER --out runs/mine   # a folder per class"]
    return [
        f"eat predict {place} --model {model}",
        *first,
        f"eat pretrain eat_tiny data={own} --out runs/pretrained   # longer and larger",
        f"eat finetune eat_tiny_finetune --from runs/pretrained data={own} --out runs/finetuned",
    ]


def _tell(found: Findings, out: Path, seconds: float) -> None:
    rows = [
        ("by chance", percent(found.chance)),
        ("linear probe of log-mel, no encoder", percent(found.pooled)),
        ("linear probe of the random encoder", percent(found.before.mean)),
        ("linear probe after pre-training", percent(found.after.mean)),
        *(
            (name, with_error(one.metric, one.value, one.clips))
            for name, one in (
                ("fine-tuned from scratch", found.from_scratch),
                ("fine-tuned from the pre-trained", found.evaluation),
            )
        ),
    ]
    print_lines(
        "", f"{found.metric} on {found.test:,} test clips of {found.corpus} ({seconds:.0f} s)"
    )
    for name, value in rows:
        print_lines(f"  {name:38}{value}")
    print_lines(*verdict(found).splitlines())
    scores = ", ".join(f"{label} {percent(score)}" for label, score in found.prediction.scores[:3])
    print_lines(f"{found.prediction.path} is {found.prediction.truth}; the model says {scores}")
    print_lines(f"report: {out / 'report.html'}", "next:")
    for command in found.commands:
        print_lines(f"  {command}")
