"""Run the jobs of one process of a group, for test_distributed.py: torchrun ... team.py JOBS.json.

A job is a dictionary: `kind` (pretrain, finetune or copy), `recipe` (name and overrides), `out`,
`resume`, `start`; a copy takes a run's folder as it was at its first checkpoint.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from eat_audio import finetune
from eat_audio.config import load
from eat_audio.pretraining import run as pretrain
from eat_audio.training.checkpoint import checkpoints
from eat_audio.training.distributed import exit_process, init_process_group


def cut_back(source: Path, out: Path) -> None:
    """Copy a run as if it had been killed after its oldest remaining checkpoint."""
    shutil.copytree(source, out)
    for later in checkpoints(out)[1:]:
        shutil.rmtree(later)
    (out / "model.safetensors").unlink()


def work(job: dict[str, Any]) -> None:
    """Do one job, all processes together."""
    out, resume = Path(job["out"]), job.get("resume", False)
    if job["kind"] == "copy":
        group = init_process_group(torch.device("cpu"))
        if group.is_main:
            cut_back(Path(job["of"]), out)
        group.barrier()
    elif job["kind"] == "pretrain":
        pretrain.run(load(pretrain.schema, *job["recipe"]), out=out, resume=resume)
    else:
        settings = load(finetune.FinetuneRun, *job["recipe"])
        finetune.run(settings, out=out, start=job.get("start"), resume=resume)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        work(job)
    exit_process(0)
