"""Encoders that are probed and fine-tuned: pre-trained ones, their checkpoints, random ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eat_audio import config as recipe
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.corpus import Corpus
from eat_audio.errors import DataError
from eat_audio.models import METHODS
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.eat import EATRun
from eat_audio.pretraining.run import make_features
from eat_audio.training.checkpoint import fingerprint
from eat_audio.training.metrics_log import read_log


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder; it is loaded when it is needed."""

    name: str
    """Of the recipe and the step: `eat_tiny_open@500`."""
    title: str
    load: Callable[[], tuple[AudioEncoder, AudioFeatureExtractor]]
    settings: dict[str, Any]
    """The recipe of its pre-training as it ran; of its shape, if it is random."""
    folder: Path | None = None
    step: int = 0
    cpu_seconds: float = 0.0
    """CPU seconds of its pre-training up to this step."""
    data: tuple[str, ...] = ()
    """What it was pre-trained on."""

    @cached_property
    def _loaded(self) -> tuple[AudioEncoder, AudioFeatureExtractor]:
        return self.load()

    @property
    def model(self) -> AudioEncoder:
        """The encoder, in evaluation mode."""
        return self._loaded[0].eval()

    @property
    def front_end(self) -> AudioFeatureExtractor:
        """What makes its spectrograms."""
        return self._loaded[1]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights."""
        return fingerprint(self.model.state_dict())

    def record(self) -> dict[str, Any]:
        """Return what is kept about it beside scores."""
        return {
            "title": self.title,
            "step": self.step,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "data": [Path(place).name for place in self.data],
            "weights": self.fingerprint,
            "recipe": self.settings,
        }


def checkpoints(run: Path, name: str) -> list[Encoder]:
    """Return the checkpoints of a pre-training in the order of their steps, with their costs.

    One that was saved when the run was stopped, between two rows of its log, is left out.

    Raises:
        DataError: There is none, or the log does not say what they took.
    """
    folders = sorted((run / "checkpoints").glob("step-*"))
    if not folders:
        raise DataError(f"{run}: holds no checkpoints; expected those of a pre-training")
    log = read_log(run)
    encoders = []
    for folder in folders:
        step = int(folder.name.removeprefix("step-"))
        rows = [row for row in log if row["step"] <= step and "perf/cpu_seconds" in row]
        if not rows or rows[-1]["step"] < step:
            if folder != folders[-1]:
                continue
            raise DataError(f"{run}/log.jsonl: has no perf/cpu_seconds of step {step}")
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]
        title = METHODS[settings["method"]].title
        data = settings.pop("data")
        encoders.append(
            Encoder(
                name=f"{name}@{step}",
                title=f"{title}-tiny",
                load=lambda folder=folder: load_model_and_features(folder, AudioEncoder),
                settings=settings,
                folder=folder,
                step=step,
                cpu_seconds=sum(row["perf/cpu_seconds"] for row in rows),
                data=tuple([data] if isinstance(data, str) else data),
            )
        )
    return encoders


def random_encoder(name: str, seed: int) -> Encoder:
    """Return an encoder of a recipe of pre-training with random weights."""
    settings = recipe.load(EATRun, name, [])

    def load() -> tuple[AudioEncoder, AudioFeatureExtractor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = METHODS["eat"].encoder(settings.config())
        return model, make_features(Corpus("none", ()), settings.clips, method="eat")

    shape = {"encoder": settings.encoder.model_dump(mode="json")}
    return Encoder(f"random-{seed}", "random encoder", load, shape)
