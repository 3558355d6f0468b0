"""A report shows what the folder of a run holds, names what is missing, and needs only itself."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT
from eat_audio import cli
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import CheckpointError, EatError
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.finetune import FinetuneRun
from eat_audio.inference.detect import Detection, Event
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.pretraining.eat import EATRun
from eat_audio.report.figures import (
    COLORS,
    Line,
    Points,
    as_percent,
    chart,
    running_mean,
    short,
    timeline,
)
from eat_audio.report.report import read_run, write_report

PAGE = (ROOT / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")
EVIL = "<script>alert(1)</script>"
SHAPE = {"embed_dim": 32, "depth": 1, "num_heads": 2}
LOADS = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Shown(HTMLParser):
    """What a page shows: its tags, words, and the drawings with their names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.charts: list[str] = []
        self.words = ""
        self.feed(html)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = dict(attributes)
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in LOADS and tag != "path"]
        if tag == "svg":
            self.charts.append(told.get("aria-label") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return write_corpus(folder, clips_per_family=3, seconds=1.0, seed=0)


def pretraining(out: Path, data: str | None, rows: list[dict[str, Any]], **record: Any) -> Path:
    """The folder of a finished pre-training, as far as a report reads it."""
    settings = {"steps": 40, "batch": 4, "masks": 2, "block": [3, 3], "data": data}
    settings |= {"clips": {"seconds": 1.0}, "encoder": SHAPE, "optim": {"warmup": 1}}
    recipe = EATRun.model_validate(settings).model_dump(mode="json")
    return written(out, recipe, rows, **record)


def written(out: Path, recipe: dict[str, Any], rows: list[dict[str, Any]], **record: Any) -> Path:
    out.mkdir(parents=True)
    told = {"eat_audio": "0.1.0", "torch": "2.13.0", "data": "20 clips, sha256 ab"}
    (out / "run.json").write_text(json.dumps(told | {"recipe": recipe} | record), encoding="utf-8")
    (out / "log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    torch.manual_seed(0)
    EATModel(EATConfig(**SHAPE)).save_pretrained(out)
    EATFeatureExtractor().save_pretrained(out)
    return out


def logged(steps: int = 8) -> list[dict[str, Any]]:
    """A log with looks at steps 0 and 40, and one number that was not finite."""
    rows: list[dict[str, Any]] = [look(0, 0.1), look(40, 0.3)]
    for number in range(1, steps + 1):
        row = {"step": 40 * number // steps, "loss": 20 / number, "frame": 10.5 / number}
        row |= {"utterance": 9.25, "target_std": 0.9, "prediction_std": 0.5, "lr": 1e-3}
        row |= {"gradient_norm": None if number == 2 else 4.0, "tau": 0.99, "seconds": number * 2.0}
        row |= {"clips_per_second": 7.5, "clips_per_second_now": 8.25, "data_wait": 0.125}
        rows.append(row | {"memory_mb": 812.0, "skipped": 0, "skipped_clips": 3, "novelty": 6.75})
    return rows


def look(step: int, score: float) -> dict[str, Any]:
    told: dict[str, Any] = {"step": step, "monitor_seconds": 1.0}
    for number, view in enumerate(("cls", "mean", "both")):
        told |= {f"linear_accuracy_{view}": score + 0.01 * number, f"knn_accuracy_{view}": score}
    for view in ("cls", "mean"):
        told |= {f"effective_rank_{view}": 10 * score, f"variance_{view}": 0.5}
    return told


def evaluation(labels: list[str]) -> Evaluation:
    """As good as can be on the first class, and worse and worse on the others."""
    scores = [1 - number / len(labels) for number in range(len(labels))]
    rows = [
        {"label": name, "clips": 8, "accuracy": score}
        for name, score in zip(labels, scores, strict=True)
    ]
    matrix = [[8 if r == c else 0 for c in range(len(labels))] for r in range(len(labels))]
    return Evaluation("accuracy", 0.6125, 80, rows, confusion=matrix)


def finetuning(out: Path, labels: list[str], **settings: Any) -> Path:
    recipe = FinetuneRun.model_validate({"steps": 40, "optim": {"warmup": 1}} | settings)
    rows = [{"step": n, "loss": 2.5 / n, "accuracy": 0.125 * n} for n in range(1, 5)]
    written(out, recipe.model_dump(mode="json"), rows)
    (out / "evaluation.json").write_text(json.dumps(asdict(evaluation(labels))), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, listing: Path) -> Path:
    """The folder of a pre-training with all a report can tell, and its report."""
    out = tmp_path_factory.mktemp("runs") / "birds"
    pretraining(out, str(listing), logged())
    write_report(out)
    return out


def shown(place: Path) -> str:
    return (place / "report.html").read_text(encoding="utf-8")


def test_every_logged_number_has_its_curve(finished: Path) -> None:
    charts = Shown(shown(finished)).charts
    for title in (
        *("Loss", "Spread", "Gradient norm", "Learning rate", "Teacher's decay", "Memory, MB"),
        *("Clips per second", "Waiting for data", "Effective rank", "Variance over clips"),
        *("Linear probe, accuracy", "Nearest neighbors, accuracy"),
        "novelty",  # a method's own number
    ):
        assert charts.count(f"{title} over training steps") == 1


def test_the_numbers_of_the_log_are_in_the_page(finished: Path) -> None:
    words = Shown(shown(finished)).words
    for number in ("2.5", "9.25", "1e-3", "8.25", "12.5 %", "6.75", "0.81 GB", "16 s", "40"):
        assert number in words
    assert "8 epochs" in words  # 40 steps of 4 clips, of 20


def test_the_probe_stands_beside_the_random_encoder(finished: Path) -> None:
    words = Shown(shown(finished)).words
    assert f"both {as_percent(0.32)} random {as_percent(0.12)}" in words
    assert f"random: {as_percent(0.12)}" in words
    figure = re.search(r'aria-label="Linear probe.*?</svg>', shown(finished), re.DOTALL)
    assert figure is not None and figure.group().count("stroke-dasharray") == 3


def test_masks_and_neighbors_are_pictures_inside_the_page(finished: Path) -> None:
    page = Shown(shown(finished))
    assert sum(name.startswith("spectrogram, 98 x 128") for name in page.charts) == 6
    assert page.tags.count("img") == 6 * 6  # six clips, each with its five nearest
    outside = [url for url in page.loads if not url.startswith("#")]
    assert len(outside) == 6 + 6 * 6
    assert all(url.startswith("data:image/png;base64,") for url in outside)
    assert "30 clips of clips, compared" in page.words


def test_the_page_needs_nothing_but_itself(finished: Path) -> None:
    page = Shown(shown(finished))
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import|https?://", shown(finished))
    assert "viewport" in shown(finished) and "prefers-color-scheme: dark" in shown(finished)


def test_the_recipe_and_the_versions_are_shown(finished: Path) -> None:
    words = Shown(shown(finished)).words
    assert "20 clips, sha256 ab" in words and "2.13.0" in words
    assert "hidden_ratio: 0.8" in words


def test_classes_are_shown_from_best_to_worst_with_a_confusion_matrix(tmp_path: Path) -> None:
    labels = [f"class {letter}" for letter in "abcde"]
    write_report(finetuning(tmp_path / "fine", labels))
    page = Shown(shown(tmp_path / "fine"))
    bars = re.findall(r'class="value">([\d.]+) %', shown(tmp_path / "fine"))
    assert [float(bar) for bar in bars] == [100, 80, 60, 40, 20]
    assert all(page.words.count(label) >= 3 for label in labels)  # a bar, a row and a column
    assert as_percent(0.6125) in page.words and "± 5.4" in page.words
    assert "Training accuracy over training steps" in page.charts


def test_many_classes_are_shown_best_and_weakest_first_and_all_behind_them(tmp_path: Path) -> None:
    labels = [f"class {number:03}" for number in range(100)]
    write_report(finetuning(tmp_path / "fine", labels))
    page = Shown(shown(tmp_path / "fine"))
    assert "Confusion matrix" not in page.words
    assert page.words.count("class 000") == 2 and page.words.count("class 050") == 1


def test_what_is_missing_is_named_and_not_made_up(tmp_path: Path) -> None:
    place = pretraining(tmp_path / "bare", str(tmp_path / "gone"), logged()[2:])
    (place / "model.safetensors").unlink()
    write_report(place)
    words = Shown(shown(place)).words
    assert "the clips have moved" in words and "no such file or folder" in words
    assert "monitor.data=CORPUS" in words
    assert "Effective rank" not in words and "spectrogram" not in shown(place)


def test_clips_without_labels_have_masks_but_no_neighbors(tmp_path: Path, listing: Path) -> None:
    clip = open_corpus(listing).clips[0].path
    place = pretraining(tmp_path / "run", str(clip), logged())
    write_report(place)
    page = Shown(shown(place))
    assert "fewer than two labels" in page.words and "--data CORPUS" in page.words
    assert sum(name.startswith("spectrogram") for name in page.charts) == 2
    write_report(place, data=str(listing))
    assert "30 clips of clips, compared" in Shown(shown(place)).words


@pytest.mark.parametrize(
    "log", ["", '{"step": 0, "linear_accuracy_cls": 0.5}\n', '{"step": 3, "lo']
)
def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path, log: str) -> None:
    place = pretraining(tmp_path / "run", None, [])
    (place / "log.jsonl").write_text(log, encoding="utf-8")
    write_report(place)
    assert "step 0 of 40" in shown(place) and "No step is logged yet" in shown(place)


def test_fine_tuning_without_an_evaluation_says_how_to_get_one(tmp_path: Path) -> None:
    for name, content in (("gone", None), ("broken", '{"metric": 3}'), ("half", '{"metr')):
        place = finetuning(tmp_path / name, ["a", "b"])
        (place / "evaluation.json").unlink()
        if content is not None:
            (place / "evaluation.json").write_text(content, encoding="utf-8")
        write_report(place)
        words = Shown(shown(place)).words
        assert "eat evaluate" in words and "Recall by class" not in words


def test_nothing_that_comes_from_a_run_becomes_html(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0, EVIL: 2.0} for n in (1, 2)]
    place = tmp_path / "<b>run"
    written(place, finetuned_recipe(EVIL), rows, data=EVIL, torch=EVIL, origin={"encoder": EVIL})
    (place / "evaluation.json").write_text(
        json.dumps(asdict(evaluation([EVIL, "b"]))), encoding="utf-8"
    )
    write_report(place)
    page = Shown(shown(place))
    assert "script" not in page.tags and "<script" not in shown(place)
    assert "<b>run" not in shown(place)
    assert page.words.count(EVIL) >= 6  # a bar, a row, a column, the data, a version, a curve


def finetuned_recipe(data: str) -> dict[str, Any]:
    return FinetuneRun.model_validate({"data": data}).model_dump(mode="json")


def test_hostile_names_of_clips_and_labels_do_not_become_html(
    tmp_path: Path, listing: Path
) -> None:
    clips = [clip.path for clip in open_corpus(listing).clips[:6]]
    folder = tmp_path / "data"
    for number, clip in enumerate(clips):
        label = folder / ('"><i>low' if number % 2 else "<u>high")
        label.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, label / f'<img src=x onerror="{number}">.flac')
    place = pretraining(tmp_path / "run", str(folder), logged())
    write_report(place)
    page = Shown(shown(place))
    assert not {"i", "u"} & set(page.tags)
    assert 'onerror="' not in shown(place) and '"><i>low' in page.words
    assert page.tags.count("img") == 2 * 6  # pictures of ours alone


