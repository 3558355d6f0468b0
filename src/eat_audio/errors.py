"""What a user can cause: every one of these becomes one sentence on stderr and exit code 2.

Anything else that is raised is our own mistake and keeps its traceback.
"""


class EatError(Exception):
    """Something the user can mend: the message says where, what was found, what was expected."""


class AudioError(EatError):
    """A recording that cannot be used."""


class DataError(EatError):
    """A manifest, a label file or a corpus that cannot be used."""


class RecipeError(EatError):
    """A setting that does not exist, or has a value that cannot be."""


class CheckpointError(EatError):
    """Weights or a run that cannot be loaded, or not safely."""


class TrainingDiverged(EatError):
    """Gradients that are not finite, again and again; none of them was applied."""


class Interrupted(EatError):
    """The user asked to stop; everything up to the last step is saved. Exit code 130."""


class Preempted(Interrupted):
    """A scheduler asked to stop (SIGTERM); everything is saved, and all is well. Exit code 0."""
