"""A limit on the time that one piece of work may take, in whatever thread it runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

GRACE_S = 60.0
"""How long work in C code, which no exception reaches, may go on beyond its limit before its process is ended."""


class TookTooLong(BaseException):
    """The time is over; no Exception, so that nothing takes it for a broken file."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TookTooLong` in this thread once `seconds` are over.

    Timers of the operating system speak to a process's main thread only, and Dask works in another. An exception is
    seen between two steps of Python code: work that hangs in C code ends with its process, as if it had been killed.
    """
    thread = threading.get_ident()
    lock, over = threading.Lock(), threading.Event()
    done = False

    def end() -> None:
        with lock:
            if not done:
                over.set()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLong))

    timers = [threading.Timer(seconds, end), threading.Timer(seconds + GRACE_S, os._exit, (1,))]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        for timer in timers:
            timer.cancel()
    while over.is_set():  # it was on its way as the work ended: it must not hit what comes after
        time.sleep(0.01)
