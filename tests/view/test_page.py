"""The page in a browser: opened, filtered, an episode read, and nothing that a model wrote does anything to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappa.view.report import write_report
from tests.view.browser import Browser
from tests.view.conftest import PICTURES, viewing
from tests.view.journals import add_evil, write_run
from tests.view.test_answers import write_tokenizer

DRAWN = "document.getElementById('main')?.dataset.drawn?.startsWith('{}')"


def check_evil(browser: Browser, id: str, picture: str) -> None:
    """The episode is on the page, as text and as nothing else."""
    browser.look(f"location.hash = '#episode?id={id}'")
    browser.wait(f"{DRAWN.format('episode')} && document.querySelectorAll('article').length === 3")
    text = browser.look("document.querySelector('article pre.wrote').textContent")
    assert "<script>document.title='owned'</script><img src=x" in text and "&lt;b&gt;" in text
    assert "␛[31mred␛[0m" in text and "␀" in text and "⟪RLO⟫txet desrever⟪PDF⟫" in text and "😈" in text
    assert browser.look("document.querySelectorAll('main img, main script').length") == 0
    assert "owned" not in browser.look("document.title")
    assert browser.look("document.querySelectorAll('article pre.wrote')[1].textContent").endswith(
        "[900000 more characters]"
    )
    assert browser.look("document.documentElement.scrollWidth <= innerWidth"), "a long line has widened the page"
    browser.picture(PICTURES / f"{picture}.png")


def test_the_live_page(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with viewing(run) as url:
        browser.open(url)
        browser.wait(f"{DRAWN.format('curves')} && document.querySelectorAll('figure').length > 10")
        assert browser.look("document.querySelector('table.comparison').innerText").count("80 %") >= 2
        assert "10 % → 80 %" in browser.look("document.querySelector('.tiles').innerText")
        browser.picture(PICTURES / "run.png")
        browser.dark(True)
        dark = browser.look("getComputedStyle(document.body).backgroundColor")
        browser.picture(PICTURES / "run-dark.png")
        browser.dark(False)
        assert dark != browser.look("getComputedStyle(document.body).backgroundColor")

        browser.press("2")
        browser.wait(f"{DRAWN.format('actions')} && document.querySelectorAll('#list tr').length > 100")
        browser.press("/")
        browser.wait("document.activeElement.id === 'text'")
        for letter in "KeyError: 'spe":
            browser.press(letter)
        browser.press("Enter", "\r")
        browser.wait("location.hash.includes('KeyError')")
        browser.wait(
            "document.querySelectorAll('#list td.bad').length === document.querySelectorAll('#list tr').length - 1"
        )
        browser.look("document.getElementById('order').value = 'worst'")
        browser.look("document.getElementById('order').dispatchEvent(new Event('change'))")
        browser.wait("drawing > 1 && state.filters.order === 'worst' && state.rows[0].score <= state.rows[1].score")
        browser.picture(PICTURES / "actions.png")

        browser.press("j")
        assert browser.wait("[...document.querySelectorAll('#list tr')].findIndex(r => r.ariaSelected === 'true')") == 2
        browser.press("Enter")
        browser.wait(f"{DRAWN.format('episode')} && document.querySelectorAll('article').length === 3")
        assert "it crashed" in browser.look("document.querySelector('main').innerText")
        browser.look(
            "[...document.getElementById('beside').options].find(o => o.text.startsWith('before')).selected = true"
        )
        browser.look("document.getElementById('beside').dispatchEvent(new Event('change'))")
        browser.wait("document.querySelectorAll('article').length === 6")
        browser.picture(PICTURES / "episode.png")

        browser.press("3")
        browser.wait(f"{DRAWN.format('bias')} && document.querySelectorAll('table.heat td strong').length === 6")
        assert "8 anchors" in browser.look("document.getElementById('main').innerText")
        assert "reads its anchors higher" in browser.look("document.getElementById('main').innerText")
        browser.picture(PICTURES / "bias.png")
        browser.press("4")
        browser.wait(f"{DRAWN.format('timeline')} && document.querySelectorAll('.lane svg').length === 6")
        browser.press("ArrowLeft")
        browser.wait("document.getElementById('main').innerText.startsWith('Step 3')")
        browser.picture(PICTURES / "timeline.png")

        browser.press("2")
        browser.wait(DRAWN.format("actions"))
        browser.look("location.hash = '#actions?order=suspected&phase=train'")
        browser.wait("document.getElementById('main').innerText.includes('No action is like that')")
        id = add_evil(run)  # the run goes on meanwhile, and the page follows
        browser.wait("document.querySelectorAll('#list tr').length === 4")
        assert "shows tool output that no tool printed" in browser.look("document.getElementById('list').innerText")
        check_evil(browser, id, "evil")
        browser.open("about:blank")  # before its server goes
    assert browser.trouble == []


SHIFTS = """
new Promise((done) => {
  new PerformanceObserver((list) => done(list.getEntries().reduce((sum, one) => sum + one.value, 0)))
    .observe({ type: 'layout-shift', buffered: true });
  setTimeout(() => done(0), 500);
})
"""


def test_tokens_are_painted_and_nothing_jumps(browser: Browser, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    run = write_run(tmp_path / "run", steps=2, episodes=6, model=str(tmp_path))
    with viewing(run) as url:
        browser.open(url)
        browser.wait(f"{DRAWN.format('curves')} && document.querySelectorAll('figure').length > 10")
        before = browser.look("drawing")
        add_evil(run)
        browser.wait(f"drawing > {before} && document.getElementById('main').dataset.drawn === `curves ${{drawing}}`")
        assert browser.look(SHIFTS) < 0.1, "what a browser calls good is below 0.1"
        browser.look("location.hash = '#episode?id=2-1-Boston-0'")
        browser.wait("document.querySelectorAll('pre.wrote span[class^=up], pre.wrote span[class^=down]').length > 60")
        titles = browser.look("[...document.querySelectorAll('pre.wrote span')].map(span => span.title)")
        assert all("log-prob −0.500" in title or "log-prob -0.500" in title for title in titles)
        assert any("advantage +" in title for title in titles) or any("advantage −" in title for title in titles)
        browser.picture(PICTURES / "advantages.png")
        browser.look("document.getElementById('paint').value = 'likelihood'")
        browser.look("document.getElementById('paint').dispatchEvent(new Event('change'))")
        browser.wait("document.querySelectorAll('pre.wrote span.t1').length > 60")
        for width, height in ((1280, 800), (390, 844)):
            browser.size(width, height)
            for view in ("curves", "actions", "bias", "timeline", "episode?id=2-1-Boston-0"):
                browser.look(f"location.hash = '#{view}'")
                browser.wait(DRAWN.format(view.partition("?")[0]))
                assert browser.look("document.documentElement.scrollWidth <= innerWidth"), f"{view} at {width}"
                browser.picture(PICTURES / f"{view.partition('?')[0]}-{width}.png")
        browser.size(1200, 900)
        browser.open("about:blank")
    assert browser.trouble == []


def test_the_report_needs_no_server(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    id = add_evil(run)
    report = write_report(run)
    assert report.stat().st_size < 5_000_000
    browser.open(report.as_uri())
    browser.wait(f"{DRAWN.format('curves')} && document.querySelectorAll('figure').length > 10")
    browser.look("location.hash = '#actions?order=disagreement&role=modeler&text=keyerror'")
    browser.wait(f"{DRAWN.format('actions')} && document.querySelectorAll('#list tr').length > 5")
    roles = browser.look(
        "[...new Set([...document.querySelectorAll('#list tr td:nth-child(3)')].map(td => td.innerText))]"
    )
    assert roles == ["modeler"]
    check_evil(browser, id, "report-evil")
    for view in ("bias", "timeline", "curves"):
        browser.look(f"location.hash = '#{view}'")
        browser.wait(DRAWN.format(view))
        assert browser.look("document.querySelector('.error')") is None
    assert browser.trouble == []


@pytest.fixture(autouse=True)
def _quiet(browser: Browser) -> None:
    """What a page of another test still complains of is not this one's."""
    browser.open("about:blank")
    browser.trouble.clear()
