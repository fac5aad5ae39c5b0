"""Every attribute that is read or set is looked for by its name. Engine* classes stand in for SGLang's."""

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

import msgspec
import pytest
from sglang.srt.managers.schedule_batch import Req

from roofline_policies.errors import IncompatibleServer
from sglang_patches.needs import drafting, layers, objects
from sglang_patches.needs.attributes import declared, missing, needed, readers, verify_classes, verify_live
from sglang_patches.needs.classes import CLASSES, LIVE, OTHER_CLASSES
from sglang_patches.needs.objects import Batch, ServerArgs

HERE = __name__


class Mixin:
    def late(self):
        (self.of_a_tuple, [self.of_a_list]) = 1, [2]


class EngineBase:
    __slots__ = ("__dict__", "slot")
    of_the_class = 1
    only_annotated: int

    def __init__(this):
        this.under_another_name = 1
        for this.of_a_loop in ():
            pass

    @property
    def computed(self):
        other = SimpleNamespace()
        other.elsewhere = self.only_read
        return other


class EngineScheduler(Mixin, EngineBase):
    class Inner:
        def __init__(self):
            self.of_the_inner_class = 1

    def grow(self):
        if self.computed:
            self.under_a_condition: int = 1
        self.counted += 1
        with open(__file__) as self.of_a_with:

            def later():
                self.of_a_nested_function = 1

        return later


@dataclass(slots=True)
class EngineField:
    field: int
    with_default: int = 3


class EngineStruct(msgspec.Struct):
    member: int
    of_the_struct: int = 1


def test_what_a_class_has_is_read_from_its_source_its_bases_and_its_mixins():
    found = declared(EngineScheduler)
    assert found >= {
        "late", "of_a_tuple", "of_a_list", "slot", "of_the_class", "under_another_name", "of_a_loop", "computed",
        "under_a_condition", "counted", "of_a_with", "of_a_nested_function", "grow",
    }  # fmt: skip
    assert found.isdisjoint({"only_annotated", "elsewhere", "only_read", "of_the_inner_class"})
    assert declared(EngineScheduler.Inner) >= {"of_the_inner_class"}
    assert declared(EngineField) >= {"field", "with_default"}
    assert declared(EngineStruct) >= {"member", "of_the_struct"}


def test_what_is_there_is_there_on_a_real_object():
    """The other way round: what a constructed request has, the class is known to have."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    request = Req("a", "", [1, 2, 3], SamplingParams(max_new_tokens=1))
    assert vars(request).keys() <= declared(Req)


class Needs(Protocol):
    slot: int
    computed: int

    def grow(self) -> None: ...


def test_a_protocol_needs_what_it_declares_itself():
    class More(Needs, Protocol):
        more: int

    assert needed(Needs) == {"slot", "computed", "grow"}
    assert needed(More) == {"more"}


def test_the_installed_version_fits():
    verify_classes({**CLASSES, **OTHER_CLASSES})


EVERY = [(kind, name) for kind in {**CLASSES, **OTHER_CLASSES} for name in sorted(needed(kind))]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind.__name__}.{name}" for kind, name in EVERY])
def test_each_attribute_that_goes_missing_is_named_and_has_a_reader(kind, name, monkeypatch):
    stand_in = type("EngineWithout", (), dict.fromkeys(needed(kind) - {name}))
    monkeypatch.setitem(globals(), "stand_in", stand_in)
    target = f"{HERE}.stand_in"
    assert missing(kind, target) == [name]
    with pytest.raises(IncompatibleServer) as raised:
        verify_classes({kind: target})
    assert readers(name)
    assert str(raised.value) == f"SGLang 0.5.23 lacks {target}.{name} (read by {', '.join(readers(name))})"


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    monkeypatch.setitem(globals(), "stand_in", type("EngineWithout", (), dict.fromkeys(needed(Batch) - {"reqs"})))
    with pytest.raises(IncompatibleServer, match=r"stand_in\.page_size .*stand_in\.tp_size .*stand_in\.reqs "):
        verify_classes({ServerArgs: f"{HERE}.stand_in", Batch: f"{HERE}.stand_in"})
    with pytest.raises(IncompatibleServer, match=r"nowhere: not found in SGLang 0\.5\.23"):
        verify_classes({Batch: f"{HERE}.nowhere"})


def built():
    """A scheduler with all that is looked at on a built one, under the classes of this file."""
    found = {path: SimpleNamespace(**dict.fromkeys(needed(kind))) for path, kind in LIVE.items()}
    for path in sorted(LIVE, key=len):
        holder, _, name = path.rpartition(".")
        if path:
            setattr(found[holder], name, found[path])
    return found


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, kind in LIVE.items() for name in sorted(needed(kind))]
)
def test_a_built_scheduler_is_looked_at_object_by_object(path, name):
    parts = built()
    verify_live(parts[""])
    delattr(parts[path], name)
    with pytest.raises(IncompatibleServer, match=rf"^SGLang 0\.5\.23 lacks types\.SimpleNamespace\.{name} \(read by "):
        verify_live(parts[""])


def test_every_protocol_has_its_class():
    protocols = {
        kind
        for module in (objects, drafting, layers)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__
    } - {layers.QuantizedLayer}  # SGLang sets its attribute where it needs it
    assert protocols == CLASSES.keys() | OTHER_CLASSES.keys()
