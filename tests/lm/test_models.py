"""Language models: SmolLM2 from its package, folders, the hub's stand-in, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from hub_server import Hub, Repository
from tiny_llama import make_tiny_lm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from lora_tutorial.lm.models import LM_LORA, build_lm, load_lm, load_lm_tokenizer, smollm2_target
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.fast_llama import FastLlamaAttention, FastLlamaMLP


def ids(tokenizer, text):
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def test_smollm2_goes_on_as_the_published_model_does(smollm2):
    model, tokenizer = smollm2
    prompt = ids(tokenizer, "The capital of France is")
    with torch.no_grad():
        following = model(prompt).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer("2024")["input_ids"] == [tokenizer.convert_tokens_to_ids(digit) for digit in "2024"]


def test_smollm2_is_transformers_own_reading_of_the_file(smollm2, monkeypatch):
    """Tensors go to the same places, the rotary order of query and key included: the logits are equal."""
    from transformers import AutoModelForCausalLM

    from lora_tutorial.storage import downloads

    folder = downloads.fetch("smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=next(folder.glob("*.gguf")).name, dtype=torch.float32
    )
    own = dict(smollm2.model.named_parameters())
    for name, value in theirs.named_parameters():
        assert torch.equal(value, own[name]), name
    prompt = ids(smollm2.tokenizer, "def add(a, b): return")
    with torch.no_grad():
        assert torch.equal(theirs(prompt).logits, smollm2.model(prompt).logits)


def test_the_cached_model_loads_in_under_three_seconds(smollm2):
    assert smollm2_target().is_dir()
    started = time.process_time()
    load_lm("smollm2")
    assert time.process_time() - started < 3


def test_tokens_come_back_as_the_text_they_were(smollm2):
    text = "Ünïcode — 漢字 🙂\n\tdef f(x):  return x**2  # 1234567890"
    assert smollm2.tokenizer.decode(ids(smollm2.tokenizer, text)[0]) == text


def test_a_folder_loads_as_it_was_saved(tiny_folder, tiny):
    again = load_lm(str(tiny_folder))
    for name, value in again.model.named_parameters():
        assert torch.equal(value, tiny.model.get_parameter(name))
    assert again.model.config.name_or_path == str(tiny_folder)
    assert not again.model.training


FROM_THE_HUB = """
from lora_tutorial.lm.models import load_lm
model, tokenizer = load_lm("someone/tiny-chat")
print(sum(value.double().sum().item() for value in model.parameters()), bool(tokenizer.chat_template))
"""


@pytest.mark.slow
def test_a_checkpoint_of_the_hub_loads_through_its_stand_in_and_later_without(tmp_path, tiny_folder, tiny):
    def load(address):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", FROM_THE_HUB]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with Hub({("models", "someone/tiny-chat"): Repository(tiny_folder)}) as hub:
        found = load(hub.address)
        address = hub.address
    total = sum(value.double().sum().item() for value in tiny.model.parameters())
    assert found == f"{total} True"
    assert load(address) == found


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), FileNotFoundError, "no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 64), ValueError, "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, tiny_folder, damage, error, message):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load_lm(folder)
    assert str(folder) in str(caught.value)


def test_an_encoder_is_no_language_model(minilm):
    from lora_tutorial.models.minilm import minilm_folder

    with pytest.raises(ValueError, match="weights for RobertaModel, and only causal language models"):
        load_lm(minilm_folder())


def test_a_checkpoint_without_a_template_or_an_end_is_refused(tmp_path):
    folder = make_tiny_lm(tmp_path / "no-template", template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        load_lm_tokenizer(folder)
    folder = make_tiny_lm(tmp_path / "no-end")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(ValueError, match="has no end token"):
        load_lm_tokenizer(folder)


@pytest.mark.parametrize("name", ["", "./nowhere", "~/nowhere"])
def test_a_name_that_is_no_place_is_refused(name):
    with pytest.raises((ValueError, FileNotFoundError), match="empty|no folder"):
        load_lm(name)


def test_lora_starts_as_the_base_and_trains_adapters_alone(tiny_folder, tiny):
    model = build_lm(tiny_folder)
    prompt = ids(tiny.tokenizer, "What is two?")
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, tiny.model(prompt).logits)
    adapted = [name for name, _ in lora_modules(model)]
    assert len(adapted) == 2 * 7  # every linear layer of both blocks, the output embedding left out
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)
    assert model.lora_config == LM_LORA


def test_query_and_value_are_the_llamas_own_names(tiny_folder):
    model = build_lm(tiny_folder, lora=LoraConfig(r=2, target_modules=("query", "value")))
    ends = {name.rpartition(".")[2] for name, _ in lora_modules(model)}
    assert ends == {"q_proj", "v_proj"}


def test_a_seed_decides_the_adapters(tiny_folder):
    def drawn(seed):
        return torch.cat(
            [
                value.flatten()
                for name, value in build_lm(tiny_folder, seed=seed).named_parameters()
                if name.endswith("lora_A")
            ]
        )

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_full_trains_everything_and_four_bits_train_adapters_only(tiny_folder):
    assert all(value.requires_grad for value in build_lm(tiny_folder, "full").parameters())
    with pytest.raises(ValueError, match="4 bits do not train"):
        build_lm(tiny_folder, "full", bits=4)
    with pytest.raises(ValueError, match="trained by lora or full; got 'head'"):
        build_lm(tiny_folder, "head")
    packed = build_lm(tiny_folder, bits=4)
    kinds = {type(module).__name__ for _, module in lora_modules(packed)}
    assert kinds == {"LoraLinear4bit"}


def test_a_base_in_four_bits_keeps_its_codes_when_it_is_scored_before_it_trains(tiny_folder, tiny):
    model = build_lm(tiny_folder, lora=LoraConfig(r=2, target_modules=("query", "value")), bits=4)
    codes = {name: value.clone() for name, value in model.named_parameters() if value.dtype == torch.uint8}
    prompt = ids(tiny.tokenizer, "What is two?")
    with torch.no_grad():
        model.eval()(prompt)
    model.train()(input_ids=prompt, labels=prompt).loss.backward()
    assert codes and all(torch.equal(model.get_parameter(name), value) for name, value in codes.items())
    first = model.model.layers[0].self_attn.q_proj.lora_B.grad
    assert first is not None and first.abs().max() > 0


def test_a_variant_that_has_no_form_in_four_bits_is_not_passed_over(tiny_folder):
    with pytest.raises((TypeError, ValueError)):
        build_lm(tiny_folder, variant="dora", bits=4)


def test_on_a_4_bit_base_the_output_embedding_stays_whole_and_tied(smollm2):
    model = build_lm("smollm2", lora=LM_LORA, bits=4)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32 and type(model.lm_head) is torch.nn.Linear
    rounded = [m for m in model.modules() if type(m).__name__.endswith("inear4bit")]
    assert len(rounded) == 7 * 30, "every linear layer of thirty blocks, and no other"


def test_what_trains_shares_its_inputs_and_fills_no_cache(tiny_folder):
    model = build_lm(tiny_folder).train()
    kinds = {type(module) for module in model.modules()}
    assert kinds >= {FastLlamaAttention, FastLlamaMLP} and not kinds & {LlamaAttention, LlamaMLP}
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids).cache is None, "keys and values of every layer were kept"
    assert load_lm(tiny_folder).model(input_ids=ids).cache is not None, "as transformers does if not told"
