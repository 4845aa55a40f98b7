"""Checkpoints: exact, whole or not there, refused when damaged; exports that PEFT loads."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from mappa.errors import AdapterError, CheckpointError, DiskError
from mappa.learn import Learner, checkpoint
from mappa.learn.adapters import read_adapter
from tests.learn.helpers import ROLES, make_samples, relative_error
from tests.learn.test_learner import settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_learner_goes_on_bit_for_bit(tiny_model: Path, tmp_path: Path, stage: int) -> None:
    config = settings(tiny_model, zero_stage=stage)
    straight = Learner(config, total_steps=6)
    for step in range(3):
        straight.step(make_samples(step, ROLES[: 2 + step % 2]))
    straight.save(tmp_path / "step-000003")
    resumed = Learner.load(tmp_path / "step-000003", config, total_steps=6)
    assert resumed.steps == 3
    for step in range(3, 5):
        straight.step(make_samples(step))
        resumed.step(make_samples(step))
    assert relative_error(resumed.adapters, straight.adapters) == 0


def test_damage_is_refused_by_name_and_the_one_before_is_used(tiny_model: Path, tmp_path: Path) -> None:
    learner = Learner(settings(tiny_model))
    for step in range(1, 4):
        learner.step(make_samples(step))
        learner.save(tmp_path / checkpoint.name(step))
    weights = tmp_path / "step-000003" / "adapters" / "modeler" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (tmp_path / ".step-000004.building").mkdir()
    found, refused = checkpoint.latest(tmp_path)
    assert found == tmp_path / "step-000002"
    assert len(refused) == 1 and "step-000003 is damaged" in refused[0] and "modeler" in refused[0]
    with pytest.raises(CheckpointError, match="damaged"):
        Learner.load(tmp_path / "step-000003", settings(tiny_model))
    checkpoint.prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003"]


@pytest.mark.parametrize("room", [20_000, 100_000], ids=["in an adapter", "in the moments"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tiny_model: Path, tmp_path: Path, room: int) -> None:
    """The limit on the size of a file stands for a full disk: the same write fails."""
    learner = Learner(settings(tiny_model))
    learner.save(tmp_path / "step-000000")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(DiskError, match=r"step-000000 cannot be written: .*free disk space"):
            learner.save(tmp_path / "step-000000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.latest(tmp_path) == (tmp_path / "step-000000", [])


def test_other_settings_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    learner = Learner(settings(tiny_model))
    learner.save(tmp_path / "step-000000")
    with pytest.raises(CheckpointError, match=r"learn\.rank = 4, this run has 8"):
        Learner.load(tmp_path / "step-000000", settings(tiny_model, rank=8))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        Learner.load(tmp_path / "nothing", settings(tiny_model))


def test_another_scale_is_refused_of_older_checkpoints_too(tiny_model: Path, tmp_path: Path) -> None:
    """Those do not say it in their state."""
    folder = tmp_path / "step-000000"
    Learner(settings(tiny_model)).save(folder)
    refusal = r"taken with learn\.alpha = 8\.0, this run has 32\.0"
    with pytest.raises(CheckpointError, match=refusal):
        Learner.load(folder, settings(tiny_model, alpha=32.0))
    state = msgspec.json.decode((folder / "state.json").read_bytes())
    del state["alpha"]
    rewrite(folder, state)
    assert Learner.load(folder, settings(tiny_model)).steps == 0
    with pytest.raises(CheckpointError, match=refusal):
        Learner.load(folder, settings(tiny_model, alpha=32.0))


@pytest.mark.parametrize(
    ("change", "message"), [({"epoch": 1}, "unknown field `epoch`"), ({"steps": "two"}, "Expected `int`")]
)
def test_a_checkpoint_of_another_version_is_passed_over(
    tiny_model: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    learner = Learner(settings(tiny_model))
    for step in range(2):
        learner.save(tmp_path / checkpoint.name(step))
    newer = tmp_path / checkpoint.name(1)
    rewrite(newer, msgspec.json.decode((newer / "state.json").read_bytes()) | change)
    found, (refused,) = checkpoint.latest(tmp_path)
    assert found == tmp_path / checkpoint.name(0)
    assert "step-000001 is of another version of mappa, or damaged" in refused and message in refused
    with pytest.raises(CheckpointError, match=message):
        Learner.load(newer, settings(tiny_model))


def test_a_checkpoint_without_a_state_is_passed_over(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / checkpoint.name(0)
    Learner(settings(tiny_model)).save(folder)
    (folder / "state.json").unlink()
    (folder / "manifest.json").write_text("{}")
    found, (refused,) = checkpoint.latest(tmp_path)
    assert found is None and "state.json" in refused


def rewrite(folder: Path, state: dict[str, object]) -> None:
    """Give a checkpoint another state, as if it had been saved with it."""
    (folder / "state.json").write_bytes(msgspec.json.encode(state))
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def test_a_checkpoint_takes_the_place_of_what_it_was_started_from(tiny_model: Path, tmp_path: Path) -> None:
    first = Learner(settings(tiny_model))
    first.step(make_samples(0))
    for role in ROLES:
        first.export(role, tmp_path / "start" / role)
    config = settings(tiny_model, start=str(tmp_path / "start"))
    second = Learner(config)
    assert relative_error(second.adapters, first.adapters) == 0
    second.step(make_samples(1))
    second.save(tmp_path / "step-000001")
    shutil.rmtree(tmp_path / "start")
    assert relative_error(Learner.load(tmp_path / "step-000001", config).adapters, second.adapters) == 0


def test_killed_while_saving_leaves_the_last_checkpoint_whole(tiny_model: Path, tmp_path: Path) -> None:
    """A process that saves without pause is killed at several moments; what is there is always sound."""
    program = (
        "import sys; from pathlib import Path; from mappa.learn import Learner;"
        "from tests.learn.test_learner import settings\n"
        "learner = Learner(settings(Path(sys.argv[1]))); step = 0; print('ready', flush=True)\n"
        "while True:\n    step += 1; learner.save(Path(sys.argv[2]) / f'step-{step:06d}')\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_model), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    while "ready" not in (line := process.stdout.readline()):
        assert line, "the saving process died"
    while not any(path.name.startswith("step-") for path in tmp_path.iterdir()):
        assert process.poll() is None, "the saving process died"
        time.sleep(0.01)
    time.sleep(0.7)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found, refused = checkpoint.latest(tmp_path)
    assert found is not None and refused == []
    Learner.load(found, settings(tiny_model))


def test_an_export_is_what_peft_loads(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = Learner(settings(tiny_model, first_layer=1))
    for step in range(2):
        learner.step(make_samples(step))
    samples = make_samples(5)
    for role in ROLES:
        learner.export(role, tmp_path / role)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / role).eval()
        for sample in (s for s in samples if s.role == role):
            ids = torch.tensor(sample.tokens)
            (start, end), *_ = sample.spans
            with torch.no_grad():
                logits = model(ids[None]).logits[0, start - 1 : end - 1]
            theirs = torch.log_softmax(logits, -1).gather(1, ids[start:end, None])[:, 0]
            torch.testing.assert_close(learner.logprobs([sample])[0], theirs, atol=1e-4, rtol=0)


def test_a_damaged_export_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    learner = Learner(settings(tiny_model))
    learner.export("modeler", tmp_path / "modeler")
    weights = tmp_path / "modeler" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="damaged"):
        read_adapter(tmp_path / "modeler")
    with pytest.raises(AdapterError, match="no adapter at"):
        read_adapter(tmp_path / "analyst")


def test_reference_logprobs_are_the_bases(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model))
    samples = make_samples(0)
    before = learner.logprobs(samples)
    learner.step(samples)
    for was, now in zip(before, learner.logprobs(samples, reference=True), strict=True):
        torch.testing.assert_close(now, was, atol=1e-5, rtol=0)
