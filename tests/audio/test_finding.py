"""Which files are recordings."""

from pathlib import Path

import pytest
from small_recordings import noise, write

from conftest import needs_data
from eat_audio.audio import (
    AUDIO_SUFFIXES,
    find_audio,
)
from eat_audio.errors import AudioError


def test_folders_are_searched_at_any_depth_whatever_the_case_of_the_suffix(tmp_path):
    for name in ("b/c/2.FLAC", "b/1.wav", "a.Mp3", "notes.txt", "wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio([tmp_path])]
    assert found == ["a.Mp3", "b/1.wav", "b/c/2.FLAC"]


def test_files_are_taken_as_they_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recording.bin").touch()
    assert find_audio(["recording.bin"]) == [Path("recording.bin")]


def test_each_name_is_found_once_links_end_and_dangling_ones_are_skipped(tmp_path):
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    clip = write(folder / "a.wav", noise(100))
    (folder / "b.wav").symlink_to("a.wav")
    (folder / "loop").symlink_to(".")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "self.wav").symlink_to("self.wav")
    (folder / "dangling.wav").symlink_to("nowhere")
    linked = folder / "b.wav"
    assert find_audio([folder]) == [clip, linked]
    assert find_audio([folder / "loop", clip, folder / "sub", str(clip), linked]) == [clip, linked]


def test_links_to_one_file_of_a_store_are_as_many_recordings(tmp_path):
    (tmp_path / "store").mkdir()
    blob = write(tmp_path / "store" / "0a1b.wav", noise(100))
    names = ["cat/1.wav", "cat/2.wav", "dog/1.wav"]
    for name in names:
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).symlink_to(blob)
    found = find_audio([tmp_path / "clips", tmp_path / "clips" / "cat"])
    assert [path.relative_to(tmp_path / "clips").as_posix() for path in found] == names


def test_a_linked_folder_is_searched(tmp_path):
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "a.wav", noise(100))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train").symlink_to(tmp_path / "store")
    assert find_audio([tmp_path / "corpus"]) == [tmp_path / "corpus" / "train" / "a.wav"]


def test_a_place_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(AudioError, match="gone: no such file or folder"):
        find_audio([tmp_path, tmp_path / "gone"])


@needs_data
def test_every_recording_of_a_corpus_is_found(data):
    assert len(find_audio([data / "esc10"])) == 400
    assert {path.suffix.lower() for path in find_audio([data])} <= AUDIO_SUFFIXES
