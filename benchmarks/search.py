"""Which way to adapt is worth most: optimizer, step size and scope, chosen on one set of images and
reported on another.

A recipe is a bundle with another adaptation in its manifest, measured image by image as
`edgeadapt.benchmarks.quality` does. What training decides (first or second order, the loss, learned
step sizes) is in the weights: train a bundle for each way and give all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeadapt.benchmarks.quality import Model, Settings, Task, plan, run
from edgeadapt.benchmarks.rows import INPUT, Row, Table
from edgeadapt.benchmarks.samples import Sample
from edgeadapt.benchmarks.summary import LOWERED_DB, mean_quality, mean_raw
from edgeadapt.bundle import WEIGHTS, Bundle
from edgeadapt.errors import ConfigError

LEARNED = "learned"
MOST_LOWERED = 0.1  # share of the images that a recipe may harm and still be chosen
Role = Literal["select", "report"]


@dataclass(frozen=True)
class Recipe:
    """One way to adapt a bundle."""

    optimizer: str  # sgd | adam
    step_size: str  # a number for every parameter, or "learned" times a number
    scope: str
    steps: int  # K


@dataclass(frozen=True)
class Outcome:
    """What a recipe made of the images of one role."""

    model: str
    weights: str  # digest of the weights
    role: Role
    recipe: Recipe
    data: str  # digest of the images
    images: int
    recordings: int
    blurred: float  # dB, as all PSNR here, averaged over recordings
    plain: float  # K = 0
    adapted: float  # after the last step
    gain: float  # adapted - plain
    raw_gain: float | None  # had no adaptation been taken back; None: not a number for some image
    best_step: int  # of 1 ... K, that with the highest mean; 0 if there is none
    best_gain: float
    best_lowered: float  # share of the images that best_step lowers by more than `LOWERED_DB`
    lowered: float  # the same for the last step
    rose: int  # images whose K steps were taken back because the loss rose
    diverged: int  # images where something was no longer a number
    loss_first: float | None  # mean over the images; None if K is 0 or it is not a number
    loss_last: float | None  # None if a step of some image was not evaluated
    chosen: bool  # select: the recipe that won; report: it, not the bundle's own


@dataclass(frozen=True)
class Space:
    """What is tried: every combination."""

    optimizers: Sequence[str]
    step_sizes: Sequence[float]
    factors: Sequence[float]  # times the bundle's learned step sizes, where it has some
    scopes: Sequence[str]  # those that a bundle lacks are left out
    steps: int | None = None  # K; None is each bundle's


def own_recipe(bundle: Bundle) -> Recipe:
    """The adaptation that the bundle says itself."""
    own = bundle.manifest.adaptation
    size = learned_text(1.0) if own.step_sizes else f"{own.step_size:g}"
    return Recipe(own.optimizer, size, bundle.manifest.scopes[0].name, own.steps)


def make_recipes(bundle: Bundle, space: Space) -> list[Recipe]:
    """The bundle's own recipe, then those of ``space``, of one optimizer and step size together.

    Learned step sizes are tried with the optimizer that they were learned for.
    """
    own = bundle.manifest.adaptation
    names = [scope.name for scope in bundle.manifest.scopes]
    scopes = [scope for scope in space.scopes or names if scope in names]
    sizes = [(kind, f"{size:g}") for kind in space.optimizers for size in space.step_sizes]
    if own.step_sizes:
        sizes += [(own.optimizer, learned_text(factor)) for factor in space.factors]
    steps = own.steps if space.steps is None else space.steps
    tried = [Recipe(kind, size, scope, steps) for kind, size in sizes for scope in scopes]
    return list(dict.fromkeys([replace(own_recipe(bundle), steps=steps), *tried]))


def learned_text(factor: float) -> str:
    """How a recipe names the bundle's learned step sizes times ``factor``."""
    return LEARNED if factor == 1 else f"{LEARNED} x {factor:g}"


def with_recipe(bundle: Bundle, recipe: Recipe) -> Bundle:
    """The bundle with the recipe's optimizer, step sizes and K as its own; the scope is not in it.

    Raises:
        ConfigError: if the recipe asks for learned step sizes that the bundle does not have.
    """
    own = bundle.manifest.adaptation
    if recipe.step_size.startswith(LEARNED):
        if not own.step_sizes:
            raise ConfigError(f"{bundle.path}: has no learned step sizes.")
        own = own.scaled(float(recipe.step_size.removeprefix(LEARNED).removeprefix(" x ") or 1))
    else:
        own = replace(own, step_size=float(recipe.step_size), step_sizes={})
    adaptation = replace(own, steps=recipe.steps, optimizer=recipe.optimizer)
    return Bundle(bundle.path, replace(bundle.manifest, adaptation=adaptation))


