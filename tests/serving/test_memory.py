"""What was freed goes back to the system."""

import ctypes
import os
import sys

import pytest

from serving.memory import give_back

NUM_BLOCKS, BYTES = 100_000, 400

libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(libc, "malloc_trim"), reason="needs the allocator of glibc")
def test_blocks_that_are_free_below_one_that_is_not_go_back():
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BYTES) for _ in range(NUM_BLOCKS)]
    last = libc.malloc(BYTES)
    for block in blocks:
        libc.free(block)
    before = resident()
    give_back()
    assert before - resident() > 0.8 * NUM_BLOCKS * BYTES
    libc.free(last)
