"""What an adapter's folder shows to be wrong, in our files and PEFT's; in good ones it shows nothing."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from adapter_folders import SETTINGS, TENSORS, moved
from peft_folders import TENSORS as PEFT_TENSORS
from peft_folders import change_settings, change_tensors
from safetensors.torch import load_file, save_file

from lora_tutorial import LoraConfig, diagnose, export_peft, save_adapter, stored_adapters
from lora_tutorial.adapters.validation import checksum
from lora_tutorial.lm.models import build_lm, load_lm

LAYER = "model.layers.0.self_attn.q_proj"
EMBEDDINGS = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory):
    """One adapter in both formats, ``ours`` and ``peft``."""
    folder = tmp_path_factory.mktemp("good")
    model = moved(build_lm(tiny_folder, lora=LoraConfig(r=2, lora_alpha=4)))
    save_adapter(model, folder / "ours")
    export_peft(model, folder / "peft")
    return folder


@pytest.fixture
def ours(good, tmp_path):
    return shutil.copytree(good / "ours", tmp_path / "ours")


@pytest.fixture
def theirs(good, tmp_path):
    return shutil.copytree(good / "peft", tmp_path / "peft")


def change(folder, settings=lambda value: None, tensors=lambda value: value):
    """Change our files and sign them again: a mistake, and no damage."""
    value, held = json.loads((folder / SETTINGS).read_text()), tensors(load_file(folder / TENSORS))
    settings(value)
    save_file(held, folder / TENSORS, metadata={"format": "pt"})
    value["sha256"] = checksum(value, (folder / TENSORS).read_bytes())
    (folder / SETTINGS).write_text(json.dumps(value))


def only(found):
    assert len(found) == 1, found
    return str(found[0])


def test_nothing_is_found_in_what_is_good(ours, theirs, tiny_folder):
    assert diagnose(ours) == diagnose(theirs) == []
    assert diagnose(ours, tiny_folder) == diagnose(theirs, tiny_folder) == []


@pytest.mark.parametrize("name", stored_adapters())
def test_nothing_is_found_in_the_adapters_that_come_along(name):
    assert diagnose(stored_adapters()[name]) == []


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        diagnose(tmp_path)


@pytest.mark.parametrize("file", [SETTINGS, TENSORS])
def test_a_missing_file_and_a_damaged_one_are_named(ours, file):
    content = (ours / file).read_bytes()
    (ours / file).write_bytes(content[:-9])
    assert "is damaged" in only(diagnose(ours))
    (ours / file).unlink()
    assert f"{file} is missing" in only(diagnose(ours))


def test_pickled_weights_are_not_read(theirs):
    (theirs / PEFT_TENSORS).rename(theirs / "adapter_model.bin")
    assert "pickled and not read" in only(diagnose(theirs))


def test_a_changed_byte_shows_in_the_checksum(ours):
    content = bytearray((ours / TENSORS).read_bytes())
    content[-2] ^= 1
    (ours / TENSORS).write_bytes(content)
    assert "SHA-256" in only(diagnose(ours))


def untrained(tensors):
    return {name: value * ("lora_B" not in name) for name, value in tensors.items()}


def other_rank(tensors):
    return {n: torch.cat([v, v]) if "lora_A" in n else torch.cat([v, v], 1) for n, v in tensors.items()}


def half_a_pair(tensors):
    return {name: value for name, value in tensors.items() if f"{LAYER}.lora_A" not in name}


def first_untrained(tensors):
    return {name: value * (f"{LAYER}.lora_B" not in name) for name, value in tensors.items()}


OF_TENSORS = {
    "no tensors": (lambda tensors: {}, ["The adapter is empty: its file holds no tensor with a value"]),
    "gathered from nowhere": (
        lambda tensors: {name: value[:0] for name, value in tensors.items()},
        ["The adapter is empty: its file holds no tensor with a value"],
    ),
    "B is zero": (untrained, ["Every lora_B is zero, so the adapter changes nothing"]),
    "one B is zero": (first_untrained, [f"lora_B is zero in 1 of 4 layers, such as {LAYER}"]),
    "another rank": (other_rank, ["The settings say rank 2, and lora_A has 4 rows"]),
    "half a pair": (half_a_pair, [f"{LAYER} has no lora_A"]),
    "not finite": (
        lambda tensors: {
            name: value / 0 if f"{LAYER}.lora_B" in name else value for name, value in tensors.items()
        },
        ["1 of 8 tensors hold an infinity or NaN"],
    ),
}


@pytest.mark.parametrize("case", OF_TENSORS)
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_tensors_that_cannot_be_right(case, kind, request):
    folder, (alter, told) = request.getfixturevalue(kind), OF_TENSORS[case]
    if kind == "ours":
        change(folder, tensors=alter)
    else:
        change_tensors(folder, alter)
    found = [str(finding) for finding in diagnose(folder)]
    for words in told:
        assert any(finding.startswith(words) for finding in found), found
    if case not in ("no tensors", "gathered from nowhere"):
        assert len(found) == len(told), found


OF_SETTINGS = {
    "a wild scale": ({"lora_alpha": 4000}, "The scale is 2000 (lora_alpha 4000, r 2)"),
    "no scale": ({"lora_alpha": "4"}, "Rank 2 and lora_alpha '4' give no scale"),
    "no rank": ({"r": 0}, "Rank 0 and lora_alpha 4 give no scale"),
    "a name that matches nothing": (
        {"target_modules": ["q_proj", "v_proj", "qeury"]},
        "target_modules names qeury, and no tensor belongs to such a layer",
    ),
    "names of other layers": (
        {"target_modules": ["q_proj"]},
        "2 layers have tensors and are not in target_modules, such as model.layers.0.self_attn.v_proj",
    ),
    "a pattern of other layers": (
        {"target_modules": r".*\.q_proj"},
        "2 layers have tensors and are not in target_modules",
    ),
    "a module that is not there": (
        {"modules_to_save": ["classifier", "score"]},
        "modules_to_save names classifier, and no tensor belongs to it",
    ),
}


@pytest.mark.parametrize("case", OF_SETTINGS)
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_settings_that_cannot_be_right(case, kind, request):
    folder, (changes, told) = request.getfixturevalue(kind), OF_SETTINGS[case]
    if kind == "ours":
        change(folder, settings=lambda settings: settings["base"]["lora"].update(changes))
    else:
        change_settings(folder, **changes)
    assert str(diagnose(folder)[0]).startswith(told)


@pytest.mark.parametrize("value", [None, 3, "([", ["q_proj", 7], {"q_proj": 1}, [[]]])
@pytest.mark.parametrize(
    "key", ["target_modules", "modules_to_save", "r", "lora_alpha", "base_model_name_or_path"]
)
def test_settings_of_odd_kinds_are_found_and_crash_nothing(theirs, key, value):
    change_settings(theirs, **{key: value})
    assert all(str(finding)[-1] in ".)" for finding in diagnose(theirs))
    if key in ("r", "lora_alpha") and value != 3:
        assert diagnose(theirs)


def test_names_that_peft_leaves_out_without_an_error(theirs):
    change_tensors(
        theirs, lambda tensors: {name.removeprefix("base_model."): v for name, v in tensors.items()}
    )
    assert "8 tensors have names that PEFT does not look for" in str(diagnose(theirs)[0])


@pytest.mark.parametrize("kept", [0, 1])
def test_half_of_a_tied_pair_is_found_where_the_base_ties(theirs, kept):
    value = torch.ones(3, 2)
    change_tensors(theirs, lambda tensors: tensors | {EMBEDDINGS[kept]: value})
    told = only(diagnose(theirs))
    gone = EMBEDDINGS[1 - kept].split(".", 2)[2].removeprefix("model.")
    assert f"{gone} was not; the base shares one weight between them" in told
    change_tensors(theirs, lambda tensors: tensors | {name: value.clone() for name in EMBEDDINGS})
    assert diagnose(theirs) == []
    change_tensors(theirs, lambda tensors: tensors | {EMBEDDINGS[1]: value + 1})
    assert "two values" in only(diagnose(theirs))
    config = json.loads((theirs / "base" / "config.json").read_text())
    (theirs / "base" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert diagnose(theirs) == []


def test_a_base_that_is_gone_is_missed(theirs, ours):
    moved_to = theirs.rename(theirs.parent / "moved")
    change_settings(moved_to, base_model_name_or_path=str(theirs / "base"))
    assert "call relocate_peft" in only(diagnose(moved_to))
    shutil.rmtree(moved_to / "base")
    assert "is not there. Put the base's new place there" in only(diagnose(moved_to))
    change(ours, settings=lambda settings: settings["base"].update(name="base", folder="../base"))
    assert "Its base, the folder base, is not there" in only(diagnose(ours))


def test_another_base_is_found_where_one_is_given(ours, theirs, tiny_folder, tmp_path):
    model, tokenizer = load_lm(tiny_folder)
    with torch.no_grad():
        model.model.norm.weight += 1e-3
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert "not the one that the adapter was trained on" in only(diagnose(ours, tmp_path / "other"))
    assert diagnose(theirs, tmp_path / "other") == []  # PEFT's files have no hash
    change_tensors(theirs, lambda t: {name.replace("layers.1.", "layers.7."): v for name, v in t.items()})
    assert "4 unexpected" in only(diagnose(theirs, tiny_folder))


def test_looking_needs_no_transformers(ours):
    code = "import sys; from lora_tutorial import diagnose; assert diagnose(sys.argv[1]) == []; "
    code += "assert 'torch' in sys.modules and not {'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, ours], check=True)
