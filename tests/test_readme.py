"""The commands in the README and in docs/ exist, and take the recipes and options that are shown."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = [
    block for page in PAGES for block in re.findall(r"(?ms)^```console\n(.*?)^```$", page.read_text(encoding="utf-8"))
]
LINES = sorted({line for block in BLOCKS for line in re.findall(r"(?m)^\$ ((?:python -m|torchrun) .*)$", block)})
TAKE_A_RECIPE = (
    "train.pretrain",
    "adapt.finetune",
    "compare.run",
    "data.prepare",
    "data.train_tokenizer",
    "prompting.store",
    "prompting.evaluate",
)


def test_there_is_something_to_check():
    assert len(LINES) >= 10


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6000


@pytest.mark.parametrize("line", LINES)
def test_a_shown_command_is_understood(command, line):
    words = shlex.split(line, comments=True)
    module, *args = words[words.index("-m") + 1 :]
    if module in TAKE_A_RECIPE:
        done = command(module, *args, "--print-config")
        assert done.returncode == 0, done.stderr
        assert "[data]" in done.stdout
    elif module != "benchmarks.picture":  # takes no arguments
        done = command(module, "--help")
        assert done.returncode == 0, done.stderr
        for flag in (word for word in args if word.startswith("--")):
            assert flag in done.stdout, flag


def test_shown_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?m)^(?:\$ )?make ([\w-]+)", page.read_text(encoding="utf-8")):
            assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md"], ids=lambda p: p.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
