"""Data sets with sentences of our own, laid out as the hub has GLUE and SQuAD."""

from datasets import ClassLabel, Dataset, Features, Sequence, Value

GOOD = ["The cat sat on the mat.", "We have seen it before.", "She reads what he writes.", "Who called you?"]
BAD = [
    "The cat sat mat on the.",
    "We has seed it before.",
    "She reads what writes he.",
    "Who you called are?",
]
CONTEXT = "The bridge was built by Ada Example in 1907. It has three arches."


def glue(folder):
    """The layout and the schema of nyu-mll/glue, with sentences of our own."""
    features = {"sentence": Value("string"), "label": ClassLabel(names=["unacceptable", "acceptable"])}
    rows = [{"sentence": text, "label": 1, "idx": i} for i, text in enumerate(GOOD)]
    rows += [{"sentence": text, "label": 0, "idx": i + 4} for i, text in enumerate(BAD)]
    hidden = [row | {"label": -1} for row in rows]
    schema = Features(features | {"idx": Value("int32")})
    pair = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("int64")})
    for name in ("cola", "mrpc", "rte"):
        (folder / name).mkdir(parents=True)
        for split, part in (("train", rows * 2), ("validation", rows), ("test", hidden)):
            if name != "cola":
                part = [
                    {"sentence1": a, "sentence2": f"{b} {split} {i}", "label": 0}
                    for i in range(30)
                    for a, b in zip(GOOD, BAD, strict=True)
                ]
            file = folder / name / f"{split}-00000-of-00001.parquet"
            Dataset.from_list(part, schema if name == "cola" else pair).to_parquet(file)
    (folder / "rte" / "train-00000-of-00001.parquet").write_bytes(b"<html>Sign in</html>" * 200)
    return card(folder, "cola", "mrpc", "rte")


def squad(folder):
    """The layout and the schema of rajpurkar/squad."""
    answers = Sequence({"text": Value("string"), "answer_start": Value("int32")})
    names = ("id", "title", "context", "question")
    schema = Features({name: Value("string") for name in names} | {"answers": answers})
    row = {"id": "q1", "title": "Bridge", "context": CONTEXT, "question": "Who built the bridge?"}
    row["answers"] = {"text": ["Ada Example"], "answer_start": [CONTEXT.index("Ada")]}
    (folder / "plain_text").mkdir(parents=True)
    for split in ("train", "validation"):
        file = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        Dataset.from_list([row], schema).to_parquet(file)
    return card(folder, "plain_text")


def card(folder, *configurations):
    """README.md as the hub has it: the configurations and their files."""
    lines = ["---", "configs:"]
    for name in configurations:
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in sorted({path.name.split("-")[0] for path in (folder / name).iterdir()}):
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
