"""Annotations: Raven, Audacity and tables, one into the other, and nothing is lost."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import eat
from eat_audio.data.annotations import (
    Annotation,
    Annotations,
    Format,
    read_annotations,
    write_annotations,
)
from eat_audio.data.datasets import open_corpus
from eat_audio.data.event_windows import event_windows
from eat_audio.errors import DataError, EatWarning

RECORD = json.loads(
    (Path(__file__).parent.parent / "golden" / "annotations.json").read_text(encoding="utf-8")
)
RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
NAMES: dict[str, str] = {
    "csv": "owl.csv",
    "raven": "owl.Table.1.selections.txt",
    "audacity": "owl.txt",
}
SEVERAL_FILES = (
    f"{RAVEN}\tBegin File\tFile Offset (s)\tAnnotation\n"
    "1\tSpectrogram 1\t1\t3.500000000\t4.250000000\t0.0\t900.0\ta.wav\t3.5\towl\n"
    "2\tWaveform 1\t2\t60.125000000\t61.500000000\t50.5\t900.0\tb.wav\t0.125\tfrog\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of this text; line ends stay as they are."""

    def write(text: str, name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return write


def rows(annotations: Annotations) -> list[tuple[str, float, float, str]]:
    return [(e.file, e.onset, e.offset, e.label) for e in annotations.events]


def sound(path: Path, seconds: float) -> None:
    soundfile.write(path, np.zeros(round(seconds * 8000), np.int16), 8000)


# ---- reading


def test_what_crowsetta_reads_from_raven_and_audacity_is_what_is_read(file) -> None:
    for name, suffix in (("raven", ".Table.1.selections.txt"), ("audacity", ".txt")):
        events = read_annotations(file(RECORD[name]["text"], f"a{suffix}")).events
        expected = RECORD[name]["events"]
        assert [[e.onset, e.offset, e.label] for e in events] == [row[:3] for row in expected]
        for event, (*_, low, high) in zip(
            events, expected if name == "raven" else [], strict=False
        ):
            assert float(event.other["Low Freq (Hz)"]) == low
            assert float(event.other["High Freq (Hz)"]) == high


def test_crowsetta_reads_what_is_written(file, tmp_path: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    annotations = read_annotations(file("file,onset,offset,label\na.wav,1.5,2,owl\n", "a.csv"))
    for name in ("a.selections.txt", "a.txt"):
        write_annotations(annotations, tmp_path / name)
    raven = crowsetta.formats.bbox.Raven.from_file(tmp_path / "a.selections.txt")
    (box,) = raven.to_bbox()
    assert (box.onset, box.offset, box.label) == (1.5, 2.0, "owl")
    track = crowsetta.formats.seq.AudSeq.from_file(tmp_path / "a.txt")
    assert (*track.start_times, *track.end_times, *track.labels) == (1.5, 2.0, "owl")


def test_windows_line_ends_and_byte_order_marks_are_no_part_of_a_label(file) -> None:
    text = "\ufeff0.5\t1,5\tdog bark\r\n\\\t100.0\t200.0\r\n2\t2\t\r\n"
    annotations = read_annotations(file(text, "x.txt"))
    assert rows(annotations) == [("x", 0.5, 1.5, "dog bark"), ("x", 2.0, 2.0, "")]
    assert annotations.events[0].other == {"Low Freq (Hz)": "100.0", "High Freq (Hz)": "200.0"}


def test_a_label_file_is_about_the_recording_of_its_name(file, tmp_path: Path) -> None:
    sound(tmp_path / "owl.flac", 1.0)
    table = file(f"{RAVEN}\tSpecies\n1\tS\t1\t0.1\t0.2\t1\t2\tEATO\n", NAMES["raven"])
    assert rows(read_annotations(table)) == [("owl.flac", 0.1, 0.2, "EATO")]


def test_times_of_raven_in_several_files_count_from_the_start_of_each(file) -> None:
    annotations = read_annotations(file(SEVERAL_FILES, "x.selections.txt"))
    assert rows(annotations) == [("a.wav", 3.5, 4.25, "owl"), ("b.wav", 0.125, 1.5, "frog")]


def test_tables_of_other_tools_are_read(file) -> None:
    desed = "filename\tonset\toffset\tevent_label\na.wav\t0.1\t0.5\tSpeech\nb.wav\t\t\t\n"
    annotations = read_annotations(file(desed, "validation.tsv"))
    assert rows(annotations) == [("a.wav", 0.1, 0.5, "Speech")]
    assert list(annotations.recordings) == ["a.wav", "b.wav"]
    lengths = file("path,start_ms,duration_ms,species\na.wav,1500,250,owl\n", "b.csv")
    assert rows(read_annotations(lengths)) == [("a.wav", 1.5, 1.75, "owl")]
    detected = file("onset,offset,label,score\n1.0,2.0,owl,0.75\n", "owl.csv")
    (event,) = read_annotations(detected).events
    assert (event.file, event.label, event.score) == ("owl", "owl", 0.75)


def test_a_folder_is_its_label_files_and_empty_ones_are_recordings(file, tmp_path: Path) -> None:
    for name in ("day/owl.wav", "day/silent.wav"):
        (tmp_path / "day").mkdir(exist_ok=True)
        sound(tmp_path / name, 1.0)
    file("0.1\t0.2\towl\n", "day/owl.txt"), file("", "day/silent.txt"), file("prose", "notes.txt")
    annotations = read_annotations(tmp_path)
    assert rows(annotations) == [("day/owl.wav", 0.1, 0.2, "owl")]
    assert dict(annotations.recordings) == {"day/owl.wav": None, "day/silent.wav": None}
    file(f"{RAVEN}\tSpecies\n", "day/owl.Table.1.selections.txt")
    with pytest.raises(DataError, match=r"owl.Table.1.selections.txt and owl.txt are both about"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "1\t0.5\towl\n", "x.txt line 1: it ends at 0.5 s and begins at 1 s"),
        ("x.txt", "0\t1\towl\nowl\n", "x.txt line 2: expected start, end and label, with tabs"),
        ("x.txt", "0\t1\towl\n\\\t100\n", "x.txt line 2: expected a backslash"),
        ("x.selections.txt", f"{RAVEN}\n1\tS\t1\n", "line 2: 3 cells under 7 columns"),
        ("x.selections.txt", f"{RAVEN}\n1\tS\t1\tnow\t2\t1\t2\n", "line 2: Begin Time .* 'now'"),
        ("x.csv", "file,onset,offset,label\na.wav,1,,owl\n", "line 2: an event without onset or"),
        ("x.csv", "file,onset,offset,label\n,1,2,owl\n", "line 2: no path in this row"),
        ("x.csv", "file,onset,offset,label\na.wav,-1,2,owl\n", "line 2: onset '-1' is not a time"),
        ("x.csv", "file,onset,offset,label,label\na,1,2,b,c\n", "there are two columns 'label'"),
        ("x.csv", "file,label\na.wav,owl\n", "x.csv line 1: expected columns onset and offset"),
        ("x.json", '{"path": 1}', "x.json: is not what eat detect writes"),
        ("x.txt", "a\xff".encode("latin-1").decode("latin-1"), "x.txt line 1: "),
    ],
)
def test_what_is_wrong_is_one_sentence(file, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(file(text, name))
    assert "\n" not in str(raised.value)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotations in this folder"):
        read_annotations(tmp_path)


# ---- writing


def test_tables_of_raven_and_label_tracks_come_back_byte_by_byte(file, tmp_path: Path) -> None:
    table = (
        f"{RAVEN}\tDelta Time (s)\tSpecies\tNotes\n"
        '1\tSpectrogram 1\t1\t154.387792767\t154.911598217\t2878.2\t4049.0\t0.5\tgro\u00df"a"\t=1\n'
        "2\tWaveform 1\t2\t0.100000000\t3.000000000\t0.0\t24000.0\t2.9\t\u30d5\u30af\u30ed\t\n"
    )
    track = "1.000000\t2.500000\tdog bark\n\\\t1000.000000\t2000.500000\n3.000000\t3.000000\t\n"
    for text, name in ((table, NAMES["raven"]), (track, NAMES["audacity"]), (SEVERAL_FILES, "s")):
        name = "s.selections.txt" if name == "s" else name
        write_annotations(read_annotations(file(text, name)), tmp_path / "between.csv")
        (tmp_path / name).unlink()
        write_annotations(read_annotations(tmp_path / "between.csv"), tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text


LABEL = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12)
TIME = st.floats(0, 1e6, allow_subnormal=False).map(lambda time: round(time, 9))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TIME, TIME, LABEL), min_size=1, max_size=4), st.permutations([*NAMES]))
def test_no_event_is_lost_on_the_way_through_all_formats(tmp_path_factory, events, forms) -> None:
    folder = tmp_path_factory.mktemp("ways")
    original = Annotations(
        tuple(Annotation("owl", min(a, b), max(a, b), label) for a, b, label in events),
        {"owl": None},
    )
    annotations = original
    for form in (*forms, forms[0]):
        path = folder / NAMES[form]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EatWarning)  # of columns that a label track has not
            write_annotations(annotations, path)
        annotations = read_annotations(path)
    assert rows(annotations) == rows(original)


