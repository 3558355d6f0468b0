"""The page in the browser: tags and events of a recording, similar ones, curves of a training.

It is served on this machine alone, and requests nothing from others: no fonts, no analytics, and a
Content-Security-Policy that forbids the browser to. What a visitor opens is in the session of that
visitor only.
"""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from eat_audio.app.analysis import Analysis, Limits, analyze
from eat_audio.app.similar import Query, find_similar, query_of_row, query_of_upload
from eat_audio.app.views import (
    events_view,
    find_runs,
    log_state,
    matches_view,
    notice,
    player,
    query_view,
    run_view,
    tags_view,
)
from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import EatError, SettingError
from eat_audio.inference.detect import Rules
from eat_audio.inference.predictor import Predictor
from eat_audio.search import map as map_module
from eat_audio.search.index import Index
from eat_audio.search.map import draw_map, map_view

ADDRESS = "127.0.0.1"
PORTS = range(7860, 7960)
QUEUE = 32
"""Recordings that wait at most; one is computed on at a time."""
FORGOTTEN = 3_600
"""Seconds after which what a visitor left is removed."""
REFRESH = 10.0
"""Seconds between two readings of a run's log."""
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
"""What a browser may load: from this server only (gradio has inline scripts and styles)."""
DEFAULTS = Rules()
NOTHING = "<p>No recording is open.</p>"
NO_VECTORS = (
    "No vectors to search: eat embed RECORDINGS -o vectors.parquet makes some, and eat app "
    "--vectors vectors.parquet opens them."
)
NO_QUERY = "<p>Choose a point of the map, a row, or a recording: the most similar ones appear.</p>"
MAP_WAIT = "<p>The map is being drawn. It takes some seconds, of thousands of vectors a minute.</p>"
RESULTS = 12
COLORS = "#eef7f8 #d5ebee #a9d5db #74b9c3 #3f96a4 #146c7c #115d6b #0f505c #0d434d #0b3740 #072429"
"""Of the theme, from light to dark: those of the reports."""


class _OnlyFromHere:
    """ASGI middleware that adds the headers by which browsers load from this server only."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and its answer with the headers."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)


@contextmanager
def served(
    predictor: Predictor,
    *,
    summary: str,
    runs: Path,
    index: Index | None = None,
    labels: str | None = None,
    port: int | None = None,
    limits: Limits | None = None,
    refresh: float = REFRESH,
) -> Iterator[str]:
    """Serve the page on this machine while the context lasts.

    Args:
        predictor: A classifier.
        summary: What the page says of the model.
        runs: A folder with runs to watch.
        index: Vectors to search, which this model made.
        labels: Colors of their map, see `draw_map`.
        port: Where to listen; None: the first free one from 7860 on.
        limits: How large a recording may be.
        refresh: Seconds between two readings of a run's log.

    Yields:
        The address.

    Raises:
        SettingError: Gradio is not installed, or the port is taken.
        DataError: Another model made the vectors.
    """
    limits = limits or Limits()
    if index is not None:
        index.embed(predictor, torch.zeros(SAMPLE_RATE))
    views = {
        "Recording": partial(_recording_view, predictor, limits),
        "Search": partial(_search_view, index, labels, predictor, limits),
        "Training": partial(_training_view, runs, refresh),
    }
    introduction = (
        f"Drop a recording of up to {limits.seconds / 60:.2g} minutes and {limits.megabytes} MB, "
        "or record one: its labels, over time. It stays on this machine."
    )
    with served_views(
        views, introduction, f"Model: {summary}", limits=limits, port=port
    ) as address:
        yield address


@contextmanager
def served_views(
    views: Mapping[str, Callable[[Any], None]],
    introduction: str,
    note: str,
    *,
    limits: Limits | None = None,
    port: int | None = None,
) -> Iterator[str]:
    """Serve a page of views, each in a tab of its name; see `served`."""
    if find_spec("gradio") is None:
        raise SettingError("the page needs gradio; install it (pip install 'eat-audio[app]')")
    port = _free_port(port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="eat-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads
        page = build(views, introduction, note)
        try:
            yield _launch(page, port, limits or Limits())
        finally:
            page.close(verbose=False)


def _free_port(port: int | None) -> int:
    """Return a port that can be listened on: this one, or the first free one of `PORTS`."""
    reason = ""
    for candidate in PORTS if port is None else [port]:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((ADDRESS, candidate))
                return candidate
            except OSError as error:
                reason = error.strerror or ""
    raise SettingError(f"port={port or PORTS}: cannot be listened on ({reason})")


def _launch(page: Any, port: int, limits: Limits) -> str:
    """Start a server of the page in a thread; return its address."""
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    folders = Path(__file__).parent, Path(map_module.__file__).parent
    css, script = (
        "\n".join(
            (folder / f"{stem}.{kind}").read_text(encoding="utf-8")
            for folder, stem in zip(folders, ("page", "map"), strict=True)
        )
        for kind in ("css", "js")
    )
    middleware = [
        # pages of other names that lead to this address are not answered
        Middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost"]),
        Middleware(_OnlyFromHere),
    ]
    _, address, _ = page.queue(max_size=QUEUE).launch(
        server_name=ADDRESS,
        server_port=port,
        app_kwargs={"middleware": middleware},
        max_file_size=limits.megabytes * 2**20,
        theme=gradio.themes.Base(
            primary_hue=gradio.themes.Color(*COLORS.split()),
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=css,
        head=f"<script>{script}</script>",
        footer_links=[],
        run_history=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    return address


def build(views: Mapping[str, Callable[[Any], None]], introduction: str, note: str) -> Any:
    """Return the page as gradio's blocks; each view is added to a tab of its name."""
    import gradio

    with gradio.Blocks(
        title="eat-audio", analytics_enabled=False, delete_cache=(FORGOTTEN, FORGOTTEN)
    ) as page:
        gradio.Markdown(f"# eat-audio\n{introduction}")
        gradio.HTML(notice([note]))
        with gradio.Tabs():
            for name, add_view in views.items():
                with gradio.Tab(name) as tab:
                    add_view(tab)
    refuse_addresses(page)
    return page


