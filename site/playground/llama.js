/**
 * Llama 3 in plain JavaScript: tokenizer.py, model.py, cache.py and generate.py of llama3_scratch
 * once more, with the same names in the same order, and equal to them within rounding.
 *
 * A tensor is a Float32Array: its numbers in the order of its shape, the last letter running
 * fastest. The shape stands in the comment, in the book's letters:
 *
 *     T  tokens now being computed (queries)          N  query heads
 *     S  tokens attended to (keys): cached + T        K  key/value heads
 *     V  vocabulary                                   G  query heads to one key/value head, N/K
 *     L  layers                                       H  head size, D/N
 *     D  width of the residual stream                 P  rotated pairs, H/2
 *     F  feed-forward width
 *
 * Sums run in float64, which JavaScript has anyway; what is stored is float32.
 * Python looks into a running function from outside (watch.py). JavaScript cannot, so two functions
 * take `watch` and call it as watch(name, tensor). What `watch` writes into the stream or into the
 * outputs of the heads is what the model computes with from there on: so heads are switched off.
 */
"use strict";

// ------------------------------------------------------------------ checkpoint: weights*.js, read

/** The object in weights.js -> {weights, config, tokenizer}. weights: {Meta's name: tensor}. */
function load(stored) {
  const weights = {};
  for (const name in stored.weights) weights[name] = bfloat16(stored.weights[name]);
  const tokenizer = new Tokenizer(stored.tokens.map(atob), stored.special, stored.stop);
  return { weights, config: stored.config, tokenizer };
}

/** Base64 of n bfloat16 numbers -> [n]. A bfloat16 is the upper half of a float32. */
function bfloat16(base64) {
  const bytes = atob(base64);
  const bits = new Uint32Array(bytes.length / 2);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = (bytes.charCodeAt(2 * i) << 16) | (bytes.charCodeAt(2 * i + 1) << 24);
  }
  return new Float32Array(bits.buffer);
}

/** The object in weights-int4.js, all weights -> the weights of the model in 4 bits. */
function loadInt4(stored, weights) {
  const matrices = Object.entries(stored).map(([name, matrix]) => [name, dequantize(matrix)]);
  return { ...weights, ...Object.fromEntries(matrices) };
}

/**
 * A matrix in 4 bits -> [m, n]: (code - zero) times scale.
 *
 * Codes are 0 to 15, two to a byte, the first one in the low bits. In each row, `group` neighbours
 * share a scale and a zero.
 */
function dequantize({ n, group, codes, scales, zeros }) {
  const [pairs, zero] = [fromBytes(atob(codes)), fromBytes(atob(zeros))];
  const scale = new Float32Array(fromBytes(atob(scales)).buffer);
  const [width, groups] = [Math.ceil(n / 2), Math.ceil(n / group)]; // of a row
  const m = pairs.length / width;
  const matrix = new Float32Array(m * n); // [m, n]
  for (let row = 0; row < m; row++) {
    for (let i = 0; i < n; i++) {
      const pair = pairs[row * width + Math.floor(i / 2)];
      const code = i % 2 ? pair >> 4 : pair & 15;
      const at = row * groups + Math.floor(i / group);
      matrix[row * n + i] = (code - zero[at]) * scale[at];
    }
  }
  return matrix;
}

// ------------------------------------------------------------------ tokenizer: text <-> tokens

/**
 * How text is cut into pieces before merging: SPLIT_PATTERN of tokenizer.py, in JavaScript.
 * White space is \p{White_Space}, because JavaScript's \s has U+FEFF and lacks U+0085. Small and
 * capital letters are written out; s has a third form, the long ſ.
 */
const SPLIT_PATTERN = new RegExp(
  [
    /'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])/u,
    /[^\r\n\p{L}\p{N}]?\p{L}+/u,
    /\p{N}{1,3}/u,
    / ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*/u,
    /\p{White_Space}*[\r\n]+/u,
    /\p{White_Space}+(?!\P{White_Space})/u,
    /\p{White_Space}+/u,
  ].map((pattern) => pattern.source).join("|"),
  "gu",
);

