"""The exception for everything that the user of the package can put right."""

from __future__ import annotations


class QAgentError(Exception):
    """Something is wrong that the user can put right.

    The message is one line that says what is wrong and how to mend it; the command line
    prints it and exits with 1.
    """
