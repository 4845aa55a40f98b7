"""The plans for a GPU, as far as a CPU can tell: masks, FlexAttention's forward, flash-attn's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mappa.errors import ModelError
from mappa.model import gpu_attention as gpu
from mappa.model.attention import TreePlan, decode_layers, tree_plan
from mappa.model.base import load_base

# It says that it makes all scores, which is what a small test on a CPU wants.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

FORESTS = {
    "one sequence": ([37], [-1]),
    "several sequences": ([5, 300, 1, 40], [-1, -1, -1, -1]),
    "star": ([200, *[23] * 9], [-1, *[0] * 9]),
    "long star": ([400, *[80] * 16], [-1, *[0] * 16]),
    "five levels": ([9, 4, 1, 5, 3, 6, 2, 7], [-1, 0, 1, 2, 3, 2, 0, 6]),
    "several trees": ([130, 60, 61, 128, 64, 64, 3, 200, 7, 5], [-1, 0, 0, -1, 3, 4, 4, -1, 7, 7]),
    "block by block": ([128, 128, 128, 256], [-1, 0, 0, -1]),
}
forests = pytest.mark.parametrize(("lengths", "parents"), FORESTS.values(), ids=FORESTS.keys())


def relation(lengths: list[int], parents: list[int]) -> torch.Tensor:
    """[tokens, tokens], query by key: the key is no later and lies in the query's node or an ancestor of it."""
    node = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    above = torch.zeros(len(lengths), len(lengths), dtype=torch.bool)
    for index in range(len(lengths)):
        ancestor = index
        while ancestor >= 0:
            above[index, ancestor] = True
            ancestor = parents[ancestor]
    tokens = torch.arange(len(node))
    return above[node][:, node] & (tokens[None, :] <= tokens[:, None])


