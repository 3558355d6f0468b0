"""A folder belongs to one living run, with the locks of every system and without any."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eat_audio.errors import OutputError
from eat_audio.lock import HOLDER, LOCK, lock_folder


@pytest.fixture(params=["flock", "nothing", "a disk without locks", "msvcrt"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of locks of the system."""
    if request.param != "flock":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    if request.param == "a disk without locks":

        def flock(descriptor: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        without = SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4)
        monkeypatch.setitem(sys.modules, "fcntl", without)
    if request.param == "msvcrt":
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking(), LK_NBLCK=2))
    return request.param


def locking() -> object:
    """Imitate the lock of bytes on Windows within one process."""
    locked: dict[int, int] = {}

    def lock(descriptor: int, how: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1_000  # locked bytes cannot be read
        inode = os.fstat(descriptor).st_ino
        if inode in locked:
            try:
                os.fstat(locked[inode])
                raise PermissionError(errno.EACCES, "Permission denied")
            except OSError as error:
                if error.errno == errno.EACCES:
                    raise
        locked[inode] = descriptor

    return lock


def test_a_folder_is_locked_once_and_free_afterwards(tmp_path: Path, locks: str) -> None:
    out = tmp_path / "run"
    for _ in range(2):
        with lock_folder(out):
            with pytest.raises(OutputError, match=rf"in use by another job \(.*{os.getpid()}"):
                with lock_folder(out):
                    raise AssertionError("locked twice")
        if locks == "msvcrt":
            break  # the imitation does not notice that the file was closed
    assert not (out / HOLDER).exists()


def test_the_lock_of_a_dead_process_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    script = ["import os, socket", "print(f'process {os.getpid()} on {socket.gethostname()}')"]
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True
    )
    (tmp_path / HOLDER).write_text(ended.stdout, encoding="utf-8")
    with lock_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / HOLDER).read_text(encoding="utf-8")
    for holder in (f"process 1 on {os.uname().nodename}x", "rubbish", ""):
        (tmp_path / HOLDER).write_text(holder, encoding="utf-8")
        with pytest.raises(OutputError, match=f"if it is not, remove .*{HOLDER}"):
            with lock_folder(tmp_path):
                raise AssertionError("locked")


def test_a_lock_holds_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("eat_audio.lock.os.write", full)
    with (
        lock_folder(tmp_path),
        pytest.raises(OutputError, match="in use"),
        lock_folder(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", LOCK)

    monkeypatch.setattr("eat_audio.lock.os.open", read_only)
    with pytest.raises(OutputError, match=r"cannot be written \(Read-only file system\)"):
        with lock_folder(tmp_path):
            pass
