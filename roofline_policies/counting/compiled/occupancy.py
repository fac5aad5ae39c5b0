"""A counting twin under ``triton.jit``: audited when it is compiled, and kept from costing a resident block."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any

from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from roofline_policies.counting.compiled.audit import audit, traced_again
from roofline_policies.counting.compiled.machine_code import SM_LIMITS, Compilation, MachineCodeError, read
from roofline_policies.counting.rewriting.source import LEDGER
from roofline_policies.counting.rewriting.twin import Rewritten
from roofline_policies.counting.sites import Audit

logger = logging.getLogger(__name__)


class CountingFunction(JITFunction):  # type: ignore[misc]  # Triton is not typed
    """A counting twin under ``triton.jit``.

    A few registers more can be one too many for as many blocks as the original has on a multiprocessor. So when a twin
    is compiled for CUDA the original is compiled too (or found in Triton's cache), and where fewer blocks of the twin
    fit, it is compiled again with ``maxnreg``; that is kept unless it spills more.

    sources: what it and its helpers were rewritten from. audits: one for each time it was compiled counting.
    """

    def __init__(
        self, function: FunctionType, original: JITFunction, sources: Mapping[str, Rewritten], **options: Any
    ) -> None:
        super().__init__(function, **options)
        self._original = original
        self._sources = sources
        self.audits: list[Audit] = []

    @property
    def cache_key(self) -> str:
        """As Triton's; and the globals that were compiled in are those of the original, which may change under it."""
        key: str = JITFunction.cache_key.fget(self)
        mine, its = self.fn.__globals__, self._original.fn.__globals__
        self.used_global_vals: dict[tuple[str, int], tuple[Any, dict[str, Any]]] = {
            place: (value, its if where is mine and place[0] in its else where)
            for place, (value, where) in self.used_global_vals.items()
        }
        return key

    def _do_compile(
        self, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: bool
    ) -> Any:
        kernel = super()._do_compile(key, signature, device, constexprs, options, attrs, warmup)
        target = self.device_caches[device][2]
        if isinstance(kernel, CompiledKernel):
            self.audit(Compilation(kernel, ASTSource(self, signature, constexprs, attrs), options, target))
        if not isinstance(kernel, CompiledKernel) or target.backend != "cuda" or target.arch not in SM_LIMITS:
            return kernel
        # Functions among the arguments are counting ones; the original would take others.
        if options.maxnreg is not None or any(isinstance(value, JITFunction) for value in constexprs.values()):
            return kernel
        source = ASTSource(
            self._original,
            {name: kind for name, kind in signature.items() if name in self._original.arg_names},
            {path: value for path, value in constexprs.items() if path[0] < len(self._original.params)},
            {path: value for path, value in attrs.items() if path[0] < len(self._original.params)},
        )
        try:
            return self._keep_blocks(kernel, source, key, signature, device, constexprs, options, attrs, warmup)
        except (MachineCodeError, OSError, subprocess.SubprocessError):  # no cuobjdump: a block may be lost, no launch
            return kernel

    def audit(self, compiled: Compilation) -> Audit | None:
        """Hold what was compiled against what was counted while it was traced; None where it counts nothing.

        Never raises: the launch goes on, and the failure is in the audit.
        """
        if compiled.source.signature.get(LEDGER) == "constexpr":  # compiled without a ledger
            return None
        name = self._original.fn.__qualname__
        try:
            traced = traced_again(compiled.source, compiled.options, compiled.target)
            told = audit(name, traced, compiled.kernel.asm["ttir"], self._sources)
        except Exception as error:
            told = Audit(name, failure=f"{type(error).__name__}: {error}".splitlines()[0])
        self.audits.append(told)
        if told.problems:
            logger.warning(f"Counts of {name} are not exact: {told.problems[0]}")
        return told

    def _keep_blocks(
        self,
        kernel: CompiledKernel,
        source: ASTSource,
        key: Any,
        signature: Any,
        device: Any,
        constexprs: Any,
        options: Any,
        attrs: Any,
        warmup: bool,
    ) -> CompiledKernel:
        """``kernel``, or the same held to the registers of the original (``source``) where that saves a block."""
        target = self.device_caches[device][2]
        original = read(self.compile(source, target=target, options=options.__dict__), capability=target.arch)
        twin = read(kernel, capability=target.arch)
        if twin.resident_blocks >= original.resident_blocks:
            return kernel
        capped = replace(options, maxnreg=original.registers)
        held = super()._do_compile(key, signature, device, constexprs, capped, attrs, warmup)
        if read(held, capability=target.arch).spill_store_bytes <= twin.spill_store_bytes:
            return held
        self.device_caches[device][0][key] = kernel
        return kernel
