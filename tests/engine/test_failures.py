from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fm.config.data import DataConfig
from fm.config.errors import UserError
from fm.engine.failures import explained, less_memory, record_error

DATA = DataConfig(url="x", global_batch_size=48, micro_batch_size=8, workers=4)


def test_a_smaller_micro_batch_that_divides_comes_first() -> None:
    assert "data.micro_batch_size=4 instead of 8, which needs about 50% less" in less_memory(DATA, 2, 2)
    odd = replace(DATA, global_batch_size=30, micro_batch_size=5)
    assert "data.micro_batch_size=1 instead of 5, which needs about 80% less" in less_memory(odd, 2, 2)


def test_then_the_optimizer_then_the_study() -> None:
    single = replace(DATA, micro_batch_size=1)
    assert "trainer.stage=2 instead of 0" in less_memory(single, 0, 2)
    assert "data.max_series=2 instead of 4" in less_memory(single, 0, 1)
    assert "trainer.stage=3 instead of 2" in less_memory(single, 2, 2)
    assert "larger data.spacing_mm" in less_memory(replace(single, max_series=1), 3, 2)


def test_real_allocation_failure_becomes_advice() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    told = explained(caught.value, DATA, 2, 1, 2)
    assert isinstance(told, UserError)
    assert "rank 1 is out of memory, asked for 1048576.00 GiB more: give data.micro_batch_size=4" in str(told)


def test_the_message_of_cuda_is_understood() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    assert "asked for 2.50 GiB more" in str(explained(error, DATA, 2, 0, 8))


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert explained(error, DATA, 2, 0, 2) is error


def test_a_refusal_is_kept_without_its_type(tmp_path: Path) -> None:
    record_error(tmp_path, "1", "3", UserError("two\nlines"))
    kept = json.loads((tmp_path / "errors" / "attempt-1-rank-3.json").read_text())
    assert (kept["rank"], kept["refused"], kept["message"]) == (3, True, "two lines")
    record_error(tmp_path, "1", "3", RuntimeError("oh"))
    assert json.loads((tmp_path / "errors" / "attempt-1-rank-3.json").read_text())["message"] == "RuntimeError: oh"
