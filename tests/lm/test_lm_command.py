"""The command with a language model: train, resume, generate, chat, carry away; and the ways to misuse it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import call, contents, fails, run, unboxed
from tiny_llama import make_tiny_lm
from typer.testing import CliRunner

from lora_tutorial import LoraConfig, load_adapter, save_adapter
from lora_tutorial.cli import checks, doctor
from lora_tutorial.cli.main import USAGE, app, explain
from lora_tutorial.lm.chat import template_ids
from lora_tutorial.lm.generate import Reply, stream
from lora_tutorial.lm.models import LM_METHODS, SMOLLM2, build_lm, load_lm, load_lm_tokenizer
from lora_tutorial.training.records import load_record

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "killed_lm.py"
ASKED = [{"role": "user", "content": "What is 1?"}]


def write_conversations(path, number=24):
    words = ["one", "two", "three", "four", "word", "here"]
    rows = [
        {"instruction": f"What is {i}?", "output": f"It is {words[i % 6]}."}
        if i % 2
        else {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": words[i % 6]},
            ]
        }
        for i in range(number)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """One small run through the command: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    file = write_conversations(folder / "talks.jsonl")
    command = ["train", file, "--encoder", tiny_folder, "--out", folder / "run", "--learning-rate", "1e-2"]
    return folder, command, run(*command)


def test_what_train_prints_and_leaves_behind(trained):
    folder, command, shown = trained
    assert f"Fine-tuning {command[3]} on {command[1]} by lora: 1 epoch(s), r = 8, seed 0." in shown
    assert "20 of 20 to train on, 2 of 2 to validate, 2 of 2 to test on; those of more than 256" in shown
    assert "before training" in shown and "log_likelihood" in shown and "perplexity" in shown
    assert "Asked to answer 2 test prompts by itself it scores chrF" in shown
    assert f'lora-tutorial generate {folder / "run" / "adapter"} "a request"' in shown
    record = load_record(folder / "run" / "record.json")
    scores = record.extra["scores"]
    assert scores["trained"]["log_likelihood"] > scores["before training"]["log_likelihood"]
    assert (
        record.config["lora"]["target_modules"] == "all-linear" and record.config["lora"]["lora_alpha"] == 16
    )
    about = load_adapter(folder / "run" / "adapter").adapter_metadata
    assert about["task"] == "talks" and about["columns"] == ["messages"]
    assert str(folder) not in (folder / "run" / "record.json").read_text()


def test_a_finished_run_is_not_overwritten_but_resumed(trained, monkeypatch, capsys):
    folder, command, _ = trained
    assert "--resume" in fails(monkeypatch, capsys, *command)
    before = (folder / "run" / "adapter" / "adapter.safetensors").read_bytes()
    assert "Going on after step 5" in run(*command, "--resume")
    assert (folder / "run" / "adapter" / "adapter.safetensors").read_bytes() == before


def test_full_fine_tuning_leaves_a_record_and_no_adapter(trained, tiny_folder, tmp_path):
    shown = run(
        "train", trained[1][1], "--encoder", tiny_folder, "--method", "full", "--out", tmp_path / "run"
    )
    assert "(100.00 %)" in shown and "Adapter:" not in shown
    assert not (tmp_path / "run" / "adapter").exists()


def said(model, tokenizer, messages, number, **options):
    return "".join(stream(model, tokenizer, messages, number, **options))


def written(*arguments):
    """What ``generate`` writes, without the remark that may follow."""
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_generate_writes_what_the_model_says(trained, tiny_folder):
    adapter, tokenizer = trained[0] / "run" / "adapter", load_lm_tokenizer(tiny_folder)
    model, base = load_adapter(adapter), load_lm(tiny_folder).model
    asked = [adapter, ASKED[0]["content"], "--max-new-tokens", 12]
    assert written(*asked) == said(model, tokenizer, ASKED, 12) + "\n"
    assert written(*asked, "--base-only") == said(base, tokenizer, ASKED, 12) + "\n"
    drawn = said(model, tokenizer, ASKED, 12, temperature=2.0, seed=3)
    assert written(*asked, "--temperature", 2, "--seed", 3) == drawn + "\n"
    assert len({written(*asked), written(*asked, "--base-only"), drawn}) == 3
    piped = ["generate", str(adapter), "-", "--max-new-tokens", "12"]
    assert CliRunner().invoke(app, piped, input="What is 1?").stdout == written(*asked)


