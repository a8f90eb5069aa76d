"""The commands that measure: `edgeadapt bench`."""

from __future__ import annotations

import click

from edgeadapt.benchmarks.ablations_command import ablations
from edgeadapt.benchmarks.peers_command import peers
from edgeadapt.benchmarks.quality_command import quality
from edgeadapt.benchmarks.search_command import search
from edgeadapt.benchmarks.tradeoff_command import tradeoff
from edgeadapt.benchmarks.video_command import video


@click.group()
def bench() -> None:
    """Measure quality, speed and memory."""


bench.add_command(quality)
bench.add_command(video)
bench.add_command(search)
bench.add_command(ablations)
bench.add_command(peers)
bench.add_command(tradeoff)
