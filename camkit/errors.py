"""Errors that are shown to the user as one or two lines, never as a traceback."""


class CamkitError(Exception):
    """Something failed while working; the command ends with exit code 1."""


class UsageError(CamkitError):
    """What was asked for makes no sense; the command ends with exit code 2."""
