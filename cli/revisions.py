"""Names on the Hugging Face hub: OWNER/NAME, or OWNER/NAME@REVISION."""

import re


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit; a branch or a tag may come to mean another one."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def resumed_revision(given: str, saved: str) -> str:
    """The name to go on with: the saved one with its commit, unless another commit is asked for."""
    name, _, revision = given.partition("@")
    kept, _, commit = saved.partition("@")
    return saved if commit and name == kept and not is_commit(revision) else given
