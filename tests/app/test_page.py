"""The page in a browser: each view is used as a person would.

One server and one browser serve all of these tests, and what they share is loaded when needed.
"""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import soundfile

import eat_audio as eat
from app import server
from app.browser import AT_HALF, Browser, Keys, chromium, needs_browser
from app.server import LIMITS
from conftest import DATA, needs_data
from conftest import eat as run_eat
from eat_audio.app.analysis import analyze
from eat_audio.app.page import refuse_addresses, served
from eat_audio.app.similar import find_similar, query_of_upload
from eat_audio.errors import AudioError, DataError, SettingError
from eat_audio.inference.detect import Rules, as_csv, as_label_track, detect
from eat_audio.inference.embed import embed_files
from eat_audio.search.index import Index, open_index
from integrations.small_models import write_model

LOGGED = {"step": 50, "train/loss": 0.75}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, one that is too large, and a run that trains."""
    folder = tmp_path_factory.mktemp("page")
    time = np.arange(48_000) / 16_000
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, len(time))
    soundfile.write(folder / "noise.wav", noise * (time > 1), 16_000)
    soundfile.write(folder / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 16_000)
    (folder / "large.wav").write_bytes(bytes(2**20 + 1))
    for n in range(6):
        file = folder / "clips" / ("high" if n > 2 else "low") / f"{n}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, 0.3 * np.sin(np.pi * 300 * (n + 1) * time[:16_000]), 16_000)
    (folder / "run").mkdir()
    record = {"recipe": {"method": "eat", "steps": 100}}
    (folder / "run" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "run" / "log.jsonl").write_text(json.dumps(LOGGED) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Any:
    return eat.load(write_model(folder / "model", blocks=1), device="cpu")


@pytest.fixture(scope="module")
def index(folder: Path, predictor: Any) -> Index:
    embed_files([folder / "clips"], predictor, folder / "vectors.parquet")
    return open_index(folder / "vectors.parquet")


@pytest.fixture(scope="module")
def address(folder: Path, index: Index) -> Iterator[str]:
    if find_spec("gradio") is None:
        pytest.skip("not installed: gradio")
    places = [str(place) for place in (folder / "model", folder, index.place)]
    command = [sys.executable, server.__file__, *places]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def window(address: str) -> Iterator[Browser]:
    with chromium(address) as browser:
        browser.open()
        yield browser


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The page as it was left, without a recording; what went wrong is reported in the end."""
    window.click("Recording")
    window.clear()
    window.click("Tags")
    yield window
    outside = [url for url in window.requests() if not url.startswith((window.address, *LOCAL))]
    assert outside == [] and window.errors() == []


VIEWS = ("Tags", "Events", "Search", "Training")
LOCAL = ("data:", "blob:", "chrome:", "about:")


@needs_browser
def test_a_recording_is_tagged_and_played_from_a_click_on_the_timeline(page, folder, predictor):
    page.drop(folder / "noise.wav")
    expected = [[p.label, f"{p.score:.3f}", ""] for p in predictor.predict(folder / "noise.wav")]
    assert page.table() == expected
    pictures = [image.get_attribute("alt") for image in page.all(".eat-lane img")]
    assert pictures[0].startswith("Spectrogram of noise.wav")
    assert {text.partition(" over time")[0] for text in pictures[1:]} == set(predictor.labels)
    slider = page.one(".eat-seek")
    slider.click()  # in its middle
    assert page.until(page.seconds) >= 1.49
    assert page.js("return document.querySelector('.eat-player audio').paused") is False


@needs_browser
def test_events_are_those_of_detect_and_can_be_downloaded(page, folder, predictor):
    page.drop(folder / "noise.wav")
    page.click("Events")
    expected = detect(folder / "noise.wav", predictor)
    rows = [
        [e.label, f"{e.onset:.2f} s", f"{e.offset:.2f} s", f"{e.score:.3f}", "play"]
        for e in expected.events
    ]
    assert page.table() == rows != []
    links = {link.get_attribute("download"): link for link in page.all(".eat-files a")}
    files = {name: content(link) for name, link in links.items()}
    assert files == {"noise.csv": as_csv(expected), "noise.txt": as_label_track(expected)}
    page.one("[data-play]").click()
    assert page.until(page.seconds) >= expected.events[0].onset


def content(link: Any) -> str:
    _, _, encoded = link.get_attribute("href").partition("base64,")
    return base64.b64decode(encoded).decode()


