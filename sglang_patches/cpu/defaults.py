"""SGLang's CPU platform with the defaults that let a bare launch command start on an ordinary machine."""

from __future__ import annotations

import os

from sglang.srt.platforms.cpu import CpuSRTPlatform

from sglang_patches.cpu import threads
from sglang_patches.needs.objects import ServerArgs

DEFAULT_KV_TOKENS = 65_536
"""Token slots of the KV cache where the user names none.

SGLang's own default fills most of the host's memory with KV cache and touches every page of it before it serves. This
many tokens are 0.4 GB for a model of 44M parameters and 8 GB for one of 8B with grouped queries (layers x KV heads x
head dimension x 2 x 2 bytes = 131 kB a token); a host with less memory than that still gets what SGLang measures. A
judgement: more holds more memory of a machine that does other things, less refuses or retracts more requests.
"""


class RooflineCpuPlatform(CpuSRTPlatform):  # type: ignore[misc]  # SGLang is not typed
    """`CpuSRTPlatform` plus defaults; what the user sets on the command line or in the environment stays."""

    def apply_server_args_defaults(self, server_args: ServerArgs) -> None:
        """Fill in the KV pool size, who runs experts and the cores of each rank.

        SGLang calls this while it resolves arguments, before it looks at the model.
        """
        if server_args.device != "cpu":
            return
        if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
            server_args.max_total_tokens = DEFAULT_KV_TOKENS
        if server_args.moe_runner_backend == "auto":
            # gpt-oss would take a package of kernels for GPUs, with its weights laid out for them; in CPU mode a layer
            # of experts runs in torch whatever is named here.
            server_args.moe_runner_backend = "triton"
        # SGLang imports this class while `utils.common` is only half imported.
        from sglang.srt.utils.common import get_cpu_ids_by_node

        ranks = server_args.tp_size * server_args.pp_size * server_args.dp_size
        threads.share_among_ranks(os.environ, ranks=ranks, numa_nodes=len(get_cpu_ids_by_node()))
