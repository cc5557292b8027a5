"""Every kernel by name."""

from fletcher_kernels.activate import ACTIVATE
from fletcher_kernels.attention import ATTENTION
from fletcher_kernels.kernel import Kernel
from fletcher_kernels.norm import ADD_NORM, EMBED_NORM
from fletcher_kernels.pool import POOL
from fletcher_kernels.rope import ROPE
from fletcher_kernels.swiglu import SWIGLU

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (EMBED_NORM, ROPE, ATTENTION, ADD_NORM, SWIGLU, ACTIVATE, POOL)
}
