"""Requests followed from batch to batch. Stand-ins take the place of SGLang's requests; modes are SGLang's own."""

from types import SimpleNamespace

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.slo.objectives import ItlKind, Slo
from roofline_policies.slo.running_targets import AIM
from sglang_patches.requests.progress import Progress

PACED = Slo(ttft_s=2.0, itl_s=0.1)


class Request:
    def __init__(self, prompt_tokens, received_s=0.0, output_tokens=0):
        self.prompt_tokens, self.extend_end = prompt_tokens, prompt_tokens
        self.output_ids = [7] * output_tokens
        self.time_stats = SimpleNamespace(scheduler_recv_time=received_s, prefill_finished_time=0.0)
        self.is_retracted, self.finished_reason = False, None

    def finished(self):
        return self.finished_reason is not None


class Server:
    """Forms batches as the scheduler does, and tells their result at once or, under overlap, after the next launch."""

    def __init__(self, slo=PACED, drafts=False, slo_of=None):
        self.progress, self.iteration, self.now_s = Progress(slo, slo_of, drafts=drafts), 0, 0.0

    def launch(self, mode, reqs, context_tokens, chunked_req=None, decoding_reqs=None, ends_s=0.0):
        self.iteration += 1
        batch = SimpleNamespace(
            forward_mode=mode, reqs=list(reqs), chunked_req=chunked_req, decoding_reqs=decoding_reqs,
            forward_iter=self.iteration,
        )  # fmt: skip
        self.progress.launched(batch, context_tokens, ends_s)
        return batch

    def finish(self, batch):
        for request in batch.reqs:
            if request is not batch.chunked_req and not request.finished() and not request.is_retracted:
                request.output_ids.append(7)
                request.time_stats.prefill_finished_time = request.time_stats.prefill_finished_time or self.now_s
        self.progress.finished(batch)

    def prefill(self, *reqs, chunked_req=None):
        self.finish(self.launch(SglangMode.EXTEND, reqs, sum(r.extend_end for r in reqs), chunked_req))

    def decode(self, *reqs):
        context = sum(r.prompt_tokens + len(r.output_ids) for r in reqs)
        self.finish(self.launch(SglangMode.DECODE, reqs, context))

    @property
    def slack_s(self):
        return self.progress.slack_s(self.now_s)


def test_from_the_first_token_on_the_next_is_due_as_the_targets_say():
    server, request = Server(), Request(100, received_s=5.0)
    assert server.slack_s is None
    server.now_s = 6.0
    server.prefill(request)
    assert server.slack_s == pytest.approx(5.0 + 2.0 + 0.1 - 6.0)
    server.decode(request)
    server.now_s = 7.5
    assert server.slack_s == pytest.approx(7.2 - 7.5)  # late


def test_without_a_target_for_the_first_token_it_is_due_when_it_comes():
    server, request = Server(Slo(itl_s=0.1)), Request(100, received_s=5.0)
    server.now_s = 9.0
    server.prefill(request)
    server.decode(request)
    assert server.slack_s == pytest.approx(0.2)


@pytest.mark.parametrize(("slo", "drafts"), [(Slo(), False), (Slo(ttft_s=2.0), False), (PACED, True)])
def test_nothing_is_due_without_a_target_or_where_drafts_are_verified(slo, drafts):
    server, request = Server(slo, drafts), Request(100)
    server.prefill(request)
    server.decode(request)
    assert server.slack_s is None
    assert server.progress.context_tokens == 101


def test_a_prompt_part_way_through_its_chunks_does_not_run():
    server, short, long = Server(), Request(100), Request(3000)
    long.extend_end = 412
    server.prefill(short, long, chunked_req=long)
    assert server.progress.context_tokens == 100
    assert server.slack_s == pytest.approx(2.1)
    long.extend_end, long.time_stats.scheduler_recv_time = 3000, -1.0
    server.prefill(long)
    assert server.progress.context_tokens == 3100
    assert server.slack_s == pytest.approx(1.1)
    server.decode(short, long)
    assert server.progress.context_tokens == 3102


