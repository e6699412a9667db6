"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message as one line and exits with code 2.

    The message names the setting or file, what was given, what was expected, and the command or setting that mends it.
    It is kept to one printable line, whatever names and values were put into it.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes; 0 is done
