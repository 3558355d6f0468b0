"""Wheel and sdist: what they hold, and that they work in an environment of their own."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow

PACKAGES = Path(pytest.__file__).parents[1]
"""Where torch and the other dependencies are, which are not installed again."""
BUILT = ["eat_audio-*.whl", "eat_audio-*.tar.gz"]


def run(*words: object, cwd: Path) -> str:
    """Run a command that does not know of this repository; return what it printed."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2_000:]}\n{done.stderr[-2_000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, as `make wheel` builds them: the wheel from the sdist."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module", params=BUILT)
def environment(
    request: pytest.FixtureRequest, dist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of the programs of a new environment, in which one of them is installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    (archive,) = dist.glob(request.param)
    run(programs / "python", "-m", "pip", "install", "--no-deps", archive, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(programs / "python", "-c", where, cwd=folder).strip())
    (own / "dependencies.pth").write_text(f"{PACKAGES}\n", encoding="utf-8")
    yield programs


def tracked(folder: str) -> set[str]:
    """Return the files below a folder that git tracks."""
    listed = subprocess.run(
        ["git", "-c", "core.quotepath=off", "ls-files", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git repository")
    return set(listed.stdout.splitlines())


def test_the_wheel_holds_the_package_its_weights_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        names = {f"src/{name}" for name in archive.namelist() if ".dist-info/" not in name}
    assert names == tracked("src/eat_audio")


def test_the_sdist_holds_what_builds_and_tests_it(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("src/eat_audio") <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "Makefile"} <= names
    assert not [name for name in names if name.startswith("tests/golden")]


def test_what_is_installed_is_imported_and_its_packages_fit(environment: Path) -> None:
    python = environment / "python"
    where = run(python, "-c", "import eat_audio; print(eat_audio.__file__)", cwd=environment)
    assert Path(where.strip()).is_relative_to(environment.parent)
    assert "recipes" in run(environment / "eat", "--help", cwd=environment)


def test_a_recording_is_labeled_offline(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dog = ROOT / "src" / "eat_audio" / "weights" / "examples" / "dog.ogg"
    assert "Dog\t" in run(environment / "eat", "predict", dog, "--top-k", "1", cwd=tmp_path)
