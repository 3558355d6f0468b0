"""Files that are either the old or the new one."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from eat_audio.errors import OutputError
from eat_audio.writing import (
    aside_name,
    remove_leftovers,
    write_json,
    write_tensors,
    write_text,
    written_aside,
)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), written_aside(path) as aside:
        aside.write_text("half", encoding="utf-8")
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    (tmp_path / ".a.txt.incomplete").symlink_to(victim)
    write_text(tmp_path / "a.txt", "new")
    assert victim.read_text(encoding="utf-8") == "mine"
    assert aside_name(tmp_path / "a.txt") != aside_name(tmp_path / "a.txt")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
        write_json(tmp_path / "a.json", {"x": 1})
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_what_is_written_is_read_back(tmp_path):
    write_tensors(tmp_path / "deep" / "a.safetensors", {"x": torch.arange(3)})
    assert load_file(tmp_path / "deep" / "a.safetensors")["x"].tolist() == [0, 1, 2]
    write_json(tmp_path / "a.json", {"name": "Käse 猫"})
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == {"name": "Käse 猫"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        with written_aside(tmp_path / "a.txt"):
            with open("/dev/full", "w") as full:
                full.write("x")
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = tmp_path / "a[1].txt"
    aside_name(path).write_text("half", encoding="utf-8")
    other = aside_name(tmp_path / "b.txt")
    other.write_text("half", encoding="utf-8")
    remove_leftovers(path)
    assert os.listdir(tmp_path) == [other.name]
