// The lines of Python that do the same with the package. A test runs them and compares.

function pythonFor(task, texts, { on, alpha, rank, merge, base }, about) {
  const off = !on || alpha === 0, names = new Set(["load_adapter", "load_tokenizer", "stored_adapter"]);
  const use = name => (names.add(name), name);
  const head = [], lines = [], q = JSON.stringify;
  const [back, there] = base === "nf4" ? ["dequantize_nf4", "quantize_nf4"] : ["dequantize_int8", "quantize_int8"];
  if (base !== "full")
    lines.push(
      "for linear in model.model.encoder.modules():",
      "    if isinstance(linear, torch.nn.Linear):",
      `        linear.weight.data = ${use(back)}(${use(there)}(linear.weight))`,
    );
  if (!off && rank < about.rank)
    lines.push(
      `for _, layer in ${use("lora_modules")}(model):  # keep the strongest of ${about.rank} directions`,
      "    for A, B in layer.lora_factors().values():",
      "        U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)",
      `        S[${rank}:] = 0`,
      `        A.data, B.data = Vh[:${about.rank}], U[:, :${about.rank}] * S[:${about.rank}]`,
    );
  if (!off && alpha !== 1) {
    head.push("from dataclasses import replace");
    lines.push(
      `for _, layer in ${use("lora_modules")}(model):`,
      "    config = layer.lora_config",
      `    layer.lora_config = replace(config, lora_alpha=${alpha} * config.lora_alpha)`,
    );
  }
  if (!off && merge !== "apart") lines.push(`${use("merge_lora")}(model)`);
  if (!off && merge === "rounded") {
    lines.push(
      `for _, layer in ${use("lora_modules")}(model):`,
      "    for linear in (layer.query, layer.value):",
      `        linear.weight.data = ${use(back)}(${use(there)}(linear.weight))`,
    );
  }
  const where = off ? `torch.no_grad(), ${use("disable_lora")}(model)` : "torch.no_grad()";
  if (about.spans) {
    use("Reader");
    head.push("from datasets import Dataset");
    lines.push(
      `rows = {"id": ["1"], "question": [${q(texts[0])}], "context": [${q(texts[1])}]}`,
      "read = Reader(Dataset.from_dict(rows), tokenizer)",
      `with ${where}:`,
      "    print(read(model)[0].spans[0])",
    );
  } else
    lines.push(
      `batch = tokenizer(${texts.map(text => q(text)).join(", ")}, truncation=True, max_length=${about.maxLength}, return_tensors="pt")`,
      `with ${where}:`,
      "    logits = model(**batch).logits",
      about.labels.length ? "print(logits.softmax(-1))" : "print(logits.item())",
    );
  head.push("import torch");
  return [
    ...head.sort(),
    ...imports([...names].sort((a, b) => (a.toLowerCase() < b.toLowerCase() ? -1 : 1))),
    "",
    `model = load_adapter(stored_adapter(${q(task)}))`,
    'tokenizer = load_tokenizer("minilm")',
    ...lines,
  ].join("\n");
}

// The names from the package, as many to a line as fit.
function imports(names) {
  const lines = [`from lora_tutorial import ${names.join(", ")}`];
  if (lines[0].length <= 72) return lines;
  const wrapped = ["from lora_tutorial import (", "   "];
  for (const name of names)
    if (wrapped.at(-1).length + name.length < 70) wrapped[wrapped.length - 1] += ` ${name},`;
    else wrapped.push(`    ${name},`);
  return [...wrapped, ")"];
}
