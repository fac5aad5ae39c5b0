"""How a server was told its policy, and from where it takes another one while it runs."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.policies.base import Policy
from roofline_policies.settings.loading import AUTO, SHIPPED, Settings, load
from roofline_policies.settings.policy_loader import OWN_PACKAGES

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z]\w*)", re.ASCII)

_PLAIN = (
    "key=value with a plain value or the name of a choice: no path ('/', '\\', '..'), no interpolation ('${'), no "
    "_target_, nothing under hydra"
)


class NotAllowed(InputError):
    """Something that the operator may say when the server is launched, and a client may not."""


def words(overrides: str) -> list[str]:
    """The overrides in one text, quoted as in a shell.

    Raises:
        InputError: a quotation that does not end.
    """
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise InputError(str(error), where="--policy-set", value=overrides) from error


@dataclass(frozen=True)
class Launched:
    """What a server was launched with, and what holds of it until the server ends.

    policy, overrides, packages: as they were given. settings: with the ceilings in use.
    check: raises InputError for settings that this server cannot have.
    """

    policy: str | Policy
    overrides: str
    packages: tuple[str, ...]
    settings: Settings
    check: Callable[[Settings], None]

    def again(self, policy: str | None = None, overrides: str | None = None) -> Settings:
        """The settings read anew, or from elsewhere; None: as at launch. Checked as at launch.

        Raises:
            NotAllowed: a source or an override that a client may not name.
            InputError: anything in it that cannot be used, or that cannot change while the server runs.
        """
        if policy is not None and policy != self.policy:
            self._check_source(policy)
        at_launch = overrides is None or overrides == self.overrides
        asked = words(self.overrides if overrides is None else overrides)
        if not at_launch:
            for word in asked:
                _check_override(word)
        try:
            settings = load(self.policy if policy is None else policy, overrides=asked, packages=self.packages)
        except SystemExit as error:  # a module of the user's; the server must outlive it
            raise InputError("ends the process", where="policy", value=policy or self.policy) from error
        self.check(settings)
        return self._kept(settings)

    def _check_source(self, source: str) -> None:
        if source in SHIPPED:
            return
        reference = _REFERENCE.fullmatch(source)
        if reference is not None and not Path(source).exists():
            if self._is_theirs(*reference.groups()):
                return
        elif ":" not in source and self._is_beside(source):
            return
        raise NotAllowed(
            "may not be named while the server runs", where="policy", value=source, allowed=self._sources()
        )

    def _sources(self) -> Iterator[str]:
        yield "what the server was launched with"
        yield from SHIPPED
        if self._folder() is not None:
            yield "a .yaml file in the folder of the one it was launched with"
        for package in self.packages:
            yield f"{package}...:attribute, defined there"

    def _folder(self) -> Path | None:
        """Where the policy file of the launch lies, links followed."""
        source = self.policy
        if not isinstance(source, str) or source in SHIPPED or not source.endswith(".yaml"):
            return None
        return Path(source).resolve().parent

    def _is_beside(self, source: str) -> bool:
        """Whether a path leads to a .yaml file in that folder itself, whatever links and dots are on the way."""
        try:
            path = Path(source).resolve()
        except (OSError, RuntimeError, ValueError):  # a null byte, a loop of links
            return False
        return Path(source).suffix == path.suffix == ".yaml" and path.parent == self._folder()

    def _is_theirs(self, module: str, attribute: str) -> bool:
        """Whether a reference leads into a package that the operator named, and to something that was made there, not
        to what a module there has imported: whatever can be called is called."""
        if not _within(module, self.packages):
            return False
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception:
            return True  # load says what is wrong with it, as at launch
        return _within(str(getattr(found, "__module__", "")), (*self.packages, *OWN_PACKAGES))

    def _kept(self, settings: Settings) -> Settings:
        """With what the server was launched with where that cannot change: ceilings, their price, the predictor, the
        record, what is learned. What leaves them open (auto, null) has them; what asks for others is refused.

        Raises:
            InputError: they differ.
        """
        launch = self.settings
        efficiency = launch.efficiency if settings.efficiency == AUTO else settings.efficiency
        for key, asked, there in (
            ("hardware", _priced(settings.ceilings, settings.usd_per_h, launch), launch.ceilings),
            ("efficiency", efficiency, launch.efficiency),
            ("record", settings.record or launch.record, launch.record),
            ("learned", launch.learned if settings.learned in (None, AUTO) else settings.learned, launch.learned),
        ):
            if asked != there:
                raise InputError(
                    "cannot change while the server runs", where=settings.source, key=key, value=_named(asked),
                    allowed=f"{_named(there)}, as at launch",
                )  # fmt: skip
        return replace(
            settings, ceilings=launch.ceilings, usd_per_h=launch.usd_per_h, efficiency=launch.efficiency,
            record=launch.record, learned=launch.learned,
        )  # fmt: skip


def _priced(ceilings: Ceilings | None, usd_per_h: float | None, launch: Settings) -> Ceilings | None:
    asked = ceilings or launch.ceilings
    return asked if asked is None or usd_per_h is None else replace(asked, usd_per_h=usd_per_h)


def _named(value: Any) -> Any:
    """What an error calls it: coefficients and ceilings fill pages."""
    if isinstance(value, Ceilings):
        price = "" if value.usd_per_h is None else f" at {value.usd_per_h:g} USD per hour"
        return f"{value.device} ({value.source}){price}"
    return getattr(value, "device", value)


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _check_override(word: str) -> None:
    """Refuse overrides that read files or the environment, or that choose what is imported.

    Raises:
        NotAllowed: it is none of the plain ones.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return  # load says what is wrong with it, as at launch
    places = (override.key_or_group, override.package or "")
    value = override.value()
    hidden = any(re.split(r"[./]", place)[0] == "hydra" for place in places)
    if (
        hidden
        or any(part in word for part in ("${", "_target_", "\\", ".."))
        or not all(_plain(leaf) for leaf in _leaves(value))
    ):
        raise NotAllowed("may not be set while the server runs", where="set", value=word, allowed=_PLAIN)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _plain(value: object) -> bool:
    return value is None or isinstance(value, int | float) or "/" not in str(value)
