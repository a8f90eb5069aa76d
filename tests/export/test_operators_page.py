"""docs/operators.md lists what the exporter can do, no more and no less."""

from __future__ import annotations

import inspect
import re

import onnx

from edgeadapt.export import functions
from edgeadapt.export.functions import ConvSpec
from edgeadapt.export.lowering import lowerings
from support.tree import ROOT

PAGE = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
# An example of every argument that makers of local functions take.
ARGUMENTS = {
    "spec": ConvSpec((3, 3), (2, 2), (1, 1), (1, 1), 1),
    "scale": 2,
    "mode": "nearest",
    "pads": (1, 1, 1, 1),
    "ceil_mode": False,
}


def local_functions() -> dict[str, onnx.FunctionProto]:
    """One of every kind of local function, by its name without the attributes."""
    found = {}
    for maker in vars(functions).values():
        if not inspect.isfunction(maker) or maker.__module__ != functions.__name__:
            continue
        if inspect.signature(maker).return_annotation == "onnx.FunctionProto":
            names = inspect.signature(maker).parameters
            chosen = ARGUMENTS if maker.__name__ != "pad_grad" else ARGUMENTS | {"mode": "edge"}
            function = maker(**{name: chosen[name] for name in names})
            found[function.name.partition("_")[0]] = function
    return found


def rows(heading: str) -> list[list[str]]:
    """Cells of the rows of the table below a heading."""
    table = PAGE[PAGE.index(heading) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_page_lists_every_operator():
    listed = [
        name
        for _, operators in rows("| what one writes")
        for name in re.findall(r"`((?:aten|operator|edgeadapt|torch)\.[\w.]+)`", operators)
    ]
    assert sorted(listed) == sorted(lowerings())


def test_the_page_lists_every_local_function_with_its_inputs():
    listed = {
        cells[0].strip("`"): re.findall(r"`(\w+)`", cells[1]) for cells in rows("| function |")
    }
    assert listed == {name: list(made.input) for name, made in local_functions().items()}


def test_every_local_function_is_a_function_of_standard_operators():
    assert len(local_functions()) >= 7
    for function in local_functions().values():
        assert function.domain == "edgeadapt"
        assert [opset.domain for opset in function.opset_import] == [""]
        assert all(node.domain == "" for node in function.node)
