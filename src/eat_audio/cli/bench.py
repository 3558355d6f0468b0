"""The bench command: how fast this machine embeds, pre-trains and fine-tunes."""

from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AsJSON, Changes, show_table
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def bench(
    recipe: Annotated[
        str, Argument(help="A recipe of pre-training, which says the model, batch and masks.")
    ] = "eat_tiny",
    settings: Changes = None,
    *,
    steps: Annotated[int, Option(min=1, help="Measured steps, after one that is not.")] = 3,
    as_json: AsJSON = False,
) -> None:
    """Measure clips per second on this machine: embedding, pre-training and fine-tuning.

    The clips are noise in memory, of the length in the recipe: decoding is not measured.

    Example: eat bench eat_base_as2m batch=4 device=cpu
    """
    result = measure(recipe, settings or [], steps=steps)
    if as_json:
        print_json(result)
        return
    rows = [(work, f"{rate:.3g}") for work, rate in result["clips_per_second"].items()]
    show_table(f"{recipe}, batches of {result['batch']}", ("work", "clips per second"), rows)
    print_lines(
        f"{result['device']}, {result['precision']}, {result['threads']} threads; "
        f"{result['seconds']:g} s a clip, batches of {result['batch']}"
    )


def measure(recipe: str, changes: list[str], *, steps: int) -> dict[str, Any]:
    """Return clips per second of each kind of work, and what they were measured with.

    Raises:
        SettingError: It is no recipe of pre-training, or a setting is wrong.
    """
    import platform

    import torch

    from eat_audio import config as recipes
    from eat_audio.audio import SAMPLE_RATE
    from eat_audio.data.loader import Batch
    from eat_audio.errors import SettingError
    from eat_audio.finetune import Classification, FinetuneRun
    from eat_audio.inference.predictor import Predictor
    from eat_audio.models import METHODS
    from eat_audio.pretraining.run import schema
    from eat_audio.training.run import Trainer

    tree = recipes.read(recipe, changes)
    if "method" not in tree:
        raise SettingError(f"{recipe}: is no recipe of one pre-training; expected eat_tiny, say")
    total = {"steps": steps + 1}
    settings = recipes.load(schema(tree), recipe, changes).model_copy(update=total)
    device, batch, seconds = settings.on(), settings.batch, settings.clips.seconds
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randint(
        -20_000, 20_000, (batch, round(seconds * SAMPLE_RATE)), generator=generator
    )
    labels = torch.nn.functional.one_hot(torch.arange(batch) % 50, 50).float()
    numbers = torch.arange(batch)
    lengths = torch.full((batch,), noise.shape[1])
    clips = Batch(0, noise.short(), lengths, numbers, torch.zeros_like(numbers), labels)

    def rate(trainer: Trainer) -> float:
        return batch * steps / _seconds(trainer.step_by_step())

    def open_batches(start: int, stop: int) -> Any:
        return (clips for _ in range(start, stop))

    torch.manual_seed(settings.seed)
    spec, features = METHODS[settings.method], METHODS[settings.method].feature_extractor()
    objective = settings.build_objective(features).to(device).train()
    rates = {"pre-training": rate(Trainer(objective, settings, open_batches=open_batches))}

    config = settings.config()
    names = [str(number) for number in range(labels.shape[1])]
    model = spec.classifier(config.for_labels(names, several=False, pooling=config.pooling))
    shared = {"device", "precision", "batch", "clips", "seed"}
    tuning = FinetuneRun.model_validate(
        settings.model_dump(include=shared)
        | {"steps": steps + 1, "optim": {"warmup": 1}, "augment": {"mixup": 0.0}}
    )
    classification = Classification(model, features, tuning).to(device).train()
    rates["fine-tuning"] = rate(Trainer(classification, tuning, open_batches=open_batches))

    predictor = Predictor(model, features)
    waveforms = [row.float().numpy() / 32_768 for row in noise]
    passes = (list(predictor.embed_many(waveforms, "clip", batch=batch)) for _ in range(steps + 1))
    rates["embedding"] = batch * steps / _seconds(passes)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "recipe": recipe,
        "clips_per_second": rates,
        "device": f"{device} ({name})",
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "seconds": seconds,
    }


def _seconds(passes: Any) -> float:
    """Return how long all passes but the first take."""
    import time

    next(passes)
    start = time.perf_counter()
    for _ in passes:
        pass
    return time.perf_counter() - start
