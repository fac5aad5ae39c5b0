"""The kernel zoo: one small Triton kernel per construct that counting has to get right.

Each specimen knows how to draw shapes, launch itself and, where there is one, its closed form. Blocks are tiny:
the interpreter takes about as long for an operation on 8 elements as on 8,000.
"""

# In the order of the zoo, which is the order of the tests.
# isort: off
from tests.interpreted.zoo.specimen import ZOO, Specimen, normal
from tests.interpreted.zoo.masks import add_kernel
from tests.interpreted.zoo.bounds import wrapping_kernel
from tests.interpreted.zoo.blocks import copy_2d_kernel
from tests.interpreted.zoo.products import matmul_steps_kernel, matmul_tiles_kernel
from tests.interpreted.zoo import pointers_and_descriptors
from tests.interpreted.zoo.helpers import helper_on_diagonal_kernel, helpers_kernel
from tests.interpreted.zoo.loops import softmax_kernel, while_test_kernel
from tests.interpreted.zoo import moving_bounds
from tests.interpreted.zoo import named_bounds
from tests.interpreted.zoo import loops_in_helpers
from tests.interpreted.zoo import reused_names
from tests.interpreted.zoo import renamed_constants
from tests.interpreted.zoo import branches
from tests.interpreted.zoo.places import no_memory_kernel
from tests.interpreted.zoo.atomics import histogram_kernel
from tests.interpreted.zoo import reductions
from tests.interpreted.zoo import autotuning
from tests.interpreted.zoo import reviewed
from tests.interpreted.zoo import narrow_and_wide
from tests.interpreted.zoo import logic
from tests.interpreted.zoo import inside_expressions
from tests.interpreted.zoo import recursion
# isort: on

__all__ = [
    "ZOO",
    "Specimen",
    "add_kernel",
    "autotuning",
    "branches",
    "copy_2d_kernel",
    "helper_on_diagonal_kernel",
    "helpers_kernel",
    "histogram_kernel",
    "inside_expressions",
    "logic",
    "loops_in_helpers",
    "matmul_steps_kernel",
    "matmul_tiles_kernel",
    "moving_bounds",
    "named_bounds",
    "narrow_and_wide",
    "no_memory_kernel",
    "normal",
    "pointers_and_descriptors",
    "recursion",
    "reductions",
    "renamed_constants",
    "reused_names",
    "reviewed",
    "softmax_kernel",
    "while_test_kernel",
    "wrapping_kernel",
]
