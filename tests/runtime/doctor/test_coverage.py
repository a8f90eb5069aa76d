from __future__ import annotations

import pytest

from edgeadapt.runtime.doctor.coverage import coverage, cuda_of
from edgeadapt.runtime.doctor.fatbin import read
from support.gpu_code import fatbin

ORIN, THOR, HOPPER, ADA, RTX = (8, 7), (11, 0), (9, 0), (8, 9), (12, 1)


@pytest.mark.parametrize(
    ("names", "gpu", "expected"),
    [
        (["87"], ORIN, "sass"),
        (["80"], ORIN, "related"),  # beside a Tegra processor nothing else is promised to run
        (["80", "86"], ADA, "sass"),  # others run what is older in their generation
        (["87"], ADA, "related"),
        (["89"], (8, 6), "none"),  # but nothing that is newer
        (["89", "90a", "120a", "121a"], ORIN, "none"),  # ONNX Runtime 1.31.1 for aarch64
        (["89", "90a", "120a", "121a"], THOR, "none"),
        (["89", "90a", "120a", "121a"], HOPPER, "sass"),
        (["90a"], (9, 0), "sass"),
        (["120a"], RTX, "none"),  # the a: this one only
        (["120f"], RTX, "sass"),  # the f: its family
        (["110f"], THOR, "sass"),
        (["100f"], THOR, "none"),
        (["ptx80"], ORIN, "ptx"),
        (["ptx87"], THOR, "ptx"),
        (["ptx87"], (8, 6), "none"),
        (["ptx90a"], THOR, "none"),
        (["ptx90a"], HOPPER, "ptx"),
        (["ptx120f"], RTX, "ptx"),
        (["ptx100f"], THOR, "none"),
        (["80", "ptx80"], ORIN, "ptx"),  # rather what is sure
        ([], ORIN, "none"),
    ],
)
def test_what_runs_where(names, gpu, expected):
    assert coverage(read(fatbin(names)), gpu) == expected


def test_versions_of_the_language_are_those_of_cuda():
    assert cuda_of((9, 0)) == (13, 0)
    assert cuda_of((9, 2)) == (13, 2)
    assert cuda_of((8, 5)) == (12, 5)
    assert cuda_of((8, 8)) == (12, 9)
    assert cuda_of((8, 2)) == (12, 2)