def check_apart(select: Sequence[Sample], report: Sequence[Sample]) -> None:
    """Refuse images to report on that a recipe is chosen on, or others of their recording.

    Raises:
        ConfigError: naming the recording or the image.
    """
    recordings = {sample.recording for sample in select}
    shared = sorted({sample.recording for sample in report} & recordings)
    if shared:
        raise ConfigError(
            f"recording {shared[0]!r} is in the images to choose on and in those to report on.",
            "what is chosen on an image says nothing about that image: give other recordings.",
        )
    files = {sample.digest(): sample for sample in select}
    for sample in report:
        twin = files.get(sample.digest())
        if twin is not None:
            raise ConfigError(
                f"{sample.sharp} and {twin.sharp} are the same image, under two recordings.",
                "leave it out of the images to choose on, or of those to report on.",
            )


def make_tasks(
    model: Model, recipes: Sequence[Recipe], samples: Sequence[Sample], backend: str
) -> list[list[Task]]:
    """The images of each recipe; recipes that differ in their scope alone share one session."""
    variants: dict[tuple[str, str, int], Bundle] = {}
    result = []
    for recipe in recipes:
        key = (recipe.optimizer, recipe.step_size, recipe.steps)
        if key not in variants:
            variants[key] = with_recipe(model.bundle, recipe)
        settings = Settings(scope=recipe.scope, backend=backend)
        result.append(plan([replace(model, bundle=variants[key])], samples, ["none"], settings))
    return result


def measure_recipes(
    model: Model,
    recipes: Sequence[Recipe],
    samples: Sequence[Sample],
    role: Role,
    settings: Settings,
    table: Table,
    done: Callable[[], None],
) -> list[Outcome]:
    """One outcome a recipe; images that the table has are not measured again."""
    groups = make_tasks(model, recipes, samples, settings.backend)
    rows = run([task for group in groups for task in group], settings, table, done)
    outcomes = []
    for recipe, group in zip(recipes, groups, strict=True):
        own, rows = rows[: len(group)], rows[len(group) :]
        outcomes.append(_outcome(model, role, recipe, group, own))
    return outcomes


def choose(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome whose best step gains most, of those that harm few images; None if none gains.

    Of equal ones it is the first.
    """
    able = [o for o in outcomes if o.best_gain > 0 and o.best_lowered <= MOST_LOWERED]
    return max(able, key=lambda outcome: outcome.best_gain, default=None)


def _outcome(
    model: Model, role: Role, recipe: Recipe, tasks: Sequence[Task], rows: Sequence[Sequence[Row]]
) -> Outcome:
    images = [{row.step: row for row in own} for own in rows]
    recordings = [task.sample.recording for task in tasks]
    psnr = [
        mean_quality([image[step] for image in images], recordings).psnr
        for step in [INPUT, *range(recipe.steps + 1)]
    ]
    plain, last = psnr[1], recipe.steps
    best = max(range(1, recipe.steps + 1), key=lambda step: psnr[step + 1], default=0)
    raw = mean_raw([image[last] for image in images], recordings)
    taken_back = [image[last] for image in images if image[last].reverted]
    diverged = sum(row.loss is None or not math.isfinite(row.loss) for row in taken_back)
    return Outcome(
        model=model.name,
        weights=model.bundle.manifest.files[WEIGHTS][:16],
        role=role,
        recipe=recipe,
        data=hashlib.sha256(repr([t.key.files for t in tasks]).encode()).hexdigest()[:16],
        images=len(images),
        recordings=len(set(recordings)),
        blurred=psnr[0],
        plain=plain,
        adapted=psnr[-1],
        gain=psnr[-1] - plain,
        raw_gain=None if math.isnan(raw) else raw - plain,
        best_step=best,
        best_gain=psnr[best + 1] - plain,
        best_lowered=_lowered(images, best),
        lowered=_lowered(images, last),
        rose=len(taken_back) - diverged,
        diverged=diverged,
        loss_first=_mean([image[0].loss for image in images]),
        loss_last=_mean([image[last].loss for image in images]),
        chosen=False,
    )


def _lowered(images: Sequence[dict[int, Row]], step: int) -> float:
    lost = [image[0].psnr - image[step].psnr > LOWERED_DB for image in images]
    return sum(lost) / len(lost)


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None and math.isfinite(value)]
    return sum(kept) / len(kept) if len(kept) == len(values) else None
