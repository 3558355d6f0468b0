"""A name of the Hugging Face Hub -> a folder of this machine.

Only what is surely meant is fetched, and it is said before: whoever owns an account "runs" must
not decide what `--model runs/tiny` loads. Of a model only weights, settings and its card come,
never code. A server that says nothing is given up.
"""

import os
import re
import sys
import threading
import time
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from eat_audio.errors import CheckpointError
from eat_audio.text import printable

FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "README.md",
]
"""What is fetched of a model."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SURELY = re.compile("hf:/{1,2}")
"""How a name begins that can only be one of the Hub; pathlib makes one stroke of two."""
LOCAL = {
    *("artifacts", "audio", "build", "cache", "checkpoint", "checkpoints", "ckpt", "ckpts"),
    *("data", "dataset", "datasets", "demo", "dist", "docs", "download", "downloads", "examples"),
    *("exp", "experiment", "experiments", "exps", "export", "exports", "final", "finetune"),
    *("finetuned", "home", "local", "log", "logs", "mnt", "model", "models", "out", "output"),
    *("outputs", "pretrain", "pretrained", "project", "projects", "result", "results", "root"),
    *("run", "runs", "save", "saved", "saves", "scratch", "shared", "src", "step", "steps", "temp"),
    *("test", "tests", "tmp", "train", "trained", "training", "weights", "work", "workspace"),
}
"""What folders of runs are usually called."""
SUFFIXES = {
    *(".bin", ".ckpt", ".csv", ".flac", ".gz", ".h5", ".hdf5", ".json", ".mp3", ".npy", ".npz"),
    *(".ogg", ".onnx", ".parquet", ".pkl", ".pt", ".pt2", ".pth", ".py", ".safetensors", ".tar"),
    *(".th", ".tsv", ".txt", ".wav", ".yaml", ".yml", ".zip"),
}
"""How names of files end; those of models do not."""
WAIT = 10.0
"""Seconds that one request may be without an answer."""
PATIENCE = 20.0
"""Seconds without a byte of the model until the Hub is given up, however often it is asked."""


def hub_name(place: str | Path) -> str:
    """OWNER/NAME, if a place that is not on this machine is surely one of the Hub.

    Raises:
        CheckpointError: It may be, or is, a folder that somebody expects on this machine.
    """
    text = str(place)
    name = SURELY.sub("", text, count=1)
    if not NAME.fullmatch(name):
        expected = "; expected hf://OWNER/NAME" if name != text else ""
        raise CheckpointError(f"{place}: no such file or folder{expected}")
    owner = name.partition("/")[0]
    local = (
        os.path.lexists(owner)
        or owner.lower() in LOCAL
        or os.path.splitext(name)[1].lower() in SUFFIXES
    )
    if name == text and local:
        raise CheckpointError(
            f"{place}: no such file or folder (hf://{name} would be fetched from the Hugging Face "
            "Hub)"
        )
    return name


@lru_cache
def fetch(name: str) -> Path:
    """Fetch a model, or what has changed of it since, into the Hub's cache; returns its folder.

    Raises:
        CheckpointError: It is not to be had, or nobody answers.
    """
    print(f"fetching {printable(name)} from the Hugging Face Hub", file=sys.stderr, flush=True)
    found: list[Path | Exception] = []
    # A thread that may be left behind: some of the library's requests wait without an end.
    work = threading.Thread(target=lambda: found.append(_tried(name)), daemon=True)
    work.start()
    begun = heard = time.monotonic()
    size = 0
    while work.is_alive():
        work.join(0.1 if time.monotonic() - begun < PATIENCE else 1.0)
        now, size_before, size = time.monotonic(), size, _size(name)
        heard = now if size != size_before else heard
        if now - heard > PATIENCE:
            raise CheckpointError(
                f"{name}: the Hugging Face Hub did not answer for {PATIENCE:.0f} seconds"
            )
    (result,) = found
    if isinstance(result, Exception):
        reason = (str(result).strip() or type(result).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder here, and not to be had from the Hugging Face Hub ({reason})"
        ) from result
    return result


def _tried(name: str) -> Path | Exception:
    try:
        return download(name)
    except Exception as error:  # servers may answer anything, and the library stumbles over it
        return error


def download(name: str) -> Path:
    """Fetch `FILES` of a model one by one; without a network, take what was fetched before."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        about = HfApi().model_info(name, timeout=WAIT)
    except Exception:
        try:
            return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        except Exception:  # what went wrong first says more
            pass
        raise
    held = [entry.rfilename for entry in about.siblings or []]
    wanted = [file for file in held if any(fnmatch(file, form) for form in FILES)]
    wanted = [file for file in wanted if "/" not in file]
    if "config.json" not in wanted or not isinstance(about.sha, str):
        raise CheckpointError("there is no model of transformers, with a config.json, in it")
    places = [hf_hub_download(name, file, revision=about.sha, etag_timeout=WAIT) for file in wanted]
    return Path(places[0]).parent


def _size(name: str) -> int:
    """Bytes of a model that are in the cache already."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs")
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:  # not there yet, or renamed just now
        return 0
