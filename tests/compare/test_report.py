"""The report in a real browser: its curves, tables and samples, and the recommendation by its sliders."""

import itertools
import json

import numpy as np
import pytest
from browser import HAS_BROWSER, open_browser

from cli.recipes import load, to_toml
from compare.methods import METHODS
from compare.report import protocol, write_report
from configs.study_recipe import StudyRecipe

NAME = "tunes </script><!-- <script>"


ABOUT = {
    "corpus": NAME,
    "task": "key",
    "commit": "abc",
    "device": "2 cores",
    "versions": {"torch": "2"},
    "command": "python -m compare.run x",
    "edition": 2,
    "factor": 1.0,
    "foundation": "",
    "setting": {},
    "peak_bytes": 2**30,
    "overlap": 0.01,
    "left_out": 2,
}
TRAINED = {"training_steps": 9}
TUNED = TRAINED | {"general_bits": 12.0, "general_bytes": 8}


def rows():
    """A ledger in which prompting is cheaper for few requests and tuning for many."""
    draw, found = np.random.default_rng(0), []

    def add(method, axis, size, make_scores, **measured):
        for seed in range(3):
            name = f"{method}-{axis}-{size:g}-{measured.get('factor', 1):g}-{seed}"
            row = {"id": name, "method": method, "axis": axis, "size": size}
            found.append(row | {"seed": seed, **ABOUT, **make_scores(), **measured})

    def bits(value):
        return lambda: {"document_bits": (8 * np.abs(draw.normal(value, 0.2, 40))).tolist(), "document_bytes": [8] * 40}

    def right(value):
        return lambda: {"correct": (draw.random(100) < value).astype(float).tolist()}

    def exactly(count):  # the same items with every seed
        return lambda: {"correct": [1.0] * count + [0.0] * (100 - count)}

    for size, scratch, lora in ((0.01, 4.0, 3.0), (0.1, 3.0, 2.5), (1.0, 1.6, 2.1)):
        for method, value in (("scratch", scratch), ("lora", lora)):
            add(method, "text", size, bits(value), training_seconds=60.0, **(TRAINED if method == "scratch" else TUNED))
    add("scratch", "text", 1.0, bits(1.4), training_seconds=240.0, factor=4.0, **TRAINED)
    add("lora", "text", 1.0, bits(1.9), training_seconds=240.0, factor=4.0, **TUNED)
    add("xz", "text", 1.0, bits(2.2))
    samples = [{"prompt": "X:1", "expected": "K:G", "text": "<b>not bold</b>"}]
    add("zero-shot", "text", 0.0, bits(3.3), written=samples, general_bits=8.0, general_bytes=8)
    cheap = {"seconds_per_request": 0.1, "flops_per_request": 1e9, "read_tokens": 50.0}
    for size, tuned in ((8.0, right(0.3)), (64.0, right(0.5)), (512.0, exactly(90))):
        add("lora", "task", size, tuned, training_seconds=600.0, labels=size + 16, **cheap, **TRAINED)
    asked = {"seconds_per_request": 1.0, "flops_per_request": 1e10, "labels": 20.0}
    add("few-shot", "task", 4.0, right(0.6), confidence=[0.7] * 100, **asked)
    # Within the margin of the best, without training, with expensive requests.
    expensive = {"seconds_per_request": 2.0, "flops_per_request": 1e10, "labels": 528.0}
    add("neighbour-shots", "task", 512.0, exactly(89), **expensive)
    add("majority", "task", 512.0, right(0.4), labels=512.0)
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    recipe = load(StudyRecipe, "configs/study/demo.toml", ["--task-margin", "0.05"])
    (tmp_path / "config.toml").write_text(to_toml(recipe))
    write_report(tmp_path)
    return tmp_path


def test_table_and_verdict_are_drawn_from_the_ledger_alone(folder):
    table = (folder / "table.md").read_text()
    assert "| lora | 512 items |" in table
    assert "| 1.00% |" in table  # overlap
    assert "| scratch | 1 % of the text |" in table
    verdict = (folder / "verdict.md").read_text()
    assert "With all of the text, scratch is best" in verdict
    assert "The curves of scratch and lora cross at" in verdict
    assert (folder / "plots" / "curves.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert "<!-- <script>" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page  # it needs no network
    first = page
    write_report(folder)
    assert (folder / "report.html").read_text() == first


def test_several_foundations_are_drawn_side_by_side(tmp_path, folder):
    other = [
        row | {"id": f"{row['id']}-big", "foundation": "big/model"}
        for row in rows()
        if row["method"] in ("lora", "few-shot")
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows(), *other]))
    write_report(tmp_path)
    assert "| lora @ big/model | 512 items |" in (tmp_path / "table.md").read_text()
    assert "lora @ big/model" in (tmp_path / "report.html").read_text()


@pytest.fixture
def browser(folder):
    with open_browser(folder) as browser:
        yield browser


def find(browser, selector):
    return browser.find_element("css selector", selector)


