"""The workflows of GitHub: what they run exists, and a release takes no password."""

import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from conftest import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="no check-jsonschema here")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_fits_the_schema_of_github(file) -> None:
    words = ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_jobs_have_limits_and_use_versions_of_actions_and_targets_that_exist(file) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    jobs = workflow(file.name)["jobs"]
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60
        assert set([job.get("needs", "")]) <= {"", *jobs}
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@" in step.get("uses", "@")
            if step.get("run", "").startswith("make "):
                words = [word for word in step["run"].split()[1:] if "=" not in word]
                assert set(words) <= set(targets)


def test_every_python_of_the_classifiers_is_tested_on_three_systems() -> None:
    matrix = workflow("ci.yml")["jobs"]["platforms"]["strategy"]["matrix"]
    names = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert matrix["python"] == names and PROJECT["requires-python"] == f">={names[0]}"
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_a_release_is_published_by_trust_alone() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text and "password" not in text.split("\n", 1)[1]
    release = workflow("release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as a truth value
    assert release["permissions"] == {"contents": "read"}
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"]["name"]
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "permissions" not in release["jobs"]["build"]
