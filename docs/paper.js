"use strict";
// MAGVIT in JavaScript: the toy's two networks, Eq. (2) and Algorithm 1, without any library.
//
// Paper   Sec. 3.1 (3D-VQ), Sec. 3.2 (COMMIT, Algorithm 1), App. A, App. B.1 (the ten tasks)
// Shapes  a video is {data, shape: [3, T, H, W]}, data a Float64Array in [0, 1]; N = t h w tokens
//         are an array of numbers in t, h, w order; masks are arrays of booleans
// Read    commitMask, cutoffScore, commitDecode; makeCondition, isPadding; then the networks
// Run     the page computes with it in a worker (work, at the end); tests/test_page.py in Node
//
// Numbers are doubles here, since that is what JavaScript is fastest with; weights are half floats.

// ---------------------------------------------------------------------------------------------
// The mask of COMMIT (Sec. 2, Sec. 3.2): commit.py

/** Eq. (2), the corrupted sequence z-bar = m(z | z-tilde):
 *
 *      m_i(x | z-tilde_i)  =  z-tilde_i    if s_i <= s*  and  not ispad(z-tilde_i)
 *                             [MASK]       if s_i <= s*  and      ispad(z-tilde_i)
 *                             x            if s_i >  s*
 */
function commitMask(tokens, conditionTokens, isPad, scores, cutoff, maskId) {
  return tokens.map((x, i) =>
    scores[i] <= cutoff && !isPad[i] ? conditionTokens[i] :
    scores[i] <= cutoff && isPad[i] ? maskId :
    x);
}

/** gamma(r), r in [0, 1]: the share that is masked, from all (1) to none (0). App. B.3. */
function maskRatio(r, schedule, numTokens) {
  const ratio = {
    cosine: Math.cos(r * Math.PI / 2),
    uniform: 1 - r,
    exp: 1 - 2 ** (Math.log2(numTokens) * (r - 1)),
  }[schedule];
  return Math.min(1, Math.max(1e-6, ratio));
}

/** ceil(gamma N), at least 1. Rounded at 1e-3 first, so that a half of 0.50000006 stays a half. */
const numMasked = (ratio, numTokens) =>
  Math.max(1, Math.ceil(Math.round(ratio * numTokens * 1000) / 1000));

/** s*, the count-th smallest of the scores. */
const cutoffScore = (scores, count) => [...scores].sort((a, b) => a - b)[count - 1];

/** Algorithm 1: yields what each step did; the last step's tokens are the answer.
 *
 * model.logits(tokens, task, label) -> N x K numbers; noise(count) -> that many Gumbel numbers,
 * asked for twice a step. known, an array of booleans or null: condition tokens that count as
 * decided from the start, which is latent masking: what the paper compares with.
 */
function* commitDecode(model, task, label, conditionTokens, isPad,
                       {steps, temperature, schedule, noise, known = null}) {
  const N = conditionTokens.length, K = model.codebookSize;
  let tokens = conditionTokens.map((z, i) => known?.[i] ? z : 0);
  let scores = tokens.map((_, i) => known?.[i] ? Infinity : 0), cutoff = 1;            // line 1
  const free = scores.filter(s => s <= cutoff).length;            // N, but for latent masking
  for (let t = 0; t < steps; t++) {                                                    // line 2
    const masked = scores.map(s => s <= cutoff);
    const inputs = commitMask(tokens, conditionTokens, isPad, scores, cutoff,
                              model.maskId);                                           // line 3
    const logits = model.logits(inputs, task, label);
    const {sampled, logProbability, likeliest} = sample(logits, noise(N * K), K);
    tokens = tokens.map((z, i) => masked[i] ? sampled[i] : z);                         // line 4
    const fading = temperature * (1 - (t + 1) / steps), ranking = noise(N);
    const confidence = logProbability.map((p, i) => p + fading * ranking[i]);
    scores = scores.map((s, i) => masked[i] ? confidence[i] : s);                      // line 5
    const last = t + 1 === steps;                                   // gamma(1) N = 0 stay unknown
    const count = last ? 0 : numMasked(maskRatio((t + 1) / steps, schedule, N), free);
    cutoff = last ? -Infinity : cutoffScore(scores, count);                            // line 6
    scores = scores.map(s => s > cutoff ? Infinity : s);                               // line 7
    yield {inputs, tokens, masked, confidence, cutoff, count, likeliest,
           unknown: scores.map(s => s <= cutoff)};
  }                                                        // lines 8 and 9: the last tokens
}

