"""The commands in the README exist, and take the recipes and options that it shows."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = re.findall(r"(?m)^    (?:\$ )?((?:python -m|torchrun) .*)$", (ROOT / "README.md").read_text())
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


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_understood(command, line):
    words = shlex.split(line, comments=True)
    module, *args = words[words.index("-m") + 1 :]
    if module in TAKE_A_RECIPE:
        done = command(module, *args, "--print-config")
        assert done.returncode == 0, done.stderr
        assert "[data]" in done.stdout
    else:
        done = command(module, "--help")
        assert done.returncode == 0, done.stderr
        for flag in (word for word in args if word.startswith("--")):
            assert flag in done.stdout, flag


def test_shown_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?m)^    make (\w+)", (ROOT / "README.md").read_text()):
        assert f"\n{target}:" in makefile
