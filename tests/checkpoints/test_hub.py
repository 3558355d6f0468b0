"""Names of the Hub: what is fetched, what never is, and servers that fail."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_encoders import TINY, refused, same_weights, saved

from eat_audio.checkpoints import hub
from eat_audio.checkpoints.convert import write
from eat_audio.checkpoints.load import load_features, load_model
from eat_audio.errors import CheckpointError
from eat_audio.models import zoo
from eat_audio.models.audiomae.modeling import AudioMAEConfig, AudioMAEModel
from eat_audio.models.common.feature_extraction import AudioMAEFeatureExtractor
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


@pytest.mark.parametrize("name", ["nobody/no-such-model", "eat-base-30ep-as2m"])
def test_without_a_network_there_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.fetch.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Hugging Face Hub" in refused(name)


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


def listed(server: type[Answers], **changed: str) -> None:
    """Let the Hub give sizes and SHA-256 of the files, as it does; `changed` have another one."""
    siblings = []
    for name, content in server.files.items():
        digest = changed.get(name.partition(".")[0], hashlib.sha256(content).hexdigest())
        lfs = {"size": len(content), "sha256": digest, "pointerSize": 134}
        siblings.append({"rfilename": name, "size": len(content), "lfs": lfs})
    answer = {"id": "somebody/eat", "sha": "a" * 40, "siblings": siblings}
    server.files["/api/models/somebody/eat"] = json.dumps(answer).encode()


def in_zoo(monkeypatch: pytest.MonkeyPatch, **changes: str) -> str:
    """Let the zoo have somebody/eat; return its name there."""
    row = replace(zoo.released()["eat-base-30ep"], address="somebody/eat", sha256="", **changes)
    monkeypatch.setattr(zoo, "released", lambda: {"eat-somebody": row})
    return "eat-somebody"


def test_a_name_of_the_zoo_is_fetched_after_its_size_is_printed(
    server: type[Answers],
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed(server)
    assert same_weights(load_model(in_zoo(monkeypatch)), load_model(encoder))
    err = capsys.readouterr().err
    assert re.search(r"^somebody/eat: .*model\.safetensors.*: 0\.\d MB$", err, re.M)
    hub.fetch.cache_clear()
    load_model("eat-somebody")
    assert " MB" not in capsys.readouterr().err  # it is in the cache


def test_a_file_that_is_not_what_the_hub_lists_is_deleted(server: type[Answers]) -> None:
    listed(server, model="0" * 64)
    sentence = refused("somebody/eat")
    assert "model.safetensors: has the SHA-256" in sentence and "0" * 64 in sentence
    hub.fetch.cache_clear()
    listed(server)
    load_model("somebody/eat")


def test_a_file_that_is_not_the_released_one_is_not_even_fetched(
    server: type[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(server)
    name = in_zoo(monkeypatch)
    row = replace(zoo.released()[name], sha256="1" * 64)
    monkeypatch.setattr(zoo, "released", lambda: {name: row})
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* 1{64} is expected"):
        load_model(name)
    assert not any("resolve" in path for path in server.asked)


def test_weights_in_a_torch_file_are_fetched_alone_and_read_without_running_anything(
    server: type[Answers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AudioMAEModel(AudioMAEConfig(embed_dim=64, depth=1, num_heads=1))
    write(model, AudioMAEFeatureExtractor(), tmp_path / "released.pth", layout="released")
    server.files["pytorch_model.bin"] = (tmp_path / "released.pth").read_bytes()
    listed(server)
    assert same_weights(load_model(in_zoo(monkeypatch, file="pytorch_model.bin")), model)
    assert not any("safetensors" in path or "modeling" in path for path in server.asked)


def test_what_is_for_browsers_only_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("fetched"))
    sentence = refused("eat-base-10ep")
    assert "https://drive.google.com/" in sentence and "in a browser" in sentence


def test_a_name_that_is_nearly_one_of_the_zoo_is_suggested() -> None:
    assert "did you mean eat-base-30ep-as2m" in refused("eat-base-30-as2m")


def test_a_folder_with_a_name_of_the_zoo_comes_first(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(encoder.parent)
    encoder.rename("eat-base-30ep")
    assert load_model("eat-base-30ep").config.embed_dim == TINY["embed_dim"]
