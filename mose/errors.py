"""The exception for wrong input, whose message is shown to the user as it is."""


class MoseError(Exception):
    """Bad input; the message is one line that names the file, the field and what was expected.

    Commands turn it into exit code 2 without a traceback; see `mose.command`.
    """
