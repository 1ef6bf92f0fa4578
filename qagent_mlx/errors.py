"""The one exception that a user's mistake may end in."""

from __future__ import annotations


class QAgentError(Exception):
    """Something the user can put right.

    The message is one line that names the thing that is wrong and the remedy;
    the command line prints it and exits with 1.
    """
