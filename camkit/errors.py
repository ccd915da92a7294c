"""What users see beside results: lines, and errors as one or two lines, never as a traceback."""

from collections.abc import Callable

Say = Callable[[str], None]  # takes a line that the user should see


class CamkitError(Exception):
    """Something failed; exit code 1."""


class UsageError(CamkitError):
    """The request is invalid; exit code 2."""


class RunError(CamkitError):
    """The whole run ends, not only the model it came in: the results folder cannot be used."""


class PluginError(CamkitError):
    """A plugin failed or returned something invalid; everything else goes on."""


# How allocators and libraries of MPS, the CPU and CUDA say it, in plain RuntimeErrors.
NO_MEMORY = (
    "backend out of memory",
    "DefaultCPUAllocator",
    "could not create a primitive",  # oneDNN, which gives no reason; without memory it is this
    "could not create a memory object",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a pass did not fit into the device's memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in NO_MEMORY)
