"""Whether a trace holds for every image size, or has taken a path that only some sizes take."""

from __future__ import annotations

from itertools import product

from torch.fx.experimental.symbolic_shapes import ShapeEnv

from edgeadapt.errors import ExportError

# Where PyTorch asks about sizes without consequence for the result: the choice of a convolution's
# implementation, and the layout in memory.
_HARMLESS = ("in conv)", "_prims_common/")
# Multiples of the network's own multiple; a condition that holds for all of them is taken to hold.
_SAMPLES = (1, 2, 3, 4, 5, 7, 16, 100, 1001)


def check_every_size(environment: ShapeEnv) -> None:
    """Raise `ExportError` for the first condition on the image size that does not always hold.

    The tracer follows the path of one example size and notes under which conditions it is taken:
    ``if x.shape[2] > 64`` in a network is such a condition, and so is ``x[:, :, -20:]``, which
    takes 20 rows only where there are so many.
    """
    for guard in environment.guards:
        place = str(guard.sloc)
        if any(part in place for part in _HARMLESS):
            continue
        symbols = sorted(guard.expr.free_symbols, key=str)
        for values in product(_SAMPLES, repeat=len(symbols)):
            if guard.expr.subs(dict(zip(symbols, values, strict=True))) == False:  # noqa: E712  sympy's
                raise ExportError(
                    f"restore or adaptation_loss takes a path that holds only for images with "
                    f"{guard.expr} {place}.",
                    "use operations that are the same for every multiple of size_multiple.",
                )
