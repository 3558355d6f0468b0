"""What does pre-training on AudioSet-2M cost? Counted, beside the published hours.

    python -m benchmarks.cost             (nothing is trained or measured)

Operations are those of `eat_audio.pretraining.flops`, for clips of 10 seconds; the recipes give
steps, clips and GPUs. Writes `benchmarks/results/cost.json` and the table `cost.md` beside it.
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eat_audio import config as recipe
from eat_audio.pretraining.flops import pretraining
from eat_audio.pretraining.run import schema

RESULTS = Path(__file__).parent / "results"
SECONDS = 10.0
"""AudioSet's clips."""
AS2M_CLIPS = 1_912_134
"""EAT's copy of AudioSet-2M (arXiv 2401.03497, section 4.1)."""
EAT = "eat_base_as2m"
LOCAL = "audiomae_base"
GLOBAL = "audiomae_base decoder.attention=global decoder.depth=8"
FIRST = "beats_iter1"
TOKENIZER = "beats_tokenizer_iter2"
FROM_LOGITS = "beats_tokenizer_iter2 target=logits"
NEXT = "beats_iter2 tokenizer=RUN"
STORED = "beats_iter2 labels=FOLDER"


@dataclass(frozen=True)
class Published:
    """What others say that a run took."""

    gpu_hours: int
    gpu: str
    source: str


EAT_HOURS = Published(230, "RTX 3090", "arXiv 2401.03497, table 2: 4 GPUs")
BEATS_HOURS = Published(
    3_600, "V100", "arXiv 2401.03497, table 2: 16 GPUs, about 75 hours for each of 3 iterations"
)
AUDIOMAE_HOURS = Published(
    2_304, "V100", "arXiv 2207.06405, and arXiv 2401.03497, table 2: 64 GPUs, about 36 hours"
)


@dataclass(frozen=True)
class Way:
    """A way to an encoder: runs in a row, each as one would type it."""

    title: str
    stages: tuple[str, ...]
    published: Published | None = None
    unknown: str = ""
    """What is not published of it, or not in agreement."""


WAYS = [
    Way(
        "EAT, 10 epochs",
        (EAT,),
        EAT_HOURS,
        "the text of the same paper says about 58 hours of 4 GPUs, 232 in all",
    ),
    Way(
        "EAT, 30 epochs",
        ("eat_base_as2m_30epochs",),
        unknown="hours; clips per step, taken as for 10 epochs",
    ),
    Way(
        "Audio-MAE",
        (LOCAL,),
        AUDIOMAE_HOURS,
        "the paper says 32 epochs, the released files 33, which are counted",
    ),
    Way("Audio-MAE, global decoder", (GLOBAL,), unknown="hours"),
    Way("BEATs, iteration 1", (FIRST,), unknown="hours apart from those of all iterations"),
    Way(
        "BEATs, iterations 1 and 2",
        (FIRST, TOKENIZER, NEXT),
        unknown="whether labels are made in every step, as counted, or once",
    ),
    Way(
        "BEATs, iterations 1 to 3",
        (FIRST, TOKENIZER, NEXT, TOKENIZER, NEXT),
        BEATS_HOURS,
        "whether the hours include tokenizers; the epochs with them, 342, are of encoders",
    ),
    Way(
        "BEATs, iterations 1 to 3, labels stored",
        (FIRST, TOKENIZER, STORED, TOKENIZER, STORED),
        BEATS_HOURS,
        "the same",
    ),
    Way(
        "BEATs, iteration 3+",
        (FIRST, TOKENIZER, NEXT, FROM_LOGITS, NEXT),
        unknown="hours; which iteration is fine-tuned on the way (2 here, its cost not counted)",
    ),
]


@dataclass(frozen=True)
class Stage:
    """What one run costs."""

    giga_per_clip: float
    """GFLOP of one clip in one step."""
    masks: int
    """Masks that each clip is seen through."""
    clips_per_step: int
    steps: int
    epochs: float
    exa: float
    """EFLOP in all; where labels are read from a disk, with those of making them once."""


@cache
def count(words: str) -> Stage:
    """Count one run; of how many GPUs it makes use, the head of its recipe says."""
    name, *changes = words.split()
    settings = recipe.load(schema, name, changes)
    found = re.search(r"x (\d+) GPUs", recipe.about(name).epochs)
    assert found, f"{name} does not say how many GPUs"
    flop = pretraining(settings, seconds=SECONDS).total
    clips_per_step = settings.batch * settings.accumulate * int(found[1])
    clips = clips_per_step * settings.steps
    return Stage(
        flop / 1e9,
        getattr(settings, "masks", 1),
        clips_per_step,
        settings.steps,
        clips / AS2M_CLIPS,
        (flop * clips + (labeling() if words == STORED else 0.0)) / 1e18,
    )


def labeling() -> float:
    """Operations of a tokenizer that encodes every clip of the corpus once."""
    name, *changes = NEXT.split()
    cost = pretraining(recipe.load(schema, name, changes), seconds=SECONDS)
    return cost.forward["tokenizer"] * AS2M_CLIPS


