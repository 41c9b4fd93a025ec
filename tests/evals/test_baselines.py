from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from evals.cohort import Cohort
from evals.headers import series_headers, study_headers
from evals.intensity import NAMES, series_statistics, series_table, study_table
from evals.tables import FeatureTable
from fm.data.sample import Agent, Contrast
from fm.data.volume import from_sample


@pytest.fixture
def some(drawn: SimpleNamespace) -> Cohort:
    rng = np.random.default_rng(0)
    studies = [drawn.make_study(rng, row)[0] for row in range(12)]
    return Cohort(studies=studies, test_N=np.arange(12) >= 6)


def test_words_become_columns_and_gaps_are_filled_from_the_training_rows() -> None:
    table = FeatureTable.of([{"age": 30.0, "sex": "f"}, {"age": 50.0, "sex": "m"}, {"sex": "f"}, {"age": 90.0}])
    assert table.columns == ["age", "sex=f", "sex=m"]
    filled = table.filled(np.array([0, 1]))
    assert filled[:, 0].tolist() == [30.0, 50.0, 40.0, 90.0]
    assert filled[:, 1:3].tolist() == [[1, 0], [0, 1], [1, 0], [0, 0]]
    assert filled[:, 3].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_column_that_training_never_saw_is_left_out() -> None:
    table = FeatureTable.of([{"a": 1.0}, {"a": 2.0}, {"a": 3.0, "b": 7.0}])
    assert table.filled(np.array([0, 1])).tolist() == [[1.0], [2.0], [3.0]]
    assert FeatureTable.of([{}, {}]).filled(np.array([0])).tolist() == [[0.0], [0.0]]


def test_headers_hold_protocol_patient_and_series_set(some: Cohort) -> None:
    table = study_headers(some)
    assert {"age", "sex=f", "region=head", "vendor=made_up", "t1w:echo_time_ms", "t2w:contrast"} <= set(table.columns)
    row = dict(zip(table.columns, table.values_NC[0], strict=True))
    assert row["t1w:echo_time_ms"] == 15.0 and row["field_strength_t"] == 1.5 and row["t1w:spacing_d_mm"] == 5.0
    count = {"series_count", "t2w:contrast"}
    assert row["series_count"] == 1 + row["t2w:contrast"] and count <= set(table.columns)


@pytest.mark.parametrize(("withheld", "gone"), [("sex", "sex=f"), ("age", "age"), ("contrast", "t2w:contrast")])
def test_withheld_headers_are_gone_and_the_rest_stays(some: Cohort, withheld: str, gone: str) -> None:
    table = study_headers(some)
    left = table.without([withheld])
    assert gone in table.columns and gone not in left.columns
    assert all(withheld != name.split("=")[0].rsplit(":")[-1] for name in left.columns)
    assert "t1w:repetition_time_ms" in left.columns


def test_series_headers_never_state_the_sequence_where_it_is_asked_for(some: Cohort) -> None:
    table = series_headers(some).without(["contrast"])
    assert not [name for name in table.columns if "t1w" in name or "t2w" in name]
    assert "echo_time_ms" in table.columns


def test_contrast_agent_makes_a_sequence_of_its_own(some: Cohort) -> None:
    some.studies[0].series[0].agent = Agent.YES
    assert "t1w+c:contrast" in study_headers(some).columns


def test_ages_above_89_count_as_90(some: Cohort) -> None:
    some.studies[0].age = "90+"
    table = study_headers(some)
    assert table.values_NC[0, table.columns.index("age")] == 90.0


def test_statistics_are_those_of_the_body_in_the_normalised_range(drawn: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    values = drawn.draw(rng, {"lesion": 0}, dark=False)
    meta, payload = drawn.series("t1w", values, Contrast.T1W)
    found = dict(zip(NAMES, series_statistics(from_sample(meta, payload)), strict=True))
    inside = (values[values > 0] - meta.intensity_low) / (meta.intensity_high - meta.intensity_low)
    assert found["mean"] == pytest.approx(inside.mean(), rel=1e-3)
    assert found["p50"] == pytest.approx(np.median(inside), rel=1e-2)
    assert found["body_share"] == pytest.approx((values > 0).mean(), rel=1e-6)
    assert sum(found[f"bin{b}"] for b in range(16)) == pytest.approx(1.0)


def test_statistics_do_not_see_where_a_voxel_lies(drawn: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    values = drawn.draw(rng, {"lesion": 1, "lesion_side": "left"}, dark=False)
    one = from_sample(*drawn.series("t1w", values, Contrast.T1W))
    other = from_sample(*drawn.series("t1w", values[:, :, ::-1].copy(), Contrast.T1W))
    assert series_statistics(one) == pytest.approx(series_statistics(other), rel=1e-4)


def test_study_statistics_have_one_slot_per_sequence_kind(some: Cohort) -> None:
    statistics = [np.full(len(NAMES), float(i)) for i in range(len(some.series))]
    table = study_table(some, statistics)
    first_t2 = next(i for i, (_, s) in enumerate(some.series) if s.contrast is Contrast.T2W)
    at = some.series[first_t2][0]
    assert table.values_NC[at, table.columns.index("t2w:mean")] == first_t2
    assert table.values_NC[at, table.columns.index("t1w:mean")] == first_t2 - 1
    without = next(i for i, s in enumerate(some.studies) if len(s.series) == 1)
    assert np.isnan(table.values_NC[without, table.columns.index("t2w:mean")])
    probed = series_table(some, statistics).values_NC[:, 0]
    assert len(probed) == 12
    for value, (row, series) in zip(probed, some.probed, strict=True):
        assert some.series[int(value)] == (row, series)


def test_large_series_are_sampled_evenly(drawn: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    values = drawn.draw(np.random.default_rng(0), {"lesion": 1, "lesion_side": "left"}, dark=False)
    image = from_sample(*drawn.series("t1w", values, Contrast.T1W))
    whole = dict(zip(NAMES, series_statistics(image), strict=True))
    monkeypatch.setattr("evals.intensity.MAX_VOXELS", 1500)
    sampled = dict(zip(NAMES, series_statistics(image), strict=True))
    # 28 voxels a row and a stride of 4 would read the same seven columns again and again.
    assert sampled["body_share"] == pytest.approx(whole["body_share"], abs=0.02)
    assert sampled["p50"] == pytest.approx(whole["p50"], abs=0.02)
    assert sampled["bin15"] == pytest.approx(whole["bin15"], abs=0.02)
    assert sampled != whole
