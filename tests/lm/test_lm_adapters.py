"""A language model's adapter: back onto its base, to PEFT and back, merged for plain transformers."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from adapter_folders import moved
from peft_folders import change_settings, into_peft, peft
from transformers import AutoTokenizer

from lora_tutorial import (
    LoraConfig,
    disable_lora,
    export_merged,
    export_peft,
    import_peft,
    load_adapter,
    merge_lora,
    pissa_to_lora,
    save_adapter,
)
from lora_tutorial.adapters.peft_layout import NotExpressibleError
from lora_tutorial.lm.chat import template_ids
from lora_tutorial.lm.models import build_lm, load_lm, load_lm_tokenizer

IDS = torch.tensor([[1, 40, 41, 9, 77, 12], [1, 50, 60, 70, 80, 90]])
ASKED = [{"role": "user", "content": "What is two and two?"}]
EMBEDDED = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", modules_to_save=("embed_tokens",))


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def written(model, tokenizer, number=12):
    """The likeliest tokens after a prompt, from transformers' own loop."""
    ids = torch.tensor([template_ids(ASKED, tokenizer, answer=True)])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        return model.generate(input_ids=ids, max_new_tokens=number, do_sample=False, **ends)[0].tolist()


@pytest.fixture
def trained(tiny_folder):
    """As after training, on every linear layer."""
    return moved(build_lm(tiny_folder))


def resaved(folder, to, change=lambda model: None, **options):
    """The same checkpoint in another folder, with something changed in it."""
    model, tokenizer = load_lm(folder, **options)
    with torch.no_grad():
        change(model)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def test_it_is_loaded_onto_its_base_by_name_and_onto_no_other(trained, tiny_folder, tmp_path):
    save_adapter(trained, tmp_path / "a", {"task": "x"})
    again = load_adapter(tmp_path / "a")
    assert torch.equal(logits(again), logits(trained)) and again.adapter_metadata == {"task": "x"}
    tokenizer = load_lm_tokenizer(tiny_folder)
    assert written(again, tokenizer) == written(trained, tokenizer)
    with disable_lora(again):
        assert torch.equal(logits(again), logits(load_lm(tiny_folder).model))
    assert not torch.equal(logits(again), logits(load_lm(tiny_folder).model))
    other = resaved(tiny_folder, tmp_path / "other", lambda model: model.model.norm.weight.add_(1e-3))
    with pytest.raises(ValueError, match="not the one that the adapter was trained on"):
        load_adapter(tmp_path / "a", base=other)
    moved_away = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    assert torch.equal(logits(load_adapter(tmp_path / "a", base=moved_away)), logits(trained))


def test_a_base_beside_it_is_found_from_any_folder(tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    model = moved(build_lm("base"))
    save_adapter(model, "adapter")
    monkeypatch.chdir(tmp_path)
    shutil.move("here", "there")
    assert torch.equal(logits(load_adapter("there/adapter")), logits(model))
    shutil.rmtree("there/base")
    with pytest.raises(FileNotFoundError, match="was in a folder 'base', ../base from the adapter"):
        load_adapter("there/adapter")


def test_trained_embeddings_stay_tied_and_peft_is_not_given_half_of_them(tiny_folder, tmp_path):
    model = moved(build_lm(tiny_folder, lora=EMBEDDED))
    save_adapter(model, tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert not torch.equal(again.lm_head.weight, load_lm(tiny_folder).model.lm_head.weight)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(NotExpressibleError, match="embed_tokens trains and shares a weight"):
        export_peft(model, tmp_path / "p")
    export_merged(model, tmp_path / "m")
    plain = load_lm(tmp_path / "m").model
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert torch.equal(plain.lm_head.weight, model.lm_head.weight)


def test_half_a_pair_of_tied_embeddings_from_peft_is_refused(tiny_folder, tmp_path):
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(load_lm(tiny_folder).model, config)
        theirs.save_pretrained(tmp_path / "p")
    base = load_lm(tiny_folder).model
    with pytest.raises(NotExpressibleError, match="embed_tokens trains and shares a weight"):
        import_peft(tmp_path / "p", base)
    assert torch.equal(logits(base), logits(load_lm(tiny_folder).model))


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        LoraConfig(r=2, lora_alpha=6),
        LoraConfig(
            r=4, lora_alpha=4, use_rslora=True, target_modules=("gate_proj", "o_proj"), lora_dropout=0.1
        ),
    ],
    ids=["all-linear", "query and value", "rsLoRA"],
)
def test_peft_computes_the_same_bits_and_writes_the_same_tokens(lora, tiny_folder, tmp_path):
    model, tokenizer = moved(build_lm(tiny_folder, lora=lora)), load_lm_tokenizer(tiny_folder)
    export_peft(model, tmp_path / "p")
    theirs = into_peft(load_lm(tiny_folder).model, tmp_path / "p")
    assert type(theirs).__name__ == "PeftModelForCausalLM"
    assert torch.equal(logits(theirs), logits(model))
    assert written(theirs, tokenizer) == written(model, tokenizer)
    again = import_peft(tmp_path / "p")
    assert torch.equal(logits(again), logits(model))
    trains = [(name, p.requires_grad) for name, p in model.named_parameters()]
    assert [(name, p.requires_grad) for name, p in again.named_parameters()] == trains


