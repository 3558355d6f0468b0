"""Every row of EXPECTED.csv holds: sound, tables and folders as people have them.

EAT_CASES names another folder of the same form; cases that are not known by name are judged by
their `result`, and by the seconds and clips that they state.
"""

import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from cases.expected import CASES, Row, rows
from cases.small import Small
from eat_audio.audio import SAMPLE_RATE, load_audio, open_int16, stream_int16
from eat_audio.data.corpus import Corpus, missing_files
from eat_audio.data.datasets import open_corpus
from eat_audio.errors import AudioError, DataError, EatError, EatWarning
from eat_audio.models import model_types

ROWS = rows()

Check = Callable[[Row, Small, Path], None]
CHECKS: dict[str, Check] = {}


def case(name: str) -> Callable[[Check], Check]:
    def named(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return named


@pytest.mark.skipif(not ROWS, reason=f"no EXPECTED.csv in {CASES}")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
def test_a_case_is_used_as_expected_or_refused_in_a_sentence(
    row: Row,
    small: Small,
    tmp_path: Path,
) -> None:
    if not row.case.startswith("(") and not row.place.exists():
        pytest.skip(f"no {row.place}")
    check = CHECKS.get(row.case)
    if check is None and row.case.startswith("sound/"):
        check = sound
    elif check is None and row.case.startswith(("tables/", "folders/")):
        check = labeled
    if check is None:
        pytest.skip("is described in words only")
    check(row, small, tmp_path)


def bounded(error: EatError | Warning) -> str:
    sentence = str(error)
    assert len(sentence) < 500 and sentence.isprintable()
    return sentence


# ---- recordings


def listen(path: Path) -> tuple[float, list[str]]:
    """Seconds of sound, by all that read it, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = len(load_audio(path))
        assert sum(len(window) for _, window in stream_int16(path, seconds=5.0)) == samples
        with open_int16(path) as opened:
            assert len(opened.read(0.0, None)) == samples
    assert {one.category for one in caught} <= {EatWarning}
    return samples / SAMPLE_RATE, [bounded(one.message) for one in caught]  # type: ignore[arg-type]


def sound(row: Row, small: Small, tmp_path: Path) -> None:
    """By the result, and by the seconds that the row states."""
    refusal, seconds, words = "", 0.0, list[str]()
    try:
        seconds, words = listen(row.place)
    except AudioError as error:
        refusal = bounded(error)
        assert str(row.place) in refusal
    assert not refusal or row.result in ("error", "ok_or_error"), refusal
    assert refusal or row.result != "error"
    assert words or row.result != "warning"
    if not refusal and row.seconds is not None:
        assert row.seconds - 0.05 <= seconds <= 1.1 * row.seconds + 0.1 or words
    ended = small.eat("predict", row.place, "--model", small.model, "--top-k", 1)
    if refusal:
        ended.sentence()
        assert [line for line in ended.err.splitlines() if line.startswith("skipped: ")]
    else:
        ended.succeeds()
        assert bool(words) == bool(ended.messages), ended.err


@case("sound/vbr_without_header_loud_first.mp3")
def all_of_it(row: Row, small: Small, tmp_path: Path) -> None:
    sound(row, small, tmp_path)
    seconds, _ = listen(row.place)
    assert row.seconds and abs(seconds - row.seconds) < 0.15
    ended = small.eat(
        "data", "prepare", "folder", "--root", copies(row, tmp_path), "--out", "p", cwd=tmp_path
    )
    ended.succeeds()


def copies(row: Row, tmp_path: Path) -> Path:
    folder = tmp_path / "two"
    folder.mkdir()
    for name in "ab":
        shutil.copy(row.place, folder / f"{name}{row.place.suffix}")
    return folder


@case("sound/vbr_without_header_quiet_first.mp3")
def trained_on(row: Row, small: Small, tmp_path: Path) -> None:
    sound(row, small, tmp_path)
    seconds, _ = listen(row.place)
    assert row.seconds and abs(seconds - row.seconds) < 0.15
    words = ("clips.seconds=5", "clips.crop=random", "steps=10", "batch=2")
    data = f"data={copies(row, tmp_path)}"
    ended = small.eat("pretrain", small.recipe, data, *words, "--out", tmp_path / "run")
    assert "skipped" not in ended.succeeds().err and "unreadable" not in ended.out


@case("sound/never_closed.wav")
def never_closed(row: Row, small: Small, tmp_path: Path) -> None:
    sound(row, small, tmp_path)
    try:
        seconds, _ = listen(row.place)
        assert seconds == pytest.approx(1.0, abs=0.01)
    except AudioError as error:
        assert "no sound" not in str(error)
        assert re.search("header|finish|close", str(error))


@case("sound/git_lfs_pointer.wav")
def pointer(row: Row, small: Small, tmp_path: Path) -> None:
    sound(row, small, tmp_path)
    with pytest.raises(AudioError, match="Git LFS pointer") as caught:
        load_audio(row.place)
    assert "git lfs pull" in str(caught.value)


def other_decoders(row: Row, small: Small, tmp_path: Path) -> None:
    """By PyAV; without it an error that names it."""
    sound(row, small, tmp_path)
    with patch.dict(sys.modules, {"av": None}), pytest.raises(AudioError) as caught:
        load_audio(row.place)
    assert "install PyAV" in bounded(caught.value)


CHECKS["sound/flac_in_ogg.oga"] = CHECKS["sound/alac.caf"] = other_decoders


# ---- tables and folders


def labeled(row: Row, small: Small, tmp_path: Path) -> None:
    """By the result, and by the clips that the row states: shown, and learnt from."""
    place, shown, refusal = writable(row, tmp_path), small.eat("data", "show", row.place), ""
    if shown.code == 0:
        assert row.clips is None or rows_of(shown.succeeds().out)["clips"] == str(row.clips)
    else:
        refusal = shown.sentence()
    if row.result == "ok" and not refusal and len(quietly(row.place).label_names) < 2:
        return  # there is nothing to tell apart
    learnt = small.finetune(place, tmp_path / "run", *settings(row.place))
    if learnt.code == 0:
        learnt.succeeds()
    else:
        refusal = learnt.sentence()
    assert not refusal or row.result in ("error", "ok_or_error"), refusal
    assert refusal or row.result != "error"
    assert row.result != "warning" or shown.messages or learnt.messages


def writable(row: Row, tmp_path: Path) -> Path:
    """A copy of the folder of a case; the same place in it."""
    folder = row.place if row.place.is_dir() else row.place.parent
    target = tmp_path / folder.name
    shutil.copytree(folder, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return target if row.place.is_dir() else target / row.place.name


def rows_of(shown: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in shown.splitlines() if "\t" in line)


def settings(place: Path) -> tuple[str, ...]:
    """The loss that suits its labels."""
    try:
        several = quietly(place).multi_label
    except EatError:
        several = False
    return ("loss=bce_per_label",) if several else ()


def quietly(place: Path) -> Corpus:
    """The corpus at a place, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EatWarning)
        return open_corpus(place)


