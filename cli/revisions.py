"""Revisions of names on the Hugging Face hub: OWNER/NAME, or OWNER/NAME@REVISION."""

import re


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit hash; a branch or tag may move to another commit."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def resumed_revision(given: str, saved: str) -> str:
    """The name to resume with: `saved` with its commit, unless `given` names another one or a commit."""
    name, _, revision = given.partition("@")
    saved_name, _, commit = saved.partition("@")
    return saved if commit and name == saved_name and not is_commit(revision) else given
