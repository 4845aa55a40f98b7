"""The kernels against their peers: CPU time, memory, and what the GPU kernels compile to.

python -m bench.kernels [--quick] [--json PATH] [--offline]

CPU time is the process's, medians of rounds in which every candidate takes its turn; what takes minutes takes one.
Memory is the rise of the process's resident memory while one call runs, its result included. With --json, plots are
written beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import mappa_kernels
from bench.harness import Row, Timing, compare, environment, finish, interleave, parser, unmeasured, without_spinning
from bench.parts import kernel_peers as peers
from bench.parts.kernel_peers import Head, Unavailable
from mappa_kernels import grouped_lora, linear_logprob, process_advantage

PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy")
MS = 1e3
PATIENCE = 30.0
"""CPU seconds after which a candidate is measured once instead of several times."""
NO_BF16 = "no bf16 instructions: torch's bf16 products take several times as long as fp32's, which are the limit here"


@dataclass(frozen=True)
class Shape:
    """Tokens x width x vocabulary, and the goals for it: forward and gradient against naive."""

    tokens: int
    width: int
    vocabulary: int
    forward: str
    gradient: str

    def __str__(self) -> str:
        return f"{self.tokens}x{self.width}x{self.vocabulary}"


GOALS = "set for two cores with AVX-512 and bf16 instructions; cpu_flags says what this machine has"
FULL = (Shape(512, 1024, 151936, ">= 1.7", ">= 2.3"), Shape(2048, 576, 49152, ">= 2.8", ">= 3.5"))
QUICK = (Shape(64, 256, 8192, "", ""), Shape(96, 192, 4096, "", ""))


def main() -> None:
    options = parser("kernels against their peers")
    options.add_argument("--offline", action="store_true", help="compile the GPU kernels for every architecture")
    options.add_argument("--limit", type=float, default=300.0, help="CPU seconds a peer may take; fewer tokens beyond")
    options.add_argument("--only", choices=SECTIONS, help="measure one part alone")
    arguments = options.parse_args()
    if arguments.offline:
        from bench.parts.kernel_offline import report

        report(quick=arguments.quick)
        return
    env = {**environment(PACKAGES), "threads": torch.get_num_threads(), **_core(), "goals": GOALS}
    rows: list[Row] = []
    for name, section in SECTIONS.items():
        if arguments.only in (None, name):
            rows += section(quick=arguments.quick, limit=arguments.limit)
            print(f"{name}: done", flush=True)
    rows.append(unmeasured("everything on a GPU", "naive, Liger, cut-cross-entropy", _no_gpu()))
    finish("kernels", rows, arguments.json, env)
    if arguments.json is not None:
        from bench.parts.kernel_plots import draw

        draw(rows, arguments.json)


def head_rows(shape: Shape, *, quick: bool, limit: float) -> list[Row]:
    """Everything about one bf16 head: against its own matrix products, against naive, against other libraries."""
    head = Head.random(shape.tokens, shape.width, shape.vocabulary, torch.bfloat16)
    what = {"forward": f"log-prob + entropy, bf16 {shape}", "gradient": f"log-prob + entropy + gradient, bf16 {shape}"}
    return [
        *naive_rows(head, what, shape, quick=quick, limit=limit),
        *limit_rows(head, what, shape, quick=quick),
        *naive_fp32_rows(head, what, quick=quick),
        *(_peer_row(what["gradient"], head, name, build, quick, limit) for name, build in PEERS.items()),
    ]


def naive_rows(head: Head, what: dict[str, str], shape: Shape, *, quick: bool, limit: float) -> list[Row]:
    """CPU time and memory against log_softmax over all logits. Where there are no bf16 instructions its backward pass
    takes forty times as long as its forward pass, so each is given as many tokens as it has time for."""
    ours = {"forward": forward, "gradient": gradient}
    theirs = {"forward": peers.naive_forward, "gradient": peers.naive_backward}
    speed, memory = [], []
    for kind, goal in (("forward", shape.forward), ("gradient", shape.gradient)):
        part, note = _fitting(head, partial(partial, theirs[kind]), limit)
        timed = interleave(
            {kind: partial(ours[kind], part), "naive": partial(theirs[kind], part)},
            repeats=2 if quick else 3,
            warmup=1 if quick else 0,
            patience=PATIENCE,
            memory=True,
        )
        speed.append(replace(_cpu(what[kind], timed, kind, "naive", goal, f"naive {kind}"), note=note))
        memory.append(replace(_memory(what[kind], timed, kind, "naive", "" if quick or note else "<= 0.01"), note=note))
    return speed + memory


def limit_rows(head: Head, what: dict[str, str], shape: Shape, *, quick: bool) -> list[Row]:
    """Against the bare matrix products, and a quarter of the tokens against all of them."""
    quarter = head.part(shape.tokens // 4)
    timed = interleave(
        {
            "forward": lambda: forward(head),
            "gradient": lambda: gradient(head),
            "quarter": lambda: gradient(quarter),
            **_products(head),
        },
        repeats=2 if quick else 3,
        warmup=1 if quick else 0,
        patience=PATIENCE,
    )
    goal, some = ("", "") if quick else ("<= 1.10", ">= 3.5")
    rows = []
    for dtype in ("bf16", "fp32"):
        forward_name, gradient_name = f"h @ W.T in {dtype}", f"h @ W.T in {dtype} and p @ W"
        if f"h @ W.T {dtype}" not in timed:
            rows.append(unmeasured(what["forward"], forward_name, NO_BF16, goal))
            rows.append(unmeasured(what["gradient"], gradient_name, NO_BF16, goal))
            continue
        rows.append(_cpu(what["forward"], timed, "forward", f"h @ W.T {dtype}", goal, forward_name))
        both = timed[f"h @ W.T {dtype}"].cpu + timed[f"p @ W {dtype}"].cpu
        rows.append(compare(what["gradient"], timed["gradient"].cpu * MS, both * MS, gradient_name, "ms CPU", goal))
    return [*rows, _cpu(f"a quarter of the tokens, bf16 {shape}", timed, "quarter", "gradient", some, "all tokens")]


def _products(head: Head) -> dict[str, peers.Run]:
    """The bare matrix products inside the forward and inside forward + backward; in bf16 where the processor has it."""
    wide = (head.hidden.float(), head.weight.float())
    shares = torch.rand(len(head.hidden), len(head.weight))
    products: dict[str, peers.Run] = {
        "h @ W.T fp32": lambda: wide[0] @ wide[1].T,
        "p @ W fp32": lambda: shares @ wide[1],
    }
    if _core().get("bfloat16") == "brgemm":
        narrow = shares.bfloat16()
        products["h @ W.T bf16"] = lambda: head.hidden @ head.weight.T
        products["p @ W bf16"] = lambda: narrow @ head.weight
    return products


def naive_fp32_rows(head: Head, what: dict[str, str], *, quick: bool) -> list[Row]:
    """Naive on an fp32 copy of the head: the best it can do where the processor has no bf16. No goal was set for it."""
    copy = Head(head.hidden.float(), head.weight.float(), head.targets, head.gradient)
    timed = interleave(
        {
            "forward": lambda: forward(head),
            "gradient": lambda: gradient(head),
            "naive forward": lambda: peers.naive_forward(copy),
            "naive gradient": lambda: peers.naive_backward(copy),
        },
        repeats=2 if quick else 3,
        warmup=1 if quick else 0,
    )
    peer = "naive, fp32 copy of the weight"
    return [_cpu(what[kind], timed, kind, f"naive {kind}", "", peer) for kind in ("forward", "gradient")]


PEERS: dict[str, Callable[[Head], peers.Run]] = {
    "chunks, recomputed": lambda head: lambda: peers.checkpointed(head),
    "Liger, chunked log-prob": peers.liger,
    "cut-cross-entropy, compiled": peers.cut_cross_entropy,
    "F.linear_cross_entropy": peers.torch_linear_cross_entropy,
}


def _peer_row(what: str, head: Head, name: str, build: Callable[[Head], peers.Run], quick: bool, limit: float) -> Row:
    """One other library."""
    goal = ">= 1"
    if quick and name.startswith("cut"):
        return unmeasured(what, name, "compiles for a minute; left out of --quick", goal)
    try:
        part, note = _fitting(head, build, limit)
        run = build(part)
        timed = interleave({"gradient": lambda: gradient(part), name: run}, repeats=1, warmup=0)
    except Unavailable as reason:
        return unmeasured(what, name, str(reason), goal)
    return replace(_cpu(what, timed, "gradient", name, "" if quick else goal), note=note)


def _fitting(head: Head, build: Callable[[Head], peers.Run], limit: float) -> tuple[Head, str]:
    """As many of the tokens as a peer takes `limit` CPU seconds for, and a note where these are not all.

    Time grows with the tokens; ours loses by the cut, since it prepares the weight whatever their number.
    """
    build(head.part(16))()  # imports and compiles
    few, tokens = head.part(32), len(head.hidden)
    expected = interleave({"few": build(few)}, repeats=1, warmup=0)["few"].cpu * tokens / len(few.hidden)
    if expected <= limit:
        return head, ""
    some = max(32, int(tokens * limit / expected))
    return head.part(some), f"first {some} tokens, both sides: all would take the peer {expected:.0f} s"


def fp32_rows(*, quick: bool, limit: float) -> list[Row]:
    """The fp32 forward must not lose to naive while it saves the memory."""
    shape = (QUICK if quick else FULL)[1]
    head = Head.random(shape.tokens, shape.width, shape.vocabulary, torch.float32)
    timed = interleave(
        {"forward": lambda: forward(head), "naive": lambda: peers.naive_forward(head)},
        repeats=2 if quick else 3,
        memory=True,
    )
    what = f"log-prob + entropy, fp32 {shape}"
    speed, share = ("", "") if quick else (">= 1", "<= 0.02")
    return [_cpu(what, timed, "forward", "naive", speed), _memory(what, timed, "forward", "naive", share)]


def advantage_rows(*, quick: bool, limit: float) -> list[Row]:
    """32,768 tokens of 164 actions of very different lengths, 4 groups."""
    tokens, actions = (4096, 24) if quick else (32768, 164)
    generator = torch.Generator().manual_seed(0)
    cuts = torch.randperm(tokens - 1, generator=generator)[: actions - 1].sort().values + 1
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), cuts, torch.tensor([tokens])))
    scores, groups = torch.rand(actions, generator=generator), torch.randint(0, 4, (actions,), generator=generator)
    kl = torch.randn(tokens, generator=generator) * 0.1
    many = 50  # calls in one measurement, which else would be shorter than the clock is fine

    def ours() -> None:
        for _ in range(many):
            process_advantage(scores, offsets, groups, kl=kl, beta=0.01, n_groups=4)

    others = {"token by token": peers.loop_over_tokens, "step by step over [A, longest]": peers.loop_over_steps}
    runs = {name: (lambda run=run: run(scores, offsets, groups, kl, 0.01, 4)) for name, run in others.items()}
    timed = interleave({"ours": ours, **runs}, repeats=3 if quick else 7)
    mine, what = timed["ours"].cpu / many * MS, f"process_advantage, {tokens} tokens, {actions} actions"
    goal = "" if quick else ">= 100"
    rows = [compare(what, mine, timed[name].cpu * MS, f"Python loop, {name}", "ms CPU", goal) for name in others]
    return [*rows, compare(what, mine, 0.5, "the limit set", "ms CPU", "" if quick else "<= 1")]


def lora_rows(*, quick: bool, limit: float) -> list[Row]:
    """Forward and backward of 8 roles over 576 -> 1536, rank 16."""
    roles, tokens, width, out, rank = (8, 512, 128, 256, 16) if quick else (8, 4096, 576, 1536, 16)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        step = tokens // roles
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int, dtype: torch.dtype = torch.float32, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

        x, base = leaf(tokens, width, dtype=dtype), leaf(tokens, out, dtype=dtype)
        grad = torch.randn(tokens, out, generator=generator).to(dtype)
        down, up = [leaf(rank, width) for _ in range(roles)], [leaf(out, rank) for _ in range(roles)]
        role_of = torch.arange(tokens) // step
        offsets = list(range(0, tokens + 1, step))
        leaves = [x, base, *down, *up]

        def ours(a: tuple = (x, down, up, offsets, 2.0, base), g: Tensor = grad, to: list = leaves) -> object:
            return torch.autograd.grad(grouped_lora(*a), to, g)

        def masks(a: tuple = (x, down, up, role_of, 2.0, base), g: Tensor = grad, to: list = leaves) -> object:
            return torch.autograd.grad(peers.lora_by_masks(*a), to, g)

        timed = interleave({"ours": ours, "masks": masks}, repeats=3 if quick else 15, warmup=2)
        name = str(dtype).removeprefix("torch.")
        what = f"grouped_lora forward + backward, {name} x, {roles} roles, {tokens}x{width}->{out}, r={rank}"
        goal = "" if quick else ">= 1.5"
        rows.append(_cpu(what, timed, "ours", "masks", goal, "a loop over roles with masks"))
    return rows


def forward(head: Head) -> object:
    """Our forward: log-prob and entropy."""
    with torch.no_grad():
        return linear_logprob(head.hidden, head.weight, head.targets, entropy=True)


def gradient(head: Head) -> Tensor:
    """Our forward and backward: log-prob, entropy, and the gradient in the hidden states."""

    def logprob(hidden: Tensor) -> Tensor:
        return linear_logprob(hidden, head.weight, head.targets, entropy=True)[0]

    return head.backward(logprob)


SECTIONS: dict[str, Callable[..., list[Row]]] = {
    "wide": lambda quick, limit: head_rows((QUICK if quick else FULL)[0], quick=quick, limit=limit),
    "long": lambda quick, limit: head_rows((QUICK if quick else FULL)[1], quick=quick, limit=limit),
    "fp32": fp32_rows,
    "advantage": advantage_rows,
    "lora": lora_rows,
}


def _cpu(what: str, timed: dict[str, Timing], ours: str, peer: str, goal: str, name: str = "") -> Row:
    return compare(what, timed[ours].cpu * MS, timed[peer].cpu * MS, name or peer, "ms CPU", goal)


def _memory(what: str, timed: dict[str, Timing], ours: str, peer: str, goal: str) -> Row:
    mine, theirs = (None if peak is None else peak / 1e6 for peak in (timed[ours].peak, timed[peer].peak))
    return compare(f"{what}: memory", mine, theirs, "naive", "MB", goal)


def _core() -> dict[str, str]:
    """What the C++ kernels run on, or that there are none."""
    if mappa_kernels.why_not("cpu", "linear_logprob", "cpu", torch.float32) is not None:
        return {"core": "not built: these are the figures of the reference"}
    from mappa_kernels import cpu

    return cpu.description()


def _no_gpu() -> str:
    if torch.cuda.is_available():
        return "this program measures CPU time; run it under a GPU profiler for the rest"
    return "no GPU here: see --offline for what the kernels compile to"


if __name__ == "__main__":
    without_spinning("bench.kernels")
    main()
