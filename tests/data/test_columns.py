"""What the header of a table means, in the words of many tools; nothing is dropped unseen."""

from pathlib import Path

import pytest

from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.manifest import read_csv
from eat_audio.errors import DataError, EatWarning


def table(folder: Path, text: str, name: str = "clips.csv") -> Path:
    """A table beside two recordings."""
    for recording in ("a.wav", "b.wav"):
        (folder / recording).touch()
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def stretches(corpus: Corpus) -> list[tuple[str, float, float | None]]:
    return [(corpus.label_names[c.labels[0]], c.start, c.seconds) for c in corpus.clips]


@pytest.mark.parametrize(
    "header",
    [
        "start,end",
        "Start,End",
        "start,stop",
        "begin,end",
        "onset,offset",
        "event_onset,event_offset",
        "start_time,end_time",
        "START TIME,STOP TIME",
        "startTime,endTime",
        "Begin Time (s),End Time (s)",
        "start (s),end (s)",
        "start_sec,end_sec",
        "start_s,end_s",
        "t_start,t_end",
        "t_min,t_max",
        "segment_start,segment_end",
        "from,to",
        "ts_start,ts_end",
    ],
)
def test_start_and_end_are_understood_in_their_usual_spellings(tmp_path, header):
    text = f"path,label,{header}\na.wav,owl,0.0,1.0\na.wav,cricket,1.0,2.5\n"
    corpus = read_csv(table(tmp_path, text))
    assert stretches(corpus) == [("owl", 0, 1), ("cricket", 1, 1.5)]


@pytest.mark.parametrize(
    "header",
    [
        "start,duration",
        "onset,duration",
        "offset,duration",
        "start,seconds",
        "begin_time,length",
        "Start (s),Duration (s)",
        "begin time,Delta Time (s)",
        "start_s,duration_sec",
    ],
)
def test_start_and_duration_are_understood_in_their_usual_spellings(tmp_path, header):
    corpus = read_csv(table(tmp_path, f"path,label,{header}\na.wav,owl,1.0,1.5\n"))
    assert stretches(corpus) == [("owl", 1, 1.5)]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("start_ms,end_ms", "1000,2500"),
        ("Start (ms),Duration (ms)", "1000,1500"),
        ("startms,length_msec", "1000,1500"),
        ("start,end_ms", "1,2500"),
        ("start,end", "00:00:01,0:02.5"),
        ("start,end,duration", "1.0,2.5,1.5"),
        ("start (min),seconds", "0.0166666667,1.5"),
    ],
)
def test_units_and_clock_times_are_converted(tmp_path, header, cells):
    corpus = read_csv(table(tmp_path, f"path,label,{header}\na.wav,owl,{cells}\n"))
    ((_, start, seconds),) = stretches(corpus)
    assert (round(start, 6), seconds) == (1, 1.5)


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("offset", "1", "line 1: the column offset may be a start or an end"),
        ("start,offset", "1,2", "line 1: the column offset may be a start or an end"),
        ("start_sample,end_sample", "1,2", "line 1: start_sample, end_sample: looks like a time"),
        ("start,end_frame", "1,2", "line 1: end_frame: looks like a time"),
        ("startt,endd", "1,2", "line 1: startt, endd: looks like a time"),
        ("start,time", "1,2", "line 1: start has no end, and time is not understood"),
        ("start,onset,end", "1,1,2", "line 1: start, onset could all be the start"),
        ("start,end", "2,2", "line 2: it ends at 2 s and begins at 2 s"),
        ("start,end", "2,1", "line 2: it ends at 1 s and begins at 2 s"),
        ("start,end,duration", "1,2,5", "line 2: from 1 to 2 s it lasts 1 s, but duration says 5"),
        ("start,seconds", "0,0.00001", "line 2: seconds: a clip of 1e-05 s"),
        ("start,end", "0,0.001", "line 2: end: a clip of 0.001 s"),
        ("start,seconds", "0,1.7e308", "line 2: seconds '1.7e308' is not a time"),
        ("start,seconds", "1.7e308,1", "line 2: start '1.7e308' is not a time"),
        ("Start,End", "-1,1", "line 2: Start '-1' is not a time"),
        ("start,end", "0,inf", "line 2: end 'inf' is not a time"),
    ],
)
def test_times_that_cannot_be_are_named_with_their_line(tmp_path, header, cells, message):
    with pytest.raises(DataError, match=f"clips.csv {message}"):
        read_csv(table(tmp_path, f"path,label,{header}\na.wav,owl,{cells}\n"))


def test_several_starts_without_an_end_are_a_warning(tmp_path):
    with pytest.warns(EatWarning, match="each reaches to the end of its file"):
        read_csv(table(tmp_path, "path,label,start\na.wav,owl,0\na.wav,cat,1\n"))


