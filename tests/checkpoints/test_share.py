"""A model's card says what is known, and what is put on the Hub is the folder that was shown."""

import json
import os
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForAudioClassification

from eat_audio.checkpoints import share
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.errors import EatError
from eat_audio.models import save
from eat_audio.models.ced.modeling import CEDConfig, CEDModel
from eat_audio.models.common.feature_extraction import CEDFeatureExtractor, EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

LABELS = ["dog", "pipe|and `ticks`"]
SHAPE: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2}
SCORES = {
    "metric": "accuracy",
    "value": 0.75,
    "clips": 8,
    "classes": [
        {"label": "dog", "clips": 6, "accuracy": 1.0},
        {"label": LABELS[1], "clips": 2, "accuracy": 0.0},
        {"label": "never", "clips": 0, "accuracy": None},
    ],
    "without_positive": 1,
    "unreadable": [],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    config = EATConfig(**SHAPE).for_labels(LABELS, several=False, drop_path=0.0, pooling="cls")
    save(EATForAudioClassification(config), EATFeatureExtractor(mean=-6.5, std=5.25), folder)
    (folder / "evaluation.json").write_text(json.dumps(SCORES), encoding="utf-8")
    record = {
        "eat_audio": "0.1.0",
        "data": "32 clips, sha256 0123456789abcdef",
        "recipe": {"data": "/home/somebody/esc10/", "steps": 7, "monitor": {"data": "/x/own"}},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The card's YAML head, and its text."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_what_is_shared_is_the_model_with_its_scores(run: Path, tmp_path: Path) -> None:
    folder = share.prepare(run, tmp_path / "out", name="me/dogs", licence="cc-by-4.0")
    shared, own = load_model(folder).state_dict(), load_model(run).state_dict()
    assert all(torch.equal(shared[name], tensor) for name, tensor in own.items())
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == SCORES
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors"),
        *("preprocessor_config.json", "evaluation.json"),
    }


def test_the_card_names_several_corpora_without_their_folders(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["recipe"]["data"] = ["/home/somebody/pool/", "/home/somebody/mine.csv"]
    record["recipe"]["data"].append("https://host/third.csv?signature=secret")
    record["recipe"]["soft_labels"] = "/home/somebody/teacher.parquet"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _, text = card(share.prepare(run, tmp_path / "out", name="me/dogs", licence="cc-by-4.0"))
    assert "- third.csv" in text and "secret" not in text and ": teacher.parquet" in text
    assert "- pool" in text and "- mine.csv" in text and "somebody" not in text


def test_the_head_of_the_card_is_what_the_hub_reads(run: Path, tmp_path: Path) -> None:
    head, _ = card(share.prepare(run, tmp_path / "out", name="me/dogs", licence="cc-by-4.0"))
    assert head["license"] == "cc-by-4.0" and head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "audio-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": 0.75}
    assert result["dataset"]["name"] == "esc10"


def test_the_card_tells_scores_settings_and_front_end_but_no_folders(
    run: Path, tmp_path: Path
) -> None:
    _, text = card(share.prepare(run, tmp_path / "out", name="me/dogs", licence="mit"))
    assert "**75.00%** on 8 clips" in text and "1 classes without a clip" in text
    assert text.index("pipe&#124;and &#96;ticks") < text.index("| dog |") and "never" not in text
    assert "mean -6.5 and standard deviation 5.25" in text and "steps: 7" in text
    assert "somebody" not in text and "/x" not in text


def test_an_encoder_without_a_record_has_a_card_without_results(tmp_path: Path) -> None:
    save(EATModel(EATConfig(**SHAPE)), EATFeatureExtractor(), tmp_path / "encoder")
    folder = share.prepare(tmp_path / "encoder", tmp_path / "out", name="me/e", licence="mit")
    head, text = card(folder)
    assert head["pipeline_tag"] == "feature-extraction" and "model-index" not in head
    assert "## Results" not in text and "## Training" not in text
    assert "`eat finetune` adds one" in text


@pytest.mark.parametrize(
    ("patches", "title", "arxiv"),
    [((16, 16), "CED", "2308.11957"), ((64, 4), "Dasheng", "2406.06992")],
)
def test_the_card_names_the_family_and_the_front_end_of_an_encoder(
    tmp_path: Path, patches: tuple[int, int], title: str, arxiv: str
) -> None:
    bins, frames = patches
    config = CEDConfig(**SHAPE, patch_bins=bins, patch_frames=frames)
    save(CEDModel(config), CEDFeatureExtractor(patch_frames=frames), tmp_path / "encoder")
    folder = share.prepare(tmp_path / "encoder", tmp_path / "out", name="me/e", licence="mit")
    head, text = card(folder)
    assert f"{title} ([arXiv {arxiv}]" in text and f"arxiv:{arxiv}" in head["tags"]
    assert "log-mel (64 bins, every 10 ms, in decibels).\n" in text


def test_the_card_names_the_method_of_the_recipe(tmp_path: Path) -> None:
    save(EATModel(EATConfig(**SHAPE)), EATFeatureExtractor(), tmp_path / "encoder")
    record = json.dumps({"recipe": {"method": "sslam"}})
    (tmp_path / "encoder" / "run.json").write_text(record, encoding="utf-8")
    folder = share.prepare(tmp_path / "encoder", tmp_path / "out", name="me/e", licence="mit")
    assert "SSLAM ([arXiv 2506.12222]" in card(folder)[1]


def test_the_card_s_own_commands_run_on_what_was_shared(run: Path, tmp_path: Path) -> None:
    folder = share.prepare(run, tmp_path / "out", name="me/dogs", licence="mit")
    _, text = card(folder)
    code = text.split("```python\n")[2].split("```")[0].replace('"me/dogs"', f'"{folder}"')
    names: dict[str, Any] = {"clip": torch.randn(16_000)}
    exec(code, names)
    assert names["outputs"].logits.shape == (1, 2)
    assert isinstance(names["model"], EATForAudioClassification)
    assert issubclass(
        AutoModelForAudioClassification._model_mapping[EATConfig], type(names["model"])
    )


class Hub:
    """What the Hub was asked, and what it was given."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.files: set[str] = set()

    def create_repo(self, name: str, **asked: Any) -> str:
        self.asked = {"name": name, **asked}
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **rest: Any) -> None:
        self.files = {path.name for path in Path(folder_path).iterdir()}


def test_the_same_folder_goes_to_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(share, "HfApi", lambda: hub)
    assert share.upload(run, "me/dogs", licence="mit", private=True) == "https://hub/me/dogs"
    assert hub.asked == {"name": "me/dogs", "private": True, "exist_ok": True}
    assert {"README.md", "config.json", "model.safetensors"} <= hub.files


def test_a_hub_that_refuses_gets_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Hub):
        def create_repo(self, name: str, **asked: Any) -> str:
            raise OSError("no token\nand more")

    monkeypatch.setattr(share, "HfApi", Closed)
    with pytest.raises(EatError, match=r"^me/dogs: .* does not take it \(no token\)$"):
        share.upload(run, "me/dogs", licence="mit")


class LoopbackHub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload talks to; keeps the files of the last commit."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://{self.headers['Host']}/me/dogs"
        if self.path.endswith("/repos/create"):
            answer: dict[str, Any] = {"url": here, "name": "me/dogs", "id": "me/dogs"}
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in asked]
            answer = {"files": [mode | {"shouldIgnore": False} for mode in modes]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{here}/commit/1", "commitOid": "1", "success": True}
        else:
            answer = {}
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "me/dogs", "siblings": [], "sha": "0"})

    def _answer(self, told: dict[str, Any]) -> None:
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


PUSH = """
import sys
import eat_audio as eat
from eat_audio.checkpoints.load import load_model_and_features
model, features = load_model_and_features(sys.argv[1])
model.push_to_hub("me/dogs", token="hf_loopback")
features.push_to_hub("me/dogs", token="hf_loopback")
"""


def test_push_to_hub_of_transformers_sends_what_loads_again(run: Path, tmp_path: Path) -> None:
    LoopbackHub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    try:
        subprocess.run(
            [sys.executable, "-c", PUSH, run], env=os.environ | own, check=True, timeout=120
        )
    finally:
        server.shutdown()
        server.server_close()
    sent = tmp_path / "sent"
    sent.mkdir()
    for name, content in LoopbackHub.files.items():
        (sent / name).write_bytes(content)
    (again, features), model = load_model_and_features(sent), load_model(run)
    assert torch.equal(again.model.head.weight, model.model.head.weight)
    assert features.mean == -6.5


@pytest.mark.parametrize("licence", ["", "My Licence", "MIT", "a/b"])
def test_a_licence_that_is_no_word_of_the_hub_is_refused(
    run: Path, tmp_path: Path, licence: str
) -> None:
    with pytest.raises(EatError, match="licence"):
        share.prepare(run, tmp_path / "out", name="me/dogs", licence=licence)


def test_a_folder_that_is_there_is_not_written_into(run: Path) -> None:
    with pytest.raises(EatError, match="exists already"):
        share.prepare(run, run, name="me/dogs", licence="mit")


def test_nothing_from_outside_is_markup_in_the_card(run: Path, tmp_path: Path) -> None:
    hostile = "<script>x</script>\n\n# h ![a](http://b) | `c` ```\x1b[2J" + "y" * 10_000
    row = {"label": hostile, "clips": 1, "accuracy": 0.0}
    (run / "evaluation.json").write_text(json.dumps(SCORES | {"classes": [row]}), encoding="utf-8")
    record = {"data": hostile, "torch": hostile, "recipe": {"note": hostile, "x": [hostile]}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _, text = card(share.prepare(run, tmp_path / "out", name="me/dogs", licence="mit"))
    assert "<script" not in text and "![a]" not in text.split("```yaml")[0] and "\x1b" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| &#60;script")]
    assert line.count("|") == 4 and len(line) < 1000
    assert text.count("```") == 6


@pytest.mark.parametrize("name", ["<b>", "me/dogs\n# x", "a/b/c", "", "me/" + "x" * 200])
def test_a_name_that_the_hub_cannot_have_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(EatError, match="expected a name"):
        share.prepare(run, tmp_path / "out", name=name, licence="mit")


@pytest.mark.parametrize(
    "changes",
    [
        *({"metric": None}, {"metric": ["x"]}, {"metric": "a b"}, {"value": "x"}, {"clips": None}),
        *({"classes": None}, {"classes": [1]}, {"classes": [{"label": "a", "clips": 1}]}),
        *({"without_positive": "1"}, {"classes": [{"label": 3, "clips": 0}]}),
    ],
    ids=str,
)
def test_scores_that_are_none_are_refused(run: Path, tmp_path: Path, changes: Any) -> None:
    (run / "evaluation.json").write_text(json.dumps(SCORES | changes), encoding="utf-8")
    with pytest.raises(EatError, match="holds no scores"):
        share.prepare(run, tmp_path / "out", name="me/dogs", licence="mit")
    assert not (tmp_path / "out").exists()


def test_what_is_shared_has_the_modes_of_the_umask(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = share.prepare(run, tmp_path / "out", name="me/dogs", licence="mit")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}
