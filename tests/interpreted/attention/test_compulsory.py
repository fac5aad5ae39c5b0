"""Compulsory bytes: the distinct addresses of the cache that attention loads, against closed forms and the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from bench.kernels import attention, closed_forms
from bench.kernels.attention import Case
from roofline_policies.model.batch import BatchShape
from roofline_policies.work import Precision
from tests.interpreted import oracle
from tests.interpreted.attention.of_model import LAYERS, attention_part, model


class SeenIn(oracle.Seen):
    """An oracle's record that keeps apart the addresses loaded from each of some tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._ranges = {}
        for name, tensor in tensors.items():
            start = tensor.untyped_storage().data_ptr()
            self._ranges[name] = (start, start + tensor.untyped_storage().nbytes())
        self._within = {name: oracle.AddressSet() for name in tensors}
        self.bytes_within = dict.fromkeys(tensors, 0)

    def load(self, pointers: Any, mask: Any) -> None:
        super().load(pointers, mask)
        addresses, element_bytes = oracle.active_addresses(pointers, mask)
        for name, (start, end) in self._ranges.items():
            inside = addresses[(addresses >= start) & (addresses < end)]
            self._within[name].add(inside, element_bytes)
            self.bytes_within[name] += inside.size * element_bytes

    def unique(self, name: str) -> int:
        """Distinct bytes loaded from that tensor."""
        return self._within[name].byte_count


@contextlib.contextmanager
def oracle_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[SeenIn]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "Seen", lambda: SeenIn(tensors))
        with oracle.counting_oracle() as seen, np.errstate(all="ignore"):
            assert isinstance(seen, SeenIn)
            yield seen


def loaded_of_cache(case: Case) -> tuple[int, int]:
    """Bytes loaded from the cache, keys and values together: lanes, and distinct."""
    tensors = {name: case.inputs[name] for name in ("k_buffer", "v_buffer")}
    if case.shape.v_aliases_k:
        del tensors["v_buffer"]  # the same addresses
    with oracle_of(tensors) as seen:
        case.launch()
    return sum(seen.bytes_within.values()), sum(seen.unique(name) for name in tensors)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (20, 1)])
@pytest.mark.parametrize("shared", [0, 1, 33])
@pytest.mark.parametrize("page_size", [1, 16])
def test_decode_touches_the_compulsory_bytes_and_no_other(heads, kv_heads, shared, page_size):
    """Each slot once per KV head, shared ones once for all requests; the model counts them per request.

    The model leaves the newest token out, whose KV the same pass has written; the kernel reads it back.
    """
    lengths, shared = (40, 70, 64), shared // page_size * page_size
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": 16}
    case = attention.decode(lengths, **sizes, dtype=torch.float16, shared_prefix=shared, page_size=page_size)
    loaded, unique = loaded_of_cache(case)
    slots = sum(lengths) - shared * (len(lengths) - 1)
    assert unique == closed_forms.compulsory_kv_bytes(case.shape, slots) == closed_forms.compulsory_load_bytes(case)
    assert loaded == next(iter(closed_forms.of_case(case).values())).kv_bytes

    shape = model(**sizes, precision=Precision.FP16)
    part = attention_part(shape, BatchShape.of(decode_contexts=lengths))
    a_token = shape.kv_bytes_per_token
    assert unique * LAYERS == part.compulsory.read + a_token * (len(lengths) - shared * (len(lengths) - 1))
    assert loaded * LAYERS == part.requested.read * -(-heads // kv_heads // 16 if heads > kv_heads else -1)


@pytest.mark.parametrize("heads", [1, 4, 17])
@pytest.mark.parametrize("shared", [0, 20])
def test_decode_over_a_latent_cache_touches_it_once(heads, shared):
    case = attention.decode_mla((40, 21), heads=heads, max_kv_splits=2, dtype=torch.float16, shared_prefix=shared)
    loaded, unique = loaded_of_cache(case)
    assert unique == closed_forms.compulsory_kv_bytes(case.shape, 61 - shared)
    assert unique == (61 - shared) * 576 * 2
    tiles = 1 if heads < 17 else 2
    assert loaded == tiles * 61 * 576 * 2 + (61 * 512 * 2 if heads == 1 else 0)


def test_a_window_makes_fewer_slots_compulsory():
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float16}
    case = attention.decode((40, 9), **sizes, sliding_window=16)
    assert loaded_of_cache(case)[1] == closed_forms.compulsory_kv_bytes(case.shape, 16 + 9)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("shared", [0, 30])
def test_extend_touches_the_compulsory_bytes_and_no_other(shared, unified):
    """Prefixes from the cache, as the model says; new tokens from tensors of their own, or from the cache too."""
    prefix, new, sizes = (40, 70), (65, 5), {"heads": 4, "kv_heads": 2, "head_dim": 16}
    case = attention.extend(prefix, new, **sizes, dtype=torch.float16, shared_prefix=shared, unified=unified)
    _, unique = loaded_of_cache(case)
    slots = sum(prefix) - shared + (sum(new) if unified else 0)
    assert unique == closed_forms.compulsory_kv_bytes(case.shape, slots)
    assert closed_forms.compulsory_load_bytes(case) == closed_forms.compulsory_kv_bytes(
        case.shape, sum(prefix) + sum(new) - shared
    )

    shape = model(**sizes, precision=Precision.FP16)
    part = attention_part(shape, BatchShape.of(prefill=list(zip(new, prefix, strict=True))))
    read_back = sum(new) if unified else 0
    assert unique * LAYERS == part.compulsory.read + shape.kv_bytes_per_token * (read_back - shared)


def test_new_keys_are_read_from_tensors_of_their_own():
    case = attention.extend((40,), (65,), heads=4, kv_heads=2, head_dim=16, dtype=torch.float16)
    tensors = {name: case.inputs[name] for name in ("k_extend", "v_extend", "q")}
    with oracle_of(tensors) as seen:
        case.launch()
    loads = closed_forms.of_case(case)["_fwd_kernel"].loads
    assert {name: seen.unique(name) for name in tensors} == {name: tensors[name].nbytes for name in tensors}
    assert [seen.bytes_within[name] for name in tensors] == [loads["new_k"], loads["new_v"], loads["q"]]
