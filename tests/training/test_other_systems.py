"""What a run needs of its system: neither POSIX's own modules nor a locale that knows UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SMALL = [
    "steps=2",
    "batch=2",
    "save_every=1",
    "log_every=1",
    "device=cpu",
    "clips.seconds=0.64",
    "encoder.embed_dim=48",
    "encoder.depth=1",
    "optim.warmup=1",
]
PRETRAIN = ["masks=2", "block=[2,2]", "decoder.groups=4", *SMALL]

WITHOUT = """
import os, signal, sys
import pyarrow.parquet, rich.progress, soundfile, torch, transformers, torch.distributed.fsdp
from transformers import PreTrainedModel
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "msvcrt"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGCHLD", "SIGKILL", "pthread_sigmask"):
    delattr(signal, name)
opened = os.open
def open_no_folder(path, *arguments, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *arguments, **named)
os.open = open_no_folder
os.name = "other"
import eat_audio as eat
from pathlib import Path
from eat_audio import finetune
from eat_audio.pretraining import run as pretrain
from eat_audio.config import load
data, out, *words = sys.argv[1:]
def train(resume):
    settings = load(pretrain.schema, "eat_tiny", [f"data={data}", *words])
    return pretrain.run(settings, out=Path(out), resume=resume)
train(False); train(True)
model = eat.load(out)
print(type(model.embed(next(Path(data).rglob("*.wav")))).__name__)
"""
"""A stand-in for Windows: what POSIX alone has is not there, and folders cannot be opened."""


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, whose names no old encoding knows."""
    root = tmp_path_factory.mktemp("corpus")
    draws = np.random.default_rng(0)
    for label in ("дрозд", "鶫"):
        (root / label).mkdir()
        for number in range(3):
            soundfile.write(root / label / f"ü{number}.wav", draws.uniform(-1, 1, 11_000), 16_000)
    return root


def python(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | changes
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_system_without_posix_trains_resumes_and_loads(noise: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WITHOUT, encoding="utf-8")
    done = python(str(tmp_path / "script.py"), str(noise), str(tmp_path / "run"), *PRETRAIN)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "Embedding" in done.stdout
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    assert [line["step"] for line in log] == [1, 2] and "memory_mb" not in log[0]


@pytest.mark.slow
def test_where_transformers_does_not_work_a_sentence_says_so() -> None:
    """Without `resource`, psutil fails on Linux, and with it what accelerate imports."""
    missing = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
    done = python("-c", f"{missing}import eat_audio; print(eat_audio.EATModel.__name__)")
    works = done.returncode == 0 and "EATModel" in done.stdout
    assert works or "EatError: transformers does not work here" in done.stderr, done.stderr


@pytest.mark.slow
def test_an_ascii_locale_trains_and_resumes_under_any_name(noise: Path, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["-m", "eat_audio", "pretrain", "eat_tiny", f"data={noise}", *PRETRAIN]
    words += ["--out", str(tmp_path / "läufe")]
    for resume in ([], ["--resume"]):
        done = python(*words, *resume, **ascii_only)
        assert done.returncode == 0, done.stderr[-2_000:]
    record = json.loads((tmp_path / "läufe" / "run.json").read_text(encoding="utf-8"))
    assert record["recipe"]["data"] == str(noise)
