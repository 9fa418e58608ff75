"""What the modules of a network return while other code runs them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robustsigma.engine.network_state import is_compiled


def is_visible(net: nn.Module) -> bool:
    """Return whether `outputs_of` sees the modules of a network: hooks do not run in compiled code."""
    return not any(is_compiled(module) or getattr(module, "_compiler_ctx", None) for module in net.modules())


@contextmanager
def outputs_of(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect name and output of each module that runs in the meantime and returns a tensor, or has one as `logits`.

    Of outputs without two dimensions, an empty tensor stands for the output.
    """
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found = getattr(output, "logits", output)
        if isinstance(found, Tensor):
            # A copy of what may be logits, which the code may go on to change in place; other tensors may be large.
            kept = found.detach().clone() if found.ndim == 2 else found.new_empty(0)
            outputs.append((name or type(module).__name__, kept))

    hooks = [module.register_forward_hook(functools.partial(keep, name)) for name, module in net.named_modules()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