def test_events_of_other_formats_get_the_columns_that_raven_needs(tmp_path: Path) -> None:
    events = (Annotation("d/owl.wav", 0.5, 1.0, "owl", {"score": "0.9"}),)
    annotations = Annotations(events, {"d/owl.wav": None})
    write_annotations(annotations, tmp_path / "x.selections.txt")
    header, row = (tmp_path / "x.selections.txt").read_text().splitlines()
    assert header == f"{RAVEN}\tscore\tBegin File\tAnnotation"
    expected = "1\tSpectrogram 1\t1\t0.500000000\t1.000000000\t0.0\t8000.0\t0.9\td/owl.wav\towl"
    assert row == expected
    assert rows(read_annotations(tmp_path / "x.selections.txt")) == rows(annotations)


def test_an_edited_label_or_time_is_the_one_that_is_written(file, tmp_path: Path) -> None:
    table = file(f"{RAVEN}\tSpecies\n1\tS\t1\t0.1\t0.2\t1\t2\tEATO\n", NAMES["raven"])
    write_annotations(read_annotations(table), tmp_path / "x.csv")
    text = (tmp_path / "x.csv").read_text().replace("0.1,0.2,EATO", "0.1,0.3,owl")
    (tmp_path / "x.csv").write_text(text)
    write_annotations(read_annotations(tmp_path / "x.csv"), table)
    assert rows(read_annotations(table)) == [("owl", 0.1, 0.3, "owl")]
    assert "EATO" in table.read_text()


