"""What the HTTP service promises: the numbers of the commands, and one sentence for the rest."""

import asyncio
import csv
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from conftest import DATA, needs_data
from eat_audio.app.service import Limits, create_app
from eat_audio.app.tasks import Detect, Embed, LoadedClip, Tag, Task
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.batches import DEADLINE, DeadlineExceeded
from eat_audio.inference.detect import Rules, detect
from eat_audio.inference.predictor import Predictor
from inference.predictors import make_encoder, make_predictor, sound, write

NASTY = DATA / "nasty" / "audio"
SMALL = Limits(megabytes=1.0, seconds=30.0, requests=4, timeout=20.0)
WAV = {"content-type": "audio/wav"}


def serving(predictor: Predictor, limits: Limits = SMALL, **options: Any) -> TestClient:
    return TestClient(create_app(predictor, "small", limits), **options)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with serving(predictor) as client:
        yield client


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of several windows, at a rate of its own."""
    path = tmp_path_factory.mktemp("sound") / "dog.wav"
    soundfile.write(path, sound(12.0).numpy(), 22_050)
    return path


def post(client: TestClient, path: str, file: Path) -> Any:
    with file.open("rb") as opened:
        return client.post(path, files={"file": (file.name, opened)})


def detail(response: Any) -> str:
    """The one sentence of a refusal."""
    assert set(response.json()) == {"detail"}
    text = response.json()["detail"]
    assert text.isprintable() and 0 < len(text) < 500
    return text


# ---- the numbers of the commands


def test_tags_are_those_of_the_predictor(client: TestClient, predictor: Predictor, dog: Path):
    answer = post(client, "/tag?top_k=2", dog).json()
    assert answer["predictions"] == [asdict(p) for p in predictor.predict(dog, 2)]
    assert (answer["name"], answer["warnings"]) == ("dog.wav", [])
    assert answer["seconds"] == pytest.approx(12 * 16_000 / 22_050, abs=1e-4)


def test_vectors_are_those_of_the_predictor(client: TestClient, predictor: Predictor, dog: Path):
    clip, expected = (next(predictor.embed_many([dog], level)) for level in ("clip", "frame"))
    assert post(client, "/embed", dog).json()["vectors"] == [clip.tolist()]
    frames = post(client, "/embed?level=frame", dog).json()["vectors"]
    assert frames == expected.tolist()
    twice = post(client, "/embed?level=frame&hop=80", dog).json()["vectors"]
    assert len(twice) in (2 * len(frames), 2 * len(frames) - 1)


def test_events_are_those_of_detect(client: TestClient, predictor: Predictor, dog: Path):
    rules = Rules(on=0.4, off=0.2, median=0.16, hop=0.32, top=2)
    answer = post(client, "/detect?on=0.4&off=0.2&median=0.16&hop=0.32&top=2", dog).json()
    assert answer["events"] == [asdict(event) for event in detect(dog, predictor, rules).events]
    assert answer["events"]


def test_settings_of_events_have_the_defaults_of_the_rules():
    assert Detect().rules() == Rules()


def test_the_body_may_be_the_file_itself(client: TestClient, dog: Path):
    raw = client.post("/tag", content=dog.read_bytes(), headers=WAV).json()
    assert raw["predictions"] == post(client, "/tag", dog).json()["predictions"]
    assert raw["name"] == "the recording"


def test_an_encoder_only_embeds(dog: Path):
    with serving(make_encoder()) as client:
        assert len(post(client, "/embed", dog).json()["vectors"][0]) == 48
        assert "no such path" in detail(post(client, "/tag", dog))
        assert client.get("/health").json()["labels"] == []


def test_recordings_that_share_a_batch_keep_their_own_answers(predictor: Predictor, tmp_path: Path):
    files = [write(tmp_path / f"{n}.wav", sound(1 + n / 2, seed=n)) for n in range(6)]
    answers: dict[int, Any] = {}
    app = create_app(predictor, "small", Limits(requests=100))
    workers = app.state.service.workers
    workers.batch = 8  # as on a GPU
    with TestClient(app) as client:
        holding = threading.Event()
        workers.submit(_Blocking(holding))  # until all wait
        threads = [
            threading.Thread(
                target=lambda n=n, file=file: answers.update({n: post(client, "/tag", file).json()})
            )
            for n, file in enumerate(files)
        ]
        for thread in threads:
            thread.start()
        _until(lambda: workers.queue.qsize() == len(files))
        holding.set()
        for thread in threads:
            thread.join()
    for n, file in enumerate(files):
        assert answers[n]["name"] == file.name
        expected = [asdict(p) for p in predictor.predict(file)]
        assert answers[n]["predictions"] == expected


# ---- refusals


@needs_data
@pytest.mark.parametrize("path", ["/tag", "/detect?hop=0.96"])
def test_hostile_files_get_a_sentence_and_the_service_goes_on(
    client: TestClient, predictor: Predictor, path: str
):
    with (NASTY.parent / "EXPECTED.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["kind"] == "audio"]
    assert len(rows) > 40
    for row in rows:
        response = post(client, path, NASTY.parent / row["file"])
        if row["file"].endswith("one_hour_silence.flac"):
            assert response.status_code == 413 and "30 s" in detail(response)
        elif row["expected"] == "ok":
            assert response.status_code == 200, response.text
        elif response.status_code == 200:
            assert row["expected"] == "ok_or_error"
        else:
            assert response.status_code in (415, 422)
            assert detail(response).startswith(Path(row["file"]).name)
    assert client.get("/health").json()["status"] == "ok"


@needs_data
def test_what_is_cut_is_used_with_a_warning(client: TestClient):
    answer = post(client, "/tag", NASTY / "lying_longer.wav").json()
    assert answer["seconds"] == 0.5 and "claims" in answer["warnings"][0]


@needs_data
@pytest.mark.parametrize(
    ("name", "status"),
    [("text.wav", 415), ("png.wav", 415), ("empty.wav", 422), ("zero_samples.wav", 422)],
)
def test_what_is_no_audio_differs_from_audio_without_sound(client, name, status):
    assert post(client, "/tag", NASTY / name).status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_other_types_of_body_are_refused(client: TestClient, kind: str):
    response = client.post("/tag", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415 and "multipart/form-data" in detail(response)


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"sound": b"RIFF"}},
        {"files": [("file", b"RIFF"), ("file", b"RIFF")]},
        {"files": {"file": b"RIFF"}, "data": {"path": "/etc/passwd"}},
        {"content": b"--", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"data": {"file": "/etc/passwd"}, "files": {"x": b""}},
    ],
)
def test_a_form_without_one_file_is_refused(client: TestClient, form: dict[str, Any]):
    response = client.post("/tag", **form)
    assert response.status_code == 422 and "form" in detail(response)


def test_a_name_is_never_opened_as_a_path(client: TestClient, dog: Path):
    response = client.post("/tag", files={"file": (str(dog), b"no sound")})
    assert response.status_code == 415 and str(dog) in detail(response)
    response = client.post("/tag", files={"file": ("https://example.org/dog.wav", b"")})
    assert response.status_code == 422 and "is empty" in detail(response)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tag?topk=3", "topk: no such setting"),
        ("/tag?top_k=0", "top_k"),
        ("/embed?level=song", "level"),
        ("/embed?hop=80", "a clip has one vector"),
        ("/embed?level=frame&hop=81", "160, 80, 40"),
        ("/detect?on=0.2", "off=0.3"),
        ("/detect?window=1e9", "window"),
        ("/detect?window=0.5", "multiples of 0.16"),
        ("/detect?quiet=nan", "quiet"),
    ],
)
def test_a_setting_that_cannot_be_is_named(client: TestClient, dog: Path, path: str, words: str):
    response = post(client, path, dog)
    assert response.status_code == 422 and words in detail(response)


@pytest.mark.parametrize("method", ["get", "put"])
def test_other_methods_and_paths_are_named(client: TestClient, method: str):
    response = getattr(client, method)("/tag")
    assert response.status_code == 405 and "POST" in detail(response)
    response = getattr(client, method)("/nothing")
    assert response.status_code == 404 and "/nothing" in detail(response)


async def streamed(app: Any, chunk: bytes, pause: float = 0.0) -> tuple[int, str, int]:
    """Status and text of the answer to a POST without an end, and the bytes that it took."""
    taken, sent = 0, []
    headers = [(b"content-type", b"audio/wav")]
    scope = {"type": "http", "method": "POST", "path": "/tag", "query_string": b""}

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += len(chunk)
        assert taken < 10_000_000
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({**scope, "headers": headers}, receive, send)
    return sent[0]["status"], sent[1]["body"].decode(), taken


def test_no_more_bytes_are_taken_than_twice_the_limit(client: TestClient):
    status, text, taken = asyncio.run(streamed(client.app, bytes(100_000)))
    assert status == 413 and "1,000,000 bytes" in text and taken <= 2_100_000


def test_a_larger_upload_than_the_limit_is_refused(client: TestClient):
    for size in (1_000_001, 3_000_000):
        response = client.post("/tag", content=bytes(size), headers=WAV)
        assert response.status_code == 413 and "1,000,000 bytes" in detail(response)
    large = {"file": ("a.wav", bytes(1_000_001))}
    assert client.post("/tag", files=large).status_code == 413


def test_a_longer_recording_than_the_limit_is_refused(client: TestClient, tmp_path: Path):
    for seconds, status in ((30.0, 200), (30.1, 413)):
        soundfile.write(tmp_path / "long.flac", torch.zeros(round(8_000 * seconds)).numpy(), 8_000)
        assert post(client, "/tag", tmp_path / "long.flac").status_code == status


def test_too_many_at_a_time_are_sent_away_and_may_come_again(predictor: Predictor, dog: Path):
    app = create_app(predictor, "small", Limits(requests=1))
    workers = app.state.service.workers
    with TestClient(app) as client:
        holding = threading.Event()
        workers.submit(_Blocking(holding))
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(post(client, "/tag", dog)))
        first.start()
        _until(lambda: app.state.service.active == 1)
        response = post(client, "/tag", dog)
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert "try again" in detail(response)
        assert client.get("/health").status_code == 200
        holding.set()
        first.join()
        assert answers[0].status_code == 200
        assert post(client, "/tag", dog).status_code == 200


def test_a_request_that_takes_too_long_is_answered_and_dropped(predictor: Predictor, dog: Path):
    app = create_app(predictor, "small", Limits(timeout=0.5))
    with TestClient(app) as client:
        holding = threading.Event()
        app.state.service.workers.submit(_Blocking(holding))
        response = post(client, "/tag", dog)
        assert response.status_code == 504 and detail(response).startswith("dog.wav: no answer")
        holding.set()
        app.state.service.limits = Limits()
        assert post(client, "/tag", dog).status_code == 200


@pytest.mark.parametrize("task", [Tag(), Embed(), Detect(hop=0.01)])
def test_a_computation_ends_at_its_deadline(predictor: Predictor, task: Task):
    token = DEADLINE.set(time.monotonic() - 1)
    try:
        with pytest.raises(DeadlineExceeded):
            list(task.answers(predictor, [LoadedClip("a", sound(5.0), [])]))
    finally:
        DEADLINE.reset(token)


def test_a_slow_upload_ends_at_its_deadline(predictor: Predictor):
    app = create_app(predictor, "small", Limits(timeout=0.1))
    with TestClient(app):
        status, text, _ = asyncio.run(streamed(app, b"R", pause=0.01))
    assert status == 408 and "the upload took more than 0.1 s" in text


def test_a_bug_is_no_sentence_of_the_user(predictor: Predictor, dog: Path, monkeypatch):
    monkeypatch.setattr("eat_audio.app.tasks.Tag.answers", lambda *_: 1 / 0)
    with serving(predictor, raise_server_exceptions=False) as client:
        response = post(client, "/tag", dog)
        assert response.status_code == 500 and "traceback" in detail(response)
        assert post(client, "/embed", dog).status_code == 200


def test_an_error_of_one_recording_is_not_that_of_others(predictor: Predictor, dog, monkeypatch):
    def answers(*_: Any) -> Iterator[AudioError]:
        yield AudioError("dog.wav: is odd")

    monkeypatch.setattr("eat_audio.app.tasks.Tag.answers", answers)
    with serving(predictor) as client:
        response = post(client, "/tag", dog)
        assert response.status_code == 422 and detail(response) == "dog.wav: is odd"


@pytest.mark.parametrize("name", ["megabytes", "seconds", "requests", "timeout"])
def test_limits_are_more_than_nothing(name: str):
    with pytest.raises(SettingError, match=f"{name}=0: expected more than 0"):
        Limits(**{name: 0})


# ---- what others read


def test_requests_are_counted(predictor: Predictor, dog: Path):
    with serving(predictor) as client:
        for path in ("/tag", "/tag", "/nothing", "/nothing-else"):
            post(client, path, dog)
        text = client.get("/metrics").text
    assert 'eat_requests_total{path="/tag",status="200"} 2.0' in text
    assert 'eat_requests_total{path="other",status="404"} 2.0' in text
    assert 'eat_request_seconds_count{path="/tag"} 2.0' in text
    assert "eat_recordings_active 0.0" in text and "/nothing" not in text


def test_health_names_the_model_and_the_limits(client: TestClient):
    health = client.get("/health").json()
    assert health["model"] == "small" and health["labels"] == ["cat", "dog", "owl"]
    assert health["limits"] == asdict(SMALL)


def test_no_page_of_the_service_loads_from_elsewhere(client: TestClient):
    for path in ("/docs", "/redoc", "/"):
        assert client.get(path).status_code == 404


class _Blocking:
    """A job that keeps a thread until an event."""

    def __init__(self, event: threading.Event) -> None:
        self.answer = self
        self.upload = self.file = self
        self.event = event

    def set_running_or_notify_cancel(self) -> bool:
        self.event.wait(20)
        return False

    def close(self) -> None:
        pass

    def cancelled(self) -> bool:
        return True


def _until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
