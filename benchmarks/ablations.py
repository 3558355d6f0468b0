"""What single settings of EAT's pre-training are worth at a small size: the paper's ablations.

    python -m benchmarks.ablations                         # what is missing, three seeds
    python -m benchmarks.ablations --only block masks
    python -m benchmarks.ablations --commands              # every run as a recipe, small and full
    python -m benchmarks.ablations --print                 # the page, from the results alone

A run is `eat_tiny_ablation` with one setting changed, on pool_open without labels. Its encoder is
frozen and read out by logistic regressions on ESC-10's five folds. Every run is written at once; a
rerun skips what is there. The extremes of all settings come first, one seed after the other.
"""

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import hypot
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from benchmarks.compare_methods import machine
from benchmarks.markdown import wrapped
from benchmarks.small import leaks
from benchmarks.small.datasets import DATASETS, Recordings
from benchmarks.small.encoders import random_encoder
from eat_audio import config
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.loader import collate
from eat_audio.errors import EatError
from eat_audio.evaluation.metrics import Array, linear_score
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.layers import masked_mean, read_out
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining import run as pretraining
from eat_audio.pretraining.eat import EATRun
from eat_audio.progress import print_lines
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_json, write_text

RECIPE, FULL = "eat_tiny_ablation", "eat_base_as2m"
POOL = "pool_open"
(ESC10,) = (dataset for dataset in DATASETS if dataset.name == "esc10")
RESULT = Path(__file__).parent / "results" / "ablations.json"
PAGE = Path(__file__).parent.parent / "docs" / "results" / "ablations.md"
MARKS = ("<!-- ablations -->\n", "<!-- end of ablations -->\n")
RANDOM, BASE = "random weights", "the recipe"
"""Rows beside those of changes: encoders that were not trained, and runs without a change."""
VIEWS = {"all": "all layers and CLS", "cls": "CLS", "mean": "mean of patches"}
"""What is read out, by name; the last two of the last layer."""
BATCH = 16
SEEDS = 3


@dataclass(frozen=True)
class Ablation:
    """A setting, the values that it is given, and that of the released base run."""

    title: str
    setting: str
    own: str
    """The value of the small recipe, as it is typed; so are the others."""
    first: tuple[str, ...]
    """The extremes, which are measured before the others."""
    then: tuple[str, ...]
    released: str
    published: str
    """What is documented of the paper, its code or its successors."""

    @property
    def values(self) -> tuple[str, ...]:
        """All of them, in the order of the table."""
        return tuple(sorted({self.own, *self.first, *self.then}, key=_order))

    def change(self, value: str) -> str:
        """Return what the recipe is changed by."""
        return BASE if value == self.own else f"{self.setting}={value}"


