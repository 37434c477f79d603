"""How much memory this process holds at the moment."""

import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")  # pages: in all, resident, ...


def resident_bytes() -> int:
    """Resident memory; where there is no /proc, its peak since the process began."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux and BSD
