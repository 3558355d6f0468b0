"""A small pre-trained model P, fine-tuned ones, and the commands that made them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from commands import Commands, Ended

RECIPE = (
    "extends: eat_tiny\nencoder: {embed_dim: 32, depth: 1, num_heads: 2}\nbatch: 4\n"
    "tau: {start: 0.99, end: 0.998, steps: 480}\nclips: {seconds: 2.0}\n"
    "optim: {lr: 2.0e-3, warmup: 6}\nsteps: 8\nlog_every: 5\nsave_every: 4\n"
)
QUICK = ("steps=4", "optim.warmup=1", "batch=4")


@dataclass(frozen=True)
class Small:
    """What tests of commands begin with."""

    eat: Commands
    folder: Path
    sound: Path
    """A folder of 2 classes with 4 clips each."""
    recipe: Path
    pretrained: Path
    model: Path
    """Fine-tuned: one of two labels per clip."""
    several: Path
    """Fine-tuned: several of the labels animal, cat and dog per clip."""

    def finetune(self, data: Path, out: Path, *settings: str) -> Ended:
        """`eat finetune eat_tiny_finetune --from P steps=4 ...` on some data."""
        words = ("--from", self.pretrained, *QUICK, f"data={data}", *settings, "--out", out)
        return self.eat("finetune", "eat_tiny_finetune", *words)


def make_small(eat: Commands, folder: Path) -> Small:
    """Pre-train, and fine-tune twice, in a few seconds."""
    sound = folder / "sound"
    for label, pitch in {"cat": 300, "dog": 900}.items():
        (sound / label).mkdir(parents=True)
        for n in range(4):
            wave = np.sin(2 * np.pi * (pitch + 20 * n) * np.arange(16_000) / 16_000)
            noise = np.random.default_rng(n).standard_normal(16_000)
            soundfile.write(sound / label / f"{label}{n}.wav", 0.3 * wave + 0.05 * noise, 16_000)
    lines = [
        *("path,label", "cat/cat0.wav,animal;cat", "cat/cat1.wav,animal;cat", "cat/cat2.wav,"),
        *("dog/dog0.wav,animal;dog", "dog/dog1.wav,animal;dog", "dog/dog2.wav,"),
    ]
    (sound / "several.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    made = Small(
        eat,
        folder,
        sound,
        folder / "small.yaml",
        folder / "P",
        folder / "M",
        folder / "several",
    )
    eat("pretrain", made.recipe, f"data={sound}", "--out", made.pretrained).succeeds()
    made.finetune(sound, made.model).succeeds()
    made.finetune(sound / "several.csv", made.several, "loss=bce_per_label").succeeds()
    return made
