"""The exception for a user's mistake, and the exit codes of the command line."""


class UserError(Exception):
    """An error that the user can fix. The command line prints its message as one line and exits with code 2.

    The message names the setting or file, what was given, what was expected, and the command or setting that fixes it.
    It is always one printable line: characters that cannot be printed are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes; 0 is done
