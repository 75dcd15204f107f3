"""Installed packages that hold the text of built-in corpora."""

import importlib.util
from pathlib import Path

from cli.errors import UserError


def package_folder(name: str, requirement: str) -> Path:
    """The folder of an installed package, which is not imported. Raises UserError with the install command."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f'the package "{name}" is not installed; run: pip install --no-deps {requirement}')
    return Path(spec.origin).parent
