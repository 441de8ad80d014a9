"""The one exception for what a user gave or met and can mend, and the words of other people's exceptions."""


class FastganError(ValueError):
    """One line that names what was given and what is accepted; the command line prints it and exits with 2."""


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
