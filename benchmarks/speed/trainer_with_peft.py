"""The other side of `whole_run.py`: what a user of transformers' Trainer and PEFT writes for the same task.

    python benchmarks/speed/trainer_with_peft.py reviews FOLDER      # prints its scores, as JSON, last

The data, the way texts become tokens, what is trained, batch size, rates and steps are those of the command.
Everything else is what Trainer does when nothing else is asked for: batches in random order, padded to their
longest row, and scoring in the rows' own order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.lm.batches import tokenize_chats
from lora_tutorial.lm.evaluator import write_and_compare
from lora_tutorial.lm.instructions import task_from_conversations
from lora_tutorial.lm.models import load_lm
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.squad.decoding import decode
from lora_tutorial.squad.windows import make_windows
from lora_tutorial.training.recipes import Recipe, load_recipe

R, ALPHA, RATE, REVIEWS = 8, 16, 1e-3, 1500  # the command is given the same


def make_trainer(model: Any, rows: Dataset, recipe: Recipe, folder: str, **options: Any) -> Trainer:
    """A Trainer with the numbers of one of the command's recipes."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=RATE,
        weight_decay=recipe.weight_decay,
        warmup_steps=round(recipe.warmup * len(rows) / recipe.batch_size),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        **options.pop("arguments", {}),
    )
    return Trainer(model, arguments, train_dataset=rows, **options)


def on_encoder(kind: type, task: TaskType) -> tuple[Any, Any]:
    """Transformers' RoBERTa with a head and PEFT's LoRA on query and value; and the tokenizer."""
    encoder, tokenizer = load_encoder("minilm")
    model = kind(encoder.config)
    model.roberta.load_state_dict(encoder.state_dict(), strict=False)  # it has no pooler
    config = LoraConfig(task_type=task, r=R, lora_alpha=ALPHA, target_modules=["query", "value"])
    return get_peft_model(model, config), tokenizer


def reviews(folder: str) -> dict[str, float]:
    """One epoch on film reviews; accuracy on validation and test."""
    model, tokenizer = on_encoder(RobertaForSequenceClassification, TaskType.SEQ_CLS)
    rows = load_task("reviews").data.remove_columns(["rating"])
    rows = rows.map(
        lambda part: tokenizer(part["text"], truncation=True), batched=True, remove_columns=["text"]
    )
    trainer = make_trainer(
        model,
        rows["train"].shuffle(seed=0).select(range(REVIEWS)),
        load_recipe("quick"),
        folder,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
    )
    trainer.train()
    parts = ("validation", "test")
    return {part: trainer.evaluate(rows[part])["eval_accuracy"] for part in parts}


def squad(folder: str, source: str) -> dict[str, float]:
    """One epoch on windows of SQuAD; F1 on the validation questions."""
    model, tokenizer = on_encoder(RobertaForQuestionAnswering, TaskType.QUESTION_ANS)
    rows, recipe = load_task("squad", source).data, load_recipe("quick", "squad")
    windows = make_windows(rows["train"], tokenizer, recipe.max_length, training=True)
    trainer = make_trainer(
        model, windows.inputs, recipe, folder, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train()
    asked = make_windows(rows["validation"], tokenizer, recipe.max_length)
    start, end = trainer.predict(asked.inputs.remove_columns(["window"])).predictions  # (windows, tokens)
    answers = decode(asked, start, end)
    metric = load_metric("squad")
    guesses = [{"id": answer.id, "prediction_text": answer.text()} for answer in answers]
    golds = [{"id": row["id"], "answers": row["answers"]} for row in rows["validation"]]
    return {"validation": metric.compute(predictions=guesses, references=golds)["f1"]}


def docstrings(folder: str, file: str) -> dict[str, float]:
    """One epoch of a language model; its loss on validation and test, and chrF of what it writes."""
    model, tokenizer = load_lm("smollm2")
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=R, lora_alpha=ALPHA, target_modules="all-linear")
    model = get_peft_model(model, config)
    rows, recipe = task_from_conversations(file).data, load_recipe("chat")
    tokens = tokenize_chats(rows, tokenizer, recipe.max_length)
    kept = list(tokens["test"]["row"])
    tokens = tokens.remove_columns(["row"])
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    losses_only = {"prediction_loss_only": True}
    trainer = make_trainer(
        model, tokens["train"], recipe, folder, data_collator=collator, arguments=losses_only
    )
    trainer.train()
    scores = {part: trainer.evaluate(tokens[part])["eval_loss"] for part in ("validation", "test")}
    asked = list(rows["test"].select(kept[:64])["messages"])
    return scores | {"chrf": write_and_compare(model, tokenizer, asked, max_new_tokens=64).summary()["chrf"]}


if __name__ == "__main__":
    task, out, *given = sys.argv[1:]
    Path(out).mkdir(exist_ok=True)
    print(json.dumps({"reviews": reviews, "squad": squad, "docstrings": docstrings}[task](out, *given)))
