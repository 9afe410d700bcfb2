"""What reaches people who have nothing of ours: from another folder, in another process, from a hub."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Hub
from peft_models import CONFIGS, adapted, base, logits, shake
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaForSequenceClassification,
    pipeline,
)

from lora_tutorial import (
    HubUnreachableError,
    LoraConfig,
    LoraWrapperRoberta,
    export_merged,
    export_peft,
    import_peft,
    inject_lora,
    inject_variant,
    load_encoder,
    merge_lora,
    push_adapter,
    relocate_peft,
    save_adapter,
)
from lora_tutorial.adapters.peft_layout import NotExpressibleError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")
NAMES = ["no", "maybe", "yes"]
CONFIG = CONFIGS["query and value"]


def wrapper(folder: Path, task: str = "glue", outputs: int | None = 3) -> nn.Module:
    return shake(
        LoraWrapperRoberta(task, outputs, model_id=str(folder), lora_rank=3, lora_alpha=7, head="roberta")
    )


def injected(folder: Path, variant: str = "lora") -> nn.Module:
    plain = load_encoder(folder, model_class=RobertaForSequenceClassification, num_labels=3).model
    return shake(inject_variant(plain, CONFIG, variant))


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    "wrapper": wrapper,
    "wrapper for spans": lambda folder: wrapper(folder, "squad_v1", None),
    "injected": injected,
    "dora": lambda folder: injected(folder, "dora"),
    "pissa": lambda folder: injected(folder, "pissa"),
}


def away(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move a folder, remove what was beside it, and go to another directory."""
    (tmp_path / "far").mkdir()
    there = Path(shutil.move(folder, tmp_path / "far" / "away"))
    (tmp_path / "encoder").rename(tmp_path / "gone")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return there


