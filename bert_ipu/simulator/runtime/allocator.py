"""Has malloc keep the memory it has, as a device with planned buffers does.

With glibc's defaults every large tensor is mapped and unmapped again, and page faults cost small models more
than their arithmetic.  The settings are those of the environment variables MALLOC_MMAP_MAX_=0,
MALLOC_TRIM_THRESHOLD_=-1 and MALLOC_TOP_PAD_, made from inside the process.
"""

from __future__ import annotations

import ctypes
import functools
import logging

logger = logging.getLogger(__name__)

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 256 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Set malloc's parameters once per process; False, with a line in the log, where malloc has none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        logger.info("this C library has no mallopt; memory is given back and asked for at each operator")
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
