"""Chat template, prompt mask, padding and packing: what is learnt, and that no row sees another."""

import pytest
import torch
from datasets import Dataset, DatasetDict

from lora_tutorial.lm.batches import at_answers, make_chat_loader, pack, pad, tokenize_chats
from lora_tutorial.lm.chat import IGNORED, encode_chat, template_ids
from lora_tutorial.lm.evaluator import ResponseScorer, token_losses


def said(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


CHATS = [
    said("What is two?", "It is four."),
    said("Say one word.", "Yes"),
    said("two", "Say it is here: word!"),
]


def learnt(chat, tokenizer):
    return tokenizer.decode([label for label in chat.labels if label != IGNORED])


def test_the_answer_and_its_end_are_learnt_and_nothing_else(tiny):
    _, tokenizer = tiny
    chat = encode_chat(CHATS[0], tokenizer)
    assert learnt(chat, tokenizer) == "It is four.<|im_end|>"
    assert tokenizer.decode(chat.input_ids) == (
        "<|im_start|>user\nWhat is two?<|im_end|>\n<|im_start|>assistant\nIt is four.<|im_end|>"
    )
    kept = [token for token, label in zip(*chat, strict=True) if label != IGNORED]
    assert kept == [label for label in chat.labels if label != IGNORED]


def test_every_answer_of_a_long_chat_is_learnt_or_the_last_alone(tiny):
    _, tokenizer = tiny
    chat = [{"role": "system", "content": "Say word."}, *CHATS[0], *CHATS[1]]
    assert learnt(encode_chat(chat, tokenizer), tokenizer) == "It is four.<|im_end|>Yes<|im_end|>"
    assert learnt(encode_chat(chat, tokenizer, last_only=True), tokenizer) == "Yes<|im_end|>"


def test_no_second_begin_token_is_put_before_the_template(tiny):
    _, tokenizer = tiny
    assert template_ids(CHATS[0], tokenizer).count(tokenizer.bos_token_id) == 2  # one for each turn
    prompt = template_ids(CHATS[0][:1], tokenizer, answer=True)
    assert template_ids(CHATS[0], tokenizer)[: len(prompt)] == prompt


def test_a_conversation_without_an_answer_is_refused(tiny):
    for messages in ([], CHATS[0][:1]):
        with pytest.raises(ValueError, match="ends with the assistant's message"):
            encode_chat(messages, tiny.tokenizer)


def test_a_template_that_rewrites_the_past_is_refused(tiny):
    _, tokenizer = tiny
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="changes what it wrote"):
        encode_chat(CHATS[0], tokenizer)


def rows(tokenizer):
    return [encode_chat(messages, tokenizer)._asdict() for messages in CHATS]


def test_padding_is_neither_attended_to_nor_learnt(tiny):
    model, tokenizer = tiny
    batch = pad(rows(tokenizer), tokenizer.pad_token_id)
    lengths = [len(row["input_ids"]) for row in rows(tokenizer)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, length in enumerate(lengths):
        assert (batch["labels"][row, length:] == IGNORED).all()
        assert batch["labels"][row, length - 1] == tokenizer.eos_token_id  # though pad is the same token
    other = pad(rows(tokenizer), pad_id=17)
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, model(**other).loss)


def test_packed_rows_do_not_see_each_other(tiny):
    model, tokenizer = tiny
    own = rows(tokenizer)
    packed, padded = pack(own), pad(own, tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(**packed).logits[0]  # (total, vocabulary)
        apart = model(**padded).logits  # (rows, longest, vocabulary)
    start = 0
    for row, chat in enumerate(own):
        length = len(chat["input_ids"])
        torch.testing.assert_close(
            together[start : start + length], apart[row, :length], atol=1e-5, rtol=1e-4
        )
        start += length
    with torch.no_grad():
        torch.testing.assert_close(model(**packed).loss, model(**padded).loss, atol=1e-6, rtol=1e-6)


def test_the_comparison_would_see_a_leak(tiny):
    model, tokenizer = tiny
    packed = pack(rows(tokenizer))
    total, first = packed["input_ids"].shape[1], len(rows(tokenizer)[0]["input_ids"])
    leak = {"attention_mask": torch.ones(total, total, dtype=torch.bool).tril()[None, None]}
    with torch.no_grad():
        good, bad = model(**packed).logits, model(**packed | leak).logits
    torch.testing.assert_close(bad[0, :first], good[0, :first], atol=1e-5, rtol=1e-4)
    assert (bad[0, first:] - good[0, first:]).abs().max() > 1e-2


@pytest.mark.parametrize("packed", [False, True])
def test_logits_at_the_answers_alone_give_the_same_loss_and_gradients(tiny, packed):
    model, tokenizer = tiny
    whole = pack(rows(tokenizer)) if packed else pad(rows(tokenizer), tokenizer.pad_token_id)
    short, found = at_answers(whole), []
    for batch in (whole, short):
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        found.append((output.loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert output.logits.shape[1] == len(short["logits_to_keep"]) < whole["labels"].shape[1]
    learnt = (whole["labels"][:, 1:] != IGNORED).sum()
    assert (short["shift_labels"] != IGNORED).sum() == learnt
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_first_token_of_a_packed_row_is_no_ones_to_predict(tiny):
    whole = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    assert pack(whole)["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert pack(whole)["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_token_losses_are_shifted_and_equal_the_models_own(tiny):
    model, tokenizer = tiny
    batch = pad(rows(tokenizer), tokenizer.pad_token_id)
    with torch.no_grad():
        output = model(**batch)
    losses = token_losses(output.logits, batch["labels"])
    counted = batch["labels"][:, 1:] != IGNORED
    assert losses.shape == counted.shape
    assert (losses[~counted] == 0).all()
    torch.testing.assert_close(losses.sum() / counted.sum(), output.loss)


def test_long_conversations_are_left_out_whole(tiny):
    _, tokenizer = tiny
    data = DatasetDict(train=Dataset.from_list([{"messages": chat} for chat in CHATS]))
    lengths = [len(encode_chat(chat, tokenizer).input_ids) for chat in CHATS]
    kept = tokenize_chats(data, tokenizer, max_length=sorted(lengths)[1])["train"]
    assert kept["row"] == [row for row, length in enumerate(lengths) if length < max(lengths)]
    with pytest.raises(ValueError, match=f"the shortest has {min(lengths)}"):
        tokenize_chats(data, tokenizer, max_length=min(lengths) - 1)


def test_scores_are_in_the_rows_order_whatever_the_batches(tiny):
    model, tokenizer = tiny
    data = Dataset.from_list(rows(tokenizer))
    alone = [ResponseScorer(data.select([row]), tokenizer).losses(model) for row in range(len(data))]
    together = ResponseScorer(data, tokenizer, batch_size=2).losses(model)
    assert together.sums == pytest.approx([found.sums[0] for found in alone], rel=1e-5)
    assert list(together.tokens) == [found.tokens[0] for found in alone]
    low, high = together.interval()
    assert low < together.loss < high


def test_packed_batches_come_from_the_loader(tiny):
    _, tokenizer = tiny
    data = Dataset.from_list(rows(tokenizer))
    (batch,) = make_chat_loader(data, tokenizer, batch_size=3, packed=True)
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows(tokenizer)))