/**
 * Byte-level BPE. Bytes are a string here, with one character (code 0 to 255) for each: that can be
 * a key of a Map. Not here: the package, like Meta, also cuts runs longer than 25,000 characters;
 * this page's field takes fewer.
 */
class Tokenizer {
  /** tokens: bytes, by rank; special: the names that follow; stop: ids that end a text. */
  constructor(tokens, special, stop) {
    this.tokens = tokens;
    this.ranks = new Map(tokens.map((bytes, rank) => [bytes, rank]));
    this.special = new Map(special.map((name, i) => [name, tokens.length + i]));
    this.names = special;
    this.bosId = this.special.get("<|begin_of_text|>");
    this.stopIds = new Set(stop);
  }

  /** Text -> ids. Special tokens' names are text like any other, but for those allowed ("all"). */
  encode(text, bos = true, allowedSpecial = []) {
    const allowed = allowedSpecial === "all" ? this.names : allowedSpecial;
    const escaped = allowed.map((name) => name.replace(/[|]/g, "\\|"));
    // split() with a group gives the parts at even places and the names between them at odd ones
    const parts = allowed.length ? text.split(new RegExp(`(${escaped.join("|")})`, "u")) : [text];
    const ids = bos ? [this.bosId] : [];
    parts.forEach((part, i) => {
      const pieces = i % 2 ? [] : part.match(SPLIT_PATTERN) ?? [];
      if (i % 2) ids.push(this.special.get(part));
      for (const piece of pieces) ids.push(...this.merge(toBytes(piece)));
    });
    return ids;
  }

  /** The bytes of one piece -> ids: the neighbours of lowest rank are joined, again and again. */
  merge(piece) {
    if (this.ranks.has(piece)) return [this.ranks.get(piece)];
    const parts = piece.split("");
    for (;;) {
      let [lowest, at] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]);
        if (rank < lowest) [lowest, at] = [rank, i]; // false for undefined, which is no token
      }
      if (at < 0) return parts.map((part) => this.ranks.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** Ids -> text. Bytes that are not UTF-8 become U+FFFD, so every list of ids has a text. */
  decode(ids) {
    const bytes = ids.map((id) => this.tokenBytes(id)).join("");
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(fromBytes(bytes));
  }

  /** The bytes of one token (for a special token those of its name). */
  tokenBytes(id) {
    return this.tokens[id] ?? this.names[id - this.tokens.length];
  }
}

