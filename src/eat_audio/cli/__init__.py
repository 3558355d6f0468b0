"""The `eat` command: words in, one call out.

Exit codes: 0 done, 2 the user's mistake (one sentence, no traceback), 130 interrupted (the
state is saved), 1 a bug (with its traceback).
"""

import sys
from typing import Any

import typer

from eat_audio.cli import data, learn, use
from eat_audio.errors import EatError, Interrupted

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
app.add_typer(use.app)
app.add_typer(data.app)


def main() -> None:
    """Run the command and turn what the user can mend into one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except Interrupted as error:
        print(f"eat: {error}; --resume goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except EatError as error:
        for line in str(error).splitlines():
            print(f"eat: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except UsageError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)
