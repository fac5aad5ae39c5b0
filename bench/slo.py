"""The service-level objective a request is held to: one for the server, and others for classes of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.checks import choice, number, only, optional_number, section
from roofline_policies.errors import InputError
from roofline_policies.slo.objectives import ItlKind, Slo

LIMITS = ("ttft_s", "itl_s", "itl_kind", "e2e_s")
"""What a class can have of its own, beside its weight."""


@dataclass(frozen=True, slots=True)
class JudgedSlo(Slo):
    """The SLO that a run is judged by: the server's own, and those of classes.

    gap_fraction: share of the gaps that must keep ``itl_s`` under PER_GAP.
    classes: by the priority of a request, what it is held to instead; whole, nothing in it is inherited any more.

    Raises:
        FieldError: a target that is not a number greater than zero.
    """

    gap_fraction: float = 0.99
    classes: Mapping[int, JudgedSlo] = field(default_factory=dict, hash=False)  # a mapping has no hash; it is compared

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> JudgedSlo:
        """The ``slo`` section. A class inherits what it leaves out; null in it is no limit.

        Raises:
            InputError: an unknown key, a value out of range, or a class that is no priority.
        """
        only(
            conf, "slo", (*LIMITS, "weight", "gap_fraction", "classes", "requests")
        )  # the last is a policy's: none asks here
        whole = cls._limits(conf, "slo")
        given = {} if conf.get("classes") is None else conf["classes"]
        allowed = "priority: {ttft_s, itl_s, itl_kind, e2e_s, weight}, with whole numbers as priorities"
        if not isinstance(given, Mapping):
            raise InputError("is not a section of classes", where="slo", key="classes", value=given, allowed=allowed)
        for priority in given:
            if isinstance(priority, bool) or not isinstance(priority, int):
                raise InputError("is no priority", where="slo", key="classes", value=priority, allowed=allowed)
        classes = {}
        for priority in sorted(given):
            where = f"slo.classes.{priority}"
            own = section({} if given[priority] is None else given[priority], where)
            only(own, where, (*LIMITS, "weight"))
            inherited = {key: conf[key] for key in (*LIMITS, "weight", "gap_fraction") if key in conf}
            classes[priority] = cls._limits({**inherited, **own}, where)
        return replace(whole, classes=classes)

    @classmethod
    def _limits(cls, conf: Mapping[str, Any], where: str) -> JudgedSlo:
        return cls(
            ttft_s=optional_number(conf, "ttft_s", where, above=0.0),
            itl_s=optional_number(conf, "itl_s", where, above=0.0),
            itl_kind=ItlKind(choice(conf, "itl_kind", where, [kind.value for kind in ItlKind])),
            e2e_s=optional_number(conf, "e2e_s", where, above=0.0),
            gap_fraction=number(conf, "gap_fraction", where, default=0.99, above=0.0, high=1.0),
            weight=number(conf, "weight", where, default=1.0, above=0.0),
        )

    def for_priority(self, priority: int | None) -> JudgedSlo:
        """What a request of this priority is held to: its class, else what holds for the server."""
        return self if priority is None else self.classes.get(priority, self)

    @property
    def weighted(self) -> bool:
        """Whether anything counts for other than 1."""
        return any(one.weight != 1.0 for one in (self, *self.classes.values()))

    def overrides(self) -> tuple[str, ...]:
        """This SLO as overrides of a policy's configuration, so that a policy aims at what it is judged by.

        No override holds a blank or a quote, so they can be joined for ``--policy-set``.
        """
        own = tuple(f"slo.{key}={value}" for key, value in self._written().items())
        if self.weighted:  # of a configuration of the user's own, too, which may not have the key
            own = (*own, f"++slo.weight={self.weight}")
        if not self.classes:
            return own
        # With a plus: hydra takes keys that the file does not have only in what is added, and adds to what is there.
        classes = (
            f"{priority}:{{{','.join(f'{key}:{value}' for key, value in one._written(self.weighted).items())}}}"
            for priority, one in self.classes.items()
        )
        return (*own, f"+slo.classes={{{','.join(classes)}}}")

    def _written(self, weighted: bool = False) -> dict[str, str]:
        limits = {"ttft_s": self.ttft_s, "itl_s": self.itl_s, "e2e_s": self.e2e_s}
        written = {key: "null" if limit is None else str(limit) for key, limit in limits.items()}
        return {**written, "itl_kind": str(self.itl_kind), **({"weight": str(self.weight)} if weighted else {})}

    def described(self) -> dict[str, Any]:
        """Ready for JSON; the classes by their priorities as text."""
        own = {key: getattr(self, key) for key in (*LIMITS, "weight", "gap_fraction")}
        of_class = (*LIMITS, "weight")
        classes = {
            str(priority): {key: getattr(one, key) for key in of_class} for priority, one in self.classes.items()
        }
        return {**own, "classes": classes}

    def __str__(self) -> str:
        itl = f"ITL <= {self.itl_s} s" if self.itl_s is not None else ""
        if itl:
            share = f"{self.gap_fraction:.0%} of gaps" if self.itl_kind is ItlKind.PER_GAP else "mean per request"
            itl += f" ({share})"
        ttft = f"TTFT <= {self.ttft_s} s" if self.ttft_s is not None else ""
        e2e = f"E2E <= {self.e2e_s} s" if self.e2e_s is not None else ""
        own = ", ".join(part for part in (ttft, itl, e2e) if part) or "none"
        own += f", weight {self.weight:g}" if self.weight != 1.0 else ""
        return "; ".join([own, *(f"priority {priority}: {one}" for priority, one in self.classes.items())])
