"""Many processes train as one does, with the same folder; the loss of one process ends all."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from team import cut_back, work

from eat_audio.errors import CheckpointError
from eat_audio.models import METHODS
from eat_audio.training.checkpoint import checkpoints
from eat_audio.training.metrics_log import read_log
from eat_audio.training.records import damage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="takes signals and torchrun of POSIX")

SMALL = [
    "batch=2",
    "log_every=1",
    "save_every=3",
    "clips.seconds=0.64",
    "encoder.embed_dim=48",
    "encoder.depth=2",
    "steps=6",
    "optim.warmup=2",
    "device=cpu",
]
PRETRAIN = ["masks=2", "block=[2,2]", "decoder.groups=4", *SMALL]
AUDIOMAE = ["decoder.width=32", "decoder.depth=2", "decoder.heads=4", "encoder.num_heads=4", *SMALL]
BEATS = ["dropout=0.1", "predictor_layers=1", "random.codes=32", *SMALL]
TOKENIZER = ["dropout=0.1", "estimator_layers=1", "codes=8", "code_width=8", *SMALL]
BAT = ["masks=2", "block=[2,2]", "decoder.width=24", "decoder.depth=1", "decoder.heads=2", *SMALL]
KILLS = 50
"""How often a run is killed; the quick suite kills a smaller one, in test_kills.py."""
ALSO = [name for name, spec in METHODS.items() if spec.pretraining and name != "eat"]
"""Methods beside EAT that are trained here, their runs named after them."""
STILL = {
    "audiomae": "decoder.bias_dropout=0",
    "beats": "dropout=0",
    "beats_tokenizer": "dropout=0",
    "sslam": "mask_noise=0",
}
"""What takes random numbers of the step and the process out, as one process would draw others."""
FINETUNE = [
    *("loss=bce_per_label", "augment.mixup=0.5", "test_splits=[eval]", *SMALL),
    *("encoder.pooling=statistics", "head_start=probe", "ema=0.9"),
]


def still(method: str) -> list[str]:
    """Return the settings without random numbers of the step."""
    return [STILL[method]] if method in STILL else []


def whole(method: str) -> str:
    """Return the run of one process, with all that is random, which is resumed."""
    return f"{method}-one-drops" if method in STILL else f"{method}-one"


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    """Return the command that starts a group of processes on this machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, 12 clips for training and 4 for testing."""
    root = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("eval", 2)):
        for label, loudness in (("loud", 0.5), ("soft", 0.05)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                samples = loudness * noise.uniform(-1, 1, 10_000 + 500 * number)
                soundfile.write(folder / f"{number}.wav", samples, 16_000)
    return root


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two, some of them resumed by the other kind."""
    home = tmp_path_factory.mktemp("runs")

    def job(kind: str, name: str, *more: str, **options: Any) -> dict[str, Any]:
        recipe, settings = {
            "pretrain": ("eat_tiny", [*PRETRAIN, "splits=[train]"]),
            "audiomae": ("audiomae_tiny", [*AUDIOMAE, "splits=[train]"]),
            "beats": ("beats_tiny_iter1", [*BEATS, "splits=[train]"]),
            "beats_tokenizer": (
                "beats_tiny_tokenizer",
                [*TOKENIZER, "splits=[train]", f"teacher={home / 'beats-one'}"],
            ),
            "bat": ("bat_tiny", [*BAT, "splits=[train]"]),
            "sslam": ("sslam_tiny", [*PRETRAIN, "splits=[train]"]),
            "finetune": ("eat_tiny_finetune", FINETUNE),
        }[kind]
        arguments = [*settings, f"data={corpus}", *more]
        task = kind if kind == "finetune" else "pretrain"
        return {"kind": task, "recipe": [recipe, arguments], "out": str(home / name), **options}

    def resumed(kind: str, name: str, of: str, *more: str, **options: Any) -> list[dict[str, Any]]:
        copy = {"kind": "copy", "of": str(home / of), "out": str(home / name)}
        return [copy, job(kind, name, *more, resume=True, **options)]

    def alone(*jobs: dict[str, Any]) -> None:
        for each in jobs:
            if each["kind"] == "copy":
                cut_back(Path(each["of"]), Path(each["out"]))
            else:
                work(each)

    start = {"start": str(home / "one")}
    alone(
        job("pretrain", "one", "accumulate=2"),
        job("finetune", "tuned-one", "accumulate=2", **start),
        *resumed("finetune", "tuned-one-one", "tuned-one", "accumulate=2", **start),
    )
    for method in ALSO:
        one = f"{method}-one"
        alone(job(method, one, *still(method), "accumulate=2"))
        if method in STILL:
            alone(job(method, f"{one}-drops", "accumulate=2"))
        alone(*resumed(method, f"{one}-one", whole(method), "accumulate=2"))
    together = [
        job("pretrain", "ddp"),
        job("pretrain", "fsdp", "parallel=fsdp"),
        job("pretrain", "ddp-workers", "clips.workers=2", "clips.memory_mb=0"),
        *resumed("pretrain", "ddp-ddp", "ddp"),
        *resumed("pretrain", "ddp-fsdp", "ddp", "parallel=fsdp"),
        *resumed("pretrain", "fsdp-ddp", "fsdp"),
        *resumed("pretrain", "fsdp-fsdp", "fsdp", "parallel=fsdp"),
        *resumed("pretrain", "one-ddp", "one", "accumulate=1"),
        job("finetune", "tuned-ddp", **start),
        job("finetune", "tuned-fsdp", "parallel=fsdp", **start),
        *resumed("finetune", "tuned-ddp-ddp", "tuned-ddp", **start),
    ]
    for method in ALSO:
        together += [
            job(method, f"{method}-ddp", *still(method)),
            job(method, f"{method}-fsdp", *still(method), "parallel=fsdp"),
            *resumed(method, f"{method}-ddp-ddp", f"{method}-ddp", *still(method)),
        ]
    (home / "jobs.json").write_text(json.dumps(together), encoding="utf-8")
    done = subprocess.run(
        torchrun(str(Path(__file__).with_name("team.py")), str(home / "jobs.json")),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Warning" not in done.stderr.replace("FutureWarning: `torch.distributed", "")
    alone(*resumed("pretrain", "ddp-one", "ddp", "accumulate=2"))
    return home


def losses(run: Path, *names: str) -> torch.Tensor:
    """Return the logged numbers of a run, a row per step."""
    names = names or ("train/loss", "optim/gradient_norm")
    return torch.tensor([[line[name] for name in names] for line in read_log(run)])


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the trained tensors and the moments after the last step."""
    last = run / "checkpoints" / "step-00000006"
    trained = load_file(last / "objective.safetensors")
    return trained | load_file(last / "optimiser.safetensors")


PREFIXES = ["", *(f"{method}-" for method in ALSO)]
"""How the names of a method's runs begin; EAT's have nothing before them."""


@pytest.mark.parametrize("method", PREFIXES)
@pytest.mark.parametrize("other", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one_that_accumulates_two(
    runs: Path, method: str, other: str
) -> None:
    many, one = losses(runs / f"{method}{other}"), losses(runs / f"{method}one")
    torch.testing.assert_close(many, one, rtol=2e-6, atol=0)


@pytest.mark.parametrize("other", ["tuned-ddp", "tuned-fsdp"])
def test_fine_tuning_with_batches_weighted_by_labels_has_the_losses_of_one_process(
    runs: Path, other: str
) -> None:
    torch.testing.assert_close(losses(runs / other), losses(runs / "tuned-one"), rtol=5e-6, atol=0)
    first, second = (
        json.loads((runs / name / "evaluation.json").read_text(encoding="utf-8"))
        for name in (other, "tuned-one")
    )
    assert first["value"] == second["value"]


def test_sliced_and_full_models_train_alike(runs: Path) -> None:
    first, second = weights(runs / "ddp"), weights(runs / "fsdp")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("resumed", "complete"),
    [
        ("ddp-ddp", "ddp"),
        ("fsdp-fsdp", "fsdp"),
        ("tuned-one-one", "tuned-one"),
        ("tuned-ddp-ddp", "tuned-ddp"),
        *((f"{method}-ddp-ddp", f"{method}-ddp") for method in ALSO),
        *((f"{method}-one-one", whole(method)) for method in ALSO),
    ],
)
def test_a_resumed_run_ends_at_the_same_bits(runs: Path, resumed: str, complete: str) -> None:
    first, second = weights(runs / resumed), weights(runs / complete)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert torch.equal(losses(runs / resumed), losses(runs / complete))


@pytest.mark.parametrize("resumed", ["ddp-fsdp", "fsdp-ddp", "one-ddp", "ddp-one"])
def test_a_run_resumes_with_other_processes_or_another_sharding(runs: Path, resumed: str) -> None:
    torch.testing.assert_close(losses(runs / resumed), losses(runs / "one"), rtol=2e-6, atol=0)


def test_the_number_of_workers_changes_nothing(runs: Path) -> None:
    """For all methods: their batches are those of one loader; see `data/test_loader.py`."""
    assert torch.equal(losses(runs / "ddp-workers"), losses(runs / "ddp"))


@pytest.mark.parametrize("method", PREFIXES)
def test_the_finished_model_has_full_tensors(runs: Path, method: str) -> None:
    first, second = (
        load_file(runs / f"{method}{name}" / "model.safetensors") for name in ("fsdp", "one")
    )
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)


def test_other_processes_need_other_accumulation(runs: Path, corpus: Path, tmp_path: Path) -> None:
    cut_back(runs / "ddp", tmp_path / "run")
    arguments = [*PRETRAIN, "splits=[train]", f"data={corpus}"]
    job = {"kind": "pretrain", "recipe": ["eat_tiny", arguments], "out": str(tmp_path / "run")}
    with pytest.raises(CheckpointError, match=r"begun with 2 micro-batches a step .* not 1"):
        work(job | {"resume": True})


@pytest.mark.slow
def test_fifty_kills_half_of_them_while_saving_lose_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*PRETRAIN, "splits=[train]", f"data={corpus}", "steps=300", "save_every=1"]

    def job(name: str) -> dict[str, Any]:
        recipe = ["eat_tiny", arguments]
        return {"kind": "pretrain", "recipe": recipe, "out": str(tmp_path / name), "resume": True}

    processes = multiprocessing.get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where `team` is imported once
    processes.set_forkserver_preload(["team"])
    moments = random.Random(0)
    saves = tmp_path / "killed" / "checkpoints"
    reached = 0
    for number in range(KILLS):
        process = processes.Process(target=work, args=(job("killed"),))
        process.start()
        while process.is_alive() and len(list(saves.glob("step-*"))) == 0:
            time.sleep(0.002)
        while process.is_alive() and int(checkpoints(tmp_path / "killed")[-1].name[-8:]) <= reached:
            time.sleep(0.002)  # it goes on before it is killed
        process.join(moments.uniform(0, 0.3))
        while number % 2 and process.is_alive() and not list(saves.glob(".step-*.incomplete")):
            time.sleep(0.001)
        assert process.exitcode is None, "the run ended before it could be killed so often"
        process.kill()
        process.join()
        assert [why for folder in saves.glob("step-*") if (why := damage(folder))] == []
        steps = [int(folder.name[-8:]) for folder in checkpoints(tmp_path / "killed")]
        assert max(steps, default=0) >= reached
        reached = max(steps, default=0)
    assert reached > 0
    work(job("killed"))
    work(job("whole"))
    first, second = (
        load_file(tmp_path / name / "checkpoints" / "step-00000300" / "objective.safetensors")
        for name in ("killed", "whole")
    )
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert [line["step"] for line in read_log(tmp_path / "killed")] == list(range(1, 301))


def long_run(corpus: Path, out: Path) -> list[str]:
    """Return the arguments of a command that trains until it is stopped."""
    arguments = [*PRETRAIN, "splits=[train]", f"data={corpus}", "steps=100000", "save_every=20"]
    return ["-m", "eat_audio", "pretrain", "eat_tiny", *arguments, "--out", str(out)]


def wait_for(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged that step."""
    patience = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_log(out)):
        assert process.poll() is None, process.communicate()[1][-2_000:]
        assert time.monotonic() < patience, "the run did not get so far"
        time.sleep(0.1)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a process that minds SIGHUP, even if these tests run under nohup."""
    return subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("sent", "code"), [("SIGTERM", 0), pytest.param("SIGHUP", 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_preempted_or_loses_its_terminal_saves(
    corpus: Path, tmp_path: Path, sent: str, code: int
) -> None:
    process = start([sys.executable, *long_run(corpus, tmp_path)])
    wait_for(tmp_path, 5, process)
    process.send_signal(signal.Signals[sent])
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    step = int(re.search(r"stopped after step (\d+) of", stderr)[1])  # type: ignore[index]
    assert (tmp_path / "checkpoints" / f"step-{step:08d}" / "run.json").is_file()


def workers(parent: int) -> list[int]:
    """Return the processes that torchrun has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.slow
def test_preempted_processes_stop_after_the_same_step(corpus: Path, tmp_path: Path) -> None:
    process = start(torchrun(*long_run(corpus, tmp_path)))
    wait_for(tmp_path, 5, process)
    for worker in workers(process.pid):
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.05)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    steps = set(re.findall(r"stopped after step (\d+) of", stderr))
    assert len(steps) == 1
    assert (tmp_path / "checkpoints" / f"step-{int(steps.pop()):08d}" / "run.json").is_file()


@pytest.mark.slow
def test_a_stopped_process_blocks_the_others_only_until_the_timeout(
    corpus: Path, tmp_path: Path
) -> None:
    arguments = long_run(corpus, tmp_path)
    script = f"""
import sys
from datetime import timedelta
from eat_audio.cli import main
from eat_audio.training import distributed
distributed.TIMEOUT = timedelta(seconds=8)
sys.argv = {["eat", *arguments[2:]]!r}
main()
"""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    process = start(torchrun(str(tmp_path / "script.py")))
    wait_for(tmp_path, 25, process)
    os.kill(stopped := sorted(workers(process.pid))[1], signal.SIGSTOP)
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert process.returncode != 0
    assert re.search(r"eat: process 0 of 2 has lost another one .* --resume goes on", stderr), (
        stderr
    )


@pytest.mark.slow
def test_a_stopped_process_is_named_within_a_minute(corpus: Path, tmp_path: Path) -> None:
    process = start(torchrun(*long_run(corpus, tmp_path)))
    wait_for(tmp_path, 5, process)
    assert process.stderr
    os.kill(stopped := sorted(workers(process.pid))[1], signal.SIGSTOP)
    begun = time.monotonic()
    try:
        for line in process.stderr:
            if "no sign of life" in line:
                break
        named = time.monotonic() - begun
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert f"eat: rank 1 (process {stopped} on " in line
    assert named < 60
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_job_and_leaves_a_checkpoint(
    corpus: Path, tmp_path: Path, victim: int
) -> None:
    process = start(torchrun(*long_run(corpus, tmp_path)))
    wait_for(tmp_path, 25, process)
    os.kill(sorted(workers(process.pid))[victim], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"eat: process \d of 2 has lost another one .* --resume goes on", stderr), (
        stderr
    )
    last = checkpoints(tmp_path)[-1]
    arguments = [*long_run(corpus, tmp_path), "accumulate=2", "--resume"]
    again = start([sys.executable, *arguments])
    while checkpoints(tmp_path)[-1] <= last:
        assert again.poll() is None, again.communicate()[1][-2_000:]
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    _, stderr = again.communicate(timeout=30)
    assert again.returncode == 0, stderr
