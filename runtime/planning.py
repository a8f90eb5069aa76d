"""`edgeadapt info --plan`: the native engine's plan for an image, before anything runs."""

from __future__ import annotations

from rich.text import Text

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.image import padded_size
from edgeadapt.kernels.library import open_library
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import EngineOptions, usable_cores
from edgeadapt.runtime.plan.bind import Kernels
from edgeadapt.runtime.plan.compile import Target, compile_graph
from edgeadapt.runtime.plan.lifetimes import ScratchBytes, no_scratch
from edgeadapt.runtime.plan.show import plan_document, print_plan


def print_plan_of(
    bundle: Bundle, graph: str, size: tuple[int, int], options: EngineOptions, as_json: bool
) -> None:
    """Print the plan of a graph for an image of ``size`` (height, width), padded as a session does.

    Raises:
        BackendError: if the native engine has no rule for an operator.
        ConfigError: if the plan cannot do with the memory budget.
    """
    height, width = padded_size(*size, bundle.manifest.image.size_multiple)
    scratch, remark = _scratch_bytes(options.threads or usable_cores())
    target = Target(options.precision, options.memory_budget, scratch)
    plan = compile_graph(bundle, graph, height, width, target)
    if as_json:
        what = {"graph": graph, "height": height, "width": width, "precision": options.precision}
        report.print_json({**what, **plan_document(plan)})
        return
    out = report.console()
    print_plan(plan, out)
    out.print(Text(f"{graph} for {width}x{height} in {options.precision}{remark}"), soft_wrap=True)


def _scratch_bytes(threads: int) -> tuple[ScratchBytes, str]:
    """What kernels need besides; a plan can be shown where they are not built, without that."""
    try:
        library = open_library()
    except BackendError as error:
        return no_scratch, f"; without the kernels' working memory, for {error.message}"
    return Kernels(library, library.levels[-1]).scratch_bytes(threads), f", {threads} threads"
