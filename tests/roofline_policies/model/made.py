"""A made-up model with full and windowed layers, small enough to add up by hand."""

from dataclasses import replace

from hypothesis import strategies as st

from roofline_policies.model.parts import Attention, matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision

BF16 = Precision.BF16
FULL = Attention(count=2, heads=4, kv_heads=2, qk_dim=4, v_dim=4, kv_precision=BF16, kv_bytes=32)
WINDOWED = replace(FULL, count=3, heads=6, window=7)
# Per row and element: qkv 8 -> 40, output 24 -> 8, in five layers; a head of 20 x 8; 13 bytes of norms.
MADE = RankModel(
    name="made",
    hidden_size=8,
    layers=5,
    activations=BF16,
    matrices=(matrix(5, 40, 8, BF16), matrix(5, 8, 24, BF16)),
    attention=(FULL, WINDOWED),
    head=matrix(1, 20, 8, BF16),
    table_bytes=320,
    other_bytes=13,
)

chunks = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 90)), max_size=4)
contexts = st.lists(st.integers(1, 120), max_size=5)
