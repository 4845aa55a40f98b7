"""Processes killed with -9: a server comes back with what was saved and says what was not; dead clients are let go."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from mappa.errors import DiskError
from mappa.serve.state import Session, State
from tests.ports import free_port
from tests.serve.server import KEY, Server
from tests.serve.talk import ADAM, logprobs, model, some_data, text

# A server that starts twice, on cores that other tests may share.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "MAPPA_SERVE_KEY": KEY,
    "TINKER_API_KEY": KEY,
}

CLIENT = """
import sys
import tinker
from tests.serve.talk import ADAM, model, some_data

training = model(tinker.ServiceClient(base_url=sys.argv[1]))
print("ready", flush=True)
while True:
    forward = training.forward_backward(some_data(0, 8), "cross_entropy")
    training.optim_step(ADAM).result()
    print(forward.result().metrics["loss:sum"], flush=True)
"""


@contextlib.contextmanager
def served(folder: Path, state: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The command, until the block ends or somebody kills it."""
    command = [sys.executable, "-m", "mappa.cli", "serve", "--model", str(folder), "--port", str(port)]
    settings = ["name=tiny", f"state={state}", "dtype=float32", "threads=1", "rank=8"]
    process = subprocess.Popen([*command, *settings], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        assert "mappa serves tiny at" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        assert process.wait(60) in (0, -9)
        process.stdout.close()


def step(training: tinker.TrainingClient, seed: int) -> list[list[float]]:
    forward = training.forward_backward(some_data(seed), "cross_entropy")
    training.optim_step(ADAM).result()
    return logprobs(forward.result())


def test_the_server_is_killed_and_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    """Saved models go on as if nothing had been; unsaved training is reported lost; a sample under way is asked for
    again by the client itself, without its caller noticing."""
    port = free_port()
    with served(tiny_model, tmp_path / "state", port) as process:
        client = tinker.ServiceClient(base_url=f"http://127.0.0.1:{port}", api_key=KEY)
        saved, unsaved = model(client, seed=1), model(client, seed=1)
        expected = [step(unsaved, n) for n in range(4)]
        assert [step(saved, n) for n in range(2)] == expected[:2]
        path = saved.save_state("two").result().path
        sampling = saved.save_weights_and_get_sampling_client().result()
        prompt = text(range(40, 60))
        before = sampling.compute_logprobs(prompt).result()
        params = types.SamplingParams(max_tokens=600, seed=5, stop=[])
        under_way = sampling.sample(prompt, 2, params)
        time.sleep(0.3)  # long enough to be taken in, far too short to be done
        process.kill()
        process.wait()
    assert not under_way.future().done()
    with served(tiny_model, tmp_path / "state", port):
        assert all(len(sequence.tokens) == 600 for sequence in under_way.result(240).sequences)
        assert sampling.compute_logprobs(prompt).result() == before
        assert [step(saved, n) for n in (2, 3)] == expected[2:]
        with pytest.raises(tinker.RequestFailedError, match="was lost .* never saved"):
            unsaved.forward(some_data(0), "cross_entropy").result()
        resumed = client.create_training_client_from_state_with_optimizer(path).result()
        assert [step(resumed, n) for n in (2, 3)] == expected[2:]
        fresh = client.create_training_client_from_state(path).result()  # without Adam's moments
        assert step(fresh, 2) == expected[2] and step(fresh, 3) != expected[3]
        client.close("success").result()


def test_a_client_is_killed_in_the_middle_of_a_call(tiny_model: Path, tmp_path: Path) -> None:
    """What it held is given back once it has been silent for too long, and not before."""
    server = Server(f"model={tiny_model}", "name=tiny", f"state={tmp_path}", "max_models=1", "session_timeout=5")
    victim = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.url], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert victim.stdout is not None and victim.stdout.readline() == "ready\n"
    assert float(victim.stdout.readline()) > 0
    client = server.client()
    with pytest.raises(tinker.RequestFailedError, match="holds 1 models, all with unsaved training"):
        model(client)
    victim.kill()
    victim.wait()
    victim.stdout.close()
    until = time.monotonic() + 120
    while True:
        try:
            training = model(client)
            break
        except tinker.RequestFailedError:
            assert time.monotonic() < until
            time.sleep(0.5)
    assert step(training, 0)
    assert gone_after_a_while(client, training.save_state("soon", ttl_seconds=1).result().path)
    client.close("success").result()
    server.close()


def gone_after_a_while(client: tinker.ServiceClient, path: str) -> bool:
    for _ in range(60):
        try:
            client.create_sampling_client(model_path=path).result()
        except tinker.NotFoundError:
            return True
        time.sleep(0.5)
    return False


def test_one_server_a_state(tmp_path: Path) -> None:
    first = State(tmp_path)
    first.put(Session(id="session-1", created=1.0))
    with pytest.raises(DiskError, match="does another server use it"):
        State(tmp_path)
    first.close()
    second = State(tmp_path)
    assert second.find(Session, "session-1") == Session(id="session-1", created=1.0)
    second.close()