def test_peft_alone_loads_the_export_with_base_and_chat_template(trained, tiny_folder, tmp_path):
    export_peft(trained, tmp_path / "p")
    files = {path.name for path in (tmp_path / "p" / "base").iterdir()}
    assert files >= {"chat_template.jinja", "generation_config.json", "tokenizer.json", "model.safetensors"}
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "p").eval()
    assert torch.equal(logits(theirs), logits(trained))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "p" / "base")
    own = load_lm_tokenizer(tiny_folder)
    assert template_ids(ASKED, tokenizer, answer=True) == template_ids(ASKED, own, answer=True)
    assert (
        'AutoModelForCausalLM.from_pretrained("PATH/base", dtype="float32")'
        in (tmp_path / "p" / "README.md").read_text()
    )


def test_a_base_of_half_precision_is_exported_as_it_was_loaded(tiny_folder, tmp_path):
    half = resaved(tiny_folder, tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    model = moved(build_lm(half))
    export_peft(model, tmp_path / "p")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "p").eval()
    assert torch.equal(logits(theirs), logits(model))


def test_an_adapter_that_peft_made_is_taken_over(tiny_folder, tmp_path):
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=12, target_modules="all-linear")
    theirs = moved(peft.get_peft_model(load_lm(tiny_folder).model, config))
    theirs.save_pretrained(tmp_path / "p")
    model = import_peft(tmp_path / "p")  # by base_model_name_or_path
    assert torch.equal(logits(model), logits(theirs))
    change_settings(tmp_path / "p", task_type=None, auto_mapping={"base_model_class": "LlamaForCausalLM"})
    assert torch.equal(logits(import_peft(tmp_path / "p", tiny_folder)), logits(model))
    save_adapter(model, tmp_path / "ours")
    assert torch.equal(logits(load_adapter(tmp_path / "ours")), logits(theirs))


ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("merged"), AutoTokenizer.from_pretrained("merged")
messages = json.loads(sys.argv[1])
options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
given = tokenizer.apply_chat_template(messages, **options)
ids = model.generate(**given, max_new_tokens=12, do_sample=False)[0]
found = [name for name in sys.modules if name.partition(".")[0] in ("lora_tutorial", "peft")]
print(json.dumps({"ids": ids.tolist(), "found": found}))
"""


def test_a_stranger_with_plain_transformers_writes_the_same_tokens(trained, tiny_folder, tmp_path):
    """Moved to another folder, read in another process."""
    export_merged(trained, tmp_path / "merged")
    export_merged(trained, tmp_path / "merged")  # its own files are replaced
    (tmp_path / "stranger").mkdir()
    shutil.move(tmp_path / "merged", tmp_path / "stranger" / "merged")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(ASKED)],
        cwd=tmp_path / "stranger",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] == []
    assert told["ids"] == written(merge_lora(trained), load_lm_tokenizer(tiny_folder))


def test_a_tokenizer_without_a_padding_token_is_merged_with_one(tiny_folder, tmp_path):
    """As `load_lm` has it: a stranger who generates in batches needs one."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    file = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(tmp_path / "base").pad_token is None
    export_merged(moved(build_lm(tmp_path / "base")), tmp_path / "m")
    assert AutoTokenizer.from_pretrained(tmp_path / "m").pad_token == "<|im_end|>"


def test_variants_keep_their_laws(tiny_folder, tmp_path):
    dora = moved(build_lm(tiny_folder, variant="dora"), scale=0.1)
    save_adapter(dora, tmp_path / "dora")
    assert torch.equal(logits(load_adapter(tmp_path / "dora")), logits(dora))
    with pytest.raises(NotExpressibleError, match="DoraLinear"):
        export_peft(dora, tmp_path / "p")
    export_merged(dora, tmp_path / "m")
    torch.testing.assert_close(logits(load_lm(tmp_path / "m").model), logits(dora), atol=1e-4, rtol=1e-4)

    pissa = moved(build_lm(tiny_folder, variant="pissa"), scale=0.1)
    with pytest.raises(ValueError, match="pissa_to_lora"):
        save_adapter(pissa, tmp_path / "pissa")
    plain = pissa_to_lora(pissa, load_lm(tiny_folder).model)
    save_adapter(plain, tmp_path / "pissa")
    export_peft(plain, tmp_path / "p")
    theirs = into_peft(load_lm(tiny_folder).model, tmp_path / "p")
    assert torch.equal(logits(theirs), logits(load_adapter(tmp_path / "pissa")))
    torch.testing.assert_close(logits(theirs), logits(pissa), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_smollm2_goes_to_peft_with_its_base_and_back(smollm2, tmp_path):
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=("q_proj", "down_proj"))
    model = moved(build_lm("smollm2", lora=lora), scale=0.02)
    expected = logits(model)
    assert not torch.equal(expected, logits(smollm2.model))
    save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["base"]["name"] == "smollm2"
    export_peft(model, tmp_path / "p")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in (tmp_path / "p" / "README.md").read_text()
    assert (tmp_path / "p" / "base" / "LICENSE").is_file()
    del model
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "p").eval()
    assert torch.equal(logits(theirs), expected)
    ours = load_adapter(tmp_path / "a")
    assert torch.equal(logits(ours), expected)
    assert written(theirs, smollm2.tokenizer, 6) == written(ours, smollm2.tokenizer, 6)
