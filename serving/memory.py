"""Memory that nobody needs any more, given back to the system."""

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Collects garbage, as graphs are full of cycles, and empties what glibc's allocator keeps for
    later: after compiling that is as much as the programs themselves."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other allocators have no such
        ctypes.CDLL(None).malloc_trim(0)
