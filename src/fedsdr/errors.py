"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in a recipe, a file or a command line.

    The message names the value, what was allowed and what to do. The command line prints it
    without a traceback and exits with status 2; the library raises it like any `ValueError`.
    """
