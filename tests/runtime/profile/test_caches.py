from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.plan.cost import traffic
from edgeadapt.runtime.plan.ir import Op, Program, Tensor, View
from edgeadapt.runtime.profile.caches import BLOCK, Cache, cache_bytes, missing_bytes

ELEMENTS = BLOCK // 4  # float32 of a block


def chain(blocks: list[int], pairs: list[tuple[int, int]]) -> tuple[Program, dict[str, int]]:
    """Operations that each read one tensor and write another; sizes in blocks."""
    tensors = {f"t{n}": Tensor(f"t{n}", (size * ELEMENTS,)) for n, size in enumerate(blocks)}
    ops = tuple(Op("pointwise", {"x0": f"t{a}"}, {"y": f"t{b}"}) for a, b in pairs)
    offsets = {f"t{n}": sum(blocks[:n]) * BLOCK for n in range(len(blocks))}
    return Program(tensors, ops, ()), offsets


def by_hand(blocks: list[int], pairs: list[tuple[int, int]], most: int) -> list[int]:
    """The distance definition: a block is there if fewer than ``most`` others were touched since
    its last use. Blocks are touched one by one."""
    touched: list[tuple[int, int]] = []
    found = []
    for _ in range(2):
        found = []
        for pair in pairs:
            missing = 0
            for tensor in dict.fromkeys(pair):
                for block in range(blocks[tensor]):
                    key = (tensor, block)
                    if key in touched:
                        last = len(touched) - 1 - touched[::-1].index(key)
                        near = len(set(touched[last + 1 :])) < most
                    else:
                        near = False
                    missing += 0 if near else BLOCK
                    touched.append(key)
            found.append(missing)
    return found


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    blocks = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    place = st.integers(0, len(blocks) - 1)
    return blocks, draw(st.lists(st.tuples(place, place), min_size=1, max_size=8))


@given(chains(), st.integers(1, 12))
def test_what_is_missing_is_what_was_not_touched_lately(made: tuple, most: int) -> None:
    blocks, pairs = made
    program, offsets = chain(blocks, pairs)
    assert missing_bytes(program, offsets, most * BLOCK) == by_hand(blocks, pairs, most)


def test_what_fits_is_there_from_the_second_run_on() -> None:
    program, offsets = chain([2, 2], [(0, 1), (1, 0)])
    assert missing_bytes(program, offsets, 4 * BLOCK) == [0, 0]
    everything = [traffic(op, program) for op in program.ops]
    assert missing_bytes(program, offsets, BLOCK) == everything


def test_tensors_in_the_same_place_share_what_is_there() -> None:
    program, offsets = chain([2, 2], [(0, 0), (1, 1)])
    cache = Cache(2 * BLOCK)
    same = {"t0": 0, "t1": 0}
    assert cache.run(program.ops[0], program, same) == 2 * BLOCK
    assert cache.run(program.ops[1], program, same) == 0
    assert cache.run(program.ops[1], program, offsets) == 2 * BLOCK


def test_a_view_needs_only_its_own_part() -> None:
    base = Tensor("base", (8 * ELEMENTS,))
    view = Tensor("view", (ELEMENTS // 2,), view=View("base", 3 * ELEMENTS, (1,)))
    op = Op("pointwise", {"x0": "view"}, {"y": "view"})
    program = Program({"base": base, "view": view}, (op,), ())
    assert Cache(100 * BLOCK).run(op, program, {"base": 0}) == BLOCK // 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(["32K", "32K", "1024K", "32768K"], 32 << 20), (["64K", "4M"], 4 << 20), (["?"], 8 << 20)],
)
def test_the_largest_cache_is_the_last_one(tmp_path: Path, sizes: list[str], expected: int) -> None:
    for index, size in enumerate(sizes):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert cache_bytes(System(tmp_path)) == expected
