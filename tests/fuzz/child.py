"""Use one input after another, each in a process of its own, and report how that ended.

`python -m fuzz.child FOLDER` reads lines such as `recordings 12` from standard input, where a
number always means the same input, or `recordings valid`, which means those that the changes
begin with. It writes one JSON object a line; what it makes lies in FOLDER.
Imports are paid for once: every input is used by a fork, whose processor time, memory, noise and
death are its own. Only on systems that fork.
"""

import io
import json
import os
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from forks import idle_kilobytes, in_fork

SECONDS = 10.0
"""Processor time that one input may take."""
WALL = 30.0
"""Seconds after which it is ended."""
MEGABYTES = 300
"""What it may take above a process that has done nothing yet."""
CHARACTERS = 500
"""Most of one line of a message."""


class Fault(Exception):
    """An input that ended in another way than in use or in a sentence."""


def sentence(text: str, name: str = "") -> str:
    """The text, which has to be one bounded, printable line."""
    if len(text) > CHARACTERS:
        raise Fault(f"a line of {len(text):,} characters: {text[:200]!a}")
    if not text.isprintable():
        raise Fault(f"not printable: {text!a}")
    return text


def command(*words: str) -> str:
    """Run `eat` in this process; "used" or its sentence."""
    from eat_audio import cli

    out, err = io.StringIO(), io.StringIO()
    sys.argv, streams = ["eat", *words], (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout, sys.stderr = streams
    lines = err.getvalue().splitlines() + [line for line in out.getvalue().split("\n") if code == 0]
    wrong = [c for c in err.getvalue() + out.getvalue() if not c.isprintable() and c not in "\n\t"]
    if wrong:
        raise Fault(f"control characters: {set(wrong)}")
    for line in err.getvalue().splitlines():
        sentence(line)
    if code == 0:
        return "used"
    if code != 2:
        raise Fault(f"exit code {code}")
    sentences = [line for line in lines if line.startswith("eat: ")]
    if not 1 <= len(sentences) <= 25:
        raise Fault(f"{len(sentences)} sentences: {err.getvalue()[:300]!a}")
    return sentences[0]


def checkpoint(path: Path) -> str:
    """What `eat inspect` makes of it."""
    return command("inspect", str(path))


def recording(path: Path) -> str:
    """What all that read sound make of it; they have to agree."""
    from eat_audio.audio import audio_claims, load_audio, open_int16, stream_int16
    from eat_audio.errors import AudioError

    def opened() -> int:
        with open_int16(path) as recording:
            recording.read(0.1, 0.1)
            return len(recording.read(0.0, None))

    results: dict[str, Any] = {}
    for name, use in {
        "claims": lambda: audio_claims(path).seconds,
        "load": lambda: len(load_audio(path)),
        "stretch": lambda: len(load_audio(path, start=0.05, seconds=0.1)),
        "stream": lambda: sum(len(window) for _, window in stream_int16(path, seconds=0.25)),
        "int16": opened,
    }.items():
        try:
            results[name] = use()
        except AudioError as error:
            results[name] = sentence(str(error))
    numbers = {name: results[name] for name in ("load", "stream")}
    if len({n if isinstance(n, int) else "refused" for n in numbers.values()}) > 1:
        raise Fault(f"load and stream differ: {numbers}")
    loaded = results["load"]
    return "used" if isinstance(loaded, int) else loaded


def table(path: Path) -> str:
    """What `eat data show`, a first batch and, of a recipe, `eat pretrain --print-config` say."""
    if path.suffix == ".yaml":
        return command("pretrain", str(path), "--print-config")
    said = command("data", "show", str(path))
    if said != "used":
        return said
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.loader import ClipBatches, ClipSettings
    from eat_audio.errors import EatError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = ClipBatches(open_corpus(str(path)), ClipSettings(seconds=0.1), batch=4, seed=0)[
                0
            ]
    except EatError as error:
        for line in str(error).splitlines():
            sentence(line)
        return str(error).splitlines()[0]
    for unreadable in batch.unreadable:
        sentence(unreadable)
    return "used"


ACTIONS = {"checkpoints": checkpoint, "recordings": recording, "tables": table}


def _ended(action: Any, path: Path) -> dict[str, str]:
    """How the use of one input ended, from inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            said = action(path)
            for one in caught:
                if one.category.__name__ != "EatWarning":
                    raise Fault(f"{one.category.__name__}: {one.message} ({one.filename})"[:500])
                sentence(str(one.message))
            return {"outcome": "used" if said == "used" else "refused", "said": said}
        except Fault as error:
            return {"outcome": "fault", "said": str(error)}
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [f for f in place if "eat_audio" in f.filename] or place
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            last = f"{Path(place[-1].filename).name}:{place[-1].name}"
            text = f"{type(error).__name__} in {where} ({last}): {str(error)[:200]!a}"
            return {"outcome": "fault", "said": text}


def use(action: Any, path: Path, noise: Path, idle: int) -> dict[str, Any]:
    """How the use of one input in a fork ended, from outside."""
    ended = in_fork(
        lambda: json.dumps(_ended(action, path)).encode(),
        out=noise.with_name("out"),
        err=noise,
        idle=idle,
        wall=WALL,
        cpu=round(SECONDS) + 5,
    )
    result: dict[str, Any] = {"outcome": "fault", "said": f"died ({ended.status})"}
    if ended.late:
        result["said"] = f"did not end within {WALL:g} s"
    elif ended.answer:
        result = json.loads(ended.answer)
    result |= {"cpu": round(ended.cpu, 2), "grown": ended.grown}
    if result["outcome"] == "fault":
        return result
    problems = {
        f"took {ended.cpu:.1f} s of processor time": ended.cpu > SECONDS,
        f"took {ended.grown} MB": ended.grown > MEGABYTES,
        f"noise: {ascii(noise.read_bytes()[:200])}": noise.stat().st_size > 0,
    }
    for problem, there in problems.items():
        if there:
            return result | {"outcome": "fault", "said": problem}
    return result


class Inputs:
    """The changed inputs of one kind, by number."""

    def __init__(self, kind: str, folder: Path) -> None:
        from fuzz.seeds import KINDS

        self.kind, self.folder = kind, folder
        (folder / "valid").mkdir(parents=True)
        self.seeds = KINDS[kind](folder / "valid")
        held = [(s.place / s.inside if s.inside else s.place).read_bytes() for s in self.seeds]
        self.others = [data for data in held if len(data) < 50_000]
        for number in range(0, len(self.seeds), 4):
            self.valid(number)  # so that a fork finds imported what is imported late
        self.idle = idle_kilobytes()

    def valid(self, number: int) -> dict[str, Any]:
        """How the use of a valid input ends."""
        seed = self.seeds[number]
        place = seed.place / seed.opened if seed.opened else seed.place
        return {"valid": seed.name, **_ended(ACTIONS[self.kind], place)}

    def changed(self, number: int) -> dict[str, Any]:
        """How the use of a changed input ends; it is kept if that is a fault."""
        random = Random(f"{self.kind} {number}")
        seed = self.seeds[number % len(self.seeds)]
        path, done = seed.write(self.folder / "changed", random, self.others)
        result = use(ACTIONS[self.kind], path, self.folder / "noise", self.idle)
        result |= {"number": number, "seed": seed.name, "done": done}
        if result["outcome"] == "fault":
            kept = self.folder / "kept" / str(number)
            shutil.copytree(self.folder / "changed", kept, symlinks=True)
            result["kept"] = str(kept)
        return result


def main() -> None:
    """See the top of this file."""
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    import torch  # noqa: F401
    import transformers  # noqa: F401

    import eat_audio.checkpoints.load  # noqa: F401
    import eat_audio.cli  # noqa: F401

    kinds: dict[str, Inputs] = {}
    for line in sys.stdin:
        kind, number = line.split()
        if kind not in kinds:
            kinds[kind] = Inputs(kind, folder / kind)
        inputs = kinds[kind]
        if number == "valid":
            results = [inputs.valid(n) for n in range(len(inputs.seeds))]
        else:
            results = [inputs.changed(int(number))]
        for result in results:
            print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
