"""`edgeadapt bench search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from edgeadapt.benchmarks.markdown import write_markdown
from edgeadapt.benchmarks.options import largest_size_option, progress
from edgeadapt.benchmarks.quality import Model, Settings, make_models
from edgeadapt.benchmarks.row_file import RowFile
from edgeadapt.benchmarks.rows import Table
from edgeadapt.benchmarks.samples import Sample, find_samples
from edgeadapt.benchmarks.search import (
    Outcome,
    Recipe,
    Role,
    Space,
    check_apart,
    choose,
    make_recipes,
    make_tasks,
    measure_recipes,
    own_recipe,
)
from edgeadapt.benchmarks.search_tables import COLUMNS, NOTE, search_line, search_page
from edgeadapt.bundle import open_bundle
from edgeadapt.runtime.optimizer import OPTIMIZERS
from edgeadapt.runtime.options import backend_option, threads_option
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.report import console, print_table

_PATH = click.Path(path_type=Path)
_STEP_SIZES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--select", "selects", multiple=True, required=True, type=_PATH, help="To choose on.")
@click.option("--report", "reports", multiple=True, required=True, type=_PATH, help="To report on.")
@click.option("--optimizer", "optimizers", multiple=True, type=click.Choice(list(OPTIMIZERS)))
@click.option(
    "--step-size",
    "step_sizes",
    multiple=True,
    type=_POSITIVE,
    default=_STEP_SIZES,
    show_default=True,
)
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=_POSITIVE,
    default=_FACTORS,
    show_default=True,
    help="Times the learned step sizes.",
)
@click.option("--scope", "scopes", multiple=True, help="Which parameters change.  [each there is]")
@click.option("--steps", type=click.IntRange(1), help="K.  [each bundle's]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Images of each recording.")
@largest_size_option
@backend_option(None)
@threads_option()
@click.option("-o", "--out", type=_PATH, required=True, help="Folder; goes on where it ended.")
def search(
    bundles: Sequence[str],
    selects: Sequence[Path],
    reports: Sequence[Path],
    optimizers: Sequence[str],
    step_sizes: Sequence[float],
    factors: Sequence[float],
    scopes: Sequence[str],
    steps: int | None,
    limit: int | None,
    size: tuple[int, int] | None,
    backend: str,
    threads: int | None,
    out: Path,
) -> None:
    """Try optimizers, step sizes and scopes; choose on some images, report on others.

    OUT/images.csv has every image and step, OUT/search.csv and OUT/search.md a line for every
    recipe tried, those that failed too.
    """
    check_installed()
    models = make_models([open_bundle(bundle) for bundle in bundles], [])
    samples: dict[Role, list[Sample]] = {
        "select": [s for folder in selects for s in find_samples(folder, limit=limit, size=size)],
        "report": [s for folder in reports for s in find_samples(folder, limit=limit, size=size)],
    }
    check_apart(samples["select"], samples["report"])
    space = Space(optimizers or list(OPTIMIZERS), step_sizes, factors, scopes, steps)
    work = _Work(samples, Settings(backend=backend, threads=threads), Table(out / "images.csv"))
    file = RowFile(out / "search.csv", Outcome)
    for model in models:
        found = work.search(model, space)
        kept = [row for row in file.rows if _identity(row) not in set(map(_identity, found))]
        file.rewrite([*kept, *found])
        write_markdown(out / "search.md", *search_page(file.rows))
    names = {model.name for model in models}
    own = [row for row in file.rows if row.model in names]
    print_table(COLUMNS, [search_line(row) for row in own])
    console().print(NOTE)


class _Work:
    """The images, how they are measured, and the rows there are."""

    def __init__(self, samples: dict[Role, list[Sample]], settings: Settings, table: Table) -> None:
        self._samples, self._settings, self._table = samples, settings, table

    def search(self, model: Model, space: Space) -> list[Outcome]:
        """Every recipe on the images to choose on; the chosen and the own on those to report on."""
        tried = self._measure(model, make_recipes(model.bundle, space), "select")
        winner = choose(tried)
        tried = [replace(row, chosen=row is winner) for row in tried]
        final = {own_recipe(model.bundle): False}
        if winner is not None:
            final[replace(winner.recipe, steps=winner.best_step)] = True
        reported = self._measure(model, list(final), "report")
        return [*tried, *(replace(row, chosen=final[row.recipe]) for row in reported)]

    def _measure(self, model: Model, recipes: Sequence[Recipe], role: Role) -> list[Outcome]:
        samples = self._samples[role]
        groups = make_tasks(model, recipes, samples, self._settings.backend)
        missing = {t.key for group in groups for t in group if self._table.get(t.key) is None}
        what = f"{model.name}, images to {'choose' if role == 'select' else 'report'} on"
        with progress(what, len(missing), lines=True) as advance:
            return measure_recipes(
                model, recipes, samples, role, self._settings, self._table, advance
            )


def _identity(row: Outcome) -> tuple[object, ...]:
    return row.model, row.weights, row.role, row.recipe, row.data
