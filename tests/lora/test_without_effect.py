"""Where an adapter would silently do nothing, or too much: it works, or it is refused with a sentence."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from bitsandbytes.nn import Linear4bit
from peft_models import batch, shake
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lora_tutorial import (
    FastLoraLinear,
    LoraConfig,
    LoraLinear,
    LoraWrapperRoberta,
    dequantize_linears,
    inject_lora,
    inject_lora_4bit,
    lora_modules,
    merge_lora,
    unload_lora,
    unmerge_lora,
)

CONFIG = LoraConfig(r=2, lora_alpha=6, target_modules=("linear1", "linear2"))


def torch_encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 28, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.fixture
def no_fast_path():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def test_torchs_encoder_is_refused_while_its_fast_path_would_skip_the_adapter():
    model = torch_encoder()
    with pytest.raises(ValueError, match=r"layers\.0\.linear1 would have no effect.*set_fastpath_enabled"):
        inject_lora(model, CONFIG)
    assert not list(lora_modules(model)) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("make", [LoraLinear.from_linear, FastLoraLinear.from_linear])
def test_without_the_fast_path_torchs_encoder_is_adapted_in_evaluation_too(no_fast_path, make):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    model = shake(inject_lora(torch_encoder(), CONFIG, make=make), 0.5)
    with torch.no_grad():
        for mask in (None, padding):
            adapted = model(x, src_key_padding_mask=mask)
            assert not torch.allclose(adapted, torch_encoder()(x, src_key_padding_mask=mask), atol=1e-2)
            torch.testing.assert_close(merge_lora(model)(x, src_key_padding_mask=mask), adapted)
            unmerge_lora(model)


def test_a_projection_that_is_read_and_never_called_is_refused_and_no_linear_of_all(no_fast_path):
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.out_proj would have no effect.*never calls"):
        inject_lora(torch_encoder(), LoraConfig(r=2, target_modules=("out_proj",)))
    model = inject_lora(torch_encoder(), LoraConfig(r=2, target_modules="all-linear"))
    assert {n.rpartition(".")[2] for n, _ in lora_modules(model)} == {"linear1", "linear2"}


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3))


LAYER = LoraConfig(r=2, lora_alpha=6, target_modules=("1",))


def offload(model: nn.Module, folder: Path) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def spread(model: nn.Module, folder: Path) -> nn.Module:
    where = {"0": "cpu", "1": "disk", "2": "cpu"}
    return dispatch_model(model, where, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("dispatch", [offload, spread])
def test_a_layer_whose_forward_accelerate_replaced_is_refused_and_the_other_order_works(dispatch, tmp_path):
    with pytest.raises(ValueError, match=r"on 1 would have no effect: its forward was replaced"):
        inject_lora(dispatch(layers(), tmp_path / "a"), LAYER)
    model, x = shake(inject_lora(layers(), LAYER), 0.5), torch.randn(4, 6)
    adapted = model(x)
    assert not torch.allclose(adapted, layers()(x), atol=1e-2)
    model = dispatch(model, tmp_path / "b")
    assert model[1].weight.is_meta and torch.equal(model(x), adapted)


def test_a_weight_computed_from_others_is_refused():
    model = layers()
    weight_norm(model[1])
    with pytest.raises(ValueError, match="on 1 would have no effect: its weight is computed from others"):
        inject_lora(model, LAYER)


def test_hooks_stay_through_injection_and_unloading_and_their_handles_remove_them():
    model, x, seen = layers(), torch.randn(4, 6), []
    handles = [
        model[1].register_forward_pre_hook(lambda m, args: seen.append("before")),
        model[1].register_forward_hook(lambda m, args, kwargs, y: seen.append("after"), with_kwargs=True),
        model[1].register_full_backward_hook(lambda m, grads, outputs: seen.append("backward")),
    ]
    for change in (lambda model: inject_lora(model, LAYER), unload_lora):
        change(model)(x.requires_grad_()).sum().backward()
        assert seen == ["before", "after", "backward"]
        seen.clear()
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert not seen


def test_hooks_stay_on_4_bit_layers():
    seen = []
    quantised = nn.Sequential(Linear4bit(64, 64, compute_dtype=torch.float32).to("cpu"))
    quantised[0].register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    inject_lora_4bit(quantised, LoraConfig(r=2, target_modules=("0",)))
    plain = nn.Sequential(quantised[0].plain())
    for model in (quantised, plain):
        model(torch.randn(2, 64))
    dequantize_linears(quantised)(torch.randn(2, 64))
    assert seen == ["LoraLinear4bit", "Linear4bit", "FastLoraLinear"]


def test_a_merged_state_is_refused_where_its_update_would_count_twice_or_be_lost():
    model, fresh = shake(inject_lora(layers(), LAYER)), inject_lora(layers(), LAYER)
    names, merged = list(model.state_dict()), merge_lora(model).state_dict()
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"1 is merged in what is loaded.*unmerge_lora"):
            fresh.load_state_dict(merged, strict=strict)
    with pytest.raises(ValueError, match=r"1 is merged in this model.*unmerge_lora"):
        model.load_state_dict(fresh.state_dict())
    unmerged = unmerge_lora(model).state_dict()
    assert list(unmerged) == names
    fresh.load_state_dict(unmerged)
    x = torch.randn(4, 6)
    assert torch.equal(fresh(x), model(x))


# ---- Trainer's option --------------------------------------------------------------------------------------


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model.train()(**batch(), labels=torch.tensor([0, 2])).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_the_wrapper_computes_activations_again_and_its_adapters_train(tiny_folder, reentrant, name):
    torch.manual_seed(0)
    model = shake(LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), lora_rank=3, train_biases=False))
    calls, attention = [], model.model.encoder.layer[0].attention.self
    attention.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model)
    assert len(calls) == 1 and any("lora_query_B" in n and g.any() for n, g in expected.items())
    getattr(model, name)(**{name.split("_")[0] + "_checkpointing_kwargs": {"use_reentrant": reentrant}})
    found = gradients(model)
    assert len(calls) == 3 and found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


def test_trainers_option_trains_the_wrapper(tiny_folder, tmp_path):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), lora_rank=3)
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": [0, 5 + i, 7, 2], "labels": i % 3} for i in range(6)]
    options = {"output_dir": tmp_path, "max_steps": 2, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(
        **options, use_cpu=True, save_strategy="no", learning_rate=1e-2, activation_checkpointing=True
    )
    Trainer(model, arguments, train_dataset=rows).train()
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert {n for n in before if "lora_" in n and n.endswith("_A")} <= moved  # so B has moved before them
