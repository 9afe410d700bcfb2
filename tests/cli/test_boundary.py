"""What becomes of errors: whose words are shown, which exit status, and how the traceback is seen."""

import errno
import subprocess
import sys
import warnings

import pytest
import typer
from command_line import call, environment, fails, unboxed
from safetensors import SafetensorError, safe_open

from lora_tutorial.cli import main as command
from lora_tutorial.cli.main import FAULT, USAGE, explain
from lora_tutorial.lora.config import LoraConfig


def raised(call, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
        call(*arguments)
    return caught.value


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device", "adapter.safetensors")


def damaged_weights(folder):
    (folder / "a.safetensors").write_bytes(b"no tensors")
    safe_open(folder / "a.safetensors", framework="pt")


def of_the_hub():
    raise type("HfHubHTTPError", (Exception,), {"__module__": "huggingface_hub.errors"})("503 for url")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(lambda: LoraConfig(r=0)), "r must be the rank, a positive integer; got 0."),
        (raised(full_disk), "The disk is full"),
        (SafetensorError("Error while serializing: I/O error: No space left on device"), "The disk is full"),
        (raised(b"caf\xe9".decode), "A text is not UTF-8"),
        (raised(open, "/nowhere/at/all"), "A file cannot be read or written: [Errno 2]"),
        (raised(of_the_hub), "The hub did not deliver what was asked of it (503 for url)"),
        (MemoryError("Unable to allocate 9 TiB"), "There is not enough memory"),
        (ModuleNotFoundError("No module named 'peft'"), "A package is missing (No module named 'peft')"),
        (typer.BadParameter("no such thing."), "Invalid value: no such thing. See lora-tutorial --help."),
    ],
)
def test_what_can_be_mended_is_told_in_its_own_words(error, words):
    sentence, status = explain(error)
    assert sentence.startswith(words)
    assert status == USAGE


def test_damaged_weights_are_named(tmp_path):
    sentence, status = explain(raised(damaged_weights, tmp_path))
    assert sentence.startswith("A safetensors file cannot be read or written") and status == USAGE


@pytest.mark.parametrize(
    "error",
    [
        raised({}.__getitem__, "base"),
        raised(int, "x"),
        raised(LoraConfig, "no", "such", "thing", *"abcdefgh"),
    ],
)
def test_what_nobody_foresaw_is_called_a_bug(error):
    """Also a ValueError or TypeError that Python raised inside our own code: nobody wrote its words."""
    sentence, status = explain(error)
    assert sentence.startswith(f"This is a bug of ours: {type(error).__name__}")
    assert "LORA_TUTORIAL_DEBUG=1" in sentence and "/issues" in sentence
    assert status == FAULT


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_traceback_is_shown_when_asked_for(monkeypatch, capsys, debug):
    def broken(*arguments, **options):
        return {}["base"]

    monkeypatch.setenv("LORA_TUTORIAL_DEBUG", debug)
    monkeypatch.setattr(command.typer.main, "get_command", lambda app: type("Odd", (), {"main": broken}))
    monkeypatch.setattr("sys.argv", ["lora-tutorial"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    told = capsys.readouterr()
    assert stopped.value.code == FAULT and told.out == ""
    assert ("Traceback" in told.err) == bool(debug)
    assert "This is a bug of ours: KeyError ('base')" in unboxed(told.err)


def test_our_warnings_are_remarks_and_those_of_libraries_are_left_out(monkeypatch, capsys):
    def warns(*arguments, **options):
        warnings.warn_explicit("a checkpoint is damaged", UserWarning, command.__file__, 1)
        warnings.warn_explicit("numpy is old", FutureWarning, "/elsewhere/numpy.py", 1)

    monkeypatch.setattr(command.typer.main, "get_command", lambda app: type("Odd", (), {"main": warns}))
    monkeypatch.setattr("sys.argv", ["lora-tutorial"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert not stopped.value.code
    assert capsys.readouterr().err == "Note: a checkpoint is damaged\n"


def test_damaged_tensors_are_a_sentence(tmp_path, monkeypatch, capsys, tiny_roberta):
    from lora_tutorial import LoraWrapperRoberta, save_adapter

    about = {"task": "x", "columns": ["text"], "labels": ["a", "b"], "max_length": 16}
    save_adapter(
        LoraWrapperRoberta("glue", 2, model_id=str(tiny_roberta), lora_rank=2), tmp_path / "a", about
    )
    file = tmp_path / "a" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "damaged" in fails(monkeypatch, capsys, "predict", tmp_path / "a", "text")


def test_version_and_help_are_no_errors():
    for option in ("--version", "--help"):
        done = call(option)
        assert done.returncode == 0 and done.stderr == b"" and b"lora-tutorial" in done.stdout


def test_threads_wait_without_spinning_unless_the_user_wants_them_to():
    code = (
        "import lora_tutorial.cli.main, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    for given, used in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        kept = {k: v for k, v in environment().items() if k != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
        assert done.stdout.split() == [used, "False"]
