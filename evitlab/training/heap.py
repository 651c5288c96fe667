"""Memory that a training step on the CPU frees stays with the process, for the next step.

glibc gives every large tensor back to the system as soon as it is freed, and asks for it again in
the next step, which then pays for each page of it a second time: a page fault, and zeros. Where
faults are dear, as in virtual machines, that is a quarter of a step. CUDA's allocator keeps freed
memory, too.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names in <malloc.h>, with what each has where nothing was set. The two thresholds rise
# by themselves to at most these values, which a process that trains has long reached.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}  # nothing apart from the heap, which never shrinks


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Within, the heap does not shrink; afterwards what is free goes back to the system.

    Yields whether it does: glibc alone has these settings, and where the environment sets them
    (MALLOC_..., GLIBC_TUNABLES) the user has decided.

    Pitfall: it concerns the whole process, also other threads.
    """
    libc = _glibc()
    if libc is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        yield False
        return
    try:
        yield all([libc.mallopt(name, value) == 1 for name, value in _KEEP.items()])
    finally:
        for name, value in _USUAL.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