/** Text -> its UTF-8 bytes, one character for each. */
function toBytes(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** Bytes, one character for each -> Uint8Array. */
function fromBytes(bytes) {
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}

// ------------------------------------------------------------------ model: the whole forward pass

/**
 * [T, n], [m, n], n -> [T, m]: `x @ weight.T`, each row of x times each row of the matrix.
 *
 * Nearly all of the time is spent here. Four rows of the matrix are taken at once, so that a sum
 * need not wait for its last addition, and a number of x is read once for four products.
 */
function matmul(x, weight, n) {
  const [T, m] = [x.length / n, weight.length / n];
  const y = new Float32Array(T * m); // [T, m]
  let row = 0;
  for (; row + 4 <= m; row += 4) {
    const [a, b, c, d] = [row * n, (row + 1) * n, (row + 2) * n, (row + 3) * n];
    for (let t = 0; t < T; t++) {
      let sumA = 0;
      let sumB = 0;
      let sumC = 0;
      let sumD = 0;
      for (let i = 0, j = t * n; i < n; i++, j++) {
        const number = x[j];
        sumA += weight[a + i] * number;
        sumB += weight[b + i] * number;
        sumC += weight[c + i] * number;
        sumD += weight[d + i] * number;
      }
      const at = t * m + row;
      y[at] = sumA;
      y[at + 1] = sumB;
      y[at + 2] = sumC;
      y[at + 3] = sumD;
    }
  }
  for (; row < m; row++) {
    for (let t = 0; t < T; t++) {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += weight[row * n + i] * x[t * n + i];
      y[t * m + row] = sum;
    }
  }
  return y;
}

/** [n], [n] -> [n]: the sum, place by place. */
function add(x, y) {
  return x.map((number, i) => number + y[i]);
}

/** [T, D], [D], eps -> [T, D]. Each row gets mean square 1, then each column its weight. */
function rmsNorm(x, weight, eps) {
  const D = weight.length;
  const normed = new Float32Array(x.length); // [T, D]
  for (let row = 0; row < x.length; row += D) {
    let squares = 0;
    for (let d = 0; d < D; d++) squares += x[row + d] ** 2;
    const scale = 1 / Math.sqrt(squares / D + eps);
    for (let d = 0; d < D; d++) normed[row + d] = Math.fround(x[row + d] * scale) * weight[d];
  }
  return normed;
}

/** Config -> [P]: radians per position; for long waves fewer, where the config says so. */
function ropeFrequencies(config) {
  const [H, by] = [config.head_dim, config.rope_scaling];
  return Float32Array.from({ length: H / 2 }, (_, p) => {
    const plain = Math.fround(1 / Math.fround(config.rope_theta ** Math.fround((2 * p) / H)));
    if (!by) return plain;
    const turns = by.original_length / ((2 * Math.PI) / plain);
    const ramp = (turns - by.low_freq_factor) / (by.high_freq_factor - by.low_freq_factor);
    const kept = Math.min(Math.max(ramp, 0), 1);
    return ((1 - kept) * plain) / by.factor + kept * plain;
  });
}

/**
 * [T, N, H], [T, P, 2], H -> [T, N, H] (for keys: K in place of N).
 *
 * Neighbours (0, 1), (2, 3), ... are a complex number; it is multiplied by its rotation, which is
 * stored as cosine and sine.
 */
function rotate(x, rotations, H) {
  const width = (x.length / rotations.length) * H; // N times H
  const turned = new Float32Array(x.length); // [T, N, H]
  for (let i = 0; i < x.length; i += 2) {
    const at = Math.floor(i / width) * H + (i % H);
    const [cosine, sine] = [rotations[at], rotations[at + 1]];
    turned[i] = x[i] * cosine - x[i + 1] * sine;
    turned[i + 1] = x[i] * sine + x[i + 1] * cosine;
  }
  return turned;
}

/**
 * [T, N, H], [S, K, H], [S, K, H], Config -> [T, N, H]; watch gets probabilities, [N, T, S], and
 * outputs, [T, N, H].
 *
 * The T queries are the last T of the S positions. A query reads the keys up to its own position:
 * the loop ends there, which is what the mask does in model.py.
 */
function attend(query, keys, values, config, watch) {
  const { n_heads: N, n_kv_heads: K, head_dim: H } = config;
  const [G, T, S] = [N / K, query.length / (N * H), keys.length / (K * H)];
  const probabilities = new Float32Array(N * T * S); // [N, T, S]; after a query's position 0
  const outputs = new Float32Array(T * N * H); // [T, N, H]
  for (let n = 0; n < N; n++) {
    const k = Math.floor(n / G); // G neighbouring query heads read one key/value head
    for (let t = 0; t < T; t++) {
      const own = S - T + t; // the query's position
      const row = probabilities.subarray((n * T + t) * S, (n * T + t) * S + own + 1);
      const from = (t * N + n) * H;
      let largest = -Infinity;
      for (let s = 0; s <= own; s++) {
        let product = 0;
        for (let h = 0; h < H; h++) product += query[from + h] * keys[(s * K + k) * H + h];
        row[s] = product / Math.sqrt(H);
        if (row[s] > largest) largest = row[s];
      }
      let sum = 0;
      for (let s = 0; s <= own; s++) sum += row[s] = Math.exp(row[s] - largest);
      for (let s = 0; s <= own; s++) row[s] /= sum;
      for (let h = 0; h < H; h++) {
        let output = 0;
        for (let s = 0; s <= own; s++) output += row[s] * values[(s * K + k) * H + h];
        outputs[from + h] = output;
      }
    }
  }
  watch("probabilities", probabilities);
  watch("outputs", outputs);
  return outputs;
}

/** [T, D], a layer's weights and cache, [T, P, 2] -> [T, D]. */
function attention(x, weights, rotations, config, memory, watch) {
  const { dim: D, head_dim: H } = config;
  const query = matmul(x, weights["attention.wq.weight"], D); // [T, N, H]
  const key = matmul(x, weights["attention.wk.weight"], D); // [T, K, H]
  const value = matmul(x, weights["attention.wv.weight"], D); // [T, K, H]
  const rotatedQuery = rotate(query, rotations, H); // [T, N, H]
  const rotatedKey = rotate(key, rotations, H); // [T, K, H]
  const [keys, values] = memory ? memory.append(rotatedKey, value) : [rotatedKey, value];
  const outputs = attend(rotatedQuery, keys, values, config, watch); // [T, N, H]
  return matmul(outputs, weights["attention.wo.weight"], D);
}

/** [T, D], a layer's weights, Config -> [T, D]: silu(x W1) times x W3, then W2. */
function feedForward(x, weights, config) {
  const D = config.dim;
  const F = weights["feed_forward.w1.weight"].length / D;
  const gate = matmul(x, weights["feed_forward.w1.weight"], D); // [T, F]
  const up = matmul(x, weights["feed_forward.w3.weight"], D); // [T, F]
  const gated = gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]); // [T, F]
  return matmul(gated, weights["feed_forward.w2.weight"], F);
}

