"""Configuration: frozen dataclasses, filled from YAML files and flags by one parser.

A YAML file is flattened to flags that come before the user's own, so the same validator catches typos, wrong types and
bad ranges in both, and a flag always wins over a file. Bad input is a `UserError` of one line; `--help` works as usual.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from multimodal.errors import UserError

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class _Field:
    """A setting that is no dataclass itself: its dotted name with underscores, its type, its default."""

    name: str
    annotation: Any
    default: Any

    @property
    def kinds(self) -> set[Any]:
        """The type, or the members of a union, without their parameters."""
        union = typing.get_origin(self.annotation) in (typing.Union, types.UnionType)
        members = typing.get_args(self.annotation) if union else (self.annotation,)
        return {typing.get_origin(member) or member for member in members}

    @property
    def open_mapping(self) -> bool:
        """A mapping without default keys: given as NAME VALUE pairs. With them, each of its keys is a flag."""
        return dict in self.kinds and not (isinstance(self.default, Mapping) and self.default)


def expect_at_least(least: float, *, of: str = "", **settings: float) -> None:
    """Raises `UserError`, which names the flag, if a setting is below `least`; `of` stands before their names."""
    for name, value in settings.items():
        if not value >= least:
            raise UserError(f"--{of}{name.replace('_', '-')} {value}: expected {least} or more")


def parse(config_class: type[C], argv: Sequence[str] | None = None, *, description: str | None = None) -> C:
    """Make a configuration of flags (by default those of `sys.argv`); `--config FILE.yaml` puts a file's before them.

    Raises `UserError` with one line that names the flag, or the file and the key, and what was expected. Raises
    `SystemExit` for `--help`.

    >>> parse(Recipe, ["--config", "recipe.yaml", "--train.steps", "100", "--train.learning-rates.encoder", "0"])
    """
    files, flags = _split_config_flags(list(sys.argv[1:] if argv is None else argv))
    fields = {field.name: field for field in _fields(config_class, dataclasses.MISSING, "")}
    from_files = {file: _flags_of_file(file, fields) for file in files}
    arguments = [word for words in from_files.values() for word in words] + flags
    text = f"{description or config_class.__doc__ or ''}\n\n--config FILE.yaml reads settings from a file; flags win."
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return tyro.cli(config_class, args=arguments, description=text.strip())
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _one_line(report.getvalue())
    except UserError as error:
        message = _with_full_flag(str(error), fields)
    raise UserError(_with_source(message, from_files, flags))


def dump(config: Any) -> str:
    """The configuration as YAML; `parse` makes an equal one of it."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _split_config_flags(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Take `--config FILE` and `--config=FILE` out of the flags."""
    files, flags = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, None)
            if file is None:
                raise UserError("--config has no value: expected a YAML file")
            files.append(Path(file))
        elif word.startswith("--config="):
            files.append(Path(word.removeprefix("--config=")))
        else:
            flags.append(word)
    return files, flags


def _fields(config_class: Any, instance: Any, prefix: str) -> Iterator[_Field]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        default = field.default
        if instance is not dataclasses.MISSING:
            default = getattr(instance, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(hints[field.name], default, f"{prefix}{field.name}.")
        else:
            yield _Field(prefix + field.name, hints[field.name], default)


def _flags_of_file(file: Path, fields: dict[str, _Field]) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {file}: {getattr(error, 'strerror', None) or error}: expected a YAML file"
        ) from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{file}{line}: {getattr(error, 'problem', None) or error}: expected valid YAML") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}: expected settings as NAME: VALUE lines")
    return list(_flatten(content, "", file, fields))


def _flatten(content: dict[Any, Any], prefix: str, file: Path, fields: dict[str, _Field]) -> Iterator[str]:
    for key, value in content.items():
        name = prefix + str(key).replace("-", "_")
        field = fields.get(name)
        is_section = any(other.startswith(f"{name}.") for other in fields)
        if field is not None:
            yield from _flags(field, value, file)
        elif not is_section:
            near = difflib.get_close_matches(name, fields, n=3) or sorted(n for n in fields if n.startswith(prefix))
            raise UserError(f"{file}: unknown setting {name}: expected perhaps {', '.join(near)}")
        elif isinstance(value, dict):
            yield from _flatten(value, f"{name}.", file, fields)
        elif value is not None:
            raise UserError(f"{file}: {name} is {value!r}: expected a section with settings of its own")


def _flags(field: _Field, value: Any, file: Path) -> Iterator[str]:
    """One setting as the words of a command line."""
    flag = _flag(field.name)
    if isinstance(value, dict):
        if dict not in field.kinds:
            raise UserError(f"{file}: {field.name} is a mapping: expected a value")
        if field.open_mapping:
            yield from [flag, *(str(word) for pair in value.items() for word in pair)]
            return
        for key, item in value.items():
            if key not in field.default:
                known = ", ".join(map(str, field.default))
                raise UserError(f"{file}: unknown setting {field.name}.{key}: expected perhaps {known}")
            yield f"{flag}.{key}={item}"
    elif isinstance(value, list):
        if not field.kinds & {tuple, list, set, Sequence}:
            raise UserError(f"{file}: {field.name} is a list: expected a single value")
        yield from [flag, *_words(value)]
    elif field.annotation is bool and isinstance(field.default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{file}: {field.name} is {value!r}: expected true or false")
        section, _, name = flag.rpartition(".")
        yes, no = (f"{section}.{name}", f"{section}.no-{name}") if section else (flag, f"--no-{flag[2:]}")
        yield yes if value else no
    else:
        yield f"{flag}={value}"  # one word, so that a value may begin with a dash


def _words(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _words(value)
        else:
            yield str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _one_line(report: str) -> str:
    """The parser's error box as one line. Where the output is not UTF-8 it has no frame: a title, then the sections."""
    framed = "│" in report
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in report.splitlines() if line.startswith("│" if framed else " ")):
        if line and set(line) in ({"─"}, {"-"}):
            sections.append([])
        elif line:
            sections[-1].append(line)
    if not framed:
        sections = sections[1:]
    parts = []
    for section in filter(None, sections):
        named = ", ".join(sorted(line.split(" ")[0].rstrip(",") for line in section if line.startswith("--")))
        if section[0].startswith("Missing from"):
            parts.append(f"missing {named}: expected a value")
        elif section[0].startswith("Perhaps you meant"):
            parts.append(f"expected perhaps {named}")
        elif not section[0].startswith(("For full helptext", "Argument helptext")):
            parts.append(" ".join(section))
    return ": ".join(parts) or " ".join(report.split())


def _with_full_flag(message: str, fields: dict[str, _Field]) -> str:
    """A nested dataclass names its own flag (--steps); put the section before it (--train.steps)."""
    found = re.match(r"--([\w-]+)", message)
    if found is None or found[1].replace("-", "_") in fields:
        return message
    owners = [name for name in fields if name.endswith(f".{found[1].replace('-', '_')}")]
    return _flag(owners[0]) + message[found.end() :] if len(owners) == 1 else message


def _with_source(message: str, from_files: dict[Path, list[str]], flags: list[str]) -> str:
    """Name the file as well, if the flag that the message names came from one."""
    found = re.search(r"--[\w.-]+", message)
    if found is None:
        return message

    def given_in(words: list[str]) -> bool:
        return any(word.split("=")[0].replace("_", "-") == found[0] for word in words)

    for file in reversed(list(from_files)):
        if given_in(from_files[file]) and not given_in(flags):
            return f"{file}: {message}"
    return message