/** A code for each token: argmax of logits + Gumbel noise is a sample of softmax(logits). */
function sample(logits, noise, K) {
  const sampled = [], logProbability = [], likeliest = [];
  for (let i = 0; i < logits.length; i += K) {
    const row = logits.subarray(i, i + K), largest = row.reduce((a, b) => Math.max(a, b));
    const logSum = largest + Math.log(row.reduce((sum, x) => sum + Math.exp(x - largest), 0));
    let best = 0;
    for (let k = 1; k < K; k++) if (row[k] + noise[i + k] > row[best] + noise[i + best]) best = k;
    sampled.push(best);
    logProbability.push(row[best] - logSum);
    const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 4);
    likeliest.push(order.map(code => [code, Math.exp(row[code] - logSum)]));     // for the page
  }
  return {sampled, logProbability, likeliest};
}

/** Standard Gumbel noise that is the same each time for the same seed (mulberry32). */
function seededNoise(seed) {
  const uniform = () => {
    seed = seed + 0x6d2b79f5 | 0;
    let x = Math.imul(seed ^ seed >>> 15, 1 | seed);
    x = x + Math.imul(x ^ x >>> 7, 61 | x) ^ x;
    return ((x ^ x >>> 14) >>> 0) / 2 ** 32;
  };
  return count => Float64Array.from({length: count}, () =>
    -Math.log(-Math.log(Math.min(1 - 1e-7, Math.max(1e-20, uniform())))));
}

// ---------------------------------------------------------------------------------------------
// The ten tasks (App. B.1): commit.py

/** Which pixels of a task are given: (frame, row, column) -> boolean, for videos of T x H x W. */
function region(task, T, H, W) {
  const strip = (i, size) => i >= Math.floor(size / 4) && i < Math.floor(size * 3 / 4);
  const moving = (t, x) => {
    const left = Math.round(Math.floor(W / 2) * t / (T - 1));
    return x >= left && x < left + Math.floor(W / 2);
  };
  return {
    FP: t => t < 1,
    FI: t => t < 1 || t === T - 1,
    OPC: (t, y, x) => strip(y, H) && strip(x, W),
    OPV: (t, y, x) => strip(x, W),
    OPH: (t, y) => strip(y, H),
    OPD: (t, y, x) => moving(t, x),
    IPC: (t, y, x) => !(strip(y, H) && strip(x, W)),
    IPD: (t, y, x) => !(strip(y, H) && moving(t, x)),
    CG: () => false,
    CFP: t => t < 1,
  }[task];
}

/** V-tilde: what is given of a video, and padding. Returns {video, valid}, valid true where given.
 *
 * Padding is black for OPD, IPC, IPD and CG; a straight line in time from the first to the last
 * frame for FI; else the nearest pixel that is given, along each axis.
 */
function makeCondition(video, task) {
  const [, T, H, W] = video.shape, given = region(task, T, H, W), valid = [];
  const low = [T, H, W], high = [-1, -1, -1];                     // the box around what is given
  for (let t = 0; t < T; t++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    valid.push(given(t, y, x));
    if (given(t, y, x)) [t, y, x].forEach((at, axis) => {
      low[axis] = Math.min(low[axis], at);
      high[axis] = Math.max(high[axis], at);
    });
  }
  const black = ["OPD", "IPC", "IPD", "CG"].includes(task);
  const near = (at, axis) => Math.min(high[axis], Math.max(low[axis], at));
  const pixel = (c, t, y, x) => video.data[((c * T + t) * H + y) * W + x];
  const padded = (c, t, y, x) =>
    black ? (given(t, y, x) ? pixel(c, t, y, x) : 0) :
    task === "FI" ? pixel(c, 0, y, x) + (pixel(c, T - 1, y, x) - pixel(c, 0, y, x)) * t / (T - 1) :
    pixel(c, near(t, 0), near(y, 1), near(x, 2));
  const data = new Float64Array(video.data.length);
  for (let c = 0, i = 0; c < 3; c++)
    for (let t = 0; t < T; t++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x++)
      data[i++] = padded(c, t, y, x);
  return {video: {data, shape: video.shape}, valid};
}

