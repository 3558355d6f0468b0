"""The page about data shows every layout, and explains every line of the report."""

import re
import shlex

from conftest import ROOT

PAGE = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def test_every_layout_is_on_the_page() -> None:
    kinds = {words[3] for words in COMMANDS if words[1:3] == ["data", "prepare"]}
    assert kinds == {"audioset", "esc50", "speech-commands", "folder"}


def test_every_line_of_the_report_is_explained() -> None:
    from eat_audio.data.validate import Report

    empty = dict.fromkeys(Report.__dataclass_fields__, [])
    report = Report(**(empty | {"unknown_labels": {}}))  # type: ignore[arg-type]
    for name in report.findings():
        assert name.split(",")[0].lower() in PAGE.lower(), name
