"""Names of the Hub: what is fetched, what never is, and servers that fail."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from saved_encoders import TINY, refused, same_weights, saved

from eat_audio.checkpoints import hub
from eat_audio.checkpoints.load import load_features, load_model
from eat_audio.errors import CheckpointError
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return saved(EATForAudioClassification(EATConfig(**TINY)), tmp_path / "classifier")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return saved(EATModel(EATConfig(**TINY)), tmp_path / "encoder")


@pytest.mark.parametrize(
    "place",
    [
        *("runs/tiny", "Runs/tiny", "out/x", "checkpoints/step-00000040", "models/eat", "data/a"),
        *("somebody/model.safetensors", "somebody/eat.PT", "here/tiny", "tiny", "a\\b", "~/runs"),
        *("hf://tiny", "hf://a/b/c", "hf://../a", "a/..", "https://x/y", "a/b\n", "a//b"),
    ],
)
def test_what_looks_like_a_place_of_this_machine_is_never_fetched(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("eat_audio.checkpoints.hub.fetch", lambda name: pytest.fail(name))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_model(place)


def test_without_a_network_a_hub_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Hugging Face Hub" in refused("nobody/no-such-model")


@pytest.mark.parametrize("place", ["somebody/eat", "hf://somebody/eat", "hf://runs/eat"])
def test_what_can_only_be_a_name_of_the_hub_is_fetched(
    place: str, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "eat_audio.checkpoints.hub.fetch", lambda name: asked.append(name) or encoder
    )
    assert same_weights(load_model(place), load_model(encoder))
    assert load_features(place) is not None
    assert set(asked) == {place.removeprefix("hf://")}


class Answers(BaseHTTPRequestHandler):
    """A server that stands for the Hub; what it knows is set from outside."""

    files: dict[str, bytes]
    asked: list[str]
    waits: threading.Event | None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if self.waits is not None:
            self.waits.wait(30)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(
                self.files.get(path)
                or json.dumps(
                    {"id": "somebody/eat", "sha": "a" * 40, "siblings": siblings}
                ).encode()
            )
        else:
            self.answer(self.files.get(path.rpartition("/")[2]))

    def answer(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", hashlib.sha1(content or b"").hexdigest())
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if content and self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[type[Answers]]:
    """A server that stands for the Hub; its somebody/eat is the encoder, code and a pickle."""
    Answers.files = {file.name: file.read_bytes() for file in encoder.iterdir()}
    Answers.files |= {"modeling_eat.py": b"raise SystemExit", "pytorch_model.bin": b"x"}
    Answers.asked, Answers.waits = [], None
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    serving.daemon_threads = True
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{serving.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.fetch.cache_clear()
    yield Answers
    if Answers.waits is not None:
        Answers.waits.set()
    serving.shutdown()
    serving.server_close()
    hub.fetch.cache_clear()


def test_it_is_said_what_is_fetched_and_code_is_not(
    server: type[Answers], encoder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert same_weights(load_model("somebody/eat"), load_model(encoder))
    load_model("somebody/eat")
    err = capsys.readouterr().err
    assert err.startswith("fetching somebody/eat from the Hugging Face Hub\n")
    assert err.count("fetching") == 1
    got = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert got == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert not any("modeling_eat" in path or "pytorch" in path for path in server.asked)


def test_a_server_that_never_answers_is_given_up(
    server: type[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.waits = threading.Event()
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    assert "did not answer for 1 seconds" in refused("somebody/eat")


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"null", b"{}", b"no JSON", b'{"id": 3}', b'{"siblings": [1]}', b"[" * 100_000]
    + [b'{"id": "a/b", "siblings": [{"rfilename": "../config.json"}], "sha": 3}']
    + [b'{"id": "a/b", "siblings": [{"rfilename": "config.json"}], "sha": 3}'],
    ids=range(9),
)
def test_a_server_that_answers_oddly_is_refused(server: type[Answers], answer: bytes) -> None:
    server.files["/api/models/somebody/eat"] = answer
    assert "Hugging Face Hub" in refused("somebody/eat")


def test_a_local_folder_comes_before_the_hub(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifier.parent)
    assert load_model("classifier").config.num_labels == 3