/** ispad: true for each supervoxel in which no pixel is given. */
function isPadding(valid, [T, H, W], [t, h, w]) {
  const isPad = Array(t * h * w).fill(true);
  valid.forEach((given, i) => {
    const [frame, y, x] = [Math.floor(i / (H * W)), Math.floor(i / W) % H, i % W];
    const [a, b, c] = [frame * t / T, y * h / H, x * w / W].map(Math.floor);
    if (given) isPad[(a * h + b) * w + c] = false;
  });
  return isPad;
}

// ---------------------------------------------------------------------------------------------
// The blocks of the tokenizer (App. A.1): tokenizer.py. x is {data, shape: [channels, T, H, W]}.

const product = sizes => sizes.reduce((a, b) => a * b, 1);

/** Half a kernel on every side, mirrored without repeating the border: 2 1 [0 1 2 3] 2 1. */
function padReflect(x, kernel) {
  const [C, ...sizes] = x.shape;
  const [times, rows, columns] = sizes.map((size, axis) => {
    const half = kernel[axis] >> 1;
    return Array.from({length: size + 2 * half}, (_, at) => {
      const i = Math.abs(at - half);
      return i < size ? i : 2 * size - 2 - i;
    });
  });
  const data = new Float64Array(C * times.length * rows.length * columns.length);
  let at = 0;
  for (let c = 0; c < C; c++) for (const t of times) for (const y of rows) {
    const start = ((c * sizes[0] + t) * sizes[1] + y) * sizes[2];
    for (const column of columns) data[at++] = x.data[start + column];
  }
  return {data, shape: [C, times.length, rows.length, columns.length]};
}

/** out[o] = bias[o] + sum over channels c and taps (a, b, d) of weight[o, c, a, b, d] x[c], moved.
 *
 * Two pixels times four output channels at once, eight sums in local variables: each number that is
 * read is used several times, which makes it three times as fast as one sum after the other.
 */
function conv3d(x, weight, bias) {
  const [outputs, inputs, ...kernel] = weight.shape, [, T, H, W] = x.shape, volume = T * H * W;
  const {data, shape: [, Tp, Hp, Wp]} = padReflect(x, kernel);
  const taps = [];                // where each number of a kernel is read, from the pixel on
  for (let c = 0; c < inputs; c++) for (let a = 0; a < kernel[0]; a++)
    for (let b = 0; b < kernel[1]; b++) for (let d = 0; d < kernel[2]; d++)
      taps.push(((c * Tp + a) * Hp + b) * Wp + d);
  const offsets = Int32Array.from(taps), count = offsets.length;
  const kernels = new Float64Array(4 * count), biases = new Float64Array(4);
  const out = new Float64Array(Math.ceil(outputs / 4) * 4 * volume);
  for (let o = 0; o < outputs; o += 4) {
    for (let j = 0; j < 4; j++) {                                // four kernels, side by side
      const there = o + j < outputs;
      biases[j] = there && bias ? bias.data[o + j] : 0;
      for (let i = 0; i < count; i++)
        kernels[4 * i + j] = there ? weight.data[(o + j) * count + i] : 0;
    }
    for (let t = 0; t < T; t++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x += 2) {
      const column = Math.min(x, W - 2), start = (t * Hp + y) * Wp + column;
      let a0 = biases[0], b0 = biases[1], c0 = biases[2], d0 = biases[3];
      let a1 = a0, b1 = b0, c1 = c0, d1 = d0;
      for (let i = 0, j = 0; i < count; i++, j += 4) {
        const at = start + offsets[i], p = data[at], q = data[at + 1];
        const a = kernels[j], b = kernels[j + 1], c = kernels[j + 2], d = kernels[j + 3];
        a0 += a * p; b0 += b * p; c0 += c * p; d0 += d * p;
        a1 += a * q; b1 += b * q; c1 += c * q; d1 += d * q;
      }
      const A = ((o * T + t) * H + y) * W + column, B = A + volume, C = B + volume, D = C + volume;
      out[A] = a0; out[B] = b0; out[C] = c0; out[D] = d0;
      out[A + 1] = a1; out[B + 1] = b1; out[C + 1] = c1; out[D + 1] = d1;
    }
  }
  return {data: out.subarray(0, outputs * volume), shape: [outputs, T, H, W]};
}

