"""What other attention ranks run in the same step, from what SGLang's own gathering holds."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers.scheduler_components.dp_attn import MLPSyncBatchInfo
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from sglang_patches.observe import peers
from sglang_patches.observe.clocks import HostInterval
from sglang_patches.observe.observer import Observer
from tests.sglang_patches.stand_ins import MODEL, StandInBatch

PREFILL, DECODE, IDLE = SglangMode.EXTEND.value, SglangMode.DECODE.value, SglangMode.IDLE.value


@pytest.fixture
def told(monkeypatch):
    """What a rank knows after SGLang's own rows of all ranks were gathered; own: which rank it is."""

    def after(rows, own):
        infos = [
            MLPSyncBatchInfo(
                num_dp_ranks=len(rows), tp_size=1, cp_size=1, num_tokens=tokens, num_tokens_for_logprob=tokens,
                can_run_decode_cuda_graph=True, can_run_draft_cuda_graph=True, can_run_prefill_cuda_graph=True,
                is_extend_in_batch=mode == PREFILL, local_can_run_tbo=False, local_forward_mode=mode,
            )
            for tokens, mode in rows
        ]  # fmt: skip
        info = infos[own]
        info.tp0_info_cpu = torch.stack([one._get_local_tensor(device="cpu") for one in infos])
        info.global_num_tokens = info.tp0_info_cpu[:, 0].tolist()
        monkeypatch.setattr(peers, "PEERS", peers.Peers())
        monkeypatch.setattr(peers, "get_parallel", lambda: SimpleNamespace(attn_dp_rank=own))
        peers.all_gather(None, info, "cpu", None)
        return peers.PEERS.decoding, peers.PEERS.prefilling

    return after


def test_rows_that_decode_elsewhere_are_counted_and_prompts_are_noticed(told):
    rows = [(512, PREFILL), (7, DECODE), (0, IDLE), (5, DECODE)]
    assert told(rows, own=0) == (12, False)
    assert told(rows, own=1) == (5, True)
    assert told(rows, own=2) == (12, True)


def test_a_rank_that_is_alone_has_no_peers(told):
    assert told([(9, DECODE)], own=0) == (0, False)


@pytest.mark.parametrize(("mode", "alone"), [(SglangMode.DECODE, False), (SglangMode.EXTEND, True)])
def test_the_time_of_a_decode_step_beside_prompts_elsewhere_is_not_its_own(monkeypatch, mode, alone):
    monkeypatch.setattr(peers.PEERS, "prefilling", True)
    observer = Observer(MODEL, interval=HostInterval)
    batch = StandInBatch(mode, [4], [0], [4])
    observer.launch(batch)
    observer.forward_starts()
    observer.forward_ends()
    observer.launched(batch)
    observer.finish(batch, SimpleNamespace(can_run_cuda_graph=False), 1.0)
    (record,) = observer.records()
    assert record.alone is alone
