"""Freeze a golden bundle of the current format: a bundle, an image, and what they gave.

    python tools/golden.py tests/artifacts/v2

Run once for each new format version. What is there is never made again: `tests/test_golden.py`
holds today's reader to it; a bundle made today would only show that today's code agrees with
itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from edgeadapt import Session
from edgeadapt.bundle import FORMAT_VERSION, Adaptation, Model
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.image import write_image
from edgeadapt.testing import photo
from edgeadapt.training.network import build

OPTIONS = {"widths": [4, 6], "n_scales": 2, "share_scales": True, "blocks": 1}
FACTORY = "edgeadapt.training.network:build"


def main(folder: Path) -> None:
    """Write bundle, image, restored images and losses into ``folder``, which must be new."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    network = build(**OPTIONS)
    names = sorted(name for name, _ in network.named_parameters())
    sizes = {name: 1e-3 * (1 + index) for index, name in enumerate(names[::2])}
    options = ExportOptions(
        Model("golden", f"frozen with format {FORMAT_VERSION}", FACTORY, OPTIONS),
        Adaptation(3, "sgd", 2e-3, sizes),
    )
    bundle = export_bundle(network, folder / "golden.bundle", options)
    image = photo(5, 37, 45)
    write_image(folder / "image.png", image)
    results = {}
    with Session(bundle) as session:
        write_image(folder / "restored.png", session.restore(image))
        for scope in bundle.manifest.scopes:
            session.reset()
            results[scope.name] = session.adapt(image, scope=scope.name).losses
            write_image(folder / f"adapted-{scope.name}.png", session.restore(image))
    (folder / "losses.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
