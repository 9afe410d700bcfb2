// Draws what the worker answers. Elements are built here; nothing that a reader types is ever read as HTML.

// <tag class="..." attributes>children</tag>
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const percent = share => (share > 0.999 && share < 1 ? "over 99.9 %" : share < 0.001 && share > 0 ? "under 0.1 %" : `${(100 * share).toFixed(1)} %`);
const seconds = milliseconds => `${(milliseconds / 1000).toFixed(milliseconds < 995 ? 2 : 1)} s`;

// One line of a chart: name, bar, value; `before` is a mark where the adapter as trained would be. A class keeps
// its colour, the first or the second, and the winner's value is bold.
function bar(name, share, value, before, winner, second) {
  const track = element("span", { class: "live-track", "aria-hidden": "true" }, element("span", { class: "live-fill", "--share": share }));
  if (before !== undefined) track.append(element("span", { class: "live-before", "--share": before }));
  return element("li", { class: [winner && "live-winner", second && "live-second"].filter(Boolean).join(" ") }, element("span", { class: "live-name" }, name), track, element("span", { class: "live-value" }, value));
}

// The answer as a sentence and a picture: {sentence, picture}. `trained` is the result at the adapter's own settings.
function drawAnswer(result, texts, about, words, trained) {
  if (about.spans) return drawSpans(result, texts[1]);
  if (about.range) {
    const [low, high] = about.range, share = value => Math.min(1, Math.max(0, (value - low) / (high - low)));
    const value = result.logits[0], before = trained && share(trained.logits[0]);
    const rows = [bar("likeness", share(value), value.toFixed(2), before, true, true)];
    return { sentence: `${value.toFixed(2)} on a scale from ${low} to ${high}`, picture: element("ul", { class: "live-bars" }, ...rows) };
  }
  const best = result.probabilities.indexOf(Math.max(...result.probabilities));
  const rows = result.probabilities.map((share, k) =>
    bar(words.labels[about.labels[k]], share, percent(share).replace("over", ">").replace("under", "<"), trained?.probabilities[k], k === best, k === 1),
  );
  const sentence = `${words.labels[about.labels[best]]}, ${percent(result.probabilities[best])}`;
  return { sentence, picture: element("ul", { class: "live-bars" }, ...rows) };
}

const LEAST_CLEAR = 0.2; // the probability of a span below which it is called a guess

// The paragraph with its answer marked, and the runners-up.
function drawSpans({ spans }, paragraph) {
  const [{ start, end, probability }, ...others] = spans, answer = paragraph.slice(start, end);
  const quoted = ({ start, end, probability }) => `“${paragraph.slice(start, end)}” (${percent(probability)})`;
  const picture = element("div", {}, element("p", { class: "live-paragraph" }, paragraph.slice(0, start), element("mark", {}, answer), paragraph.slice(end)));
  if (others.length) picture.append(element("p", { class: "live-note" }, `Next best: ${others.map(quoted).join(", ")}`));
  const unsure = probability < LEAST_CLEAR ? "no clear answer; best guess: " : "";
  return { sentence: `${unsure}“${answer}”, ${percent(probability)}`, picture };
}

// For each token how far query and value were moved, as a share of what the base gives; darker is further.
function drawTokens({ tokens, changed }, layer) {
  const layers = layer === "all" ? changed : [changed[Number(layer)]];
  const mean = (part, t) => layers.reduce((sum, one) => sum + one[part][t] / layers.length, 0);
  const cell = (part, share) =>
    element("span", { class: `live-cell live-${part}`, "--share": Math.min(1, share) },
      element("span", { class: "visually-hidden" }, `${part} changed by `), `${Math.round(100 * share)}`,
      element("span", { class: "visually-hidden" }, " percent"));
  return tokens.map((token, t) =>
    element("li", {}, element("span", { class: "live-token" }, token), cell("query", mean("query", t)), cell("value", mean("value", t))),
  );
}

// What of the settings is not as trained, in a few words; empty where nothing is.
function changes({ on, alpha, rank, merge, base }, about) {
  const update = on
    ? [alpha !== 1 && (alpha ? `alpha × ${alpha}` : "alpha 0"), rank < about.rank && `rank ${rank}`, { merged: "merged", rounded: "rounded" }[merge]]
    : ["adapter off"];
  return [{ int8: "8 bits", nf4: "NF4" }[base], ...update].filter(Boolean).join(", ");
}

// Radio buttons that look like one row of keys.
function radios(name, options, checked) {
  return options.map(([value, title, note]) => {
    const input = element("input", { type: "radio", name, value, ...(value === checked ? { checked: "" } : {}) });
    const label = element("label", { class: "live-key" }, input, element("span", {}, title));
    if (note) label.lastChild.append(element("small", {}, note));
    return label;
  });
}
