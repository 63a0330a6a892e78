"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input or options: the message names the file, column or value, and what to do.

    Jobs print it as one line and end with status 1; everything else is shown with its traceback.
    """
