"""The Dockerfile: checked by hadolint, and its steps replayed without Docker.

A Debian of the same Python stands for the base image: debootstrap makes its root, and every RUN is
executed in a chroot there. The packages of this environment are mounted into it, so that torch is
not downloaded again; pip installs eat-audio itself.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from conftest import ROOT

DOCKERFILE = ROOT / "Dockerfile"
DEBIAN = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Releases by their Python."""
PACKAGES = Path(pytest.__file__).parents[1]


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and what stands behind them."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


STEPS = instructions(DOCKERFILE.read_text(encoding="utf-8"))


def last(name: str) -> str:
    """Return what stands behind the last instruction of that name."""
    return [rest for word, rest in STEPS if word == name][-1]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in STEPS:
        if word == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.removeprefix('./')}" in ignored


class Image:
    """The folder of a root, in which the instructions are carried out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.env |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.arguments: dict[str, str] = {}
        self.user, self.folder = "0", "/"

    def command(self, *words: str) -> list[str]:
        """Return the command that runs words in the root, as its user, in its folder."""
        inner = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        user = f"--userspec={self.user}:{self.user}"
        return ["chroot", user, str(self.root), "/bin/sh", "-c", inner]

    def run(self, *words: str) -> str:
        """Run words in the root; return what they printed."""
        done = subprocess.run(
            self.command(*words), env=self.env | self.arguments, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2_000:]}\n{done.stderr[-2_000:]}"
        return done.stdout

    def carry_out(self, word: str, rest: str) -> None:
        """Carry out one instruction."""
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                self.arguments[name] = default
            case "ENV":
                self.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "RUN":
                self.run("/bin/sh", "-c", rest)
            case "WORKDIR":
                self.folder = Template(rest).substitute(self.env)
                (self.root / self.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = rest
            case "COPY":
                *sources, target = shlex.split(rest)
                to = self.root / self.folder.lstrip("/") / target
                for source in (ROOT / name for name in sources):
                    if source.is_dir():
                        ignore = shutil.ignore_patterns("__pycache__")
                        shutil.copytree(source, to, ignore=ignore)
                    else:
                        shutil.copy(source, to)
            case "FROM" | "EXPOSE" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                pass
            case _:
                raise AssertionError(f"{word}: give it its place here")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image that the Dockerfile builds."""
    suite = DEBIAN.get(sys.version_info[:2])
    if suite is None or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("takes root, debootstrap, and Python 3.11 or 3.13, which a Debian has")
    root = tmp_path_factory.mktemp("image") / "root"
    packages = "python3,python3-pip,ca-certificates"
    words = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)]
    made = subprocess.run(words, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"debootstrap: {made.stdout.splitlines()[-1]}")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()  # the base image has none
    (root / "usr/bin/python").symlink_to("python3")
    for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
        shutil.copy(file, root / file[1:])
    version = ".".join(map(str, sys.version_info[:2]))
    own = root / f"usr/local/lib/python{version}/dist-packages"
    (own / "mounted.pth").write_text("/opt/packages\n", encoding="utf-8")
    mounts = [root / "opt/mounted", root / "proc"]
    mounts[0].mkdir()
    (root / "opt/packages").mkdir()
    for path in PACKAGES.iterdir():
        if "eat_audio" not in path.name:  # pip would take it for what it is to install
            (root / "opt/packages" / path.name).symlink_to(f"/opt/mounted/{path.name}")
    subprocess.run(["mount", "--bind", "-o", "ro", PACKAGES, mounts[0]], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", mounts[1]], check=True)
    try:
        built = Image(root)
        for word, rest in STEPS:
            built.carry_out(word, rest)
        yield built
    finally:
        for mount in mounts:
            subprocess.run(["umount", mount], check=True)


@pytest.mark.slow
def test_the_image_holds_the_package_and_not_that_of_this_environment(image: Image) -> None:
    where = image.run("python", "-c", "import eat_audio; print(eat_audio.__file__)")
    assert where.startswith("/usr/local/lib/python")


@pytest.mark.slow
def test_the_image_labels_a_recording_as_a_user_without_rights(image: Image) -> None:
    assert image.user != "0"
    shutil.copy(ROOT / "src/eat_audio/weights/examples/dog.ogg", image.root / "data")
    printed = image.run(*json.loads(last("ENTRYPOINT")), "predict", "dog.ogg", "--top-k", "1")
    assert "Dog\t" in printed


@pytest.mark.slow
def test_the_image_serves_until_it_is_stopped_and_is_found_healthy(image: Image) -> None:
    words = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    check = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    with subprocess.Popen(image.command(*words), env=image.env) as process:
        try:
            patience = time.monotonic() + 120
            while subprocess.run(image.command(*check), capture_output=True).returncode:
                assert process.poll() is None and time.monotonic() < patience
                time.sleep(1)
        finally:
            process.terminate()
        assert process.wait(30) in (0, -15, 130, 143)