@needs_browser
def test_everything_is_done_with_the_keyboard(page, folder, predictor):
    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.press(None, Keys.TAB)
            if page.js("return document.activeElement.matches(arguments[0])", selector):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    tab_to("button[aria-label*='upload']")
    page.drop(folder / "noise.wav")  # the dialog for files is the system's
    tab_to(".eat-seek")
    page.press(None, Keys.END, Keys.LEFT)
    assert 0 < page.seconds() < 3
    page.press(None, Keys.HOME)
    assert page.seconds() == 0
    page.press(None, Keys.ENTER)
    page.until(page.seconds)
    page.press(None, Keys.ENTER)
    page.click("Events")
    before = page.table()
    page.press("input[type=range]", Keys.END)  # no event reaches 1
    page.until(lambda: "No event" in page.one("body").text)
    page.press("input[type=range]", *AT_HALF)
    page.until(lambda: page.all(".eat-table"))
    assert page.table() == before


@needs_browser
def test_thresholds_that_contradict_each_other_are_refused(page, folder):
    page.drop(folder / "noise.wav")
    page.click("Events")
    page.press("input[type=range]", Keys.HOME)
    page.until(lambda: "expected 0 < off <= on <= 1" in page.one(".eat-error").text)
    page.press("input[type=range]", *AT_HALF)
    page.until(lambda: not page.all(".eat-error"))


@needs_browser
def test_a_recording_of_the_microphone_is_tagged(page):
    page.click("Record")
    page.until(lambda: re.search(r"0:(0[1-9]|[1-5]\d)", page.one("body").text))
    page.click("Stop")
    page.until(lambda: page.all(".eat-player"))
    assert len(page.table()) == 3


@needs_browser
@needs_data
def test_a_hostile_file_is_refused_with_its_sentence(page, predictor):
    for name in ("text.wav", "zero_samples.wav", "one_hour_silence.flac"):
        path = DATA / "nasty" / "audio" / name
        page.drop(path)
        with pytest.raises(AudioError) as error:
            analyze(path, predictor, name=name, rules=Rules(), limits=LIMITS)
        assert page.one(".eat-error").text == str(error.value)
        assert page.all(".eat-player") == []


@needs_browser
def test_a_file_that_is_too_large_is_refused(page, folder):
    page.one("input[type=file]").send_keys(str(folder / "large.wav"))
    page.until(lambda: "exceed" in page.one("body").text)
    assert page.all(".eat-player") == []
    page.open()


ROW = "#eat-row :is(input, textarea)"


def matches(page: Browser) -> list[str]:
    return [one.text for one in page.all(".eat-match")]


def until_searched(page: Browser, index: Index, name: str) -> None:
    """Wait until the page shows the matches of a recording of the index: all others."""
    page.until(lambda: page.one(".eat-query h2").text == name)
    others = set(index.paths) - {name}
    page.until(lambda: {text.partition(" ")[2] for text in matches(page)} == others)


@needs_browser
def test_the_most_similar_sounds_of_a_recording_are_found(page, folder, predictor, index):
    page.click("Search")
    page.drop(folder / "tone.wav", ".eat-search")
    query = query_of_upload(folder / "tone.wav", index, predictor, name="tone.wav", limits=LIMITS)
    expected = [f"{match.score:.3f} {match.name}" for match in find_similar(index, query, 12)]
    page.until(lambda: matches(page) == expected)
    assert len(expected) == len(index)
    assert page.one(".eat-query h2").text == "tone.wav"
    assert len(page.all(".eat-matches audio")) == len(page.all(".eat-matches img")) == len(index)


@needs_browser
def test_a_point_of_the_map_plays_and_is_searched_with_by_keys(page, index):
    page.click("Search")
    page.until(lambda: [one.text for one in page.all(".eat-groups span")] == ["high", "low"])
    page.press(".eat-plot > svg", Keys.LEFT, Keys.LEFT, Keys.ENTER)
    name = page.one(".eat-chosen").text.partition("\n")[0]
    until_searched(page, index, name)
    page.until(lambda: page.js("return document.querySelector('.eat-query audio').currentTime"))


@needs_browser
def test_a_match_is_searched_with_in_turn(page, index):
    page.click("Search")
    page.write(ROW, "3")
    until_searched(page, index, index.paths[3])
    best = matches(page)[0].partition(" ")[2]
    page.one("[data-similar]").click()
    until_searched(page, index, best)
    row = page.js("return document.querySelector(arguments[0]).value", ROW)
    assert index.paths[int(row)] == best


