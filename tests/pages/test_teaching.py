"""What the chapters call: shown source, and silence. Figures have a file of their own."""

import inspect
import os
import subprocess
import sys

import pytest

from lora_tutorial.lora import config
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.pages.source import show_source


def test_shown_source_is_the_source_and_no_more():
    shown = show_source(LoraConfig)
    assert repr(shown) == inspect.getsource(LoraConfig).rstrip("\n")
    page = shown._repr_html_()
    assert '<div class="highlight">' in page
    assert "style=" not in page  # colours belong to the theme, which has two


def test_shown_method_starts_at_the_margin():
    assert repr(show_source(LoraConfig.to_dict)).startswith("def to_dict")


def test_several_methods_stand_one_below_the_other():
    shown = show_source(LoraConfig.to_dict, LoraConfig.scaling.fget, docstring=False)
    assert repr(shown).startswith("def to_dict") and "\n\n@property\ndef scaling" in repr(shown)
    assert shown.name == "lora_tutorial.lora.config.LoraConfig.to_dict"  # where the page's link leads


def test_nothing_to_show_is_refused():
    with pytest.raises(TypeError, match="was given nothing: pass a class"):
        show_source()


def test_docstrings_can_be_left_out_and_the_rest_still_parses():
    plain = repr(show_source(config, docstring=False))
    compile(plain, "config", "exec")
    assert '"""' not in plain
    assert "class LoraConfig" in plain
    compile(repr(show_source(says_what_it_is, docstring=False)), "f", "exec")


def says_what_it_is():
    """All there is."""


@pytest.mark.parametrize("thing", [len, 3, "text"])
def test_what_has_no_source_is_refused_by_name(thing):
    with pytest.raises(TypeError, match="has no Python source: pass a class, function"):
        show_source(thing)


def test_quiet_leaves_nothing_on_stderr():
    script = (
        "from lora_tutorial.pages.source import quiet\n"
        "quiet()\n"
        "import logging\n"
        "from transformers.utils import logging as library\n"
        "library.get_logger('transformers.x').warning('advice')\n"
        "logging.getLogger('datasets.x').warning('advice')\n"
        "import tqdm, sys\n"
        "list(tqdm.tqdm(range(3)))\n"
    )
    noisy = script.replace("\nquiet()\n", "\n")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert subprocess.run([sys.executable, "-c", noisy], capture_output=True, text=True).stderr != ""


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_do_not_spin_unless_the_user_says_so(given, kept):
    script = (
        "import os, sys\n"
        "from lora_tutorial import quiet\n"
        "quiet()\n"
        "assert 'torch' not in sys.modules\n"  # it reads the variable once
        "print(os.environ['OMP_WAIT_POLICY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == kept
