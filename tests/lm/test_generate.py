"""Writing: the loop by hand equals transformers', padding on the left changes nothing, and ends are ends."""

import pytest
import torch

from lora_tutorial.lm.chat import template_ids
from lora_tutorial.lm.evaluator import text_losses, write_and_compare
from lora_tutorial.lm.generate import Reply, generate_answers, next_tokens, pad_left, stream

PROMPTS = [
    [{"role": "user", "content": "What is two and two?"}],
    [{"role": "user", "content": "Say"}],
    [{"role": "user", "content": "Say one word. Say one word. Say one word."}],
]


def first(tokens, number):
    return [token for token, _ in zip(tokens, range(number), strict=False)]


def listened(answer):
    """A stream's pieces, and the reply with which it ends."""
    pieces = []
    while True:
        try:
            pieces.append(next(answer))
        except StopIteration as end:
            return pieces, end.value


def test_the_loop_by_hand_writes_what_generate_writes(tiny):
    model, tokenizer = tiny
    ids = template_ids(PROMPTS[0], tokenizer, answer=True)
    theirs = model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert first(next_tokens(model, ids), 12) == theirs[0, len(ids) :].tolist()


def test_drawing_follows_the_seed_and_the_temperature(tiny):
    model, tokenizer = tiny
    ids = template_ids(PROMPTS[0], tokenizer, answer=True)
    greedy = first(next_tokens(model, ids), 10)
    drawn = [first(next_tokens(model, ids, temperature=2.0, seed=seed), 10) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert first(next_tokens(model, ids, temperature=1e-6), 10) == greedy


def test_a_batch_writes_what_each_prompt_would_alone(tiny):
    model, tokenizer = tiny
    together = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=3)
    alone = [generate_answers(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]
    assert together == alone


def test_padding_is_on_the_left():
    batch = pad_left([[5], [6, 7, 8]], pad_id=2)
    assert batch["input_ids"].tolist() == [[2, 2, 5], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


class Scripted(torch.nn.Module):
    """Stands in for a model that writes a given sequence of tokens."""

    def __init__(self, model, ids):
        super().__init__()
        self.model, self.ids, self.device, self.config = model, ids, model.device, model.config

    def forward(self, **_):
        output = self.model(input_ids=torch.tensor([[1]]))
        output.logits = torch.nn.functional.one_hot(
            torch.tensor([[self.ids.pop(0)]]), output.logits.shape[-1]
        )
        return output


def test_the_stream_ends_with_the_end_token_and_shows_whole_characters(tiny):
    model, tokenizer = tiny
    text = "né — 漢"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)  # some characters take several tokens
    pieces, reply = listened(
        stream(Scripted(model, [*ids, tokenizer.eos_token_id, 9]), tokenizer, PROMPTS[1])
    )
    assert "".join(pieces) == text
    assert reply == Reply(text, len(ids) + 1, stopped=True)
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_stream_is_cut_where_it_does_not_end(tiny):
    model, tokenizer = tiny
    ids = tokenizer("Say Say Say Say Say", add_special_tokens=False)["input_ids"]
    pieces, reply = listened(stream(Scripted(model, list(ids)), tokenizer, PROMPTS[1], max_new_tokens=2))
    assert "".join(pieces) == tokenizer.decode(ids[:2])
    assert reply == Reply(tokenizer.decode(ids[:2]).strip(), 2, stopped=False)
    end = [*ids[:1], tokenizer.eos_token_id]
    assert listened(stream(Scripted(model, end), tokenizer, PROMPTS[1], max_new_tokens=2))[1].stopped


def test_answers_say_whether_they_stopped(tiny, monkeypatch):
    model, tokenizer = tiny
    end = tokenizer.eos_token_id
    written = torch.tensor([[5, 6, end, end], [5, 6, 7, 8]])

    def generate(input_ids, **_):
        return torch.cat([input_ids, written], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    one, two = generate_answers(model, tokenizer, PROMPTS[:2])
    by_stop = {answer.stopped: answer for answer in (one, two)}
    assert by_stop[True].tokens == 3
    assert by_stop[False].tokens == 4
    assert by_stop[True].text == tokenizer.decode([5, 6]).strip()


def test_chrf_is_100_for_the_reference_itself_and_examples_go_in_front(tiny, monkeypatch):
    model, tokenizer = tiny
    seen = []

    def answers(model, tokenizer, prompts, **_):
        seen.extend(prompts)
        return [Reply("It is four.", 4, True), Reply("zzz", 2, False)]

    monkeypatch.setattr("lora_tutorial.lm.evaluator.generate_answers", answers)
    chats = [[*PROMPTS[0], {"role": "assistant", "content": "It is four."}]] * 2
    examples = [*PROMPTS[1], {"role": "assistant", "content": "word"}]
    found = write_and_compare(model, tokenizer, chats, examples)
    assert found.chrf[0] == pytest.approx(100)
    assert found.chrf[1] < 5
    assert found.summary()["stopped"] == 0.5
    assert seen[0] == [*examples, *PROMPTS[0]]


def test_plain_text_is_read_from_its_second_token_on(tiny):
    model, tokenizer = tiny
    text = "Say one word."
    found = text_losses(model, tokenizer, [text, "S"])
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert found.tokens[0] == ids.shape[1] - 1
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


def test_plain_texts_side_by_side_cost_what_each_costs_alone(tiny):
    model, tokenizer = tiny
    texts = ["Say one word. Say one word.", "Say", "What is two and two?", "Say one word.", "two and two"]
    together = text_losses(model, tokenizer, texts, max_length=7, batch_size=2)
    alone = [text_losses(model, tokenizer, [text], max_length=7) for text in texts]
    alone = [found for found in alone if found.tokens]  # a single token has no second
    assert list(together.tokens) == [found.tokens[0] for found in alone]
    assert max(together.tokens) == 6 and len(set(together.tokens)) > 1
    assert together.sums == pytest.approx([found.sums[0] for found in alone], rel=1e-5)
