"""The `eat` command: words in, one call out.

Exit codes: 0 done, 2 the user's mistake (one sentence, no traceback), 130 interrupted (the
state is saved), 1 a bug (with its traceback). A job that its scheduler stops ends with 0.
"""

import os
import sys
from typing import Any, NoReturn

import typer

from eat_audio.cli import bench, compare, data, detect, give, learn, look, tokens, use
from eat_audio.errors import EatError, Interrupted, Preempted

# What typer raises for words it cannot read; its place in typer has moved between versions.
UsageError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="eat",
    help="Self-supervised audio transformers: pre-train, fine-tune, evaluate, embed, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(learn.app)
app.add_typer(tokens.app)
app.add_typer(use.app)
app.add_typer(detect.app)
app.add_typer(look.app)
app.add_typer(compare.app)
app.add_typer(bench.app)
app.add_typer(give.app)
app.add_typer(data.app)


def main() -> NoReturn:
    """Run the command and turn what the user can mend into one sentence and exit code 2."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit(_run())
    from eat_audio.train.distributed import leave

    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one process speaks for all, to the end
    leave(_run())


def _run() -> int:
    """Run the command; its exit code."""
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Interrupted as error:
        print(f"eat: {error}; --resume goes on from there", file=sys.stderr)
        return 0 if isinstance(error, Preempted) else 130
    except EatError as error:
        for line in str(error).splitlines():
            print(f"eat: {line}", file=sys.stderr)
        return 2
    except UsageError as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
