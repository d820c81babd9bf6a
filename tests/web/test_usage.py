"""The page of the ledger, as a person reads it."""

import json
import urllib.request

import pytest
from conftest import KEY, start, stop
from playwright.sync_api import expect

# Two routes over the simulated model, whose price nobody knows.
CONFIG = """
[[member]]
name = "home"
kind = "local"
model = "sim"

[[route]]
name = "first"
members = ["home"]

[[route]]
name = "second"
members = ["home"]

[ledger]
file = "{folder}/ledger.db"
"""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    path = folder / "sconce.toml"
    path.write_text(CONFIG.format(folder=folder))
    process, url = start("--config", str(path), "--api-key", KEY, "--files-dir", "off")
    for route, times in (("first", 3), ("second", 1)):
        for _ in range(times):
            body = {"model": route, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7, "ignore_eos": True}
            headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
            ask = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(ask, timeout=30) as answer:
                assert answer.headers["x-sconce-member"] == "home"
    yield url
    stop(process)


def opened(ledger, open_page, **more):
    page = open_page(f"{ledger}/usage", **more)
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    page.locator("#rows tbody tr").first.wait_for()
    return page


def test_sums_are_those_of_the_ledger(ledger, open_page):
    page = open_page(f"{ledger}/usage")
    expect(page.locator("#problem")).to_be_visible()
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#rows tbody tr")).to_have_count(1)
    assert page.locator("#problem").is_hidden()
    cells = page.locator("#rows tbody tr td").all_inner_texts()
    assert cells[:2] == ["home", "4"] and cells[4] == "28", cells
    assert cells[6:] == ["unknown", "4"], "what has no price has not cost nothing"
    totals = page.inner_text("#totals")
    assert "unknown" in totals and "4 attempts without a known price" in totals, totals
    page.select_option("#by", "route")
    expect(page.locator("#rows tbody tr")).to_have_count(3)
    assert page.locator("#rows tbody tr td:first-child").all_inner_texts() == ["first", "second", "all"]
    assert page.locator("#rows tbody tr td:nth-child(2)").all_inner_texts() == ["3", "1", "4"]
    page.select_option("#measure", "attempts")
    assert page.locator("#bars g").count() == 30
    assert page.locator("#bars g:last-child title").text_content().endswith(": 4 attempts")
    page.select_option("#days", "7")
    expect(page.locator("#bars g")).to_have_count(7)
    with page.expect_download() as download:
        page.click("#csv")
    with open(download.value.path()) as file:
        lines = file.read().splitlines()
    assert len(lines) == 3 and "first" in lines[1] and download.value.suggested_filename.endswith(".csv"), lines
    # It is remembered while the tab is there.
    page.reload()
    expect(page.locator("#rows tbody tr")).to_have_count(3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(ledger, open_page, scheme):
    page = opened(ledger, open_page, width=400, scheme=scheme)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0, "nothing sticks out"


def test_a_wrong_key_is_told(ledger, open_page):
    page = open_page(f"{ledger}/usage")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#problem")).to_contain_text("key")
    assert page.locator("#rows tbody tr").count() == 0


def test_without_a_ledger_it_says_so(server, open_page):
    page = open_page(f"{server}/usage")
    expect(page.locator("#problem")).to_contain_text("[ledger]")