def run_card(folder: Path, path: str) -> dict[str, object]:
    """Run the lines that a card shows, with its PATH filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("PATH", path), names)
    return names


@pytest.mark.parametrize("kind", MODELS)
def test_a_merged_model_needs_transformers_alone(
    kind: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[kind](tiny_folder)
    spans = kind == "wrapper for spans"
    before, merged = logits(model), logits(merge_lora(copy.deepcopy(model)))
    assert torch.equal(logits(model), before)
    about = {} if spans else {"labels": NAMES}
    folder = export_merged(model, tmp_path / "merged", metadata=about)
    assert torch.equal(logits(model), before)  # a copy was merged
    folder = away(folder, tmp_path, monkeypatch)
    auto = AutoModelForQuestionAnswering if spans else AutoModelForSequenceClassification
    loaded = auto.from_pretrained(folder)
    assert (logits(loaded) - merged).abs().max() <= 1e-6
    assert (logits(loaded) - logits(base())[0, 0]).abs().max() > 1e-3
    if not spans:
        assert loaded.config.id2label == dict(enumerate(NAMES))
        assert run_card(folder, str(folder))["answer"](["w7"])[0]["label"] in NAMES
    assert AutoTokenizer.from_pretrained(folder)("w7")["input_ids"] == [7]
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
        assert file.suffix == ".safetensors" or str(tmp_path) not in file.read_text(), file


def test_a_regression_is_not_put_through_a_sigmoid(tiny_folder: Path, tmp_path: Path) -> None:
    model = wrapper(tiny_folder, outputs=1)
    with torch.no_grad():
        model.finetune_head_classifier.out_proj.bias.fill_(4.0)
    folder = export_merged(model, tmp_path / "merged")
    score = pipeline("text-classification", str(folder))("w7")[0]["score"]
    expected = logits(model, {"input_ids": torch.tensor([[7]])}).item()
    assert score == pytest.approx(expected, abs=1e-5) and score > 1


def test_what_cannot_be_merged_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with pytest.raises(NotExpressibleError, match="The tutorial's head"):
        export_merged(LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder)), out)
    with pytest.raises(ValueError, match="no LoRA adapter"):
        export_merged(base(), out)
    plain = inject_lora(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(ValueError, match="A Sequential is no model of transformers: call unload_lora"):
        export_merged(plain, out)
    model = adapted(CONFIG)
    with pytest.raises(ValueError, match="metadata names 2 labels; the model has 3 outputs"):
        export_merged(model, out, metadata={"labels": ["no", "yes"]})
    model.classifier.out_proj.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="classifier.out_proj.bias .* nothing was written"):
        export_merged(model, out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex, no part of a merged model"):
        export_merged(adapted(CONFIG), out)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_a_base_in_four_bits_is_not_merged(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from bitsandbytes.nn import Linear4bit

    model = adapted(CONFIG)
    model.classifier.dense = Linear4bit(16, 16)
    with pytest.raises(ValueError, match="in 4 bits: call dequantize_linears first"):
        export_merged(model, tmp_path / "merged")


def test_a_moved_export_loads_by_its_card_and_after_relocation_by_itself(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapper(tiny_folder)
    auto = peft.AutoPeftModelForSequenceClassification
    folder = export_peft(model, tmp_path / "adapter")
    assert torch.equal(logits(auto.from_pretrained(folder)), logits(model))  # where it was written
    folder = away(folder, tmp_path, monkeypatch)
    assert torch.equal(logits(import_peft(folder)), logits(model))
    assert torch.equal(logits(run_card(folder, str(folder))["model"]), logits(model))
    assert str(tmp_path) not in (folder / "README.md").read_text()
    with pytest.raises(OSError):  # noqa: PT011 - the hub's library words it
        auto.from_pretrained(folder)
    assert relocate_peft(folder) == folder / "base"
    assert torch.equal(logits(auto.from_pretrained(folder)), logits(model))
    named = AutoModelForSequenceClassification.from_pretrained(folder)  # as pipeline does
    assert torch.equal(logits(named), logits(model))
    shutil.rmtree(folder / "base")
    with pytest.raises(FileNotFoundError, match="has no folder 'base'; its base is '/"):
        relocate_peft(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    with Hub({}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def pushed(hub: Hub) -> dict[str, dict[str, bytes]]:
    return {name: repository.files for (_, name), repository in hub.repositories.items()}


def test_an_export_goes_to_the_hub_with_its_base_beside_it(
    hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = export_peft(
        wrapper(tiny_folder), tmp_path / "adapter", metadata={"title": "Mine", "licence": "MIT"}
    )
    (folder / "notes.txt").write_text("not for the hub")
    assert push_adapter(folder, "me/mine", private=True) == f"{hub.address}/me/mine"
    files = pushed(hub)
    assert files.keys() == {"me/mine", "me/mine-base"}
    assert files["me/mine"].keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    name = "adapter_model.safetensors"
    assert files["me/mine"][name] == (folder / name).read_bytes()
    for file in (folder / "base").iterdir():
        assert files["me/mine-base"][file.name] == file.read_bytes()
    settings = json.loads(files["me/mine"]["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "me/mine-base"
    card = files["me/mine"]["README.md"].decode()
    assert "# Mine" in card and 'from_pretrained("me/mine-base")' in card and '(base, "me/mine")' in card
    assert not any(
        str(tmp_path).encode() in data for repository in files.values() for data in repository.values()
    )
    assert set(hub.visibility.values()) == {"private"}
    again = len(hub.requests)
    push_adapter(folder, "me/mine", base_repo_id="me/bases")
    assert "me/bases" in pushed(hub) and len(hub.requests) > again
    settings = json.loads(pushed(hub)["me/mine"]["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "me/bases"


def test_the_other_kinds_go_to_the_hub_as_they_are(hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    model = shake(LoraWrapperRoberta("glue", 2, lora_rank=2))  # of MiniLM, which everybody can have
    kinds = {
        "own": save_adapter(model, tmp_path / "own"),
        "merged": export_merged(wrapper(tiny_folder), tmp_path / "merged"),
        "peft": export_peft(adapted(CONFIG), tmp_path / "peft", base=""),
    }
    settings = json.loads((kinds["peft"] / "adapter_config.json").read_text())
    kept = json.dumps(settings | {"base_model_name_or_path": "someone/roberta"}, indent=2) + "\n"
    (kinds["peft"] / "adapter_config.json").write_text(kept)
    for kind, folder in kinds.items():
        push_adapter(folder, f"me/{kind}")
        files = pushed(hub)[f"me/{kind}"]
        assert files.keys() == {file.name for file in folder.iterdir()}
        for file in folder.iterdir():
            assert file.name == "README.md" or files[file.name] == file.read_bytes()
    assert 'from_pretrained("someone/roberta")' in pushed(hub)["me/peft"]["README.md"].decode()


def test_what_is_not_uploaded(
    hub: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_adapter(wrapper(tiny_folder), tmp_path / "own")
    exported = export_peft(wrapper(tiny_folder), tmp_path / "peft")
    merged = export_merged(wrapper(tiny_folder), tmp_path / "merged")
    for folder, repository, options, error, says in (
        (tmp_path, "me/mine", {}, FileNotFoundError, "holds nothing to upload"),
        (own, "me/mine", {}, ValueError, "is a folder on this machine, .*encoder: upload what export_merged"),
        (merged, "me/mine", {"base_repo_id": "me/base"}, ValueError, "base_repo_id is for a folder with"),
        (merged, "mine", {}, ValueError, "'mine' is no repository of yours: give 'user/name'"),
        (merged, "me/ü", {}, ValueError, "'me/ü' is no name for a repository"),
    ):
        with pytest.raises(error, match=says):
            push_adapter(folder, repository, **options)
    weights = exported / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        push_adapter(exported, "me/mine")
    shutil.rmtree(exported / "base")
    with pytest.raises(ValueError, match="has no folder 'base' to upload to 'me/base'"):
        push_adapter(exported, "me/mine", "me/base")
    with pytest.raises(ValueError, match="is a folder on this machine"):
        push_adapter(exported, "me/mine")
    (merged / "README.md").write_text("no head")
    with pytest.raises(ValueError, match="README.md"):
        push_adapter(merged, "me/mine")
    assert set(pushed(hub)) <= {"me/mine"} and not pushed(hub).get("me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    with pytest.raises(ValueError, match="does not let you write to 'me/new': log in with `hf auth login`"):
        push_adapter(merged, "me/new")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError, match="cannot be reached for 'me/new'"):
        push_adapter(merged, "me/new")


ELSEWHERE = """
    import sys
    from pathlib import Path

    class Forbidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "lora_tutorial":
                raise ImportError("nothing of ours here")

    sys.meta_path.insert(0, Forbidden())
    try:
        import lora_tutorial
    except ImportError:
        pass
    else:
        raise SystemExit("lora_tutorial can be imported")

    import json, warnings
    import torch
    from peft import AutoPeftModelForSequenceClassification, PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder, moved, merged = map(Path, sys.argv[1:4])
    texts = json.loads(sys.argv[5])
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    again = AutoTokenizer.from_pretrained(merged)(texts, padding=True)
    assert dict(again) == {name: value.tolist() for name, value in inputs.items()}
    auto = AutoPeftModelForSequenceClassification
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        base = AutoModelForSequenceClassification.from_pretrained(moved / "base")
        models = {
            "in place": auto.from_pretrained(folder),
            "moved": PeftModel.from_pretrained(base, moved),
            "hub": auto.from_pretrained("me/mine"),
            "merged": AutoModelForSequenceClassification.from_pretrained(merged),
        }
        found = {name: model.eval()(**inputs).logits for name, model in models.items()}
    with torch.no_grad(), models["in place"].disable_adapter():
        found["without"] = models["in place"](**inputs).logits
    save_file(found, sys.argv[4])
    places = {str(folder): str(folder / "base"), "me/mine": "me/mine-base", str(merged): str(merged)}
    answers = [pipeline("text-classification", model=m, tokenizer=t)(texts) for m, t in places.items()]
    print(json.dumps([[row["label"] for row in answer] for answer in answers]))