/** Group normalization over (channels of a group, T, H, W) jointly, then Swish: x sigmoid(x). */
function normSwish(x, scale, shift, groups) {
  const data = new Float64Array(x.data.length), size = data.length / groups;
  const volume = data.length / x.shape[0];
  for (let first = 0; first < data.length; first += size) {
    const [mean, deviation] = moments(x.data, first, size, 1e-6);
    for (let start = first; start < first + size; start += volume) {
      const gain = scale.data[start / volume] / deviation, offset = shift.data[start / volume];
      for (let i = start; i < start + volume; i++) {
        const normal = (x.data[i] - mean) * gain + offset;
        data[i] = normal / (1 + Math.exp(-normal));
      }
    }
  }
  return {data, shape: x.shape};
}

/** Mean and standard deviation of `size` numbers from `first` on. */
function moments(data, first, size, epsilon) {
  let sum = 0, square = 0;
  for (let i = first; i < first + size; i++) sum += data[i];
  const mean = sum / size;
  for (let i = first; i < first + size; i++) square += (data[i] - mean) * (data[i] - mean);
  return [mean, Math.sqrt(square / size + epsilon)];
}

/** The mean of each box of a x b x d pixels. */
function averagePool(x, [a, b, d]) {
  const [C, T, H, W] = x.shape, shape = [C, T / a, H / b, W / d];
  const data = new Float64Array(product(shape));
  x.data.forEach((value, i) => {
    const column = Math.floor(i % W / d), row = Math.floor(Math.floor(i / W) % H / b);
    const time = Math.floor(Math.floor(i / (H * W)) / a);                    // of all channels
    data[(time * shape[2] + row) * shape[3] + column] += value / (a * b * d);
  });
  return {data, shape};
}

/** Nearest resizing: each pixel becomes a box of a x b x d. */
function resizeNearest(x, [a, b, d]) {
  const [C, T, H, W] = x.shape, shape = [C, T * a, H * b, W * d];
  const data = new Float64Array(product(shape));
  for (let i = 0; i < data.length; i++) {
    const column = Math.floor(i % shape[3] / d);
    const row = Math.floor(Math.floor(i / shape[3]) % shape[2] / b);
    const time = Math.floor(Math.floor(i / (shape[2] * shape[3])) / a);
    data[i] = x.data[(time * H + row) * W + column];
  }
  return {data, shape};
}

const add = (x, y) => ({data: x.data.map((value, i) => value + y.data[i]), shape: x.shape});

/** 3D-VQ (Sec. 3.1): f_T and its inverse. config is TokenizerConfig; weights: name -> array. */
class Tokenizer {
  constructor(config, weights) {
    Object.assign(this, {config, weights, codebook: weights["quantizer.codebook"]});
    const base = config.base_channels;
    this.widths = config.channel_multipliers.map(m => m * base);
    this.strides = config.temporal_downsample.map(temporal => [temporal ? 2 : 1, 2, 2]);
  }

  latentShape(sizes) {
    return sizes.map((size, axis) => size / product(this.strides.map(stride => stride[axis])));
  }