def check_curves(browser):
    series = browser.find_elements("css selector", "#text-curve .series")
    assert {s.get_attribute("data-method") for s in series} == {"scratch", "lora", "xz", "zero-shot"}
    assert "1 %: " in series[0].get_attribute("aria-label")
    compute = browser.find_elements("css selector", "#compute-curve .series")
    assert [s.get_attribute("data-method") for s in compute] == ["scratch", "lora"]
    assert "60 s: 1.6" in compute[0].get_attribute("aria-label")
    assert "240 s: 1.38 [1.35, 1.42]" in compute[0].get_attribute("aria-label")
    label = "return document.querySelector('#{} svg').getAttribute('aria-label')".format
    assert browser.execute_script(label("forgetting")).endswith("zero-shot 1 [1, 1]; lora 1.5 [1.5, 1.5]")
    assert "few-shot 0." in browser.execute_script(label("calibration"))
    assert browser.execute_script(label("text-cost")).endswith("the Pareto front is xz; scratch")
    placed = browser.execute_script("return spreadHeights([100, 99, 101, 279, 280, 280], 20, 280)")
    for a, b in itertools.pairwise(sorted(placed)):
        assert b - a >= 12
    assert min(placed) >= 20
    assert max(placed) <= 280
    assert placed[1] < placed[0] < placed[2] < placed[3]


def check_decision(browser):
    from selenium.webdriver.common.keys import Keys

    choice = find(browser, "#choice")
    front = (
        "return [...document.querySelectorAll('#decision .front')]"
        ".map(row => row.cells[0].textContent + ' ' + row.cells[1].textContent)"
    )
    requests, price = (find(browser, f"#{name}") for name in ("requests", "price"))
    line = "return document.querySelector('#pareto path[stroke]').getAttribute('d')"
    assert find(browser, "#requests-shown").text == "1,000"
    find(browser, "#label-price").clear()
    price.send_keys(Keys.HOME)  # no price: seconds only
    assert find(browser, "#price-shown").text == "none"
    requests.send_keys(Keys.HOME)  # one request: before break-even
    assert "For 1 requests: neighbour-shots, 512 items (0.89; 2 s) is the cheapest" in choice.text
    assert browser.execute_script(front)[:2] == ["majority 512", "few-shot 4"]
    before = browser.execute_script(line)
    requests.send_keys(Keys.END)  # a hundred million: prompts cost more
    assert "lora, 512 items (0.9;" in choice.text
    assert browser.execute_script(front) == ["majority 512", "lora 512"]
    assert browser.execute_script(line) != before
    price.send_keys(Keys.END)  # 1,000 an hour
    cells = (
        "return [...document.querySelectorAll('#decision tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    head, *table = browser.execute_script(cells)
    by_column = dict(zip(head, next(r for r in table if r[:2] == ["lora", "512"]), strict=True))
    assert by_column["labels, validation included"] == "528"
    assert by_column["tokens / 1,000 requests"] == "50,000"
    assert by_column["s / 1,000"] == "100"
    assert by_column["money / 1,000"] == "27.8"  # 100 s at 1,000 an hour
    # Labels are so expensive that the method with the fewest is the cheapest.
    requests.send_keys(Keys.HOME)
    find(browser, "#label-price").send_keys("1000")
    assert browser.execute_script(front)[0] == "few-shot 4"


def check_layout(browser):
    """Two screens to the first picture on a laptop; nothing wider than its column, on a telephone too."""
    for width, height in ((1280, 800), (400, 800)):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        page, shown = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert page <= shown
        if width == 1280:
            first = "return document.querySelector('figure svg').getBoundingClientRect().top"
            assert browser.execute_script(first) < 1600
            wider = (
                "return [...document.querySelectorAll('table')]"
                ".filter(t => t.id !== 'rows' && t.offsetWidth > t.parentElement.clientWidth).length"
            )
            for details in browser.find_elements("css selector", "details:not(:has(#rows))"):
                browser.execute_script("arguments[0].open = true", details)
            assert browser.execute_script(wider) == 0
            browser.execute_script("document.querySelectorAll('details').forEach(box => { box.open = false; })")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def check_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    browser.execute_script("document.activeElement.blur()")
    reached = set()  # with the tab key
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        now = browser.switch_to.active_element
        reached.add(now.get_attribute("id") or now.get_attribute("class") or now.tag_name)
    assert {"requests", "price", "label-price", "method", "series", "summary"} <= reached
    button = find(browser, "#methods button")
    button.send_keys(Keys.ENTER)  # keyboard only
    assert button.get_attribute("aria-pressed") == "false"
    assert len(browser.find_elements("css selector", "#text-curve .series")) == 3


def check_details(browser, folder):
    assert "lora" in find(browser, "#options").text
    assert find(browser, "#answer .lead").text.startswith("For the text: train a model from scratch")
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    sample = find(browser, "#samples .beside pre")
    assert sample.get_attribute("textContent") == "<b>not bold</b>"
    find(browser, "#verdict details a").click()
    assert find(browser, "#rows tr:nth-child(2)").is_displayed()
    rules = [li.text for li in browser.find_elements("css selector", "#protocol li")]
    assert rules == protocol(load(StudyRecipe, folder / "config.toml"))
    assert any(rule == f"lora uses {METHODS['lora'].data}." for rule in rules)
    assert "torch 2" in find(browser, "#environment").text
    assert len(browser.find_elements("css selector", "#rows tr")) == 1 + len(rows())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert len(browser.print_page()) > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.set_window_size(1050, 1600)  # a landscape page
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    width, visible = browser.execute_script(wide)
    assert width <= visible  # nothing is cut off on paper


@pytest.mark.skipif(not HAS_BROWSER, reason="needs Chromium and ChromeDriver")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_in_a_browser(browser, folder, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(f"file://{folder / 'report.html'}")
    assert find(browser, "body").get_attribute("data-ready") == "true"
    assert find(browser, "#corpus").text == NAME
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    check_curves(browser)
    check_layout(browser)
    check_decision(browser)
    check_keyboard(browser)
    check_details(browser, folder)
