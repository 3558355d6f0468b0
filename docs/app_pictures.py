"""Take the pictures of the page: python docs/app_pictures.py RECORDING RUNS VECTORS LABELS.

The page runs with the tagger that ships, in headless Chromium; nothing is drawn by hand. RUNS is a
folder with at least one run; a relative path is shown as it is. VECTORS are of the tagger, too.
"""

import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
COLORS = 64
"""Of a picture: few keep it small."""


def main() -> None:
    """Write the pictures of every view of the page, of the map, and of a question."""
    sys.path.insert(0, str(ROOT / "tests"))
    import eat_audio as eat
    from app.browser import Browser, chromium
    from eat_audio.app.labeling import served_job
    from eat_audio.app.page import served
    from eat_audio.checkpoints import shipped
    from eat_audio.search.index import open_index
    from eat_audio.search.label import LabelJob
    from eat_audio.search.map import draw_map, write_map

    recording, runs, vectors = Path(sys.argv[1]).resolve(), *map(Path, sys.argv[2:4])
    index, labels = open_index(vectors), sys.argv[4]
    summary = shipped.summary(shipped.FOLDER)

    def take(browser: Browser, name: str) -> None:
        browser.js("window.scrollTo(0, 0); document.activeElement.blur()")
        image = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
        image.quantize(COLORS).save(GUIDES / f"app_{name}.png", optimize=True)

    with (
        served(eat.load(), summary=summary, runs=runs, index=index, labels=labels) as address,
        chromium(address) as browser,
    ):
        browser.open(width=1_000, height=1_180)
        browser.drop(recording)
        take(browser, "tags")
        browser.click("Events")
        browser.resize(1_000, 1_120)
        browser.until(lambda: browser.all(".eat-event"))
        take(browser, "events")
        browser.click("Search")
        browser.resize(1_100, 1_000)
        browser.drop(recording, ".eat-search")
        browser.until(lambda: browser.all(".eat-plot") and browser.all(".eat-matches"))
        take(browser, "search")
        browser.click("Training")
        browser.resize(1_000, 820)
        browser.until(lambda: browser.all("figure"))
        take(browser, "training")
        browser.click("Recording")
        browser.click("Tags")
        browser.resize(390, 1_000)
        browser.until(lambda: browser.all(".eat-timeline"))
        take(browser, "phone")
        with TemporaryDirectory() as folder:
            page = Path(folder, "map.html")
            write_map(draw_map(index, labels=labels), index, page, megabytes=0)
            browser.resize(1_100, 700)
            browser.driver.get(page.as_uri())
            take(browser, "map")
            job = LabelJob(index, eat.load(), {"dog": [recording]}, out=Path(folder))
            with served_job(job, budget=30) as address:
                browser.resize(1_000, 560)
                browser.driver.get(address)
                browser.until(lambda: browser.all(".eat-query audio"))
                time.sleep(2)  # until it is faded in
                take(browser, "label")


if __name__ == "__main__":
    main()
