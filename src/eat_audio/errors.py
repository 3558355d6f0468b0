"""What a user can cause: every one of these becomes one sentence on stderr and exit code 2.

Anything else that is raised is our own mistake and keeps its traceback.
"""

from eat_audio.text import sentence

MOST = 20
"""Most sentences of one error that are shown."""


class EatError(Exception):
    """Something the user can mend: the message says where, what was found, what was expected.

    Each argument is one sentence. As text they are one line each, printable and bounded whatever
    names and values from outside are in them.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)

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
    """Gradients that are not finite, again and again; none of them was applied."""


class Interrupted(EatError):
    """The user asked to stop; everything up to the last step is saved. Exit code 130."""


class Preempted(Interrupted):
    """A scheduler asked to stop (SIGTERM); everything is saved, and all is well. Exit code 0."""


class OutputError(EatError):
    """A file that cannot be written: the disk is full or read-only, say."""


class EatWarning(UserWarning):
    """Something that is used, but is not what it says of itself: one sentence."""
