"""Does an answer say what the right one says? By math-verify, here where a formula that never ends is ended.

Reads `gold` and `given` from the request; reports the facts `installed` (math-verify is there) and `correct`.
"""

import json
import logging
from pathlib import Path


def main(folder: Path = Path(".")) -> None:
    request = json.loads((folder / "request.json").read_text())
    facts, fault = {"installed": True, "correct": False}, None
    logging.disable(logging.CRITICAL)
    try:
        facts["correct"] = same(request["gold"], request["given"])
    except ModuleNotFoundError:
        facts["installed"] = False
    except Exception as error:  # noqa: BLE001 - a formula may be anything; one that cannot be read is not the answer
        fault = f"{type(error).__name__}: {error}"[:200]
    (folder / "report.json").write_text(json.dumps({"facts": facts, "fault": fault}))


def same(gold: str, given: str) -> bool:
    from math_verify import parse, verify

    right, said = parse(in_maths(gold)), parse(in_maths(given))
    return bool(right and said and verify(right, said))


def in_maths(text: str) -> str:
    return text if text.startswith("$") or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    main()
