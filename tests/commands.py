"""Run many `eat` commands for the price of one import: each in a fork, with what it took.

`Commands` is what tests use; `python -m commands FOLDER [ABSENT ...]` is the process behind it,
which reads one JSON object a line and answers with one. Modules that are ABSENT cannot be imported
there, as on systems that have none of that name.
"""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).parent
SECONDS = 10.0
"""Processor time that refusing an input may take,"""
MEGABYTES = 300
"""and memory above an idle process."""
CHARACTERS = 500
"""A sentence is shorter than that."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int | None
    """None: it was ended, or died."""
    out: str
    err: str
    cpu: float
    """Seconds of processor time."""
    grown: int
    """Megabytes above an idle process."""

    @property
    def messages(self) -> list[str]:
        """The lines on stderr, without the next step."""
        return [line for line in self.err.splitlines() if not line.startswith("next: ")]

    def succeeds(self) -> Self:
        """Itself, of which nothing went wrong."""
        assert self.code == 0, f"exit code {self.code}\n{self.out[-1_000:]}\n{self.err[-3_000:]}"
        self.is_printable()
        return self

    def sentence(self) -> str:
        """The one sentence that refuses what was given, within its bounds."""
        assert self.code == 2, f"exit code {self.code}\n{self.out[-1_000:]}\n{self.err[-3_000:]}"
        self.is_printable()
        lines = [line for line in self.err.splitlines() if line.startswith("eat: ")]
        assert len(lines) == 1, f"{len(lines)} sentences: {self.err[:2_000]!a}"
        assert len(lines[0]) < CHARACTERS
        assert self.cpu < SECONDS, f"{self.cpu:.1f} s of processor time"
        assert self.grown < MEGABYTES, f"{self.grown} MB above an idle process"
        return lines[0].removeprefix("eat: ")

    def is_printable(self) -> None:
        """Neither stream has a control character, and no traceback."""
        assert "Traceback (most recent call last)" not in self.err, self.err[-3_000:]
        for stream in (self.out, self.err):
            wrong = {c for c in stream if not c.isprintable() and c not in "\n\t"}
            assert not wrong, f"{wrong} in {stream[:500]!a}"


class Commands:
    """A process in whose forks commands run."""

    def __init__(
        self, folder: Path, *, absent: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        places = os.pathsep.join(filter(None, [str(HERE), *sys.path]))
        started = {"PYTHONPATH": places, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "commands", str(folder), *absent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | started | (env or {}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __call__(
        self, *words: object, cwd: Path | None = None, wall: float = 60.0, cpu: int = 60
    ) -> Ended:
        """Run `eat WORDS`.

        Args:
            words: What stands behind `eat`.
            cwd: The folder to run it in.
            wall: Seconds after which it is ended.
            cpu: The same of processor time.
        """
        assert self.process.stdin and self.process.stdout
        request = {"words": [os.fsencode(str(word)).decode("latin-1") for word in words]}
        print(
            json.dumps(request | {"cwd": str(cwd or ""), "wall": wall, "cpu": cpu}),
            file=self.process.stdin,
            flush=True,
        )
        return Ended(**json.loads(self.process.stdout.readline()))


def _command(words: list[str], cwd: str, absent: list[str]) -> bytes:
    """The exit code of a command, as text."""
    from eat_audio import cli

    _take_away(absent)

    if cwd:
        os.chdir(cwd)
    sys.argv = ["eat", *words]
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return str(code).encode()


def _take_away(names: list[str]) -> None:
    """Make modules such as cannot be imported."""
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]


def main() -> None:
    """See the top of this file."""
    import forks

    folder = Path(sys.argv[1])
    if "resource" in sys.argv[2:] and find_spec("psutil"):
        import_module("psutil")  # which does without it on systems that have none
    absent = sys.argv[2:]
    _take_away(absent)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    import torch  # noqa: F401
    import transformers  # noqa: F401

    import eat_audio.cli  # noqa: F401
    import eat_audio.data.datasets
    import eat_audio.finetune
    import eat_audio.inference.embed
    import eat_audio.inference.predictor
    import eat_audio.pretraining.method  # noqa: F401

    for name in absent:  # waiting for a fork takes `resource`
        del sys.modules[name]

    idle = forks.idle_kilobytes()
    out, err = folder / "out", folder / "err"
    for line in sys.stdin:
        asked = json.loads(line)
        words = [os.fsdecode(word.encode("latin-1")) for word in asked["words"]]
        ended = forks.in_fork(
            lambda: _command(words, asked["cwd"], absent),  # noqa: B023
            out=out,
            err=err,
            idle=idle,
            wall=asked["wall"],
            cpu=asked["cpu"],
        )
        answer = {
            "code": int(ended.answer) if ended.answer and not ended.late else None,
            "out": out.read_bytes().decode("utf-8", "backslashreplace"),
            "err": err.read_bytes().decode("utf-8", "backslashreplace"),
            "cpu": ended.cpu,
            "grown": ended.grown,
        }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
