"""How much memory this process took at most."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_resident_mib() -> float | None:
    """Resident memory of this process at most so far; None where the system does not say."""
    try:  # of this program alone: what `getrusage` counts begins with the parent's
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):  # not Linux
        if sys.platform == "win32":
            return None
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes
