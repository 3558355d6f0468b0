"""Errors of the user: each becomes one sentence on stderr and exit code 2.

Any other exception is a bug and keeps its traceback.
"""

from eat_audio.text import sentence

MOST = 20
"""The most sentences of one error that are shown."""


class EatError(Exception):
    """Base class. Each argument is one sentence: where, what was found, what is expected.

    As text they are one printable, bounded line each, whatever names and values are in them.
    """

    def __str__(self) -> str:
        lines = [sentence(text) for text in self.args[:MOST]]
        if more := len(self.args) - MOST:
            lines += [f"... and {more} more"] if more > 0 else []
        return "\n".join(lines)


class AudioError(EatError):
    """A recording that cannot be used."""


class DataError(EatError):
    """A manifest, a label file or a corpus that cannot be used."""


class SettingError(EatError):
    """A setting or an argument that does not exist, or whose value cannot be used."""


class RecipeError(SettingError):
    """A recipe that cannot be read, or one of its settings that cannot be used."""


class CheckpointError(EatError):
    """Weights or a run that cannot be loaded, or not safely."""


class TrainingDiverged(EatError):
    """Too many gradients in a row that are not finite; none of them was applied."""


class Interrupted(EatError):
    """A signal of the user; everything up to the last step is saved. Exit code 130."""


class Preempted(Interrupted):
    """A signal of a scheduler (SIGTERM); everything is saved. Exit code 0."""


class OutputError(EatError):
    """A file that cannot be written: the disk is full or read-only, say."""


class EatWarning(UserWarning):
    """One sentence about something that is used although it is not as declared."""