def _recording_view(predictor: Predictor, limits: Limits, tab: Any) -> None:
    """Add the views of tags and events, and the ways to open a recording."""
    import gradio

    analysis = gradio.State(None, time_to_live=FORGOTTEN)
    with gradio.Row():
        file = gradio.File(label="Recording", type="filepath", height=150)
        microphone = gradio.Audio(
            label="Microphone", sources=["microphone"], type="filepath", buttons=[]
        )
    message, sound = gradio.HTML(), gradio.HTML()
    with gradio.Tabs():
        with gradio.Tab("Tags"):
            tags = gradio.HTML(NOTHING)
        with gradio.Tab("Events"):
            with gradio.Row():
                sliders = [
                    gradio.Slider(0.05, 1, DEFAULTS.on, step=0.05, label="An event reaches"),
                    gradio.Slider(0.05, 1, DEFAULTS.off, step=0.05, label="It ends below"),
                    gradio.Slider(0, 5, DEFAULTS.shortest, step=0.1, label="Shortest (s)"),
                ]
            events = gradio.HTML(NOTHING)

    def show(path: str | None, on: float, off: float, shortest: float) -> tuple[Any, ...]:
        empty = None, "", NOTHING, NOTHING
        if path is None:
            return "", *empty
        name = Path(path).name
        try:
            rules = Rules(on=on, off=off, shortest=shortest)
            result = analyze(Path(path), predictor, name=name, rules=rules, limits=limits)
        except EatError as error:
            return notice(str(error).splitlines(), "error"), *empty
        shown = player(result), tags_view(result, rules), events_view(result, result.detection)
        return notice(result.warnings, "warning") if result.warnings else "", result, *shown

    def change(result: Analysis | None, on: float, off: float, shortest: float) -> tuple[str, str]:
        if result is None:
            return "", NOTHING
        try:
            rules = Rules(on=on, off=off, shortest=shortest)
        except EatError as error:
            return notice([str(error)], "error"), ""
        return "", events_view(result, result.events(rules))

    outputs = [message, analysis, sound, tags, events]
    options: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    options["show_progress_on"] = tags
    file.change(show, [file, *sliders], outputs, **options)
    microphone.stop_recording(show, [microphone, *sliders], outputs, **options)
    microphone.clear(lambda: ("", None, "", NOTHING, NOTHING), None, outputs)
    for slider in sliders:
        slider.change(change, [analysis, *sliders], [message, events], trigger_mode="always_last")


