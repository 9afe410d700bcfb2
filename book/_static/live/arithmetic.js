// What a transformer computes with: products, layer normalisation, GELU, attention. Vectors are Float64Array, one row
// a token; weights are Float32Array, one row an output. Runs in the worker.

// y = x W' + b: x (tokens, inputs), W (outputs, inputs). Four tokens and two outputs at a time, so that a number
// that has been fetched is used more than once.
function linear(x, W, b, tokens, inputs, outputs) {
  const y = new Float64Array(tokens * outputs);
  let t = 0;
  for (; t + 4 <= tokens; t += 4) {
    const x0 = t * inputs, x1 = x0 + inputs, x2 = x1 + inputs, x3 = x2 + inputs;
    for (let o = 0; o + 2 <= outputs; o += 2) {
      const w0 = o * inputs, w1 = w0 + inputs;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, c0 = 0, c1 = 0, c2 = 0, c3 = 0;
      for (let i = 0; i < inputs; i++) {
        const u = W[w0 + i], v = W[w1 + i], p = x[x0 + i], q = x[x1 + i], r = x[x2 + i], s = x[x3 + i];
        a0 += u * p; a1 += u * q; a2 += u * r; a3 += u * s;
        c0 += v * p; c1 += v * q; c2 += v * r; c3 += v * s;
      }
      const y0 = t * outputs + o, y1 = y0 + outputs, y2 = y1 + outputs, y3 = y2 + outputs;
      y[y0] = a0; y[y1] = a1; y[y2] = a2; y[y3] = a3;
      y[y0 + 1] = c0; y[y1 + 1] = c1; y[y2 + 1] = c2; y[y3 + 1] = c3;
    }
    if (outputs % 2) for (let k = t; k < t + 4; k++) y[k * outputs + outputs - 1] = dot(x, k, W, outputs - 1, inputs);
  }
  for (; t < tokens; t++) for (let o = 0; o < outputs; o++) y[t * outputs + o] = dot(x, t, W, o, inputs);
  if (b) for (let at = 0; at < y.length; at += outputs) for (let o = 0; o < outputs; o++) y[at + o] += b[o];
  return y;
}

// Row t of x times row o of W.
function dot(x, t, W, o, inputs) {
  let sum = 0;
  for (let i = 0, at = t * inputs, from = o * inputs; i < inputs; i++) sum += x[at + i] * W[from + i];
  return sum;
}

// x + y, written into x.
function add(x, y) {
  for (let k = 0; k < x.length; k++) x[k] += y[k];
  return x;
}

// Each row of x to mean 0 and variance 1, then times `weight` plus `bias`; in place.
function layerNorm(x, weight, bias, eps) {
  const size = weight.length;
  for (let at = 0; at < x.length; at += size) {
    let mean = 0, variance = 0;
    for (let i = 0; i < size; i++) mean += x[at + i] / size;
    for (let i = 0; i < size; i++) variance += (x[at + i] - mean) ** 2 / size;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < size; i++) x[at + i] = (x[at + i] - mean) * scale * weight[i] + bias[i];
  }
  return x;
}

// The error function to 1.5e-7 (Abramowitz and Stegun 1964, formula 7.1.26).
function erf(x) {
  const z = Math.abs(x), t = 1 / (1 + 0.3275911 * z);
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-z * z));
}

// GELU, x times the probability that a normal variable is below x; in place.
function gelu(x) {
  for (let k = 0; k < x.length; k++) x[k] *= 0.5 * (1 + erf(x[k] * Math.SQRT1_2));
  return x;
}

// Softmax of x[from:to], in place.
function softmax(x, from = 0, to = x.length) {
  let top = -Infinity, sum = 0;
  for (let k = from; k < to; k++) if (x[k] > top) top = x[k];
  for (let k = from; k < to; k++) sum += x[k] = Math.exp(x[k] - top);
  for (let k = from; k < to; k++) x[k] /= sum;
  return x;
}

// Each token's mixture of all tokens' values, head by head: query, key, value (tokens, size) to the same.
function attend(query, key, value, tokens, size, heads) {
  const mixed = new Float64Array(tokens * size), scores = new Float64Array(tokens);
  const width = size / heads, scale = 1 / Math.sqrt(width);
  for (let first = 0; first < size; first += width)
    for (let t = 0; t < tokens; t++) {
      const row = t * size + first;
      for (let s = 0; s < tokens; s++) {
        let sum = 0;
        for (let i = 0, other = s * size + first; i < width; i++) sum += query[row + i] * key[other + i];
        scores[s] = sum * scale;
      }
      softmax(scores);
      for (let s = 0; s < tokens; s++)
        for (let i = 0, p = scores[s], other = s * size + first; i < width; i++) mixed[row + i] += p * value[other + i];
    }
  return mixed;
}