STAGE_COLUMNS = (
    *("run", "GFLOP per clip", "masks", "GFLOP per mask"),
    *("clips per step", "steps", "epochs", "EFLOP"),
)
WAY_COLUMNS = (
    *("way to an encoder", "EFLOP", "beside EAT", "published GPU-hours", "beside EAT"),
    *("TFLOP/s per GPU, from both", "not known, or published in two ways"),
)


def results() -> dict[str, Any]:
    """Every run, and every way to an encoder beside EAT's 10 epochs."""
    stages = {words: count(words) for way in WAYS for words in way.stages}
    ways = []
    for way in WAYS:
        exa = sum(stages[words].exa for words in way.stages)
        row: dict[str, Any] = {
            "title": way.title,
            "stages": way.stages,
            "exa": exa,
            "exa_to_eat": exa / stages[EAT].exa,
            "unknown": way.unknown,
            "published": None,
        }
        if way.published is not None:
            hours = way.published.gpu_hours
            row["published"] = asdict(way.published) | {
                "hours_to_eat": hours / EAT_HOURS.gpu_hours,
                "tera_per_second": exa * 1e6 / (hours * 3_600),
            }
        ways.append(row)
    return {
        "command": "python -m benchmarks.cost",
        "seconds": SECONDS,
        "stages": {words: asdict(stage) for words, stage in stages.items()},
        "ways": ways,
    }


def table(found: dict[str, Any]) -> str:
    """What `cost.md` says."""
    lines = [
        "Base models, pre-trained on AudioSet-2M. Operations (FLOP, a multiply-add is two) are "
        f"counted, for clips of {found['seconds']:g} s and the steps of the recipes; "
        f"epochs are of {AS2M_CLIPS:,} clips.",
        "",
        *_head(*STAGE_COLUMNS),
    ]
    for words, one in found["stages"].items():
        cells = [
            f"`{words}`",
            f"{one['giga_per_clip']:,.1f}",
            str(one["masks"]),
            f"{one['giga_per_clip'] / one['masks']:,.1f}",
            f"{one['clips_per_step']:,}",
            f"{one['steps']:,}",
            f"{one['epochs']:.1f}",
            f"{one['exa']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_head(*WAY_COLUMNS)]
    for way in found["ways"]:
        shown = way["published"]
        hours = ["not published", "", ""]
        if shown is not None:
            hours = [
                f"{shown['gpu_hours']:,} ({shown['gpu']}; {shown['source']})",
                f"{shown['hours_to_eat']:.2f}",
                f"{shown['tera_per_second']:.1f}",
            ]
        cells = [way["title"], f"{way['exa']:.1f}", f"{way['exa_to_eat']:.2f}", *hours]
        lines.append(f"| {' | '.join([*cells, way['unknown']])} |")
    return "\n".join([*lines, "", conclusion(found)]) + "\n"


def conclusion(found: dict[str, Any]) -> str:
    """What the counted operations explain of the published hours, and what they do not."""
    ways = {way["title"]: way for way in found["ways"]}
    eat, mae = ways["EAT, 10 epochs"], ways["Audio-MAE"]
    beats, stored = (ways[f"BEATs, iterations 1 to 3{end}"] for end in ("", ", labels stored"))
    one, other = found["stages"][EAT], found["stages"][LOCAL]
    per_mask = other["giga_per_clip"] / (one["giga_per_clip"] / one["masks"])

    def shown(way: dict[str, Any], name: str) -> float:
        return float(way["published"][name])

    sentences = [
        "The published speed-ups of EAT "
        f"({shown(beats, 'hours_to_eat'):.2f} times over BEATs, {shown(mae, 'hours_to_eat'):.2f} "
        "times over Audio-MAE) are ratios of GPU-hours of different GPUs, and operations explain "
        "about half of the first and nothing of the second:",
        f"BEATs' three iterations take {stored['exa_to_eat']:.1f} to {beats['exa_to_eat']:.1f} "
        f"times the operations of EAT's 10 epochs, and Audio-MAE {mae['exa_to_eat']:.2f} times, "
        "which is fewer.",
        "The rest is what counting does not see, hardware, precision, code and waiting for data: "
        f"the hours amount to {shown(eat, 'tera_per_second'):.0f} TFLOP/s per GPU for EAT, "
        f"{shown(stored, 'tera_per_second'):.0f} to {shown(beats, 'tera_per_second'):.0f} for "
        "BEATs (less if its hours leave tokenizers out) and "
        f"{shown(mae, 'tera_per_second'):.1f} for Audio-MAE.",
        f"What operations do show is the price of a masked view: one of Audio-MAE's costs "
        f"{per_mask:.1f} of EAT's, which sees a clip through {one['masks']} in every epoch.",
    ]
    return "\n".join(sentences)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def main() -> None:
    found = results()
    (RESULTS / "cost.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "cost.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