def _search_view(
    index: Index | None, labels: str | None, predictor: Predictor, limits: Limits, tab: Any
) -> None:
    """Add the view of similar sounds and the map, which is drawn when its tab is first opened."""
    import gradio

    if index is None:
        gradio.HTML(notice([NO_VECTORS]))
        return
    query, drawn = gradio.State(None, time_to_live=FORGOTTEN), gradio.State(False)
    with gradio.Row(elem_classes="eat-search"):
        file = gradio.File(label="Recording to search with", type="filepath", height=150)
        with gradio.Column():
            row = gradio.Textbox(
                label=f"Row of {index.place.name}, 0 to {len(index) - 1:,}",
                max_lines=1,
                elem_id="eat-row",
            )
            count = gradio.Slider(4, 48, RESULTS, step=4, label="Results")
    message = gradio.HTML()
    with gradio.Row():
        with gradio.Column(scale=5, min_width=340):
            points = gradio.HTML(MAP_WAIT)
        with gradio.Column(scale=4, min_width=340):
            sound, matches = gradio.HTML(), gradio.HTML(NO_QUERY)

    def answer(find_query: Callable[[], Query], count: int) -> tuple[Any, ...]:
        try:
            result = find_query()
            similar = matches_view(find_similar(index, result, count))
        except EatError as error:
            return notice(str(error).splitlines(), "error"), None, "", NO_QUERY
        return "", result, query_view(result), similar

    def search_upload(path: str | None, count: int) -> Any:
        if path is None:
            return [gradio.skip()] * 5
        options: dict[str, Any] = {"name": Path(path).name, "limits": limits}
        return *answer(
            partial(query_of_upload, Path(path), index, predictor, **options), count
        ), None

    def search_row(row: str | None, count: int) -> Any:
        if not row:
            return [gradio.skip()] * 5
        return *answer(partial(query_of_row, index, row), count), None

    def search_again(before: Query | None, count: int) -> Any:
        return gradio.skip() if before is None else matches_view(find_similar(index, before, count))

    map_html = cache(lambda: map_view(draw_map(index, labels=labels)))

    def show_map(before: bool) -> Any:
        if before:
            return gradio.skip(), True
        try:
            return map_html(), True
        except EatError as error:
            return notice(str(error).splitlines(), "error"), False

    outputs = [message, query, sound, matches]
    options: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    options["show_progress_on"] = matches
    file.change(search_upload, [file, count], [*outputs, row], **options)
    row.change(search_row, [row, count], [*outputs, file], trigger_mode="always_last", **options)
    count.change(search_again, [query, count], matches, trigger_mode="always_last", **options)
    tab.select(show_map, drawn, [points, drawn], concurrency_id="map", concurrency_limit=1)


def _training_view(runs: Path, refresh: float, tab: Any) -> None:
    """Add the view of a run's curves, which is read again while its tab is open."""
    import gradio

    choice = gradio.Dropdown([], label=f"Run in {runs}", interactive=True)
    shown_state = gradio.State(None)
    curves = gradio.HTML(elem_classes="eat-run")
    timer = gradio.Timer(refresh)

    def list_runs(name: str | None) -> Any:
        names = find_runs(runs)
        chosen = name if name in names else next(iter(names), None)
        return gradio.Dropdown(names, value=chosen)

    def show(name: str | None, before: Any) -> tuple[Any, Any]:
        names = find_runs(runs)
        if not names:
            text = f"{runs}: no runs in it; `eat pretrain` and `eat finetune` with --out make some"
            return notice([text]), None
        if name not in names:
            return (gradio.skip(), before) if name is None else (notice([f"{name}: no run"]), None)
        state = name, log_state(runs / name)
        if state == before:
            return gradio.skip(), before
        try:
            return run_view(runs / name, name), state
        except EatError as error:
            return notice([str(error)], "error"), state

    tab.select(list_runs, choice, choice, show_progress="hidden")
    for event in (choice.change, timer.tick, tab.select):
        event(show, [choice, shown_state], [curves, shown_state], show_progress="hidden")


def refuse_addresses(page: Any) -> None:
    """Make the server read what visitors upload, and never an address that a request names."""

    def checked(move: Callable[..., Any]) -> Callable[..., Any]:
        async def only_files(path: Any) -> Any:
            if path is not None and "://" in str(path):
                raise ValueError("an address was given; expected a file that was uploaded")
            return await move(path)

        return only_files

    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = checked(block.async_move_resource_to_block_cache)


def wait() -> None:
    """Return when the user ends the command."""
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
