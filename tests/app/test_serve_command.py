"""`eat serve` from its line to its end, and the guide's examples against it."""

import json
import os
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from conftest import ROOT, eat
from eat_audio.cli import service as command
from inference.predictors import SMALL, make_predictor, sound, write

GUIDE = ROOT / "docs" / "guides" / "serve.md"
USUAL = "127.0.0.1:8000"


def blocks(language: str) -> list[list[str]]:
    """The lines of every block of the guide in a language."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block.splitlines() for block in found]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader: a model and a recording."""
    predictor = make_predictor(SMALL)
    for part in (predictor.model, predictor.features):
        part.save_pretrained(tmp_path / "runs" / "classifier")
    write(tmp_path / "dog.wav", sound(1.5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def visitor(
    visit: Callable[[], None], end: signal.Signals = signal.SIGTERM
) -> Iterator[list[BaseException]]:
    """Visit in a thread while the service runs in this one, and stop it then."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            visit()
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), end)

    thread = threading.Thread(target=run)
    thread.start()
    yield failures
    thread.join()


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            urlopen(f"http://{address}/health").close()
            return
        except URLError:
            time.sleep(0.05)
    raise AssertionError("it did not start")


def curl(words: list[str], address: str) -> Any:
    """Do what curl does with the options of the guide."""
    url, kind, body = "", "application/x-www-form-urlencoded", b""
    for option, value in zip(["", *words], [*words, ""], strict=True):
        if option == "-F":
            name, _, file = value.partition("=@")
            kind = "multipart/form-data; boundary=b"
            head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"'
            body = f"{head}\r\n\r\n".encode() + Path(file).read_bytes() + b"\r\n--b--\r\n"
        elif option == "--data-binary":
            body = Path(value.removeprefix("@")).read_bytes()
        elif option == "-H":
            kind = value.removeprefix("Content-Type: ")
        elif value.startswith("http"):
            url = value.replace(USUAL, address)
    with urlopen(Request(url, body, {"Content-Type": kind})) as response:
        return json.load(response)


@pytest.mark.skipif(os.name != "posix", reason="the service is ended by a signal of POSIX")
def test_the_guide_runs_against_the_command_that_it_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, start, examples, _ = blocks("sh")
    (python,) = blocks("python")
    port = free_port()
    answers: list[Any] = []
    names: dict[str, Any] = {}

    def visit() -> None:
        address = f"127.0.0.1:{port}"
        wait_for(address)
        answers.extend(curl(shlex.split(words)[1:], address) for words in examples)
        exec("\n".join(python).replace(USUAL, address), names)
        with pytest.raises(HTTPError, match="415"):
            curl(["--data-binary", "@dog.wav", f"http://{address}/tag"], address)

    words = shlex.split(start[0])
    with visitor(visit) as failures:
        code, out, err = eat(monkeypatch, capsys, *words[1:], "--port", port)
    assert failures == [] and code == 0
    first, printed = out.splitlines()
    shown = GUIDE.read_text(encoding="utf-8")
    assert first.replace(str(port), "8000") in shown
    tags, events, frames, clip = answers
    assert len(tags["predictions"]) == 2 and events["seconds"] == 1.5
    assert len(frames["vectors"]) > 10 and len(clip["vectors"]) == 1
    assert printed == f"1.5 {names['answer']['predictions'][0]['label']}"
    assert "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="the service is ended by a signal of POSIX")
def test_a_request_that_has_begun_is_answered_before_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port, answers = free_port(), list[Any]()
    write(folder / "long.wav", sound(20.0))

    def send() -> None:
        address = f"127.0.0.1:{port}"
        words = ["-F", "file=@long.wav", f"http://{USUAL}/detect?hop=0.08"]
        answers.append(curl(words, address))

    sender = threading.Thread(target=send)
    before = signal.getsignal(signal.SIGINT)

    def visit() -> None:
        wait_for(f"127.0.0.1:{port}")
        sender.start()
        with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            text = response.read().decode()
        while "eat_recordings_active 1.0" not in text:
            with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                text = response.read().decode()

    with visitor(visit, signal.SIGINT) as failures:
        words = ("serve", "--model", "runs/classifier", "--port", port)
        code, _, _ = eat(monkeypatch, capsys, *words)
    sender.join()
    assert failures == [] and code == 0
    assert answers[0]["seconds"] == 20.0
    assert signal.getsignal(signal.SIGINT) is before


def test_an_address_in_use_is_one_sentence(folder: Path, monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = ("serve", "--model", "runs/classifier", "--port", port)
        code, _, err = eat(monkeypatch, capsys, *words)
    assert code == 2 and f"--port {port}: cannot be used" in err


@pytest.mark.parametrize("name", command.NEEDED)
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "find_spec", lambda module: None if module == name else object())
    code, _, err = eat(monkeypatch, capsys, "serve")
    assert code == 2
    assert err == f"eat: eat serve: needs {name}; install it (pip install 'eat-audio[serve]')\n"


def test_limits_that_cannot_be_are_one_sentence(monkeypatch, capsys) -> None:
    code, _, err = eat(monkeypatch, capsys, "serve", "--timeout", "0")
    assert code == 2 and "timeout=0: expected more than 0" in err