def test_a_mixed_step_gives_a_token_to_the_rows_it_takes_along():
    server, runs, comes, chunked = Server(), Request(100), Request(50, received_s=10.0), Request(3000)
    server.prefill(runs)
    chunked.extend_end = 200
    reqs = [comes, chunked, runs]
    batch = server.launch(SglangMode.MIXED, reqs, 50 + 200 + 101, chunked_req=chunked, decoding_reqs=[runs])
    assert server.progress.context_tokens == 151
    server.finish(batch)
    assert server.slack_s == pytest.approx(2.2)
    runs.finished_reason = "length"
    assert server.slack_s == pytest.approx(12.1)
    comes.finished_reason = "length"
    assert server.slack_s is None


def test_under_overlap_a_result_comes_after_the_next_launch():
    server, request = Server(), Request(100)
    prefill = server.launch(SglangMode.EXTEND, [request], 100)
    decode = server.launch(SglangMode.DECODE, [request], 101)
    assert server.slack_s is None  # no token has come yet
    server.finish(prefill)
    assert server.slack_s == pytest.approx(2.1)
    server.finish(decode)
    assert server.slack_s == pytest.approx(2.2)


@pytest.mark.parametrize("slo", [PACED, Slo(itl_s=0.1)])
def test_a_retracted_request_comes_back_with_the_tokens_it_had(slo):
    server, stays, goes = Server(slo), Request(100), Request(100, received_s=-1.0)
    server.now_s = 0.5
    server.prefill(goes)
    server.now_s = 1.0
    server.prefill(stays)
    server.decode(stays, goes)
    goes.is_retracted = True
    server.progress.retracted(goes)
    server.decode(stays)
    first_s = 2.0 if slo.ttft_s else 1.0
    assert server.slack_s == pytest.approx(first_s + 0.3 - 1.0)
    goes.is_retracted = False
    server.prefill(goes)  # its prompt and two tokens once more, and a third
    assert len(goes.output_ids) == 3
    first_s = 1.0 if slo.ttft_s else 0.5
    assert server.slack_s == pytest.approx(first_s + 0.3 - 1.0)


def test_one_retracted_before_its_first_token_came_does_not_run():
    server, request = Server(), Request(100)
    prefill = server.launch(SglangMode.EXTEND, [request], 100)
    request.is_retracted = True
    server.progress.retracted(request)
    server.finish(prefill)
    assert server.slack_s is None


def test_a_pause_ends_everything():
    server, request = Server(), Request(100)
    server.prefill(request)
    server.progress.clear()
    assert (server.slack_s, server.progress.context_tokens) == (None, 0)


def promised(request):
    """What each request was promised, by the length of its prompt."""
    return {100: Slo(itl_s=0.1), 50: Slo(itl_s=0.025), 70: Slo(itl_s=0.2, itl_kind="mean_tpot"), 90: Slo()}[
        request.prompt_tokens
    ]


def test_the_tightest_of_what_running_requests_were_promised_is_told():
    server = Server(Slo(), slo_of=promised)
    assert server.progress.need(0.0, 0.01, 1) == (None, None, None)
    slow, fast, mean, none = Request(100), Request(50), Request(70), Request(90)
    server.now_s = 1.0
    server.prefill(slow, none)
    assert server.progress.need(1.0, 0.01, 1) == (0.1, None, None)
    server.prefill(fast, mean)
    gap_s, mean_s, due_s = server.progress.need(1.0, 0.01, 1)
    assert (gap_s, mean_s, due_s) == (0.025, 0.2, pytest.approx(AIM * 0.2))
    server.decode(slow, fast, mean, none)
    assert server.progress.need(1.0, 0.01, 1).due_s == pytest.approx(AIM * 0.4)
    fast.finished_reason = "length"
    server.progress.retracted(mean)
    assert server.progress.need(1.0, 0.01, 1) == (0.1, None, None)
    server.progress.clear()
    assert server.progress.need(1.0, 0.01, 1) == (None, None, None)