@pytest.mark.parametrize("form", ["raven", "audacity"])
def test_several_recordings_are_a_folder(file, tmp_path: Path, form: Format) -> None:
    text = "file,onset,offset,label\na.wav,1,2,owl\nsub/b.wav,1,2,owl\nc.wav,,,\n"
    annotations = read_annotations(file(text, "all.csv"))
    with pytest.raises(DataError, match="is of one recording, and there are several"):
        write_annotations(annotations, tmp_path / NAMES[form])
    files = write_annotations(annotations, tmp_path / "each", form)
    assert len(files) == 3 and all(path.parent == tmp_path / "each" for path in files)
    again = read_annotations(tmp_path / "each")
    assert [row[1:] for row in rows(again)] == [row[1:] for row in rows(annotations)]


def test_recordings_without_an_event_stay_in_a_table(file, tmp_path: Path) -> None:
    table = file("file,onset,offset,label\na.wav,1.0,2.0,owl\nb.wav,,,\n", "all.csv")
    annotations = read_annotations(table)
    write_annotations(annotations, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == table.read_text()


def test_what_a_format_cannot_hold_is_said(file, tmp_path: Path) -> None:
    odd = read_annotations(file('file,onset,offset,label\na.wav,1,2,"x\ty"\n', "x.csv"))
    with pytest.raises(DataError, match=r"'x\\ty', at 1 s of a.wav, holds a tab"):
        write_annotations(odd, tmp_path / "x.txt")
    text = "file,onset,offset,label,observer\na.wav,1,2,owl,me\n"
    with pytest.warns(EatWarning, match="a label track has no place for observer"):
        write_annotations(read_annotations(file(text, "y.csv")), tmp_path / "y.txt")
    with pytest.raises(DataError, match=r"expected a name that ends with .csv"):
        write_annotations(odd, tmp_path / "x.xlsx")
    same = read_annotations(
        file("file,onset,offset,label\na/x.wav,1,2,o\nb/x.wav,1,2,o\n", "z.csv")
    )
    with pytest.raises(DataError, match=r"two recordings would be x.txt, one of them b/x.wav"):
        write_annotations(same, tmp_path / "each", "audacity")


def test_no_recording_leads_out_of_the_folder(file, tmp_path: Path) -> None:
    text = "file,onset,offset,label\n../../up.wav,1,2,owl\nC:\\x\\y.wav,1,2,owl\n"
    annotations = read_annotations(file(text, "all.csv"))
    files = write_annotations(annotations, tmp_path / "each", "audacity")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in files) == [
        "each/up.txt",
        "each/y.txt",
    ]


