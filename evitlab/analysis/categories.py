"""Which category an operator belongs to: one table."""

from __future__ import annotations

from evitlab.analysis.traffic import bare_name
from evitlab.records import CATEGORIES

# Every operator's category, by its name without "aten::" and outer underscores. What an operator
# calls inside itself (an allocation, a library's kernel) counts as the operator's own time.
_CATEGORY_TABLE = {
    "matmul/conv": """
        addbmm addmm addmv baddbmm bilinear bmm conv1d conv2d conv3d conv_depthwise2d
        conv_transpose2d convolution convolution_overrideable cudnn_convolution dot einsum
        linear linear_pointwise matmul miopen_convolution mkldnn_convolution mkldnn_linear
        mkldnn_rnn_layer mm mv native_multi_head_attention
        scaled_dot_product_attention scaled_dot_product_attention_math
        scaled_dot_product_cudnn_attention scaled_dot_product_efficient_attention
        scaled_dot_product_flash_attention scaled_dot_product_flash_attention_for_cpu
        scaled_dot_product_fused_attention_overrideable scaled_mm slow_conv2d_forward
        thnn_conv2d transformer_encoder_layer_fwd trilinear
        """,
    "softmax": "log_softmax safe_softmax softmax",
    "normalisation": """
        batch_norm batch_norm_impl_index batch_norm_with_update cudnn_batch_norm fused_rms_norm
        group_norm instance_norm layer_norm linalg_vector_norm
        miopen_batch_norm native_batch_norm native_batch_norm_legit
        native_batch_norm_legit_no_training native_group_norm native_layer_norm norm rms_norm
        """,
    # Reductions, pooling and filling too: a pass over the elements, next to no computation.
    "element-wise": """
        abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addcdiv addcmul all
        amax amin any arange argmax atan2 avg_pool1d avg_pool2d bernoulli bitwise_and
        bitwise_not bitwise_or ceil clamp clamp_max clamp_min cos cumsum div dropout elu eq erf
        exp expm1 fill floor floor_divide frac full full_like ge gelu glu gt hardsigmoid
        hardswish hardtanh heaviside isnan le leaky_relu lerp linspace log log1p log_sigmoid
        logical_and logical_not logical_or logsumexp lt masked_fill max max_pool2d
        max_pool2d_with_indices maximum mean min minimum mish mul nan_to_num native_dropout ne
        neg new_full new_ones new_zeros ones ones_like pow prelu prod reciprocal relu relu6
        remainder round rsqrt rsub scalar_tensor sigmoid sign silu sin softplus sqrt square std
        std_mean sub sum tanh threshold topk tril triu trunc var var_mean where zero zeros
        zeros_like
        """,
    "reshape/copy": """
        alias as_strided as_strided_copy broadcast_to cat channel_shuffle chunk clone col2im
        concat constant_pad_nd contiguous copy detach embedding expand expand_as flatten flip
        gather im2col index index_copy index_put index_select lift_fresh mkldnn_reorder_conv2d
        movedim narrow native_channel_shuffle pad permute pixel_shuffle pixel_unshuffle repeat
        repeat_interleave reshape reshape_alias resolve_conj resolve_neg roll scatter select
        slice split split_with_sizes squeeze stack swapaxes t take tile to to_copy transpose
        unbind unflatten unfold unsafe_split unsafe_view unsqueeze upsample_bicubic2d
        upsample_bilinear2d upsample_nearest2d view view_as
        """,
}
CATEGORY_OF = {name: kind for kind, names in _CATEGORY_TABLE.items() for name in names.split()}


def category_of(operator: str) -> str:
    """Category of an operator as the profiler names it; "other" where the table has no line."""
    return CATEGORY_OF.get(bare_name(operator), CATEGORIES[-1])