def test_a_folder_without_a_run_is_refused_and_runs_inside_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)
    pretraining(tmp_path / "fold-1", None, [])
    with pytest.raises(CheckpointError, match="there are runs in it: fold-1"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        read_run(tmp_path)


def test_a_place_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(EatError, match="cannot be written"):
        write_report(finished, tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize("line", re.findall(r"^eat (?:report|probe) .*", PAGE, re.MULTILINE))
def test_the_commands_of_the_documentation_run(
    finished: Path,
    listing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished, tmp_path / "runs" / "birds")
    (tmp_path / "ESC-10").symlink_to(listing.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and capsys.readouterr().out.strip()


# ---- figures ----


def figure_of(points: Points, **options: Any) -> str:
    drawn = chart("t", [Line("a", points)], **options)
    assert drawn is not None
    return str(drawn.svg)


def corners(svg: str) -> list[list[tuple[float, float]]]:
    """The corners of every line of the first color in a figure."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {COLORS[0]}; stroke-width', svg)
    lines = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path) for path in paths]
    return [[(float(x), float(y)) for x, y in line] for line in lines]


def test_a_line_goes_through_its_points_from_bottom_to_top() -> None:
    ((x0, y0), (x1, y1)) = corners(figure_of([(0, 0.0), (100, 1.0)]))[0]
    assert x1 > x0 and y1 < y0


def test_values_that_are_not_finite_leave_a_gap() -> None:
    nan, inf = float("nan"), float("inf")
    svg = figure_of([(0, 1.0), (1, 2.0), (2, nan), (3, 2.0), (4, 3.0), (5, inf)])
    line = corners(svg)[0]
    assert "nan" not in svg and "inf" not in svg and len(line) == 4
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {COLORS[0]}; stroke-width: 1.6', svg)
    assert path.count("M") == 2
    assert chart("t", [Line("a", [(0, nan)])]) is None and chart("t", [Line("a", [])]) is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 7.3), (4.2e-7, 5e-7), (-3, 3), (120_000, 120_001), (5, 5), (0, 0)]
)
def test_values_of_any_size_are_drawn_with_a_few_different_ticks(low: float, high: float) -> None:
    svg = figure_of([(0, low), (1, high)])
    labels = re.findall(r"text-anchor: end[^>]*>([^<]*)<", svg)
    assert 2 <= len(labels) <= 8 and len(set(labels)) == len(labels)


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    svg = figure_of([(float(n), math.sin(n)) for n in range(12_345)])
    short_svg = figure_of([(float(n), math.sin(n)) for n in range(500)])
    assert len(svg) < 2 * len(short_svg)
    right = max(x for line in corners(figure_of([(0.0, 0.0), (12_344.0, 1.0)])) for x, _ in line)
    assert max(x for line in corners(svg) for x, _ in line) == pytest.approx(right, abs=3)


def test_the_running_mean_does_not_bend_the_ends_or_meet_a_gap() -> None:
    values = np.full(200, 3.0)
    values[50] = np.nan
    means = running_mean(values)
    assert means[0] == means[49] == means[-1] == pytest.approx(3.0) and np.isnan(means[50])


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (0.25, "0.25"), (12_345, "12.35k"), (3e-5, "3e-5"), (-2.5e-4, "-2.5e-4")],
)
def test_numbers_are_written_in_few_characters(number: float, shown: str) -> None:
    assert short(number) == shown


def test_the_same_data_give_the_same_bytes_without_a_date(finished: Path, tmp_path: Path) -> None:
    again = write_report(finished, tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == shown(finished)
    assert f"{date.today():%Y-}" not in again and "matplotlib" not in again.lower()


def test_hostile_letters_in_a_figure_are_text() -> None:
    name = "$x_{$ <b> & \x07 \u6c34"
    svg = to_text(timeline(Detection([Event(0, 1, name, 0.5)], 2.0, np.ones((8, 128))), name))
    assert "$x_{$ <b> & \\x07 \u6c34" in svg.words and "b" not in svg.tags


def to_text(svg: str) -> Shown:
    return Shown(svg.partition("?>")[2])


@pytest.mark.slow
def test_a_report_needs_no_display_and_no_home_that_can_be_written(
    finished: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLCONFIGDIR")}
    environment |= {
        "HOME": str(home / "none"),
        "XDG_CONFIG_HOME": "/proc/1",
        "XDG_CACHE_HOME": "/proc/1",
    }
    words = [sys.executable, "-m", "eat_audio", "report", finished, "-o", tmp_path / "page.html"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "next: open the page in a browser\n"
    assert (tmp_path / "page.html").is_file() and not list(home.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_draws_the_page(finished: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
            + ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
            + ["--disable-sync", f"--user-data-dir={profile}", "--window-size=900,1200"]
            + [f"--screenshot={picture}", (finished / "report.html").as_uri()],
            check=True,
            capture_output=True,
            timeout=120,
        )
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
