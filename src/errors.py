"""The one exception whose message is written for the person at the keyboard."""


class UserError(Exception):
    """A failure the user can mend.

    The message is a single line that says what was got, what was expected, and which flag or command mends it.
    Entry points print it without a traceback; anything else that is raised is a bug and keeps its traceback.
    """
