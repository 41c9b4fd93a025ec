from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._inductor as inductor

from fm.batch import PackedTokens, concat
from fm.config.errors import UserError
from fm.data.collate import pack as pack_views
from fm.data.views import Lattice, whole_view
from fm.data.volume import SeriesImage
from fm.models import FmConfig
from fm.models.attention import Pack
from fm.models.vit import VisionTransformer

MakePack = Callable[..., PackedTokens]


def _vit(config: FmConfig) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(config)
    with torch.no_grad():
        for p in vit.parameters():
            p.normal_(std=0.2)
    return vit


def _one(pack: PackedTokens, s: int) -> PackedTokens:
    a, b = int(pack.offsets_S1[s]), int(pack.offsets_S1[s + 1])
    names = ("contrast_S", "plane_S", "agent_S", "step_S33", "study_S")
    return replace(
        pack,
        patches_TP=pack.patches_TP[a:b],
        position_T3=pack.position_T3[a:b],
        offsets_S1=torch.tensor([0, b - a]),
        **{name: getattr(pack, name)[s : s + 1] for name in names},
    )


def test_packed_equals_one_by_one_in_outputs_and_gradients(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([7, 1, 12], [0, 0, 1])
    together = vit(pack)
    alone = [vit(_one(pack, s)) for s in range(3)]
    tokens = torch.cat([o.tokens_TD for o in alone])
    classes = torch.cat([o.class_SD for o in alone])
    torch.testing.assert_close(together.tokens_TD, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.class_SD, classes, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(tokens)
    parameters = list(vit.parameters())
    got = torch.autograd.grad((together.tokens_TD * weight).sum() + together.class_SD.sum(), parameters)
    want = torch.autograd.grad((tokens * weight).sum() + classes.sum(), parameters)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_order_of_sequences_and_of_patches_changes_nothing(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([7, 1, 12], [0, 0, 1])
    reference = vit(pack)
    shuffled = vit(concat([_one(pack, s) for s in (2, 0, 1)]))
    torch.testing.assert_close(shuffled.class_SD, reference.class_SD[[2, 0, 1]], rtol=1e-5, atol=1e-5)
    order = torch.randperm(12)
    last = _one(pack, 2)
    turned = replace(last, patches_TP=last.patches_TP[order], position_T3=last.position_T3[order])
    torch.testing.assert_close(vit(turned).tokens_TD, reference.tokens_TD[8:][order], rtol=1e-5, atol=1e-5)


def test_a_left_right_mirrored_scan_is_another_scan(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([9], [0])
    mirrored = replace(pack, position_T3=pack.position_T3 * torch.tensor([-1.0, 1.0, 1.0]))
    assert (vit(pack).class_SD - vit(mirrored).class_SD).abs().max() > 1e-2


def test_every_condition_reaches_the_class_token(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([4], [0])
    before = vit(pack).class_SD
    for change in (
        {"contrast_S": pack.contrast_S + 1},
        {"plane_S": (pack.plane_S + 1) % 3},
        {"agent_S": (pack.agent_S + 1) % 3},
        {"step_S33": pack.step_S33 * 1.5},
    ):
        assert (vit(replace(pack, **change)).class_SD - before).abs().max() > 1e-3, change


@pytest.mark.parametrize("patch", [(16, 16, 16), (8, 16, 16), (4, 16, 16), (8, 8, 8)])
def test_patches_of_any_anisotropy_and_a_slice_that_is_gone_leave_the_rest_as_it_was(
    patch: tuple[int, int, int],
) -> None:
    """Patches and positions bit for bit; embeddings but for the blocking of the product, which follows its rows."""
    rng = np.random.default_rng(0)
    whole = SeriesImage(
        stored=rng.integers(200, 900, (48, 48, 32)).astype(np.uint16),
        scale=1.0,
        offset=0.0,
        affine=np.diag([4.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]],
        spacing_mm=(4.0, 1.0, 1.0),
        foreground=((0, 0, 0), (48, 48, 32)),
        centre_mm=np.zeros(3),
        low=200.0,
        high=900.0,
    )
    gone = replace(whole, stored=whole.stored.copy())
    gone.stored[: patch[0]] = 0
    lattice = Lattice(patch_voxels=patch, spacing_mm=1.0, slice_spacing_mm=4.0, min_tissue=0.05)
    torch.manual_seed(0)
    vit = VisionTransformer(FmConfig(patch_voxels=list(patch), dim=48, depth=1, heads=2))
    packs = [pack_views([whole_view(image, lattice)], [0], math.prod(patch)) for image in (whole, gone)]
    full, part = packs
    lost = (48 // patch[1]) * (32 // patch[2])
    assert full.lengths == [48 // patch[0] * lost] and part.lengths == [full.lengths[0] - lost]
    assert torch.equal(part.position_T3, full.position_T3[lost:])
    assert torch.equal(part.patches_TP, full.patches_TP[lost:])
    embedded = [vit.stem(pack.patches_TP, pack, torch.zeros(len(pack.patches_TP), dtype=torch.int64)) for pack in packs]
    torch.testing.assert_close(embedded[1], embedded[0][lost:], rtol=1e-6, atol=1e-6)
    assert vit(packs[1]).class_SD.isfinite().all()


def test_stochastic_depth_skips_whole_sequences_and_keeps_the_expectation(
    tiny_config: FmConfig, make_pack: MakePack
) -> None:
    tiny_config.drop_path, tiny_config.depth = 0.5, 1
    vit, pack = _vit(tiny_config), make_pack([7, 1, 12, 3], [0, 0, 1, 1])
    block, lengths = vit.blocks[0], [7, 1, 12, 3]
    x, packed = torch.randn(23, 48), Pack.of(lengths, torch.device("cpu"))
    computed: list[int] = []
    block.mlp.register_forward_hook(lambda module, inputs, output: computed.append(len(inputs[0])))
    feed = block._feed(x, None, packed)
    computed.clear()
    total, seen = torch.zeros(23, 48), set()
    for seed in range(60):
        torch.manual_seed(seed)
        added = block._some(x, None, packed, block._feed) - x
        kept = [bool(part.any()) for part in added.split(lengths)]
        assert sum(kept) == 2
        assert computed.pop() == sum(n for n, on in zip(lengths, kept, strict=True) if on)
        rows = torch.tensor(kept).repeat_interleave(torch.tensor(lengths)).unsqueeze(1)
        torch.testing.assert_close(added, 2 * feed * rows, rtol=1e-4, atol=1e-4)
        total, seen = total + rows / 60, seen | {tuple(kept)}
    assert len(seen) == 6 and (total - 0.5).abs().max() < 0.25
    assert torch.equal(vit.eval()(pack).class_SD, vit(pack).class_SD)
    torch.manual_seed(0)
    assert not torch.equal(vit.train()(pack).class_SD, vit(pack).class_SD)


def test_a_checkpointed_block_gives_the_same_gradients_from_less_memory(
    tiny_config: FmConfig, make_pack: MakePack
) -> None:
    tiny_config.drop_path = 0.3
    vit, pack = _vit(tiny_config).train(), make_pack([7, 1, 12], [0, 0, 1])
    runs: list[int] = []
    vit.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    results, kept = [], []
    for vit.checkpoint_blocks in (False, True):
        torch.manual_seed(1)
        memory: dict[int, int] = {}

        def store(x: torch.Tensor, memory: dict[int, int] = memory) -> torch.Tensor:
            memory[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(store, lambda x: x):
            out = vit(pack)
        kept.append(sum(memory.values()))
        results.append(torch.autograd.grad(out.class_SD.sum() + out.tokens_TD.square().sum(), list(vit.parameters())))
    assert len(runs) == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.6 * kept[0]
    with torch.no_grad():
        vit(pack)


def test_compilation_without_a_compiler_is_refused_in_one_line(
    tiny_config: FmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with absent, pytest.raises(UserError, match=r"model\.compile_blocks=true needs a C\+\+ compiler") as refused:
        VisionTransformer(tiny_config).compile_blocks()
    assert "\n" not in str(refused.value)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_equal_the_others(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit = _vit(tiny_config)
    compiled = copy.deepcopy(vit)
    compiled.compile_blocks()
    assert compiled.state_dict().keys() == vit.state_dict().keys()
    for lengths in ([7, 1, 12], [5, 5]):
        pack = make_pack(lengths, list(range(len(lengths))))
        got, want = compiled(pack), vit(pack)
        torch.testing.assert_close(got.tokens_TD, want.tokens_TD, rtol=1e-4, atol=1e-4)
        grads = (
            torch.autograd.grad(out.class_SD.sum(), list(net.blocks.parameters()))
            for out, net in ((got, compiled), (want, vit))
        )
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
