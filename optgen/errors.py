"""The base of what is shown to users as a message: they can mend it, and a traceback would not help them."""

from __future__ import annotations


class UserError(Exception):
    """Error that the user can correct. The message says what is wrong, where, and what to do."""
