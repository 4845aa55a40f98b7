"""Write the locks from the environment this runs in: every package that pyproject.toml leads to, at its exact version.

.venv/bin/python requirements/lock.py           after upgrading something in .venv: rewrite the locks
.venv/bin/python requirements/lock.py --check   exit 1 and say what differs (a test runs it)
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
TRAIN = "# What `make train` installs, exact. Written by requirements/lock.py; torch is installed before the rest.\n"
DEV = "# What `make test` and `make lint` add, exact. Written by requirements/lock.py.\n-r train.txt\n"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(texts: Iterable[str]) -> set[str]:
    """What is named, with its extras, and all that they require here: canonical names. Exits naming one that is not
    installed."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in texts]
    while waiting:
        wanted = waiting.pop()
        name = canonical(wanted.name)
        for extra in {"", *wanted.extras} - {extra for known, extra in found if known == name}:
            found.add((name, extra))
            try:
                requirements = distribution(name).requires or []
            except PackageNotFoundError:
                sys.exit(f"{name} is required but not installed here; run `make setup-dev` first")
            for requirement in map(Requirement, requirements):
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    waiting.append(requirement)
    return {name for name, _ in found}


def pins(names: Iterable[str]) -> str:
    # A local part (2.13.0+cpu) says where a build came from: the public version is what is locked.
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in sorted(names))


def locks() -> dict[Path, str]:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    train = closure([*project["dependencies"], *extras["train"]])
    dev = closure(extras["dev"]) - train
    return {HERE / "train.txt": TRAIN + pins(train), HERE / "dev.txt": DEV + pins(dev)}


def main() -> int:
    stale = {path: text for path, text in locks().items() if not path.exists() or path.read_text() != text}
    if "--check" not in sys.argv[1:]:
        for path, text in stale.items():
            path.write_text(text)
            print(f"wrote {path.relative_to(HERE.parent)}")
        return 0
    for path, text in stale.items():
        before = set(path.read_text().splitlines()) if path.exists() else set()
        for line in sorted(before ^ set(text.splitlines())):
            print(f"{path.name}: {'has' if line in before else 'lacks'} {line}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