/** [T, D], a layer's weights and cache, [T, P, 2] -> [T, D]: one layer. */
function block(x, weights, rotations, config, memory, watch) {
  const normed = rmsNorm(x, weights["attention_norm.weight"], config.norm_eps); // [T, D]
  const middle = add(x, attention(normed, weights, rotations, config, memory, watch)); // [T, D]
  const renormed = rmsNorm(middle, weights["ffn_norm.weight"], config.norm_eps); // [T, D]
  return add(middle, feedForward(renormed, weights, config));
}

/** All weights, i -> those of layer i, by their names inside a layer. */
function layer(weights, i) {
  const prefix = `layers.${i}.`;
  const names = Object.keys(weights).filter((name) => name.startsWith(prefix));
  return Object.fromEntries(names.map((name) => [name.slice(prefix.length), weights[name]]));
}

/**
 * Weights, [T] ids, Config -> [T, V]: the next token's logits at every position.
 *
 * watch gets stream, [T, D], before the first layer and after each, and each layer's probabilities
 * and outputs.
 */
function forward(weights, tokens, config, cache = null, watch = () => {}) {
  const [T, D, start] = [tokens.length, config.dim, cache ? cache.length : 0];
  const frequencies = ropeFrequencies(config); // [P]
  const rotations = new Float32Array(T * config.head_dim); // [T, P, 2]
  for (let t = 0, at = 0; t < T; t++) {
    for (const frequency of frequencies) {
      const angle = Math.fround((start + t) * frequency);
      rotations[at++] = Math.cos(angle);
      rotations[at++] = Math.sin(angle);
    }
  }
  let stream = new Float32Array(T * D); // [T, D]
  tokens.forEach((id, t) => {
    stream.set(weights["tok_embeddings.weight"].subarray(id * D, (id + 1) * D), t * D);
  });
  watch("stream", stream);
  for (let i = 0; i < config.n_layers; i++) {
    const memory = cache && cache.layer(i);
    stream = block(stream, layer(weights, i), rotations, config, memory, watch);
    watch("stream", stream);
  }
  if (cache) cache.length = start + T;
  return readStream(stream, weights, config);
}

/** [T, D] -> [T, V]: the logits that the stream amounts to, after the last layer or any other. */
function readStream(stream, weights, config) {
  const normed = rmsNorm(stream, weights["norm.weight"], config.norm_eps); // [T, D]
  return matmul(normed, weights["output.weight"], config.dim);
}

// ------------------------------------------------------------------ cache: the only state

/** The rotated keys and the values of every position so far, of every layer: [C, K, H] each. */
class Cache {
  /** capacity: C, how many positions it can hold. */
  constructor(config, capacity) {
    this.width = config.n_kv_heads * config.head_dim; // K times H
    const empty = () => new Float32Array(capacity * this.width);
    this.keys = Array.from({ length: config.n_layers }, empty);
    this.values = Array.from({ length: config.n_layers }, empty);
    this.length = 0; // positions filled; to forget the last ones, make it smaller
  }

