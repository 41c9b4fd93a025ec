from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fm.batch import PackedTokens, TextBatch
from fm.config.data import DataConfig
from fm.config.model import VitTextConfig
from fm.config.objective import JointConfig
from fm.engine.flops import FlopMeter
from fm.engine.scaling import Cluster, Hidden, Kind, Work, draw, predict, sent_bytes, study_flops, tables, transfers
from fm.objectives import build_student, make_teacher
from launch.entry import Topology, torchrun

SCRIPT = Path(__file__).with_name("traffic.py")


def traffic(ranks: int) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = torchrun(Topology(processes=ranks, threads=1), 30, [str(SCRIPT)])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
    return [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("TRAFFIC")]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's count of written bytes")
@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 4])
def test_deepspeed_sends_what_the_model_says(ranks: int) -> None:
    """Bytes at the sockets, by pass, within 0.2 %; gloo reduces and scatters by an all-reduce of the whole."""
    found = traffic(ranks)
    assert [(f["stage"], f["bf16"], f["freed"]) for f in found] == [
        (0, False, False),
        (1, False, False),
        (2, False, False),
        (3, False, False),
        (3, False, True),
        (1, True, False),
        (2, True, False),
        (3, True, False),
    ]
    for one in found:
        assert one["ranks"] == ranks
        expected = {"forward": 0.0, "backward": 0.0, "step": 0.0, "masters": 0.0}
        for transfer in transfers(one["stage"], 2 if one["bf16"] else 4, gathered_again=one["freed"]):
            kind = Kind.ALL_REDUCE if transfer.kind is Kind.REDUCE_SCATTER else transfer.kind
            phase = {Hidden.FORWARD: "forward", Hidden.BACKWARD: "backward", Hidden.NOTHING: "step"}[transfer.hidden]
            if transfer.what == "teacher":  # here is none
                continue
            phase = "masters" if transfer.what.startswith("masters") else phase
            expected[phase] += kind.sent(ranks) * transfer.bytes_per_parameter * one["parameters"]
        for phase, volume in expected.items():
            assert one[phase] == pytest.approx(volume, rel=2e-3, abs=500), (one, phase)


def test_volumes_of_the_stages() -> None:
    """ZeRO-2 in bf16 with N ranks: 2 · 2 bytes of gradients, 2 of weights and 4 of masters, times (N − 1)/N."""
    assert sent_bytes(2, 1000, 8, 2) == pytest.approx((4 + 2 + 4) * 1000 * 7 / 8)
    assert sent_bytes(0, 1000, 8, 4) == pytest.approx(8 * 1000 * 7 / 8)
    assert sent_bytes(3, 1000, 8, 2) == pytest.approx((4 + 2 + 2) * 1000 * 7 / 8)
    assert sent_bytes(3, 1000, 8, 2, gathered_again=True) == pytest.approx((4 + 2 + 2 + 2) * 1000 * 7 / 8)
    assert sent_bytes(2, 1000, 1, 2) == 0


def test_the_flops_of_a_study_are_those_that_the_meter_counts() -> None:
    model = VitTextConfig(
        patch_voxels=[2, 8, 8], dim=48, depth=2, heads=4, embed_dim=32, text_dim=24, text_depth=1, text_heads=2
    )
    model.text_max_tokens = 20
    data = DataConfig(url="x", global_views=2, global_extent=0.6, local_views=3, local_extent=0.5)
    student = build_student(model, JointConfig(prototypes=64, head_hidden_dim=32, head_bottleneck_dim=16), data, 100)
    teacher = make_teacher(student)
    meter = FlopMeter(student, teacher)

    def pack(lengths: list[int]) -> PackedTokens:
        tokens, views = sum(lengths), len(lengths)
        return PackedTokens(
            patches_TP=torch.randn(tokens, 2 * 8 * 8),
            position_T3=torch.randn(tokens, 3),
            offsets_S1=torch.tensor([0, *lengths]).cumsum(0),
            contrast_S=torch.zeros(views, dtype=torch.int64),
            plane_S=torch.zeros(views, dtype=torch.int64),
            agent_S=torch.zeros(views, dtype=torch.int64),
            step_S33=torch.eye(3).repeat(views, 1, 1),
            study_S=torch.zeros(views, dtype=torch.int64),
        )

    wide, narrow = round(1000 * 0.8**3), round(1000 * 0.5**3)
    student.head(student.fm.image(pack([wide] * 4 + [narrow] * 6)).class_SD)
    teacher.head(teacher.fm.image(pack([wide] * 4)).class_SD)
    student.fm.text(
        TextBatch(
            ids_BL=torch.randint(5, 90, (1, 20)),
            mask_BL=torch.ones(1, 20, dtype=torch.bool),
            present_B=torch.ones(1, dtype=torch.bool),
            identity_B=torch.arange(1),
            phrases_BK=torch.zeros(1, 0),
        )
    )
    head = sum(p.numel() for p in student.head.parameters() if p.ndim == 2)
    flops = study_flops(model, data, series=2, tissue_tokens=1000, head_parameters=head)
    assert flops == pytest.approx(meter.take(), rel=1e-6)


def test_a_step_by_hand() -> None:
    """Two nodes of two GPUs; 4 · 10⁹ B/s within a node, 2 · 10⁹ through both ports together."""
    cluster = Cluster(
        gpus_per_node=2, tflops=1.0, utilisation=0.5, node_gb_s=4.0, port_gb_s=1.0, link_share=0.5, hop_s=0.0
    )
    work = Work(parameters=10**8, modules=10, flops_per_study=1e12, studies=3, spread=0.0)
    one = predict(work, 2, 1, cluster)
    assert (one.compute_s, one.seconds, one.efficiency, one.sent_gb) == (6.0, 6.0, 1.0, 0.0)
    four = predict(work, 2, 4, cluster)
    # At 10⁹ B/s: 0.3 s of gradients behind 4 s of backward pass; weights and masters, 0.6 · 0.75 · 10⁹ B, in the open.
    assert four.exposed_s == pytest.approx(0.45)
    assert four.sent_gb == pytest.approx(0.75)
    uneven = Work(parameters=10**8, modules=10, flops_per_study=1e12, studies=4, spread=0.2)
    assert predict(uneven, 2, 4, cluster).imbalance_s == pytest.approx(8.0 * 0.1 * 1.029, rel=0.03)


def test_the_tables_and_the_plot_of_the_page(tmp_path: Path) -> None:
    page = tables(Cluster())
    assert page.count("| ViT-L, ") == 2 * 2 * 3 and page.count("%") == 3 * 2 * 2 * 3
    draw(tmp_path / "images" / "scaling.png", Cluster())
    assert (tmp_path / "images" / "scaling.png").read_bytes().startswith(b"\x89PNG")
