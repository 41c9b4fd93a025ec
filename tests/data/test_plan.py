from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fm.data.plan import BatchPlan, PlanError, keyed_rng, shares, shuffled, stable_hash

KEYS = [f"study_{i}" for i in (7, 3, 9, 0, 4, 1, 8, 2, 6, 5)]


def _plan(seed: int, size: int, keys: list[str] = KEYS) -> BatchPlan:
    return BatchPlan(shuffled(np.argsort(keys), seed), len(keys), size)


def _names(plan: BatchPlan, k: int, keys: list[str] = KEYS) -> list[str]:
    return [keys[pick.row] for pick in plan.batch(k)]


def test_every_study_comes_once_per_epoch_whatever_the_batch_size() -> None:
    plan = _plan(5, 4)
    picks = [pick for k in range(15) for pick in plan.batch(k)]
    assert Counter((p.visit, p.row) for p in picks) == {(e, r): 1 for e in range(6) for r in range(10)}
    assert plan.steps_per_epoch() == 2.5


def test_a_batch_depends_on_studies_seed_and_k_alone() -> None:
    straight = _plan(5, 4)
    want = [_names(straight, k) for k in range(12)]
    asked_backwards = _plan(5, 4)
    assert [_names(asked_backwards, k) for k in reversed(range(12))] == want[::-1]
    resorted = sorted(KEYS)
    assert [_names(_plan(5, 4, resorted), k, resorted) for k in range(12)] == want
    assert [_names(_plan(6, 4), k) for k in range(12)] != want


def test_epochs_differ() -> None:
    plan = _plan(0, 10)
    assert _names(plan, 0) != _names(plan, 1)


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (2, 4), (4, 2), (2, 2), (1, 2)])
def test_shares_tile_the_global_batch(world: int, micro: int) -> None:
    deal = shares(8, micro, world)
    turns = [[list(range(8))[deal.rows(rank, turn)] for rank in range(world)] for turn in range(deal.accumulation)]
    assert all(len(part) == micro for turn in turns for part in turn)
    assert [row for turn in turns for part in turn for row in part] == list(range(8))


def test_refusals_say_the_numbers_and_the_nearest_that_work() -> None:
    with pytest.raises(PlanError, match=r"10 training studies .*global_batch_size=16.* at most 10"):
        _plan(0, 16)
    with pytest.raises(PlanError, match=r"global_batch_size=20 .*3 × 4 processes: use .*=12 or 24.*micro_batch_size=1"):
        shares(20, 3, 4)
    with pytest.raises(PlanError, match=r"use data.global_batch_size=32 or 64$"):
        shares(33, 16, 2)


def test_keyed_numbers_are_the_same_in_every_process() -> None:
    assert keyed_rng(1, "a").integers(0, 2**62) == keyed_rng(1, "a").integers(0, 2**62)
    assert keyed_rng(1, "a").integers(0, 2**62) != keyed_rng(1, "b").integers(0, 2**62)
    assert keyed_rng(1, 23).integers(0, 2**62) != keyed_rng(12, 3).integers(0, 2**62)
    assert stable_hash("no mass") == 0x3E6F47B34D4D1F75 or stable_hash("no mass") == stable_hash("no " + "mass")
    assert 0 < stable_hash("") < 2**63
