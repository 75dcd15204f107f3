"""The playground in a real browser: by mouse and by keyboard, checked by axe-core."""

import json
import shutil
import subprocess
import time

import pytest
from browser import HAS_BROWSER, open_browser
from layout import ROOT

from cli.recipes import load, to_toml
from configs.schema import Recipe, TaskConfig
from configs.study_recipe import StudyRecipe

AXE = ROOT / "cache" / "axe"

pytestmark = pytest.mark.skipif(not HAS_BROWSER, reason="no Chromium with chromedriver")


@pytest.fixture(scope="module")
def axe():
    path = AXE / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        if not shutil.which("npm"):
            pytest.skip("axe-core comes from npm, which is not installed")
        AXE.mkdir(parents=True, exist_ok=True)
        (AXE / "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--ignore-scripts", "axe-core@4.14.1"]
        done = subprocess.run(install, cwd=AXE, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"axe-core could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return path.read_text()


def find_all(browser, selector):
    return browser.find_elements("css selector", selector)


def wait_until(check, seconds=30):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_ended(browser):
    return lambda: "ended" in browser.find_element("id", "status").text


def violations(browser, axe):
    browser.execute_script(axe)
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(result => done(result.violations))")
    return [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found]


def test_three_models_answer_one_prompt(trained_run, start_server, tmp_path, axe):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    second = tmp_path / "again"
    shutil.copytree(trained_run, second)
    server = start_server(trained_run, second, "smollm2-135m", "--rows", "4", "--context", "512")
    try:
        with open_browser(tmp_path, 1280, 1400) as browser:
            browser.get(server.root + "/?prompt=The%20river&max_tokens=12&temperature=0&price=2")
            wait_until(lambda: len(find_all(browser, "[name=model]:checked")) == 3)
            assert violations(browser, axe) == []
            browser.find_element(By.ID, "send").click()
            wait_until(has_ended(browser))
            assert [title.text for title in find_all(browser, "article h2")] == ["words", "again", "smollm2-135m"]
            texts = find_all(browser, ".text[aria-live]")
            assert len(find_all(browser, "article")[2].find_elements(By.CSS_SELECTOR, ".token")) == 12
            assert texts[0].text == texts[1].text  # the same weights, prompt and seed
            assert "price" in find_all(browser, "article dl")[2].text
            find_all(browser, "article:nth-child(3) .token")[3].send_keys("")
            browser.execute_script("document.querySelectorAll('article:nth-child(3) .token')[3].focus()")
            assert len(find_all(browser, "article:nth-child(3) .alternatives td")) == 10
            assert '"prompt": "The river"' in browser.find_element(By.ID, "sent").get_attribute("textContent")
            assert violations(browser, axe) == []
            assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
            # By keyboard alone: a blind vote.
            browser.find_element(By.ID, "blind").send_keys(Keys.SPACE)
            browser.find_element(By.ID, "prompt").send_keys(Keys.ENTER)
            wait_until(has_ended(browser))
            assert [title.text for title in find_all(browser, "article h2")] == ["Answer 1", "Answer 2", "Answer 3"]
            first = find_all(browser, "article:nth-child(1) .token")[0]
            first.send_keys(Keys.ARROW_RIGHT)
            assert browser.switch_to.active_element == find_all(browser, "article:nth-child(1) .token")[1]
            find_all(browser, "article button:not(.token)")[1].send_keys(Keys.ENTER)
            assert {title.text for title in find_all(browser, "article h2")} == {"words", "again", "smollm2-135m"}
            assert "1 of 1" in browser.find_element(By.ID, "votes").text
            # Esc stops; the link brings everything back.
            box = browser.find_element(By.ID, "max_tokens")
            box.clear()
            box.send_keys("400")
            browser.find_element(By.ID, "prompt").send_keys(Keys.ENTER)
            wait_until(lambda: server.metric("homegrown_running_texts") > 0)
            box.send_keys(Keys.ESCAPE)
            wait_until(lambda: server.metric("homegrown_running_texts") == 0, 5)
            browser.find_element(By.ID, "link").click()
            assert "max_tokens=400" in browser.current_url
            browser.set_window_size(320, 900)
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= browser.execute_script("return document.documentElement.clientWidth")
        with open_browser(tmp_path, 400, 1000, "--force-dark-mode") as browser:
            browser.get(server.root + "/?prompt=The&model=words&max_tokens=5")
            wait_until(lambda: find_all(browser, "[name=model]:checked"))
            browser.find_element(By.ID, "send").click()
            wait_until(has_ended(browser))
            assert violations(browser, axe) == []
    finally:
        server.stop()


def test_a_refusal_is_shown(trained_run, start_server, tmp_path):
    server = start_server(trained_run, "--key", "secret")
    try:
        with open_browser(tmp_path) as browser:
            browser.get(server.root)
            wait_until(lambda: "a valid key is needed" in browser.find_element("id", "status").text)
            browser.get(server.root + "/?max_tokens=9999#key=secret")
            browser.refresh()
            wait_until(lambda: find_all(browser, "[name=model]:checked"))
            browser.find_element("id", "max_tokens").send_keys("")
            browser.execute_script("document.getElementById('max_tokens').max = 10000")
            browser.find_element("id", "send").click()
            wait_until(lambda: any("exceed the context" in each.text for each in find_all(browser, "article")))
    finally:
        server.stop()


def test_held_out_items_of_a_study_can_be_picked(trained_run, start_server, tmp_path):
    from selenium.webdriver.support.ui import Select

    study = tmp_path / "study"
    kept = study / "kept" / "text-1-scratch"
    shutil.copytree(trained_run, kept)
    (kept / "about.json").write_text("{}")
    rows = [{"text": f"the {i} stone", "label": ("odd", "even")[i % 2 == 0]} for i in range(60)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load(Recipe, trained_run / "config.toml").data
    recipe = StudyRecipe(data=corpus, task=TaskConfig(name=str(tmp_path / "items.jsonl")))
    (study / "config.toml").write_text(to_toml(recipe))
    server = start_server("--study", study)
    try:
        with open_browser(tmp_path) as browser:
            browser.get(server.root)
            wait_until(lambda: find_all(browser, "#item option:nth-child(3)"))
            assert [box.get_attribute("value") for box in find_all(browser, "[name=model]")] == ["text-1-scratch"]
            Select(browser.find_element("id", "item")).select_by_index(2)
            text = browser.find_element("id", "prompt").get_attribute("value")
            number = int(text.split()[1])
            assert browser.find_element("id", "right").text == f"right answer: {rows[number]['label']}"
            browser.find_element("id", "send").click()
            wait_until(has_ended(browser))
    finally:
        server.stop()
