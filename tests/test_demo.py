"""The demo goes the whole way, in small, and its report needs nothing but itself."""

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from eat_audio import config, demo
from eat_audio.data import synthetic
from eat_audio.data.datasets import open_corpus
from eat_audio.data.manifest import write_csv
from eat_audio.data.statistics import measure
from eat_audio.errors import DataError, EatError
from eat_audio.evaluation.probe import probe_encoder
from eat_audio.pretraining import run as pretrain
from eat_audio.pretraining.eat import EATRun
from eat_audio.report.figures import as_percent

PRETRAINING = [
    "device=cpu",
    "steps=4",
    "batch=4",
    "masks=2",
    "optim.warmup=1",
    "log_every=1",
    "encoder.embed_dim=32",
    "encoder.depth=1",
    "encoder.num_heads=1",
]
FINETUNING = ["device=cpu", "steps=4", "batch=4", "optim.warmup=1", "log_every=1"]
LOADS = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}


@pytest.fixture(scope="module", autouse=True)
def _labeled_once() -> Iterator[None]:
    """The model that ships labels its recordings in the first demo only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "label_examples", cache(demo.label_examples))
        yield


def small(out: Path, data: Path | None = None, **changes) -> dict[str, Any]:
    seconds = [] if data else ["clips.seconds=2.0"]
    settings = {
        "clips_per_family": 3,
        "pretraining": [*PRETRAINING, *seconds],
        "finetuning": [*FINETUNING, *seconds],
    }
    return demo.run(out=out, data=data, **settings | changes)


def probes(results: dict[str, Any], encoder: str) -> list[float]:
    """Scores of an encoder on CLS, mean, both and statistics."""
    scores = [
        row["linear"]["mean"] for row in results["probes"]["rows"] if row["encoder"] == encoder
    ]
    assert len(scores) == 4
    return scores


@pytest.fixture(scope="module")
def printed() -> io.StringIO:
    """What the finished demo has printed."""
    return io.StringIO()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, printed) -> tuple[Path, dict[str, Any]]:
    """A folder with a finished demo on synthetic sounds, and its results."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    with redirect_stdout(printed):
        return out, small(out)


