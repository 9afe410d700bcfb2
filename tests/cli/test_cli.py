"""The commands as a user meets them: a small real run, its adapter in use, the tables, PEFT and back."""

import json

import pytest
import torch
from command_line import fails, run
from datasets import Dataset
from rich.console import Console
from tiny_checkpoint import make_checkpoint

from lora_tutorial import LoraWrapperRoberta, load_adapter, load_encoder, save_adapter
from lora_tutorial.cli import doctor, predict
from lora_tutorial.data import own_file
from lora_tutorial.training.records import load_record

PRAISE = [
    "a joy from start to end",
    "warm and very funny",
    "the best film of the year",
    "moving, bright and clever",
]
BLAME = [
    "a dull and lazy film",
    "boring from start to end",
    "the worst film of the year",
    "noisy, empty and cheap",
]


@pytest.fixture
def films(tmp_path):
    """Sentences of our own in the hub's schema of SST-2."""
    rows = [
        {"sentence": f"{text} {i}", "label": label}
        for i in range(6)
        for label, texts in enumerate((BLAME, PRAISE))
        for text in texts
    ]
    for split, part in (("train", rows), ("validation", rows[:16])):
        (tmp_path / "data" / "sst2").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(part).to_parquet(tmp_path / "data" / "sst2" / f"{split}.parquet")
    return tmp_path / "data"


@pytest.fixture
def tiny(tmp_path):
    """A tiny encoder with its tokenizer."""
    return make_checkpoint(tmp_path / "tiny", PRAISE + BLAME)


