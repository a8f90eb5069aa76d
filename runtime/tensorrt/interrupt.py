"""Ctrl-C while a library calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_kept() -> Iterator[None]:
    """Raise a KeyboardInterrupt that arrives inside only at the end of the block.

    TensorRT's bindings swallow what is raised in a logger's `log`, so that a Ctrl-C there would
    print a line of theirs and change nothing. Outside of the main thread, and where Ctrl-C was
    given another meaning, nothing is changed.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
