"""One rank of two stages of a pipeline, as a process of its own. Arguments: rank, its itl_s, a file for torch's store.

Prints whether it found the other, and what was missing first.
"""

import sys
from datetime import timedelta
from types import SimpleNamespace

import torch.distributed as dist

from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.server import company

PATIENCE_S = 60.0


def main(rank: int, itl_s: float, path: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE_S)
    )
    company.ranks = lambda: SimpleNamespace(tp_size=1, pp_size=2, attn_tp_size=1, attn_cp_size=1, attn_dp_rank=0)
    if rank == 1:
        dist.barrier()  # the first has looked in vain by then
    found = company.of_this_rank(Objectives(Slo(itl_s=itl_s)))
    assert found is not None
    found.complete(0.0)
    first = found.problem
    if rank == 0:
        dist.barrier()
    dist.barrier()  # both have left their mark
    print(found.complete(2.0), first, found.problem, sep="|")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
