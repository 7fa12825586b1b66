"""The one error that a user's mistake raises."""


class InputError(Exception):
    """Bad input from the user: one line that says what was expected, what was found, and what to do.

    Stages print it as `error: ...` and exit with status 2 (see `sae.cli.run_stage`); library callers can catch it.
    """
