"""Load a TOML recipe with command-line overrides into one of the schemas of `configs/`.

python -m package.command RECIPE.toml [--section.key value …] [--print-config] [--help]
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import tomli_w
import tyro
from pydantic import BaseModel, ValidationError

from cli.console import show
from cli.errors import UserError, nearest

T = TypeVar("T", bound=BaseModel)


def read_toml(path: str | Path) -> dict:
    """The tables of a TOML file. Raises UserError if it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; the included recipes are in configs/") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a .toml recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def to_toml(config: BaseModel) -> str:
    """The resolved configuration as TOML, with defaults."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def validate(schema: type[T], values: dict, place: str) -> T:
    """Parse `values` into `schema`. Raises UserError naming the key, the value and the `place`."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            hint = nearest(path[-1], _keys(schema, path[:-1]))
            raise UserError(f'{place}: unknown key "{key}"{hint}') from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        raise UserError(f"{place}: {key}{shown}: {message}") from None


def load(schema: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` and apply dotted overrides such as `["--train.steps", "200"]`.

    Raises UserError for a missing or malformed file, an unknown key (with the most similar key) and
    a value of the wrong type.
    """
    values = read_toml(path)
    recipe = validate(schema, values, str(path))
    for keys, value in _assignments(schema, overrides):
        table = values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        table[keys[-1]] = value
    return validate(schema, values, "command line") if overrides else recipe


class Parser(argparse.ArgumentParser):
    """An argument parser with a module docstring as help; its errors are UserErrors."""

    def __init__(self, description: str | None, **options: Any):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see --help")


def parse(schema: type[T], arguments: Parser) -> tuple[T, argparse.Namespace]:
    """Parse `RECIPE [overrides]` plus the command's own `arguments` from `sys.argv`.

    `arguments` is a `Parser(…, add_help=False)`.
    Prints and exits for `--help` and `--print-config`. Raises UserError.
    """
    arguments.add_argument("config", metavar="RECIPE", nargs="?", help="a .toml recipe")
    arguments.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    arguments.add_argument("--print-config", action="store_true", help="print the resolved recipe and exit")
    if "-h" in sys.argv[1:] or "--help" in sys.argv[1:]:
        arguments.print_help()
        print("\nRecipe settings; each can be overridden on the command line:\n")
        tyro.cli(schema, default=schema(), args=["--help"], prog="RECIPE", config=(tyro.conf.FlagConversionOff,))
    own, overrides = arguments.parse_known_args()
    if own.config is None:
        raise UserError("no recipe given; pass a .toml file first, such as configs/tiny.toml")
    config = load(schema, own.config, overrides)
    if own.print_config:
        show(to_toml(config), end="")
        raise SystemExit(0)
    return config, own


def _section(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        schema = _section(schema.model_fields[part].annotation) or schema
    return list(schema.model_fields)


def _leaves(schema: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
    # The path and type of every setting that is not a table, by option name.
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name, field in schema.model_fields.items():
        section, here = _section(field.annotation), (*path, name)
        found |= _leaves(section, here) if section else {"--" + ".".join(here): (here, field.annotation)}
    return found


def _assignments(schema: type[BaseModel], overrides: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Parse `--a.b-c v` or `--a.b_c=v` into `((a, b_c), v)`; several values after a flag are a list."""
    leaves = _leaves(schema)
    found: list[tuple[str, list[str]]] = []
    for word in overrides:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = "--" + flag[2:].replace("-", "_")
            if flag not in leaves:
                raise UserError(f'command line: unknown option "{flag}"{nearest(flag, sorted(leaves))}')
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise UserError(f'command line: "{word}" is not an option; overrides are --section.key')
    for flag, values in found:
        path, annotation = leaves[flag]
        is_list = get_origin(annotation) is list
        if not is_list and len(values) != 1:
            given = f"{len(values)} values" if values else "no value"
            raise UserError(f"command line: {flag} takes one value, got {given}")
        yield path, values if is_list else values[0]
