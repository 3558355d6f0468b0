"""Fetch models from the Hugging Face Hub, and read the licence of a model.

A name is fetched only if it can be nothing else: the owner of an account "runs" must not decide
what `--model runs/tiny` loads. Of a model only weights, settings and its card are fetched, never
code, and their SHA-256 is compared with the Hub's and with that of the zoo. A server that does not
answer is given up.
"""

import hashlib
import os
import re
import threading
import time
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from eat_audio.errors import CheckpointError
from eat_audio.models import zoo
from eat_audio.progress import print_lines
from eat_audio.text import printable, shortened

FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "README.md",
]
"""What is fetched of a model."""
BESIDE = ["README.md", "config.json", "label_map.json", "train_config.yaml"]
"""What is fetched beside weights of another name."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PREFIX = re.compile("hf:/{1,2}")
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
"""Usual names of folders of runs."""
SUFFIXES = {
    *(".bin", ".ckpt", ".csv", ".flac", ".gz", ".h5", ".hdf5", ".json", ".mp3", ".npy", ".npz"),
    *(".ogg", ".onnx", ".parquet", ".pkl", ".pt", ".pt2", ".pth", ".py", ".safetensors", ".tar"),
    *(".th", ".tsv", ".txt", ".wav", ".yaml", ".yml", ".zip"),
}
"""Suffixes of files; names of models have none."""
WAIT = 10.0
"""Seconds until a request without an answer fails."""
PATIENCE = 20.0
"""Seconds without a byte of the model until the Hub is given up, however many requests are made."""

UNKNOWN = "unknown; see where the weights were released"
CARD = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
"""The settings on top of a model card."""
CARD_LICENCE = re.compile(r"^(license(?:_name)?):[ \t]*['\"]?([^\r\n'\"#]{1,100})", re.MULTILINE)
CONFIG_LICENCE = re.compile(r'"license"\s*:\s*"([^"\\]{1,100})"')
CARD_CHARACTERS = 64 * 2**10
"""Longest part of a card or of settings that is searched for a licence."""


def hub_name(source: str | Path) -> str:
    """Return OWNER/NAME if a source that is not on this machine can only be one of the Hub.

    Raises:
        CheckpointError: It is, or might be, a path that does not exist.
    """
    text = str(source)
    name = PREFIX.sub("", text, count=1)
    if not NAME.fullmatch(name):
        expected = "; expected hf://OWNER/NAME" if name != text else ""
        if close := get_close_matches(text, zoo.released(), 1):
            expected = f"; did you mean {close[0]}, a name of `eat models`?"
        raise CheckpointError(f"{source}: no such file or folder{expected}")
    owner, suffix = name.partition("/")[0], os.path.splitext(name)[1]
    local = os.path.lexists(owner) or owner.lower() in LOCAL or suffix.lower() in SUFFIXES
    if name == text and local:
        raise CheckpointError(
            f"{source}: no such file or folder (hf://{name} would be fetched from the Hugging Face "
            "Hub)"
        )
    return name


def fetch_released(model: zoo.Released) -> Path:
    """Fetch a model of the zoo; return its folder, or its file of weights.

    Raises:
        CheckpointError: It can only be fetched by hand, there is no answer, or the file is not the
            one that was released.
    """
    if not model.on_hub:
        raise CheckpointError(f"{model.name}: cannot be fetched from here; {model.usage}")
    try:
        folder = fetch(model.address, model.file, sha256=model.sha256)
    except CheckpointError as error:
        raise CheckpointError(f"{model.name}: {error}") from error
    return folder if model.file == "model.safetensors" else folder / model.file


@lru_cache
def fetch(name: str, weights: str = "model.safetensors", *, sha256: str = "") -> Path:
    """Fetch a model, or what has changed of it since, into the Hub's cache; return its folder.

    Args:
        name: OWNER/NAME.
        weights: The file of weights, in parts or not.
        sha256: Of that file, if known.

    Raises:
        CheckpointError: There is no such model, no answer, or a file has another SHA-256.
    """
    print_lines(f"fetching {name} from the Hugging Face Hub", error=True)
    results: list[Path | Exception] = []

    def work() -> None:
        try:
            results.append(download(name, weights, sha256))
        except Exception as error:  # a server may send anything, and the library may fail on it
            results.append(error)

    # A thread that may be abandoned: some of the library's requests wait without an end.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    begun = last_change = time.monotonic()
    size = 0
    while thread.is_alive():
        thread.join(0.1 if time.monotonic() - begun < PATIENCE else 1.0)
        now, size_before, size = time.monotonic(), size, _cached_bytes(name)
        last_change = now if size != size_before else last_change
        if now - last_change > PATIENCE:
            raise CheckpointError(
                f"{name}: the Hugging Face Hub did not answer for {PATIENCE:.0f} seconds"
            )
    (result,) = results
    if isinstance(result, Exception):
        if isinstance(result, WrongFile):
            raise result
        reason = (str(result).strip() or type(result).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and not available from the Hugging Face Hub ({reason})"
        ) from result
    return result


def download(name: str, weights: str, sha256: str) -> Path:
    """Fetch the files of a model one by one; without a network, take what was fetched before."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache

    patterns = FILES if weights == "model.safetensors" else [weights, *BESIDE]
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=WAIT)
    except Exception:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except Exception:  # the first error says more
            pass
        raise
    entries = {entry.rfilename: entry for entry in info.siblings or []}
    files = [file for file in entries if any(fnmatch(file, form) for form in patterns)]
    files = [file for file in files if "/" not in file]
    needed = "config.json" if patterns is FILES else weights
    if needed not in files or not isinstance(info.sha, str):
        raise CheckpointError(f"there is no model of transformers, with a {needed}, in it")
    stored = {file: entries[file].lfs for file in files}
    hashes = {file: lfs.sha256 for file, lfs in stored.items() if lfs}
    if sha256 and hashes.get(weights, sha256) != sha256:
        raise WrongFile(_mismatch(f"{name}/{weights}", hashes[weights], sha256))
    options: Any = {"repo_id": name, "revision": info.sha}
    new = [f for f in files if not isinstance(try_to_load_from_cache(filename=f, **options), str)]
    if new:
        size = sum(entries[file].size or 0 for file in new) / 1e6
        print_lines(f"{name}: {', '.join(new)}: {size:,.1f} MB", error=True)
    expected = hashes | ({weights: sha256} if sha256 else {})
    for file in files:
        path = Path(hf_hub_download(filename=file, etag_timeout=WAIT, **options))
        if file in new and file in expected:
            _check_hash(path, f"{name}/{file}", expected[file])
    return path.parent


