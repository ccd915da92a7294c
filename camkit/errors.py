"""Errors that are shown to the user as one or two lines, never as a traceback."""


class CamkitError(Exception):
    """Something failed while working; the command ends with exit code 1."""


class UsageError(CamkitError):
    """What was asked for makes no sense; the command ends with exit code 2."""


class RunError(CamkitError):
    """What ends the run, not only the model that it came in: the results folder cannot be used."""


class PluginError(CamkitError):
    """Code that is not camkit's own failed or gave something wrong; what is camkit's own goes on."""


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
