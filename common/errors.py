"""The errors that a user can cause, as one small tree.

    NemoRunError
    ├── ConfigurationError   a recipe, an option or a config.json says something that cannot be
    ├── CheckpointError      a model folder or file is missing, damaged or of another kind
    ├── DataError            a ticket source or a prepared folder cannot be used
    └── LaunchError          a run could not be started, or one of its stages failed

The message of each is a sentence for the person at the keyboard: what is wrong, with which file or value, and what to
do. `launch.cli` prints it on stderr and exits with 1. Anything else that is raised is a bug and keeps its traceback.
"""


class NemoRunError(Exception):
    """Base of every error that is the user's to mend; never raised itself."""


class ConfigurationError(NemoRunError):
    """A recipe, an option, a key=value or a config.json is wrong."""


class CheckpointError(NemoRunError):
    """A checkpoint is missing, damaged, incomplete or of another model."""


class DataError(NemoRunError):
    """A ticket source or a prepared data folder cannot be used."""


class LaunchError(NemoRunError):
    """A run could not be started, or one of its stages failed."""