# ---- windows


def test_windows_have_the_labels_of_their_events(file, tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 10.0)
    text = (
        "file,onset,offset,label\na.wav,0.5,1.0,owl\na.wav,1.9,2.5,frog\n"
        "a.wav,5.0,8.6,owl\na.wav,9.5,9.5,click\n"
    )
    corpus = event_windows(read_annotations(file(text, "t.csv")), tmp_path, seconds=2.0)
    names = corpus.label_names
    found = {clip.start: [names[number] for number in clip.labels] for clip in corpus.clips}
    # From 4 to 6 s an owl is in the second half; from 8 to 10 s it is there for 0.6 s only.
    assert found == {0.0: ["owl"], 2.0: ["frog"], 4.0: ["owl"], 6.0: ["owl"], 8.0: ["click"]}
    assert corpus.multi_label and all(clip.seconds == 2.0 for clip in corpus.clips)


def test_windows_that_hardly_share_an_event_are_left_out_and_counted(file, tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 7.0)
    annotations = read_annotations(file("file,onset,offset,label\na.wav,1.8,4.0,owl\n", "t.csv"))
    corpus = event_windows(annotations, tmp_path, seconds=2.0)
    assert [(clip.start, clip.labels) for clip in corpus.clips] == [
        (2.0, (0,)),
        (4.0, ()),
        (5.0, ()),
    ]
    assert corpus.notes == ("1 windows that share less than half with an event are left out",)


def test_windows_need_their_recordings(file, tmp_path: Path) -> None:
    annotations = read_annotations(file("file,onset,offset,label\nz.wav,1,2,owl\n", "t.csv"))
    with pytest.raises(DataError, match="z.wav: an annotated recording is missing"):
        event_windows(annotations, tmp_path, seconds=2.0)


# ---- the command


def test_the_command_converts(file, tmp_path: Path, monkeypatch, capsys) -> None:
    track = file("1.000000\t2.500000\towl\n", "owl.txt")
    code, output, _ = eat(monkeypatch, capsys, "data", "annotations", track, tmp_path / "o.csv")
    assert code == 0 and "1 events in 1 recordings" in output
    code, output, error = eat(monkeypatch, capsys, "data", "annotations", track, tmp_path / "o.x")
    assert code == 2 and error.startswith("eat: ") and error.count("\n") == 1


def test_the_command_writes_a_manifest_of_windows(file, tmp_path, monkeypatch, capsys) -> None:
    sound(tmp_path / "owl.wav", 6.0)
    track = file("2.0\t3.5\towl\n", "owl.txt")
    words = ("data", "annotations", track, tmp_path / "clips.csv", "--windows", 2)
    code, output, _ = eat(monkeypatch, capsys, *words)
    assert code == 0 and "3 windows, 1 of them with a label" in output
    corpus = open_corpus(tmp_path / "clips.csv", several=True)
    assert [(clip.start, clip.labels) for clip in corpus.clips] == [(0, ()), (2, (0,)), (4, ())]