  conv(x, name) {
    return conv3d(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  norm(x, name) {
    return normSwish(x, this.weights[`${name}.0.weight`], this.weights[`${name}.0.bias`],
                     this.config.norm_groups);
  }

  /** x + conv(norm, Swish (conv(norm, Swish (x)))); a 1 x 1 x 1 kernel where widths differ. */
  block(x, name) {
    const once = this.conv(this.norm(x, `${name}.main.0`), `${name}.main.1`);
    const twice = this.conv(this.norm(once, `${name}.main.2`), `${name}.main.3`);
    return add(this.weights[`${name}.skip.weight`] ? this.conv(x, `${name}.skip`) : x, twice);
  }

  /** video [3, T, H, W] -> latents [D, t, h, w]: deeper, smaller, wider. */
  latents(video) {
    let layer = 0, x = this.conv(video, `encoder.${layer++}`);
    const blocks = () => {
      for (let i = 0; i < this.config.num_res_blocks; i++) x = this.block(x, `encoder.${layer++}`);
    };
    for (const [stage] of this.widths.entries()) {
      blocks();
      if (this.strides[stage]) { x = averagePool(x, this.strides[stage]); layer++; }
    }
    blocks();
    x = this.norm(x, `encoder.${layer++}`);
    return this.conv(x, `encoder.${layer}`);
  }

  /** f_T: video [3, T, H, W] -> N tokens, each the nearest code: argmin_k |latent - e_k|^2. */
  encode(video) {
    const {data, shape: [D]} = this.latents(video), N = data.length / D, tokens = [];
    for (let i = 0; i < N; i++) {
      let best = 0, least = Infinity;
      for (let k = 0; k < this.config.codebook_size; k++) {
        let distance = 0;
        for (let d = 0; d < D; d++)
          distance += (data[d * N + i] - this.codebook.data[k * D + d]) ** 2;
        if (distance < least) [best, least] = [k, distance];
      }
      tokens.push(best);
    }
    return tokens;
  }

  /** The inverse of f_T: N tokens of a grid [t, h, w] -> video [3, T, H, W], linear. */
  decode(tokens, grid) {
    const D = this.config.embedding_dim, N = tokens.length, embeddings = new Float64Array(D * N);
    for (let d = 0; d < D; d++)
      tokens.forEach((k, i) => { embeddings[d * N + i] = this.codebook.data[k * D + d]; });
    let layer = 0, x = this.conv({data: embeddings, shape: [D, ...grid]}, `decoder.${layer++}`);
    const blocks = () => {
      for (let i = 0; i < this.config.num_res_blocks; i++) x = this.block(x, `decoder.${layer++}`);
    };
    blocks();
    for (let stage = this.widths.length - 1; stage >= 0; stage--) {
      blocks();
      if (stage > 0)
        x = this.conv(resizeNearest(x, this.strides[stage - 1]), `decoder.${layer++}.conv`);
    }
    x = this.norm(x, `decoder.${layer++}`);
    return this.conv(x, `decoder.${layer}`);
  }
}

// ---------------------------------------------------------------------------------------------
// The transformer (App. A.2): transformer.py. x is a Float64Array of rows, one for each token.

/** x W^T + b for every row of x; two rows times four outputs at once, as in conv3d. */
function linear(x, weight, bias, outputs = weight.shape[0]) {
  const inputs = weight.shape[1], rows = x.length / inputs, w = weight.data;
  const out = new Float64Array(rows * outputs);
  for (let pair = 0; pair < rows; pair += 2) for (let tile = 0; tile < outputs; tile += 4) {
    const r = Math.min(pair, rows - 2), o = Math.min(tile, outputs - 4);   // the last may overlap
    const x0 = r * inputs, x1 = x0 + inputs;
    const wa = o * inputs, wb = wa + inputs, wc = wb + inputs, wd = wc + inputs;
    let a0 = bias.data[o], b0 = bias.data[o + 1], c0 = bias.data[o + 2], d0 = bias.data[o + 3];
    let a1 = a0, b1 = b0, c1 = c0, d1 = d0;
    for (let i = 0; i < inputs; i++) {
      const p = x[x0 + i], q = x[x1 + i];
      const a = w[wa + i], b = w[wb + i], c = w[wc + i], d = w[wd + i];
      a0 += a * p; b0 += b * p; c0 += c * p; d0 += d * p;
      a1 += a * q; b1 += b * q; c1 += c * q; d1 += d * q;
    }
    const A = r * outputs + o, B = A + outputs;
    out[A] = a0; out[A + 1] = b0; out[A + 2] = c0; out[A + 3] = d0;
    out[B] = a1; out[B + 1] = b1; out[B + 2] = c1; out[B + 3] = d1;
  }
  return out;
}

/** Each row to mean 0 and deviation 1, then scaled and shifted. */
function layerNorm(x, scale, shift) {
  const size = scale.data.length, out = new Float64Array(x.length);
  for (let first = 0; first < x.length; first += size) {
    const [mean, deviation] = moments(x, first, size, 1e-12);
    for (let i = 0; i < size; i++)
      out[first + i] = (x[first + i] - mean) / deviation * scale.data[i] + shift.data[i];
  }
  return out;
}

/** GELU, as BERT computes it: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). */
const gelu = x => x.map(v =>
  v / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v * v * v))));

