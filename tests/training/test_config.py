"""Configuration files: what is read, and how a slip is answered."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest

from edgeadapt.errors import ConfigError
from edgeadapt.training.config import SourceConfig, read_config, structure_config
from edgeadapt.training.network_config import PRESETS

MINIMAL = """
[network]
preset = "nano"
blocks = 2
[data]
crop = 64
[[data.train]]
kind = "sharp"
path = "photos"
"""


def read(tmp_path: Path, text: str) -> object:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return read_config(str(file))


def test_fields_that_are_not_given_have_the_papers_values(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(MINIMAL)
    config = read_config(str(tmp_path / "config.toml"))
    assert (config.network.widths, config.network.blocks) == ((8, 16, 32), 2)
    assert (config.data.crop, config.data.train[0].path) == (64, "photos")
    joint, meta = config.joint, config.meta
    assert (joint.batch, joint.learning_rate, joint.schedule) == (6, 1e-4, "plateau")
    assert (meta.steps, meta.batch, meta.step_size, meta.order) == (5, 5, 2.5e-5, 2)
    assert (meta.aux_update, meta.outer_reduce, meta.inner_optimizer) == ("literal", "sum", "sgd")


def shipped() -> list[str]:
    folder = Path(str(files("edgeadapt.training"))) / "configs"
    return sorted(file.stem for file in folder.glob("*.toml"))


def preset_of(name: str) -> str:
    return name.partition("-")[0]  # "edge" goes on with what "edge-first" and the others gave


def test_there_is_a_configuration_of_every_preset() -> None:
    assert shipped() == sorted([*PRESETS, "edge-first", "edge-second", "edge-third"])


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_configurations_are_sound(name: str) -> None:
    config = read_config(name)
    assert config.network == PRESETS[preset_of(name)]
    assert config.data.crop % config.network.size_multiple == 0
    common = replace(read_config("paper").data, crop=config.data.crop)
    later = {"edge-second": 2, "edge-third": 3, "edge": 4}
    if name in later:  # goes on with other crops, and hardly blurred photos among them
        mild = SourceConfig("sharp", "sharp/bsds500", strength=0.3)
        common = replace(common, seed=later[name], train=(*common.train, mild))
    assert config.data == common


def test_the_papers_configuration_has_the_papers_values() -> None:
    config = read_config("paper")
    joint, meta = config.joint, config.meta
    assert (joint.batch, joint.learning_rate, joint.schedule, config.data.crop) == (
        *(6, 1e-4, "plateau"),
        256,
    )
    assert (joint.iterations * joint.batch) // 2103 >= 4000 - 10  # epochs of 2103 pairs
    assert (joint.precision, joint.clip_norm, joint.warmup) == ("fp32", 0.0, 0)
    assert (meta.steps, meta.batch, meta.order, meta.inner_optimizer) == (5, 5, 2, "sgd")
    assert (meta.step_size, meta.learning_rate, meta.learn_step_sizes) == (2.5e-5, 2.5e-5, False)


def test_a_configuration_survives_the_way_through_a_checkpoint() -> None:
    config = read_config("edge")
    assert structure_config(asdict(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[joint]\nbatches = 3", r"unknown key 'batches' in \[joint\].*known: iterations, batch"),
        ("[jiont]\nbatch = 3", r"unknown section \[jiont\].*known: network, data, joint"),
        ('[[data.train]]\nkind = "sharp"\npth = "x"', r"unknown key 'pth' in \[data.train\]"),
        ("[network]\nwidth = [1, 2]", r"unknown option 'width'"),
        ("[joint]\nbatch = 0", r"joint.batch: must be greater than 0, got 0"),
        ('[joint]\nschedule = "step"', r"must be plateau \| cosine \| constant, got 'step'"),
        ('[joint]\nrestoration = "l2"', r"joint.restoration: must be l1 \| psnr, got 'l2'"),
        ('[meta]\nschedule = "plateau"', r"meta.schedule: must be constant \| cosine"),
        ('[meta]\nrestoration = "l2"', r"meta.restoration: must be l1 \| psnr, got 'l2'"),
        ("[meta]\nunadapted_weight = -1", r"meta.unadapted_weight: must be at least 0, got -1"),
        ("[meta]\nunadapted_weight = nan", r"meta.unadapted_weight: must be at least 0, got nan"),
        ("[meta]\norder = 3", r"meta.order: must be 1 \| 2, got 3"),
        ('[meta]\naux_update = "none"', r"must be literal \| copy_back \| outer, got 'none'"),
        ('[[data.train]]\nkind = "movie"\npath = "x"', r"data.kind: must be gopro .* 'movie'"),
        ('[joint]\nbatch = "many"', r"batch"),
        ("[network", r"not a readable TOML file"),
    ],
)
def test_a_slip_is_named(tmp_path: Path, text: str, message: str) -> None:
    own_tables = [line for line in text.splitlines() if line.startswith("[")]
    rest = MINIMAL if "[network]" not in own_tables else MINIMAL.replace("[network]\n", "")
    if "[network]" in own_tables:
        rest = rest.replace('preset = "nano"\nblocks = 2\n', "")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, rest + text)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: not a readable TOML file"):
        read_config("nowhere.toml")
