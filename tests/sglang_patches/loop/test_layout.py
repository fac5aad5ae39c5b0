"""Which knobs move on which layout. Stand-ins take the place of SGLang's Scheduler; arguments are real at the end."""

import re
from types import SimpleNamespace

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import ServerArgs

from roofline_policies.contract.decision import Knob, Knobs, Range
from sglang_patches.loop.layout import launch_knobs, launch_ranges, not_counted, reasons
from tests import ROOT
from tests.sglang_patches.stand_ins import StandInSpeculation, arguments, stand_in_scheduler

NOT_YET = {Knob.SPECULATION_WINDOW, Knob.QUANT_TIER}
"""Knobs that no server of this version can move."""

ORDER = {Knob.DEADLINE_ORDER, Knob.RELEGATE_FOR_S}
OF_BOTH = {Knob.DEFENDED_FROM_US, Knob.NEW_TOKEN_PERMILLE, Knob.DEFER_PREFILL, Knob.MIXED_CHUNK}
OF_DECODE = {Knob.MAX_RUNNING_REQUESTS, *OF_BOTH}
OF_PREFILL = {*ORDER, Knob.PREFILL_CHUNK_TOKENS, *OF_BOTH}


def idle(**fields):
    """The knobs that a server of this layout cannot move, but for those that none can."""
    return set(reasons(stand_in_scheduler(**fields))) - NOT_YET


def test_the_launch_setting_is_the_upper_end_and_a_page_the_lower():
    scheduler = stand_in_scheduler()
    assert launch_knobs(scheduler) == Knobs(64, 2048)
    ranges, immovable, _ = launch_ranges(scheduler)
    assert ranges == {
        Knob.MAX_RUNNING_REQUESTS: Range(1, 64), Knob.PREFILL_CHUNK_TOKENS: Range(64, 2048, 64),
        Knob.RELEGATE_FOR_S: Range(0, 3600), Knob.DEFENDED_FROM_US: Range(0, 10**9),
        Knob.NEW_TOKEN_PERMILLE: Range(0, 1000, 10),
    }  # fmt: skip
    assert set(immovable) == NOT_YET


