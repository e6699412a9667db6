"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message as one line and exits with code 2.

    The message names the setting or file, what was given, what was expected, and the command or setting that mends it.
    """