def _order(value: str) -> tuple[float, ...]:
    """Numbers by size, blocks by area, several shapes and null last."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", value)]
    return (float(len(numbers) > 2 or not numbers), *numbers)


ABLATIONS = {
    "utterance": Ablation(
        "weight of the utterance loss, per clip",
        "utterance_weight",
        own="1",
        first=("0", "10"),
        then=("0.1", "192"),
        released="192",
        published='192: "cls_loss: 1" of the released code is a sum over 12 clips x 16 masks',
    ),
    "block": Ablation(
        "visible blocks, time x frequency, at 80 % hidden",
        "block",
        own="[2,2]",
        first=("[1,1]", "[8,8]", "[[2,2],[5,5],[2,8],[8,2]]"),
        then=("[5,5]",),
        released="[5,5]",
        published="5 x 5 (table 3); large inverse blocks (abstract)",
    ),
    "ratio": Ablation(
        "share of hidden patches",
        "hidden_ratio",
        own="0.8",
        first=("0.5", "0.9"),
        then=(),
        released="0.8",
        published="0.8 (released mask_prob)",
    ),
    "masks": Ablation(
        "masks (clones) of a clip",
        "masks",
        own="4",
        first=("1", "8"),
        then=("16",),
        released="16",
        published='16 (table 4, "clone batch")',
    ),
    "depth": Ablation(
        "layers of the decoder",
        "decoder.layers",
        own="2",
        first=("1", "6"),
        then=(),
        released="6",
        published="6 (released decoder_layers)",
    ),
    "kernel": Ablation(
        "kernel of the decoder",
        "decoder.kernel",
        own="5",
        first=("3", "7"),
        then=(),
        released="3",
        published="3 (released decoder_kernel)",
    ),
    "targets": Ablation(
        "layers of the teacher in the target, from the last; null: all",
        "average_layers",
        own="null",
        first=("1",),
        then=("2",),
        released="null",
        published="all 12 (released average_top_k_layers); SSLAM's utterance targets: of the last "
        "layer 40.6, of all 12 40.5 mAP on AS-20K (arXiv 2506.12222, table 6, second hand)",
    ),
}
POOLING = "CLS against mean of patches"
"""One more ablation, which takes no run of its own: both are read out of every encoder."""


# ---- what is run


def runs(names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Return changes and seeds in the order in which they are measured."""
    chosen = [ABLATIONS[name] for name in names]
    first = [RANDOM, BASE, *(one.change(value) for one in chosen for value in one.first)]
    then = [one.change(value) for one in chosen for value in one.then]
    both = [
        [(change, seed) for seed in range(seeds) for change in group] for group in (first, then)
    ]
    return list(dict.fromkeys(both[0] + both[1]))


def commands() -> Iterator[str]:
    """Yield the commands of all runs, of the small recipe and of the full one."""
    for one in ABLATIONS.values():
        for value in one.values:
            change = f"'{one.setting}={value}'"
            yield f"eat pretrain {RECIPE} {change} data={POOL}/ --out runs/ablation"
            yield f"eat pretrain {FULL} {change} data=as2m.tsv --out runs/ablation"
    for pooling in ("cls", "mean"):
        yield (
            f"eat finetune eat_as20k_finetune encoder.pooling={pooling} --from runs/base "
            "data=as20k/ --out runs/as20k"
        )


def settings(change: str, seed: int, data: Path) -> EATRun:
    """Return the settings of a run."""
    changes = [] if change in (RANDOM, BASE) else [change]
    return config.load(EATRun, RECIPE, [*changes, f"seed={seed}", f"data={data}"])


def recorded() -> dict[str, Any]:
    """Return the recipe as it is stored: results of another one are not added to."""
    return config.load(EATRun, RECIPE).model_dump(mode="json", exclude={"data", "seed"})


def measure(change: str, seed: int, data: Path, out: Path, clips: Recordings) -> dict[str, Any]:
    """Pre-train, unless weights are to be random, and read out; return what is stored."""
    if change == RANDOM:
        encoder = random_encoder(RECIPE, seed)
        return {"scores": scores(encoder.model, encoder.front_end, clips)}
    place = out / f"{re.sub(r'[^A-Za-z0-9.]+', '_', change)}-{seed}"
    pretraining.run(settings(change, seed, data / POOL), out=place, resume=True)
    log = read_log(place)
    cell = {
        "scores": scores(*load_model_and_features(place, AudioEncoder), clips),
        "cpu_seconds": round(sum(row.get("perf/cpu_seconds", 0.0) for row in log), 1),
        "position_share": round(log[-1]["target/position_share"], 3),
    }
    shutil.rmtree(place / "checkpoints")
    return cell


def scores(
    encoder: AudioEncoder, features: AudioFeatureExtractor, clips: Recordings
) -> dict[str, float]:
    """Return the accuracy of each view, percent: the mean over the folds."""
    vectors = read_outs(encoder.eval(), features, clips)
    percent = {}
    for view, x in vectors.items():
        folds = []
        for part in ESC10.parts:
            train, test = clips.numbers(part.train), clips.numbers(part.test)
            known, right = clips.labels[train], clips.labels[test]
            folds.append(linear_score(x[train], known, x[test], right, multi_label=False))
        percent[view] = round(100 * mean(folds), 2)
    return percent