@pytest.mark.parametrize(
    ("fields", "knobs"),
    [
        ({}, set()),
        ({"disaggregation_mode": DisaggregationMode.PREFILL}, OF_DECODE),
        ({"disaggregation_mode": DisaggregationMode.DECODE}, OF_PREFILL),
        ({"disaggregation_mode": "one that nobody foresaw"}, OF_DECODE | OF_PREFILL),
        ({"server_args": arguments(enable_pd_role_switch=True)}, OF_DECODE | OF_PREFILL),
        ({"is_generation": False}, OF_DECODE),
        ({"server_args": arguments(dllm_algorithm="LowConfidence")}, OF_PREFILL),
        (
            {"server_args": arguments(enable_pdmux=True)},
            OF_PREFILL - ORDER - {Knob.DEFENDED_FROM_US, Knob.NEW_TOKEN_PERMILLE},
        ),
        ({"server_args": arguments(pp_size=4)}, set()),
        ({"new_token_ratio_tracker": SimpleNamespace(init=0.5, min=0.5)}, {Knob.NEW_TOKEN_PERMILLE}),
        ({"server_args": arguments(pp_size=4, enable_dynamic_chunking=True)}, {Knob.PREFILL_CHUNK_TOKENS}),
        ({"server_args": arguments(enable_dynamic_chunking=True)}, set()),  # SGLang itself has no use for it there
        ({"server_args": arguments(attn_dp_size=8)}, set()),
        ({"server_args": arguments(attn_dp_size=8, enable_prefill_delayer=True)}, {Knob.DEFER_PREFILL}),
        ({"server_args": arguments(enable_lora=True)}, set()),
        ({"chunked_prefill_size": None}, {Knob.PREFILL_CHUNK_TOKENS, Knob.MIXED_CHUNK}),
        ({"server_args": arguments(schedule_policy="lpm")}, ORDER),
        ({"enable_priority_scheduling": True}, ORDER),
        ({"spec_algorithm": StandInSpeculation("ngram")}, {Knob.MIXED_CHUNK}),
        ({"spec_algorithm": StandInSpeculation("eagle", mixes=True)}, set()),
        ({"server_args": arguments(enable_two_batch_overlap=True)}, {Knob.MIXED_CHUNK}),
        ({"server_args": arguments(enable_hisparse=True)}, {Knob.MIXED_CHUNK}),
        ({"server_args": arguments(attn_cp_size=2)}, {Knob.MIXED_CHUNK}),
        ({"server_args": arguments(enable_megamoe_for_layernorm_sp=True)}, {Knob.MIXED_CHUNK}),
        ({"server_args": arguments(enable_encoder_swa_bounded_replay=True)}, {Knob.MIXED_CHUNK}),
    ],
)
def test_exactly_what_nothing_would_follow_is_idle(fields, knobs):
    assert idle(**fields) == knobs
    ranges, immovable, _ = launch_ranges(stand_in_scheduler(**fields))
    assert not ranges.keys() & immovable.keys()
    assert set(ranges) | set(immovable) >= set(Knob) - {
        Knob.DEFER_PREFILL, Knob.MIXED_CHUNK, Knob.DEADLINE_ORDER,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "knob", "reason"),
    [
        ({"disaggregation_mode": DisaggregationMode.PREFILL}, Knob.MAX_RUNNING_REQUESTS, "--disaggregation-mode"),
        ({"disaggregation_mode": DisaggregationMode.DECODE}, Knob.PREFILL_CHUNK_TOKENS, "--disaggregation-mode"),
        ({"is_generation": False}, Knob.DEFER_PREFILL, "--is-embedding"),
        ({"chunked_prefill_size": None}, Knob.PREFILL_CHUNK_TOKENS, "chunked prefill is off"),
        ({"spec_algorithm": StandInSpeculation("ngram")}, Knob.MIXED_CHUNK, "--speculative-algorithm"),
        ({"server_args": arguments(schedule_policy="lpm")}, Knob.RELEGATE_FOR_S, "--schedule-policy"),
        ({"server_args": arguments(attn_dp_size=2, enable_prefill_delayer=True)}, Knob.DEFER_PREFILL, "vote"),
        ({}, Knob.SPECULATION_WINDOW, "nothing drafts (--speculative-algorithm)"),
        ({"spec_algorithm": StandInSpeculation("eagle")}, Knob.SPECULATION_WINDOW, "--speculative-num-steps"),
        ({}, Knob.QUANT_TIER, "one precision"),
    ],
)
def test_the_reason_names_what_the_operator_can_change(fields, knob, reason):
    assert reason in reasons(stand_in_scheduler(**fields))[knob]


def test_the_first_of_several_reasons_is_told():
    scheduler = stand_in_scheduler(is_generation=False, chunked_prefill_size=None)
    assert "nothing decodes" in reasons(scheduler)[Knob.MIXED_CHUNK]


def test_pages_and_tiles_are_both_kept():
    ranges, _, _ = launch_ranges(stand_in_scheduler(page_size=96))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(192, 2048, 192)
    ranges, _, _ = launch_ranges(stand_in_scheduler(chunked_prefill_size=32))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(16, 32, 16)


def test_deterministic_inference_sets_the_grain_of_chunks():
    ranges, _, _ = launch_ranges(stand_in_scheduler(truncation_align_size=256))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(256, 2048, 256)


def test_what_runs_beside_what_is_counted_has_a_name():
    assert not_counted(stand_in_scheduler()) == ()
    for changed, name in (
        ({"enable_lora": True}, "LoRA adapters"), ({"attn_dp_size": 2}, "the other attention ranks' rows"),
        ({"dllm_algorithm": "LowConfidence"}, "denoising steps that are repeated"),
        ({"enable_pdmux": True}, "prefill that shares the device with decode"),
    ):  # fmt: skip
        assert not_counted(stand_in_scheduler(server_args=arguments(**changed))) == (name,)
    pictures = SimpleNamespace(is_multimodal=True)
    assert not_counted(stand_in_scheduler(model_config=pictures)) == ("encoders of images, audio and video",)


