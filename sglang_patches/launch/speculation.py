"""What of a server's drafts can move, found while SGLang resolves its arguments, and made ready before the model loads.

SGLang is given the numbers of drafts as candidates of its own adaptive speculation: that sizes its buffers and has it
build what each of them needs. The file with the candidates is written from the policy's configuration.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolved_view, resolving_view
from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase
from sglang.srt.runtime_context import attn_dp_enabled_of

from roofline_policies.device.calibration_file import folder, temporary_folder, write_whole
from roofline_policies.errors import InputError, stop
from roofline_policies.settings.loading import Settings
from roofline_policies.settings.speculation import WINDOW_STAYS
from sglang_patches.drafts.window import PLAN, DraftPlan
from sglang_patches.hooks import SETTINGS
from sglang_patches.needs.objects import ServerArgs

STEP = "handle_speculative_decoding"
"""The step of SGLang's resolution that settles drafts."""

SOURCE = "roofline"
"""Under which SGLang keeps what is declared here."""

FROM_COMMAND_LINE = "_roofline_from_command_line"
"""Attribute of ServerArgs: a mistake ends the process with a message; without it, it is raised."""

CHAINS = ("EAGLE", "EAGLE3", "STANDALONE")
"""Algorithms that draft a chain or a tree with a model; NEXTN and MTP are EAGLE by then."""

_LEFT_TO_SGLANG = {
    "DSPARK": "left to SGLang: DSPARK plans by itself what of its drafts each step verifies",
    "DFLASH": "left to SGLang: DFLASH drafts a block at once, of the size that its model was trained for",
}

logger = logging.getLogger(__name__)

_registered: list[Callable[..., None]] = []


def register() -> None:
    """Have this process look at drafts whenever SGLang resolves arguments; a second call changes nothing."""
    if not _registered:
        _registered.append(register_resolution_hook(STEP)(resolve))


