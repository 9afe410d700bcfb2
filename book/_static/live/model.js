// MiniLM, an encoder of six layers, with LoRA on query and value: the same arithmetic as LoraWrapperRoberta, whose names
// the tensors keep. Runs in the worker.

class Model {
  // `meta` has the sizes; `base` and `adapters` are the tensors of the two files.
  constructor(meta, base, adapters) {
    Object.assign(this, { meta, stored: base, adapters, weights: new Map(), precision: null });
  }

  // Take the linear layers' weights as loaded ("full"), in 8 bits ("int8"), or rounded to NF4 ("nf4").
  useBase(precision) {
    if (this.precision === precision) return;
    for (const [name, tensor] of this.stored) {
      if (!/^encoder\..*(query|key|value|dense)\.weight$/.test(name)) continue;
      const weight = fromInt8(tensor, precision !== "int8");
      this.weights.set(name, precision === "nf4" ? roundToNf4(weight, this.meta.nf4) : weight);
    }
    this.precision = precision;
    this.sums = null;
  }

  // A vector of the task if it has trained one of its own (a bias, a norm, the head), or else the base's.
  vector(task, name) {
    return this.adapters.get(`${task}/${name}`) ?? this.stored.get(name);
  }

  // The update of "query" or "value" in a layer at the settings' rank and strength, or null where it is off.
  update(task, { on, alpha, rank }, layer, part) {
    const about = this.meta.tasks[task], at = `${task}/encoder.layer.${layer}.attention.self.lora_${part}_`;
    if (!on || alpha === 0 || rank === 0) return null;
    const factors = { A: this.adapters.get(at + "A"), B: this.adapters.get(at + "B"), rank: about.rank };
    return { ...cutToRank(factors, rank, this.meta.hidden), scale: alpha * about.scaling };
  }

  // The weight with the update in it; "rounded" rounds the sum to NF4 if the base has it, else to 8 bits. Kept until asked for
  // another adapter or strength.
  sum(task, settings, name, update) {
    const { alpha, rank, merge } = settings, key = [task, alpha, rank, merge].join();
    if (this.sums?.key !== key) this.sums = { key, weights: new Map() };
    if (!this.sums.weights.has(name)) {
      const size = this.meta.hidden, weight = merged(this.weights.get(name), update, update.scale, size);
      if (merge === "rounded" && this.precision === "nf4") roundToNf4(weight, this.meta.nf4);
      else if (merge === "rounded") roundToInt8(weight, this.meta.nf4.block);
      this.sums.weights.set(name, weight);
    }
    return this.sums.weights.get(name);
  }

  // Query or value of every token, and by how much the update changed it: |update| / |base| for each token.
  adapted(task, settings, x, tokens, layer, part) {
    const size = this.meta.hidden, at = `encoder.layer.${layer}.attention.self.${part}.`;
    const plain = linear(x, this.weights.get(at + "weight"), this.vector(task, at + "bias"), tokens, size, size);
    const update = this.update(task, settings, layer, part);
    if (!update) return [plain, new Float64Array(tokens)];
    const result = new Float64Array(plain);
    if (settings.merge === "apart") {
      const low = linear(x, update.A, null, tokens, size, update.rank); // (tokens, size) -> (tokens, rank)
      const change = linear(low, update.B, null, tokens, update.rank, size); // -> (tokens, size)
      for (let k = 0; k < result.length; k++) result[k] += update.scale * change[k];
      return [result, changes(plain, result, size)];
    }
    const weight = this.sum(task, settings, at + "weight", update);
    const sums = linear(x, weight, this.vector(task, at + "bias"), tokens, size, size);
    return [sums, changes(plain, sums, size)];
  }

  // A linear layer of the base, by name.
  dense(task, x, tokens, name, inputs, outputs) {
    return linear(x, this.weights.get(name + ".weight"), this.vector(task, name + ".bias"), tokens, inputs, outputs);
  }

  norm(task, x, name, eps = this.meta.eps) {
    return layerNorm(x, this.vector(task, name + ".weight"), this.vector(task, name + ".bias"), eps);
  }

  // Word, position and type of each token as one vector, (tokens, hidden).
  embed(task, { ids, types }) {
    const size = this.meta.hidden, x = new Float64Array(ids.length * size);
    const addRow = (t, name, row) => {
      const table = this.stored.get(`embeddings.${name}_embeddings.weight`), at = row * size;
      const value = table.codes ? k => float(table.codes[k] * table.scales[(k / table.block) | 0]) : k => table[k];
      for (let i = 0; i < size; i++) x[t * size + i] += value(at + i);
    };
    ids.forEach((id, t) => {
      addRow(t, "word", id);
      addRow(t, "position", t + this.meta.firstPosition);
      addRow(t, "token_type", types[t]);
    });
    return this.norm(task, x, "embeddings.LayerNorm");
  }

  layer(task, settings, x, tokens, number) {
    const { hidden, inner, heads } = this.meta, at = `encoder.layer.${number}.`;
    const [query, queryChange] = this.adapted(task, settings, x, tokens, number, "query");
    const [value, valueChange] = this.adapted(task, settings, x, tokens, number, "value");
    const key = this.dense(task, x, tokens, at + "attention.self.key", hidden, hidden);
    const mixed = attend(query, key, value, tokens, hidden, heads);
    add(x, this.dense(task, mixed, tokens, at + "attention.output.dense", hidden, hidden));
    this.norm(task, x, at + "attention.output.LayerNorm");
    const wide = gelu(this.dense(task, x, tokens, at + "intermediate.dense", hidden, inner));
    add(x, this.dense(task, wide, tokens, at + "output.dense", inner, hidden));
    this.norm(task, x, at + "output.LayerNorm");
    return { query: queryChange, value: valueChange };
  }

  // The task's head on every row of x: (rows, hidden) to (rows, outputs).
  head(task, x) {
    const size = this.meta.hidden, rows = x.length / size, outputs = this.vector(task, "finetune_head_classifier.bias");
    this.norm(task, x, "finetune_head_norm", 1e-5); // the default of torch's LayerNorm
    const weight = this.vector(task, "finetune_head_classifier.weight");
    return linear(x, weight, outputs, rows, size, outputs.length);
  }

  // Logits of one input, and for each layer how much query and value of each token changed. `pause` is awaited after
  // every layer; what it throws ends the run.
  async run(task, input, settings, pause = async () => {}) {
    const { hidden, layers } = this.meta, about = this.meta.tasks[task], tokens = input.ids.length, changed = [];
    this.useBase(settings.base);
    const x = this.embed(task, input);
    for (let number = 0; number < layers; number++) {
      changed.push(this.layer(task, settings, x, tokens, number));
      await pause((number + 1) / layers);
    }
    if (about.spans) return { logits: this.head(task, x), changed };
    return { logits: this.head(task, about.pooling === "mean" ? meanOfRows(x, hidden) : x.slice(0, hidden)), changed };
  }
}

// |after - before| / |before| for each row.
function changes(before, after, size) {
  return Float64Array.from({ length: before.length / size }, (_, t) => {
    let change = 0, norm = 0;
    for (let k = t * size; k < (t + 1) * size; k++) {
      change += (after[k] - before[k]) ** 2;
      norm += before[k] ** 2;
    }
    return Math.sqrt(change / norm);
  });
}

function meanOfRows(x, size) {
  const mean = new Float64Array(size), rows = x.length / size;
  for (let k = 0; k < x.length; k++) mean[k % size] += x[k] / rows;
  return mean;
}
