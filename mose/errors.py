"""The exception for wrong input, whose message is shown to the user as it is."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its class where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class MoseError(Exception):
    """Bad input; the message is one line that names the file, the field and what was expected.

    Commands turn it into exit code 2 without a traceback; see `mose.command`.
    """
