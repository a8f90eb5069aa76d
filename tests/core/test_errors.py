from __future__ import annotations

import pytest

from edgeadapt.errors import one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("a  file\n\tis\nlost\n"), "a file is lost"),
        (ValueError(" \n"), "ValueError"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("1234 6789 " * 100), "1234 6789 " * 30),
    ],
)
def test_the_error_of_a_library_becomes_one_line(error: Exception, expected: str) -> None:
    assert one_line(error) == expected
