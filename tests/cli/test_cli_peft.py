"""Carrying an adapter to PEFT and back from the terminal."""

import pytest
import torch

from lora_tutorial import LoraWrapperRoberta, load_adapter, save_adapter
from lora_tutorial.cli.main import app
from lora_tutorial.models.encoders import quiet

peft = pytest.importorskip("peft")


def trained(folder, head):
    torch.manual_seed(0)
    model = LoraWrapperRoberta("glue", 3, model_id=folder, lora_rank=2, lora_alpha=6, head=head)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model.eval()


def run(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_there_and_back_with_equal_logits(tiny_roberta, tmp_path):
    model = trained(tiny_roberta, "roberta")
    save_adapter(
        model, tmp_path / "ours", {"task": "x", "scores": {"accuracy": 0.5}, "labels": ["a", "b", "c"]}
    )
    result = run("export-peft", tmp_path / "ours", tmp_path / "peft", "--licence", "mit", "--data", "none")
    assert result.exit_code == 0, result.output
    assert "adapter_config.json" in result.output and "mit" in (tmp_path / "peft" / "README.md").read_text()
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    with quiet():
        theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(
            tmp_path / "peft", num_labels=3
        ).eval()
    expected = model(ids).logits
    assert torch.equal(theirs(ids).logits, expected)
    assert not torch.equal(
        theirs.get_base_model().roberta(ids).last_hidden_state, load_plain(tiny_roberta)(ids)[0]
    )
    result = run("import-peft", tmp_path / "peft", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert torch.equal(load_adapter(tmp_path / "again")(ids).logits, expected)


def load_plain(folder):
    from lora_tutorial import load_encoder

    return load_encoder(folder).model


def test_the_tutorials_head_is_refused_with_the_way_out(tiny_roberta, tmp_path):
    save_adapter(trained(tiny_roberta, "tutorial"), tmp_path / "ours")
    result = run("export-peft", tmp_path / "ours", tmp_path / "peft")
    assert result.exit_code != 0 and 'head="roberta"' in str(result.exception)
    assert not (tmp_path / "peft").exists()
