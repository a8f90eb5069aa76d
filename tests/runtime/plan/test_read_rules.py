"""Each rule of the reader, in a few nodes that are held to ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.errors import BackendError
from edgeadapt.runtime.plan.ir import Program
from support.reading import Snippet

IMAGE = "float[1,3,H,W] y"
ANY = "float[N] y"
TURN = "t = Transpose<perm = [0, 2, 3, 1]>(image)"  # (1, H, W, 3): rows are not contiguous


def nodes(*lines: str, **ints: tuple[int, ...] | int) -> str:
    """Nodes after constants of integers, by their names."""
    constants = [
        f"{name} = Constant<value_ints = {list(value)}>()"
        if isinstance(value, tuple)
        else f"{name} = Constant<value_int = {value}>()"
        for name, value in ints.items()
    ]
    return "\n".join([*constants, *lines])


def kinds(program: Program) -> list[str]:
    return [op.kind for op in program.ops]


POINTWISE = {
    "relu": "y = Relu(image)",
    "leaky, its slope left out": "y = LeakyRelu(image)",
    "clip at both ends": "l = Constant<value_float = -0.3>() h = Constant<value_float = 0.4>() "
    "y = Clip(image, l, h)",
    "clip at the top": "h = Constant<value_float = 0.4>() y = Clip(image, , h)",
    "clip at nothing": "c = Clip(image) y = Neg(c)",
    "clip at a tensor": "h = ReduceMean<keepdims = 0>(image) y = Clip(image, h)",
    "most of three": "a = Neg(image) b = Sin(image) y = Max(image, a, b)",
    "least of one": "m = Min(image) y = Abs(m)",
    "sum of three, one twice": "a = Neg(image) b = Sin(image) y = Sum(image, b, b)",
    "power": "e = Constant<value_float = 3.0>() y = Pow(image, e)",
    "a number on the left": "c = Constant<value_float = 3.0>() y = Sub(c, image)",
    "a vector of one number": "c = Constant<value_floats = [2.0]>() y = Div(image, c)",
    "a row": "r = Constant<value_floats = [2.0, 3.0, 5.0]>() "
    "s = Constant<value_ints = [3, 1, 1]>() c = Reshape(r, s) y = Mul(image, c)",
    "equal numbers": "r = Constant<value_floats = [2.0, 2.0, 2.0]>() "
    "s = Constant<value_ints = [3, 1, 1]>() c = Reshape(r, s) y = Mul(image, c)",
    "choice": "n = Neg(image) g = Greater(image, n) y = Where(g, image, n)",
    "truths of truths": "z = Constant<value_float = 0.1>() a = Greater(image, z) "
    "b = Less(image, z) o = Or(a, b) n = And(a, o) x = Not(n) "
    "y = Cast<to = 1>(x)",
    "count": "z = Constant<value_float = 0.1>() g = GreaterOrEqual(image, z) "
    "i = Cast<to = 7>(g) c = Cast<to = 1>(i) y = Mul(image, c)",
    "truth of a number": "r = Floor(image) b = Cast<to = 9>(r) y = Cast<to = 1>(b)",
    "cast to what it is": "c = Cast<to = 1>(image) y = Neg(c)",
    "softplus and erf": "s = Softplus(image) y = Erf(s)",
    "sign and round": "s = Sign(image) r = Round(image) y = Add(s, r)",
}


@pytest.mark.parametrize("text", POINTWISE.values(), ids=POINTWISE)
def test_element_by_element(text: str, tmp_path: Path):
    program = Snippet(tmp_path, text, IMAGE).assert_same_as_onnxruntime()
    assert set(kinds(program)) <= {"pointwise", "reduce"}


SLICES = {
    "channels": ((1,), (3,), (1,), (1,)),
    "the last rows": ((-4,), (-1,), (2,), (1,)),
    "past the end": ((2,), (2**62,), (3,), (1,)),
    "every second": ((1,), (9,), (3,), (2,)),
    "backwards": ((-1,), (-(2**62),), (3,), (-1,)),
    "backwards by two, not to the start": ((8,), (1,), (3,), (-2,)),
    "from before the start": ((-99,), (4,), (2,), (1,)),
    "two axes": ((1, -1), (5, -(2**62)), (2, 1), (2, -1)),
}


@pytest.mark.parametrize("bounds", SLICES.values(), ids=SLICES)
def test_slices_are_views(bounds: tuple[tuple[int, ...], ...], tmp_path: Path):
    starts, ends, axes, steps = bounds
    text = nodes(
        "s = Slice(image, starts, ends, axes, steps)", "y = Neg(s)",
        starts=starts, ends=ends, axes=axes, steps=steps,
    )  # fmt: skip
    program = Snippet(tmp_path, text, "float[1,C,N,M] y").assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise"]


VIEWS = {
    "axes to the front and back": nodes(
        TURN, "u = Unsqueeze(t, at)", "s = Squeeze(u, gone)", "y = Neg(s)", at=(0, -1), gone=(1,)
    ),
    "all axes turned": nodes("t = Transpose(image)", "y = Neg(t)"),
    "axes of length one go": nodes("t = Squeeze(image)", "y = Neg(t)"),
    "rows merged": nodes("r = Reshape(image, s)", "y = Neg(r)", s=(0, 0, -1)),
    "a slice of channels, merged": nodes(
        "c = Slice(image, a, b, a)", "r = Reshape(c, s)", "y = Neg(r)", a=(1,), b=(3,), s=(2, -1)
    ),
    "flat": nodes("f = Flatten(image)", "g = Flatten<axis = -1>(f)", "y = Neg(g)"),
    "an entry from the end": nodes("g = Gather<axis = 2>(image, i)", "y = Neg(g)", i=-2),
    "entries at a distance": nodes("g = Gather<axis = 3>(image, i)", "y = Neg(g)", i=(7, 4, 1)),
    "repeated": nodes("m = Squeeze(bias)", "e = Expand(m, s)", "y = Neg(e)", s=(2, 3, 4)),
    "tiled along an axis of length one": nodes(
        "g = Slice(image, a, c, c)", "t = Tile(g, n)", "y = Neg(t)", a=(0,), c=(1,), n=(1, 4, 1, 1)
    ),
    "a crop": nodes("p = Pad(image, n)", "y = Neg(p)", n=(0, -1, -2, 0, 0, 0, -1, -3)),
    "a pad of nothing": nodes("p = Pad(image, n)", "y = Neg(p)", n=(0,) * 8),
    "joined with nothing": nodes(
        "e = Slice(image, z, z, one)", "c = Concat<axis = 1>(e, image)", "y = Neg(c)",
        z=(0,), one=(1,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", VIEWS.values(), ids=VIEWS)
def test_what_strides_can_say_is_a_view(text: str, tmp_path: Path):
    program = Snippet(tmp_path, text, ANY).assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise"]


COPIES = {
    "a turned image, merged": nodes(TURN, "y = Reshape(t, s)", s=(-1,)),
    "length zero is kept": nodes(TURN, "y = Reshape(t, s)", s=(0, -1)),
    "tiled": nodes("y = Tile(image, n)", n=(1, 2, 1, 3)),
    "a turned image, tiled": nodes(TURN, "y = Tile(t, n)", n=(2, 1, 3, 1)),
    "an output that is a view": nodes("y = Transpose(image)"),
    "an output that is an input": nodes("y = Identity(image)"),
    "an output that is a constant": nodes("s = Shape(image)", "y = Cast<to = 1>(s)"),
    "an output that is one number": nodes(
        "z = Constant<value_float = 0.5>()", "y = Expand(z, s)", s=(2, 3)
    ),
}


@pytest.mark.parametrize("text", COPIES.values(), ids=COPIES)
def test_what_strides_cannot_say_is_copied_once(text: str, tmp_path: Path):
    program = Snippet(tmp_path, text, ANY).assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise"]
    assert [program.tensors[name].view for name in program.outputs] == [None]


def test_two_outputs_of_one_value_are_two_tensors(tmp_path: Path):
    text = "y = Neg(image) z = Identity(y)"
    program = Snippet(tmp_path, text, f"{IMAGE}, float[1,3,H,W] z").assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise", "pointwise"]


REDUCTIONS = ("Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "Prod")


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("how", REDUCTIONS)
def test_reductions(how: str, keep: int, tmp_path: Path):
    text = nodes(
        f"y = Reduce{how}<keepdims = {keep}>(image, axes)",
        f"z = Reduce{how}<keepdims = {keep}>(image)",
        axes=(-1, 1),
    )
    program = Snippet(tmp_path, text, "float[N] y, float[M] z").assert_same_as_onnxruntime()
    assert kinds(program) == ["reduce", "reduce"]


def test_a_reduction_over_no_axes(tmp_path: Path):
    text = "n = ReduceSum<noop_with_empty_axes = 1>(image) y = Neg(n)"
    program = Snippet(tmp_path, text, IMAGE).assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise"]


@pytest.mark.parametrize("axis", [1, -1, 2])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax(kind: str, axis: int, tmp_path: Path):
    Snippet(tmp_path, f"y = {kind}<axis = {axis}>(image)", IMAGE).assert_same_as_onnxruntime()


PRODUCTS = {
    "vector by matrix": ("v", "m"),
    "matrix by vector": ("n", "v"),
    "vector by vector": ("v", "v"),
    "images by matrix": ("image", "m"),
    "images by turned images": ("image", "t"),
    "images by one": ("image", "one"),
    "vector by images": ("v", "t"),
    "images by vector": ("image", "v"),
}


@pytest.mark.parametrize("pair", PRODUCTS.values(), ids=PRODUCTS)
def test_products_of_matrices(pair: tuple[str, str], tmp_path: Path):
    text = nodes(
        "one = ReduceSum<keepdims = 1>(t, c)",  # (1, 1, W, H)
        "m = Squeeze(one)",
        "n = Transpose(m)",
        "v = ReduceSum<keepdims = 0>(n, z)",
        f"y = MatMul({', '.join(pair)})",
        z=(0,), c=(1,),
    )  # fmt: skip
    text = "t = Transpose<perm = [0, 1, 3, 2]>(image)\n" + text
    assert "matmul" in kinds(Snippet(tmp_path, text, ANY).assert_same_as_onnxruntime())


WINDOWS = {
    "convolution": 'y = Conv<pads = [1, 1, 1, 1]>(image, weight, bias)',
    "uneven convolution": "y = Conv<pads = [0, 2, 1, 1], strides = [2, 1], dilations = [1, 2]>"
    "(image, weight)",
    "convolution of a turned image": nodes(
        "t = Transpose<perm = [0, 1, 3, 2]>(image)", "y = Conv(t, weight, bias)"
    ),
    "convolution with a turned weight": nodes(
        "v = Transpose<perm = [0, 1, 3, 2]>(weight)", "y = Conv(image, v, bias)"
    ),
    "convolution of several images": nodes(
        "t = Transpose<perm = [1, 0, 2, 3]>(image)", "c = Concat<axis = 1>(t, t, t)",
        "y = Conv(c, weight, bias)",
    ),
    "transposed convolution": nodes(
        "v = Transpose<perm = [1, 0, 2, 3]>(weight)",
        "y = ConvTranspose<strides = [2, 3], pads = [1, 0, 1, 1], output_padding = [1, 2]>"
        "(image, v, bias)",
    ),
    "largest, sizes rounded up": "y = MaxPool<kernel_shape = [3, 2], strides = [2, 3], "
    "pads = [1, 0, 0, 0], ceil_mode = 1>(image)",
    "largest, spread": "y = MaxPool<kernel_shape = [2, 2], dilations = [2, 3]>(image)",
    "mean": "y = AveragePool<kernel_shape = [2, 3], strides = [2, 1]>(image)",
    "mean with padding": "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
    "count_include_pad = 1>(image)",
    "enlarged, linear": "s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() "
    'y = Resize<mode = "linear">(image, , s)',
    "enlarged, nearest": "s = Constant<value_floats = [1.0, 1.0, 3.0, 3.0]>() "
    'y = Resize<mode = "nearest", nearest_mode = "floor", '
    'coordinate_transformation_mode = "asymmetric">(image, , s)',
    "padded with a value": nodes(
        "v = Constant<value_float = 0.7>()", "y = Pad(image, n, v)", n=(0, 1, 2, 0, 0, 0, 1, 3)
    ),
    "padded here, cut there": nodes("y = Pad(image, n)", n=(0, 0, 2, -1, 0, 0, -1, 3)),
    "padded on two axes": nodes("y = Pad(image, n, , a)", n=(2, 1, 0, 3), a=(-1, 1)),
    "reflected": nodes('y = Pad<mode = "reflect">(image, n)', n=(0, 0, 2, 1, 0, 0, 3, 0)),
    "edges": nodes('y = Pad<mode = "edge">(image, n)', n=(0, 0, 2, 1, 0, 0, 3, 0)),
    "joined": nodes(TURN, "u = Neg(t)", "y = Concat<axis = -1>(t, u, t)"),
    "joined with constants": nodes(
        "z = Constant<value_float = 0.5>()", "s = Shape(image)", "e = Expand(z, s)",
        "y = Concat<axis = 1>(image, e)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", WINDOWS.values(), ids=WINDOWS)
def test_neighbourhoods(text: str, tmp_path: Path):
    Snippet(tmp_path, text, "float[N,C,K,L] y").assert_same_as_onnxruntime()


def test_images_are_convolved_one_by_one(tmp_path: Path):
    program = Snippet(
        tmp_path, WINDOWS["convolution of several images"], "float[N,C,K,L] y"
    ).program()
    assert kinds(program).count("conv") == 3


def test_what_is_known_is_computed_while_reading(tmp_path: Path):
    text = nodes(
        "s = Shape(image)", "sides = Gather(s, last)", "k = Cast<to = 1>(sides)",
        "total = ReduceProd<keepdims = 0>(k)", "n = Size(image)", "m = Cast<to = 1>(n)",
        "r = Sqrt(m)", "q = Div(total, r)", "whole = Div(sides, two)",
        "z = Concat<axis = 0>(whole, two)",
        "f = Slice(z, zero, big)", "g = Cast<to = 1>(f)", "p = Pad(g, around)",
        "u = Unsqueeze(p, zero)", "t = Transpose(u)", "h = Tile(t, around)", "x = Max(h, q)",
        "c = ReduceMean<keepdims = 0>(x)", "y = Mul(image, c)",
        last=(-2, -1), two=(2,), zero=(0,), big=(2**62,), around=(1, 2),
    )  # fmt: skip
    program = Snippet(tmp_path, text, IMAGE).assert_same_as_onnxruntime()
    assert kinds(program) == ["pointwise"]
    assert not program.constants


def test_a_constant_of_the_image_s_size_is_not_written_out(tmp_path: Path):
    text = nodes(
        "r = Constant<value_floats = [2.0, 3.0, 5.0]>()", "c = Unsqueeze(r, a)", "s = Shape(image)",
        "e = Expand(c, s)", "f = Sqrt(e)", "y = Mul(image, f)", a=(1, 2),
    )  # fmt: skip
    program = Snippet(tmp_path, text, IMAGE).assert_same_as_onnxruntime(256, 256)
    assert [value.size for value in program.constants.values()] == [3]
    assert kinds(program) == ["pointwise"]


def test_a_function_without_a_rule_is_read_by_its_body(tmp_path: Path):
    function = """
        <domain: "local", opset_import: ["" : 18]> bent <slope> (x, bound) => (z)
        { l = LeakyRelu<alpha: float = @slope>(x) m = Clip(l, bound) z = Neg(m) }
    """
    text = "a = local.bent<slope = 0.25>(image) c = Constant<value_float = -0.1>() "
    text += "y = local.bent<slope = 0.5>(a, c)"
    program = Snippet(tmp_path, text, IMAGE, function).assert_same_as_onnxruntime()
    slopes = [op.attributes["expression"][0][1][1] for op in program.ops if "/l" in op.origin]
    assert slopes == [("c", 0.25), ("c", 0.5)]


def test_what_no_output_needs_is_left_out(tmp_path: Path):
    program = Snippet(
        tmp_path, "a = Sin(image) b = Conv(a, weight) y = Neg(image)", IMAGE
    ).program()
    assert kinds(program) == ["pointwise"]
    assert list(program.tensors) == ["image", "y"]


REFUSED = {
    "an operator": ("y = CumSum(image, i)", "CumSum (at 'y')"),
    "a product of truths": ("y = Xor(image, image)", "Xor"),
    "padding outside of a mean": (
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image)",
        "AveragePool that leaves padding out of the mean",
    ),
    "padding by name": (
        'y = Conv<auto_pad = "SAME_UPPER">(image, weight)', "with auto_pad 'SAME_UPPER'",
    ),
    "indices without a distance": ("y = Gather<axis = 3>(image, i)", "without a common distance"),
    "a size from pixels": (
        "k = ReduceSum<keepdims = 1>(image) y = Expand(image, k)", "depend on the image's values",
    ),
    "a value from pixels": (
        "k = ReduceSum<keepdims = 0>(image) y = Pad(image, p, k)", "depends on the image",
    ),
    "half a size": (
        "s = Constant<value_floats = [1.0, 1.0, 0.5, 0.5]>() "
        'y = Resize<mode = "linear">(image, , s)', "by [1.0, 1.0, 0.5, 0.5]",
    ),
    "another resizing": (
        "s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() "
        'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">'
        "(image, , s)", "align_corners",
    ),
    "doubles": ("y = Cast<to = 11>(image)", "to ONNX type 11"),
    "squares of no axes": (
        "y = ReduceL2<noop_with_empty_axes = 1>(image)", "ReduceL2 over no axes",
    ),
    "nine inputs": (
        " ".join(f"a{n} = ReduceSum<keepdims = 0>(a{n - 1})" if n else "a0 = Sin(image)"
                 for n in range(9)) + f" y = Sum({', '.join(f'a{n}' for n in range(9))})",
        "with 9 inputs",
    ),
    "seven axes": ("u = Unsqueeze(image, axes) y = Neg(u)", "with 7 axes"),
    "arguments that make no sense": ("y = Transpose<perm = [0, 1, 2, 7]>(image)", "arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_has_no_rule_is_refused_by_name(case: tuple[str, str], tmp_path: Path):
    text, said = case
    text = nodes(text, i=(1, 0, 2), p=(0, 0, 1, 1, 0, 0, 1, 1), axes=(0, 1, 2))
    with pytest.raises(BackendError) as caught:
        Snippet(tmp_path, text, ANY).program()
    assert said in caught.value.message
    assert caught.value.message.startswith("snippet.onnx: the native engine has no rule for ")
    assert caught.value.hint == "use --backend onnxruntime."


def test_a_second_result_is_refused(tmp_path: Path):
    text = "y, places = MaxPool<kernel_shape = [2, 2]>(image)"
    with pytest.raises(BackendError, match="MaxPool"):
        Snippet(tmp_path, text, ANY).program()


def test_a_result_of_another_shape_than_its_place_is_refused(tmp_path: Path):
    with pytest.raises(BackendError, match=r"giving f32 \(1, 1, 1, 1\) for restored"):
        Snippet(tmp_path, "restored = ReduceSum(image)", "float[N] restored").program()
