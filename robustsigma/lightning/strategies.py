"""What depends on the Trainer's strategy: ranks, parameters that are sharded, and sample caches in checkpoints."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from robustsigma.engine.global_rng import set_states
from robustsigma.engine.network_state import gathered, is_sharded
from robustsigma.engine.validation import fail


def data_rank(trainer: Any) -> tuple[int, int]:
    """Return the rank of this process and the number of processes, among those that divide the images."""
    found = (trainer and trainer.distributed_sampler_kwargs) or {}
    return found.get("rank", 0), found.get("num_replicas", 1)


def check_strategy(trainer: Any) -> None:
    """Raise ValueError for a strategy that shards parameters in a way in which they cannot be gathered for attacks."""
    strategy = trainer.strategy
    name = type(strategy).__name__
    if name == "FSDPStrategy" or (name == "DeepSpeedStrategy" and strategy.zero_stage_3):
        expected = "ddp, or ModelParallelStrategy (FSDP2) for sharded parameters, which attacks gather"
        raise fail("strategy", expected, name)


def full_state(module: nn.Module) -> dict[str, Any] | None:
    """Return the state dict of a sharded module with whole tensors, in every process; None if it is not sharded."""
    if not is_sharded(module):
        return None
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in module.state_dict().items()
    }


def shard(net: nn.Module, mesh: Any) -> None:
    """Shard a network with FSDP2: each block of layers by itself, and what is left with the network.

    A block is a module with submodules; `Sequential`, `ModuleList` and `ModuleDict` are looked into.
    """
    from torch.distributed.fsdp import fully_shard

    def shard_blocks(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
                shard_blocks(child)
            elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)

    if not is_sharded(net):
        shard_blocks(net)
        fully_shard(net, mesh=mesh)


def gather_in_evaluations(trainer: Any) -> None:
    """Let a Trainer gather parameters that FSDP2 sharded for each whole evaluation.

    Processes may then have different numbers of batches.
    """
    from pytorch_lightning.callbacks import LambdaCallback

    known = any(getattr(each, "gathers", False) for each in trainer.callbacks)
    if known or type(trainer.strategy).__name__ != "ModelParallelStrategy":
        return
    stack, stages = ExitStack(), ("validation", "test", "predict")

    def start(trainer: Any, pl_module: Any) -> None:
        stack.enter_context(gathered(pl_module.modules()))

    def end(trainer: Any, pl_module: Any) -> None:
        stack.close()

    hooks = {f"on_{stage}_{when}": hook for stage in stages for when, hook in (("start", start), ("end", end))}
    callback: Any = LambdaCallback(**hooks)
    callback.gathers = True
    trainer.callbacks.append(callback)


def continue_training(trainer: Any, generators: Any) -> None:
    """Let a Trainer that resumes set the global generators when training starts, as Lightning's preparation may draw.

    From the last batch of an epoch, let it also start a new one: Lightning does so only if an epoch has no more batches
    now than it had, and would leave out as many of the next.
    """
    from pytorch_lightning.callbacks import LambdaCallback

    states = [generators]  # set once, as the Trainer may run something else later

    def start(trainer: Any, pl_module: Any) -> None:
        if states:
            set_states(states.pop())
            loop = trainer.fit_loop.epoch_loop
            if loop.restarted_on_train_batch_end and loop.batch_progress.is_last_batch:
                loop.batch_progress.current.completed = trainer.num_training_batches

    trainer.callbacks.append(LambdaCallback(on_train_start=start))


def keep_samples(data: Any) -> None:
    """Let a Trainer's strategy write and remove, with each checkpoint, the sample caches of each process beside it.

    The samples of `last.ckpt` are `last.ckpt.samples/STEP-RANK-of-PROCESSES.pt`. They are complete before the
    checkpoint is, and those of the checkpoint that it replaces are removed after it.

    Args:
        data: the Trainer's `RobustDataModule`, in whose state in a checkpoint `sample_caches` is the step.
    """
    strategy, (rank, world_size) = data.trainer.strategy, data_rank(data.trainer)
    save, remove = vars(strategy).setdefault("_own_io", (strategy.save_checkpoint, strategy.remove_checkpoint))

    def save_all(checkpoint: dict[str, Any], filepath: Any, *args: Any, **options: Any) -> None:
        step = checkpoint.get(type(data).__qualname__, {}).get("sample_caches")
        folder = None if step is None else _folder(strategy.broadcast(str(filepath)))
        if folder is None:
            save(checkpoint, filepath, *args, **options)
            return
        data.sample_caches.save(folder / f"{step}-{rank}-of-{world_size}.pt")
        strategy.barrier()
        save(checkpoint, filepath, *args, **options)
        strategy.barrier()
        if strategy.is_global_zero:
            _clear(folder, f"{step}-")

    def remove_all(filepath: Any) -> None:
        remove(filepath)
        if strategy.is_global_zero:
            _clear(_folder(filepath))

    strategy.save_checkpoint, strategy.remove_checkpoint = save_all, remove_all


def kept_samples(checkpoint: Any, step: int, rank: int, world_size: int, *, shared: bool) -> list[Path]:
    """Return the files of the samples that a process may need of a checkpoint.

    Args:
        checkpoint: path of the checkpoint.
        step: the one that the checkpoint names.
        rank: rank of this process.
        world_size: number of processes.
        shared: whether this process may own images of another one then; else its files are those of its own rank.

    Warns:
        UserWarning: if files are missing, such as after the checkpoint was moved without them.
    """
    folder = _folder(checkpoint)
    found = sorted(folder.glob(f"{step}-*-of-*.pt")) if folder is not None else []
    if not found or len(found) < int(found[0].stem.rpartition("-")[2]):
        told = f"{len(found)} files of step {step} are in {checkpoint}.samples; what is missing is recomputed"
        warnings.warn(f"ckpt_path: the checkpoint's sample caches are incomplete: {told}", stacklevel=3)
    return found if shared else [path for path in found if path.stem.endswith(f"-{rank}-of-{world_size}")]


def _folder(checkpoint: Any) -> Path | None:
    """Return the folder of a checkpoint's samples; None of an address, where none are kept."""
    return None if "://" in str(checkpoint) else Path(f"{checkpoint}.samples")


def _clear(folder: Path | None, kept: str = "\0") -> None:
    """Remove files of samples, apart from those whose names start with `kept`, and the folder if it is empty then."""
    if folder is not None and folder.is_dir():
        for path in folder.iterdir():
            if not path.name.startswith(kept):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