@torch.inference_mode()
def read_outs(
    encoder: AudioEncoder, features: AudioFeatureExtractor, clips: Recordings
) -> dict[str, Array]:
    """Return the views of all clips, whole: (clips, 3 layers D + D), and (clips, D) twice."""
    rows: dict[str, list[torch.Tensor]] = {view: [] for view in VIEWS}
    for start in range(0, len(clips.clips), BATCH):
        part = slice(start, start + BATCH)
        waveforms = [torch.from_numpy(waveform) for waveform in clips.waveforms[part]]
        batch = collate(clips.clips[part], waveforms, classes=0, step=0)
        log_mel = features.log_mel(batch.waveforms, batch.lengths)
        encoded, bands = (
            encoder.encode(log_mel.values, log_mel.frame_mask),
            encoder.grid(log_mel.values)[1],
        )
        assert encoded.cls is not None
        layers = (encoded.layer(number) for number in range(1, len(encoded.states)))
        outs = [read_out(tokens, encoded.valid, bands) for tokens in layers]
        rows["all"].append(torch.cat([*outs, encoded.cls], dim=1))
        rows["cls"].append(encoded.cls)
        rows["mean"].append(masked_mean(encoded.patches, encoded.valid))
    return {view: torch.cat(parts).float().numpy() for view, parts in rows.items()}


