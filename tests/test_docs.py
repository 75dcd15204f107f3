"""Every command shown in README.md and docs/ runs, in order, and prints what the page shows.

Commands stand in ```console blocks after "$ "; the lines below a command are its output, and a line
"…" stands for any lines. docs/overrides.toml makes long commands small.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())]
OVERRIDES = tomllib.loads((ROOT / "docs" / "overrides.toml").read_text(encoding="utf-8"))["override"]


class Shown(NamedTuple):
    """A command of a page and the output lines below it."""

    command: str
    output: list[str]


def page_path(page):
    return ROOT / page if page == "README.md" else ROOT / "docs" / page


def shown_commands(page):
    found = []
    for block in re.findall(r"(?ms)^```console\n(.*?)^```", page_path(page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(Shown(line[2:].strip(), []))
            elif found and line.strip():
                found[-1].output.append(line.strip())
    return found


def matches(override, command):
    start, is_prefix, _ = override["command"].partition("*")
    return command.startswith(start) if is_prefix else command == start


def small(command):
    """The command with its override, and whether there is one."""
    for override in OVERRIDES:
        if matches(override, command):
            if "replace" in override:
                return override["replace"], True
            return f"{command} {override['append']}", True
    return command, False


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tracked files, with this environment and cache."""
    folder = tmp_path_factory.mktemp("docs") / "homegrown"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (ROOT / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(ROOT / "cache")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def run(command, folder):
    paths = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": paths, "COLUMNS": "120"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def assert_shown(output, said):
    """Each shown line stands in what was printed, in order; without "…" between, one after another."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    at, loose = 0, True
    for line in output:
        if line == "…":
            loose = True
            continue
        assert line in lines[at:] if loose else lines[at : at + 1] == [line], f"not printed: {line!r}\n{said}"
        at, loose = lines.index(line, at) + 1, False


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page, checkout):
    for shown in shown_commands(page):
        command, is_changed = small(shown.command)
        done = run(command, checkout)
        assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        if not is_changed:
            assert_shown(shown.output, done.stdout + done.stderr)


def test_every_override_is_of_a_shown_command():
    commands = [shown.command for page in PAGES for shown in shown_commands(page)]
    assert len(commands) >= 20
    for override in OVERRIDES:
        assert any(matches(override, command) for command in commands), override


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6000


def test_every_path_that_a_page_names_exists():
    for page in PAGES:
        text = page_path(page).read_text(encoding="utf-8")
        for name in re.findall(r"`([a-z_]+/[a-z0-9_./-]+\.(?:py|toml|sh|png))`", text):  # NAME is a placeholder
            is_made = name.split("/")[0] in ("runs", "cache", "exported", "stores", "plots", "checkpoints")
            assert is_made or (ROOT / name).exists(), f"{page}: {name}"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page_path(page).parent / target).exists(), f"{page}: {target}"
        for target in re.findall(r"(?m)^(?:\$ )?make ([\w-]+)", text):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"{page}: make {target}"


def glossary_rows():
    lines = page_path("glossary.md").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|") and "---" not in line]


@pytest.mark.parametrize("row", glossary_rows(), ids=lambda row: row.split("|")[1].strip())
def test_a_name_of_the_glossary_stands_in_the_files_beside_it(row):
    files = re.findall(r"`([a-z_0-9]+/[\w./-]+\.(?:py|md|toml))`", row)
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for name in re.findall(r"`([A-Za-z_][\w.]*)`", row):
        assert not files or re.search(rf"\b{name.split('.')[-1]}\b", text), name


CONCEPTS = (
    "document mask|sliding window|KV cache|prefill|decode|early stopping|gradient accumulation|gradient clipping|"
    "warm-up|weight decay groups|EMA|activation checkpointing|FSDP|resume|data order|near-duplicate removal|"
    "leak check|bootstrap|Holm|merge|soft prompt|chat template|BM25|calibration|NoPE|majority class|prefix cache"
)


@pytest.mark.parametrize("concept", CONCEPTS.split("|"))
def test_grep_finds_a_concept_in_the_code_and_in_the_glossary(concept):
    sources = [path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] not in ("tests", ".venv")]
    assert any(concept in path.read_text(encoding="utf-8") for path in sources)
    assert concept.lower() in page_path("glossary.md").read_text(encoding="utf-8").lower()


@pytest.mark.slow
def test_the_site_builds_and_its_links_hold(tmp_path):
    done = run(f"mkdocs build --strict --quiet --site-dir {tmp_path / 'site'}", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "glossary" / "index.html").exists()


@pytest.mark.slow
def test_the_example_runs(checkout):
    done = run("python examples/library.py", checkout)
    assert done.returncode == 0, done.stderr
    assert "one tune: " in done.stdout
