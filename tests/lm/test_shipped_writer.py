"""The language model's adapter that comes with the book answers as its record says."""

import re
from pathlib import Path

import pytest

from lora_tutorial import load_adapter, load_task, tokenize_chats
from lora_tutorial.adapters.files import stored_adapters
from lora_tutorial.data.tasks import get_task
from lora_tutorial.experiments.ship import CARD
from lora_tutorial.lm.evaluator import ResponseScorer, write_and_compare
from lora_tutorial.training.records import load_record

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
WRITERS = {task: folder for task, folder in stored_adapters().items() if get_task(task).generative}
ROWS = 12


@pytest.mark.slow
@pytest.mark.parametrize("task", WRITERS)
def test_its_losses_and_an_answer_are_those_of_its_record(task, smollm2):
    card = (WRITERS[task] / CARD).read_text(encoding="utf-8")
    (name,) = re.findall(r"\| Record \| benchmarks/results/(\S+\.json) \|", card)
    record = load_record(RESULTS / name)
    model, tokenizer = load_adapter(WRITERS[task]), smollm2.tokenizer
    test = load_task(task).data["test"]
    rows = tokenize_chats({"test": test}, tokenizer, record.recipe["max_length"])["test"]
    stored = record.extra["splits"]["test"]
    assert len(rows) == stored["rows"]
    found = ResponseScorer(rows.select(range(ROWS)), tokenizer).losses(model)
    assert found.tokens == [int(float(count)) for count in stored["labels"][:ROWS]]
    assert found.sums == pytest.approx([float(loss) for loss in stored["predictions"][:ROWS]], rel=1e-3)
    answers = write_and_compare(model, tokenizer, [test[int(rows[0]["row"])]["messages"]]).answers
    assert answers[0].text == record.extra["written"]["answers"][0]
