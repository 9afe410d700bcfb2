// The worker: holds the model, answers one question at a time, and drops a question when a newer one has come.

const OVERLAP = 128, MOST_WINDOWS = 4;
let meta, tokenizer, model, newest = 0;

const breathe = () => new Promise(resolve => setTimeout(resolve)); // lets a newer message in
class Superseded extends Error {}

// What the page shows for some texts at some settings.
async function answer({ id, task, texts, settings }) {
  const about = meta.tasks[task], began = performance.now();
  const inputs = about.spans
    ? tokenizer.windows(texts[0], texts[1], about.maxLength, OVERLAP)
    : [tokenizer.encode(texts, about.maxLength)];
  if (inputs.length > MOST_WINDOWS)
    throw new RangeError("This text is too long to read here in a reasonable time: keep to about a thousand words.");
  const windows = [];
  for (const [number, input] of inputs.entries())
    windows.push({
      input,
      ...(await model.run(task, input, settings, async share => {
        postMessage({ kind: "progress", id, share: (number + share) / inputs.length });
        await breathe();
        if (id !== newest) throw new Superseded();
      })),
    });
  const [{ input, logits, changed }] = windows;
  const result = { kind: "result", id, task, milliseconds: 0, logits: [...logits], windows: windows.length };
  if (about.spans) result.spans = bestSpans(windows, 3).map(span => ({ ...span, end: withMarks(texts[1], span.end) }));
  else if (about.labels.length) result.probabilities = [...softmax(logits.slice())];
  result.tokens = input.ids.map(token => tokenizer.tokens[token]);
  result.read = input.ids.length;
  result.inAll = input.tokensInAll ?? input.ids.length;
  result.changed = changed.map(({ query, value }) => ({ query: [...query], value: [...value] }));
  result.milliseconds = performance.now() - began;
  return result;
}

async function receive(message) {
  if (message.kind === "load") {
    meta = message.meta;
    tokenizer = new Tokenizer(meta);
    model = new Model(meta, readTensors(meta.base, message.base), readTensors(meta.adapters, message.adapters));
    model.useBase("full");
    return { kind: "ready", id: message.id };
  }
  if (message.kind === "tokens") // of each text or pair, as the model would read it
    return { ...message, inputs: message.texts.map(texts => tokenizer.encode(texts, message.maxLength)) };
  newest = message.id;
  return answer(message);
}

onmessage = ({ data }) =>
  receive(data).then(postMessage, error =>
    postMessage(
      error instanceof Superseded ? { kind: "dropped", id: data.id } : { kind: "failed", id: data.id, why: error.message },
    ),
  );
