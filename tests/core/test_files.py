from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edgeadapt.files import atomic_file, atomic_folder, sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_text("old")
    with atomic_file(target) as temporary:
        assert temporary.suffix == ".bin"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["x.bin"]


def test_a_file_stays_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.bin"]


def test_a_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("x")
    (tmp_path / "y").write_text("y")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_is_replaced_whole(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "x"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    with atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["x"]


def test_a_folder_stays_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "new").write_text(str(1 / 0))
    assert names(target) == ["old"]
    assert names(tmp_path) == ["x"]


def test_a_folder_comes_back_when_the_second_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if (self / "new").exists():
            raise OSError(28, os.strerror(28))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["x"]


def test_sha256_reads_past_one_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # 1.28 MB, blocks are 1 MiB
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
