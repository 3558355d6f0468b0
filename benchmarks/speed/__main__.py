"""The command that measures: bench."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.cli import main
from eat_audio.cli.console import show_table

app = typer.Typer()


@app.command()
def bench(
    what: Annotated[
        list[str],
        Argument(
            help="pretrain, finetune, infer, embed, loader, masks, logmel, optimizer, kernels, "
            "scaling, all."
        ),
    ],
    *,
    out: Annotated[Path | None, Option("--json", help="Keep what was measured in a file.")] = None,
    repeats: Annotated[int, Option(min=1, help="How often both ways are timed.")] = 7,
    device: Annotated[str, Option(help="cpu (one thread, the processor's time), cuda.")] = "cpu",
    size: Annotated[str, Option(help="base, which claims are about, small or tiny.")] = "base",
) -> None:
    """Measure our speed against the plain way to do the same, side by side.

    Refuses (exit code 2) to compare what does not make the same.

    Example: eat bench masks logmel --json bench.json
    """
    from benchmarks.speed import run

    document = run.measure(
        what,
        size=size,
        device=device,
        repeats=repeats,
        show=lambda found: show_table(found.bench, *run.table(found), heading=True),
    )
    if out is not None:
        run.write(document, out)


if __name__ == "__main__":
    main(app)
