"""The command: `mappa serve --model MODEL --port PORT [key=value ...]`, or `python -m mappa.serve` with the same."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Sequence

from mappa.config import ServeConfig, describe, serve_config
from mappa.errors import ConfigError, MappaError

KEY = "MAPPA_SERVE_KEY"
_KEY_PREFIX = "tml-"  # the client takes no other


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mappa serve")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except MappaError as error:
        print(f"mappa serve: {error}", file=sys.stderr)
        return 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains and samples LoRA adapters over one base for clients of the Tinker API. Clients need the key that is "
        f"taken from ${KEY}, or made up and printed."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "settings:\n" + describe(ServeConfig)
    parser.add_argument("--model", required=True, help="the base: a local folder, a hub name, or smollm2-135m-instruct")
    parser.add_argument("--port", type=int, help="default: 8000; 0 takes any that is free")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, such as rank=64")


def run(options: argparse.Namespace) -> int:
    """Raises MappaError for what cannot be served."""
    port = [] if options.port is None else [f"port={options.port}"]
    config = serve_config([f"model={options.model}", *port, *options.settings])
    key = _key()
    asyncio.run(_serve(config, key))
    return 0


async def _serve(config: ServeConfig, key: str) -> None:
    from mappa.serve.start import serving

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(config, key) as address:
        print(f"mappa serves {config.name or config.model} at {address}", flush=True)
        await stop.wait()


def _key() -> str:
    """The key clients have to show: from the environment, or a new one, which is printed this once."""
    key = os.environ.get(KEY)
    if key is None:
        key = _KEY_PREFIX + secrets.token_urlsafe(24)
        print(f"API key (set ${KEY} to choose it): {key}", flush=True)
    if not key.startswith(_KEY_PREFIX) or len(key) < len(_KEY_PREFIX) + 16:
        raise ConfigError(f"${KEY} must be {_KEY_PREFIX!r} and at least 16 more characters: clients take no other")
    return key
