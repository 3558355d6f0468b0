"""Make the data of `eat verify` from the outputs that the authors of EAT and SSLAM published.

    python -m benchmarks.released_outputs FOLDER

FOLDER has their `features.wav` (32 kHz) and features of it as `.npy`. Kept are the recording at
16 kHz, as torchaudio resamples it (its formula: a sinc of 6 zero crossings with a Hann window that
ends at 0.99 of the new Nyquist frequency), and every eighth row of the features.
"""

import sys
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from eat_audio.checkpoints.verify import FOLDER, RECORDING, RECORDS, STEP

CROSSINGS, ROLLOFF = 6, 0.99


def halved(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Resample to half the rate as `torchaudio.functional.resample` does by default."""
    width = int(np.ceil(CROSSINGS * 2 / ROLLOFF))
    time = np.clip(np.arange(-width, width + 2) / 2 * ROLLOFF, -CROSSINGS, CROSSINGS)
    kernel = np.sinc(time) * np.cos(time * np.pi / CROSSINGS / 2) ** 2 * ROLLOFF / 2
    padded = np.pad(samples, (width, width + 2))
    return np.convolve(padded, kernel[::-1], mode="valid")[::2][: -(-len(samples) // 2)]


def main(source: Path, folder: Path = FOLDER) -> None:
    """Write the recording and the rows."""
    samples, rate = soundfile.read(source / "features.wav")
    assert rate == 32_000 and samples.ndim == 1
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / RECORDING, halved(samples), 16_000, subtype="PCM_16")
    for record in RECORDS:
        features = np.load(source / record.published)
        np.save(folder / record.file, features[::STEP].astype(np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