@pytest.mark.parametrize(
    "launch",
    [
        {"tp_size": 2, "dp_size": 2}, {"tp_size": 4, "dp_size": 2, "enable_dp_attention": True}, {"pp_size": 4},
        {"tp_size": 8, "ep_size": 8}, {"tp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"},
        {"tp_size": 16, "nnodes": 2, "dist_init_addr": "127.0.0.1:5000"}, {"enable_lora": True}, {"is_embedding": True},
        {"disaggregation_mode": "prefill"}, {"disaggregation_mode": "decode"},
    ],
    ids=lambda launch: " ".join(f"{key}={value}" for key, value in launch.items()),
)  # fmt: skip
def test_the_arguments_of_every_layout_are_read_and_none_ends_the_launch(launch):
    scheduler = stand_in_scheduler(server_args=ServerArgs(model_path="nowhere", **launch))
    ranges, immovable, _ = launch_ranges(scheduler)
    assert Knob.MAX_RUNNING_REQUESTS in ranges
    assert set(immovable) == NOT_YET


PREFILLS, DECODES = DisaggregationMode.PREFILL, DisaggregationMode.DECODE
ROWS = {
    "`--tp-size`, `--ep-size`": [{"server_args": arguments(attn_dp_size=2, pp_size=2, enable_lora=True)}],
    "`--disaggregation-mode prefill`": [{"disaggregation_mode": PREFILLS}],
    "`--disaggregation-mode decode`": [{"disaggregation_mode": DECODES}],
    "`--enable-pd-role-switch`": [
        {"server_args": arguments(enable_pd_role_switch=True), "disaggregation_mode": mode}
        for mode in (PREFILLS, DECODES)
    ],
    "`--is-embedding`": [{"is_generation": False}],
    "`--dllm-algorithm`": [{"server_args": arguments(dllm_algorithm="LowConfidence")}],
    "`--enable-pdmux`": [{"server_args": arguments(enable_pdmux=True)}],
    "`--attn-dp-size` with": [{"server_args": arguments(attn_dp_size=2, enable_prefill_delayer=True)}],
    "`--pp-size` with": [{"server_args": arguments(pp_size=2, enable_dynamic_chunking=True)}],
    "`--chunked-prefill-size -1`": [{"chunked_prefill_size": None}],
    "`--schedule-policy` other": [
        {"server_args": arguments(schedule_policy="lpm")}, {"enable_priority_scheduling": True},
    ],
    "`--speculative-algorithm` STANDALONE, NGRAM": [{"spec_algorithm": StandInSpeculation("ngram")}],
    "`--enable-two-batch-overlap`": [
        {"server_args": arguments(**{name: value})} for name, value in (
            ("enable_two_batch_overlap", True), ("enable_hisparse", True), ("attn_cp_size", 2),
            ("enable_megamoe_for_layernorm_sp", True), ("enable_encoder_swa_bounded_replay", True),
        )
    ],
}  # fmt: skip
"""Servers of each row of the table in docs/layouts.md, by how the row begins."""


def documented():
    """The rows of that table: the layout, and the knobs that idle there."""
    page = (ROOT / "docs" / "layouts.md").read_text().partition("## Which knobs idle")[2].partition("## What binds")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    every = {knob.value for knob in OF_DECODE | OF_PREFILL}
    return [(row[0], every if row[1] == "all" else set(re.findall(r"`(\w+)`", row[1]))) for row in rows[1:]]


def test_the_documented_table_is_what_servers_do():
    rows = documented()
    assert len(rows) == len(ROWS)
    for (begins, servers), (layout, knobs) in zip(ROWS.items(), rows, strict=True):
        assert layout.startswith(begins)
        for fields in servers:
            assert {knob.value for knob in idle(**fields)} == knobs, layout