class Page(HTMLParser):
    """The tags, the text and whatever is loaded by a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in LOADS]

    def handle_data(self, data):
        self.words += data


def report(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_demo_leaves_models_and_a_report(finished):
    out, _ = finished
    for name in ("pretrained", "finetuned", "scratch"):
        assert (out / name / "model.safetensors").is_file()
    assert (out / "unseen.wav").is_file()
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["demo"] == "finished"


def test_the_report_loads_nothing_but_itself(finished):
    page = Page(report(finished[0]))
    outside = [url for url in page.loads if not url.startswith("#")]
    # three clips, each whole and masked; for both encoders six clips with their five neighbors;
    # and the predicted clip
    assert len(outside) == 3 * 2 + 2 * 6 * 6 + 1 and page.tags.count("audio") == 1
    assert all(url.startswith("data:") for url in outside)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert not re.search(r"url\((?!#)|@import|https?://", report(finished[0]))


def test_the_report_shows_the_measured_numbers(finished):
    out, results = finished
    words = Page(report(out)).words
    scores = [results["probes"]["chance"]]
    scores += [results["finetuned"]["value"], results["scratch"]["value"]]
    scores += [row["linear"]["mean"] for row in results["probes"]["rows"]]
    scores += [score for _, score in results["predictions"]]
    assert len(scores) == 3 + 9 + 5
    for score in scores:
        assert as_percent(score) in words
    for name, seconds in results["seconds"].items():
        assert name in words and f"{seconds:.1f}" in words


def test_every_family_is_in_the_table_and_the_confusion_matrix(finished):
    words = Page(report(finished[0])).words
    for label in ("chirp_up", "melody_down", "ticks_uneven", "siren"):
        assert words.count(label) >= 3  # a row of the table, a row and a column of the matrix


def test_the_random_encoder_is_the_one_that_pre_training_starts_from(finished, tmp_path):
    _, results = finished
    again = small(
        tmp_path / "demo", pretraining=[*PRETRAINING, "clips.seconds=2.0", "optim.lr=1e-20"]
    )
    assert probes(again, "random (1)") == probes(again, "this one")
    assert probes(again, "random (1)") == probes(results, "random (1)")


def test_pre_training_gets_no_labels(finished):
    corpus = open_corpus(finished[0] / "unlabeled.csv")
    assert len(corpus) == finished[1]["train"]
    assert corpus.label_names == ()


def test_the_predicted_sound_is_in_neither_part_of_the_corpus(finished):
    out, results = finished
    unseen, _ = soundfile.read(out / "unseen.wav", dtype="int16")
    for file in (out / "sound").rglob("*.flac"):
        clip, _ = soundfile.read(file, dtype="int16")
        assert len(clip) != len(unseen) or (clip != unseen).any()
    assert results["label"] in open_corpus(out / "sound" / "clips.csv").label_names


def test_each_stage_is_announced_and_the_end_says_what_to_do_next(finished, printed):
    lines = printed.getvalue().splitlines()
    assert [line[9:12] for line in lines if line.startswith("[")] == [
        f"{number}/8" for number in range(1, 9)
    ]
    assert f"report: {finished[0] / 'report.html'}" in lines
    assert lines[-3].startswith("  eat predict ")


def test_a_demo_starts_over_in_its_own_folder_and_leaves_what_is_not_its_own(finished, tmp_path):
    out = tmp_path / "demo"
    shutil.copytree(finished[0], out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    (out / "pretrained" / "log.jsonl").write_text("", encoding="utf-8")
    small(out)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (out / "pretrained" / "log.jsonl").read_text(encoding="utf-8")


def test_a_folder_that_is_not_a_demos_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "take.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(EatError, match="not a demo's"):
        small(tmp_path)
    assert (tmp_path / "sound" / "take.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(EatError, match="is a file"):
        small(tmp_path / "sound" / "take.txt")


def test_out_and_data_may_not_lie_in_each_other(tmp_path, finished):
    with pytest.raises(EatError, match="lies in the other"):
        small(finished[0], finished[0] / "sound")
    with pytest.raises(EatError, match="lies in the other"):
        small(finished[0] / "sound" / "demo", finished[0] / "sound")


def tones(folder: Path, labels: list[str], clips: int = 5) -> Path:
    """A folder per class of short tones."""
    time = np.arange(16_000) / 16_000
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for clip in range(clips):
            tone = 0.3 * np.sin(2 * np.pi * (300 + 400 * number + 10 * clip) * time)
            soundfile.write(folder / label / f"{clip}.wav", tone, 16_000)
    return folder


def test_a_label_cannot_write_html(tmp_path):
    evil = "<script>alert(1)<&>"  # a name of a folder holds no slash
    data = tones(tmp_path / "<b>data", [evil, '"quoted" & <i>'])
    small(tmp_path / "demo", data)
    text = report(tmp_path / "demo")
    page = Page(text)
    assert "<script" not in text and "script" not in page.tags
    assert not {"b", "i"} & set(page.tags)
    assert evil in page.words


def test_a_fifth_is_held_out_where_a_folder_has_no_test_clips(tmp_path):
    train, test = demo.split(open_corpus(tones(tmp_path / "data", ["low", "high"], clips=10)))
    assert (len(train), len(test)) == (16, 4)


def test_clips_without_labels_are_refused_before_anything_is_written(tmp_path):
    data = tones(tmp_path / "data", ["only"])
    with pytest.raises(DataError, match="fewer than two labels"):
        small(tmp_path / "demo", data / "only")
    assert not (tmp_path / "demo").exists()


def test_clips_with_several_labels_are_scored_by_map(tmp_path):
    data = tones(tmp_path / "data", ["low", "high"], clips=6)
    rows = ["path,label,split"]
    for clip in range(6):
        split = "test" if clip % 3 == 2 else "train"
        rows.append(f"low/{clip}.wav,low{';soft' if clip % 2 else ''},{split}")
        rows.append(f"high/{clip}.wav,high{';soft' if clip % 2 else ''},{split}")
    (data / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    results = small(tmp_path / "demo", data / "clips.csv")
    assert results["finetuned"]["metric"] == results["probes"]["metric"] == "mAP"
    assert "loss: bce_per_label" in report(tmp_path / "demo")


def test_the_demo_works_on_a_folder_per_class_of_real_recordings(tmp_path, data):
    folder = tmp_path / "recordings"
    for name in ("dog", "rain", "rooster"):
        (folder / name).mkdir(parents=True)
    corpus = open_corpus(data / "esc10")
    copied = {name: 0 for name in ("dog", "rain", "rooster")}
    for clip in corpus.clips:
        name = corpus.label_names[clip.labels[0]]
        if copied.get(name, 5) < 5:
            shutil.copy(clip.path, folder / name)
            copied[name] += 1
    results = small(tmp_path / "demo", folder)
    assert (results["train"], results["test"]) == (12, 3)
    assert results["probes"]["classes"] == 3
    assert results["label"] in copied
    assert Path(results["path"]).parent.parent == folder
    assert "rooster" in report(tmp_path / "demo")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_minutes_of_pre_training_beat_random_weights_and_log_mel(
    tmp_path: Path, seed: int
) -> None:
    """CLS token and mean of patches; with their deviation, random weights do as well."""
    manifest = synthetic.write_corpus(tmp_path / "labeled", clips_per_family=60, seconds=3.2)
    train = open_corpus(manifest).select("train")
    statistics = measure(train).statistics
    bare = tuple(replace(clip, labels=()) for clip in train.clips)
    write_csv(replace(train, clips=bare, label_names=()), tmp_path / "bare.csv")
    changes = [f"clips.statistics=[{statistics.mean:.4f},{statistics.std / 2:.4f}]"]
    changes += [f"seed={seed}", "device=cpu", f"data={tmp_path / 'bare.csv'}"]
    before = time.process_time()
    pretrain.run(config.load(EATRun, "eat_demo", changes), out=tmp_path / "out")
    seconds = time.process_time() - before
    probes = probe_encoder(tmp_path / "out", manifest, seconds=3.2, seeds=1)
    over_random, over_log_mel = demo.probe_margins(probes, "both")
    print(f"seed {seed}: {over_random:+.1f}, {over_log_mel:+.1f}; {seconds:.0f} s of CPU")
    assert over_random > 10 and over_log_mel > 5