"""
REVIEWS = ["A moving film, and a funny one.", "Dull from the first minute to the last.", "It is what it is."]
METADATA = {
    "title": "Film reviews",
    "data": "three sentences",
    "data_licence": "CC0-1.0",
    "scores": {"accuracy": 0.75},
    "licence": "MIT",
    "labels": ["bad", "fair", "good"],
    "seed": 0,
}


@pytest.mark.slow
def test_minilm_in_a_process_with_nothing_of_ours(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(7)
    names = {"id2label": dict(enumerate(METADATA["labels"]))}
    model, tokenizer = load_encoder("minilm", model_class=RobertaForSequenceClassification, **names)
    config = LoraConfig(r=3, lora_alpha=7, bias="all", modules_to_save=("LayerNorm", "classifier"))
    model = shake(inject_lora(model, config), 0.03)
    with torch.no_grad():
        inputs = tokenizer(REVIEWS, return_tensors="pt", padding=True)
        ours = model(**inputs).logits
    folder = export_peft(model, tmp_path / "adapter", metadata=METADATA)
    assert torch.equal(import_peft(folder)(**inputs).logits, ours)
    merged = export_merged(model, tmp_path / "merged", metadata=METADATA)
    push_adapter(folder, "me/mine")
    shutil.copytree(folder, tmp_path / "there" / "moved")
    (tmp_path / "cwd").mkdir()
    moved = [Path(shutil.move(merged, tmp_path / "there" / "merged"))]
    arguments = [folder, tmp_path / "there" / "moved", *moved, tmp_path / "out", json.dumps(REVIEWS)]
    command = [sys.executable, "-I", "-c", textwrap.dedent(ELSEWHERE), *arguments]
    bare = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    bare |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PATH": os.environ["PATH"]}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path / "cwd", env=bare
    )
    assert result.returncode == 0, result.stderr[-2000:]
    theirs = load_file(tmp_path / "out")
    for way in ("in place", "moved", "hub"):
        assert torch.equal(theirs[way], ours), way
    with torch.no_grad():
        assert (theirs["merged"] - merge_lora(model)(**inputs).logits).abs().max() <= 1e-6
    assert (theirs["in place"] - theirs["without"]).abs().max() > 0.01
    named = [METADATA["labels"][i] for i in ours.argmax(-1)]
    assert json.loads(result.stdout.splitlines()[-1]) == [named] * 3
    card = (folder / "README.md").read_text()
    for part in (
        "sentence-transformers/all-MiniLM-L6-v2",
        "apache-2.0",
        "three sentences",
        "CC0-1.0",
        "0.7500",
        "MIT",
    ):
        assert part in card
