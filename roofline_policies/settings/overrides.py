"""Overrides in Hydra's syntax, and what is wrong with them in words: which argument, which character, what to write."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from roofline_policies.errors import InputError

CONF = "roofline_policies.conf"
"""The package of the shipped configuration: devices, models, objectives, policies."""

SHIPPED_GROUPS = f"hydra.searchpath=[pkg://{CONF}]"
"""The override by which a configuration anywhere finds the groups that are shipped."""

Compose = Callable[[list[str]], DictConfig]
"""Composes a configuration with these overrides; called while Hydra is initialized."""

_KEY = re.compile(r"(\+\+|\+|~)?([A-Za-z0-9_$%?./@:-]*)")
_NAMED = re.compile(r"'([^']*)'")
_NOISE = ("See https://", "full_key:", "object_type=", "Config search path:", "provider=", "main, provider")
_KEY_VALUE = "key=value"


def composed(compose: Compose, overrides: Sequence[str], *, where: str, option: str = "") -> dict[str, Any]:
    """The configuration with the overrides, resolved, as plain data.

    where: names the configuration in errors. option: of the command line that takes all of the overrides in one text;
    empty: each is an argument of its own.

    Raises:
        InputError: an override, a file or a reference in it that Hydra cannot use, or a key that still needs a value.
    """
    parsed = [_parsed(overrides, place, where, option) for place in range(len(overrides))]
    try:
        tree = compose(list(overrides))
        _complete(tree, parsed, where)
        plain = OmegaConf.to_container(tree, resolve=True)
    except MissingConfigException as error:
        raise _no_choice(error, parsed, where) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise _in_words(error, compose, parsed, where) from error
    if not isinstance(plain, dict):
        raise InputError("must be a mapping", where=where, value=plain)
    return {str(key): value for key, value in plain.items()}


def _complete(tree: DictConfig, parsed: Sequence[Override], where: str) -> None:
    """Nothing, if every group has one choice and every key a value.

    Raises:
        InputError: one has not.
    """
    for one in parsed:
        if isinstance(one.value(), list) and (options := _options(one)):
            problem = "takes one choice"
            raise InputError(problem, where=where, key=one.key_or_group, value=one.value(), allowed=options)
    # First those of the top, which others may refer to: looking at what refers to a missing key is an error.
    missing = [str(key) for key in tree if OmegaConf.is_missing(tree, key)]
    missing = missing or sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise InputError("is missing", where=where, key=missing[0], allowed=f"{missing[0]}=VALUE")


def _parsed(overrides: Sequence[str], place: int, where: str, option: str) -> Override:
    """One override, read.

    Raises:
        InputError: it is none; says what to write in its place.
    """
    word = overrides[place]
    if "\n" in word or "\r" in word:
        raise InputError("has a line break in it", where=where, value=word, allowed=_KEY_VALUE)
    try:
        found = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError) as error:
        raise _unreadable(overrides, place, error, where, option) from error
    if not found.key_or_group:
        raise InputError("has no key", where=where, value=word, allowed=_KEY_VALUE)
    if found.is_sweep_override():
        key, _, value = word.partition("=")
        ways = [f"{key}={value.replace(',', '.')}"] if re.fullmatch(r"-?\d+,\d+", value) else []
        if found.is_choice_sweep() and "(" not in value:
            ways += [f"{_shell(f'{key}=[{value}]')} for a list", f"{_written(key, value, option)} for a text"]
        raise InputError("is more than one value", where=where, value=word, allowed=" or ".join(ways) or "one value")
    return found


def _unreadable(overrides: Sequence[str], place: int, error: Exception, where: str, option: str) -> InputError:
    word = overrides[place]
    key, equals, value = word.partition("=")
    if not equals and not word.startswith("~"):
        allowed = _KEY_VALUE
        name, colon, rest = word.partition(":")
        if colon and rest.strip():
            allowed = f"{name.strip()}={rest.strip()}"
        elif place and "=" in overrides[place - 1]:
            before, _, begun = overrides[place - 1].partition("=")
            allowed += f"; if it goes on what stands before it: {_written(before, f'{begun} {word}', option)}"
        return InputError("is no key=value", where=where, value=word, allowed=allowed)
    match = _KEY.match(key)
    end = match.end() if match else 0
    if end < len(key) or not key.strip("+~"):
        shown = key[end : end + 1]
        named = "a blank" if shown.isspace() else repr(shown)
        problem = f"has {named} in its key" if shown else "has no key"
        plain = re.sub(r"\[(\d+)\]", r".\1", key.replace(" ", "").lstrip("-!"))
        return InputError(problem, where=where, value=word, allowed=f"{plain}={value.strip()}" if plain else _KEY_VALUE)
    if any(not part for part in key.lstrip("+~").partition("@")[0].split(".")):
        return InputError("has a dot too many in its key", where=where, value=word, allowed=_KEY_VALUE)
    if isinstance(error.__cause__, HydraException) and "unction" in str(error):
        problem = f"has a function in its value ({_one_line(error.__cause__).partition(' Available')[0]})"
        return InputError(problem, where=where, value=word, allowed=_written(key, value, option))
    unclosed = [pair for pair in ("[]", "{}") if value.count(pair[0]) > value.count(pair[1]) and value[0] in "[{"]
    if unclosed:
        problem = f"has a {unclosed[0][0]} that is not closed"
        return InputError(problem, where=where, value=word, allowed=_shell(word + unclosed[0][1]))
    both = re.fullmatch(r"([^'\"\[{]*?) +([+~]?[A-Za-z_][\w./]*=.*)", value)
    if both is not None:
        apart = f"two arguments, if it is two: {_shell(f'{key}={both[1]}')} {_shell(both[2])}"
        allowed = f"{apart}; if it is one: {_written(key, value, option)}"
        return InputError("has a second = in it", where=where, value=word, allowed=allowed)
    at = _offending(error, len(key) + 1)
    named = repr(word[at]) if at < len(word) else "its end"
    return InputError(
        f"cannot be read at {named} (character {min(at, len(word)) + 1})", where=where, value=word,
        allowed=f"quotes around what has such characters: {_written(key, value, option)}",
    )  # fmt: skip


def _offending(error: Exception, begin: int) -> int:
    """Where in the override its first character is that the grammar has no place for."""
    cause = error.__cause__
    start = getattr(cause, "startIndex", None)
    token = getattr(cause, "offendingToken", None)
    if start is None and token is not None:
        start = token.start
    return begin if start is None else int(start)


def _written(key: str, value: str, option: str) -> str:
    """The override with its value quoted, as one writes it on the command line."""
    if not option:
        return _shell(f"{key}={_quoted_list(value) or _quoted(value)}")
    # Split once more, as by a shell, when it is read: double quotes inside single ones are what a person would write.
    return f"{option} {_shell(f'{key}={shlex.quote(_quoted_list(value) or _quoted(value, first=chr(34)))}')}"


def _quoted(value: str, first: str = "'") -> str:
    """The value as a text in Hydra's quotes. first: of the two kinds, the one to take unless it is in the text."""
    bare = value.strip().strip("'\"") if value.strip()[:1] in ("'", '"') else value
    other = '"' if first == "'" else "'"
    quote = other if first in bare and other not in bare else first
    # Hydra's grammar: backslashes count double in front of a quote, the closing one included.
    inside = re.sub(rf"(\\*){quote}", rf"\1\1\\{quote}", bare)
    return quote + re.sub(r"(\\+)$", r"\1\1", inside) + quote


