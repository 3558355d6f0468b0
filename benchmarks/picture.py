"""Draw the picture of the README: a clip's spectrogram, a mask of pre-training, and its tags.

    python -m benchmarks.picture          writes docs/picture.svg

The clip and the tagger ship with the package; the mask is one of the recipe that pre-trained it.
"""

from pathlib import Path

import numpy as np
import torch

import eat_audio as eat
from eat_audio import config
from eat_audio.audio.fbank import log_mel
from eat_audio.checkpoints import shipped
from eat_audio.pretraining.eat import EATRun
from eat_audio.report import figures
from eat_audio.rng import clip_keys, hash_id

CLIP = shipped.FOLDER / "examples" / "crying_baby.ogg"
RECIPE = "eat_tiny_open"
PICTURE = Path(__file__).parent.parent / "docs" / "picture.svg"
TAGS = 3


def draw(path: Path = PICTURE) -> None:
    """Write the picture as SVG."""
    model = eat.load(precision="fp32")
    waveform = eat.load_audio(CLIP)
    spectrogram = log_mel(waveform[None])[0].numpy()  # (T, F)
    tags = model.predict(CLIP)[:TAGS]
    steps = np.concatenate(list(model.predict_frames(CLIP)))  # (steps, classes)
    seconds = len(waveform) / 16_000
    with figures.drawing(8.0, 5.2) as figure:
        upper, middle, lower = figure.subplots(3, sharex=True)
        figures.draw_spectrogram(upper, spectrogram, seconds)
        figures.draw_spectrogram(middle, spectrogram, seconds, mask_of(spectrogram))
        times = (np.arange(len(steps)) + 0.5) * 0.16
        for tag, color in zip(tags, figures.COLORS, strict=False):
            values = steps[:, model.labels.index(tag.label)]
            lower.plot(times, values, color=color, label=f"{tag.label}: {tag.score:.2f}")
        upper.set_title(f"{CLIP.name}: log-mel spectrogram", loc="left")
        middle.set_title(f"what is visible to the encoder in pre-training ({RECIPE})", loc="left")
        lower.set_title("tags of the model that ships, over time and for the clip", loc="left")
        lower.set_ylim(0, 1.3)
        lower.set_yticks([0, 0.5, 1])
        lower.set_xlim(0, seconds)
        lower.set_xlabel("seconds")
        lower.legend(loc="upper center", ncols=TAGS, frameon=False)
        path.write_text(figures.to_svg(figure, f"{CLIP.name}, its mask and tags"), encoding="utf-8")


def mask_of(spectrogram: np.ndarray) -> np.ndarray:
    """Return the hidden patches (columns, rows) of the clip's first mask."""
    settings = config.load(EATRun, RECIPE)
    grid = (-(-len(spectrogram) // 16), 8)
    keys = clip_keys(settings.seed, 0, torch.tensor([hash_id(CLIP.stem)]), 1)
    masks = settings.sample_masks(keys, grid, torch.tensor([grid[0]]))
    return masks.hidden[0, 0].view(grid).numpy()


if __name__ == "__main__":
    draw()