  /** The cache of layer i. append: [T, K, H] twice -> [S, K, H] twice. */
  layer(i) {
    const append = (key, value) => {
      const start = this.length * this.width;
      const stop = start + key.length;
      this.keys[i].set(key, start);
      this.values[i].set(value, start);
      return [this.keys[i].subarray(0, stop), this.values[i].subarray(0, stop)];
    };
    return { append };
  }
}

// ------------------------------------------------------------------ generate: choosing a token

/** [V] -> [V]: softmax. */
function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return Float32Array.from(powers, (power) => power / sum);
}

/** [V] -> [V]: the logarithm of softmax, also where that rounds to 0. */
function logSoftmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return Float64Array.from(logits, (logit) => logit - largest - Math.log(sum));
}

/** [V] -> the index of its largest number, the first of equals. */
function argmax(x) {
  return x.reduce((best, number, i) => (number > x[best] ? i : best), 0);
}

/** [V] -> all indices, the likeliest first. */
function ranking(x) {
  return Array.from(x.keys()).sort((a, b) => x[b] - x[a] || a - b);
}

/**
 * [V] logits -> [V]: the probabilities from which the next token is drawn.
 *
 * The logits are divided by the temperature (at 0 the likeliest token has everything); then only
 * the smallest set of likeliest tokens stays whose sum exceeds topP, or all for 1.
 */
function tokenProbabilities(logits, temperature = 1, topP = 1) {
  const best = argmax(logits);
  if (temperature === 0) return new Float32Array(logits.length).fill(1, best, best + 1);
  const probabilities = softmax(logits.map((logit) => logit / temperature)); // [V]
  if (topP === 1) return probabilities;
  const kept = new Float32Array(logits.length); // [V]
  let before = 0;
  for (const id of ranking(probabilities)) {
    if (before > topP) break;
    kept[id] = probabilities[id];
    before += probabilities[id];
  }
  return kept.map((p) => p / before);
}

/** [V] logits -> one token: the likeliest at temperature 0, else drawn at random. */
function choose(logits, temperature = 0, topP = 1, random = Math.random) {
  if (temperature === 0) return argmax(logits);
  const probabilities = tokenProbabilities(logits, temperature, topP);
  let left = random() * probabilities.reduce((a, b) => a + b, 0);
  let last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id] === 0) continue;
    last = id;
    left -= probabilities[id];
    if (left < 0) break;
  }
  return last;
}

/** Weights, the prompt's ids, Config -> a generator of at most maxNew further ids. */
function* generate(weights, tokens, config, maxNew, { temperature = 0, topP = 1, stop = [] } = {}) {
  const cache = new Cache(config, tokens.length + maxNew);
  let next = tokens;
  for (let i = 0; i < maxNew; i++) {
    const logits = forward(weights, next, config, cache);
    next = [choose(logits.subarray(-config.vocab_size), temperature, topP)];
    if (stop.includes(next[0])) return;
    yield next[0];
  }
}

// ------------------------------------------------------------------ changes: heads.py

/** [T, N, H], head n, Config: its outputs become zero, so that it adds nothing to the stream. */
function switchOff(outputs, n, config) {
  const { n_heads: N, head_dim: H } = config;
  for (let at = n * H; at < outputs.length; at += N * H) outputs.fill(0, at, at + H);
}

/** [T, N, H], [N, H], row t, head n, Config: this head's output at t becomes the one in `taken`. */
function patchHead(outputs, taken, t, n, config) {
  const { n_heads: N, head_dim: H } = config;
  outputs.set(taken.subarray(n * H, (n + 1) * H), (t * N + n) * H);
}

/** [T, D], [D], row t: the row becomes the one in `taken`. */
function patchStream(stream, taken, t) {
  stream.set(taken, t * taken.length);
}

/** [V], [V] -> the Kullback-Leibler divergence in nats: how far `q` is from `p`, both as logits. */
function divergence(p, q) {
  const [before, after] = [logSoftmax(p), logSoftmax(q)];
  return before.reduce((sum, log, id) => sum + Math.exp(log) * (log - after[id]), 0);
}
