"""A photograph that a dependency carries: blurred, adapted to, restored, and put side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgeadapt.blur import Pair, synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.errors import ImageError
from edgeadapt.image import write_image
from edgeadapt.runtime.example import SIDE, busiest_square, example_strip
from edgeadapt.runtime.inputs import check_writable
from edgeadapt.runtime.quality import Quality, check_installed, measure
from edgeadapt.runtime.report import format_quality, print_table, shown
from edgeadapt.runtime.session import U8, Adaptation, Session

PICTURE = "demo.png"
_GAP, _CAPTION = 8, 36  # pixels
# The face of the photograph: top, left and side in pixels, shown two to one below it.
_CROP = (0, 96, 256)


@dataclass(frozen=True)
class Outcome:
    """What the demo measured and wrote."""

    picture: Path
    qualities: dict[str, Quality]  # of each image but the sharp one, by its caption
    losses: tuple[float, ...]
    step_seconds: tuple[float, ...]
    restore_seconds: float
    reverted: str


def make_demo(session: Session, folder: Path, steps: int | None, seed: int) -> Outcome:
    """Run the demo and write ``folder``/demo.png: blurred, K = 0, adapted (unless K is 0), sharp.

    Raises:
        EdgeadaptError: if scikit-image is missing or the folder cannot be written.
    """
    # The camera's motion only: the patches that move in training would lie over the face.
    parameters = replace(draw_parameters(seed), objects=())
    check_installed()
    return _show(session, synthesize_blur(_photograph(), parameters), folder, steps, strip)


def make_example(
    session: Session,
    pair: Pair,
    folder: Path,
    steps: int | None,
    corner: tuple[int, int] | None = None,
) -> Outcome:
    """The same for a real pair of images, with a square of each at 1:1 below it.

    ``corner`` is the square's top and left; None takes where the two images differ most.

    Raises:
        EdgeadaptError: if scikit-image is missing, the folder cannot be written, or the images
            differ in size or are smaller than the square.
    """
    check_installed()
    found = busiest_square(pair.blurred, pair.sharp, SIDE)
    height, width = pair.sharp.shape[:2]
    place = found if corner is None else corner
    if not (0 <= place[0] <= height - SIDE and 0 <= place[1] <= width - SIDE):
        raise ImageError(
            f"the square at {place[1]},{place[0]} does not lie in an image of {width}x{height}.",
            f"its sides are {SIDE} pixels long.",
        )

    def draw(images: list[U8], captions: list[str]) -> U8:
        return example_strip(images, captions, place)

    return _show(session, pair, folder, steps, draw)


def _show(
    session: Session,
    pair: Pair,
    folder: Path,
    steps: int | None,
    draw: Callable[[list[U8], list[str]], U8],
) -> Outcome:
    check_writable(folder)
    blurred, sharp = pair
    session.reset()
    plain = session.restore(blurred)
    adaptation = session.adapt(blurred, steps)
    begin = perf_counter()
    adapted = session.restore(blurred)
    restore_seconds = perf_counter() - begin
    images = {"blurred": blurred, "restored, K = 0": plain}
    if adaptation.steps:
        images[_adapted_caption(adaptation)] = adapted
    qualities = {caption: measure(image, sharp) for caption, image in images.items()}
    texts = [f"{caption}: {format_quality(found)[0]} dB" for caption, found in qualities.items()]
    picture = folder / PICTURE
    folder.mkdir(parents=True, exist_ok=True)
    write_image(picture, draw([*images.values(), sharp], [*texts, "sharp"]))
    return Outcome(
        picture,
        qualities,
        losses=adaptation.losses,
        step_seconds=adaptation.step_seconds,
        restore_seconds=restore_seconds,
        reverted=adaptation.reverted,
    )


def strip(images: list[U8], captions: list[str]) -> U8:
    """The images side by side, uint8 (H, W, 3): a caption above each, an enlarged crop below."""
    height, width = images[0].shape[:2]
    top, left, side = _CROP
    total = (len(images) * (width + _GAP) - _GAP, _CAPTION + height + _GAP + width)
    canvas = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=22)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = index * (width + _GAP)
        draw.text((x + 4, 4), caption, fill="black", font=font)
        canvas.paste(Image.fromarray(image), (x, _CAPTION))
        crop = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
        # Nearest neighbour: what is compared are the pixels, not a filter's idea of them.
        canvas.paste(
            crop.resize((width, width), Image.Resampling.NEAREST), (x, _CAPTION + height + _GAP)
        )
    return np.asarray(canvas)


def print_outcome(outcome: Outcome) -> None:
    """Print the table of the demo and where the picture is."""
    steps = len(outcome.step_seconds)
    # The last image is of the bundle's weights again if the steps were taken back.
    last = outcome.losses[0 if outcome.reverted else -1]
    losses = ["-", f"{outcome.losses[0]:.6g}", f"{last:.6g}"]
    rows = [
        [caption, *format_quality(quality), loss]
        for (caption, quality), loss in zip(outcome.qualities.items(), losses, strict=False)
    ]
    print_table(["image", "PSNR dB", "SSIM", "loss"], rows)
    if steps:
        step_ms = 1e3 * sum(outcome.step_seconds) / steps
        click.echo(f"{step_ms:.0f} ms a step, {1e3 * outcome.restore_seconds:.0f} ms to restore")
    if outcome.reverted:
        click.echo(f"not adapted: {outcome.reverted}")
    click.echo(f"wrote {shown(outcome.picture)}")


def _adapted_caption(adaptation: Adaptation) -> str:
    taken = len(adaptation.step_seconds)
    return (
        f"not adapted, K = {taken} taken back" if adaptation.reverted else f"adapted, K = {taken}"
    )


def _photograph() -> U8:
    """NASA's portrait of Eileen Collins, 512 x 512, public domain; in scikit-image's wheel."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut())
