"""A run that stopped goes on from its last whole checkpoint and ends the same, or is refused."""

import shutil

import pytest
import tiny
import torch
from interrupted_runs import assert_same_end, files_of, go, truncate

from lora_tutorial.training import checkpoints
from lora_tutorial.training.records import load_record


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(part, whole):
    left = part / "checkpoints" / ".step-00000015.abc"  # by a kill in the middle of a write
    left.mkdir()
    model = tiny.model()
    steps = []
    model.register_forward_hook(lambda module, *_: steps.append(1) if module.training else None)
    assert_same_end(go(part, model), whole)
    assert len(steps) == 12 and not left.exists()


def test_an_epochs_last_step_is_saved_with_its_scores_or_not_at_all(tmp_path, whole):
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", checkpoint_every=8, scorer=interrupted)
    assert checkpoints.resume_point(tmp_path / "run") is None
    assert_same_end(go(tmp_path / "run", checkpoint_every=8), whole)


def test_an_interruption_at_the_end_of_an_epoch_changes_nothing_either(tmp_path, whole):
    torch.manual_seed(0)
    model = tiny.Interrupted()
    model.left = 17
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", model)
    assert checkpoints.latest_checkpoint(tmp_path / "run" / "checkpoints").step == 16
    assert_same_end(go(tmp_path / "run"), whole)


def test_a_batch_sampler_of_the_callers_is_taken_up_where_it_was(tmp_path):
    whole = go(tmp_path / "whole", loaders=tiny.own_loaders())
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", tiny.Interrupted(), loaders=tiny.own_loaders())
    assert_same_end(go(tmp_path / "run", loaders=tiny.own_loaders()), whole)


def flip(folder):
    text = bytearray((folder / "state.json").read_bytes())
    text[len(text) // 2] ^= 1
    (folder / "state.json").write_bytes(text)


def empty(folder):
    (folder / "manifest.json").write_text("")


def lose(folder):
    (folder / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, lose])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(part, whole, damage):
    damage(part / "checkpoints" / "step-00000012")
    with pytest.warns(UserWarning, match="step-00000012 is damaged .*going back to the one before") as warned:
        found = go(part)
    assert len(warned) == 1
    assert_same_end(found, whole)


def test_with_every_checkpoint_damaged_it_starts_again(part, whole):
    for folder in (part / "checkpoints").iterdir():
        truncate(folder)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        found = go(part)
    assert [str(w.message).split(" is damaged")[0][-8:] for w in warned] == ["00000012", "00000009"]
    assert_same_end(found, whole)


def test_a_finished_run_is_returned_with_its_weights_and_nothing_is_done_again(part, whole):
    go(part)
    path = part / "record.json"
    record = load_record(path)
    record.extra["adapter_bytes"] = 7
    record.save(path)
    before = {file: file.stat().st_mtime_ns for file in part.rglob("*")}
    found, _, model = go(part)
    assert (
        found.extra == {"adapter_bytes": 7} and {f: f.stat().st_mtime_ns for f in part.rglob("*")} == before
    )
    assert torch.equal(model.head.weight, whole[2].head.weight)


def test_resuming_where_nothing_is_starts_from_the_beginning(tmp_path, whole):
    assert_same_end(go(tmp_path / "new" / "run"), whole)


def test_a_folder_with_a_run_is_not_overwritten(part):
    before = files_of(part)
    with pytest.raises(FileExistsError, match="holds a run: resume it, or choose another folder"):
        go(part, resume=False)
    (part / "record.json").unlink()
    with pytest.raises(FileExistsError):
        go(part, resume=False)
    assert all(file.read_bytes() == content for file, content in before.items() if file.exists())


def other_base():
    model = tiny.model()
    with torch.no_grad():
        model.body.weight[0, 0] += 1
    return model


def other_freeze():
    model = tiny.model()
    model.norm.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": tiny.recipe(learning_rate=0.1)}, "recipe.learning_rate is 0.05 there, 0.1 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"config": {"task": "other"}}, "config.task is None there, 'other' here"),
        ({"loaders": tiny.loaders(56)}, "examples is 64 there, 56 here"),
        ({"model": other_base()}, "frozen_sha256 is '"),
        ({"model": other_freeze()}, "trainable_shapes_sha256 is '"),
    ],
)
@pytest.mark.parametrize("with_checkpoints", [True, False])
def test_a_run_of_another_configuration_is_refused_and_left_alone(part, changes, said, with_checkpoints):
    if not with_checkpoints:
        shutil.rmtree(part / "checkpoints")
    before = files_of(part)
    with pytest.raises(ValueError, match="is of another configuration") as refused:
        go(part, **changes)
    assert said in str(refused.value) and "choose another folder" in str(refused.value)
    assert files_of(part) == before


def test_other_weights_in_a_checkpoint_are_refused():
    model = tiny.model()
    tensors = checkpoints.model_tensors(model)
    with pytest.raises(ValueError, match=r"other weights than the model: \['head.bias'\]"):
        checkpoints.restore_model(model, {n: v for n, v in tensors.items() if n != "model.head.bias"})
    with pytest.raises(ValueError, match=r"head.bias is of shape \(4,\), the model's \(3,\)"):
        checkpoints.restore_model(model, {**tensors, "model.head.bias": torch.zeros(4)})


def test_checkpoints_hold_what_training_changes_and_no_pickle(part):
    saved = checkpoints.latest_checkpoint(part / "checkpoints")
    weights = {name for name in saved.tensors if name.startswith("model.")}
    assert weights == {
        f"model.{name}" for name in ("head.weight", "head.bias", "norm.weight", "norm.bias", "unread", "seen")
    }
    assert {name.rpartition("|")[2] for name in saved.tensors if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert {"random.0.python", "random.0.numpy", "random.0.torch"} <= saved.tensors.keys()
    for file in part.rglob("*"):
        assert file.is_dir() or file.suffix in (".json", ".safetensors"), file


def test_only_the_last_two_checkpoints_stay_and_leftovers_go(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoints.save_checkpoint(tmp_path, step, {"x": torch.tensor([step])}, {"step": step})
    (tmp_path / ".step-00000025.abc").mkdir()
    checkpoints.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]
    # after going back, the folders of steps not yet reached again are no reason to drop the good ones
    checkpoints.save_checkpoint(tmp_path, 12, {"x": torch.tensor([12])}, {})
    assert (tmp_path / "step-00000012").is_dir() and (tmp_path / "step-00000015").is_dir()
