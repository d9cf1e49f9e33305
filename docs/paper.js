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
    const {sampled, logProbability} = sample(logits, noise(N * K), K);
    tokens = tokens.map((z, i) => masked[i] ? sampled[i] : z);                         // line 4
    const fading = temperature * (1 - (t + 1) / steps), ranking = noise(N);
    const confidence = logProbability.map((p, i) => p + fading * ranking[i]);
    scores = scores.map((s, i) => masked[i] ? confidence[i] : s);                      // line 5
    const last = t + 1 === steps;                                   // gamma(1) N = 0 stay unknown
    const count = last ? 0 : numMasked(maskRatio((t + 1) / steps, schedule, N), free);
    cutoff = last ? -Infinity : cutoffScore(scores, count);                            // line 6
    scores = scores.map(s => s > cutoff ? Infinity : s);                               // line 7
    const unknown = scores.map(s => s <= cutoff);
    yield {inputs, tokens, masked, confidence, cutoff, count, unknown};
  }                                                        // lines 8 and 9: the last tokens
}

/** A code for each token: argmax of logits + Gumbel noise is a sample of softmax(logits). */
function sample(logits, noise, K) {
  const sampled = [], logProbability = [];
  for (let i = 0; i < logits.length; i += K) {
    const row = logits.subarray(i, i + K), noisy = row.map((x, k) => x + noise[i + k]);
    const code = noisy.indexOf(largest(noisy)), top = largest(row);
    sampled.push(code);
    const total = row.reduce((sum, x) => sum + Math.exp(x - top), 0);
    logProbability.push(row[code] - top - Math.log(total));
  }
  return {sampled, logProbability};
}

const largest = numbers => numbers.reduce((a, b) => Math.max(a, b));

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
  const [, T, H, W] = video.shape, given = region(task, T, H, W), places = positions([T, H, W]);
  const valid = places.map(place => given(...place)), inside = places.filter((_, i) => valid[i]);
  const low = [0, 1, 2].map(axis => Math.min(...inside.map(place => place[axis])));
  const high = [0, 1, 2].map(axis => Math.max(...inside.map(place => place[axis])));
  const near = (at, axis) => Math.min(high[axis], Math.max(low[axis], at));
  const pixel = (c, t, y, x) => video.data[((c * T + t) * H + y) * W + x];
  const black = ["OPD", "IPC", "IPD", "CG"].includes(task);
  const padded = (c, t, y, x) =>
    black ? (given(t, y, x) ? pixel(c, t, y, x) : 0) :
    task === "FI" ? pixel(c, 0, y, x) + (pixel(c, T - 1, y, x) - pixel(c, 0, y, x)) * t / (T - 1) :
    pixel(c, near(t, 0), near(y, 1), near(x, 2));
  const data = Float64Array.from([0, 1, 2].flatMap(c => places.map(place => padded(c, ...place))));
  return {video: {data, shape: video.shape}, valid};
}

/** ispad: true for each supervoxel in which no pixel is given. */
function isPadding(valid, [T, H, W], [t, h, w]) {
  const isPad = Array(t * h * w).fill(true), supervoxel = [T / t, H / h, W / w];
  valid.forEach((given, i) => {
    if (given) isPad[boxOf(i, [T, H, W], supervoxel)] = false;
  });
  return isPad;
}

// ---------------------------------------------------------------------------------------------
// The blocks of the tokenizer (App. A.1): tokenizer.py. x is {data, shape: [channels, T, H, W]}.

/** All [t, y, x] of a box, in this order. */
const positions = ([T, H, W]) => Array.from({length: T * H * W}, (_, i) =>
  [Math.floor(i / (H * W)), Math.floor(i / W) % H, i % W]);

const product = sizes => sizes.reduce((a, b) => a * b, 1);

/** Pixel i of videos of sizes [T, H, W] -> the box of a x b x d pixels that it lies in. Pixels and
 *  boxes are counted in t, y, x order, through all channels. */
function boxOf(i, [, H, W], [a, b, d]) {
  const t = Math.floor(i / (H * W) / a), y = Math.floor(i / W) % H, x = i % W;
  return (t * (H / b) + Math.floor(y / b)) * (W / d) + Math.floor(x / d);
}

/** out[o, row] = bias[o] + sum_i weight[o, i] data[starts[row] + offsets[i]]: what convolutions and
 *  linear layers have in common.
 *
 *  Two rows times four outputs at once, eight sums in local variables: each number that is read is
 *  used several times, which makes it three times as fast as one sum after the other.
 */
