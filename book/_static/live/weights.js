// The stored numbers as weights: 8-bit blocks, the levels of NF4, an adapter's update cut to a rank and merged. Every step
// is rounded to float32 as torch rounds it. Runs in the worker.

const float = Math.fround;

// Tensors of one file, by name: a Float32Array, or in 8 bits {codes, scales, block}, with `steps` for four bits more.
function readTensors({ tensors }, buffer) {
  const product = shape => shape.reduce((a, b) => a * b, 1);
  return new Map(
    tensors.map(({ name, shape, floats, scales, codes, steps, block }) => {
      const size = product(shape);
      if (floats !== undefined) return [name, new Float32Array(buffer, floats, size)];
      const more = steps === undefined ? null : new Uint8Array(buffer, steps, size / 2);
      const parts = { codes: new Int8Array(buffer, codes, size), scales: new Float32Array(buffer, scales, size / block) };
      return [name, { ...parts, steps: more, block }];
    }),
  );
}

// The weight that 8-bit codes stand for, code times the scale of its block; or, `fine`, with the four bits more, sixteenths
// of a scale from -8 to 7, of which two are in a byte.
function fromInt8({ codes, scales, steps, block }, fine) {
  const weight = new Float32Array(codes.length), step = k => (k % 2 ? steps[k >> 1] & 15 : steps[k >> 1] >> 4) - 8;
  if (fine) return weight.map((_, k) => (16 * codes[k] + step(k)) * (scales[(k / block) | 0] / 16));
  for (let k = 0; k < codes.length; k++) weight[k] = codes[k] * scales[(k / block) | 0];
  return weight;
}

// Round each block to 8 bits and back; in place. A half goes to the even neighbour, as in torch.
function roundToInt8(weight, block) {
  for (let at = 0; at < weight.length; at += block) {
    const values = weight.subarray(at, at + block);
    const scale = float(largest(values) / 127);
    for (let k = 0; k < block; k++) {
      const x = scale ? float(values[k] / scale) : 0, below = Math.floor(x);
      const code = x - below === 0.5 ? below + (below & 1) : Math.round(x);
      values[k] = code * scale;
    }
  }
  return weight;
}

function largest(values) {
  let top = 0;
  for (let k = 0; k < values.length; k++) top = Math.max(top, Math.abs(values[k]));
  return top;
}

// Round to NF4 and back, in place: in each block the nearest of sixteen levels, times the block's largest magnitude.
// A value half-way between two levels takes the lower one.
function roundToNf4(weight, { levels, block }) {
  const level = Float32Array.from(levels);
  const middles = level.subarray(1).map((upper, k) => float(float(upper + level[k]) / 2));
  for (let at = 0; at < weight.length; at += block) {
    const values = weight.subarray(at, at + block);
    const scale = float(largest(values)), inverse = float(1 / Math.max(scale, 1e-38));
    for (let k = 0; k < values.length; k++) {
      const x = float(values[k] * inverse);
      let low = 0, high = middles.length; // how many middles lie below x
      while (low < high) {
        const half = (low + high) >> 1;
        if (middles[half] < x) low = half + 1;
        else high = half;
      }
      values[k] = level[low] * scale;
    }
  }
  return weight;
}

// The first `rank` directions of an update: A (rank, size) is a slice, B (size, rank) loses columns. They are stored
// by singular value, so this is the best approximation of that rank.
function cutToRank({ A, B, rank: full }, rank, size) {
  const cut = new Float32Array(size * rank);
  for (let row = 0; row < size; row++) for (let k = 0; k < rank; k++) cut[row * rank + k] = B[row * full + k];
  return { A: A.subarray(0, rank * size), B: cut, rank };
}

// W + scale B A, a new array.
function merged(W, { A, B, rank }, scale, size) {
  const sum = new Float32Array(W.length), row = new Float64Array(size);
  for (let o = 0; o < size; o++) {
    row.fill(0);
    for (let k = 0; k < rank; k++)
      for (let i = 0, b = B[o * rank + k], at = k * size; i < size; i++) row[i] += b * A[at + i];
    for (let i = 0; i < size; i++) sum[o * size + i] = W[o * size + i] + float(scale * float(row[i]));
  }
  return sum;
}
