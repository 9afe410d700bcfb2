"""Where the memory of one training step goes: weights, gradients, optimiser state, activations, the rest.

Each variant is measured in a process of its own, which `measure_memory` starts: a peak cannot be reset for
certain within a process, and what one variant leaves in the allocator's hands would help the next.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from speed_measure import Trainer, parameter_bytes
from speed_settings import Setting
from speed_variants import make_bench
from torch.utils.flop_counter import FlopCounterMode


def _addmm_into(target: torch.Size, a: torch.Size, b: torch.Size, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    return 4 * query.numel() * key[-2]  # (batch, heads, tokens, head size), twice


def _attention_backward(grad: torch.Size, query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    return 10 * query.numel() * key[-2]  # four products, and the scores once more


#: What torch's counter passes over: a product added into its first operand, and attention on a CPU.
UNCOUNTED = {
    torch.ops.aten.addmm_: _addmm_into,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def measure_memory(setting: Setting, variant: str, threads: int) -> dict[str, Any]:
    """Run `memory_of_a_step` in a fresh process.

    Raises
    ------
    RuntimeError
        If that process fails; the message ends with its last lines.
    """
    asked = json.dumps({"setting": setting.to_dict(), "variant": variant, "threads": threads})
    done = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{setting.name}, {variant}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_of_a_step(setting: Setting, variant: str) -> dict[str, Any]:
    """Count and measure one training step, the third.

    Returns
    -------
    dict
        In bytes: ``weights``, ``gradients``, ``optimizer`` (its state) and ``saved`` (activations that the
        forward pass keeps for the backward pass, each storage once, weights left out), counted from tensors;
        ``resting`` and ``peak``, what the process holds before and at most during the step, above what it
        held before the model was made (on CUDA what tensors hold, by torch's own account). And ``flops``, the
        operations of one step, by torch's counter.
    """
    before = _held(setting.device)
    trainer = Trainer(make_bench(setting), variant)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        trainer.step()
    saved, gradients = saved_and_gradients(trainer)
    resting = _held(setting.device, reset_peak=True)
    trainer.step()
    return {
        "weights": parameter_bytes(trainer.model),
        "gradients": gradients,
        "optimizer": optimizer_bytes(trainer),
        "saved": saved,
        "resting": resting - before,
        "peak": _held(setting.device, peak=True) - before,
        "flops": counter.get_total_flops(),
    }


def step_peaks(trainers: dict[str, Trainer]) -> dict[str, dict[str, int]]:
    """The peak of one step of each, in this process and beside the others, which rest: for a GPU.

    Returns
    -------
    dict
        For each variant, in bytes: ``weights`` and ``optimizer`` (its state), counted from tensors;
        ``above``, what the step holds at most beyond what there was before it; and ``peak``, the sum of the
        three. On CUDA that is what tensors hold, by torch's own account, so the others make no difference.
    """
    found = {}
    for variant, trainer in trainers.items():
        parts = {"weights": parameter_bytes(trainer.model), "optimizer": optimizer_bytes(trainer)}
        resting = _held(trainer.setting.device, reset_peak=True)
        trainer.step()
        parts["above"] = _held(trainer.setting.device, peak=True) - resting
        found[variant] = parts | {"peak": sum(parts.values())}
    return found


def optimizer_bytes(trainer: Trainer) -> int:
    """Bytes of the optimiser's state."""
    state = trainer.optimizer.state.values() if trainer.optimizer else []
    return sum(t.nbytes for entry in state for t in entry.values() if torch.is_tensor(t))


def saved_and_gradients(trainer: Trainer) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes of the gradients of parameters, of one step."""
    given = [*trainer.model.state_dict(keep_vars=True).values(), *trainer.bench.batch.values()]
    known = {t.untyped_storage().data_ptr() for t in given}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.loss()
    saved = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    loss.backward()
    gradients = sum(p.grad.nbytes for p in trainer.parameters if p.grad is not None)
    for parameter in trainer.parameters:
        parameter.grad = None
    return saved, gradients


def _held(device: str, peak: bool = False, reset_peak: bool = False) -> int:
    """Bytes that this process holds now, or has held at most since the last reset."""
    if device == "cuda":
        torch.cuda.synchronize()
        if reset_peak:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if not peak and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # glibc gives what is free back to the system
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmHWM:" if peak else "VmRSS:"
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(wanted))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    print(json.dumps(memory_of_a_step(Setting(**request["setting"]), request["variant"])))
