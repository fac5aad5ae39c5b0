"""Calls of public packages' own functions with small odd shapes, on the CPU: what they launch is compared.

Each is a name and the source of an expression, so that a package that lacks one loses no other. ``r(3, 37)`` is a
normal tensor that wants a gradient; what an expression returns is summed and taken backwards.
"""

from __future__ import annotations

CALLS: dict[str, tuple[str, ...]] = {
    "liger_kernel": (
        "rms_norm.LigerRMSNormFunction.apply(r(3, 37), r(37), 1e-6, 0.0, 'llama', False, None)",
        "rms_norm.LigerRMSNormFunction.apply(r(5, 64), r(64), 1e-6, 1.0, 'gemma', False, None)",
        "layer_norm.LigerLayerNormFunction.apply(r(3, 37), r(37), r(37), 1e-6)",
        "group_norm.LigerGroupNormFunction.apply(r(2, 6, 11), r(6), r(6), 6, 3, 1e-5)",
        "swiglu.LigerSiLUMulFunction.apply(r(3, 37), r(3, 37))",
        "swiglu.LigerSiLUMulFunction.apply(r(1, 1), r(1, 1))",
        "rms_norm.LigerRMSNormFunction.apply(r(1, 1), r(1), 1e-6, 0.0, 'none', False, None)",
        "rms_norm.LigerRMSNormFunction.apply(r(2, 3, 130), None, 1e-6, 0.0, 'llama', True, None)",
        "layer_norm.LigerLayerNormFunction.apply(r(1, 130), r(130), r(130), 1e-6)",
        "group_norm.LigerGroupNormFunction.apply(r(1, 2, 1), r(2), r(2), 2, 1, 1e-5)",
        "softmax.LigerSoftmaxFunction.apply(r(1, 1))",
        "jsd.LigerJSDFunction.apply(r(3, 41), r(3, 41), targets(3, 41) * 0 - 100, 0.0, -100)",
        "kl_div.LigerKLDivLossFunction.apply(r(3, 41), r(3, 41), 'none', True, 1e-10)",
        "tvd.LigerTVDLossFunction.apply("
        "r(3, 41).softmax(-1), r(3, 41).softmax(-1), targets(3, 41) * 0 - 100, 'none', -100)",
        "geglu.LigerGELUMulFunction.apply(r(3, 37), r(3, 37))",
        "softmax.LigerSoftmaxFunction.apply(r(3, 37))",
        "softmax.LigerSoftmaxFunction.apply(r(2, 60001))",
        "sparsemax.LigerSparsemaxFunction.apply(r(3, 37), -1)",
        "dyt.LigerDyTFunction.apply(r(3, 37), r(1), r(37), r(37))",
        "relu_squared.LigerReLUSquaredFunction.apply(r(3, 37))",
        "poly_norm.LigerPolyNormFunction.apply(r(3, 37), r(3), r(), 1e-6, False)",
        "fused_add_rms_norm.LigerFusedAddRMSNormFunction.apply(r(3, 37), r(3, 37), r(37), 1e-6, 0.0, 'llama', False)",
        "cross_entropy.LigerCrossEntropyFunction.apply(r(5, 37), targets(5, 37), None, -100)",
        "cross_entropy.LigerCrossEntropyFunction.apply(r(5, 37), targets(5, 37) * 0 - 100, None, -100)",
        "cross_entropy.LigerCrossEntropyFunction.apply("
        "r(5, 37), targets(5, 37), None, 3, 1e-4, 0.1, 'sum', 30.0, True)",
        "fused_linear_cross_entropy.LigerFusedLinearCrossEntropyFunction.apply(r(5, 16), r(37, 16), targets(5, 37))",
        "jsd.LigerJSDFunction.apply(r(5, 37), r(5, 37), targets(5, 37), 0.3, -100)",
        "kl_div.LigerKLDivLossFunction.apply(r(5, 37), r(5, 37).abs(), 'batchmean', False, 1e-10)",
        "tvd.LigerTVDLossFunction.apply(r(5, 37).softmax(-1), r(5, 37).softmax(-1), None, 'batchmean', -100)",
        "rope.LigerRopeFunction.apply(r(2, 4, 7, 16), r(2, 2, 7, 16), t(1, 7, 16), t(1, 7, 16))",
        "qwen2vl_mrope.LigerQwen2VLMRopeFunction.apply("
        "r(1, 4, 7, 16), r(1, 2, 7, 16), t(3, 1, 7, 16), t(3, 1, 7, 16), [2, 3, 3])",
        "llama4_rope.LigerLlama4RopeFunction.apply(r(1, 7, 4, 16), r(1, 7, 2, 16), torch.polar(t(7, 8), t(7, 8)))",
        "multi_token_attention.LigerMultiTokenAttentionFunction.apply("
        "r(1, 2, 9, 9), r(2, 2, 3, 3), None, 1, 1, 1, 1, False)",
        "fused_neighborhood_attention.LigerFusedNeighborhoodAttentionFunction.apply("
        "r(1, 2, 9, 16), r(1, 2, 9, 16), r(1, 2, 9, 16), 3, 1)",
        "grpo_loss.GrpoLossFunction.apply(r(2, 6, 37), t(2, 5, 37)[..., 0], t(2, 5), targets(10, 37).view(2, 5), "
        "torch.ones(2, 5), t(2), 0.9, 0.04, 0.2, 0.2, inplace=False)",
    ),
    "fla": (
        "ops.utils.cumsum.chunk_local_cumsum(t(1, 37, 2), 16)",
        "ops.utils.cumsum.chunk_global_cumsum(t(1, 37, 2))",
        "ops.gla.fused_recurrent_gla(r(1, 7, 2, 16), r(1, 7, 2, 16), r(1, 7, 2, 16), logs(1, 7, 2, 16))",
        "ops.gla.chunk_gla(r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16), logs(1, 37, 1, 16))",
        "ops.simple_gla.chunk_simple_gla(r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16), logs(1, 37, 1))",
        "ops.simple_gla.fused_recurrent_simple_gla(r(1, 7, 2, 16), r(1, 7, 2, 16), r(1, 7, 2, 16), logs(1, 7, 2))",
        "ops.retention.chunk_retention(r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16))",
        "ops.retention.fused_recurrent_retention(r(1, 7, 2, 16), r(1, 7, 2, 16), r(1, 7, 2, 16))",
        "ops.delta_rule.fused_recurrent_delta_rule("
        "r(1, 7, 2, 16), r(1, 7, 2, 16), r(1, 7, 2, 16), t(1, 7, 2).sigmoid())",
        "ops.gated_delta_rule.fused_recurrent_gated_delta_rule("
        "t(2, 5, 2, 24), t(2, 5, 2, 24), t(2, 5, 4, 19), g=t(2, 5, 4), output_final_state=True)",
        "ops.gated_delta_rule.fused_recurrent_gated_delta_rule("
        "t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16), g=t(1, 7, 2), beta=t(1, 7, 2).sigmoid())",
        "ops.gated_delta_rule.chunk_gated_delta_rule("
        "r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16), logs(1, 37, 1), t(1, 37, 1).sigmoid())",
        "ops.linear_attn.chunk_linear_attn(r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16))",
        "ops.hgrn.fused_recurrent_hgrn(r(1, 7, 37), logs(1, 7, 37))",
        "ops.hgrn.chunk_hgrn(r(1, 37, 37), logs(1, 37, 37))",
        "ops.attn.parallel.parallel_attn(r(1, 37, 2, 16), r(1, 37, 1, 16), r(1, 37, 1, 16))",
        "ops.attn.parallel.parallel_attn("
        "r(1, 37, 2, 16), r(1, 37, 1, 16), r(1, 37, 1, 16), cu_seqlens=torch.tensor([0, 5, 6, 37]))",
        "ops.rwkv6.fused_recurrent_rwkv6(r(1, 7, 2, 16), r(1, 7, 2, 16), r(1, 7, 2, 16), logs(1, 7, 2, 16), t(2, 16))",
        "ops.rwkv7.fused_recurrent_rwkv7("
        "t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16))",
        "ops.kda.fused_recurrent_kda("
        "t(1, 7, 2, 16), t(1, 7, 2, 16), t(1, 7, 2, 16), logs(1, 7, 2, 16), t(1, 7, 2).sigmoid())",
        "ops.gsa.fused_recurrent_gsa("
        "r(1, 7, 1, 16), r(1, 7, 1, 16), r(1, 7, 1, 16), r(1, 7, 1, 16), logs(1, 7, 1, 16))",
        "ops.based.parallel_based(r(1, 37, 1, 16), r(1, 37, 1, 16), r(1, 37, 1, 16))",
        "ops.rwkv4.fused_recurrent_rwkv4(r(37), r(37), r(2, 7, 37), r(2, 7, 37), t(2, 3, 1, 37))",
        "ops.utils.mean_pooling(r(1, 37, 2, 16), 8)",
        "ops.utils.softmax.softmax_fwd(t(5, 37))",
        "modules.rotary.rotary_embedding(r(1, 9, 2, 16), t(9, 8), t(9, 8))",
        "modules.layernorm.layer_norm(r(3, 37), r(37), r(37))",
        "modules.layernorm.rms_norm(r(3, 37), r(37), None)",
        "modules.l2norm.l2norm(r(3, 2, 37))",
        "modules.activations.swiglu(r(3, 37), r(3, 37))",
        "modules.fused_cross_entropy.cross_entropy_loss(r(5, 37), targets(5, 37))",
        "modules.convolution.causal_conv1d(r(1, 9, 32), r(32, 4), activation='silu')",
        "modules.convolution.causal_conv1d(r(2, 5, 33), r(33, 3), r(33))",
        "modules.token_shift.token_shift(r(2, 9, 37))",
        "modules.token_shift.token_shift(r(1, 9, 37), torch.tensor([0, 1, 1, 9]))",
        "modules.rotary.rotary_embedding(r(2, 5, 3, 24), t(9, 8), t(9, 8), interleaved=True)",
        "modules.rotary.rotary_embedding(r(2, 5, 3, 24), t(9, 8), t(9, 8), seqlen_offsets=3)",
        "modules.layernorm.layer_norm(r(1, 1), r(1), r(1))",
        "modules.layernorm.rms_norm(r(2, 5, 130), r(130), r(130))",
        "modules.layernorm.group_norm(r(5, 36), r(36), r(36), num_groups=3)",
        "modules.l2norm.l2norm(r(1, 1, 1))",
        "modules.activations.swish(r(3, 37))",
        "modules.activations.sigmoid(r(3, 37))",
        "modules.activations.logsigmoid(r(3, 37))",
        "modules.activations.powglu(r(3, 37), r(3, 37))",
        "modules.fused_cross_entropy.cross_entropy_loss(r(5, 37), targets(5, 37) * 0 - 100)",
        "modules.fused_cross_entropy.cross_entropy_loss("
        "r(3, 130), targets(3, 130), label_smoothing=0.1, lse_square_scale=1e-4)",
        "ops.utils.cumsum.chunk_local_cumsum(t(2, 19, 3, 5), 8, reverse=True)",
        "ops.utils.cumsum.chunk_global_cumsum(t(2, 19, 3, 5))",
        "ops.utils.cumsum.chunk_local_cumsum(t(1, 19, 2), 8, cu_seqlens=torch.tensor([0, 3, 4, 19]))",
        "ops.utils.mean_pooling(r(1, 37, 2, 16), 8, torch.tensor([0, 3, 4, 37]))",
        "ops.hgrn.fused_recurrent_hgrn(r(2, 3, 65), logs(2, 3, 65), t(2, 65), True)",
        "ops.attn.parallel.parallel_attn(r(1, 19, 4, 24), r(1, 19, 2, 24), r(1, 19, 2, 24), window_size=5)",
    ),
    "bitsandbytes": (
        "backends.triton.ops.quantize_blockwise(t(3000), torch.linspace(-1, 1, 256), 256)",
        "backends.triton.ops.dequantize_blockwise("
        "targets(3000, 256).to(torch.uint8), torch.rand(12), torch.linspace(-1, 1, 256), 256, torch.float32)",
        "backends.triton.ops.quantize_4bit(t(60, 50), 64, 'nf4', torch.uint8)",
        "backends.triton.ops.quantize_4bit(t(60, 50), 64, 'fp4', torch.uint8)",
        "backends.triton.ops.dequantize_4bit("
        "targets(1500, 256).to(torch.uint8).view(-1, 1), torch.rand(47), 64, 'nf4', (60, 50), torch.float32)",
        "backends.triton.ops.dequantize_4bit("
        "targets(1500, 256).to(torch.uint8).view(-1, 1), torch.rand(47), 64, 'fp4', (60, 50), torch.float32)",
        *(
            f"backends.triton.ops.optimizer_update_32bit('{name}', t(3001), t(3001), "
            f"t({'2, ' if name == 'ademamix' else ''}3001), "
            f"{'t(3001)' if name in ('adam', 'ademamix') else 'None'}, "
            "None, 0.0, 0.0, 0.9, 0.99, 0.0, 0.0, 1e-8, 0.01, 1, 1e-3, 1.0, False)"
            for name in ("adam", "momentum", "rmsprop", "adagrad", "lion", "ademamix")
        ),
        "backends.triton.ops.quantize_blockwise(t(1), torch.linspace(-1, 1, 256), 64)",
        "backends.triton.ops.quantize_blockwise(t(0), torch.linspace(-1, 1, 256), 64)",
        "backends.triton.ops.dequantize_blockwise("
        "targets(129, 256).to(torch.uint8), torch.rand(3), torch.linspace(-1, 1, 256), 64, torch.bfloat16)",
        "backends.triton.ops.quantize_4bit(t(1, 131), 128, 'nf4', torch.uint8)",
        "backends.triton.ops.dequantize_4bit("
        "targets(1, 256).to(torch.uint8).view(-1, 1), torch.rand(1), 64, 'nf4', (1, 1), torch.float32)",
    ),
    "unsloth": (
        "kernels.rms_layernorm.Fast_RMS_Layernorm.apply(r(2, 3, 37), r(37), 1e-6, False)",
        "kernels.rms_layernorm.Fast_RMS_Layernorm.apply(r(2, 3, 37), r(37), 1e-6, True)",
        "kernels.layernorm.Fast_Layernorm.apply(r(2, 3, 37), r(37), r(37), 1e-6)",
        "kernels.swiglu.swiglu_fg_kernel(t(2, 3, 37), t(2, 3, 37))",
        "kernels.swiglu.swiglu_DWf_DW_dfg_kernel(t(6, 37), t(6, 37), t(6, 37))",
        "kernels.geglu.geglu_exact_forward_kernel(t(2, 3, 37), t(2, 3, 37))",
        "kernels.geglu.geglu_approx_forward_kernel(t(2, 3, 37), t(2, 3, 37))",
        "kernels.geglu.geglu_exact_backward_kernel(t(6, 37), t(6, 37), t(6, 37))",
        "kernels.geglu.geglu_approx_backward_kernel(t(6, 37), t(6, 37), t(6, 37))",
        "kernels.cross_entropy_loss.Fast_CrossEntropyLoss.apply(r(5, 37), targets(5, 37), 0, 0)",
        "kernels.cross_entropy_loss.Fast_CrossEntropyLoss.apply(r(5, 37), targets(5, 37) * 0 - 100, 30.0, 0.5)",
        "kernels.cross_entropy_loss.Fast_CrossEntropyLoss.apply(r(2, 70001), targets(2, 70001), 0, 0)",
        "kernels.rms_layernorm.Fast_RMS_Layernorm.apply(r(1, 1, 1), r(1), 1e-6, False)",
        "kernels.rms_layernorm.Fast_RMS_Layernorm.apply(r(1, 2, 300), r(300), 1e-6, False)",
        "kernels.layernorm.Fast_Layernorm.apply(r(1, 1, 130), r(130), r(130), 1e-6)",
        "kernels.swiglu.swiglu_fg_kernel(t(1, 1, 1), t(1, 1, 1))",
        "kernels.geglu.geglu_exact_forward_kernel(t(1, 3, 1030), t(1, 3, 1030))",
        "kernels.rope_embedding.Fast_RoPE_Embedding.apply(r(2, 3, 5, 24), t(3, 24), t(3, 24))",
        "kernels.rope_embedding.Fast_RoPE_Embedding.apply(r(1, 7, 2, 16), t(7, 16), t(7, 16))",
    ),
    "torchao": (
        "kernel.intmm_triton.int_matmul_kernel(t(20, 32).to(torch.int8), t(32, 24).to(torch.int8), "
        "torch.empty(20, 24, dtype=torch.int32), kernel.intmm_triton.int8_mm_kernel_configs[0])",
        "kernel.intmm_triton.int_scaled_matmul_kernel(t(20, 128).to(torch.int8), t(128, 24).to(torch.int8), t(20, 1), "
        "torch.empty(20, 24), kernel.intmm_triton.int8_mm_kernel_configs[0])",
        "kernel.blockwise_quantization.fp8_blockwise_act_quant(t(6, 256), 128)",
        "kernel.blockwise_quantization.fp8_blockwise_weight_quant(t(256, 128), 128)",
        "kernel.blockwise_quantization.fp8_blockwise_weight_dequant(t(200, 256).to(torch.float8_e4m3fn), t(2, 2), 128)",
        "kernel.blockwise_quantization.fp8_blockwise_act_quant(t(0, 256), 128)",
        "prototype.blockwise_fp8_training.kernels.triton_fp8_blockwise_act_quant_transposed_lhs(t(256, 256))",
        "prototype.blockwise_fp8_training.kernels.triton_fp8_blockwise_weight_quant_transposed_rhs(t(256, 128))",
        "prototype.mx_formats.kernels.triton_mx_block_rearrange(targets(129 * 5, 250).to(torch.uint8).view(129, 5))",
        "prototype.blockwise_fp8_training.kernels.triton_fp8_blockwise_act_quant_lhs(t(6, 256))",
        "prototype.blockwise_fp8_training.kernels.triton_fp8_blockwise_act_quant_rhs(t(128, 256))",
        "prototype.blockwise_fp8_training.kernels.triton_fp8_blockwise_weight_quant_rhs(t(256, 256))",
        "prototype.quantized_training.int8_mm.scaled_int8_mm_cuda("
        "t(20, 32).to(torch.int8), t(32, 24).to(torch.int8), t(20), t(24))",
    ),
    "flashinfer": (
        "triton.activation.silu_and_mul(t(5, 74))",
        "triton.activation.silu_and_mul(t(1, 2))",
        "triton.activation.silu_and_mul(t(0, 74))",
        "triton.activation.silu_and_mul(t(3, 2100))",
        "triton.norm.rms_norm(t(1, 1), t(1), torch.empty(1, 1), 1e-6)",
        "triton.norm.rms_norm(t(3, 37), t(37), torch.empty(3, 37), 1e-6)",
        "triton.norm.rms_norm_add_residual(t(3, 37), t(3, 37), t(37), 1e-6)",
        "triton.kernels.cascade.merge_state_kernel[(5,)]("
        "t(5, 2, 13), t(5, 2), t(5, 2, 13), t(5, 2), t(5, 2, 13), t(5, 2), 2, 13, bdx=13, bdy=2)",
        "triton.kernels.cascade.merge_state_in_place_kernel[(5,)]("
        "t(5, 2, 13), t(5, 2), t(5, 2, 13), t(5, 2), 2, 13, None, bdx=13, bdy=2)",
        "triton.kernels.cascade.merge_state_in_place_kernel[(5,)]("
        "t(5, 2, 13), t(5, 2), t(5, 2, 13), t(5, 2), 2, 13, torch.tensor([1, 0, 1, 0, 0]), bdx=13, bdy=2)",
        "triton.kernels.cascade.merge_state_in_place_kernel[(3,)]("
        "t(3, 2, 13), t(3, 2), t(3, 2, 13), t(3, 2), 2, 13, torch.zeros(3), bdx=13, bdy=2)",
        "triton.kernels.cascade.merge_states_kernel[(3,)]("
        "t(3, 4, 2, 13), t(3, 4, 2), t(3, 2, 13), t(3, 2), 4, 2, 13, bdx=13, bdy=2)",
        "triton.kernels.cascade.variable_length_merge_states_kernel[(3,)]("
        "t(9, 2, 13), t(9, 2), torch.tensor([0, 4, 4, 9]), t(3, 2, 13), t(3, 2), 2, 13, bdx=13, bdy=2)",
    ),
}
"""Expressions by package. Names are those of the package's modules (for liger_kernel those of ``liger_kernel.ops``)."""