function weightedSums(data, starts, offsets, weight, bias, outputs = weight.shape[0]) {
  const rows = starts.length, count = offsets.length, out = new Float64Array(outputs * rows);
  const places = Int32Array.from(offsets);                      // integers, for speed
  const four = new Float64Array(4 * count);                     // the weights of four outputs
  for (let first = 0; first < outputs; first += 4) {
    const tile = [0, 1, 2, 3].map(more => Math.min(first + more, outputs - 1));
    const [a, b, c, d] = tile.map(o => o * rows);               // where the sums are written
    const [biasA, biasB, biasC, biasD] = tile.map(o => bias ? bias.data[o] : 0);
    for (let i = 0; i < count; i++)
      for (let j = 0; j < 4; j++) four[4 * i + j] = weight.data[tile[j] * count + i];
    for (let row = 0; row < rows; row += 2) {
      const next = Math.min(row + 1, rows - 1), start0 = starts[row], start1 = starts[next];
      let a0 = biasA, b0 = biasB, c0 = biasC, d0 = biasD;
      let a1 = biasA, b1 = biasB, c1 = biasC, d1 = biasD;
      for (let i = 0, j = 0; i < count; i++, j += 4) {
        const x0 = data[start0 + places[i]], x1 = data[start1 + places[i]];
        const wa = four[j], wb = four[j + 1], wc = four[j + 2], wd = four[j + 3];
        a0 += wa * x0; b0 += wb * x0; c0 += wc * x0; d0 += wd * x0;
        a1 += wa * x1; b1 += wb * x1; c1 += wc * x1; d1 += wd * x1;
      }
      out[a + row] = a0; out[b + row] = b0; out[c + row] = c0; out[d + row] = d0;
      out[a + next] = a1; out[b + next] = b1; out[c + next] = c1; out[d + next] = d1;
    }
  }
  return out;
}

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

/** out[o] = bias[o] + sum of weight[o, c, a, b, d] x[c, t + a, y + b, x + d], after the padding. */
function conv3d(x, weight, bias) {
  const [outputs, inputs, ...kernel] = weight.shape, [, T, H, W] = x.shape;
  const {data, shape: [, Tp, Hp, Wp]} = padReflect(x, kernel);
  const at = ([t, y, x]) => (t * Hp + y) * Wp + x, pixels = positions([T, H, W]).map(at);
  const taps = Array.from({length: inputs}, (_, c) =>
    positions(kernel).map(place => c * Tp * Hp * Wp + at(place))).flat();
  return {data: weightedSums(data, pixels, taps, weight, bias), shape: [outputs, T, H, W]};
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
function averagePool(x, box) {
  const [C, ...sizes] = x.shape, shape = [C, ...sizes.map((size, axis) => size / box[axis])];
  const data = new Float64Array(product(shape)), share = 1 / product(box);
  x.data.forEach((value, i) => { data[boxOf(i, sizes, box)] += share * value; });
  return {data, shape};
}

/** Nearest resizing: each pixel becomes a box of a x b x d pixels. */
function resizeNearest(x, box) {
  const [C, ...sizes] = x.shape, larger = sizes.map((size, axis) => size * box[axis]);
  const data = new Float64Array(C * product(larger));
  return {data: data.map((_, i) => x.data[boxOf(i, larger, box)]), shape: [C, ...larger]};
}

const add = (x, y) => ({data: x.data.map((value, i) => value + y.data[i]), shape: x.shape});

/** 3D-VQ (Sec. 3.1): f_T and its inverse. config is TokenizerConfig; weights: name -> array. */
class Tokenizer {
  constructor(config, weights) {
    Object.assign(this, {config, weights, codebook: weights["quantizer.codebook"]});
    this.strides = config.temporal_downsample.map(temporal => [temporal ? 2 : 1, 2, 2]);
    this.blocks = Array(config.num_res_blocks).fill(this.block);                 // of one stage
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

  /** One layer after the other; their numbers are those of tokenizer.py. */
  sequence(x, name, layers) {
    return layers.reduce((x, layer, i) => layer.call(this, x, `${name}.${i}`), x);
  }

  /** video [3, T, H, W] -> latents [D, t, h, w]. */
  latents(video) {
    const {blocks, conv, norm, strides} = this;
    const stages = strides.flatMap(stride => [...blocks, x => averagePool(x, stride)]);
    return this.sequence(video, "encoder",
                         [conv, ...stages, ...blocks, ...blocks, norm, conv]);
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
    const {blocks, conv, norm, strides} = this;
    const larger = stride => (x, name) => this.conv(resizeNearest(x, stride), `${name}.conv`);
    const stages = [...strides].reverse().flatMap(stride => [...blocks, larger(stride)]);
    return this.sequence({data: embeddings, shape: [D, ...grid]}, "decoder",
                         [conv, ...blocks, ...stages, ...blocks, norm, conv]);
  }
}

// ---------------------------------------------------------------------------------------------
// The transformer (App. A.2): transformer.py. x is a Float64Array of rows, one for each token.

/** x W^T + b for every row of x. */
function linear(x, weight, bias, outputs = weight.shape[0]) {
  const inputs = weight.shape[1], rows = x.length / inputs;
  const starts = Array.from({length: rows}, (_, row) => row * inputs);
  const columns = weightedSums(x, starts, [...Array(inputs).keys()], weight, bias, outputs);
  return columns.map((_, i) => columns[i % outputs * rows + Math.floor(i / outputs)]);
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
  const runs = new Map();                                        // commitDecode of each, under way
  let tokenizer, transformer, sizes, grid;
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
    step({run, step, task, label, condition, isPad, options, seed}) {
      if (step === 1) runs.set(run, commitDecode(transformer, task, label, condition, isPad,
                                                 {...options, noise: seededNoise(seed)}));
      return runs.get(run).next().value;
    },
  };
  onmessage = ({data}) => {
    const {work, key} = data, start = performance.now(), answer = works[work](data);
    postMessage({work, key, answer, ms: performance.now() - start});
  };
}

if (typeof document === "undefined" && typeof postMessage === "function") serve();