@pytest.fixture
def heard(monkeypatch):
    """The conversations that the model is given; it answers with their number of messages."""
    seen = []

    def answer(model, tokenizer, messages, *_):
        seen.append([dict(message) for message in messages])
        yield from (f"answer {len(messages)}", " end")
        return Reply("", 2, stopped=True)

    monkeypatch.setattr("lora_tutorial.lm.generate.stream", answer)
    return seen


def talk(adapter, lines, *options):
    return CliRunner().invoke(app, ["chat", str(adapter), *options], input=lines, catch_exceptions=False)


@pytest.mark.parametrize(
    ("stopped", "most", "remark"),
    [
        (True, 64, ""),
        (False, 64, "The answer was cut after 2 tokens; a larger --max-new-tokens lets it go on.\n"),
        (False, 300, "The answer was cut: with its prompt it fills the 256 tokens that the model reads.\n"),
    ],
)
def test_an_answer_that_was_cut_is_said_to_be(trained, monkeypatch, stopped, most, remark):
    def answer(*_):
        yield from ("one", " two")
        return Reply("one two", 2, stopped)

    monkeypatch.setattr("lora_tutorial.lm.generate.stream", answer)
    asked = ["generate", str(trained[0] / "run" / "adapter"), "Say 2.", "--max-new-tokens", str(most)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert (done.stdout, done.stderr) == ("one two\n", remark)


def test_chat_remembers_until_the_input_ends(trained, heard):
    talked = talk(trained[0] / "run" / "adapter", "first\n\nsecond\n", "--max-new-tokens", "32")
    assert (talked.exit_code, talked.stdout) == (0, "answer 1 end\nanswer 3 end\n")
    assert [message["content"] for message in heard[1]] == ["first", "answer 1 end", "second"]
    assert [message["role"] for message in heard[1]] == ["user", "assistant", "user"]


def test_a_long_chat_forgets_its_beginning_and_says_so(trained, heard):
    adapter, long = trained[0] / "run" / "adapter", "word " * 60
    talked = talk(adapter, f"{long}\n" * 4, "--max-new-tokens", "64")
    assert talked.exit_code == 0 and "its beginning is forgotten" in talked.stderr
    assert all(
        heard[-1][place]["role"] == ("assistant" if place % 2 else "user") for place in range(len(heard[-1]))
    )
    tokenizer = load_lm_tokenizer(load_adapter(adapter).config.name_or_path)
    assert len(template_ids(heard[-1], tokenizer, answer=True)) + 64 <= 256


def test_a_prompt_beyond_the_models_reach_is_refused(trained, monkeypatch, capsys):
    told = fails(monkeypatch, capsys, "generate", trained[0] / "run" / "adapter", "word " * 400)
    assert "tokens, and the model reads 256; shorten it" in told


def test_it_is_carried_to_peft_and_back_and_merged(trained, tiny_folder, tmp_path):
    adapter, ids = trained[0] / "run" / "adapter", torch.tensor([[1, 40, 41, 9]])
    expected = load_adapter(adapter)(ids).logits
    assert "chat_template.jinja" not in run("export-peft", adapter, tmp_path / "peft", "--licence", "mit")
    assert "mit" in (tmp_path / "peft" / "README.md").read_text()
    shown = run("import-peft", tmp_path / "peft", tmp_path / "again")
    assert f'Try it: lora-tutorial generate {tmp_path / "again"} "a request"' in shown
    assert torch.equal(load_adapter(tmp_path / "again")(ids).logits, expected)
    asked = ["What is 1?", "--max-new-tokens", 8]
    assert written(tmp_path / "again", *asked) == written(adapter, *asked)
    assert "model.safetensors" in run("export-merged", adapter, tmp_path / "merged", "--title", "Talks")
    torch.testing.assert_close(load_lm(tmp_path / "merged").model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert "# Talks" in (tmp_path / "merged" / "README.md").read_text()


def test_diagnose_exits_with_1_where_something_is_wrong(trained, tiny_folder, tmp_path):
    adapter = trained[0] / "run" / "adapter"
    assert run("diagnose", adapter).startswith(f"Nothing was found wrong with {adapter}: files, settings")
    assert "tensors and base." in run("diagnose", adapter, "--base", tiny_folder)
    assert run("diagnose", "sst2").startswith("Nothing was found wrong with")
    save_adapter(build_lm(tiny_folder, lora=LoraConfig(r=2, lora_alpha=2000)), tmp_path / "new")
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "new")])
    lines = done.output.splitlines()
    assert done.exit_code == 1 and len(lines) == 2 and all(line.startswith("- ") for line in lines)
    assert "Every lora_B is zero" in lines[0] and "The scale is 1000" in lines[1]
    run("export-peft", adapter, tmp_path / "peft")
    assert run("diagnose", tmp_path / "peft").startswith("Nothing was found wrong")