def test_until_its_first_token_comes_a_request_needs_what_it_will_when_the_step_ends():
    """Under overlap the next step is decided before; the token of this one comes when it ends, not when it starts."""
    server, mean = Server(Slo(), slo_of=promised), Request(70)
    batch = server.launch(SglangMode.EXTEND, [mean], 70, ends_s=4.0)
    need = server.progress.need(1.5, 0.01, 1)
    assert need == (None, 0.2, pytest.approx(4.0 + AIM * 0.2 - 1.5))
    server.now_s = 4.5  # later than expected
    server.finish(batch)
    assert server.progress.need(4.5, 0.01, 1).due_s == pytest.approx(AIM * 0.2)


def test_a_first_token_that_is_expected_too_late_is_followed_once_it_came_in_time_after_all():
    server, request = Server(Slo(), slo_of=lambda request: PACED), Request(100, received_s=1.0)
    for ends_s, came_s, expected, found in [(2.9, 3.1, 0.1, None), (3.1, 2.9, None, 0.1), (2.9, 2.9, 0.1, 0.1)]:
        server.progress.clear()
        request.time_stats.prefill_finished_time = 0.0
        batch = server.launch(SglangMode.EXTEND, [request], 100, ends_s=ends_s)
        assert server.progress.need(2.5, 0.01, 1).gap_s == expected
        server.now_s = came_s
        server.finish(batch)
        assert server.progress.need(3.1, 0.01, 1).gap_s == found


def test_a_prompt_part_way_through_its_chunks_needs_nothing_yet():
    server, long = Server(Slo(), slo_of=promised), Request(50)
    long.extend_end = 30
    server.prefill(long, chunked_req=long)
    assert server.progress.need(0.0, 0.01, 1).gap_s is None
    server.prefill(long)
    assert server.progress.need(0.0, 0.01, 1).gap_s == 0.025


def test_nothing_is_needed_where_nobody_tells_what_was_promised():
    server = Server(Slo(itl_s=0.1))
    server.prefill(Request(50))
    assert server.progress.need(0.0, 0.01, 1) == (None, None, None)


def test_with_drafts_a_step_ends_a_gap_and_brings_as_many_tokens_as_are_accepted_in_the_mean():
    mean = Slo(itl_s=0.1, itl_kind=ItlKind.MEAN_TPOT)
    server, request, other = Server(Slo(), drafts=True, slo_of=lambda request: mean), Request(50), Request(50)
    server.now_s = 1.0
    server.prefill(request)
    for tokens in (2.5, 3.0, 1.5):
        batch = server.launch(SglangMode.DECODE, [request, other], 100)
        server.progress.finished(batch, tokens)
    # 1 token of the prompt and 7 of three steps: beyond the horizon the ninth is due after eight targets.
    assert server.progress.need(1.0, 0.01, 1).due_s == pytest.approx(AIM * 0.1 * 8)
    assert server.progress.slack_s(1.0) is None
    paced = Server(Slo(itl_s=0.1), drafts=True, slo_of=lambda request: Slo(itl_s=0.1))
    paced.prefill(Request(50))
    assert paced.progress.need(0.0, 0.01, 1) == (0.1, None, None)
    assert paced.progress.slack_s(0.0) is None


def test_requests_that_bring_their_first_token_along_are_followed_from_there():
    """On a server that only decodes no prompt is seen; the first token came from another one."""
    promised = Slo(itl_s=0.1)
    server = Server(Slo(ttft_s=2.0, itl_s=0.1), slo_of=lambda request: promised)
    request = Request(100, received_s=5.0, output_tokens=1)
    server.progress.joined([request], now_s=6.0)
    server.now_s = 6.0
    assert server.slack_s == pytest.approx(5.0 + 2.0 + 0.1 - 6.0)
    assert server.progress.need(6.0, 0.01, 1).gap_s == 0.1
    server.decode(request)
    assert server.slack_s == pytest.approx(7.2 - 6.0)
    untimed = Server(Slo(itl_s=0.1))
    untimed.progress.joined([Request(100, output_tokens=1)], now_s=6.0)
    untimed.now_s = 6.0
    assert untimed.slack_s == pytest.approx(0.1)
