"""Plans that fit the memory of a device, and what to say of those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.cuda.plan import DevicePlan, Target, compile_graph

MIB = 2**20
Size = tuple[int, int]  # height, width
SEARCH_SECONDS = 10.0  # for the largest size that fits, in an error
_SEARCHES = 6  # each halves what is between a size that fits and one that does not


def compile_within(
    free: int,
    bundle: Bundle,
    graph: str,
    size: Size,
    target: Target,
    updated: Sequence[str] = (),
    optimizer: str = "sgd",
) -> DevicePlan:
    """`compile_graph` with an arena of at most ``free`` bytes; what does not fit is computed twice.

    Raises:
        BackendError: if there is no such plan; says how much is needed, how much is free, and the
            largest size that fits, as far as it was found in `SEARCH_SECONDS`.
        ConfigError: if the plan cannot do with the memory budget of ``target``.
    """
    step = (updated, optimizer)
    plan = compile_graph(bundle, graph, *size, target, *step)
    needed = plan.placement.arena_bytes
    if needed <= free:
        return plan
    try:
        return compile_graph(bundle, graph, *size, replace(target, memory_budget=free), *step)
    except ConfigError:
        pass
    largest = _largest(free, needed, bundle, graph, size, target)
    advice = f"images of up to {largest[1]}x{largest[0]} fit" if largest else "no image fits"
    raise BackendError(
        f"CUDA: an image of {size[1]}x{size[0]} needs {-(-needed // MIB):,} MiB on the GPU, of "
        f"which {free // MIB:,} MiB are free, and computing twice what does not fit is not enough; "
        f"{advice}.",
        "give a smaller image or a smaller scope, or close what else uses the GPU.",
    )


def _largest(
    free: int, needed: int, bundle: Bundle, graph: str, size: Size, target: Target
) -> Size | None:
    """The largest size of about the same proportions for which there is a plan."""
    end = perf_counter() + SEARCH_SECONDS
    multiple = bundle.manifest.image.size_multiple
    share, best = free / needed, None
    # Memory grows as the number of pixels does; without recomputation this much fits for certain.
    low, high = 0.0, 1.0
    for attempt in range(_SEARCHES):
        share = 0.98 * share if attempt == 0 else (low + high) / 2
        candidate = _scaled(size, share, multiple)
        if candidate == best:
            break
        if candidate is not None and _fits(free, bundle, graph, candidate, target):
            best, low = candidate, share
        else:
            high = share
        if perf_counter() > end:
            break
    return best


def _scaled(size: Size, share: float, multiple: int) -> Size | None:
    """About ``share`` of the pixels of ``size``; none if there is no such image."""
    height, width = (int(n * share**0.5) // multiple * multiple for n in size)
    return (height, width) if height and width else None


def _fits(free: int, bundle: Bundle, graph: str, size: Size, target: Target) -> bool:
    if compile_graph(bundle, graph, *size, target).placement.arena_bytes <= free:
        return True
    try:
        compile_graph(bundle, graph, *size, replace(target, memory_budget=free))
    except ConfigError:
        return False
    return True
