// From scores to an answer: the best places of an answer in a paragraph, over all its windows. Runs in the worker.

const LONGEST_ANSWER = 30; // tokens, as in squad/decoding.py

// The `count` best spans {start, end, score, probability}: places in the paragraph, start plus end logit, and the
// probability that softmax gives that start times that of the end. Each window is {input, logits}.
function bestSpans(windows, count) {
  const best = new Map();
  for (const { input, logits } of windows) {
    const all = [0, 1].map(side => logSum(logits.filter((_, k) => k % 2 === side)));
    input.places.forEach((first, s) => {
      for (let e = s; first?.text === 1 && e < s + LONGEST_ANSWER && input.places[e]; e++) {
        const { end } = input.places[e], key = `${first.start} ${end}`, score = logits[2 * s] + logits[2 * e + 1];
        if (best.get(key)?.score >= score) continue;
        best.set(key, { start: first.start, end, score, probability: Math.exp(score - all[0] - all[1]) });
      }
    });
  }
  const order = (a, b) => b.score - a.score || a.start - b.start || a.end - b.end;
  return [...best.values()].sort(order).slice(0, count);
}

// log of the sum of exp(x), without overflow.
function logSum(x) {
  const top = x.reduce((a, b) => Math.max(a, b));
  return top + Math.log(x.reduce((sum, value) => sum + Math.exp(value - top), 0));
}

// An accent or a joiner that follows the last character belongs to it, though the tokenizer has dropped it.
function withMarks(text, end) {
  for (;;) {
    const next = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : "";
    if (!/^(\p{M}|\u200d|[\u{e0020}-\u{e007f}])$/u.test(next)) return end;
    end += next.length;
  }
}
