"""All stages in a row: a graph of a bundle becomes a program with a place for everything."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.kernels.conv import Vectors
from edgeadapt.runtime.backend import EngineOptions, Precision
from edgeadapt.runtime.plan.algorithm import choose_algorithms
from edgeadapt.runtime.plan.bind import Kernels, packed_elements
from edgeadapt.runtime.plan.cost import total_flops
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import ScratchBytes, live_bytes, no_scratch
from edgeadapt.runtime.plan.pack import pack
from edgeadapt.runtime.plan.place import Placement, place
from edgeadapt.runtime.plan.precision import to_half
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.plan.read_nodes import parse
from edgeadapt.runtime.plan.remat import fit
from edgeadapt.runtime.plan.schedule import schedule
from edgeadapt.runtime.plan.update import update_weights

# Without a budget a plan may take this much. Of one that needs more, half is computed again instead
# of kept, if that is at most a few percent of the work: devices have little memory, and bandwidth
# is what they lack most. In bfloat16 everything takes half as it is.
LITTLE_BYTES = 512 * 2**20
CHEAP_WORK = 1.12
MOST_BYTES = 6 * 2**30  # what a device with 8 GB has left: above that, any recomputation is cheap
_CHECKED_SIDE = 16  # pixels, at least, of the image for which a graph's operators are looked up


_VECTORS = Vectors(16, bf16=False)  # where nothing is known of the machine


@dataclass(frozen=True)
class Target:
    """What a plan is made for: what is asked for, and the kernels that will run it."""

    precision: Precision = "fp32"
    memory_budget: int | None = None  # bytes of the arena
    scratch_bytes: ScratchBytes = no_scratch  # asks a kernel for its working memory
    vectors: Vectors = _VECTORS


def refuse_precision(precision: Precision) -> None:
    """Say that CPUs compute in float32, and some of them in bfloat16.

    Raises:
        BackendError: if ``precision`` is something else.
    """
    if precision not in ("fp32", "bf16"):
        raise BackendError(
            f"the native engine computes in fp32 or bf16, not {precision}.",
            "choose one of these, or use the backend cuda.",
        )


def target_of(options: EngineOptions, kernels: Kernels, threads: int) -> Target:
    """What a user's options and this machine's kernels ask of a plan."""
    scratch = kernels.scratch_bytes(threads)
    return Target(options.precision, options.memory_budget, scratch, kernels.vectors)


@dataclass(frozen=True)
class Plan:
    """A program and where its tensors lie."""

    program: Program
    placement: Placement


def compile_graph(
    bundle: Bundle,
    graph: str,
    height: int,
    width: int,
    target: Target,
    step_sizes: Mapping[str, float] | None = None,
) -> Plan:
    """Plan the graph in the file ``graph`` for an image of ``height`` x ``width``.

    With ``step_sizes`` of parameters, whose gradients the graph must give, the program takes a step
    of SGD as well.

    Raises:
        BackendError: if the native engine has no rule for an operator.
        ConfigError: if the plan cannot do with the memory of ``target``.
    """
    program = fuse(read(bundle, graph, height, width))
    if target.precision == "bf16":
        program = to_half(program)
    program = pack(choose_algorithms(schedule(program), target.vectors), packed_elements)
    program = _economise(program, target)
    if step_sizes is not None:
        program = update_weights(program, step_sizes)
    return Plan(program, place(program, target.scratch_bytes))


def _economise(program: Program, target: Target) -> Program:
    """Meet the budget; without one, halve what is much where that is cheap."""
    if target.memory_budget is not None:
        return fit(program, target.memory_budget, target.scratch_bytes)
    needed = max(live_bytes(program, target.scratch_bytes))
    if needed <= LITTLE_BYTES or (target.precision == "bf16" and needed <= MOST_BYTES):
        return program
    budget = min(max(needed // 2, LITTLE_BYTES), MOST_BYTES)
    try:
        smaller = fit(program, budget, target.scratch_bytes)
    except ConfigError:  # a plan that keeps next to nothing: there is nothing to drop
        return program
    dear = needed <= MOST_BYTES and total_flops(smaller) > CHEAP_WORK * total_flops(program)
    return program if dear else smaller


def check_rules(bundle: Bundle) -> None:
    """Read every graph once, unless all of its nodes were read before, as part of a larger one.

    At a size of which more is left than one pixel, however far a network reduces an image: of a
    single one a difference of neighbours has no elements, and a mean of none is no number.

    Raises:
        BackendError: naming an operator that the native engine has no rule for.
    """
    multiple = bundle.manifest.image.size_multiple
    side = multiple * max(2, -(-_CHECKED_SIDE // multiple))
    files = (RESTORE_GRAPH, LOSS_GRAPH, *(scope.graph for scope in bundle.manifest.scopes))
    graphs = [parse(bundle, file) for file in files]
    seen: set[Hashable] = set()
    for graph in sorted(graphs, key=lambda graph: len(graph.nodes), reverse=True):
        # The exporter cuts all graphs out of one, so that a name means the same in each.
        nodes = {(node.domain, node.kind, node.inputs, node.outputs) for node in graph.nodes}
        if not nodes <= seen:
            read(bundle, graph.file, side, side)
            seen |= nodes
