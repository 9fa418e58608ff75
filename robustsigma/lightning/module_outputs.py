"""Record the outputs of a network's modules while other code runs it, compiled modules included."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from robustsigma.engine.network_state import is_compiled

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


def is_visible(net: nn.Module) -> bool:
    """Return whether `outputs_of` sees the modules of a network; not in a LightningModule compiled as a whole."""
    if is_compiled(net) and hasattr(net, "training_step"):
        return False
    return not any(getattr(module, "_compiler_ctx", None) for module in net.modules())


def on_call(module: nn.Module, hook: Hook) -> Callable[[], None]:
    """Run a hook after each call of a module, until the returned function is called.

    PyTorch's own hooks do not run after `module.compile()`, where this wraps the compiled code.
    """
    compiled: Any = getattr(module, "_compiled_call_impl", None)
    if compiled is None:
        return module.register_forward_hook(hook).remove

    def call(*args: Any, **kwargs: Any) -> Any:
        output = compiled(*args, **kwargs)
        hook(module, args, output)
        return output

    module._compiled_call_impl = call
    return lambda: setattr(module, "_compiled_call_impl", compiled)


@contextmanager
def outputs_of(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect name and output of each module that runs in the meantime and returns a tensor, or has one as `logits`.

    Of outputs without two dimensions, an empty tensor stands for the output. Modules in compiled code are not seen.
    """
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found = getattr(output, "logits", output)
        if isinstance(found, Tensor):
            # A copy of what may be logits, which the code may go on to change in place; other tensors may be large.
            kept = found.detach().clone() if found.ndim == 2 else found.new_empty(0)
            outputs.append((name or type(module).__name__, kept))

    compiled: list[str] = []
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if not any(name.startswith(f"{outer}." if outer else "") for outer in compiled):
                stack.callback(on_call(module, functools.partial(keep, name)))
            if is_compiled(module):
                compiled.append(name)
        yield outputs