def measure_all(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure what is missing, and write every run at once.

    Raises:
        EatError: The data cannot be used, or the results are of another recipe.
    """
    if results["recipe"] != recorded():
        raise EatError(
            f"{options.json}: is of another {RECIPE}; choose another --json, or remove it"
        )
    if names := leaks.shared([str(options.data / POOL)], options.data / ESC10.place):
        raise EatError(f"{options.data / POOL}: shares {len(names)} recordings with {ESC10.title}")
    clips = ESC10.open(options.data, options.out / "cache")
    for change, seed in runs(options.only or list(ABLATIONS), options.seeds):
        row = results["runs"].setdefault(change, {})
        if str(seed) in row:
            continue
        row[str(seed)] = cell = measure(change, seed, options.data, options.out, clips)
        packages = ("eat-audio", "torch", "transformers", "numpy", "scikit-learn")
        cell["made_with"] = {"machine": machine()} | {name: version(name) for name in packages}
        write_json(options.json, results)
        print_lines(
            f"{time.strftime('%H:%M:%S')} {change}, seed {seed}: {cell['scores']}", error=True
        )


# ---- what is said


class Score(NamedTuple):
    """A mean over seeds, percent, and the standard deviation over them; None of one seed."""

    mean: float
    spread: float | None
    seeds: int

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.mean:.1f}{spread}" + (
            "" if self.seeds == SEEDS else f" ({self.seeds} of {SEEDS} seeds)"
        )


def score(results: dict[str, Any], change: str, view: str = "all") -> Score | None:
    """Return the score of a change; None if it was not measured."""
    values = [cell["scores"][view] for cell in results["runs"].get(change, {}).values()]
    if not values:
        return None
    return Score(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def table(results: dict[str, Any]) -> str:
    """Return a row per value, setting by setting."""
    lines = [
        f"| setting | value | {' | '.join(VIEWS.values())} | CPU s |",
        "|---" * (len(VIEWS) + 3) + "|",
        _row(results, RANDOM, "", RANDOM),
    ]
    for one in ABLATIONS.values():
        for number, value in enumerate(one.values):
            marks = [
                text
                for text, marked in (("recipe", one.own), ("released", one.released))
                if value == marked
            ]
            shown = f"`{value}`" + (f" ({', '.join(marks)})" if marks else "")
            lines.append(
                _row(results, f"`{one.setting}`" if not number else "", shown, one.change(value))
            )
    return "\n".join(lines) + "\n"


def _row(results: dict[str, Any], name: str, value: str, change: str) -> str:
    found = [score(results, change, view) for view in VIEWS]
    cells = [str(one) if one else "not measured" for one in found]
    seconds = [cell.get("cpu_seconds") for cell in results["runs"].get(change, {}).values()]
    spent = [second for second in seconds if second is not None]
    cost = f"{mean(spent):.0f}" if spent else ""
    return f"| {' | '.join([name, value, *cells, cost])} |"


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return a sentence per setting: whether what the paper chose is best at this size, too."""
    sentences = []
    for one in ABLATIONS.values():
        changes = {value: one.change(value) for value in one.values}
        views = {view: _measured(results, changes, view) for view in ("all", "mean")}
        missing = [f"`{value}`" for value in changes if value not in views["all"]]
        sentence = "not measured."
        if len(views["all"]) > 1:
            compared = (f"{VIEWS[v]}: {_verdict(x, one.released)}" for v, x in views.items())
            more = f" Not measured: {', '.join(missing)}." if missing else ""
            sentence = " ".join(compared) + more
        sentences.append(f"**{one.title}** (published: {one.published}): {sentence}")
    both = {view: score(results, BASE, view) for view in ("cls", "mean")}
    sentence = _verdict({view: one for view, one in both.items() if one}, "cls")
    return [*sentences, f"**{POOLING}** (published: CLS, in fine-tuning): {sentence}"]


def _measured(results: dict[str, Any], changes: dict[str, str], view: str) -> dict[str, Score]:
    found = {value: score(results, change, view) for value, change in changes.items()}
    return {value: one for value, one in found.items() if one}


def _verdict(measured: dict[str, Score], released: str) -> str:
    """Compare the best value with the released one, by the spread of both over seeds."""
    if len(measured) < 2:
        return "not measured."
    order = sorted(measured, key=lambda value: -measured[value].mean)
    best = order[0]
    worst = f"worst `{order[-1]}`, {measured[order[-1]]}"
    if released not in measured:
        return f"best `{best}`, {measured[best]}; {worst}. Whether this agrees is open."
    rival = order[1] if best == released else best
    gap = measured[released].mean - measured[rival].mean
    spread = hypot(measured[released].spread or 0.0, measured[rival].spread or 0.0)
    agrees = "agrees" if gap > 0 else "does not agree"
    beside = f" where the spread of both is {spread:.1f}"
    if any(measured[value].spread is None for value in (released, rival)):
        agrees, beside = "open, for one seed has no spread", ""
    elif abs(gap) <= spread:
        agrees = "neither agrees nor disagrees"
    return (
        f"{agrees}: `{released}` {measured[released]}, the best other `{rival}` {measured[rival]}, "
        f"a difference of {gap:+.1f}{beside}; {worst}."
    )


def filled(text: str, results: dict[str, Any]) -> str:
    """Return the text of the page with what the results say between its marks."""
    before, rest = text.split(MARKS[0])
    sentences = "".join(f"- {sentence}\n" for sentence in verdicts(results))
    made = f"{table(results)}\n{wrapped(sentences)}"
    return f"{before}{MARKS[0]}\n{made}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def read(file: Path) -> dict[str, Any]:
    """Return the results of a file; nothing measured if there is none."""
    if not file.is_file():
        return {"recipe": recorded(), "runs": {}}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="the folder of all corpora (%(default)s)")
    add("--out", type=Path, default=Path("runs/ablations"), help="keeps the runs (%(default)s)")
    add("--json", type=Path, default=RESULT, help="the results (%(default)s)")
    add("--only", nargs="+", choices=tuple(ABLATIONS), help="these settings, no others")
    add("--seeds", type=int, default=SEEDS, help="at most so many (%(default)s)")
    add("--print", action="store_true", help="measure nothing, write the page")
    add("--commands", action="store_true", help="print the commands of all runs, run nothing")
    options = parser.parse_args()
    if options.commands:
        print_lines(*commands())
        return
    torch.set_num_threads(1)
    results = read(options.json)
    try:
        if not options.print:
            measure_all(results, options)
    except EatError as error:
        raise SystemExit(f"benchmarks.ablations: {error}") from None
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), results))
    print(table(results))
    print_lines(*verdicts(results))


if __name__ == "__main__":
    main()