def qkv(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eight query heads over two key/value heads, strided as a Llama layer hands them over."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, tokens, heads, 16, generator=generator).to(dtype) for heads in (8, 2, 2))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


@forests
def test_the_mask_is_the_ancestor_relation(lengths: list[int], parents: list[int]) -> None:
    tokens = torch.arange(sum(lengths))
    mask = gpu.sees(gpu.token_ends(lengths, parents))(0, 0, tokens[:, None], tokens[None, :])
    assert torch.equal(mask, relation(lengths, parents))


@forests
@pytest.mark.parametrize("block", [16, 128])
def test_block_tables_are_those_of_torch(lengths: list[int], parents: list[int], block: int) -> None:
    ends = gpu.token_ends(lengths, parents)
    n = len(ends)
    theirs = create_block_mask(gpu.sees(ends), None, None, n, n, device="cpu", BLOCK_SIZE=block)
    counts, indices, full_counts, full_indices = gpu.block_tables(ends, block)
    assert theirs.full_kv_num_blocks is not None and theirs.full_kv_indices is not None
    for count, index, their_count, their_index in (
        (counts, indices, theirs.kv_num_blocks, theirs.kv_indices),
        (full_counts, full_indices, theirs.full_kv_num_blocks, theirs.full_kv_indices),
    ):
        assert torch.equal(count, their_count)
        for row, many in enumerate(count.flatten().tolist()):
            assert torch.equal(index[0, 0, row, :many], their_index[0, 0, row, :many])


@forests
def test_flex_attention_equals_gathered_attention(lengths: list[int], parents: list[int]) -> None:
    query, key, value = qkv(sum(lengths))
    expected = TreePlan(lengths, parents).attend(0, query, key, value, 0.3)
    out = gpu.FlexPlan(lengths, parents, "cpu").attend(0, query, key, value, 0.3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_one_trace_serves_every_forest() -> None:
    """Micro-batches differ in tokens and nodes: each would otherwise be compiled for itself."""
    traces = 0

    def count(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal traces
        traces += 1
        return module

    flex = torch.compile(flex_attention, dynamic=True, backend=count)
    for name in ("star", "several trees", "block by block"):
        lengths, parents = FORESTS[name]
        query, key, value = qkv(sum(lengths))
        with torch.no_grad():
            out = gpu.FlexPlan(lengths, parents, "cpu", flex).attend(0, query, key, value, 0.3)
        expected = TreePlan(lengths, parents).attend(0, query, key, value, 0.3)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert traces == 1


@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
def test_a_decoder_gives_the_same_hidden_states(family: str, request: pytest.FixtureRequest) -> None:
    base = load_base(str(request.getfixturevalue(family)), "float32")
    lengths, parents = FORESTS["five levels"]
    ids = torch.randint(2, 260, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    depth = [sum(lengths[i] for i in chain[:-1]) for chain in TreePlan(lengths, parents).chains]
    positions = torch.cat([torch.arange(d, d + n) for d, n in zip(depth, lengths, strict=True)])
    with torch.no_grad():
        gathered, flex = (
            decode_layers(base.decoder, base.decoder.embed_tokens(ids)[None], positions, plan)
            for plan in (TreePlan(lengths, parents), gpu.FlexPlan(lengths, parents, "cpu"))
        )
    torch.testing.assert_close(flex, gathered, atol=1e-5, rtol=1e-5)


def test_subtree_ends() -> None:
    assert gpu.subtree_ends([3, 2, 4, 5], [-1, 0, 0, -1]) == [9, 5, 9, 14]
    assert gpu.token_ends([3, 2, 4], [-1, 0, 0]).tolist() == [9, 9, 9, 5, 5, 9, 9, 9, 9]


@pytest.mark.parametrize("parents", [[-1, 0, -1, 0], [-1, 0, 0, 1]])
def test_another_order_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="depth-first"):
        gpu.subtree_ends([1, 1, 1, 1], parents)


def test_sequence_bounds() -> None:
    bounds, longest = gpu.sequence_bounds([5, 300, 1, 40])
    assert bounds.dtype == torch.int32 and bounds.tolist() == [0, 5, 305, 306, 346] and longest == 300


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """What flash-attn documents of `flash_attn_varlen_func`, one sequence at a time. q [tokens, heads, dim]."""
    assert causal and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    sizes = cu_seqlens_q.diff().tolist()
    outputs = [
        F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in part), is_causal=True, scale=softmax_scale, enable_gqa=True
        )[0].transpose(0, 1)
        for part in zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    ]
    return torch.cat(outputs)


def test_varlen_arguments_give_gathered_attention() -> None:
    lengths, parents = FORESTS["several sequences"]
    query, key, value = qkv(sum(lengths))
    expected = TreePlan(lengths, parents).attend(0, query, key, value, 0.3)
    out = gpu.VarlenPlan(lengths, "cpu", varlen).attend(0, query, key, value, 0.3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_flash_attention_is_for_half_types() -> None:
    query, key, value = qkv(3)
    with pytest.raises(ModelError, match="float32"):
        gpu.VarlenPlan([3], "cpu").attend(0, query, key, value, 0.3)


@pytest.mark.parametrize(
    ("parents", "dtype", "flash", "kind"),
    [
        ([-1, -1], torch.bfloat16, True, "varlen"),
        ([-1, -1], torch.float16, True, "varlen"),
        ([-1, -1], torch.float32, True, "flex"),
        ([-1, -1], torch.bfloat16, False, "flex"),
        ([-1, 0], torch.bfloat16, True, "flex"),
    ],
)
def test_the_choice(parents: list[int], dtype: torch.dtype, flash: bool, kind: str) -> None:
    assert gpu.choose_kind(parents, dtype, flash=flash) == kind


@pytest.mark.skipif(gpu.has_flash(), reason="flash-attn is installed here")
def test_without_flash_attention_flex_takes_over() -> None:
    plan = gpu.gpu_plan([3, 4], [-1, -1], torch.device("cpu"), torch.bfloat16)
    assert isinstance(plan, gpu.FlexPlan) and plan.kind == "flex"


def test_a_cpu_gathers(tiny_model: Path) -> None:
    plan = tree_plan([3, 4], [-1, 0], "cpu")
    assert isinstance(plan, TreePlan) and plan.kind == "gathered"
