// Which experts each token of an answer went to: its trace, as the server sends it.

const LAYERS = 1024; // the most that a trace may claim
const EXPERTS = 256;

const toBase64 = (bytes) => {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
};

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** The value of a float16, given its 16 bits. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size =
    exponent === 0
      ? fraction * 2 ** -24
      : exponent === 31
        ? fraction
          ? NaN
          : Infinity
        : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits >> 15 ? -size : size;
}

const joined = (a, b) => {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
};

/**
 * The experts of the tokens of a text.
 *
 * A piece, as the server sends it: { tokens: [ids], texts: [strings], n_layers, k, n_experts,
 * experts: base64 of uint8 [tokens, layers, k], weights: base64 of float16 [tokens, layers, k], little-endian }.
 */
export class Trace {
  tokens = [];
  texts = [];
  experts = new Uint8Array(0);
  weights = new Uint8Array(0);
  work = new Float64Array(0); // [layers, experts]: the weights that each expert had, summed

  static from(piece) {
    const trace = new Trace();
    trace.add(piece);
    return trace;
  }

  /** Takes a piece; throws RangeError if its parts do not fit each other or what is here. */
  add(piece) {
    const { tokens, texts, n_layers: layers, k, n_experts: count } = piece;
    const whole = (value, most) => Number.isInteger(value) && value >= 1 && value <= most;
    if (!whole(layers, LAYERS) || !whole(count, EXPERTS) || !whole(k, count)) throw new RangeError("impossible sizes");
    if (this.layers !== undefined && (layers !== this.layers || k !== this.k || count !== this.count))
      throw new RangeError("other sizes than before");
    if (!Array.isArray(tokens) || !Array.isArray(texts) || texts.length !== tokens.length)
      throw new RangeError("tokens and texts differ");
    if (!tokens.every(Number.isInteger) || !texts.every((text) => typeof text === "string"))
      throw new RangeError("tokens are no numbers, or texts no text");
    const experts = fromBase64(piece.experts);
    const weights = fromBase64(piece.weights);
    const n = tokens.length * layers * k;
    if (experts.length !== n || weights.length !== 2 * n || experts.some((expert) => expert >= count))
      throw new RangeError("experts do not fit the tokens");
    if (this.layers === undefined) {
      Object.assign(this, { layers, k, count });
      this.work = new Float64Array(layers * count);
    }
    const first = this.tokens.length;
    this.tokens.push(...tokens);
    this.texts.push(...texts);
    this.experts = joined(this.experts, experts);
    this.weights = joined(this.weights, weights);
    for (let token = first; token < this.length; token++) {
      for (let layer = 0; layer < layers; layer++) {
        for (const { expert, weight } of this.chosen(token, layer)) this.work[layer * count + expert] += weight;
      }
    }
  }

  get length() {
    return this.tokens.length;
  }

  /** The first expert of a token in a layer. */
  first(token, layer) {
    return this.experts[(token * this.layers + layer) * this.k];
  }

  /** The experts of a token in a layer with their weights, the largest first. */
  chosen(token, layer) {
    return Array.from({ length: this.k }, (_, i) => {
      const at = (token * this.layers + layer) * this.k + i;
      const weight = half(this.weights[2 * at] | (this.weights[2 * at + 1] << 8));
      return { expert: this.experts[at], weight: Number.isFinite(weight) ? weight : 0 };
    });
  }

  /** What part of a layer's work an expert did, 0 to 1. */
  share(layer, expert) {
    const row = this.work.subarray(layer * this.count, (layer + 1) * this.count);
    const sum = row.reduce((a, b) => a + b, 0);
    return sum ? row[expert] / sum : 0;
  }

  toJSON() {
    return {
      tokens: this.tokens,
      texts: this.texts,
      experts: toBase64(this.experts),
      weights: toBase64(this.weights),
      n_layers: this.layers,
      k: this.k,
      n_experts: this.count,
    };
  }
}