def test_train_predict_and_what_is_left_behind(films, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ["train", "sst2", "--source", films, "--out", out, "--epochs", 3, "--learning-rate", "3e-3"]
    output = run(*arguments)
    assert "majority class" in output and "frozen encoder" in output and "lora+bias+norm" in output
    assert f'lora-tutorial predict {out / "adapter"} "some text"\n' in output
    record = load_record(out / "record.json")
    assert record.status == "finished" and record.extra["scored_on"] == "validation"
    assert record.extra["scores"]["majority class"]["accuracy"] == 0.5
    bare = run(
        "train", "sst2", "--source", films, "--out", tmp_path / "bare", "--epochs", 1, "--no-baselines"
    )
    assert "majority class" not in bare and "frozen encoder" not in bare
    assert list(load_record(tmp_path / "bare" / "record.json").extra["scores"]) == ["trained"]
    assert record.extra["scores"]["trained"]["accuracy"] > 0.8
    adapter = out / "adapter"
    assert sum(f.stat().st_size for f in adapter.iterdir()) < 1_000_000
    assert str(tmp_path) not in (adapter / "adapter.json").read_text() + (out / "record.json").read_text()
    lines = run("predict", adapter, "a lazy film, dull and empty", "funny, warm and clever").splitlines()
    assert "negative" in lines[0] and "positive" in lines[1]
    assert load_adapter(adapter).adapter_metadata["labels"] == ["negative", "positive"]
    assert "--resume" in fails(monkeypatch, capsys, *arguments)
    before = (adapter / "adapter.safetensors").read_bytes()
    run(*arguments, "--resume")  # finished already: nothing is trained again, the same adapter comes out
    assert (adapter / "adapter.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_hint_after_training_on_pairs_works(tmp_path, tiny):
    rows = [f'"{a} {i}","{b} {i}",{same}' for i in range(5) for same, a, b in _pairs()]
    (tmp_path / "pairs.csv").write_text("\n".join(["text_a,text_b,label", *rows]))
    output = run("train", tmp_path / "pairs.csv", "--encoder", tiny, "--out", tmp_path / "run")
    hint = next(line for line in output.splitlines() if "lora-tutorial predict" in line)
    assert hint.endswith('"some text" "another text"')
    answer = run("predict", tmp_path / "run" / "adapter", "some text", "another text")
    assert answer.split()[0] in ("same", "other") and "some text | another text" in answer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint .* is damaged")
def test_what_a_file_loses_is_said_and_where_a_run_goes_on(tmp_path, tiny, monkeypatch):
    kinds = list(enumerate((BLAME, PRAISE)))
    texts = [(f"{text} {i}", kind) for i in range(5) for kind, own in kinds for text in own]
    texts[0], texts[1] = (f"{texts[0][0]} {'x ' * 200}", 0), (f"{texts[1][0]} {'y ' * 200}", 0)
    file = tmp_path / "films.csv"
    file.write_text("text,label\n" + "".join(f'"{text}",{kind}\n' for text, kind in texts))
    out = tmp_path / "run"
    command = ["train", file, "--encoder", tiny, "--out", out, "--checkpoint-every", 1]
    output = run(*command)
    assert "2 of 40 texts are longer than 128 tokens and will be cut there." in output
    assert "scored, however long" not in output and "Going on" not in output

    *_, last = sorted((out / "checkpoints").iterdir())
    step = int(last.name.removeprefix("step-"))
    assert step == len(load_record(out / "record.json").steps["loss"])
    (last / "state.json").write_text("{}")
    assert f"Going on after step {step - 1}, the last whole checkpoint in {out}." in run(*command, "--resume")
    for checkpoint in (out / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    assert f"{out} has no whole checkpoint yet, so the run begins again" in run(*command, "--resume")

    monkeypatch.setattr(own_file, "MOST", 8)
    shown = run(*command[:-4], "--out", tmp_path / "another")
    assert "At most 8 texts are scored, however long the file: 8 of 40 are for the test, 6 for" in shown


def _pairs():
    """Texts of one kind are the same, of two kinds are other."""
    return [("same" if x is y else "other", a, b) for x in (PRAISE, BLAME) for y in (PRAISE, BLAME)
            for a, b in zip(x, y[1:] + y[:1], strict=True)]  # fmt: skip


def test_a_text_that_is_cut_is_said_to_be(tiny, tmp_path, capsys):
    about = {"task": "x", "columns": ["text"], "labels": ["a", "b"], "max_length": 16}
    save_adapter(LoraWrapperRoberta("glue", 2, model_id=str(tiny), lora_rank=2), tmp_path / "a", about)
    predict.predict(tmp_path / "a", ["short", "long " * 40])
    told = capsys.readouterr()
    assert told.err.startswith("Text 2 has ") and told.err.endswith("was cut: the first 16 were read.\n")
    assert len(told.out.splitlines()) == 2


def test_a_question_gets_an_answer_and_its_place():
    text = "Rank 8 was used for query and value. The adapter was trained by Ada Lovelace in London."
    line = run("predict", "squad", text, "Who trained the adapter?").strip()
    answer, _, place = line.partition("  (characters ")
    start, end = (int(number) for number in place.removesuffix(" of the text)").split(" to "))
    assert text[start:end] == answer != ""
    two = run("predict", "squad", text, "Who trained the adapter?", text, "Which rank was used?").splitlines()
    assert two[0] == line and len(two) == 2
    refused = run("predict", "squad_v2-articles", text, "When did the bridge over the river fall?")
    assert refused.startswith("no answer in the text  (the best guess was ")


def test_params_prints_the_table():
    output = run("params", "roberta-base")
    for number in ("294,912", "420,098", "124,943,618", "1.68", "0.34 %"):
        assert number in output


def test_doctor_says_what_is_missing_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # a console takes its width when it is made; the name of a cache may be long
    monkeypatch.setattr(doctor, "console", Console(width=2000))
    output = run("doctor")
    assert "torch" in output and "not reachable" in output
    assert "not fetched yet" in output and "Fetched by pip at first use" in output
    assert output.splitlines()[-1].startswith("Ready: ") and "will fetch" in output.splitlines()[-1]


def test_doctor_judges_by_what_is_needed():
    fine, odd = doctor.Finding("torch", True, "2.9", "", True), doctor.Finding("peft", False, "no", "x")
    assert doctor.verdict([fine, odd]) == (True, "Ready: `lora-tutorial train` runs without a download.")
    bad = doctor.Finding("torch", False, "not installed", "needed for everything", True)
    ready, sentence = doctor.verdict([bad, odd])
    assert not ready and sentence.startswith("Not ready: torch: not installed.")


def test_doctor_finds_a_cache_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path / "file"))
    found = {finding.what: finding for finding in doctor.diagnose()}
    assert not found["cache"].ok and found["cache"].needed
    assert "is a file" in found["cache"].advice


def test_predict_refuses_an_adapter_that_does_not_say_its_task(tiny_roberta, tmp_path, monkeypatch, capsys):
    save_adapter(LoraWrapperRoberta("glue", 2, model_id=tiny_roberta, lora_rank=2), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["metadata"] == {}
    assert "load_adapter" in fails(monkeypatch, capsys, "predict", tmp_path / "a", "text")


def trained(folder, head):
    torch.manual_seed(0)
    model = LoraWrapperRoberta("glue", 3, model_id=folder, lora_rank=2, lora_alpha=6, head=head)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model.eval()


def test_to_peft_and_back_with_equal_logits(tiny_roberta, tmp_path):
    peft = pytest.importorskip("peft")
    model = trained(tiny_roberta, "roberta")
    about = {"task": "x", "scores": {"accuracy": 0.5}, "labels": ["a", "b", "c"]}
    save_adapter(model, tmp_path / "ours", about)
    output = run("export-peft", tmp_path / "ours", tmp_path / "peft", "--licence", "mit", "--data", "none")
    assert "adapter_config.json" in output and "mit" in (tmp_path / "peft" / "README.md").read_text()
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "peft", num_labels=3)
    theirs, expected = loaded.eval(), model(ids).logits
    assert torch.equal(theirs(ids).logits, expected)
    plain = load_encoder(tiny_roberta).model
    assert not torch.equal(theirs.get_base_model().roberta(ids).last_hidden_state, plain(ids)[0])
    run("import-peft", tmp_path / "peft", tmp_path / "again")
    assert torch.equal(load_adapter(tmp_path / "again")(ids).logits, expected)


def test_the_tutorials_head_is_refused_with_the_way_out(tiny_roberta, tmp_path, monkeypatch, capsys):
    save_adapter(trained(tiny_roberta, "tutorial"), tmp_path / "ours")
    told = fails(monkeypatch, capsys, "export-peft", tmp_path / "ours", tmp_path / "peft")
    assert "--head roberta" in told
    assert not (tmp_path / "peft").exists()
