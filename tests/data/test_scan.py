"""The fingerprint of recordings is about what they hold, not about where and since when."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eat_audio.data import scan as module
from eat_audio.data.corpus import Clip, Corpus, Span
from eat_audio.data.scan import contents_fingerprint


def corpus(root: Path, count: int = 5, size: int = 100_000) -> Corpus:
    root.mkdir()
    for number in range(count):
        (root / f"{number}.wav").write_bytes(bytes([number]) * size)
    return Corpus("c", [Clip(f"{n}.wav", str(root / f"{n}.wav")) for n in range(count)])


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_other_contents_of_the_same_size_are_another_fingerprint(
    tmp_path: Path, place: int
) -> None:
    clips = corpus(tmp_path / "a")
    before = contents_fingerprint(clips)
    with (tmp_path / "a" / "3.wav").open("r+b") as file:
        file.seek(place)
        file.write(b"x")
    assert contents_fingerprint(clips) != before


def test_another_size_and_a_missing_file_are_another_fingerprint(tmp_path: Path) -> None:
    clips = corpus(tmp_path / "a", size=10)
    assert contents_fingerprint(clips).startswith("5 files, 50 bytes, sha256 ")
    (tmp_path / "a" / "0.wav").write_bytes(b"0")
    assert contents_fingerprint(clips).startswith("5 files, 41 bytes")
    (tmp_path / "a" / "1.wav").unlink()
    assert contents_fingerprint(clips).startswith("5 files, 1 of them missing, 31 bytes")


def test_a_copy_elsewhere_with_other_times_is_the_same(tmp_path: Path) -> None:
    clips = corpus(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "0.wav", (1, 1))
    moved = [Clip(clip.id, clip.path.replace("/a/", "/b/")) for clip in clips.clips]
    assert contents_fingerprint(replace(clips, clips=moved)) == contents_fingerprint(clips)


def test_many_files_are_read_in_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_READ", 2)
    monkeypatch.setattr(module, "MOST_SIZED", 3)
    clips = corpus(tmp_path / "a")
    of_file = module._size_and_blocks

    def noted(path: str, *, read: bool) -> tuple[int, bytes]:
        noted_paths.append((Path(path).stem, read))
        return of_file(path, read=read)

    noted_paths: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "_size_and_blocks", noted)
    assert contents_fingerprint(clips).startswith("3 files, 300000 bytes")
    assert noted_paths == [("0", True), ("2", False), ("4", True)]


def test_shards_are_identified_by_the_checksums_of_their_clips(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"x" * 3_000)

    def packed(crc32: int) -> Corpus:
        spans = [Span(512 * n, 100, crc32 + n) for n in range(3)]
        clips = [Clip(str(n), str(tmp_path / "s.tar"), inside=s) for n, s in enumerate(spans)]
        return Corpus("c", clips)

    assert (
        contents_fingerprint(packed(1))
        == contents_fingerprint(packed(1))
        != contents_fingerprint(packed(2))
    )
    assert contents_fingerprint(packed(1)).startswith("1 files, 3000 bytes")


def test_pipes_and_urls_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    clips = [Clip("a", str(tmp_path / "pipe.wav")), Clip("b", "https://example.org/b.wav")]
    assert contents_fingerprint(Corpus("c", clips)).startswith(
        "1 files, 1 of them missing, 0 bytes"
    )
