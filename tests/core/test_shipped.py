"""The networks that come with edgeadapt: which there are, and what a name or a path opens."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeadapt
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BundleError
from edgeadapt.shipped import DEFAULT, SHIPPED, find_bundle, shipped_names

BUNDLES = Path(str(edgeadapt.__file__)).parent / "bundles"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_names_are_those_of_the_folders_that_ship() -> None:
    assert sorted(folder.name for folder in BUNDLES.iterdir()) == sorted(
        f"{name}.bundle" for name in SHIPPED
    )
    assert set(SHIPPED) == {"nano", "edge"}


@pytest.mark.parametrize("name", SHIPPED)
def test_each_opens_by_its_name(name: str) -> None:
    bundle = open_bundle(name)  # which checks the hash of every file
    assert bundle.path == BUNDLES / f"{name}.bundle"
    assert bundle.manifest.model.name == name
    assert [scope.name for scope in bundle.manifest.scopes] == ["all", "heads", "bias"]


def test_default_is_another_name_for_edge() -> None:
    assert DEFAULT == "edge"
    assert find_bundle("default") == find_bundle("edge") == BUNDLES / "edge.bundle"


def test_edge_is_the_larger_one() -> None:
    """Exchanged files would open by the wrong names, and each manifest would agree with itself."""
    nano, edge = (open_bundle(name).weights().size for name in ("nano", "edge"))
    assert edge > 3 * nano


@pytest.mark.parametrize("name", [*SHIPPED, "default"])
def test_what_lies_in_the_working_directory_comes_first(name: str, tiny: Path) -> None:
    tiny.rename(name)
    assert find_bundle(name) == Path(name)
    assert open_bundle(name).manifest.model.name not in SHIPPED


@pytest.mark.parametrize("name", [*SHIPPED, "default"])
def test_what_has_the_name_and_is_no_bundle_is_refused(name: str) -> None:
    Path(name).mkdir()
    with pytest.raises(BundleError, match=f"^{name}: not a bundle"):
        open_bundle(name)


@pytest.mark.parametrize("name", ["nan", "EDGE", "nano.bundle", "./nano", "../bundles/nano", ""])
def test_another_name_is_a_path_and_the_error_lists_the_names(name: str) -> None:
    assert find_bundle(name) == Path(name)
    with pytest.raises(BundleError, match="nano, edge or default, which is edge"):
        open_bundle(name)
    assert all(known in shipped_names() for known in (*SHIPPED, "default"))


def test_a_path_with_the_name_is_opened_as_the_text_is() -> None:
    assert find_bundle(Path("nano")) == find_bundle("nano")
