"""A headless Chromium that uses the page as a person would."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Keys:
    """Keys, as WebDriver writes them."""

    TAB, ENTER, END, HOME = "\ue004", "\ue007", "\ue010", "\ue011"
    LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"
    ESCAPE = "\ue00c"


AT_HALF = (Keys.END, *[Keys.LEFT] * 10)
"""Keys that set the first threshold of events to 0.5."""
PATIENCE = 60
"""Seconds; a busy machine is slow."""
SWITCHES = (
    "--headless=new",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a microphone that beeps
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
SHOWN = """return [...document.querySelectorAll(arguments[0])].filter(
    one => one.type === "file"
    || one.checkVisibility({visibilityProperty: true}) && !one.closest("[aria-hidden=true]"))"""
PROGRAMS = ("chromium", "chromedriver")


def missing() -> str | None:
    """What a browser test lacks here, if anything."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    modules = [name for name in ("gradio", "selenium") if find_spec(name) is None]
    return f"not installed: {', '.join(programs + modules)}" if programs + modules else None


needs_browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class Browser:
    """A window on the page, and what a person does in it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, *, width: int = 1_000, height: int = 900) -> None:
        """Load the page anew, in a window of that size."""
        self.resize(width, height)
        self.driver.get(self.address)
        self.until(lambda: self.all("input[type=file]"))

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, selector: str) -> list[Any]:
        """The elements that are shown, and inputs for files, which never are."""
        return self.js(SHOWN, selector)

    def one(self, selector: str) -> Any:
        """The first of them, as soon as there is one."""
        return self.until(lambda: self.all(selector))[0]

    def until(self, condition: Callable[[], T]) -> T:
        """Wait until something is there."""
        from selenium.common.exceptions import WebDriverException

        end, reason = time.monotonic() + PATIENCE, ""
        while time.monotonic() < end:
            try:
                if result := condition():
                    return result
            except (WebDriverException, IndexError) as error:  # the page was changing
                reason = str(error)
            time.sleep(0.2)
        text = self.js("return document.body.innerText")
        raise AssertionError(f"not within {PATIENCE} s {reason}; the page is:\n{text}")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, text: str) -> None:
        """Click on the button or the tab that is called so."""

        def clicked() -> bool:
            buttons = [b for b in self.all("button") if b.text.strip() == text]
            buttons[0].click()  # later, if it is not there yet or behind something
            return True

        self.until(clicked)

    def clear(self) -> None:
        """Close the recording that is open."""
        for button in self.all("button[aria-label=Clear]")[:1]:
            button.click()
            self.until(lambda: not self.all(".eat-player, .eat-error"))

    def drop(self, path: Path, view: str = "") -> None:
        """Choose a file, and wait until the page has answered."""
        self.clear()
        self.one(f"{view} input[type=file]").send_keys(str(path))
        self.until(lambda: self.all(".eat-player, .eat-query, .eat-error"))

    def press(self, selector: str | None, *keys: str) -> None:
        """Press keys, in what is selected or where the focus is."""
        from selenium.webdriver import ActionChains

        if selector is not None:
            self.js("arguments[0].focus()", self.one(selector))
        ActionChains(self.driver).send_keys(*keys).perform()

    def write(self, selector: str, text: str) -> None:
        """Replace what is in a field."""
        self.js("arguments[0].select()", self.one(selector))
        self.press(selector, text)

    def table(self) -> list[list[str]]:
        """The rows of the table that is shown."""
        rows = "tr => [...tr.cells].map(cell => cell.innerText.trim())"
        return self.js(
            f"return [...arguments[0].tBodies[0].rows].map({rows})", self.one(".eat-table")
        )

    def seconds(self) -> float:
        """Where the recording is."""
        return self.js("return document.querySelector('.eat-player audio').currentTime")

    def requests(self) -> list[str]:
        """The addresses that the browser has asked for since the last call."""
        messages = [
            json.loads(row["message"])["message"] for row in self.driver.get_log("performance")
        ]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def errors(self) -> list[str]:
        """What the console has complained of since the last call."""
        rows = self.driver.get_log("browser")
        return [row["message"] for row in rows if row["level"] == "SEVERE"]

    def barriers(self) -> list[str]:
        """What axe-core finds serious or worse in what is shown."""
        script = axe()
        if script is None:
            pytest.skip("not installed: axe-core-python")
        self.js(script)
        run = "const done = arguments[0]; axe.run().then(done)"
        findings = self.driver.execute_async_script(run)["violations"]
        return [
            f"{finding['id']}: {finding['help']} ({node['html'][:120]})"
            for finding in findings
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]


def axe() -> str | None:
    """The program that finds barriers, from a package that holds it."""
    for name in ("axe_playwright_python", "axe_core_python"):  # the first has the newer one
        spec = find_spec(name)
        for folder in (spec and spec.submodule_search_locations) or ():
            return (Path(folder) / "axe.min.js").read_text(encoding="utf-8")
    return None


@contextmanager
def chromium(address: str) -> Iterator[Browser]:
    """A browser for the page at an address; it is closed in the end."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(PROGRAMS[0]) or ""
    for switch in (*SWITCHES, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which(PROGRAMS[1]))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver, address)
    finally:
        driver.quit()
