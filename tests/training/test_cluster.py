"""The cluster templates in examples/: what they say is valid, and a lost machine costs no digit."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from eat_audio.training.metrics_log import read_log

TEMPLATES = Path(__file__).parents[2] / "examples" / "cluster"
JOBS = ["pretrain.sbatch", "embed_array.sbatch"]
MANIFESTS = ["embed_indexed_job.yaml", "pretrain_pytorchjob.yaml"]
SMALL = [
    *("batch=2", "masks=2", "block=[2,2]", "decoder.groups=4", "log_every=1", "save_every=5"),
    *("clips.seconds=0.64", "encoder.embed_dim=48", "encoder.depth=2", "optim.warmup=2"),
    *("device=cpu", "steps=60"),
]
SRUN = """#!/bin/bash
# Runs a command once per "node", each in a session of its own; the end of one ends the others.
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_NODEID=$node setsid "$@" & pids[node]=$!
    echo $! > "$NODES/$node"
done
code=0
for node in "${pids[@]}"; do
    wait -n "${pids[@]}" || code=$?
    if [ "$code" -ne 0 ]; then for pid in "${pids[@]}"; do kill -KILL -- -"$pid"; done; break; fi
done 2> /dev/null
exit "$code"
"""
SCONTROL = """#!/bin/bash
case $1 in
show) for _ in $(seq "$SLURM_NNODES"); do echo 127.0.0.1; done ;;
requeue) touch "$NODES/requeued" ;;
esac
"""


@pytest.mark.parametrize("name", JOBS)
def test_job_files_are_shell_with_directives_of_slurm(name: str) -> None:
    checked = subprocess.run(
        ["bash", "-n", str(TEMPLATES / name)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=\S+)?$", text, re.MULTILINE)
    assert "requeue" in directives
    before = text[: text.rindex("#SBATCH")]
    assert all(line.startswith("#") for line in before.splitlines())  # Slurm reads no further


def words_of(name: str) -> list[str]:
    """The command of the container in a manifest."""
    job = yaml.safe_load((TEMPLATES / name).read_text(encoding="utf-8"))
    spec = job["spec"]
    pod = (
        spec["template"]
        if "template" in spec
        else spec["pytorchReplicaSpecs"]["Worker"]["template"]
    )
    (container,) = pod["spec"]["containers"]
    mounted = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert mounted == {mount["name"] for mount in container["volumeMounts"]}
    return [*container["command"], *container["args"]]


def test_the_indexed_job_embeds_as_many_shards_as_it_has_pods() -> None:
    job = yaml.safe_load((TEMPLATES / MANIFESTS[0]).read_text(encoding="utf-8"))["spec"]
    assert job["completionMode"] == "Indexed"
    words = words_of(MANIFESTS[0])
    assert words[words.index("--shard") + 1] == f"auto/{job['completions']}"


def test_the_pytorch_job_goes_on_with_the_run_that_is_there() -> None:
    words = words_of(MANIFESTS[1])
    assert words[:4] == ["torchrun", "-m", "eat_audio", "pretrain"]
    assert words[-1] == "--resume"


@pytest.mark.parametrize("name", [*JOBS, *MANIFESTS])
def test_templates_use_options_that_exist(name: str) -> None:
    import typer

    from eat_audio.cli import app

    text = (TEMPLATES / name).read_text(encoding="utf-8")
    text = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    command = "embed" if "embed" in name else "pretrain"
    options = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    exist = {option for parameter in options for option in parameter.opts}
    used = re.findall(r"--(?:out|resume|model|shard|data|status)\b", text)
    assert used and set(used) <= exist


class Cluster:
    """Slurm on one machine, as far as a job file sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            path = folder / name
            path.write_text(text, encoding="utf-8")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def submit(self, script: Path, *words: str, restarts: int, **settings: str) -> subprocess.Popen:
        """Start a job file, as if it had been requeued so often."""
        (self.folder / "requeued").unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        path = [str(self.folder), os.path.dirname(sys.executable), os.environ["PATH"]]
        slurm = {
            **{"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"},
            **{"SLURM_RESTART_COUNT": str(restarts), "NODES": str(self.folder)},
            **{"PATH": os.pathsep.join(path), "PORT": port, "OMP_NUM_THREADS": "1"},
        }
        return subprocess.Popen(["bash", str(script), *words], env=os.environ | slurm | settings)

    def lose(self, node: int) -> None:
        """End all processes of a node at once."""
        pid = int((self.folder / str(node)).read_text(encoding="utf-8"))
        os.killpg(pid, signal.SIGKILL)

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.mark.slow
def test_a_run_that_loses_a_machine_three_times_ends_at_the_same_loss(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for number in range(12):
        samples = 0.1 * noise.uniform(-1, 1, 10_000 + 500 * number)
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", samples, 16_000)
    cluster = Cluster(tmp_path)
    settings = {"RECIPE": "eat_tiny", "DATA": str(tmp_path / "sounds"), "PROCESSES": "1"}

    def job(out: str, losses: list[tuple[int, int]]) -> int:
        """Run a job to its end, requeued as often as it has to be; return how often that was."""
        settings["OUT"] = str(tmp_path / out)
        for restarts in range(len(losses) + 1):
            process = cluster.submit(
                TEMPLATES / "pretrain.sbatch", *SMALL, restarts=restarts, **settings
            )
            patience = time.monotonic() + 600
            for step, node in losses[restarts : restarts + 1]:
                while not any(line["step"] >= step for line in read_log(tmp_path / out)):
                    assert process.poll() is None and time.monotonic() < patience
                    time.sleep(0.02)
                cluster.lose(node)
            process.wait(600)
            if not cluster.requeued:
                return restarts
        raise AssertionError("the job was requeued once more than it lost a machine")

    assert job("whole", []) == 0
    assert job("lossy", [(12, 1), (27, 0), (42, 1)]) == 3
    whole, lossy = (read_log(tmp_path / out) for out in ("whole", "lossy"))
    names = ("step", "train/loss", "optim/gradient_norm")
    assert [[row[n] for n in names] for row in lossy] == [[row[n] for n in names] for row in whole]
    assert len(whole) == 60
    first, second = (
        json.loads((tmp_path / out / "run.json").read_text(encoding="utf-8"))
        for out in ("whole", "lossy")
    )
    assert first["recipe"] == second["recipe"]
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "lossy")]
    assert weights[0] == weights[1]