def test_doctor_names_the_language_model_and_what_scores_it(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {finding.what: finding for finding in doctor.diagnose()}
    assert found["torchmetrics"].ok
    assert not found["language model smollm2"].ok and "93 MB" in found["language model smollm2"].advice
    (tmp_path / "language-models" / "smollm2-x").mkdir(parents=True)
    (tmp_path / "language-models" / "smollm2-x" / "model.safetensors").write_text("")
    found = {finding.what: finding for finding in doctor.diagnose()}
    assert found["language model smollm2"].found == "in the cache"


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_in_the_same_bits(tiny_folder, tmp_path):
    """kill -9 with half a checkpoint written, and before a rename; then the same call again."""
    file = write_conversations(tmp_path / "talks.jsonl")
    command = [sys.executable, str(SCRIPT), str(file), str(tiny_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[3])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ended"] == 0 and len(told["whole"]["loss"]) == 10
    for name, ended in told["runs"].items():
        assert ended["killed"] == signal.SIGKILL and ended["kept"] >= 1, name
        assert ended["again"] == 0 and ended["end"] == told["whole"], name


# ---- misuse ------------------------------------------------------------------------------------------------

TALKS = ["train", "talks.jsonl"]
CASES = {
    "encoder for a language model": (
        ["train", "docstrings", "--encoder", "minilm"],
        "minilm is no language model",
    ),
    "encoder in a folder": ([*TALKS, "--encoder", "encoder"], "encoder is no language model"),
    "language model for an encoder": (
        ["train", "cola", "--encoder", "smollm2"],
        "smollm2 is a language model",
    ),
    "language model in a folder": (["train", "reviews", "--encoder", "tiny"], "tiny is a language model"),
    "no folder": (
        [*TALKS, "--encoder", "./nowhere"],
        "There is no folder ./nowhere; give that of a language model",
    ),
    "half a checkpoint": ([*TALKS, "--encoder", "half"], "half has no model*.safetensors"),
    "no template": ([*TALKS, "--encoder", "mute"], "mute has no chat template"),
    "hub out of reach": ([*TALKS, "--encoder", "some/model"], "'some/model'"),
    "no name": ([*TALKS, "--encoder", ""], "The language model's name is empty"),
    "a head": (["train", "docstrings", "--head", "roberta"], "--head is for encoders, and docstrings is for"),
    "a start": (
        [*TALKS, "--start", "sst2"],
        "--start is for encoders, and talks.jsonl is for a language model",
    ),
    "bitfit": ([*TALKS, "--method", "bitfit"], "trained by --method lora or full; got 'bitfit'"),
    "a rank too large": ([*TALKS, "--rank", "193"], "--rank 193 is more than the 192 rows of smollm2's"),
    "too large for a folder": (
        [*TALKS, "--encoder", "tiny", "--rank", "17"],
        "more than the 16 rows of tiny's",
    ),
    "paper": (
        ["train", "docstrings", "--recipe", "paper"],
        "Recipe 'paper' has no row for task 'docstrings'",
    ),
    "docstrings of the hub": (
        ["train", "docstrings", "--source", "hub"],
        "'docstrings' is not in source 'hub'",
    ),
    "line without an answer": (["train", "unanswered.jsonl"], "unanswered.jsonl, line 12, has no output"),
    "line that is no JSON": (["train", "cut.jsonl"], "cut.jsonl, line 3, is no JSON"),
    "too few": (["train", "few.jsonl"], "few.jsonl has 3 different prompts; at least 10 are needed"),
    "predict": (["predict", "writer", "a text"], "use `lora-tutorial generate` or `chat`"),
    "an encoder's adapter": (["generate", "sst2", "a text"], "an encoder's adapter and writes nothing"),
    "an encoder's chat": (["chat", "sst2"], "an encoder's adapter and writes nothing"),
    "no adapter": (["generate", "nowhere", "x"], "There is no adapter folder 'nowhere'"),
    "no prompt": (["generate", "writer"], "Missing argument 'prompt'"),
    "empty prompt": (["generate", "writer", " "], "The prompt is empty"),
    "no tokens": (["generate", "writer", "x", "--max-new-tokens", "0"], "--max-new-tokens 0 is not from 1"),
    "below zero": (
        ["generate", "writer", "x", "--temperature", "-1"],
        "--temperature -1.0 is not from 0 to 100",
    ),
    "no temperature": (["chat", "writer", "--temperature", "nan"], "--temperature nan is not from 0 to 100"),
    "nothing to diagnose": (["diagnose", "nowhere"], "There is no adapter folder 'nowhere'"),
    "no adapter to diagnose": (["diagnose", "empty"], "empty holds no adapter"),
    "merge of the tutorial's head": (["export-merged", "mrpc", "out"], "train it with --head roberta"),
    "merge onto a file": (["export-merged", "writer", "cut.jsonl"], "cut.jsonl is a file, so"),
    "import onto an encoder": (
        ["import-peft", "peft", "out", "--base", "minilm"],
        "minilm is no language model",
    ),
}


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_conversations(folder / "talks.jsonl")
    write_conversations(folder / "few.jsonl", 3)
    lines = (folder / "talks.jsonl").read_text().splitlines()
    (folder / "cut.jsonl").write_text("\n".join([*lines[:2], lines[2][:20], *lines[3:]]))
    (folder / "unanswered.jsonl").write_text("\n".join([*lines[1:12], '{"instruction": "Say it."}']))
    shutil.copytree(tiny_folder, folder / "tiny")
    shutil.copytree(tiny_folder, folder / "half")
    (folder / "half" / "model.safetensors").unlink()
    make_tiny_lm(folder / "mute", template=None)
    for name in ("empty", "encoder", "peft"):
        (folder / name).mkdir()
    (folder / "encoder" / "config.json").write_text(
        '{"model_type": "roberta", "architectures": ["RobertaModel"]}'
    )
    (folder / "peft" / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    (folder / "peft" / "adapter_model.safetensors").write_bytes(b"")
    save_adapter(build_lm(tiny_folder), folder / "writer", {"task": "talks"})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(place, case):
    arguments, words = CASES[case]
    before = contents(place)
    done = call(*arguments, cwd=place)
    told = done.stderr.decode()
    assert words in unboxed(told), told
    assert "Traceback" not in told and told.startswith("╭─ Error") and told.rstrip().endswith("╯")
    assert (done.returncode, done.stdout) == (2, b"")
    assert contents(place) == before


def test_no_mistake_costs_the_import_of_torch(place):
    code = (
        "import sys, lora_tutorial.cli.main as m\ntry: m.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    for case in (
        *("encoder for a language model", "language model in a folder", "a head", "too large for a folder"),
        *("line without an answer", "too few", "predict", "no temperature", "import onto an encoder"),
    ):
        arguments = [str(argument) for argument in CASES[case][0]]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=place, capture_output=True, text=True
        )
        loaded = set(done.stdout.split())
        assert "typer" in loaded and not loaded & {"torch", "transformers", "datasets", "pyarrow"}, case


def test_a_missing_torchmetrics_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr("lora_tutorial.lm.basics.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lora-tutorial\[lm\]'") as refused:
        checks.check_lm_options("docstrings", "lora", None, None)
    assert explain(refused.value) == (str(refused.value), USAGE)


def test_what_needs_no_torch_says_what_the_models_say(smollm2):
    assert (checks.LM, checks.LM_METHODS) == (SMOLLM2, LM_METHODS)
    rows = [m.out_features for m in smollm2.model.modules() if isinstance(m, torch.nn.Linear)]
    assert checks.LM_ROWS[SMOLLM2] == min(rows)


@pytest.mark.slow
def test_smollm2_answers_at_the_terminal(smollm2, tmp_path):
    save_adapter(build_lm("smollm2", lora=LoraConfig(r=1, lora_alpha=1)), tmp_path / "a")
    shown = run("generate", tmp_path / "a", "What is the capital of France?", "--max-new-tokens", 12)
    assert "Paris" in shown
