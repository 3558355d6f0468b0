"""The HTTP service under load: lost requests, growth of memory, speed beside `eat predict`.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_load

One `eat serve` with the model that ships, 32 clients that send ESC-10 clips (5 s Ogg in EAT_DATA)
one after the other, each answer compared with that of `eat predict`. `eat predict` runs on the
same clips with the same threads before, between and after the stretches of load, because other
work on the machine comes and goes. It is timed from its first line to its last, without its start.

A thread of the service that waits for Python's lock gives up its turn on a processor: where more
threads want to run than there are cores, that costs turns, not work. So "priority" is part of the
result, and "cpu_ratio" compares the processor's time alone.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed.measure import host
from eat_audio.audio import load_int16
from eat_audio.inference.predictor import load

RESULT = Path(__file__).parent / "results" / "serve.json"
EAT = [sys.executable, "-m", "eat_audio"]
SAMPLE_SECONDS = 5.0
"""Between two looks at the memory of the service."""
GROWTH_MB = 16.0
"""What the memory may grow by from the second to the last tenth of all looks at it."""
TARGET = 0.9
"""Of the clips per second of `eat predict`."""
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass
class Rate:
    """How fast clips were worked on."""

    clips: int
    seconds: float
    cpu: float
    """Seconds of the processor."""

    @property
    def per_second(self) -> float:
        """Clips per second by the clock."""
        return self.clips / self.seconds


@dataclass
class Load:
    """What the clients met."""

    requests: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    """Answers that are not those of `eat predict`."""
    latencies: list[float] = field(default_factory=list)


def predict(clips: list[Path]) -> tuple[Rate, list[Any]]:
    """Run `eat predict` on clips; return its rate and its answers."""
    command = [*EAT, "predict", "--json", *map(str, clips)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answers, times, cpus = [], [], []
        for line in process.stdout:
            times.append(time.perf_counter())
            cpus.append(_cpu_seconds(process.pid))
            answers.append(json.loads(line)["predictions"])
    if process.returncode or len(answers) != len(clips):
        raise SystemExit(f"eat predict: exit code {process.returncode}, {len(answers)} answers")
    return Rate(len(clips) - 1, times[-1] - times[0], cpus[-1] - cpus[0]), answers


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def service() -> Iterator[tuple[str, int]]:
    """Run `eat serve`; yield its host and port."""
    command = [*EAT, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://([^:]+):(\d+)", process.stdout.readline())
        if address is None:
            raise SystemExit("eat serve: did not start")
        try:
            yield address[1], int(address[2])
        finally:
            process.terminate()
    if process.returncode:
        raise SystemExit(f"eat serve: exit code {process.returncode} at its end")


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, body: bytes
) -> tuple[int, bytes]:
    """Return status and body of the answer to a request."""
    lines = f"{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{lines}Content-Type: audio/ogg\r\n\r\n".encode() + body)
    await writer.drain()
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", answer)
    assert length is not None, answer
    return int(answer.split()[1]), await reader.readexactly(int(length[1]))


async def client(
    address: tuple[str, int],
    load: Load,
    clips: list[bytes],
    answers: list[Any],
    *,
    first: int,
    end: float,
) -> None:
    """Send clips one after the other until a time, and compare the answers."""
    reader, writer = await asyncio.open_connection(*address)
    for number in count(first):
        if (begin := time.perf_counter()) > end:
            break
        n = number % len(clips)
        load.requests += 1
        try:
            status, body = await request(reader, writer, "POST /tag", clips[n])
        except (OSError, EOFError) as error:
            load.failed.append(repr(error))
            reader, writer = await asyncio.open_connection(*address)
            continue
        load.latencies.append(time.perf_counter() - begin)
        if status != 200:
            load.failed.append(f"{status} {body[:200]!r}")
        elif json.loads(body)["predictions"] != answers[n]:
            load.wrong += 1
    writer.close()


async def measures(address: tuple[str, int]) -> tuple[float, float]:
    """Return megabytes of memory and seconds of the processor that the service has used."""
    reader, writer = await asyncio.open_connection(*address)
    _, body = await request(reader, writer, "GET /metrics", b"")
    writer.close()
    names = ("process_resident_memory_bytes", "process_cpu_seconds_total")
    memory, cpu = (re.search(rf"^{name} (\S+)", body.decode(), re.M) for name in names)
    assert memory and cpu
    return float(memory[1]) / 1e6, float(cpu[1])


async def stretch(
    address: tuple[str, int],
    load: Load,
    clips: list[bytes],
    answers: list[Any],
    *,
    clients: int,
    seconds: float,
    memory: list[float],
) -> Rate:
    """Let clients send clips for some seconds; return the rate of answers."""
    before, (_, cpu) = load.requests, await measures(address)
    begin = time.perf_counter()
    end = begin + seconds
    tasks = [
        asyncio.create_task(
            client(address, load, clips, answers, first=n * len(clips) // clients, end=end)
        )
        for n in range(clients)
    ]
    while time.perf_counter() < end:
        await asyncio.sleep(SAMPLE_SECONDS)
        memory.append((await measures(address))[0])
    await asyncio.gather(*tasks)
    used = (await measures(address))[1] - cpu
    return Rate(load.requests - before, time.perf_counter() - begin, used)


def batches(clips: list[Path], size: int = 8, repeats: int = 5) -> dict[str, float]:
    """Return processor milliseconds per clip, one at a time and in batches, in turns."""
    predictor = load(device="cpu")
    waveforms = torch.stack([load_int16(clip, seconds=4.9) for clip in clips[: 2 * size]])
    costs: dict[int, list[float]] = {1: [], size: []}
    with torch.inference_mode():
        for _ in range(repeats):
            for number, cost in costs.items():
                begin = time.process_time()
                for part in waveforms.split(number):
                    log_mel = predictor.features.log_mel(
                        part, torch.full((len(part),), part.shape[1])
                    )
                    predictor.model(log_mel.values, log_mel.attention_mask)
                cost.append(1_000 * (time.process_time() - begin) / len(waveforms))
    return {f"batch {number}, ms": round(median(cost), 2) for number, cost in costs.items()}


def summary(
    rates: list[Rate], predictions: list[Rate], load: Load, memory: list[float]
) -> dict[str, Any]:
    """Return the figures; each stretch of load is compared with the runs of predict around it."""
    pairs = list(zip(rates, predictions, predictions[1:], strict=False))
    ratios = [
        rate.per_second / ((one.clips + two.clips) / (one.seconds + two.seconds))
        for rate, one, two in pairs
    ]
    cpu = sum(rate.cpu for rate in rates) / sum(rate.clips for rate in rates)
    cpu_predict = sum(p.cpu for p in predictions) / sum(p.clips for p in predictions)
    tenth = max(len(memory) // 10, 1)
    growth = median(memory[-tenth:]) - median(memory[tenth : 2 * tenth] or memory)
    ordered = sorted(load.latencies)
    quantiles = {f"p{q}": round(ordered[len(ordered) * q // 100], 3) for q in (50, 95, 99)}
    return {
        "requests": load.requests,
        "failed": len(load.failed),
        "failures": sorted(set(load.failed))[:10],
        "wrong": load.wrong,
        "clips_per_second": [round(rate.per_second, 2) for rate in rates],
        "predict_clips_per_second": [round(p.per_second, 2) for p in predictions],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
        "cpu_ms_per_clip": round(1_000 * cpu, 2),
        "predict_cpu_ms_per_clip": round(1_000 * cpu_predict, 2),
        "cpu_ratio": round(cpu_predict / cpu, 3),
        "latency_seconds": quantiles,
        "memory_mb": [round(value, 1) for value in memory],
        "growth_mb": round(growth, 1),
        "met": {
            "no loss": not load.failed and not load.wrong,
            f"throughput >= {TARGET} of predict": median(ratios) >= TARGET,
            f"growth < {GROWTH_MB:g} MB": growth < GROWTH_MB,
        },
    }


def priority() -> str:
    """Return the niceness of this process, and that of its group where Linux has groups."""
    group = Path("/proc/self/autogroup")
    name = group.read_text(encoding="utf-8").strip() if group.is_file() else "no autogroup"
    return f"nice {os.nice(0)}, {name.partition(' ')[2] or name}"


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", default=os.environ.get("EAT_DATA", "../shared/data"), help="the folder of ESC-10")
    add("--clips", type=int, default=200, help="different ones (%(default)s)")
    add("--clients", type=int, default=32, help="(%(default)s)")
    add("--seconds", type=float, default=600.0, help="of load, in all (%(default)s)")
    add("--stretches", type=int, default=4, help="of load, with predict between (%(default)s)")
    add("--out", type=Path, default=RESULT, help="(%(default)s)")
    options = parser.parse_args()
    files = sorted(Path(options.data, "esc10").resolve().rglob("*.ogg"))[: options.clips]
    if not files:
        raise SystemExit(f"{options.data}/esc10: holds no .ogg files")
    clips = [file.read_bytes() for file in files]
    first, answers = predict(files)
    predictions, rates, load_met, memory = [first], list[Rate](), Load(), list[float]()
    with service() as address:
        for _ in range(options.stretches):
            work = stretch(
                address,
                load_met,
                clips,
                answers,
                clients=options.clients,
                seconds=options.seconds / options.stretches,
                memory=memory,
            )
            rates.append(asyncio.run(work))
            predictions.append(predict(files)[0])
            print(f"serve {asdict(rates[-1])}, predict {asdict(predictions[-1])}", flush=True)
    document = {
        "host": host("cpu"),
        "load": os.getloadavg(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.serve_load", *sys.argv[1:]]),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "priority": priority(),
        "clients": options.clients,
        "seconds": options.seconds,
        **summary(rates, predictions, load_met, memory),
        "micro_batches": batches(files),
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps({k: v for k, v in document.items() if k not in ("host", "memory_mb")}, indent=1)
    )


if __name__ == "__main__":
    main()
