"""The programs of docs/embedding.md run as they stand there, and the learner is a guest in another's process group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from mappa.learn import Learner
from tests.learn.helpers import ROLES, make_samples, relative_error
from tests.learn.test_learner import settings

# Programs in processes of their own, on cores that other tests may share.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
}

# Put behind the first program: what it left is what it trained.
AFTER_TRAINING = """
import peft, torch
from pathlib import Path
from transformers import AutoModelForCausalLM

assert resumed.steps == 2
for role, adapter in learner.adapters.items():
    for name, pair in adapter.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, resumed.adapters[role][name], strict=True))
sample = next(s for s in samples if s.role == "solver")
plain = AutoModelForCausalLM.from_pretrained(model, dtype=learner.base.dtype)
exported = peft.PeftModel.from_pretrained(plain, "solver-adapter").eval()
logits = exported(input_ids=torch.tensor(sample.tokens)[None]).logits[0].float().log_softmax(-1)
(start, end), = sample.spans
theirs = logits[torch.arange(start - 1, end - 1), list(sample.tokens[start:end])]
near = 1e-4 if learner.base.dtype is torch.float32 else 0.05  # peft adds its adapters in the base's type
torch.testing.assert_close(learner.logprobs([sample])[0], theirs, atol=near, rtol=0)
assert any(bool(b.any()) for _, b in learner.adapter("solver").values())
"""

# Put behind the second program: TRL's own method, on the same trainer, says the same, and so do gradients.
AGAINST_TRL = """
n, generator = 9, torch.Generator().manual_seed(0)
ids = torch.randint(2, trainer.model.config.vocab_size, (3, 24), generator=generator)
mask = torch.ones_like(ids)
mask[0, :5], mask[1, -3:] = 0, 0
weights = torch.randn(3, n, generator=generator) * mask[:, -n:]
results = []
for method in (type(trainer), GRPOTrainer):
    trainer.model.zero_grad()
    call = method._get_per_token_logps_and_entropies
    logprob, entropy, _ = call(trainer, trainer.model, ids, mask, n, compute_entropy=True)
    (logprob * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    results.append((logprob.detach() * mask[:, -n:], entropy.detach() * mask[:, -n:], gradient))
assert trainer.state.global_step == 2 and results[0][0].shape == (3, n)
assert float(results[0][0].abs().max()) > 1 and float(results[1][2].abs().max()) > 1e-3
for ours, theirs in zip(*results, strict=True):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
"""

# A program with a process group of its own; the learner is a guest in it.
GUEST = """
import sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
from mappa.learn import Learner, ranks
from tests.learn.helpers import make_samples
from tests.learn.test_learner import settings

mine = dist.group.WORLD
learner = Learner(settings(sys.argv[1]), total_steps=2)
for step in range(2):
    learner.step(make_samples(step)[dist.get_rank() :: 2])
assert dist.group.WORLD is mine
total = torch.ones(1)
dist.all_reduce(total)  # the host goes on with its own business
assert total.item() == 2
weights = {
    role: {name: tuple(p.detach().clone() for p in pair) for name, pair in adapter.items()}
    for role, adapter in learner.adapters.items()
}
torch.save(weights, f"{sys.argv[2]}/rank{dist.get_rank()}.pt")
ranks.leave()
"""


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/embedding.md").read_text(), re.S)


def run(folder: Path, text: str, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    (folder / "program.py").write_text(text)
    command = [sys.executable, *launcher, "program.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_learner_program_trains_and_what_it_saves_is_what_it_trained(tiny_model: Path, tmp_path: Path) -> None:
    run(tmp_path, programs()[0] + AFTER_TRAINING, tiny_model)


def test_the_loss_of_the_page_is_the_default_one_where_nothing_is_clipped(tiny_model: Path) -> None:
    namespace: dict[str, object] = {}
    exec(programs()[1], namespace)
    config = settings(tiny_model, beta=0.0, clip=0.9, lr=1e-2)
    ours, plain, start = (Learner(config, total_steps=1) for _ in range(3))
    near = [
        replace(sample, logprobs=tuple((values - 0.3).tolist()))
        for sample, values in zip(make_samples(0), ours.logprobs(make_samples(0)), strict=True)
    ]
    ours.step(near, coefficients=namespace["cispo"])
    plain.step(near)
    error = relative_error(ours.adapters, plain.adapters)
    assert error < 1e-4 < 1e-3 < relative_error(plain.adapters, start.adapters)


def test_trl_with_our_kernel_says_what_trl_says(tiny_model: Path, tmp_path: Path) -> None:
    run(tmp_path, programs()[2] + AGAINST_TRL, tiny_model)


def test_the_actor_and_the_loss_of_an_openrlhf_loop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains; log-probs, loss and gradient are those of plain logits."""
    monkeypatch.setattr(sys, "argv", ["program.py", str(tiny_model)])
    page: dict[str, Any] = {}
    exec(programs()[3], page)
    assert len(capsys.readouterr().out.splitlines()) == 3
    actor, sequences, mask = page["actor"], page["sequences"], page["action_mask"]
    found = []
    for ours in (True, False):
        actor.zero_grad()
        if ours:
            log_probs = actor(sequences, page["attention_mask"], mask)
            loss, _ = page["PolicyLoss"]()(log_probs, page["old_log_probs"], page["advantages"], mask)
        else:
            logits = actor.model(sequences, attention_mask=page["attention_mask"]).logits[:, :-1]
            log_probs = logits.log_softmax(-1).gather(-1, sequences[:, 1:, None])[..., 0] * mask
            ratio = (log_probs - page["old_log_probs"]).exp()
            surrogate = torch.min(ratio * page["advantages"], ratio.clamp(0.8, 1.2) * page["advantages"])
            loss = -(surrogate * mask).sum() / mask.sum()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in actor.parameters() if p.grad is not None])
        found.append((log_probs.detach(), loss.detach(), gradient))
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-4, rtol=1e-4)
    assert float(found[1][2].norm()) > 1e-3


def test_a_guest_in_another_programs_process_group(tiny_model: Path, tmp_path: Path) -> None:
    """Two ranks of a host that has called init_process_group: the same weights as one process alone."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(tmp_path, GUEST, tiny_model, tmp_path, launcher=launcher)
    alone = Learner(settings(tiny_model), total_steps=2)
    for step in range(2):
        alone.step(make_samples(step))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert tuple(theirs) == ROLES and relative_error(theirs, alone.adapters) < 2e-4
