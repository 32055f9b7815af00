"""The errors that a user may meet, each with the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar, Self


class AutocompressError(Exception):
    """Root of every expected error.

    A message is one paragraph: what went wrong and where, what was got, what was wanted, what to do
    next.

    Args:
        what: the thing that is wrong and where it is, for example ``"--budget"`` or ``"layer
            lm_head, svd"``.
        got: the offending value, shown as given.
        wanted: what would have been accepted.
        hint: what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, got: object = None, wanted: str = "", hint: str = "") -> None:
        self.what, self.got, self.wanted, self.hint = what, got, wanted, hint
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        details = []
        if self.got is not None:
            details.append(f"got {self.got}")
        if self.wanted:
            details.append(f"wanted {self.wanted}")
        sentence = self.what + (": " + ", ".join(details) if details else "")
        return f"{sentence}. {self.hint}".strip() if self.hint else sentence

    def within(self, place: str) -> AutocompressError:
        """Return the same error with the place (layer, method, file) put before it.

        Only the caller knows the place.
        """
        return type(self)(f"{place}: {self.what}", got=self.got, wanted=self.wanted, hint=self.hint)


class TimeIsUp(AutocompressError):
    """A time limit has passed before there was anything to show; what is finished is kept."""

    @classmethod
    def during(cls, doing: str) -> Self:
        """Say what it has cut off."""
        return cls(
            f"time was up while {doing}",
            wanted="a longer --time",
            hint="What is finished is kept: the same command goes on with it.",
        )


class ConfigurationError(AutocompressError):
    """A setting, file or argument that the user can correct."""

    exit_code = 2


class DataError(ConfigurationError):
    """A text or data set that is missing, empty, too short, or used twice."""


class ModelError(ConfigurationError):
    """A model that is missing, corrupt, or has nothing to compress."""


class MethodError(ConfigurationError):
    """A method whose settings do not fit the matrix it is asked to store."""


class RecipeError(ConfigurationError):
    """A recipe that is malformed or belongs to another model."""


class StudyError(ConfigurationError):
    """A study or trial that does not exist, or was made for something else."""


class BudgetUnreachable(AutocompressError):
    """No plan meets the limits; the message says the nearest that can be reached."""

    exit_code = 3


class StorageError(AutocompressError):
    """A disk, cache, checkpoint or database that cannot be read or written."""


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, without its full stop; else its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
