"""The errors that edgeadapt raises on purpose.

Every message says what is wrong and which value it was; ``hint`` says what to do about it. The
command line prints both in one line and exits with status 2.
"""

from __future__ import annotations


class EdgeadaptError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, and which value.
        hint: what the user can do, as a full sentence; empty if there is nothing better than the
            message.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


class ImageError(EdgeadaptError):
    """A file is not an image we can read, or an array is not an image."""


class BundleError(EdgeadaptError):
    """A bundle is missing, damaged, foreign or newer than this program."""


class ConfigError(EdgeadaptError):
    """A configuration file or an option has an unknown key or a value out of range."""


class CheckpointError(EdgeadaptError):
    """A training checkpoint cannot be read or belongs to another configuration."""


class DataError(EdgeadaptError):
    """A training or evaluation folder does not have the layout it should have."""


class ExportError(EdgeadaptError):
    """A network cannot be exported: an operator without a lowering, a contract not kept."""


class BackendError(EdgeadaptError):
    """A backend is unknown, not installed, or cannot run what it is asked to."""


class ArrayError(EdgeadaptError):
    """An array has the wrong shape, dtype or layout for an operation."""


class WeightsError(EdgeadaptError):
    """A file of adapted weights is damaged, or belongs to another bundle."""


class EngineWarning(UserWarning):
    """Another engine than the first choice is used; the text says which and why."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """What a library's error says, as one line of at most ``limit`` characters for a message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
