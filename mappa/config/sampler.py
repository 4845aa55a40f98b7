"""[sampler], [sampler.sglang], [outside.NAME]: who generates."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Struct

from mappa.config.described import doc


class SGLangConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SGLang servers: started here as child processes, or running already and given by URL."""

    python: Annotated[
        str, doc("Python of the virtual environment that has sglang; SGLang's pins are not ours, so it needs its own")
    ] = ""
    urls: Annotated[
        tuple[str, ...], doc("servers that run already, such as http://127.0.0.1:30000; empty: start our own")
    ] = ()
    servers: Annotated[
        int, doc("servers to start; 0 = one per `tp` GPUs of `gpus`, one where there are none", ge=0)
    ] = 0
    gpus: Annotated[tuple[int, ...], doc("GPUs our servers run on, `tp` each")] = ()
    tp: Annotated[int, doc("GPUs of one server (tensor parallel)", ge=1)] = 1
    ports: Annotated[
        tuple[int, int],
        doc(
            "first and last port our servers may listen on; keep them out of the system's own range for outgoing "
            "connections (net.ipv4.ip_local_port_range, on Linux from 32768), or a connection may hold a port just then"
        ),
    ] = (20000, 29999)
    args: Annotated[tuple[str, ...], doc("further arguments of our servers' sglang.launch_server")] = ()
    environment: Annotated[dict[str, str], doc("further environment variables of our servers")] = msgspec.field(
        default_factory=dict
    )
    seeded: Annotated[
        bool,
        doc(
            "start servers with deterministic inference, slower, so that a request's seed decides what is sampled; "
            "other servers ignore seeds"
        ),
    ] = False
    load: Annotated[
        Literal["auto", "folder", "tensors"],
        doc(
            "how adapters get there: files in /dev/shm, or within the request; auto: files where every server is on "
            "this machine"
        ),
    ] = "auto"
    loras_per_batch: Annotated[
        int, doc("adapters our servers decode together, the base counts as one; 0 = two versions per role", ge=0)
    ] = 0
    canary_tolerance: Annotated[
        float,
        doc(
            "how far a server's log-probs of the canary may lie from the learner's, on average, nats; "
            "0 = 1e-3 with a float32 base, 0.15 with bfloat16",
            ge=0,
        ),
    ] = 0.0
    start_timeout: Annotated[float, doc("seconds a server may take to come up", gt=0)] = 900.0
    deadline: Annotated[
        float, doc("seconds a request may take on one server; then that server counts as hanging", gt=0)
    ] = 900.0
    health_interval: Annotated[float, doc("seconds between looks at a server's health", gt=0)] = 10.0
    health_timeout: Annotated[float, doc("seconds a server may take to answer one", gt=0)] = 30.0
    restarts: Annotated[int, doc("failed starts in a row after which a server is given up", ge=0)] = 3


class SamplerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who generates, and how."""

    kind: Annotated[Literal["local", "sglang"], doc("'local': in this process; 'sglang': SGLang servers")] = "local"
    temperature: Annotated[float, doc("temperature of training rollouts", gt=0)] = 0.6
    max_rows: Annotated[int, doc("sequences decoded together", ge=1)] = 48
    max_context: Annotated[int, doc("longest prompt plus output, tokens", ge=16)] = 2048
    exact: Annotated[
        bool,
        doc(
            "give every request the same tokens and log-probs, bit for bit, whatever else is in the batch: a resumed "
            "run then ends as one that was never interrupted. Slower; the local sampler only"
        ),
    ] = False
    sglang: Annotated[SGLangConfig, doc("the servers of kind 'sglang'")] = SGLangConfig()


class OutsideConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that plays a role from outside, behind an OpenAI-compatible chat endpoint."""

    url: Annotated[str, doc("base address of the endpoint, without /chat/completions")]
    model: Annotated[str, doc("the model's name as the endpoint knows it")]
    key_env: Annotated[str, doc("environment variable that holds the API key; empty: none is asked for")] = ""
    timeout: Annotated[float, doc("seconds one answer may take", gt=0)] = 120.0
    attempts: Annotated[int, doc("requests for one answer at most", ge=1)] = 4
    concurrency: Annotated[int, doc("requests in flight at most", ge=1)] = 16