class WrongFile(CheckpointError):
    """A file whose SHA-256 is not the one that is expected."""


def _check_hash(path: Path, title: str, expected: str) -> None:
    """Raise WrongFile, and delete a file just fetched, if its SHA-256 is not as expected."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        for part in {path.resolve(), path}:
            part.unlink(missing_ok=True)
        raise WrongFile(_mismatch(title, digest, expected))


def _mismatch(title: str, digest: str, expected: str) -> str:
    return f"{title}: has the SHA-256 {shortened(digest)}; {expected} is expected; not loaded"


def _cached_bytes(name: str) -> int:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs")
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:  # missing yet, or renamed just now
        return 0


def licence_of(source: Path) -> str | None:
    """Return the licence that a model's card or settings name; `UNKNOWN` if they name none.

    Returns:
        None for a run of one's own, whose weights were not released.
    """
    folder = source if source.is_dir() else source.parent
    card = CARD.match(_start_of(folder / "README.md"))
    fields = dict(CARD_LICENCE.findall(card[1])) if card else {}
    licence = fields.get("license_name") or fields.get("license")
    if licence is None and (match := CONFIG_LICENCE.search(_start_of(folder / "config.json"))):
        licence = match[1]
    if licence is not None and licence.strip():
        return printable(licence.strip())
    return None if source.is_dir() and (folder / "run.json").is_file() else UNKNOWN


def _start_of(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(CARD_CHARACTERS)
    except OSError:
        return ""