/** softmax(query key^T / sqrt(d)) value in each head; every token sees every token. */
function attend(queryKeyValue, heads, width) {
  const rows = queryKeyValue.length / (3 * width), size = width / heads;
  const out = new Float64Array(rows * width), scores = new Float64Array(rows);
  for (let head = 0; head < heads; head++) for (let i = 0; i < rows; i++) {
    const query = i * 3 * width + head * size;
    let largest = -Infinity, total = 0;
    for (let j = 0; j < rows; j++) {
      const key = j * 3 * width + width + head * size;
      let dot = 0;
      for (let d = 0; d < size; d++) dot += queryKeyValue[query + d] * queryKeyValue[key + d];
      scores[j] = dot / Math.sqrt(size);
      largest = Math.max(largest, scores[j]);
    }
    for (let j = 0; j < rows; j++) total += scores[j] = Math.exp(scores[j] - largest);
    for (let j = 0; j < rows; j++) {
      const value = j * 3 * width + 2 * width + head * size, share = scores[j] / total;
      const to = i * width + head * size;
      for (let d = 0; d < size; d++) out[to + d] += share * queryKeyValue[value + d];
    }
  }
  return out;
}

/** p(z_i | [rho, c, z-bar]) for all i at once (Eq. (3)), as logits. config is TransformerConfig. */
class Transformer {
  constructor(config, weights) {
    Object.assign(this, {config, weights, codebookSize: config.codebook_size});
    this.maskId = weights["token_embedding.weight"].shape[0] - 1;                // the last id
  }

