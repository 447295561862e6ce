"""The one exception that means: the input is wrong, and this line says how."""


class MoseError(Exception):
    """Bad input, told in one line that names the file, the field and what was expected.

    Commands turn it into exit code 2 without a traceback; see `mose.command`.
    """
