"""Errors that are shown to the user as one or two lines, never as a traceback."""


class CamkitError(Exception):
    """Something failed while working; the command ends with exit code 1."""


class UsageError(CamkitError):
    """What was asked for makes no sense; the command ends with exit code 2."""


class RunError(CamkitError):
    """What ends the run, not only the model that it came in: the results folder cannot be used."""


class PluginError(CamkitError):
    """Code that is not camkit's own failed or gave something wrong; what is camkit's own goes on."""


# How the allocators of MPS and of the CPU say it, which raise plain RuntimeErrors.
NO_MEMORY = ("backend out of memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a pass did not fit into the device's memory."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in NO_MEMORY)