  linear(x, name) {
    return linear(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  norm(x, name) {
    return layerNorm(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  /** N tokens (codes or maskId), task by name, label in [0, C], C: no class -> N x K logits. */
  logits(tokens, task, label) {
    const {config, weights} = this, D = config.hidden_size;
    const plus = (x, y) => x.map((v, i) => v + y[i]);
    const prompt = config.codebook_size + config.num_classes + 1 + config.tasks.indexOf(task);
    const ids = [prompt, config.codebook_size + label, ...tokens];              // [rho, c, z-bar]
    const words = weights["token_embedding.weight"], places = weights["position_embedding.weight"];
    let x = Float64Array.from({length: ids.length * D}, (_, i) =>
      words.data[ids[Math.floor(i / D)] * D + i % D] + places.data[i]);
    x = this.norm(x, "embedding_norm");
    for (let layer = 0; layer < config.num_layers; layer++) {      // post-LN: x = LN(x + f(x))
      const name = `blocks.${layer}`;
      const queries = this.linear(x, `${name}.attention.query_key_value`);
      const mixed = attend(queries, config.num_heads, D);
      x = this.norm(plus(x, this.linear(mixed, `${name}.attention.out`)), `${name}.attention_norm`);
      const hidden = gelu(this.linear(x, `${name}.mlp.0`));
      x = this.norm(plus(x, this.linear(hidden, `${name}.mlp.2`)), `${name}.mlp_norm`);
    }
    x = x.subarray(2 * D);                                         // visual tokens alone
    x = this.norm(gelu(this.linear(x, "head.0")), "head.2");
    return linear(x, words, weights.head_bias, config.codebook_size);    // the tied embedding
  }
}

/** Half floats in base64, one array after the other -> {name: {data: Float64Array, shape}}. */
function readWeights(text, shapes) {
  const bytes = atob(text), weights = {};
  const power = Array.from({length: 32}, (_, e) => 2 ** (Math.max(e, 1) - 25));
  let at = 0;
  for (const [name, shape] of shapes) {
    const data = new Float64Array(product(shape));
    for (let i = 0; i < data.length; i++, at += 2) {
      const bits = bytes.charCodeAt(at) | bytes.charCodeAt(at + 1) << 8, exponent = bits >> 10 & 31;
      const size = ((exponent ? 1024 : 0) + (bits & 1023)) * power[exponent];
      data[i] = bits >> 15 ? -size : size;
    }
    weights[name] = {data, shape};
  }
  return weights;
}

// ---------------------------------------------------------------------------------------------
// The clips: data/moving_shapes.py. A clip is bytes (T, H, W, 3), as it is looked at.

const WAYS = [[0, 1], [0, -1], [1, 0], [-1, 0]];                  // right, left, down, up
const wrap = (i, size) => (i % size + size) % size;

/** A coloured shape that moves over a dark ground and comes in again on the other side. */
function drawClip(world, {shape, direction, lane, start, colour}, [T, H, W]) {
  const clip = new Uint8Array(T * H * W * 3).fill(world.ground * 255 + 0.5);
  const along = 2 * world.cell * start, across = world.cell * lane, [down, right] = WAYS[direction];
  const [top, left] = direction < 2 ? [across, along] : [along, across];
  for (let frame = 0; frame < T; frame++) world.masks[shape].forEach((alpha, i) => {
    const y = wrap(top + Math.floor(i / world.size) + world.speed * frame * down, H);
    const x = wrap(left + i % world.size + world.speed * frame * right, W);
    world.colours[colour].forEach((value, c) => {
      const mixed = world.ground + alpha * (value - world.ground);
      clip[((frame * H + y) * W + x) * 3 + c] = mixed * 255 + 0.5;
    });
  });
  return clip;
}

/** Bytes (T, H, W, 3) -> {data, shape: [3, T, H, W]} in [0, 1]. */
function toVideo(clip, sizes) {
  const size = product(sizes);
  return {shape: [3, ...sizes], data: Float64Array.from(clip, (_, i) =>
    clip[i % size * 3 + Math.floor(i / size)] / 255)};
}

/** The way back, clipped and rounded. */
function toBytes({data}) {
  const bytes = new Uint8ClampedArray(data.length), size = data.length / 3;
  data.forEach((value, i) => { bytes[i % size * 3 + Math.floor(i / size)] = 255 * value; });
  return bytes;
}

// ---------------------------------------------------------------------------------------------
// The worker of the page: does one piece of work after the other, and says how long each took

function serve() {
  let tokenizer, transformer, sizes, grid, walks;
  const works = {
    begin({facts, weights}) {
      const arrays = readWeights(weights, facts.weights);
      tokenizer = new Tokenizer(facts.tokenizer, arrays);
      transformer = new Transformer(facts.transformer, arrays);
      sizes = facts.size;
      grid = tokenizer.latentShape(sizes);
    },
    encode: ({video}) => tokenizer.encode({data: video, shape: [3, ...sizes]}),
    decode: ({tokens}) => toBytes(tokenizer.decode(tokens, grid)),
    run({task, label, condition, isPad, options, seeds}) {
      walks = seeds.map(seed => commitDecode(transformer, task, label, condition, isPad,
                                             {...options, noise: seededNoise(seed)}));
    },
    step: ({sample}) => walks[sample].next().value,
  };
  onmessage = ({data}) => {
    const {work, key, id, sample} = data, start = performance.now(), answer = works[work](data);
    postMessage({work, key, id, sample, answer, ms: performance.now() - start});
  };
}

if (typeof document === "undefined" && typeof postMessage === "function") serve();
