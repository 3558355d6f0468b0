"""Train a tiny run for test_kills.py, in a new process for every line of input.

Every line of standard input, FOLDER STEPS, starts a process; its number is printed.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.training.checkpoint import Run, lock_run_dir
from eat_audio.training.optim import Optim, adamw, parameter_groups


class Recipe(Settings):
    name: str = "tiny"


def export(folder: Path, state: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")
    save_file(state, folder / "model.safetensors")


def train(out: Path, steps: int) -> None:
    """Train up to a step, saving each; random numbers depend on the step alone."""
    torch.manual_seed(0)
    model, optim = nn.Linear(64, 512), Optim()
    optimizer = adamw(parameter_groups(model.named_parameters(), optim), optim)
    run = Run(out, Recipe(), "noise", model, optimizer, export, keep=2)
    with lock_run_dir(out):
        for step in range(run.begin(resume=True) + 1, steps + 1):
            torch.manual_seed(step)
            model(torch.randn(4, 64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            run.save(step)
        run.finish()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        folder, last = line.split()
        child = os.fork()
        if not child:
            train(Path(folder), int(last))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
