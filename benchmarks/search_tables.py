"""What a search found: a line a recipe for the screen, a grid a model for a document."""

from __future__ import annotations

from collections.abc import Sequence

from edgeadapt.benchmarks.markdown import markdown_table
from edgeadapt.benchmarks.search import LEARNED, MOST_LOWERED, Outcome
from edgeadapt.benchmarks.summary import LOWERED_DB

NOTE = (
    "PSNR in dB, averaged over the images of a recording, then over recordings. Gains are over K=0 "
    "of the same weights, raw gains what they were if no adaptation was taken back. Lowered: "
    f"images that lose more than {LOWERED_DB:g} dB. Taken back: images whose loss rose + images "
    "where something was no longer a number. Chosen is the best step that gains at all and lowers "
    f"at most {MOST_LOWERED:.0%} of the images to choose on; only it, and the bundle's own recipe, "
    "are measured on the images to report on."
)
_GRID_NOTE = (
    "A cell is one run: what K steps gain in the mean, in dB. In brackets, where the session took "
    "adaptations back: what the gain would have been otherwise, and on how many images. The chosen "
    "recipe is bold, with the number of steps that gains most where that is not K."
)
COLUMNS = [
    "model",
    "images to",
    "optimizer",
    "step size",
    "scope",
    "K",
    "blurred",
    "K=0",
    "gain at K",
    "raw gain",
    "best gain",
    "lowered",
    "taken back",
    "loss, first to last",
    "",
]


def search_line(row: Outcome) -> list[str]:
    """The cells of one outcome, for `COLUMNS`."""
    recipe = row.recipe
    losses = ["-" if loss is None else f"{loss:.4g}" for loss in (row.loss_first, row.loss_last)]
    return [
        row.model,
        f"{'choose' if row.role == 'select' else 'report'}: {row.images} in {row.recordings}",
        recipe.optimizer,
        recipe.step_size,
        recipe.scope,
        f"{recipe.steps}",
        f"{row.blurred:.3f}",
        f"{row.plain:.3f}",
        f"{row.gain:+.4f}",
        "not a number" if row.raw_gain is None else f"{row.raw_gain:+.4f}",
        f"{row.best_gain:+.4f} at {row.best_step}",
        f"{row.lowered:.0%}",
        f"{row.rose} + {row.diverged}",
        " to ".join(losses),
        "chosen" if row.chosen else "",
    ]


def search_page(outcomes: Sequence[Outcome]) -> list[str]:
    """Paragraphs and tables for a document: a grid of all recipes a model, and what is reported."""
    groups: dict[tuple[object, ...], list[Outcome]] = {}
    for row in outcomes:
        if row.role == "select":
            key = (row.model, row.weights, row.data, row.recipe.steps)
            groups.setdefault(key, []).append(row)
    parts = []
    for rows in groups.values():
        first = rows[0]
        parts.append(
            f"**{first.model}**, K = {first.recipe.steps}. Images to choose on: {first.images} in "
            f"{first.recordings}, blurred {first.blurred:.3f} dB, K=0 {first.plain:.3f} dB."
        )
        parts.append(_grid(rows))
    reported = [search_line(row) for row in outcomes if row.role == "report"]
    return [*parts, _GRID_NOTE, markdown_table(COLUMNS, reported), NOTE]


def _grid(rows: Sequence[Outcome]) -> str:
    """Optimizer and step size down, scopes across; what was not tried is empty."""
    scopes = list(dict.fromkeys(row.recipe.scope for row in rows))
    lines = sorted({(row.recipe.optimizer, row.recipe.step_size) for row in rows}, key=_order)
    cells = {(r.recipe.optimizer, r.recipe.step_size, r.recipe.scope): _gain(r) for r in rows}
    table = [[*line, *(cells.get((*line, scope), "") for scope in scopes)] for line in lines]
    return markdown_table(["optimizer", "step size", *scopes], table)


def _order(line: tuple[str, str]) -> tuple[object, ...]:
    optimizer, size = line
    if size.startswith(LEARNED):
        factor = size.removeprefix(LEARNED).removeprefix(" x ")
        return optimizer, 1, float(factor or 1)
    return optimizer, 0, float(size)


def _gain(row: Outcome) -> str:
    text = f"{row.gain:+.4f}"
    back = row.rose + row.diverged
    if back:
        raw = "no number" if row.raw_gain is None else f"{row.raw_gain:+.4f}"
        text += f" ({raw}; {back} of {row.images})"
    if row.chosen and row.best_step != row.recipe.steps:
        text += f", {row.best_gain:+.4f} at {row.best_step}"
    return f"**{text}**" if row.chosen else text
