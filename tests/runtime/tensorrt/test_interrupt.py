from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from edgeadapt.runtime.tensorrt.interrupt import interrupt_kept
from edgeadapt.runtime.tensorrt.library import Choices, Library


@pytest.fixture(autouse=True)
def pythons_handler() -> Iterator[None]:
    """What a script in the background starts ignores SIGINT, and Python then sets no handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed_interrupt() -> None:
    """What the bindings do when Ctrl-C arrives in a logger that they call."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return


def test_an_interrupt_that_a_library_would_swallow_is_raised_afterwards() -> None:
    after = []

    def call() -> None:
        with interrupt_kept():
            swallowed_interrupt()
            after.append("the block goes on")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert after
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_inside_leaves_the_handler_as_it_was() -> None:
    with pytest.raises(ValueError, match="refused"), interrupt_kept():
        raise ValueError("refused")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_nothing_is_changed() -> None:
    seen = []

    def work() -> None:
        with interrupt_kept():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_build_that_is_interrupted_gives_no_engine(
    rtx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Library, "_parse", lambda *arguments: swallowed_interrupt())
    monkeypatch.setattr(Library, "_configure", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        rtx.build(b"", Choices((8, 6)))
