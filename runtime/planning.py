"""`edgeadapt info --plan`: an engine's plan for an image, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.image import padded_size
from edgeadapt.kernels.library import open_library
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import EngineOptions, usable_cores
from edgeadapt.runtime.cuda import show
from edgeadapt.runtime.cuda.plan import compile_graph as plan_for_cuda
from edgeadapt.runtime.plan.bind import Kernels
from edgeadapt.runtime.plan.compile import Target, compile_graph, refuse_precision, target_of
from edgeadapt.runtime.plan.show import plan_document, print_plan

ENGINES = ("native", "cuda")  # backends that plan


def print_plan_of(
    bundle: Bundle,
    graph: str,
    size: tuple[int, int],
    options: EngineOptions,
    as_json: bool,
    updated: Sequence[str] = (),
    engine: str = "native",
) -> None:
    """Print the plan of a graph for an image of ``size`` (height, width), padded as a session does.

    A plan of the engine "cuda" needs no GPU. With parameters ``updated`` it ends with their step,
    whatever the optimizer; the native engine's are without.

    Raises:
        BackendError: if the engine has no rule for an operator, or not this precision.
        ConfigError: if the plan cannot do with the memory budget.
    """
    height, width = padded_size(*size, bundle.manifest.image.size_multiple)
    what = {"graph": graph, "height": height, "width": width, "precision": options.precision}
    if engine == "cuda":
        _print_cuda(bundle, graph, (height, width), options, as_json, updated, what)
        return
    refuse_precision(options.precision)
    target, remark = _target(options)
    plan = compile_graph(bundle, graph, height, width, target)
    if as_json:
        report.print_json({**what, **plan_document(plan)})
        return
    out = report.console()
    print_plan(plan, out)
    _print_line(what, remark, out)


def _print_cuda(
    bundle: Bundle,
    graph: str,
    size: tuple[int, int],
    options: EngineOptions,
    as_json: bool,
    updated: Sequence[str],
    what: Mapping[str, Any],
) -> None:
    target = show.cuda_target(options.precision, options.memory_budget)
    optimizer = bundle.manifest.adaptation.optimizer
    plan = plan_for_cuda(bundle, graph, *size, target, updated, optimizer)
    if as_json:
        report.print_json({**what, **show.cuda_document(plan, options.precision)})
        return
    out = report.console()
    show.print_cuda_plan(plan, options.precision, out)
    _print_line(what, " on CUDA", out)


def _print_line(what: Mapping[str, Any], remark: str, out: Console) -> None:
    size = f"{what['width']}x{what['height']}"
    text = f"{what['graph']} for {size} in {what['precision']}{remark}"
    out.print(Text(text), soft_wrap=True)


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
