"""The one exception for what a user gave or met and can mend."""


class FastganError(ValueError):
    """One line that names what was given and what is accepted; the command line prints it and exits with 2."""
