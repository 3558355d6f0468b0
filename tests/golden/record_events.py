"""Record what sed_eval, psds_eval and crowsetta say of made events: events.json, annotations.json.

    pip install sed_eval psds_eval crowsetta "pandas<3" "numpy<2.3"
    python tests/golden/record_events.py

None of them is needed by the tests, which compare with the two files.
"""

import json
import math
import random
import tempfile
from importlib.metadata import version
from pathlib import Path

import crowsetta
import pandas
import psds_eval
import sed_eval

FOLDER = Path(__file__).parent
COLUMNS = ["filename", "onset", "offset", "event_label"]


def made(seed, files, labels, seconds, per_file, *, apart=False, missed=0.2, false=0.5):
    """Random events, and detections of them that are shifted, missed or false."""
    rng = random.Random(seed)
    truth, found = [], []
    for file in files:
        for label in labels:
            now = 0.0
            for _ in range(rng.randint(0, per_file)):
                onset = now + rng.uniform(0, 2.0) if apart else rng.uniform(0, seconds - 1)
                offset = min(onset + rng.uniform(0.2, 3.0), seconds)
                now = offset + 0.3
                if now >= seconds:
                    break
                truth.append([file, round(onset, 3), round(offset, 3), label])
                if rng.random() > missed:
                    shift = (rng.gauss(0, 0.15), rng.gauss(0, 0.25))
                    a, b = max(onset + shift[0], 0), min(offset + shift[1], seconds)
                    if b > a + 0.01:
                        score = round(rng.uniform(0.3, 1), 2)
                        found.append([file, round(a, 3), round(b, 3), label, score])
            if rng.random() < false:
                a = rng.uniform(0, seconds - 1)
                score = round(rng.uniform(0.1, 0.8), 2)
                found.append([file, round(a, 3), round(a + 0.8, 3), label, score])
    return {"seconds": dict.fromkeys(files, seconds), "truth": truth, "detections": found}


def cases():
    """All cases by name."""
    some = ["a.wav", "b.wav", "c.wav", "d.wav"]
    yield "apart", made(0, some, ["cat", "dog", "owl"], 20.0, 4, apart=True)
    yield "crowded", made(1, some, ["cat", "dog", "owl"], 15.0, 8)
    yield "hours", made(2, ["x.wav", "y.wav"], ["frog", "owl"], 3600.0, 60, false=1.0)
    files = [f"{number}.wav" for number in range(8)]
    yield "minutes", made(7, files, ["bell", "cat", "frog", "owl"], 600.0, 12, false=2.0)
    yield "one label", made(3, some, ["owl"], 30.0, 6)
    never = made(4, some, ["cat", "dog"], 20.0, 4, apart=True)
    never["detections"] = [row for row in never["detections"] if row[3] != "dog"]
    yield "a label without detections", never
    yield "no detections", never | {"detections": []}
    other = made(5, some, ["cat", "dog"], 20.0, 4, apart=True)
    other["detections"] += [["a.wav", 1.0, 2.0, "siren", 0.9], ["b.wav", 3.0, 4.0, "bell", 0.5]]
    yield "labels that nobody annotated", other
    empty = made(6, ["a.wav", "b.wav"], ["cat", "dog"], 20.0, 5, apart=True)
    empty["seconds"] |= {"silent.wav": 20.0, "false.wav": 20.0, "missed.wav": 20.0}
    empty["truth"].append(["missed.wav", 2.0, 4.0, "dog"])
    empty["detections"] += [["false.wav", 0.0, 1.0, "cat", 0.9], ["false.wav", 5, 6, "dog", 0.4]]
    yield "empty recordings", empty
    truth = [
        ["a.wav", 0.0, 1.0, "cat"],
        ["a.wav", 9.0, 10.0, "cat"],
        ["a.wav", 4.0, 6.0, "dog"],
        ["b.wav", 1.0, 2.0, "dog"],
        ["b.wav", 0.0, 10.0, "cat"],
        ["b.wav", 3.0, 4.0, "dog"],
        ["b.wav", 5.5, 5.5, "dog"],
    ]
    found = [
        ["a.wav", 0.2, 1.2, "cat", 0.9],
        ["a.wav", 8.8, 10.0, "cat", 0.8],
        ["a.wav", 4.2, 6.4, "dog", 0.7],
        ["b.wav", 0.75, 1.75, "dog", 0.6],
        ["b.wav", 0.0, 7.0, "cat", 0.5],
        ["b.wav", 8.0, 10.0, "cat", 0.95],
        ["b.wav", 3.3, 4.3, "dog", 0.4],
        ["b.wav", 9.5, 12.0, "dog", 0.3],
    ]
    seconds = {"a.wav": 10.0, "b.wav": 10.0}
    yield "borders", {"seconds": seconds, "truth": truth, "detections": found}
    # Only the best matching finds three: the first detection fits both of the first events.
    truth = [["a.wav", t, t + 1.0, "cat"] for t in (1.0, 1.15, 1.3)] + [["a.wav", 5, 6, "dog"]]
    found = [["a.wav", t, t + 1.0, "cat", 0.9] for t in (0.85, 1.0, 1.15)]
    yield "chains", {"seconds": {"a.wav": 10.0}, "truth": truth, "detections": found}


