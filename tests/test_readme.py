"""What README shows is what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mappa.systems import load_system

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_team_in_readme_is_a_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"```python\n(.*?)\n```", README, re.S)
    assert found is not None
    (tmp_path / "my_team.py").write_text(found.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    team = load_system("my_team:Pair")
    assert [role.name for role in team.roles] == ["writer", "fixer"]
    del sys.modules["my_team"]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_commands_of_readme_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{command}:", makefile, re.M)
