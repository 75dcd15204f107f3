"""Everything imports on any system, without optional packages, and beside the libraries of users."""

import json
import os
import subprocess
import sys

import pytest
from layout import OPTIONAL, ROOT, TRITON, module_name, sources
from texts import words


def test_everything_imports_without_the_optional_packages():
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import importlib
for name in {all_modules()!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_python(code, *options, **environment):
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


def test_transformers_imports_beside_our_kernels_folder():
    # `kernels` is also the name of a library that transformers imports where it is installed.
    code = """
import transformers.utils.import_utils as utils
# Release 0.17 is older than the one that transformers asks for, but has all of its names.
utils.is_kernels_available.__wrapped__.__defaults__ = ("0.17.0", "0.19.0")
import kernels, transformers
from transformers import LlamaForCausalLM
from transformers.integrations import hub_kernels
assert utils.is_kernels_available()
from kernels import get_kernel
import kernels.layer, kernels.attention, kernels.norm.ops
assert hub_kernels.LayerRepository is kernels.LayerRepository is kernels.layer.LayerRepository
assert kernels.attention.__file__.startswith(sys.argv[1])
try:
    kernels.no_such_name
except AttributeError:
    pass
else:
    raise SystemExit("a name that neither has")
"""
    pytest.importorskip("kernels.layer")
    done = run_python(code.replace("sys.argv[1]", repr(str(ROOT))))
    assert done.returncode == 0, done.stderr


def test_our_kernels_stand_alone_without_the_library_of_that_name():
    code = """
import sys
sys.path = [p for p in sys.path if "site-packages" not in p]
import kernels
assert not hasattr(kernels, "get_kernel"), kernels.get_kernel
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"}


def all_modules():
    in_triton = [path for path in sources() if path.is_relative_to(ROOT / "kernels") and path.stem in TRITON]
    return [module_name(path) for path in sources() if path not in in_triton]


def test_everything_imports_without_what_only_unix_has():
    # Libraries may catch it; ours must not ask. (Those that need it are loaded first.)
    code = f"""
import sys
import torch, datasets, rich.console, wandb, tokenizers, pyarrow.parquet
import torch._dynamo, torch.distributed.fsdp, torch.distributed.elastic.multiprocessing
for name in {UNIX!r}:
    sys.modules[name] = None
import importlib
for name in {all_modules()!r}:
    importlib.import_module(name)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_hold_on_other_systems(platform):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--platform",
            platform,
            "--python-version",
            "3.13",
            f"--cache-dir=.mypy_cache/{platform}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_apples_gpu_is_refused_by_name(command, recipe):
    done = command("train.pretrain", recipe, "--train.device", "mps")
    assert done.returncode == 2
    assert "train.device = 'mps': Apple's GPU (MPS) is not supported; use \"cpu\"" in done.stderr


def test_a_locale_that_is_not_utf8_changes_nothing(command, recipe, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    text = "Das Gemüse kostet fünf Euro – 北京。 "
    for name in ("café.txt", "北京.txt"):
        lines = "\n".join(f"{name}: {text}{words(n, 20)}" for n in range(300))
        (folder / name).write_text(lines, encoding="utf-8")
    changed = tmp_path / "recipe.toml"
    changed.write_text(recipe.read_text().replace("[sample]", '[sample]\nprompt = "Gemüse 北"'), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, environment in (("utf8", {}), ("ascii", ascii_only)):
        done = command(
            "train.pretrain",
            changed,
            "--data.corpus",
            folder,
            "--train.steps",
            "2",
            "--run-dir",
            tmp_path / name,
            "--data.cache-dir",
            tmp_path / f"cache-{name}",
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
    samples = [(tmp_path / name / "sample.txt").read_bytes() for name in ("utf8", "ascii")]
    assert samples[0] == samples[1]
    assert "Gemüse 北" in samples[0].decode()
    manifests = [next(tmp_path.glob(f"cache-{name}/documents/*/manifest.json")) for name in ("utf8", "ascii")]
    fingerprints = [json.loads(path.read_text())["fingerprint"] for path in manifests]
    assert fingerprints[0] == fingerprints[1]
