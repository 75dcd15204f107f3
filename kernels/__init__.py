"""Fused Triton kernels, each with its definition in plain torch. Imports no other package.

`kernels` is also the name of a Hugging Face library that `transformers[kernels]` installs and
imports. If that library is installed, names and modules missing here are looked up there.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


def _find_hugging_face_library() -> ModuleSpec | None:
    for entry in sys.path:
        found = PathFinder.find_spec("kernels", [entry or "."])
        # Only the library has hf_hub.py: this skips other checkouts of this project.
        if found and found.origin and Path(found.origin).with_name("hf_hub.py").exists():
            return found
    return None


_HUGGING_FACE = _find_hugging_face_library()
if _HUGGING_FACE and _HUGGING_FACE.submodule_search_locations:
    __path__ += _HUGGING_FACE.submodule_search_locations


def __getattr__(name: str) -> Any:
    if _HUGGING_FACE is None or not _HUGGING_FACE.origin or (name.startswith("__") and name != "__version__"):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    library = sys.modules.get("kernels.__library__")
    if library is None:
        spec = importlib.util.spec_from_file_location("kernels.__library__", _HUGGING_FACE.origin)
        assert spec is not None
        assert spec.loader is not None
        library = importlib.util.module_from_spec(spec)
        sys.modules["kernels.__library__"] = library
        try:
            spec.loader.exec_module(library)
        except BaseException:
            del sys.modules["kernels.__library__"]
            raise
    return getattr(library, name)