def resolve(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """SGLang's own step, and with a policy what it leaves open.

    Raises:
        InputError: the server cannot be launched like this.
    """
    settings: Settings | None = getattr(server_args, SETTINGS, None)
    if settings is None or resolving_view(server_args).speculative_algorithm is None:
        previous(server_args)
        return
    try:
        check_draft_folder(server_args)
        choose_chain(server_args, settings)
        previous(server_args)
        check_draft_model(server_args)
        plan = planned(server_args, settings)
        setattr(server_args, PLAN, plan)
        algorithm = resolving_view(server_args).speculative_algorithm
        if plan.reason is not None:
            logger.warning(f"Roofline: the number of drafts stays as {algorithm} was launched: {plan.reason}.")
        else:
            logger.info(f"Roofline: {algorithm} is made ready for {', '.join(map(str, plan.windows))} drafts per step.")
    except InputError as error:
        if not getattr(server_args, FROM_COMMAND_LINE, False):
            raise
        stop(error)


def check_algorithm(server_args: ServerArgs) -> None:
    """Nothing, if SGLang has the speculative algorithm that is asked for.

    Raises:
        InputError: it has none of that name.
    """
    name = server_args.speculative_algorithm
    if name is None:
        return
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    try:
        SpeculativeAlgorithm.from_string(name)
    except ValueError as error:
        known = [one.name for one in SpeculativeAlgorithm if not one.is_none()]
        raise InputError(
            "SGLang has no such algorithm", where="server", key="--speculative-algorithm", value=name,
            allowed=[*known, "NEXTN"],
        ) from error  # fmt: skip


def check_draft_folder(server_args: ServerArgs) -> None:
    """Raise InputError where the draft model is named by a path of this machine and nothing is there."""
    path = server_args.speculative_draft_model_path
    if path is not None and path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
        raise InputError(
            "there is no draft model", where="server", key="--speculative-draft-model-path", value=path,
            allowed="a folder with a model, or a name on the Hub",
        )  # fmt: skip


def choose_chain(server_args: ServerArgs, settings: Settings) -> None:
    """Where windows are listed and the launch says nothing of its drafts, they are chains, of the list's middle length.

    SGLang would choose trees for some models. The middle is what its adaptive speculation starts with.
    """
    windows, asked = settings.speculation.windows, resolving_view(server_args)
    said = (asked.speculative_num_steps, asked.speculative_eagle_topk, asked.speculative_num_draft_tokens)
    chains = str(asked.speculative_algorithm).upper() in (*CHAINS, "NEXTN")
    if isinstance(windows, tuple) and chains and said == (None, None, None) and not asked.speculative_adaptive:
        steps = windows[len(windows) // 2]
        declare_resolution(
            server_args, SOURCE,
            speculative_num_steps=steps, speculative_eagle_topk=1, speculative_num_draft_tokens=steps + 1,
        )  # fmt: skip


def check_draft_model(server_args: ServerArgs) -> None:
    """Nothing, if there is a model that drafts, with the target's vocabulary.

    Raises:
        InputError: there is none, or it has another one.
    """
    settled = resolving_view(server_args)
    algorithm, path = settled.speculative_algorithm, settled.speculative_draft_model_path
    if algorithm not in CHAINS:
        return
    missing = InputError(
        "has no draft model", where="server", key="--speculative-draft-model-path", value=None,
        allowed=f"the model that drafts for --speculative-algorithm {algorithm}",
    )  # fmt: skip
    if path is None and algorithm == "STANDALONE":
        raise missing
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.configs.model_config import ModelConfig

    target = model_config_of(server_args)
    draft = ModelConfig.from_server_args(
        server_args, model_path=path, model_revision=settled.speculative_draft_model_revision, is_draft_model=True
    )
    # A target that brings its own head is read as another architecture when it is to draft.
    if path is None and draft.hf_config.architectures == target.hf_config.architectures:
        raise missing
    if draft.vocab_size != target.vocab_size:
        raise InputError(
            "the draft model has another vocabulary than the target", where="server",
            key="--speculative-draft-model-path", value=path,
            allowed=f"a model with {target.vocab_size} tokens; this one has {draft.vocab_size}",
        )  # fmt: skip


def planned(server_args: ServerArgs, settings: Settings) -> DraftPlan:
    """What can move once SGLang has settled its arguments, declared to it where it is to be made ready.

    Raises:
        InputError: windows are listed that the server cannot be launched with.
    """
    settled, request, where = resolving_view(server_args), settings.speculation, settings.source
    listed = isinstance(request.windows, tuple)
    algorithm = settled.speculative_algorithm
    if settled.speculative_adaptive:
        if listed:
            raise _listed("SGLang moves them itself (--speculative-adaptive): leave out one of the two", settings)
        return DraftPlan(reason="SGLang moves it by itself (--speculative-adaptive)")
    if algorithm in CHAINS and settled.speculative_eagle_topk != 1:
        topk = settled.speculative_eagle_topk
        if listed:
            raise InputError(
                "drafts are trees, whose number cannot move", where="server", key="--speculative-eagle-topk",
                value=topk, allowed=f"1, or no speculation.windows in {where}",
            )  # fmt: skip
        return DraftPlan(reason=f"drafts are trees (--speculative-eagle-topk {topk})")
    if (reason := reason_not_to_move(server_args)) is not None:
        return DraftPlan(reason=reason)
    if request.windows is None:
        return DraftPlan(reason=WINDOW_STAYS)
    ngram = algorithm == "NGRAM"
    launched = settled.speculative_num_draft_tokens - 1 if ngram else settled.speculative_num_steps
    windows = request.of_launch(launched)
    if ngram and windows[-1] > launched:
        raise _listed(
            f"more than the {launched} drafts that the server was launched with (--speculative-num-draft-tokens "
            f"{launched + 1}, one of them no draft)", settings, f"0 to {launched}",
        )  # fmt: skip
    if launched not in windows:
        flag = f"--speculative-num-draft-tokens {launched + 1}" if ngram else f"--speculative-num-steps {launched}"
        raise _listed(f"lacks the {launched} drafts that the server is launched with ({flag})", settings)
    if not ngram:
        declare_resolution(server_args, SOURCE, speculative_adaptive=True, speculative_adaptive_config=written(windows))
    graphs = settled.cuda_graph_config
    if settled.device == "cpu" and graphs is not None:
        # A CPU captures nothing at the start. What makes each window ready asks the configuration, not the device.
        declare_resolution(
            server_args, SOURCE, cuda_graph_config=with_phase(graphs, Phase.DECODE, backend=Backend.DISABLED)
        )
    return DraftPlan(windows)


def reason_not_to_move(server_args: ServerArgs) -> str | None:
    """Why the number of drafts cannot be moved on this layout, whatever is asked; None where it can.

    Source: SGLang 0.5.23, ``adaptive_unsupported_reason``, ``validation_hook``, ``lora_hook``, ``hisparse_hook``, and
    the workers of ``SpeculativeAlgorithm.create_worker``.
    """
    settled, effective = resolving_view(server_args), resolved_view(server_args)
    algorithm = str(settled.speculative_algorithm)
    if algorithm in _LEFT_TO_SGLANG:
        return _LEFT_TO_SGLANG[algorithm]
    if algorithm not in (*CHAINS, "NGRAM"):
        return f"the number of drafts is fixed at launch with {algorithm} (--speculative-algorithm)"
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    others = (
        (SpeculativeAlgorithm.from_string(algorithm).get_platform_worker_cls() is not None, "the platform drafts"),
        (effective.enable_multi_layer_eagle, "each draft has a layer of its own (--enable-multi-layer-eagle)"),
        (attn_dp_enabled_of(effective), "attention ranks would draft differently (--attn-dp-size)"),
        (settled.pp_size > 1, "the stages of the pipeline relay a fixed number (--pp-size)"),
        (settled.enable_two_batch_overlap, "batches are split in two (--enable-two-batch-overlap)"),
        (settled.enable_pdmux, "prefill and decode run side by side (--enable-pdmux)"),
        (settled.enable_hisparse, "the KV cache is sparse (--enable-hisparse)"),
        (bool(settled.enable_lora or settled.lora_paths), "adapters are served (--enable-lora)"),
    )
    return next((why for holds, why in others if holds), None)


def written(windows: Sequence[int]) -> str:
    """Path of a file with these candidates, as --speculative-adaptive-config reads them: for every batch size alike.

    Beside the calibrations, under a name that says what is in it; elsewhere for a user who cannot write there.
    """
    name = f"speculation-{'-'.join(map(str, windows))}.json"
    content = json.dumps({"1": {"candidate_steps": list(windows)}}) + "\n"
    file = folder() / name
    try:
        write_whole(file, content)
    except OSError:
        file = temporary_folder() / name
        write_whole(file, content)
    return str(file)


def _listed(problem: str, settings: Settings, allowed: Any = None) -> InputError:
    windows = settings.speculation.windows
    value = list(windows) if isinstance(windows, tuple) else windows
    return InputError(problem, where=settings.source, key="speculation.windows", value=value, allowed=allowed)