def _quoted_list(value: str) -> str:
    """A flat list with quotes around the items that need some; empty where the value is no such list."""
    inner = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    if inner is None:
        return ""
    items = [item.strip() for item in inner[1].split(",")]
    return "[" + ",".join(item if re.fullmatch(r"[\w./:@$%*+-]+", item) else _quoted(item) for item in items) + "]"


def _shell(text: str) -> str:
    """The text as one word of a shell, quoted as a person would."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    if "'" not in text:
        return f"'{text}'"
    if set(text) & set("!$`"):  # a shell reads these between double quotes as well
        return shlex.quote(text)
    return '"' + re.sub(r"([\\\"])", r"\\\1", text) + '"'


def _no_choice(error: MissingConfigException, parsed: Sequence[Override], where: str) -> InputError:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.rpartition("/")
    asked = next((one for one in parsed if f"{one.key_or_group}/{one.value()!s}" == missing), None)
    if asked is not None:
        group, name = asked.key_or_group, str(asked.value())
    folders = _group(group, ObjectType.GROUP)
    inside = [f"{folder}/{one}" for folder in folders for one in _group(f"{group}/{folder}")]
    options = ", ".join([*error.options, *inside]) if error.options else None
    a_path = "/" in name and name.partition("/")[0] not in folders
    if options and (a_path or re.search(r"\.\w{2,5}$", name)):
        options += f"; a file is given by {group}.path"
    return InputError("no such choice", where=where, key=group, value=name, allowed=options)


def _in_words(error: Exception, compose: Compose, parsed: Sequence[Override], where: str) -> InputError:
    """What composing said, with the override that is to blame and what there is in its place."""
    told = _one_line(error.__cause__ if isinstance(error.__cause__, HydraException) else error)
    if isinstance(error, OmegaConfBaseException):
        return _reference(error, where)
    named = _NAMED.search(told)
    culprit = next((one for one in parsed if named and _same(one.key_or_group, named[1])), None)
    if told.startswith("Config group override must be"):
        culprit = next((one for one in parsed if not isinstance(one.value(), str | list) and _options(one)), None)
        if culprit is not None:
            return InputError(
                "no such choice", where=where, key=culprit.key_or_group, value=culprit.value(),
                allowed=_options(culprit),
            )  # fmt: skip
    if told.startswith("Error merging override"):
        line = told.removeprefix("Error merging override").strip()
        culprit = next((one for one in parsed if one.input_line == line), None)
        if culprit is not None:
            key = culprit.key_or_group
            return InputError(
                "is no section, and a section stands there", where=where, key=key, value=culprit.value(),
                allowed=f"{key}.KEY=VALUE, +{key}.KEY=VALUE for a new key, or ~{key}.KEY to leave one out",
            )  # fmt: skip
    if told.startswith("Multiple values for"):
        culprit = next((one for one in parsed if one.is_add() and _options(one)), culprit)
    if culprit is None:
        return InputError(told, where=where)
    key, value = culprit.key_or_group, culprit.value()
    if culprit.is_delete():
        if "does not exist" in told:
            there = _keys(compose, parsed, culprit)
            return InputError("is not there to be left out", where=where, key=f"~{key}", allowed=there or None)
        return InputError("has another value", where=where, key=f"~{key}", value=value, allowed=f"~{key}")
    if culprit.is_add() or "already" in told:
        line = (culprit.input_line or "").lstrip("+")
        return InputError("is there already", where=where, key=f"+{key}", value=value, allowed=f"{line}, without the +")
    keys = _keys(compose, parsed, culprit)
    allowed = ", ".join(keys)
    if _options(culprit):
        problem = "is a group of files that this configuration does not use"
    elif others := _elsewhere(compose, culprit):
        problem, allowed = "unknown key of what was chosen", f"beside {others}; or {allowed}"
    else:
        near = difflib.get_close_matches(key, keys, 1, 0.75)
        problem = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
        allowed += f"; +{culprit.input_line} adds a key"
    return InputError(problem, where=where, key=key, value=value, allowed=allowed or None)


def _same(key: str, named: str) -> bool:
    return key == named or named.startswith(f"{key}@")


def _without(compose: Compose, parsed: Sequence[Override], culprit: Override) -> DictConfig | None:
    """The configuration without the override that is to blame; failing that, with the choices alone, or none."""
    rest = [one for one in parsed if one is not culprit]
    for some in (rest, [one for one in rest if _options(one)], []):
        try:
            return compose([str(one.input_line) for one in some])
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
    return None


def _keys(compose: Compose, parsed: Sequence[Override], culprit: Override) -> list[str]:
    """The keys beside the one that is to blame, in full."""
    tree, path = _without(compose, parsed, culprit), culprit.key_or_group.split(".")[:-1]
    if tree is None:
        return []
    while path:
        section = OmegaConf.select(tree, ".".join(path), throw_on_missing=False)
        if isinstance(section, DictConfig):
            return [".".join((*path, str(key))) for key in section]
        path = path[:-1]
    return [str(key) for key in tree]


def _elsewhere(compose: Compose, culprit: Override) -> str:
    """The choices of the key's group that have such a key, as an override; empty where there are none."""
    group, _, rest = culprit.key_or_group.partition(".")
    found = []
    for choice in _group(group) if rest else ():
        try:
            section = compose([f"{group}={choice}"]).get(group)
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
        if isinstance(section, DictConfig) and rest.partition(".")[0] in list(section):
            found.append(choice)
    return f"{group}={'|'.join(found)}" if found else ""


def _options(override: Override) -> list[str]:
    return _group(override.key_or_group)


def _group(name: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    """The choices of a configuration group, or its folders; none where it is no group."""
    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(name, kind, overrides=[SHIPPED_GROUPS])) if name else []


def _reference(error: OmegaConfBaseException, where: str) -> InputError:
    key, told = str(error.full_key or ""), _one_line(error)
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        allowed = "${KEY} of this configuration, ${oc.env:NAME} of the environment, or \\${ for the text itself"
        return InputError(f"refers to what is not there ({told})", where=where, key=key, allowed=allowed)
    return InputError(told, where=where, key=key)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_NOISE))