def names(corpus: Corpus) -> list[tuple[str, ...]]:
    return [tuple(corpus.label_names[label] for label in clip.labels) for clip in corpus.clips]


def corpus_or_sentence(row: Row) -> tuple[Corpus | None, str]:
    try:
        return quietly(row.place), ""
    except DataError as error:
        return None, bounded(error)


@case("tables/start_end/clips.csv")
def a_second_each(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, refusal = corpus_or_sentence(row)
    if corpus is None:
        assert "end" in refusal
        return
    stretches = [(clip.start, clip.seconds) for clip in corpus.clips]
    assert stretches == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]
    assert names(corpus) == [("owl",), ("cricket",), ("owl",)]


@case("tables/list_labels/clips.csv")
def three_labels(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, refusal = corpus_or_sentence(row)
    if corpus is None:
        assert "label" in refusal
        return
    assert sorted(corpus.label_names) == ["animal", "cat", "dog"] and corpus.multi_label
    dog, cat = ("animal", "dog"), ("animal", "cat")
    found = [tuple(sorted(one)) for one in names(corpus)]
    assert found == [("dog",), dog, dog, ("cat",), tuple(sorted(cat)), tuple(sorted(cat))]


@case("tables/split_words/clips.csv")
def eight_and_four(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    splits_are(row, small, tmp_path, {"train": 8, "test": 4})


def splits_are(row: Row, small: Small, tmp_path: Path, splits: dict[str, int]) -> None:
    corpus, refusal = corpus_or_sentence(row)
    if corpus is not None:
        assert Counter(clip.split for clip in corpus.clips) == splits
        shown = rows_of(small.eat("data", "show", row.place).out)
        assert {name: shown[f"split {name}"] for name in splits} == {
            name: str(count) for name, count in splits.items()
        }
        out = tmp_path / "tested"
        ended = small.finetune(row.place, out).succeeds()
        assert f"on {splits['test']} clips" in ended.out
    else:
        assert "rain" in refusal or "est" in refusal


@case("tables/windows_paths/clips.csv")
def six_clips(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, refusal = corpus_or_sentence(row)
    if corpus is None:
        assert "\\" in refusal
    else:
        assert len(corpus) == 6 and not list(missing_files(corpus))


@case("tables/unicode_labels/clips.csv")
def utf_8(row: Row, small: Small, tmp_path: Path) -> None:
    """With the encoding of this machine; `test_environments` does so with others."""
    labeled(row, small, tmp_path)
    model, data = tmp_path / "run", ("--data", row.place)
    small.eat("evaluate", model, *data, "--out", tmp_path / "scores").succeeds()
    small.eat("predict", row.place.parent, "--model", model).succeeds()
    small.eat("probe", small.pretrained, *data, "--seeds", 0).succeeds()
    for path in (model / "config.json", tmp_path / "scores" / "evaluation.json"):
        path.read_text(encoding="utf-8")


@case("tables/negatives/train.csv")
def several_per_clip(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus = quietly(row.place)
    assert corpus.multi_label and len(corpus) == row.clips == 6
    assert [one for one in names(corpus) if not one] == [(), ()]


@case("tables/negatives/test.csv")
def negatives(row: Row, small: Small, tmp_path: Path) -> None:
    model = tmp_path / "several"
    train = row.place.with_name("train.csv")
    small.finetune(train, model, "loss=bce_per_label").succeeds()
    out = tmp_path / "scores"
    ended = small.eat("evaluate", model, "--data", row.place, "--out", out).succeeds()
    assert "6 clips" in ended.out


@case("tables/label_words/clips.csv")
def label_words(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, refusal = corpus_or_sentence(row)
    if corpus is None or not corpus.label_names:
        refusal = refusal or small.finetune(row.place, tmp_path / "again").sentence()
        assert "category" in refusal
    else:
        assert sorted(corpus.label_names) == ["cat", "dog"]


@case("folders/capital_splits")
def splits_are_no_classes(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, _ = corpus_or_sentence(row)
    if corpus is not None:
        assert sorted(corpus.label_names) == ["cat", "dog"]
        splits_are(row, small, tmp_path, {"train": 8, "test": 4})


@case("folders/lists_with_backslashes")
def lists(row: Row, small: Small, tmp_path: Path) -> None:
    labeled(row, small, tmp_path)
    corpus, refusal = corpus_or_sentence(row)
    if corpus is None:
        assert "list" in refusal
    else:
        splits = Counter(clip.split for clip in corpus.clips)
        assert splits == {"train": 5, "valid": 1, "test": 2}


# ---- arrays, links, other systems


def extractors() -> list:
    return [spec.feature_extractor() for spec in model_types().values()]


@case("(recipe) stereo_array")
def stereo(row: Row, small: Small, tmp_path: Path) -> None:
    """Refused, or the mean of the channels."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2)).astype(np.float32)
    for extractor in extractors():
        mono = extractor(sound.mean(axis=1), sampling_rate=16_000)["input_values"]
        for array in (sound, sound.T):
            try:
                made = extractor(array, sampling_rate=16_000)["input_values"]
            except (EatError, ValueError) as error:
                assert "mono" in str(error)
            else:
                assert np.allclose(made, mono)


@case("(recipe) guide_max_length")
def guide(row: Row, small: Small, tmp_path: Path) -> None:
    silence = [np.zeros(8_000, np.float32)]
    for extractor in extractors():
        frames = extractor(silence, sampling_rate=16_000)["input_values"].shape[1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EatWarning)
                made = extractor(silence, sampling_rate=16_000, max_length=16_000, truncation=True)[
                    "input_values"
                ]
        except (EatError, ValueError) as error:
            assert "frames" in str(error)
        else:
            assert made.shape[1] <= max(frames, 48)


@case("(recipe) not_finite_array")
def not_finite(row: Row, small: Small, tmp_path: Path) -> None:
    bad = np.zeros(16_000, np.float32)
    bad[5] = np.nan
    for extractor in extractors():
        with pytest.raises((EatError, ValueError), match="not finite"):
            extractor(bad, sampling_rate=16_000)
        for kind in (np.int32, np.uint8):
            with pytest.raises((EatError, ValueError, TypeError), match=kind.__name__):
                extractor(np.zeros(16_000, kind), sampling_rate=16_000)


@case("(recipe) linked_store")
def linked_store(row: Row, small: Small, tmp_path: Path) -> None:
    store, root = tmp_path / "store", tmp_path / "corpus"
    store.mkdir()
    for number, path in enumerate(sorted(small.sound.rglob("*.wav"))[:4]):
        shutil.copy(path, store / f"{number}")
    links = {"dog": (0, 0, 1), "cat": (0, 2, 3)}  # three of them to one file
    for label, numbers in links.items():
        (root / label).mkdir(parents=True)
        for n, number in enumerate(numbers):
            (root / label / f"{n}.wav").symlink_to(store / f"{number}")
    (root / "dog" / "round").symlink_to(root / "dog")
    (root / "cat" / "self.wav").symlink_to(root / "cat" / "self.wav")
    shown = rows_of(small.eat("data", "show", root).succeeds().out)
    assert shown["clips"] == "6"
    corpus = quietly(root)
    assert Counter(one for (one,) in names(corpus)) == {"dog": 3, "cat": 3}


@case("(recipe) no_fcntl")
def no_fcntl(row: Row, small: Small, tmp_path: Path) -> None:
    """As on Windows; `test_environments` trains there as well."""
    path = small.sound / "dog" / "dog0.wav"
    program = (
        # psutil, which accelerate imports where it is installed, needs `resource` on Linux
        "import importlib.util; importlib.util.find_spec('psutil') and __import__('psutil')\n"
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        f"import eat_audio\nprint(eat_audio.load({str(small.model)!r}).predict({str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "dog" in done.stdout, done.stderr
