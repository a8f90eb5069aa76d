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
from edgeadapt.runtime.plan.compile import Target, compile_graph, target_of
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
    target, remark = _target(options)
    plan = compile_graph(bundle, graph, height, width, target)
    if as_json:
        what = {"graph": graph, "height": height, "width": width, "precision": options.precision}
        report.print_json({**what, **plan_document(plan)})
        return
    out = report.console()
    print_plan(plan, out)
    out.print(Text(f"{graph} for {width}x{height} in {options.precision}{remark}"), soft_wrap=True)


def _target(options: EngineOptions) -> tuple[Target, str]:
    """This machine's; a plan can be shown where no kernels are built, without what they need."""
    threads = options.threads or usable_cores()
    try:
        library = open_library()
    except BackendError as error:
        remark = f"; without the kernels' working memory, for {error.message}"
        return Target(options.precision, options.memory_budget), remark
    kernels = Kernels(library, library.levels[-1])
    return target_of(options, kernels, threads), f", {threads} threads"
