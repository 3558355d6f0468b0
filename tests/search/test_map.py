"""What the map of vectors promises."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import eat
from eat_audio.errors import DataError, EatWarning
from eat_audio.search.index import Index, unit_length
from eat_audio.search.map import (
    COLORS,
    SHAPES,
    WIDTH,
    draw_map,
    positions,
    write_map,
)

RATE = 16_000


def blobs(count: int, groups: int = 3, width: int = 24) -> Any:
    """Unit vectors around some means, one group after the other, and their groups."""
    random = np.random.default_rng(0)
    groups_of = np.arange(count) * groups // count
    means = random.normal(size=(groups, width))
    return unit_length(means[groups_of] + 0.1 * random.normal(size=(count, width))), groups_of


def index_of(vectors: Any, paths: list[str], folder: Path, **times: Any) -> Index:
    """An index of vectors in memory: clips, or windows with `start` and `seconds`."""
    start = np.array(times.get("start", [0.0] * len(paths)))
    seconds = np.array(times.get("seconds", [np.inf] * len(paths)))
    vectors = np.asarray(vectors, np.float16)
    return Index(folder / "v.parquet", vectors, paths, start, seconds, {"level": "clip"}, folder)


def in_folders(count: int, groups_of: Any) -> list[str]:
    return [f"rec/{'abc'[group]}/{n}.wav" for n, group in zip(range(count), groups_of, strict=True)]


def write_tones(folder: Path, paths: list[str], seconds: float = 1.0) -> None:
    for n, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * RATE)) / RATE
        soundfile.write(folder / path, 0.3 * np.sin(2 * np.pi * (300 + 50 * n) * time), RATE)


def write_labels(path: Path, rows: list[str], header: str = "path,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def names_of(drawn: Any) -> dict[int, str]:
    """The name of the group of every row."""
    return {point.row: drawn.groups[point.group].name for point in drawn.points}


def test_like_vectors_are_near_each_other():
    vectors, groups_of = blobs(60)
    places, height = positions(vectors.astype(np.float32))
    assert ((places >= 0) & (places <= [WIDTH, height])).all()
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (groups_of[distances.argmin(axis=1)] == groups_of).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("equal", [True, False])
def test_few_points_and_equal_ones_have_places(count, equal):
    vectors = np.ones((count, 6)) if equal else blobs(count, 1, 6)[0]
    places, height = positions(vectors.astype(np.float32))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all() and ((places >= 0) & (places <= [WIDTH, height])).all()


def test_the_chosen_points_do_not_depend_on_the_order_of_the_rows(tmp_path):
    vectors, groups_of = blobs(40)
    paths, order = in_folders(40, groups_of), np.random.default_rng(1).permutation(40)
    first = draw_map(index_of(vectors, paths, tmp_path), most=12)
    other = index_of(vectors[order], [paths[n] for n in order], tmp_path)
    second = draw_map(other, most=12)
    assert [p.name for p in first.points] == [p.name for p in second.points]
    assert [(p.x, p.y) for p in first.points] == [(p.x, p.y) for p in second.points]
    assert len(first.points) == 12 and first.total == 40


def test_colors_are_folders(tmp_path):
    vectors, groups_of = blobs(30)
    drawn = draw_map(index_of(vectors, in_folders(30, groups_of), tmp_path))
    assert drawn.colored_by == "folder"
    assert [(g.name, g.count) for g in drawn.groups] == [("a", 10), ("b", 10), ("c", 10)]
    assert names_of(drawn) == {n: "abc"[group] for n, group in enumerate(groups_of)}


def test_colors_of_one_folder_are_clusters(tmp_path):
    vectors, groups_of = blobs(30)
    paths = [f"{n}.wav" for n in range(30)]
    assert draw_map(index_of(vectors, paths, tmp_path)).colored_by == "cluster"
    names = names_of(draw_map(index_of(vectors, paths, tmp_path), clusters=3))
    pairs = {(names[row], int(group)) for row, group in enumerate(groups_of)}
    assert len(pairs) == 3 == len(set(names.values()))


def test_colors_are_labels_and_recordings_without_one_are_gray(tmp_path):
    vectors, groups_of = blobs(9)
    paths = in_folders(9, groups_of)
    write_tones(tmp_path, paths[:1], seconds=0.1)
    labels = write_labels(tmp_path / "l.csv", [f"{path},owl;rain" for path in paths[:4]])
    drawn = draw_map(index_of(vectors, paths, tmp_path), labels=labels)
    assert [(g.name, g.count, g.color) for g in drawn.groups] == [
        ("owl", 4, 0),
        ("no label", 5, COLORS),
    ]
    assert {row for row, name in names_of(drawn).items() if name == "owl"} == {0, 1, 2, 3}


def test_a_window_has_the_label_of_the_stretch_that_most_of_it_is_in(tmp_path):
    write_tones(tmp_path, ["long.wav"])
    rows = ["long.wav,owl,0,4.5", "long.wav,rain,4.5,2"]
    labels = write_labels(tmp_path / "l.csv", rows, "path,label,start,seconds")
    times = {"start": [0, 3, 6, 9], "seconds": [3.0] * 4}
    index = index_of(blobs(4)[0], ["long.wav"] * 4, tmp_path, **times)
    drawn = draw_map(index, labels=labels)
    assert names_of(drawn) == {0: "owl", 1: "owl", 2: "rain", 3: "no label"}
    assert "long.wav, 3 s to 6 s" in [point.name for point in drawn.points]


def test_labels_of_other_recordings_are_an_error(tmp_path):
    write_tones(tmp_path, ["x.wav"])
    labels = write_labels(tmp_path / "l.csv", ["x.wav,owl", "y.wav,dog"])
    with pytest.raises(DataError, match="l.csv: labels none of the recordings of .*v.parquet"):
        draw_map(index_of(blobs(6)[0], [f"{n}.wav" for n in range(6)], tmp_path), labels=labels)


def test_groups_differ_in_color_or_shape_and_the_smallest_are_gray(tmp_path):
    kinds = COLORS * SHAPES + 4
    paths = [f"{kind:02}/{n}.wav" for kind in range(kinds) for n in range(1 + (kind > 3))]
    drawn = draw_map(index_of(blobs(len(paths), 1)[0], paths, tmp_path))
    *groups, rest = drawn.groups
    assert len({(group.color, group.shape) for group in groups}) == len(groups) == COLORS * SHAPES
    assert len({group.shape for group in groups[:SHAPES]}) == SHAPES  # not by color alone
    assert (rest.name, rest.count, rest.color) == ("others", 4, COLORS)
    assert sum(group.count for group in drawn.groups) == len(drawn.points)


def sounds_in(page: Path) -> list[str]:
    return re.findall(r'data-sound="([^"]*)"', page.read_text(encoding="utf-8"))


def test_few_sounds_are_inside_the_page(tmp_path):
    paths = ["a/x.wav", "b/y.wav"]
    write_tones(tmp_path, paths, seconds=3)
    index = index_of(blobs(2)[0], paths, tmp_path, start=[0, 1], seconds=[np.inf, 1.5])
    drawn = draw_map(index)
    write_map(drawn, index, tmp_path / "map.html")
    lengths = {}
    for point, url in zip(drawn.points, sounds_in(tmp_path / "map.html"), strict=True):
        head, _, data = url.partition("base64,")
        assert head == "data:audio/mpeg;"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        spectrum = np.abs(np.fft.rfft(samples))
        assert abs(spectrum.argmax() * rate / len(samples) - (300 + 50 * point.row)) < 5
        lengths[point.row] = len(samples) / rate
    assert lengths == pytest.approx({0: 3, 1: 1.5}, abs=0.1)


def test_many_sounds_are_links_from_the_place_of_the_page(tmp_path):
    paths = ["rec/a b#1.wav", "rec/é.wav"]
    write_tones(tmp_path, paths)
    index = index_of(blobs(2)[0], paths, tmp_path, start=[0, 0.25], seconds=[np.inf, 0.5])
    (tmp_path / "pages").mkdir()
    write_map(draw_map(index), index, tmp_path / "pages" / "map.html", megabytes=0)
    assert sorted(sounds_in(tmp_path / "pages" / "map.html")) == [
        "../rec/%C3%A9.wav#t=0.25,0.75",
        "../rec/a%20b%231.wav#t=0.00,1.00",
    ]


def test_recordings_that_are_gone_or_broken_are_counted(tmp_path):
    paths = ["0.wav", "1.wav", "2.wav"]
    write_tones(tmp_path, paths[:1])
    (tmp_path / "1.wav").write_text("no sound", encoding="utf-8")
    index = index_of(blobs(3)[0], paths, tmp_path)
    with pytest.warns(EatWarning, match="2 of 3 points cannot be played: "):
        write_map(draw_map(index), index, tmp_path / "map.html")
    assert len(sounds_in(tmp_path / "map.html")) == 1


def test_the_same_vectors_give_the_same_bytes(tmp_path):
    vectors, groups_of = blobs(30)
    paths = in_folders(30, groups_of)
    write_tones(tmp_path, paths, seconds=0.1)
    pages = [tmp_path / "1.html", tmp_path / "2.html"]
    for page in pages:
        index = index_of(vectors, paths, tmp_path)
        write_map(draw_map(index, clusters=4), index, page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_names_are_escaped_and_the_page_refers_to_no_other_machine(tmp_path):
    paths = ['<img src=x onerror="alert(1)">.wav', "</script>/b.wav"]
    write_tones(tmp_path, paths)
    index = index_of(blobs(2)[0], paths, tmp_path)
    write_map(draw_map(index), index, tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert "<img" not in text and text.count("</script>") == 1
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", text) == []


def test_the_command_says_what_it_drew(tmp_path, monkeypatch, capsys):
    write_tones(tmp_path, paths := [f"{n}.wav" for n in range(6)], seconds=0.1)
    index = index_of(blobs(6)[0], paths, tmp_path)
    monkeypatch.setattr("eat_audio.search.index.open_index", lambda vectors: index)
    page = tmp_path / "map.html"
    code, out, err = eat(monkeypatch, capsys, "map", "v.parquet", "-o", page, "--points", 4)
    assert (code, out) == (0, f"{page}: 4 of 6 vectors, by cluster\n")
    assert len(sounds_in(page)) == 4


def test_mistakes_are_one_sentence_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    words = ("map", tmp_path / "v.parquet", "-o")
    for more in ([tmp_path], [tmp_path / "x" / "map.html"], ["m", "--labels=l", "--clusters=2"]):
        code, out, err = eat(monkeypatch, capsys, *words, *more)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
