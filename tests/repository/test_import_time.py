"""What an import brings along, counted in modules: seconds depend on the machine, this does not."""

import json
import subprocess
import sys

import pytest

#: Each takes longer to import than everything of ours together.
HEAVY = {
    "transformers",
    "datasets",
    "evaluate",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "accelerate",
    "peft",
    "bitsandbytes",
    "huggingface_hub",
    "tokenizers",
    "IPython",
    "typer",
}
TORCH_ONLY = (
    "import lora_tutorial",
    "from lora_tutorial import LoraConfig, LoraLinear, FastLoraLinear, inject_lora, disable_lora",
    "from lora_tutorial import merge_lora, unmerge_lora, unload_lora, count_parameters, use_fast_layers",
    "import lora_tutorial.analysis.costs, lora_tutorial.analysis.speed",
)


def loaded_by(*statements):
    """The modules in a fresh Python after each statement in turn."""
    script = "import json, sys\nfound = []\n"
    for statement in statements:
        script += f"{statement}\nfound.append(list(sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}print(json.dumps(found))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [set(names) for names in json.loads(done.stdout)]


def test_the_package_alone_is_itself_and_a_piece_of_the_standard_library():
    before, after = loaded_by("pass", "import lora_tutorial")
    new = after - before
    assert {name for name in new if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "lora_tutorial"
    }
    assert len(new) < 20


@pytest.fixture(scope="module")
def after_torch():
    return loaded_by("import torch", *TORCH_ONLY)


@pytest.mark.parametrize("step", range(1, len(TORCH_ONLY) + 1), ids=TORCH_ONLY)
def test_layers_injection_and_merging_bring_nothing_heavy_beyond_torch(after_torch, step):
    tops = {name.partition(".")[0] for name in after_torch[step] - after_torch[0]}
    assert tops & HEAVY == set()
    assert tops - set(sys.stdlib_module_names) <= {"lora_tutorial", "torch"}


def test_together_they_are_few_modules_of_ours(after_torch):
    new = after_torch[-1] - after_torch[0]
    ours = {name for name in new if name.partition(".")[0] == "lora_tutorial"}
    assert len(ours) <= 15
    # The rest is the standard library, and what torch loads only when it is used.
    assert len(new - ours) < 60, sorted(new - ours)


def test_the_count_would_notice():
    (found,) = loaded_by("import scipy")
    assert {name.partition(".")[0] for name in found} & HEAVY == {"scipy"}