def test_what_looks_like_a_time_and_is_not_used_is_a_warning(tmp_path):
    with pytest.warns(EatWarning, match="recording_start_time"):
        corpus = read_csv(table(tmp_path, "path,label,recording_start_time\na.wav,owl,5\n"))
    assert corpus.notes == ("clips.csv: not used: the columns recording_start_time",)


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def test_selection_tables_of_raven_name_their_file_or_lie_beside_it(tmp_path):
    rows = "1\tSpectrogram 1\t1\t0.5\t1.5\t100\t2000{0}\towl\n" * 2
    named = f"{RAVEN}\tBegin File\tAnnotation\n{rows.format(chr(9) + 'b.wav')}"
    beside = f"{RAVEN}\tSpecies\n{rows.format('')}"
    for text, name, recording in (
        (named, "x.txt", "b.wav"),
        (beside, "a.Table.1.selections.txt", "a.wav"),
    ):
        corpus = open_corpus(table(tmp_path, text, name))
        assert stretches(corpus) == [("owl", 0.5, 1)]
        assert Path(corpus.clips[0].path).name == recording


def test_times_of_raven_count_from_the_start_of_the_file_where_there_is_an_offset(tmp_path):
    text = "Begin Time (s)\tEnd Time (s)\tFile Offset (s)\tBegin Path\tAnnotation\n"
    corpus = open_corpus(table(tmp_path, f"{text}100.5\t101.5\t0.5\ta.wav\towl\n", "x.txt"))
    assert stretches(corpus) == [("owl", 0.5, 1)]


def test_label_files_of_audacity_lie_beside_their_recording(tmp_path):
    text = "0.000000\t1.500000\towl\n\\\t100\t2000\n1,5\t2\tcricket\n"
    corpus = open_corpus(table(tmp_path, text, "a.txt"))
    assert stretches(corpus) == [("owl", 0, 1.5), ("cricket", 1.5, 0.5)]
    with pytest.raises(DataError, match="z.txt: has times and labels, but names no file"):
        open_corpus(table(tmp_path, text, "z.txt"))
    with pytest.raises(DataError, match=r"a.txt line 2: it ends at 1 s and begins at 1 s"):
        open_corpus(table(tmp_path, "0\t1\towl\n1\t1\towl\n", "a.txt"))


@pytest.mark.parametrize(
    "header", "label Labels category CLASS class_name target species Tags Annotation".split()
)
def test_labels_are_found_under_their_usual_headers(tmp_path, header):
    assert read_csv(table(tmp_path, f"path,{header}\na.wav,dog\nb.wav,cat\n")).label_names == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize(
    "header", ["file_name", "filename", "File", "audio", "filepath", "audio_path", "fname"]
)
def test_files_are_found_under_their_usual_headers(tmp_path, header):
    assert len(read_csv(table(tmp_path, f"label,{header}\ndog,a.wav\n"))) == 1


def test_a_column_per_label_is_understood(tmp_path):
    corpus = read_csv(table(tmp_path, "path,dog,cat,fold\na.wav,1,0,1\nb.wav,0,1,2\n"))
    assert (corpus.label_names, corpus.multi_label) == (("cat", "dog"), False)
    assert corpus.folds == ("1", "2")
    several = read_csv(table(tmp_path, "path,dog,cat\na.wav,1,1\nb.wav,0,0\n"))
    assert [clip.labels for clip in several.clips] == [(1, 0), ()]


def test_columns_that_are_not_used_are_noted(tmp_path):
    corpus = read_csv(table(tmp_path, ",path,dog,cat,notes\n0,a.wav,1,0,x\n"))
    assert corpus.notes == ("clips.csv: not used: the columns dog, cat, notes",)


def test_one_of_several_columns_of_labels_is_used_and_the_other_is_named(tmp_path):
    text = "path,class,species\na.wav,bird,owl\nb.wav,bird,crow\n"
    corpus = read_csv(table(tmp_path, text))
    assert corpus.label_names == ("crow", "owl") and "class" in corpus.notes[0]
    with pytest.warns(EatWarning, match="the columns class"):
        read_csv(table(tmp_path, "path,label,class\na.wav,owl,x\nb.wav,cat,y\nb.wav,cat,z\n"))
    with pytest.raises(DataError, match="there are two columns 'label'"):
        read_csv(table(tmp_path, "path,label,label\na.wav,owl,bird\n"))


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_other_separators_are_understood(tmp_path, separator):
    text = "path,label,start,end\na.wav,owl,0|5,1|5\n".replace(",", separator).replace("|", ",")
    corpus = read_csv(table(tmp_path, text))
    assert stretches(corpus) == [("owl", 0.5, 1)]
