"""What the four command lines share: config files first, one-line errors, exit codes 0, 1, 2."""

import contextlib
import dataclasses
import itertools
import os
import re
import select
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse

from shards.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

Namespace = jsonargparse.Namespace
Parser = jsonargparse.ArgumentParser
ConfigT = TypeVar("ConfigT")

_KINDS = {
    "tuple": 'a list in brackets, like "[a, b]"',
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
}
_BROKEN_PIPE = 141  # as if killed by SIGPIPE: 128 + 13


def make_parser(program: str, description: str) -> jsonargparse.ArgumentParser:
    """Return a strict parser: no abbreviations, unknown keys are errors, failures raise instead of exiting."""
    return jsonargparse.ArgumentParser(
        prog=f"python -m {program}", description=description, exit_on_error=False, allow_abbrev=False
    )


def parse(parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> jsonargparse.Namespace:
    """Parse argv; flags win over `--config FILE` wherever they stand.

    jsonargparse applies arguments in order, so that a flag before `--config` would be overwritten by the file.

    Raises:
        UserError: an unknown flag or key, a wrong type, a missing value, an unreadable config file.
    """
    ordered = _config_first(argv)
    try:
        for path in _config_files(ordered):
            _refuse_malformed(path)
        return parser.parse_args(ordered)
    except jsonargparse.ArgumentError as error:
        told = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        told = re.sub(r"Expected a <class '(\w+)'>", lambda kind: f"Expected {_KINDS.get(kind[1], kind[1])}", told)
        raise UserError(f"{told} (see {parser.prog} --help)") from error
    except UnicodeDecodeError as error:
        named = " ".join(ordered).partition(" --")[0] or "a file"
        raise UserError(f"{named} is no text in UTF-8 ({error}): give a YAML file") from error


def parse_config(program: str, description: str, config: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """Build a config dataclass from `--config FILE` and dotted flags (`--model.depth 6`); flags win.

    Raises:
        UserError: as `parse`; also what the dataclass itself refuses when made (its ValueError).
    """
    parser = make_parser(program, description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config)
    parsed = parse(parser, argv)
    _refuse_misfits(config, parsed, "")
    try:
        values: dict[str, Any] = vars(parser.instantiate(parsed))
        return config(**{name: value for name, value in values.items() if name != "config"})
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _refuse_misfits(config: type, values: Namespace, prefix: str) -> None:
    """Name a null for an option that must have a value, and a value for a section; jsonargparse lets them pass."""
    for name, hint in typing.get_type_hints(config).items():
        value = values.get(name)
        if value is None and type(None) not in typing.get_args(hint):
            raise UserError(f"{prefix}{name} is null: give it a value, or leave it out")
        if isinstance(value, Namespace):
            _refuse_misfits(hint, value, f"{prefix}{name}.")
        elif dataclasses.is_dataclass(hint):
            option = dataclasses.fields(hint)[0].name
            raise UserError(f"{prefix}{name} is {value!r}: it has options of its own, write {name}: {{{option}: …}}")


def _config_first(argv: Sequence[str]) -> list[str]:
    config: list[str] = []
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        if item == "--config":
            config += [item, *[value for value in [next(items, None)] if value is not None]]
        elif item.startswith("--config="):
            config.append(item)
        else:
            rest.append(item)
    return config + rest


def _refuse_malformed(path: Path) -> None:
    """Name what a config file may not have, though YAML allows it: a key twice, or a value that contains itself.

    Of a key YAML's readers take the last without a word; in the other the parser would never come to an end.
    """
    import yaml  # not at the top: help does without

    with contextlib.suppress(yaml.YAMLError, OSError):  # what is no YAML, or cannot be read, the parser tells
        _refuse_in(path, yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader), [], set())


def _refuse_in(path: Path, node: Any, around: Sequence[Any], seen: set[int]) -> None:
    """See `_refuse_malformed`.

    Args:
        path: of the file.
        node: of its tree, from PyYAML.
        around: the nodes that it stands in.
        seen: ids of nodes that were looked at, perhaps under another name; this one joins.
    """
    if node is None or isinstance(node.value, str):
        return
    if any(node is each for each in around):
        raise UserError(f"{path}, line {node.start_mark.line + 1}: a value contains itself: write out what is meant")
    if id(node) in seen:
        return
    seen.add(id(node))
    entries = [each if isinstance(each, tuple) else (None, each) for each in node.value]
    names = [key and key.value for key, _ in entries]
    for number, (key, value) in enumerate(entries):
        if key and key.value in names[:number]:
            line = key.start_mark.line + 1
            raise UserError(f"{path}, line {line}: {key.value} is there for the second time: keep one of them")
        _refuse_in(path, value, [*around, node], seen)


def _config_files(ordered: Sequence[str]) -> list[Path]:
    """Return the regular files that are named; a pipe can be read once only, by the parser."""
    named = [value for item, value in itertools.pairwise(ordered) if item == "--config"]
    named += [item.removeprefix("--config=") for item in ordered if item.startswith("--config=")]
    return [path for path in map(Path, named) if path.is_file()]


def exit_with(program: str, main: Callable[[list[str]], int]) -> NoReturn:
    """Run main(argv) and exit as `exit_code` says."""
    sys.exit(exit_code(program, main))


def exit_code(program: str, main: Callable[[list[str]], int]) -> int:
    """Run main(argv) and return the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted, 141 nobody reads on.

    The user's mistakes, a store that keeps failing and a full disk are one line on stderr, a reader of stdout that is
    gone none; anything else has its traceback.
    """
    try:
        code = main(sys.argv[1:])
        # What is left in the buffer must not fail when Python ends.
        print(end="", flush=True)
        return code
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Not at the top: help is instant without the drivers of stores.
        from shards.storage.retry import StorageError
        from shards.storage.scratch import is_disk_full

        # Pipes between processes may break, too.
        is_unread = isinstance(error, BrokenPipeError) and _is_unread()
        _drop_what_fails()
        if is_unread:
            return _BROKEN_PIPE
        if not isinstance(error, StorageError) and not is_disk_full(error):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def _drop_what_fails() -> None:
    """Throw away what cannot be written to stdout, which else fails again when Python ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread() -> bool:
    """Say whether the reader of stdout is gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
