"""A server that speaks SGLang's wire format and computes nothing: texts and log-probs follow from simple sums.

As a module it is one process, as `sglang.launch_server` would be: `python -m ... --port N`, with what it should pretend
in the environment. It needs numpy and the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCABULARY = 260


def total(weights: Mapping[str, Any]) -> float:
    return math.fsum(float(tensor.astype("float64").sum()) for tensor in weights.values())


def scores(count: int, weight: float) -> list[float]:
    """Log-probs of `count` tokens under an adapter whose weights sum to `weight`; the base's is 0."""
    return [-1.0 - 0.01 * i - abs(math.sin(weight)) for i in range(count)]


class _Threads(ThreadingHTTPServer):
    request_queue_size = 1024  # connections that come at once, as uvicorn would take them


class FakeSGLang:
    """One server on a loopback port, on threads of its own."""

    def __init__(self, port: int = 0) -> None:
        self.adapters: dict[str, float] = {}
        self.seen: list[dict[str, Any]] = []
        """Bodies of the requests that sample."""
        self.events: list[str] = []
        """`load NAME`, `unload NAME`, `abort RID`, in order."""
        self.aborted: set[str] = set()
        self.gate = threading.Event()
        """Texts are written while it is set."""
        self.gate.set()
        self.healthy = threading.Event()
        self.healthy.set()
        self.deaf = False
        """It loads adapters and samples from the base."""
        self.max_rank = 16
        self.facts: dict[str, Any] = {"version": "fake", "enable_lora": True, "max_lora_rank": 16, "dp_size": 1}
        self.tokenizer_shift = 0
        self.running = 0
        self._counting = threading.Lock()
        self.http = _Threads(("127.0.0.1", port), _handler(self))
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.alive = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """As after kill -9: connections break, the port is closed."""
        self.alive = False
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case "/health_generate":
                return (200, "") if self.healthy.is_set() else (503, "")
            case "/server_info":
                return 200, self.facts
            case "/v1/models":
                return 200, {"data": [{"id": name} for name in ["base", *self.adapters]]}
            case "/tokenize":
                return 200, {"tokens": [byte + self.tokenizer_shift for byte in _bytes(body["prompt"])]}
            case "/load_lora_adapter" | "/load_lora_adapter_from_tensors":
                return self._load(body)
            case "/unload_lora_adapter":
                self.events.append(f"unload {body['lora_name']}")
                known = self.adapters.pop(body["lora_name"], None) is not None
                return (200 if known else 400), {"success": known, "error_message": "" if known else "not loaded"}
            case "/abort_request":
                self.events.append(f"abort {body['rid']}")
                self.aborted.add(body["rid"])
                return 200, ""
            case "/generate":
                return self._generate(body)
        return 404, {"detail": "Not Found"}

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        if name in self.adapters:
            return 400, {"success": False, "error_message": f"Failed to load {name} because it is already loaded"}
        if "lora_path" in body:
            from safetensors.numpy import load_file

            rank = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())["r"]
            weights = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
        else:
            rank = body["config_dict"]["r"]
            tensors = pickle.loads(base64.b64decode(body["serialized_named_tensors"][0]))
            weights = {key: tensor.numpy() for key, tensor in tensors.items()}
        if rank > self.max_rank:
            return 400, {"success": False, "error_message": f"LoRA rank {rank} is incompatible"}
        self.events.append(f"load {name}")
        self.adapters[name] = 0.0 if self.deaf else total(weights)
        return 200, {"success": True}

    def _generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, params, rid = body.get("lora_path"), body["sampling_params"], body["rid"]
        if name is not None and name not in self.adapters:
            return 400, {"error": {"message": f"Got LoRA adapter that has never been loaded: {name}"}}
        weight = self.adapters[name] if name else 0.0
        ids = body["input_ids"]
        meta: dict[str, Any] = {"id": rid, "finish_reason": {"type": "length"}, "output_token_logprobs": []}
        if params["max_new_tokens"] == 0:
            scored = [None, *scores(len(ids) - 1, weight)]
            meta["input_token_logprobs"] = [[score, token, None] for score, token in zip(scored, ids, strict=True)]
            return 200, {"meta_info": meta}
        self.seen.append(body)
        with self._counting:
            self.running += 1
        while not self.gate.wait(0.01):
            if rid in self.aborted:
                break
        with self._counting:
            self.running -= 1
        count = 2 if rid in self.aborted else params["max_new_tokens"]
        if rid in self.aborted:
            meta["finish_reason"] = {"type": "abort", "message": "Aborted"}
        tokens = [2 + (sum(ids) + i) % (VOCABULARY - 2) for i in range(count)]
        pairs = zip(scores(count, weight), tokens, strict=True)
        meta["output_token_logprobs"] = [[score, token, None] for score, token in pairs]
        return 200, {"meta_info": meta}


def _bytes(text: str) -> list[int]:
    """The tokens of the tiny model's tokenizer: two special ones, then one per byte in its alphabet's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    character = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    place = {c: i + 2 for i, c in enumerate(sorted(character.values()))}
    return [place[character[byte]] for byte in text.encode()]


def _handler(server: FakeSGLang) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}"))

        def _answer(self, body: dict[str, Any]) -> None:
            status, answer = server.answer(self.path, body)
            if not server.alive:
                self.close_connection = True
                return
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    return Handler


def main() -> None:
    if "FAKE_FAULT" in os.environ:
        print(os.environ["FAKE_FAULT"], flush=True)
        sys.exit(1)
    FakeSGLang(int(sys.argv[sys.argv.index("--port") + 1]))
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
