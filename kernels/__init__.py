"""Fused kernels in Triton, each with its definition in plain torch. Imports no other package.

`kernels` is also the name of a library of Hugging Face that `transformers[kernels]` installs and
imports. Where that is installed, what is not ours is found there, names and modules alike.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


def _library() -> ModuleSpec | None:
    for entry in sys.path:
        found = PathFinder.find_spec("kernels", [entry or "."])
        # Another checkout of ours is none: the library has a module of this name.
        if found and found.origin and Path(found.origin).with_name("hf_hub.py").exists():
            return found
    return None


_OTHER = _library()
if _OTHER and _OTHER.submodule_search_locations:
    __path__ += _OTHER.submodule_search_locations


def __getattr__(name: str) -> Any:
    if _OTHER is None or not _OTHER.origin or (name.startswith("__") and name != "__version__"):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    known = sys.modules.get("kernels.__library__")
    if known is None:
        spec = importlib.util.spec_from_file_location("kernels.__library__", _OTHER.origin)
        assert spec is not None
        assert spec.loader is not None
        known = importlib.util.module_from_spec(spec)
        sys.modules["kernels.__library__"] = known
        try:
            spec.loader.exec_module(known)
        except BaseException:
            del sys.modules["kernels.__library__"]
            raise
    return getattr(known, name)
