"""Hold a training configuration to its promise: the same file gives the same weights.

    tools/check_training.py CONFIG --data DIR [--stage meta --start last.pt] [--iterations 200]

Trains three times: as it is, once more, and once killed with SIGKILL at moments drawn at random and
resumed each time. All must end in the same bits: weights, optimiser, and what else a checkpoint
holds of the stage. It takes as long as three runs; the bits may differ between machines.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgeadapt.training.checkpoint import LAST, load_checkpoint
from edgeadapt.training.config import read_config
from edgeadapt.training.processes import open_fabric
from edgeadapt.training.run import Job, Run

CHECKPOINT_EVERY = 20  # iterations: a killed run resumes from one, seldom from the start


def main() -> int:
    """Run from the command line; 0 if all three agree."""
    options = _arguments()
    if options.folder is not None:
        _train(options, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as place:
        whole, again, killed = (Path(place) / name for name in ("whole", "again", "killed"))
        digests, seconds = set(), []
        for folder in (whole, again):
            start = time.monotonic()
            _start(folder).wait()
            seconds.append(time.monotonic() - start)
            digests.add(_digest(folder, options.iterations))
        _train_killed(killed, min(seconds), options.kills)
        digests.add(_digest(killed, options.iterations))
    print("the same bits" if len(digests) == 1 else "they differ")
    return 0 if len(digests) == 1 else 1


def _train_killed(folder: Path, seconds: float, kills: int) -> None:
    """Kill the run ``kills`` times, each within the time that it still takes, then let it end."""
    moments = random.Random()  # no seed: each run of this tool tries other moments
    for kill in range(kills):
        process = _start(folder)
        time.sleep(moments.uniform(0.3, 0.9) * seconds / kills)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit("it ended before it could be killed: give more --iterations.")
        at = load_checkpoint(folder / LAST).iteration if (folder / LAST).exists() else 0
        print(f"killed: kill {kill + 1}, last checkpoint of iteration {at}", flush=True)
    _start(folder).wait()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """This file again, as the run in ``folder``."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _train(options: argparse.Namespace, folder: Path) -> None:
    config = read_config(options.config)
    never = options.iterations + 1
    config = replace(
        config,
        joint=replace(config.joint, iterations=options.iterations),
        meta=replace(config.meta, iterations=options.iterations),
        run=replace(config.run, checkpoint_every=CHECKPOINT_EVERY, validate_every=never),
        data=replace(config.data, validation=()),
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    job = Job(options.stage, config, folder, options.data, options.start, resume=True)
    Run(job, open_fabric("cpu")).train()


def _digest(folder: Path, iterations: int) -> str:
    """Print and return what a run ended in: its weights and stage, to the last bit."""
    checkpoint = load_checkpoint(folder / LAST) if (folder / LAST).exists() else None
    if checkpoint is None or checkpoint.iteration != iterations:
        raise SystemExit(f"{folder.name}: the run did not end; its messages are above.")
    found = hashlib.sha256()
    _add(found, [checkpoint.weights, checkpoint.stage])
    print(f"{folder.name}: {iterations} iterations, SHA-256 {found.hexdigest()[:16]}", flush=True)
    return found.hexdigest()


def _add(found: Any, value: object) -> None:
    if isinstance(value, torch.Tensor):
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            found.update(str(key).encode())
            _add(found, value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for entry in value:
            _add(found, entry)
    else:
        found.update(repr(value).encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("config", help="a TOML file, or the name of one that ships")
    parser.add_argument("--data", type=Path, required=True, help="root of the paths in [data]")
    parser.add_argument("--stage", choices=["joint", "meta"], default="joint")
    parser.add_argument("--start", type=Path, help="checkpoint whose weights to begin with")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
