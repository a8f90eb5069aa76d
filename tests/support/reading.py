"""Reading graphs as programs, and holding what the programs compute to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime

from edgeadapt.bundle import RESTORE_GRAPH, Bundle, Parameter, open_bundle
from edgeadapt.export.check import Graphs
from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.read import read
from edgeadapt.testing import assert_gradient_close
from support.interpret import run

Array = npt.NDArray[Any]
# Of the norm: the program is run in float64, ONNX Runtime in float32, as in support.exporting.
BOUND = 1e-5
NOTHING = 1e-8  # of the norm of all outputs: what the rounding of constants like 1 / count leaves


def read_checked(bundle: Bundle, graph: str, height: int, width: int) -> Program:
    """The program of a graph, with every invariant checked."""
    program = read(bundle, graph, height, width)
    check(program)
    return program


def assert_read(bundle: Bundle, rows: int, columns: int, seed: int = 0) -> None:
    """Every graph computes what ONNX Runtime does, at an image of so many times the multiple.

    At other weights than the bundle's, but for the restored image, whose graph has them inside.
    """
    rng, engines = np.random.default_rng(seed), Graphs(bundle)
    own = bundle.named(bundle.weights())
    other = {
        name: np.asarray(value + 0.1 * rng.standard_normal(value.shape), np.float32)
        for name, value in own.items()
    }
    multiple = bundle.manifest.image.size_multiple
    height, width = rows * multiple, columns * multiple
    image = rng.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    for graph in engines.sessions:
        program = read_checked(bundle, graph, height, width)
        weights = own if graph == RESTORE_GRAPH else other
        given = None if graph == RESTORE_GRAPH else other
        assert_same(run(program, image, weights), engines.run(graph, image, given))


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """All outputs, by name: shapes exactly, values within the bound of the norm.

    Of what is zero (the gradient of a bias before a normalisation) float32 leaves a rounding error
    of the size of what cancels; it is held to the norm of all outputs.
    """
    assert list(found) == list(expected)
    whole = np.sqrt(sum(float(np.sum(value**2)) for value in found.values()))
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if np.linalg.norm(found[name]) > NOTHING * whole:
            assert_gradient_close(value, found[name], BOUND, name)
        else:
            assert np.linalg.norm(value) <= BOUND * whole, name


class Snippet:
    """A few nodes in ONNX's text, as the only graph of a bundle with two parameters."""

    shapes: Mapping[str, tuple[int, ...]] = {"bias": (4,), "weight": (4, 3, 3, 3)}

    def __init__(self, folder: Path, nodes: str, outputs: str, functions: str = "") -> None:
        inputs = ", ".join(
            f"float[{','.join(map(str, shape))}] {name}" for name, shape in self.shapes.items()
        )
        text = (
            '<ir_version: 9, opset_import: ["" : 18, "local" : 1]> snippet '
            f"(float[1,3,H,W] image, {inputs}) => ({outputs}) {{{nodes}}} {functions}"
        )
        self.file = folder / "snippet.onnx"
        onnx.save(onnx.parser.parse_model(text), self.file)
        rows = tuple(Parameter(name, shape, "shared") for name, shape in self.shapes.items())
        self.bundle = Bundle(folder, replace(open_bundle("nano").manifest, parameters=rows))

    def program(self, height: int = 6, width: int = 10) -> Program:
        """What is read, checked."""
        return read_checked(self.bundle, self.file.name, height, width)

    def assert_same_as_onnxruntime(self, height: int = 6, width: int = 10) -> Program:
        """Run both on random values."""
        rng, program = np.random.default_rng(0), self.program(height, width)
        image = rng.standard_normal((1, 3, height, width)).astype(np.float32)
        weights = {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in self.shapes.items()
        }
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            self.file, options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        expected = dict(zip(names, session.run(names, {"image": image, **weights}), strict=True))
        found = run(program, image, weights)
        assert_same(
            found, {name: np.asarray(value, np.float32) for name, value in expected.items()}
        )
        return program
