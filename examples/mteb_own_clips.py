"""Your labeled clips as a task of MTEB: how good are a model's vectors, by MTEB's own judgement?

    pip install mteb
    python examples/mteb_own_clips.py ESC-50/ --model runs/mine

Logistic regression on the vectors of whole clips, five-fold cross-validation, as in MTEB's ESC50
task; only that the clips are on this machine.
"""

import argparse
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata

import eat_audio as eat
from eat_audio.data.datasets import open_corpus
from eat_audio.integrations.mteb import encoder


class OwnClips(AbsTaskClassification):
    """A corpus that this package understands, with one label per clip."""

    place = ""
    metadata = TaskMetadata(
        name="OwnClips",
        description="Labeled clips of one's own.",
        reference=None,
        dataset={"path": "none", "revision": "none"},
        type="AudioClassification",
        category="a2c",
        eval_splits=["train"],
        eval_langs=["zxx-Zxxx"],
        main_score="accuracy",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
        modalities=["audio"],
    )
    input_column_name = "audio"
    label_column_name = "label"
    is_cross_validation = True

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Decode nothing yet: a clip is read when its row is."""
        corpus = open_corpus(self.place)
        rows = {
            "audio": [str(clip.path) for clip in corpus.clips],
            "label": [clip.labels[0] for clip in corpus.clips],
        }
        order = np.random.default_rng(0).permutation(len(corpus.clips))
        clips = Dataset.from_dict(rows).select(order)
        self.dataset = DatasetDict({"train": clips.with_transform(_decoded)})
        self.data_loaded = True


def _decoded(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows with sound where their paths were."""
    sounds = {
        "audio": [
            {"array": eat.load_audio(path).numpy(), "sampling_rate": 16_000}
            for path in rows["audio"]
        ]
    }
    return {**rows, **sounds} if "audio" in rows else rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="labeled clips: a manifest, or a folder in a known layout")
    parser.add_argument("--model", required=True, help="a folder or a file")
    parser.add_argument("--name", default="me/mine", help="what the model is called")
    told = parser.parse_args()

    task = OwnClips()
    task.place = told.corpus
    model = encoder(told.model, name=told.name)
    result = mteb.evaluate(model, [task], cache=None, co2_tracker=False)
    (scores,) = result.task_results[0].scores["train"]
    print(f"{told.name}: accuracy {scores['accuracy']:.1%}, f1 {scores['f1']:.1%}")


if __name__ == "__main__":
    main()
