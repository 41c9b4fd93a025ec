from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fm.config.data import DataConfig, Order
from fm.config.errors import ConfigError
from fm.data.plan import BatchPlan, PlanError, keyed_rng, shares, shuffled, stable_hash, streamed, study_weights
from fm.data.table import Sample, SampleTable

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


def test_row_32_refusals_say_the_numbers_and_the_nearest_that_work() -> None:
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


def test_weights_are_met_on_average_and_within_one_in_every_epoch() -> None:
    weights = np.array([4.0, 1, 1, 1, 1, 1, 1, 0, 0.5, 0.25])
    draw = shuffled(np.arange(10), 3, weights)
    share = 10 * weights / weights.sum()
    total = np.zeros(10)
    visits: set[tuple[int, int]] = set()
    for epoch in range(400):
        rows, seen = draw(epoch)
        counts = np.bincount(rows, minlength=10)
        assert len(rows) == 10 and (np.floor(share) <= counts).all() and (counts <= np.ceil(share)).all()
        total += counts
        visits |= set(zip(rows.tolist(), seen.tolist(), strict=True))
    np.testing.assert_allclose(total / 400, share, atol=0.08)
    assert len(visits) == 4000, "random numbers of a study never come twice"
    assert all(np.array_equal(a, b) for a, b in zip(draw(7), shuffled(np.arange(10), 3, 2 * weights)(7), strict=True))


def test_equal_weights_change_nothing() -> None:
    order = np.argsort(KEYS)
    for epoch in range(5):
        plain, weighted = shuffled(order, 5)(epoch), shuffled(order, 5, np.full(10, 0.3))(epoch)
        assert np.array_equal(plain[0], weighted[0])


def _samples() -> SampleTable:
    """Nine studies: six heads, three knees; sites a (5) and b (4); the last weighs 3."""
    return SampleTable.of(
        [
            Sample(
                key=f"k{i}",
                patient=f"p{i}",
                split="train",
                region="head" if i < 6 else "knee",
                shard="s.tar",
                members={},
                labels={"site": "a" if i < 5 else "b", **({"weight": 3} if i == 8 else {})},
            )
            for i in range(9)
        ]
    )


def test_temperatures_and_labels_become_weights() -> None:
    samples = _samples()
    assert study_weights(samples, DataConfig()) is None
    region = study_weights(samples, DataConfig(region_temperature=2.0))
    assert region is not None
    np.testing.assert_allclose(region[:6].sum() / region[6:].sum(), (6 / 3) ** 0.5)
    alike = study_weights(samples, DataConfig(site_temperature=1e9))
    assert alike is not None
    np.testing.assert_allclose(alike[:5].sum(), alike[5:].sum())
    both = study_weights(samples, DataConfig(region_temperature=2.0, site_temperature=1e9, weight_label="weight"))
    assert both is not None
    np.testing.assert_allclose(both, region * alike * [1, 1, 1, 1, 1, 1, 1, 1, 3])
    with pytest.raises(PlanError, match="'a' is no weight"):
        study_weights(samples, DataConfig(weight_label="site"))


def test_weights_do_not_go_with_a_stream() -> None:
    with pytest.raises(ConfigError, match=r"data\.order=stream .*weight_label"):
        DataConfig(order=Order.stream, region_temperature=2.0)
    with pytest.raises(ConfigError, match="must be positive"):
        DataConfig(contrast_weights={"t1w": 0.0})


def test_a_stream_keeps_shards_together_and_shuffles_within_its_window() -> None:
    shard, names = np.repeat(np.arange(6), 8), [f"shard-{i}.tar" for i in range(6)]
    draw = streamed(shard, names, 1, 16)
    orders = [draw(epoch)[0] for epoch in range(6)]
    for rows in orders:
        assert sorted(rows.tolist()) == list(range(48))
        assert all(len(set(shard[rows[i : i + 16]].tolist())) == 2 for i in (0, 16, 32)), "two shards a window"
        assert (np.diff(rows[:16]) != 1).sum() > 8
    assert len({tuple(rows.tolist()) for rows in orders}) == 6
    # The order belongs to the shards' names, not to the numbers that a manifest gives them.
    renumbered = streamed(5 - shard, names[::-1], 1, 16)(0)[0]
    assert np.array_equal(renumbered, orders[0])
