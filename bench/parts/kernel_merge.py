"""One record of sections that were measured one by one: python -m bench.parts.kernel_merge OUT.json PART.json ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.harness import Row, finish
from bench.parts.kernel_plots import draw


def main() -> None:
    out, *parts = map(Path, sys.argv[1:])
    records = [json.loads(part.read_text()) for part in parts]
    rows = [Row(**row) for record in records for row in record["rows"]]
    unique = list(dict.fromkeys(rows))  # each part ends with the same row about GPUs
    env = records[-1]["env"]
    measured = {
        part.stem: {key: record["env"][key] for key in ("time", "load_before")}
        for part, record in zip(parts, records, strict=True)
    }
    finish("kernels", unique, out, {**env, "sections": measured})
    draw(unique, out)


if __name__ == "__main__":
    main()