def joined(rows):
    """Rows without overlaps of one label, as psds_eval wants them."""
    result = []
    for file, onset, offset, label in sorted(rows, key=lambda row: (row[0], row[3], row[1])):
        last = result[-1] if result else None
        if last and [last[0], last[3]] == [file, label] and onset < last[2]:
            last[2] = max(last[2], offset)
        else:
            result.append([file, onset, offset, label])
    return result


def sed(case, metrics):
    """What sed_eval counts and scores."""
    labels = {row[3] for row in case["truth"]}
    for file in case["seconds"]:
        truth, found = (
            [
                {"filename": file, "onset": r[1], "offset": r[2], "event_label": r[3]}
                for r in case[key]
                if r[0] == file and r[3] in labels
            ]
            for key in ("truth", "detections")
        )
        if truth or found:
            metrics.evaluate(truth, found)
    overall = metrics.overall_f_measure()["f_measure"]
    average = metrics.results_class_wise_average_metrics()["f_measure"]["f_measure"]
    return {
        "f1": None if math.isnan(overall) else overall,
        "macro": None if math.isnan(average) else average,
        "counts": {
            label: [int(count[key]) for key in ("Ntp", "Nsys", "Nref")]
            for label, count in metrics.class_wise.items()
        },
    }


def psds1(case):
    """What psds_eval makes of the detections above every score."""
    truth = pandas.DataFrame(joined(case["truth"]), columns=COLUMNS)
    lengths = pandas.DataFrame(list(case["seconds"].items()), columns=["filename", "duration"])
    oracle = psds_eval.PSDSEval(0.7, 0.7, 0.3, ground_truth=truth, metadata=lengths)
    for lowest in sorted({row[4] for row in case["detections"]}) or [0.5]:
        rows = joined(row[:4] for row in case["detections"] if row[4] >= lowest)
        oracle.add_operating_point(pandas.DataFrame(rows, columns=COLUMNS))
    if len(set(truth.event_label)) > 1:
        return oracle.psds(alpha_ct=0.0, alpha_st=1.0, max_efpr=100).value
    # With one label its effective rate is nan (a mean over no other labels): use the plain curve.
    curve = oracle.psd_roc_curves(0.0)[0]
    return oracle._auc(curve.xp, curve.yp[0], 100, True) / 100


def record_scores():
    """Write events.json."""
    records = {}
    for name, case in cases():
        labels = sorted({row[3] for row in case["truth"]})
        event = sed_eval.sound_event.EventBasedMetrics(
            labels,
            t_collar=0.2,
            percentage_of_length=0.2,
            empty_system_output_handling="zero_score",
        )
        segment = sed_eval.sound_event.SegmentBasedMetrics(labels, time_resolution=1.0)
        scores = {"event": sed(case, event), "segment": sed(case, segment), "psds1": psds1(case)}
        records[name] = case | scores
    about = {package: version(package) for package in ("sed_eval", "psds_eval")}
    write(FOLDER / "events.json", {"versions": about, "cases": records})


TABLE = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\t"
    "Low Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    "1\tSpectrogram 1\t1\t154.387792767\t154.911598217\t2878.2\t4049.0\tEATO\n"
    '2\tSpectrogram 1\t2\t167.526598245\t168.17302044\t2731.9\t3902.7\tUhu "gro\u00df"\n'
)
TRACK = "1.000000\t2.500000\tdog bark\n3.000000\t3.250000\t\u30d5\u30af\u30ed\u30a6\n"


def record_annotations():
    """Write annotations.json."""
    with tempfile.TemporaryDirectory() as folder:
        table, track = Path(folder, "a.Table.1.selections.txt"), Path(folder, "b.txt")
        table.write_text(TABLE, encoding="utf-8")
        track.write_text(TRACK, encoding="utf-8")
        boxes = crowsetta.formats.bbox.Raven.from_file(table, annot_col="Species").to_bbox()
        sequence = crowsetta.formats.seq.AudSeq.from_file(track)
    raven = [[b.onset, b.offset, b.label, b.low_freq, b.high_freq] for b in boxes]
    times = (sequence.start_times.tolist(), sequence.end_times.tolist(), list(sequence.labels))
    record = {
        "versions": {"crowsetta": version("crowsetta")},
        "raven": {"text": TABLE, "events": raven},
        "audacity": {"text": TRACK, "events": [list(row) for row in zip(*times, strict=True)]},
    }
    write(FOLDER / "annotations.json", record)


def write(path, record):
    """Write JSON, rows of numbers in one line each."""
    text = json.dumps(record, ensure_ascii=False, default=float, allow_nan=False).replace(
        "], [", "],\n["
    )
    path.write_text(text.replace('}, "', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    record_scores()
    record_annotations()