@needs_browser
def test_what_cannot_be_searched_with_is_refused_with_its_sentence(page, folder):
    (folder / "text.wav").write_text("no sound", encoding="utf-8")
    page.click("Search")
    page.drop(folder / "text.wav", ".eat-search")
    page.until(lambda: "text.wav: " in page.one(".eat-error").text)
    page.write(ROW, "99")
    page.until(lambda: "has the rows 0 to 5" in page.one(".eat-error").text)


@needs_browser
def test_curves_follow_a_run_that_trains(page, folder):
    page.click("Training")
    page.until(lambda: "50 of 100" in page.one("dl").text)
    assert [one.text for one in page.all("figure h3")] == ["Loss"]
    with (folder / "run" / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(LOGGED | {"step": 75, "train/loss": 0.5}) + "\n")
    page.until(lambda: "75 of 100" in page.one("dl").text)
    assert "0.5" in page.one(".eat-legend").text


@needs_browser
def test_two_visitors_do_not_mix(page, folder, predictor):
    page.drop(folder / "noise.wav")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    page.drop(folder / "tone.wav")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.click("Events")
    page.press("input[type=range]", *AT_HALF, Keys.LEFT, Keys.LEFT)
    expected = detect(folder / "noise.wav", predictor, Rules(on=0.4)).events
    page.until(lambda: [row[1] for row in page.table()] == [f"{e.onset:.2f} s" for e in expected])
    assert page.one(".eat-player h2").text.startswith("noise.wav")
    page.open()


@needs_browser
def test_no_view_has_a_barrier(page, folder):
    page.drop(folder / "noise.wav")
    for view in VIEWS:
        page.click(view)
        page.until(lambda: page.all(".eat-timeline, .eat-plot, figure"))
        assert page.barriers() == [], view


@needs_browser
def test_no_view_is_wider_than_a_phone(page, folder):
    page.resize(360, 800)
    page.drop(folder / "noise.wav")
    for view in VIEWS:
        page.click(view)
        page.until(lambda: page.all(".eat-timeline, .eat-plot, figure"))
        assert page.js("return document.documentElement.scrollWidth") <= 360, view
    page.resize(1_000, 900)


@needs_browser
def test_browsers_may_not_ask_another_server(page):
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", e => done(e.blockedURI), {once: true});
        fetch("https://example.org/").catch(() => {});
    """
    assert page.driver.execute_async_script(script).startswith("https://example.org")
    assert all("Content Security Policy" in message for message in page.errors())


def test_the_server_reads_no_file_but_uploads(address):
    call = f"{address}gradio_api/call/show"
    file = {"path": str(Path(__file__).resolve()), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, 0.5, 0.3, 0]}).encode()
    request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=30) as answer:
        assert answer.read().decode().startswith("event: error")


def test_the_server_fetches_no_address():
    async def move(path: Any) -> Any:
        return path

    block: Any = SimpleNamespace(async_move_resource_to_block_cache=move)
    refuse_addresses(SimpleNamespace(blocks={1: block}))
    assert asyncio.run(block.async_move_resource_to_block_cache("dog.wav")) == "dog.wav"
    for address in ("https://example.org/dog.wav", "file:///etc/hostname"):
        with pytest.raises(ValueError, match="an address was given"):
            asyncio.run(block.async_move_resource_to_block_cache(address))


def test_other_names_of_this_machine_are_not_answered(address):
    request = urllib.request.Request(address, headers={"Host": "example.org"})
    with pytest.raises(HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=30)


def test_a_port_that_is_taken_is_one_sentence(address, predictor, folder):
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(SettingError, match=f"^port={port}: "):
        with served(predictor, summary="", runs=folder, port=port):
            pass


def test_vectors_of_another_model_are_refused_at_the_start(folder, index):
    other = eat.load(write_model(folder / "other", blocks=2), device="cpu")
    with pytest.raises(DataError, match="expected the model that made them"):
        with served(other, summary="", runs=folder, index=index):
            pass


def test_without_gradio_the_extra_is_named(monkeypatch, capsys, folder, predictor):
    monkeypatch.setattr("eat_audio.app.page.find_spec", lambda name: None)
    code, out, err = run_eat(monkeypatch, capsys, "app", "--model", folder / "model")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "eat: the page needs gradio; install it (pip install 'eat-audio[app]')"
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is another signal there")
def test_the_command_prints_the_address_answers_and_ends_with_ctrl_c(folder):
    if find_spec("gradio") is None:
        pytest.skip("not installed: gradio")
    command = [sys.executable, "-m", "eat_audio", "app", "--data", str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().partition(" ")[0]
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                page = answer.read().decode()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "the tagger that ships with eat-audio" in page
    assert process.returncode == 0 and len(err.splitlines()) == 1, err
