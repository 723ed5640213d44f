"""The one exception for mistakes a user can mend: its message is the whole answer."""


class UserError(ValueError):
    """Bad input: says what was expected, what came, where, and how to mend it.

    The command line prints the message alone and exits with code 2; anything else that is raised is a
    defect of ours and keeps its traceback.
    """
