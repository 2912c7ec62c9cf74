"""The one error type that means "the user can mend this"."""


class UserError(ValueError):
    """Wrong use or unusable input: the message is one line naming the thing, the limit and the remedy.

    Every stage's command line prints it without a traceback and exits with 2. Anything else that
    escapes is a defect of ours and keeps its traceback.
    """
