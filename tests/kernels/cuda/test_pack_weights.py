from __future__ import annotations

from math import prod

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.pack_weights import PackedWeight, pack_table, pack_weights
from support.strided import NUMPY, to_bf16, wide

# Shape of the parameter, groups, transposed, output channels.
WEIGHTS = [
    ((16, 6, 3, 3), 1, False, None),
    ((3, 16, 3, 3), 1, False, None),
    ((1, 1, 1, 1), 1, False, None),
    ((12, 4, 2, 5), 3, False, None),
    ((18, 1, 3, 3), 18, False, None),
    ((6, 10, 4, 4), 1, True, None),
    ((6, 3, 2, 2), 2, True, None),
    ((20, 7, 1, 1), 1, False, (5, 11)),
    ((7, 20, 3, 3), 1, True, (9, 8)),
    ((40, 40, 3, 3), 1, False, None),  # several blocks
]


def expected(weight, part):
    """The whole order, out of the definition."""
    first, count = part.out_channels or (0, part.group * part._outputs)
    if part.order == "krsc":
        wanted = slice(first, first + count)
        weight = weight[:, wanted] if part.transposed and part.group == 1 else weight
        weight = weight if part.transposed else weight[wanted]
        return weight.transpose(0, 2, 3, 1)
    groups = weight.reshape(part.group, -1, *weight.shape[1:])
    if part.transposed:
        groups = groups.swapaxes(1, 2)
    groups = groups[:, first : first + count] if part.group == 1 else groups
    packed = groups.transpose(0, 3, 4, 2, 1)  # group, u, v, inputs, outputs
    return np.pad(packed, [(0, 0)] * 4 + [(0, -packed.shape[-1] % 8)])


def parts_of(order, dtypes):
    """All weights one after the other, and where each is packed: with a gap behind each."""
    source, y, parts = 3, 0, []
    for number, (shape, group, transposed, out_channels) in enumerate(WEIGHTS):
        dtype = dtypes[number % len(dtypes)]
        parts.append(PackedWeight(source, y, shape, group, transposed, out_channels, dtype, order))
        source += prod(shape) + 1
        y += -(-parts[-1].nbytes // 256) * 256 + 256
    return parts, source, y


@pytest.mark.parametrize("dtypes", [("f32",), ("f16",), ("bf16",), ("f32", "f16", "bf16")])
@pytest.mark.parametrize("order", ["conv", "krsc"])
def test_all_weights_in_one_launch(run, guarded, rng, order, dtypes):
    parts, size, nbytes = parts_of(order, dtypes)
    weights = guarded((size,), fill=rng.standard_normal(size))
    packed = guarded((nbytes // 4,))
    table = pack_table(parts)
    rows = guarded((table.rows.size * 2,))
    rows.view(np.int64)[...] = table.rows.reshape(-1)
    untouched = packed.view(np.uint8).copy()
    work = pack_weights(weights.ctypes.data, packed.ctypes.data, table, rows.ctypes.data)
    assert len(work.launches) == 1
    run(lambda scratch: work)
    for part in parts:
        values = weights[part.weight : part.weight + prod(part.shape)].reshape(part.shape)
        wanted = expected(values, part)
        assert prod(part.packed_shape) == wanted.size
        written = packed.view(np.uint8)[part.y : part.y + part.nbytes]
        actual = written.view(NUMPY[part.dtype]).reshape(wanted.shape)
        if part.dtype == "bf16":
            assert (wide(actual) == wide(to_bf16(wanted))).all()
        else:
            assert (actual == wanted.astype(actual.dtype)).all()
        untouched[part.y : part.y + part.nbytes] = written
    assert (packed.view(np.uint8) == untouched).all()


@pytest.mark.parametrize("order", ["conv", "krsc"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_that_lies_otherwise(run, guarded, rng, order, transposed):
    """As an activation whose channels lie side by side does, backwards along its rows."""
    weights = guarded((2 * 5 * 4 * 7,), fill=rng.standard_normal(280))
    values = weights.reshape(5, 4, 7, 2).transpose(2, 3, 0, 1)[:, :, ::-1, :3]
    strides = tuple(stride // 4 for stride in values.strides)
    first = (values.ctypes.data - weights.ctypes.data) // 4
    part = PackedWeight(first, 0, values.shape, transposed=transposed, order=order, strides=strides)
    packed = guarded((part.nbytes // 4,))
    table = pack_table([part])
    rows = guarded((table.rows.size * 2,))
    rows.view(np.int64)[...] = table.rows.reshape(-1)
    work = pack_weights(weights.ctypes.data, packed.ctypes.data, table, rows.ctypes.data)
    run(lambda scratch: work)
    wanted = expected(values, part)
    assert (packed.reshape(wanted.shape) == wanted).all()


def test_nothing_to_pack_is_no_launch():
    table = pack_table([])
    assert pack_weights(256, 512, table, 1024).launches == ()


REFUSED = {
    r"shape must be a multiple of 3 by some channels": {"shape": (4, 4, 3, 3), "group": 3},
    r"shape must be a multiple of 1 by some channels by a kernel, got \(4, 0, 3, 3\)": {
        "shape": (4, 0, 3, 3)
    },
    "dtype must be one of f32, f16, bf16 and order 'conv' or 'krsc', got 'bool' and 'conv'": {
        "dtype": "bool"
    },
    "got 'f32' and 'nchw'": {"order": "nchw"},
    r"out_channels must lie within 4, got \(2, 3\)": {"out_channels": (2, 3)},
    r"out_channels must be all 4 if there are groups, got \(0, 2\)": {
        "out_channels": (0, 2),
        "group": 2,
    },
    "weight and y must begin at an element, got 0 and byte 2": {"y": 2},
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    with pytest.raises(ArrayError, match=f"pack_weights: .*{text}"):
        PackedWeight(**{"weight": 0, "y": 0, "shape": (4, 4, 3, 3), **REFUSED[text]})


def test_packed_weights_may_not_overlap():
    parts = [PackedWeight(0, y, (8, 4, 1, 1)) for y in (0, 124)]
    with pytest.raises(ArrayError, match="what ends at byte 128 overlaps what is at 124"):
        pack_table(parts)
