"""Whole runs: killed and resumed, in two processes, and the files they leave."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from edgeadapt.errors import CheckpointError, ConfigError, EdgeadaptError
from edgeadapt.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from edgeadapt.training.commands import train
from edgeadapt.training.config import read_config
from edgeadapt.training.processes import open_fabric
from edgeadapt.training.run import Job, Run
from support.photos import write_pictures
from support.tiny_training import TOML

COMMAND = "from edgeadapt.training.commands import train; train()"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos and the tiny configuration."""
    write_pictures(tmp_path / "photos", 3, 40, 44)
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path


def arguments(place: Path, kind: str, name: str, *more: str) -> list[str]:
    files = [str(place / "tiny.toml"), "-o", str(place / name), "--data", str(place)]
    return [kind, *files, "--threads", "1", *more]


def run(place: Path, kind: str, name: str, *more: str) -> Checkpoint:
    result = CliRunner().invoke(train, arguments(place, kind, name, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return load_checkpoint(place / name / LAST)


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, through tensors, mappings and sequences."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def kill_after_saves(place: Path, name: str, saves: int) -> int:
    """Start a run, kill it as soon as it has saved a few times; the iteration it had reached."""
    last = place / name / LAST
    command = [sys.executable, "-c", COMMAND, *arguments(place, "joint", name)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    seen, limit = set(), time.monotonic() + 120
    while len(seen) < saves and process.poll() is None and time.monotonic() < limit:
        if last.exists():
            seen.add(last.stat().st_mtime_ns)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    return load_checkpoint(last).iteration


@pytest.mark.slow
def test_a_run_that_was_killed_ends_in_the_same_bits(place: Path) -> None:
    reached = kill_after_saves(place, "killed", 5)
    assert 0 < reached < 300
    resumed = run(place, "joint", "killed", "--resume")
    whole = run(place, "joint", "whole")
    assert resumed.iteration == whole.iteration == 300
    assert_same(dict(resumed.weights), dict(whole.weights))
    assert_same(dict(resumed.stage), dict(whole.stage))
    assert resumed.best_psnr == whole.best_psnr
    assert resumed.stage["plateau"]["rate"] < 3e-3  # so the schedule took part
    start = dict(Run(job(place, "start"), open_fabric()).checkpoint().weights)
    assert all(not torch.equal(start[name], value) for name, value in whole.weights.items())


def job(place: Path, name: str, **joint: Any) -> Job:
    config = read_config(str(place / "tiny.toml"))
    config = replace(config, joint=replace(config.joint, **joint))
    return Job("joint", config, place / name, place)


def test_meta_training_goes_on_where_it_stopped(place: Path) -> None:
    run(place, "joint", "joint", "--iterations", "2")
    start = ("--start", str(place / "joint" / LAST))
    whole = run(place, "meta", "whole", *start)
    run(place, "meta", "parts", *start, "--iterations", "1")
    resumed = run(place, "meta", "parts", "--resume")
    assert whole.iteration == resumed.iteration == 4
    assert_same(dict(resumed.weights), dict(whole.weights))
    assert_same(dict(resumed.stage), dict(whole.stage))
    sizes = whole.adaptation["step_sizes"]
    assert set(sizes) == set(whole.weights)
    assert len(set(sizes.values())) > 1


def test_a_checkpoint_from_before_a_setting_goes_on_with_what_it_stood_for(place: Path) -> None:
    run(place, "joint", "a", "--iterations", "1")
    start = ("--start", str(place / "a" / LAST))
    run(place, "meta", "m", *start, "--iterations", "1")
    old = load_checkpoint(place / "m" / LAST)
    meta = {key: value for key, value in old.config["meta"].items() if key != "loss"}
    save_checkpoint(place / "m" / LAST, replace(old, config={**old.config, "meta": meta}))
    assert run(place, "meta", "m", "--resume", "--iterations", "2").iteration == 2
    (place / "tiny.toml").write_text(TOML.replace("[meta]", '[meta]\nloss = "l2"'))
    with pytest.raises(CheckpointError, match=r"meta\.loss was 'l1', is now 'l2'"):
        run(place, "meta", "m", "--resume", "--iterations", "3")


def test_the_files_of_a_run(place: Path) -> None:
    last = run(place, "joint", "run", "--iterations", "50")
    best = load_checkpoint(place / "run" / BEST)
    assert best.best_psnr == last.best_psnr > 10
    names = sorted(path.name.split(".")[0] for path in (place / "run").iterdir())
    assert names == ["best", "events", "last"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "run"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "validation/psnr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("capability", "machine", "given", "said"),
    [
        ("AVX2", "x86_64", "bf16", True),
        ("DEFAULT", "AMD64", "bf16", True),
        ("AVX512", "x86_64", "bf16", False),
        ("DEFAULT", "aarch64", "bf16", False),
        ("AVX2", "x86_64", "fp32", False),
    ],
)
def test_emulated_bfloat16_is_pointed_out(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    machine: str,
    given: str,
    said: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (place / "tiny.toml").write_text(TOML.replace("[joint]", f'[joint]\nprecision = "{given}"'))
    command = arguments(place, "joint", "run", "--iterations", "1")
    result = CliRunner().invoke(train, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert ('Set precision = "fp32"' in result.stderr) is said


def test_the_time_limit_stops_a_run_with_a_checkpoint(place: Path) -> None:
    assert run(place, "joint", "run", "--minutes", "0").iteration == 1
    assert run(place, "joint", "run", "--resume", "--iterations", "3").iteration == 3


def test_training_lowers_the_loss(place: Path) -> None:
    run_ = Run(
        job(place, "run", iterations=120, learning_rate=5e-3, schedule="constant"), open_fabric()
    )
    first = [float(run_._step(i, *run_._batches.batch(i))["loss"]) for i in range(5)]
    for i in range(5, 115):
        run_._step(i, *run_._batches.batch(i))
    last = [float(run_._step(i, *run_._batches.batch(i))["loss"]) for i in range(115, 120)]
    assert sum(last) < 0.8 * sum(first)


def test_what_does_not_fit_is_refused(place: Path) -> None:
    run(place, "joint", "run", "--iterations", "1")

    def refuse(error: type[EdgeadaptError], message: str, kind: str, *more: str) -> None:
        with pytest.raises(error, match=message):
            run(place, kind, *more)

    refuse(CheckpointError, "already holds a run.*--resume", "joint", "run")
    refuse(CheckpointError, "is a joint run, not a meta run", "meta", "run", "--resume")
    refuse(ConfigError, "needs a jointly trained network.*--start", "meta", "other")
    text = TOML.replace("learning_rate = 3e-3", "learning_rate = 4e-3")
    (place / "tiny.toml").write_text(text)
    refuse(
        CheckpointError, "joint.learning_rate was 0.003, is now 0.004", "joint", "run", "--resume"
    )
    (place / "tiny.toml").write_text(TOML.replace("[4, 6]", "[4, 8]"))
    start = ("--start", str(place / "run" / LAST))
    refuse(CheckpointError, r"another network than the \[network\] section", "meta", "b", *start)
    (place / "tiny.toml").write_text(TOML.replace("crop = 16", "crop = 18"))
    refuse(ConfigError, r"data.crop: must be a multiple of 4 for the network, got 18", "joint", "c")


def test_a_taught_run_goes_on_with_the_same_teacher_only(place: Path) -> None:
    for name in ("teacher", "other"):
        run(place, "joint", name, "--iterations", "1" if name == "teacher" else "2")
    teacher = ("--teacher", str(place / "teacher" / LAST))
    whole = run(place, "joint", "whole", *teacher, "--iterations", "4")
    run(place, "joint", "parts", *teacher, "--iterations", "2")
    resumed = run(place, "joint", "parts", *teacher, "--iterations", "4", "--resume")
    assert_same(dict(resumed.weights), dict(whole.weights))
    untaught = run(place, "joint", "untaught", "--iterations", "4")
    assert any(not torch.equal(untaught.weights[name], w) for name, w in whole.weights.items())

    def refuse(*more: str) -> None:
        before = (place / "parts" / LAST).read_bytes()
        with pytest.raises(CheckpointError, match=r"had another teacher, or none.*--teacher"):
            run(place, "joint", "parts", *more, "--iterations", "6", "--resume")
        assert (place / "parts" / LAST).read_bytes() == before

    refuse()
    refuse("--teacher", str(place / "other" / LAST))
    with pytest.raises(CheckpointError, match="no such file"):
        run(place, "joint", "none", "--teacher", str(place / "none" / LAST))
    smaller = TOML.replace("n_scales = 2", "n_scales = 1").replace("crop = 16", "crop = 18")
    (place / "tiny.toml").write_text(smaller)
    with pytest.raises(ConfigError, match="a multiple of 4 for the teacher, got 18"):
        run(place, "joint", "crop", *teacher)


def test_a_loss_that_is_not_finite_stops_the_run(place: Path) -> None:
    with pytest.raises(EdgeadaptError, match="not a finite number after"):
        Run(job(place, "run", learning_rate=1e30, schedule="constant"), open_fabric()).train()
    kept = load_checkpoint(place / "run" / LAST)
    assert all(bool(value.isfinite().all()) for value in kept.weights.values())


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
from edgeadapt.training.config import read_config
from edgeadapt.training.processes import open_fabric
from edgeadapt.training.run import Job, Run
torch.set_num_threads(1)
place, kind = Path(sys.argv[1]), sys.argv[2]
fabric = open_fabric()
start = place / "joint" / "last.pt" if kind == "meta" else None
name = f"{kind}{fabric.world_size}"
run = Run(Job(kind, read_config(str(place / "tiny.toml")), place / name, place, start), fabric)
run._step(0, *run._batches.batch(0))
parameters = dict(run.stage.network.named_parameters())
weights = {name: p.detach() for name, p in parameters.items()}
gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
torch.save([fabric.world_size, weights, gradients], place / f"{name}.{fabric.global_rank}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "meta"])
def test_two_processes_have_the_gradients_of_one(place: Path, kind: str) -> None:
    text = TOML.replace("learn_step_sizes = true", 'learn_step_sizes = true\naux_update = "outer"')
    (place / "tiny.toml").write_text(text)
    run(place, "joint", "joint", "--iterations", "20")
    (place / "script.py").write_text(TWO_PROCESSES)
    tail = [str(place / "script.py"), str(place), kind]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([], launch):
        done = subprocess.run(
            [sys.executable, *command, *tail],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    size, weights, gradients = torch.load(place / f"{kind}1.0")
    parts = [torch.load(place / f"{kind}2.{rank}") for rank in range(2)]
    assert (size, parts[0][0]) == (1, 2)
    assert gradients
    for name, gradient in gradients.items():
        # float32 sums of the same numbers in another order, relative to the whole tensor
        error = (parts[0][2][name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, name
    for name in weights:
        assert torch.equal(parts[0][1][name], parts[1][1][name])  # the processes stay in step
