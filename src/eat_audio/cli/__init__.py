"""The `eat` command.

Exit codes: 0 done, 2 the user's mistake (one sentence, no traceback), 130 interrupted (the state is
saved), 141 the reader of the output is gone, 1 a bug (with its traceback). A job that its scheduler
stops ends with 0.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from eat_audio.cli import (
    analysis,
    bench,
    data,
    hub,
    inference,
    label,
    page,
    search,
    service,
    train,
    zoo,
)
from eat_audio.cli.console import Command
from eat_audio.errors import EatError, EatWarning, Interrupted, Preempted
from eat_audio.progress import ReaderGone, print_lines

READER_GONE = 141
"""The exit code of other programs after `| head`."""
TAKE_SETTINGS = {"pretrain", "finetune"}
"""Commands that take settings as KEY=VALUE."""
PANELS = {
    "learn": ("demo", "pretrain", "tokenize", "finetune", "recipes", "data"),
    "use": ("predict", "embed", "detect", "search", "map", "label", "app", "serve"),
    "look": ("evaluate", "probe", "inspect", "models", "verify", "report", "bench"),
    "share": ("convert", "export", "share"),
}
"""The groups of commands in `eat --help`, in their order."""

# The error of typer for arguments it cannot read; its place in typer differs between versions.
UsageError: Any = typer.BadParameter.__mro__[2]


class Group(TyperGroup):
    """The commands in their panels, as plain text: what draws boxes is a quarter of `--help`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for panel, names in PANELS.items():
            commands = {name: self.commands[name] for name in names if name in self.commands}
            rows = [(name, command.get_short_help_str(width)) for name, command in commands.items()]
            with formatter.section(panel):
                formatter.write_dl(rows)


def build_app() -> typer.Typer:
    """Return the `eat` command with all its subcommands."""
    app = typer.Typer(
        name="eat",
        help="Self-supervised audio transformers: pre-train, fine-tune, evaluate, embed, predict.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        cls=Group,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    modules = (train, inference, analysis, bench, hub, zoo, search, label, page, service)
    commands: dict[str, Any] = {}
    for command in (command for part in modules for command in part.app.registered_commands):
        assert command.callback is not None
        commands[command.name or command.callback.__name__] = command
    for command in data.app.registered_commands:
        command.cls = Command
    for panel, names in PANELS.items():
        for name in names:
            if name == "data":
                app.add_typer(data.app, rich_help_panel=panel)
            elif command := commands.pop(name, None):
                command.cls, command.rich_help_panel = Command, panel
                app.registered_commands.append(command)
    assert not commands, f"not in PANELS: {', '.join(commands)}"
    return app


app = build_app()


def main(command: typer.Typer = app) -> NoReturn:
    """Run the command; turn the user's mistakes into one sentence and exit code 2."""
    # OpenMP's threads would otherwise spin while they wait; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _escape_unencodable()
    warnings.showwarning = _one_line_warnings(warnings.showwarning)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit(_run(command))
    from eat_audio.training.distributed import exit_process

    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the main process prints for all, to the end
    exit_process(_run(command))


def _run(command: typer.Typer) -> int:
    """Run the command and flush its output; return the exit code."""
    try:
        code = _exit_code(command)
    except (BrokenPipeError, ReaderGone):
        _discard_output()
        return READER_GONE
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard_output()
        if code == 0 and not isinstance(error, BrokenPipeError):
            print_lines(f"eat: standard output: cannot be written ({error.strerror})", error=True)
        return code or (READER_GONE if isinstance(error, BrokenPipeError) else 2)
    return code


def _exit_code(command: typer.Typer) -> int:
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
    """How to write a setting that was given as an option; nothing for other mistakes."""
    option = str(getattr(error, "option_name", "") or "")
    context = getattr(error, "ctx", None)
    if not option.startswith("--") or getattr(context, "info_name", "") not in TAKE_SETTINGS:
        return ""
    from eat_audio.config import alias_of

    name = option.lstrip("-").replace("-", "_")
    return f"settings have no dashes: {alias_of(name) or name}=..."


def _escape_unencodable() -> None:
    """Print an escape where a stream cannot encode a character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Redirect what is still buffered, so that it does not fail again when Python ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # no real file
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _one_line_warnings(usual: Callable[..., None]) -> Callable[..., None]:
    """Return Python's `showwarning` with one line on stderr for warnings of this package."""

    def show(message: Any, category: type[Warning], *where: Any, **named: Any) -> None:
        if issubclass(category, EatWarning):
            print_lines(f"eat: warning: {message}", error=True)
        else:
            usual(message, category, *where, **named)

    return show
