"""The `eat` command: words in, one call out.

Exit codes: 0 done, 2 the user's mistake (one sentence, no traceback), 130 interrupted (the
state is saved), 141 nobody reads the output any more, 1 a bug (with its traceback). A job that
its scheduler stops ends with 0.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

import typer

from eat_audio.cli import analysis, data, hub, inference, tokens, train
from eat_audio.errors import EatError, EatWarning, Interrupted, Preempted
from eat_audio.progress import ReaderGone, print_lines

GONE = 141
"""The exit code where nobody reads what is printed any more, as of other programs."""
TAKE_SETTINGS = {"pretrain", "finetune"}
"""Commands that take settings as KEY=VALUE."""
SETTINGS = {
    "epochs": "steps",
    "lr": "optim.lr",
    "learning-rate": "optim.lr",
    "warmup": "optim.warmup",
    "weight-decay": "optim.weight_decay",
    "wd": "optim.weight_decay",
    "batch-size": "batch",
    "bs": "batch",
    "workers": "clips.workers",
    "num-workers": "clips.workers",
    "seconds": "clips.seconds",
    "dataset": "data",
}
"""What other programs call a setting -> its name here."""

# What typer raises for words it cannot read; its place in typer has moved between versions.
UsageError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="eat",
    help="Self-supervised audio transformers: pre-train, fine-tune, evaluate, embed, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train.app)
app.add_typer(tokens.app)
app.add_typer(inference.app)
app.add_typer(analysis.app)
app.add_typer(hub.app)
app.add_typer(data.app)


def main(command: typer.Typer = app) -> NoReturn:
    """Run the command and turn what the user can mend into one sentence and exit code 2."""
    _hold_every_character()
    warnings.showwarning = _in_one_line(warnings.showwarning)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit(_run(command))
    from eat_audio.training.distributed import exit_process

    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - one process speaks for all, to the end
    exit_process(_run(command))


def _run(command: typer.Typer) -> int:
    """Run the command; its exit code."""
    try:
        code = _of_command(command)
    except (BrokenPipeError, ReaderGone):
        _discard_output()
        return GONE
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard_output()
        if code == 0 and not isinstance(error, BrokenPipeError):
            print_lines(f"eat: standard output: cannot be written ({error.strerror})", error=True)
        return code or (GONE if isinstance(error, BrokenPipeError) else 2)
    return code


def _of_command(command: typer.Typer) -> int:
    try:
        code = command(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Interrupted as error:
        print_lines(f"eat: {error}; --resume goes on from there", error=True)
        return 0 if isinstance(error, Preempted) else 130
    except EatError as error:
        for line in str(error).splitlines():
            print_lines(f"eat: {line}", error=True)
        return 2
    except UsageError as error:
        if hint := _hint(error):
            error.possibilities = []
            error.message = f"{error.message.rstrip('.')}; {hint}"
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _hint(error: Any) -> str:
    """How a setting is written that was given as an option; nothing for other mistakes."""
    option = str(getattr(error, "option_name", "") or "")
    context = getattr(error, "ctx", None)
    if not option.startswith("--") or getattr(context, "info_name", "") not in TAKE_SETTINGS:
        return ""
    name = option.lstrip("-")
    setting = SETTINGS.get(name.replace("_", "-"), name.replace("-", "_"))
    return f"settings have no dashes: {setting}=..."


def _hold_every_character() -> None:
    """Have streams that cannot hold a character print an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let nothing that is still to be printed fail once more when Python ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # no real file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _in_one_line(usual: Callable[..., None]) -> Callable[..., None]:
    """What Python shows warnings with, but for ours: one line on stderr."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None and issubclass(category, EatWarning):
            print_lines(f"eat: warning: {message}", error=True)
        else:
            usual(message, category, filename, lineno, file, line)

    return show
