"""The page of a map in a browser: it is used as a person would, without a server."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.browser import Browser, Keys, chromium, needs_browser
from eat_audio.search.map import draw_map, write_map
from search.test_map import blobs, in_folders, index_of, write_tones

pytestmark = needs_browser

PLAYING = "const a = document.querySelector('audio'); return a.paused ? '' : a.getAttribute('src')"
COUNT = 12


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("map")
    vectors, groups_of = blobs(COUNT)
    paths = in_folders(COUNT, groups_of)
    write_tones(folder, paths)
    index = index_of(vectors, paths, folder)
    write_map(draw_map(index), index, folder / "inside.html")
    write_map(draw_map(index), index, folder / "links.html", megabytes=0)
    with chromium((folder / "inside.html").as_uri()) as browser:
        yield browser


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    window.resize(1_000, 900)
    window.driver.get(window.address)
    yield window
    assert window.errors() == []
    assert {url.partition(":")[0] for url in window.requests()} <= {"file", "data"}


def chosen(page: Browser) -> str:
    return page.one(".eat-chosen").text.partition("\n")[0]


def test_a_click_plays_a_point_and_another_one_stops_it(page: Browser) -> None:
    point = page.all("[data-row] use")[0]
    sound = page.js("return arguments[0].parentNode.dataset.sound", point)
    point.click()
    page.until(lambda: page.js(PLAYING) == sound)
    assert chosen(page) == page.js("return arguments[0].parentNode.dataset.name", point)
    point.click()
    page.until(lambda: page.js(PLAYING) == "")


def test_linked_sounds_play_too(page: Browser) -> None:
    page.driver.get(page.address.replace("inside", "links"))
    page.all("[data-row] use")[0].click()
    page.until(lambda: page.js(PLAYING).startswith("rec/"))
    assert page.js("return document.querySelector('audio').error") is None


def test_every_point_is_reached_and_played_with_the_keyboard(page: Browser) -> None:
    page.press(".eat-plot > svg", *[Keys.LEFT] * COUNT)
    names = {chosen(page)}
    for key in [Keys.RIGHT] * COUNT + [Keys.LEFT, Keys.UP, Keys.DOWN] * COUNT:
        page.press(None, key)
        names.add(chosen(page))
    assert len(names) > COUNT / 2
    page.press(None, Keys.ENTER)
    page.until(lambda: page.js(PLAYING))
    page.press(None, Keys.ESCAPE)
    page.until(lambda: page.js(PLAYING) == "")


def test_the_map_is_enlarged_and_shown_whole_again(page: Browser) -> None:
    def view() -> list[float]:
        text = page.one(".eat-plot > svg").get_dom_attribute("viewBox")
        return [float(number) for number in text.split()]

    whole = view()
    page.press(".eat-plot > svg", "+", "+")
    assert view()[2:] == pytest.approx([whole[2] / 4, whole[3] / 4])
    page.press(None, "0")
    assert view() == whole
    page.one("[aria-label='Zoom in']").click()
    assert view()[2] == whole[2] / 2


def test_a_name_of_the_legend_shows_its_points_alone(page: Browser) -> None:
    def shown() -> Any:
        return len(page.all("[data-row]:not(.eat-dim)"))

    button = page.one(".eat-groups button")
    button.click()
    assert shown() == COUNT / 3 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert shown() == COUNT


def test_the_page_has_no_barrier_and_fits_a_phone(page: Browser) -> None:
    assert page.barriers() == []
    page.resize(360, 800)
    assert page.js("return document.documentElement.scrollWidth") <= 360
