"""The one exception that a command turns into a single line for its user."""


class UserError(ValueError):
    """Something that the user can put right: the message names the setting or file, and the remedy."""
