/**
 * The arithmetic of a bundle (`cf_core.bundle.Bundle.fuse`), without any library and without a page.
 *
 *     const model = await CFEngine.load(packed);  // packed: what study/page/model.py makes
 *     const fused = model.fuse({left, right, style: [0.2, 0.7], lambda: 0.3, iterations: 4, lead: 0.5});
 *     CFEngine.toNotes(fused.left, model.kindOf(fused.left), model.form);
 *
 * Tokens, kinds of bars and marks are those of cf_core/melody.py. Weights are 32-bit numbers, read
 * from half precision; sums run in 64 bits, input by input, and latents are rounded to 32 bits. So
 * tokens equal those of Python but where two choices are as good as each other, to rounding.
 *
 * This file is long, because the page has it inside: one script, which also runs in node.
 */
globalThis.CFEngine = (() => {
  "use strict";

  const REST = 0, HOLD = 1, FIRST_PITCH = 2;
  const UNPAYABLE = 1e4; // a price at which no token changes, in nats
  const REMEMBERED = 20000; // results that a memory keeps

  // ---- weights ---------------------------------------------------------------------------------

  /** Reads what `pack_model` made. Throws an Error where it is damaged. */
  async function load(packed) {
    const damaged = new Error("the model of this page is damaged: get the page again");
    const numbers = widen(await inflate(packed.weights).catch(() => Promise.reject(damaged)));
    const tensors = {};
    let at = 0;
    for (const [name, shape] of packed.tensors) {
      const size = shape.reduce((product, length) => product * length, 1);
      tensors[name] = numbers.subarray(at, at + size);
      at += size;
    }
    if (at !== numbers.length) throw damaged;
    return new Model(packed, tensors);
  }

  async function inflate(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    const whole = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(whole).arrayBuffer());
  }

  /** 32-bit numbers of 16-bit ones, whose low bytes come first and whose high bytes follow. */
  function widen(planes) {
    const count = planes.length >> 1, numbers = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const high = planes[count + i], fraction = ((high & 3) << 8) | planes[i], exponent = (high >> 2) & 31;
      const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      numbers[i] = high & 128 ? -size : size;
    }
    return numbers;
  }

  function takeLinear(tensors, name) {
    const weight = tensors[`${name}.weight`], bias = tensors[`${name}.bias`];
    return {weight, bias, inputs: weight.length / bias.length, outputs: bias.length};
  }

  function takeNorm(tensors, name) {
    return {weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`]};
  }

  function takeBlock(tensors, name) {
    return {norm: takeNorm(tensors, `${name}.norm`), linear: takeLinear(tensors, `${name}.linear`)};
  }

  // ---- layers ----------------------------------------------------------------------------------

  /**
   * Writes outputs `first`, …, `first + count - 1` of a linear map of `rows` rows into `out`.
   *
   * Two rows and four outputs go together, so that each number that is read serves several products.
   * What is left over at the end is computed twice.
   */
  function affine({weight, bias, inputs}, x, rows, out, first = 0, count = bias.length) {
    const last = count - 1;
    for (let o = 0; o < count; o += 4) {
      const o1 = Math.min(o + 1, last), o2 = Math.min(o + 2, last), o3 = Math.min(o + 3, last);
      const w0 = (first + o) * inputs, w1 = (first + o1) * inputs;
      const w2 = (first + o2) * inputs, w3 = (first + o3) * inputs;
      for (let r = 0; r < rows; r += 2) {
        const r1 = Math.min(r + 1, rows - 1), a = r * inputs, b = r1 * inputs;
        let a0 = bias[first + o], a1 = bias[first + o1], a2 = bias[first + o2], a3 = bias[first + o3];
        let b0 = a0, b1 = a1, b2 = a2, b3 = a3;
        for (let i = 0; i < inputs; i++) {
          const p = x[a + i], q = x[b + i];
          const v0 = weight[w0 + i], v1 = weight[w1 + i], v2 = weight[w2 + i], v3 = weight[w3 + i];
          a0 += v0 * p; a1 += v1 * p; a2 += v2 * p; a3 += v3 * p;
          b0 += v0 * q; b1 += v1 * q; b2 += v2 * q; b3 += v3 * q;
        }
        const s = r * count, t = r1 * count;
        out[s + o] = a0; out[s + o1] = a1; out[s + o2] = a2; out[s + o3] = a3;
        out[t + o] = b0; out[t + o1] = b1; out[t + o2] = b2; out[t + o3] = b3;
      }
    }
    return out;
  }

  /** The error function, to 32-bit precision: a rational approximation, odd by construction. */
  function erf(value) {
    const x = value > 4 ? 4 : value < -4 ? -4 : value, s = x * x;
    const over = ((((((-2.72614225801306e-10 * s + 2.77068142495902e-8) * s - 2.10102402082508e-6) * s
      - 5.69250639462346e-5) * s - 7.34990630326855e-4) * s - 2.95459980854025e-3) * s - 1.60960333262415e-2);
    const under = (((-1.45660718464996e-5 * s - 2.13374055278905e-4) * s - 1.68282697438203e-3) * s
      - 7.37332916720468e-3) * s - 1.42647390514189e-2;
    return x * over / under;
  }

  /** Layer norm, then GELU, of each row. */
  function normGelu({weight, bias}, x, rows, out) {
    const width = weight.length;
    for (let at = 0; at < rows * width; at += width) {
      let sum = 0, squares = 0;
      for (let i = 0; i < width; i++) sum += x[at + i];
      const mean = sum / width;
      for (let i = 0; i < width; i++) squares += (x[at + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / width + 1e-5);
      for (let i = 0; i < width; i++) {
        const value = (x[at + i] - mean) * scale * weight[i] + bias[i];
        out[at + i] = 0.5 * value * (1 + erf(value * Math.SQRT1_2));
      }
    }
    return out;
  }

  /** Adds to `x` as many numbers of a table, from place `at` on. */
  function add(x, table, at) {
    for (let i = 0; i < x.length; i++) x[i] += table[at + i];
  }

  /** Adds to `x` what a residual block adds. */
  function addBlock({norm, linear}, x, rows) {
    const inner = normGelu(norm, x, rows, new Float64Array(x.length));
    const added = affine(linear, inner, rows, new Float64Array(x.length));
    for (let i = 0; i < x.length; i++) x[i] += added[i];
  }

  // ---- tokens ----------------------------------------------------------------------------------

  const equal = (one, other) => one.every((token, step) => token === other[step]);

  /** Plays a melody backwards: each note begins where it ended. No hold may be without a note. */
  function reverse(tokens) {
    const turned = new Int16Array(tokens.length);
    let pitch = REST;
    tokens.forEach((token, step) => {
      if (token >= FIRST_PITCH) pitch = token;
      const sounding = tokens[step + 1] === HOLD ? HOLD : pitch;
      turned[tokens.length - 1 - step] = token === REST ? REST : sounding;
    });
    return turned;
  }

  /** The token of the last pitch struck up to each step; -1 until the first one. */
  function followPitch(tokens) {
    let last = -1;
    return Int16Array.from(tokens, (token) => (last = token >= FIRST_PITCH ? token : last));
  }

  /** Levenshtein distance of two sequences. */
  function editDistance(one, other) {
    let before = Array.from({length: other.length + 1}, (_, j) => j);
    one.forEach((token, i) => {
      const now = [i + 1];
      other.forEach((against, j) => {
        now.push(Math.min(now[j] + 1, before[j + 1] + 1, before[j] + (token === against ? 0 : 1)));
      });
      before = now;
    });
    return before[other.length];
  }

  /** The notes of a segment's tokens; `onset` and `duration` in quarter notes from its start. */
  function toNotes(tokens, kind, form) {
    const lengths = form.stepLengths[kind], notes = [];
    let onset = 0, sounding = false;
    tokens.slice(0, form.lengths[kind]).forEach((token, step) => {
      const duration = lengths[step];
      if (token >= FIRST_PITCH) notes.push({onset, duration, pitch: token - FIRST_PITCH + form.lowest});
      if (token === HOLD && sounding) notes[notes.length - 1].duration += duration;
      sounding = token >= FIRST_PITCH || (token === HOLD && sounding);
      onset += duration;
    });
    return notes;
  }

  /** Results by key, so that what comes again is not computed again; all forgotten when too many. */
  class Memory {
    constructor() {
      this.found = new Map();
    }

    get(key, make) {
      return this.getAll([key], [key], () => [make()])[0];
    }

    /** The results of several items; `make` computes those of all that are new at one time. */
    getAll(keys, items, make) {
      if (this.found.size >= REMEMBERED) this.found.clear();
      const missing = new Map(keys.map((key, i) => [key, items[i]]).filter(([key]) => !this.found.has(key)));
      const fresh = [...missing.keys()];
      if (fresh.length) make([...missing.values()]).forEach((value, i) => this.found.set(fresh[i], value));
      return keys.map((key) => this.found.get(key));
    }
  }

  // ---- the core: tokens to latents and back (cf_core/vae.py) -----------------------------------

  class Core {
    constructor({form, latentDim, depth}, tensors) {
      Object.assign(this, {form, latentDim});
      const blocks = (name) => Array.from({length: depth}, (_, i) => takeBlock(tensors, `core.${name}.${i}`));
      this.tokens = tensors["core.tokens.weight"];
      this.embedding = this.tokens.length / form.vocabulary;
      this.read = {weight: tensors["core.read.weight"], bias: tensors["core.read.bias"]};
      this.posterior = takeLinear(tensors, "core.posterior");
      this.expand = takeLinear(tensors, "core.expand");
      this.encoder = blocks("encoder");
      this.decoder = blocks("decoder");
      this.norm = takeNorm(tensors, `core.decoder.${depth}`);
      this.write = takeLinear(tensors, "core.write");
      this.output = takeLinear(tensors, "core.output");
      this.sigmaBar = tensors["core.sigma_bar"];
      this.placed = new Map(); // what a token in a slot adds to the encoder, once it was needed
    }

    /** Posterior means of segments of one kind of bars. */
    encode(segments, kind) {
      const {weight, bias} = this.read, width = bias.length, rows = segments.length;
      const x = new Float64Array(rows * width), code = weight.length - (this.form.kinds.length - kind) * width;
      segments.forEach((tokens, row) => {
        const own = x.subarray(row * width, (row + 1) * width);
        add(own, bias, 0);
        if (kind > 0) add(own, weight, code);
        tokens.forEach((token, step) => add(own, this.readToken(this.form.slotOf[kind][step], token), 0));
      });
      for (const block of this.encoder) addBlock(block, x, rows);
      const means = affine(this.posterior, x, rows, new Float32Array(rows * this.latentDim));
      return segments.map((_, row) => means.slice(row * this.latentDim, (row + 1) * this.latentDim));
    }

    readToken(slot, token) {
      const key = slot * this.form.vocabulary + token;
      let seen = this.placed.get(key);
      if (!seen) {
        const {weight, bias} = this.read, width = bias.length, size = this.embedding;
        seen = new Float64Array(width);
        for (let e = 0; e < size; e++) {
          const share = this.tokens[token * size + e], at = (slot * size + e) * width;
          for (let i = 0; i < width; i++) seen[i] += share * weight[at + i];
        }
        this.placed.set(key, seen);
      }
      return seen;
    }

    /** The likeliest tokens of each of several latents, of one kind of bars. */
    decode(latents, kind) {
      const rows = latents.length, width = this.expand.outputs, size = this.embedding;
      const inputs = new Float64Array(rows * this.expand.inputs);
      latents.forEach((z, row) => {
        inputs.set(z, row * this.expand.inputs);
        if (kind > 0) inputs[row * this.expand.inputs + this.latentDim + kind - 1] = 1;
      });
      const x = affine(this.expand, inputs, rows, new Float64Array(rows * width));
      for (const block of this.decoder) addBlock(block, x, rows);
      normGelu(this.norm, x, rows, x);
      const steps = this.form.lengths[kind], vocabulary = this.form.vocabulary;
      const written = new Float64Array(rows * size), now = new Float64Array(rows * vocabulary);
      const logits = latents.map(() => new Float64Array(steps * vocabulary));
      for (let step = 0; step < steps; step++) {
        affine(this.write, x, rows, written, this.form.slotOf[kind][step] * size, size);
        affine(this.output, written, rows, now);
        logits.forEach((own, row) => {
          own.set(now.subarray(row * vocabulary, (row + 1) * vocabulary), step * vocabulary);
        });
      }
      return logits.map((own) => findLikeliest(own, steps, vocabulary));
    }
  }

  /**
   * The likeliest tokens in which every hold has a note, by the Viterbi algorithm.
   *
   * The two states are whether a note sounds after a step or not.
   */
  function findLikeliest(logits, steps, vocabulary) {
    const onset = new Int16Array(steps), held = new Uint8Array(steps), before = new Uint8Array(steps);
    let sounding = -Infinity, silent = 0;
    for (let step = 0; step < steps; step++) {
      const at = step * vocabulary;
      let pitch = FIRST_PITCH;
      for (let token = FIRST_PITCH; token < vocabulary; token++) {
        if (logits[at + token] > logits[at + pitch]) pitch = token;
      }
      onset[step] = pitch;
      before[step] = sounding > silent;
      const best = Math.max(sounding, silent);
      const goesOn = sounding + logits[at + HOLD], struck = best + logits[at + pitch];
      held[step] = goesOn > struck;
      sounding = Math.max(goesOn, struck);
      silent = best + logits[at + REST];
    }
    const tokens = new Int16Array(steps);
    let sounds = sounding > silent;
    for (let step = steps - 1; step >= 0; step--) {
      const holds = sounds && held[step];
      tokens[step] = sounds ? (holds ? HOLD : onset[step]) : REST;
      sounds = holds || before[step];
    }
    return tokens;
  }

  // ---- the fusion map G (cf_core/fusion.py) ----------------------------------------------------

  class Generator {
    constructor({form, latentDim}, {gated, conditional}, tensors, name) {
      Object.assign(this, {kinds: form.kinds.length, size: 2 * latentDim, gated, conditional});
      this.layers = [];
      while (`${name}.${this.layers.length}.weight` in tensors) {
        this.layers.push(takeLinear(tensors, `${name}.${this.layers.length}`));
      }
    }

    /** Both halves after one application, each moved by its share of the step. */
    apply(pair, style, lambda, kind, shares) {
      const own = Array.from({length: this.kinds - 1}, (_, i) => (i + 1 === kind ? 1 : 0));
      const condition = this.conditional ? [(1 + Math.log10(lambda)) / 2, ...own] : own;
      const inputs = Float64Array.from([...pair[0], ...pair[1], ...condition, ...style]);
      let x = inputs;
      this.layers.forEach((layer, number) => {
        x = affine(layer, x, 1, new Float64Array(layer.outputs));
        if (number + 1 < this.layers.length) x.forEach((value, i) => (x[i] = value < 0 ? 0.2 * value : value));
      });
      const half = this.size / 2;
      return pair.map((z, which) => z.map((old, i) => {
        const at = which * half + i;
        const moved = this.gated ? (x[this.size + at] - old) / (1 + Math.exp(-x[at])) : x[at];
        return shares[which] > 0 ? old + shares[which] * moved : old;
      }));
    }
  }

  // ---- a model of notes (cf_core/continuation.py) ----------------------------------------------

  class Continuation {
    constructor({form, heard}, tensors, name) {
      this.form = form;
      this.lags = heard.lags;
      this.widest = heard.widest;
      this.onsetShare = heard.onsetShare;
      this.intervals = 2 * heard.widest + 1;
      this.codes = 2 * this.intervals + 2; // onsets and holds of each interval, silent, absent
      for (const table of ["window", "place", "pitch"]) this[table] = tensors[`${name}.${table}.weight`];
      this.block = takeBlock(tensors, `${name}.body.0`);
      this.norm = takeNorm(tensors, `${name}.body.1`);
      this.output = takeLinear(tensors, `${name}.output`);
      this.width = this.output.inputs;
      this.known = new Memory(); // logits of each that `look` returned
    }

    findStruck(pitch, step) {
      const last = step > 0 ? pitch[step - 1] : -1;
      return last < 0 ? this.form.vocabulary >> 1 : last;
    }

    findColumn(token, struck) {
      return Math.min(Math.max(token - struck, -this.widest), this.widest) + this.widest;
    }

    /** What is known before a step: kind of bars, place, last pitch struck, codes of the window. */
    look(tokens, pitch, step, kind) {
      const {intervals} = this, {lengths, slotOf} = this.form, lags = this.lags[kind];
      const struck = this.findStruck(pitch, step), seen = new Uint16Array(3 + lags.length);
      seen[0] = kind;
      seen[1] = slotOf[kind][step % lengths[kind]];
      seen[2] = struck;
      for (let k = 0; k < lags.length; k++) {
        const at = step - lags[k];
        let code = 2 * intervals + 1;
        if (at >= 0) {
          const hold = tokens[at] === HOLD ? intervals : 0;
          code = tokens[at] === REST ? 2 * intervals : hold + this.findColumn(pitch[at], struck);
        }
        seen[3 + k] = code;
      }
      return seen;
    }

    /** Logits of a rest, a hold and each interval, of each that `look` returned. */
    predict(looks) {
      const keys = looks.map((seen) => String.fromCharCode(...seen));
      return this.known.getAll(keys, looks, (some) => this.compute(some));
    }

    compute(looks) {
      const {width} = this, count = this.output.outputs, rows = looks.length;
      const inner = new Float64Array(rows * width), logits = new Float64Array(rows * count);
      looks.forEach(([kind, place, struck, ...codes], row) => {
        const own = inner.subarray(row * width, (row + 1) * width);
        add(own, this.place, place * width);
        if (kind > 0) add(own, this.place, (this.form.slots[0].length + kind - 1) * width);
        add(own, this.pitch, struck * width);
        for (let k = 0; k < codes.length; k++) add(own, this.window, (k * this.codes + codes[k]) * width);
      });
      addBlock(this.block, inner, rows);
      normGelu(this.norm, inner, rows, inner);
      affine(this.output, inner, rows, logits);
      return looks.map((_, row) => logits.subarray(row * count, (row + 1) * count));
    }

    /** Writes the logits of all tokens at a step, from those of intervals, into `logits`. */
    spread(relative, tokens, pitch, step, kind, logits) {
      const struck = this.findStruck(pitch, step);
      const hangs = step % this.form.lengths[kind] === 0 || tokens[step - 1] === REST;
      logits[REST] = relative[REST];
      logits[HOLD] = hangs ? -Infinity : relative[HOLD];
      for (let token = FIRST_PITCH; token < logits.length; token++) {
        logits[token] = relative[FIRST_PITCH + this.findColumn(token, struck)];
      }
    }

    /** Log-probability, in nats, of the last half of a melody of one or two halves. */
    rate(tokens, kind) {
      const pitch = followPitch(tokens), logits = new Float64Array(this.form.vocabulary), looks = [];
      const first = tokens.length - this.form.lengths[kind];
      for (let step = first; step < tokens.length; step++) looks.push(this.look(tokens, pitch, step, kind));
      let rated = 0;
      this.predict(looks).forEach((relative, row) => {
        this.spread(relative, tokens, pitch, first + row, kind, logits);
        rated += logits[tokens[first + row]] - logSumExp(logits);
      });
      return rated;
    }

    /**
     * Draws a half after each of `starts`, near the half `favoured`: changes of its tokens cost a
     * price. Each draw has its own `chances`, one for a step.
     */
    draw(starts, favoured, price, chances, kind) {
      const steps = this.form.lengths[kind], logits = new Float64Array(this.form.vocabulary);
      const tokens = starts.map((start) => Int16Array.of(...start, ...start));
      const pitch = starts.map((start) => Int16Array.of(...followPitch(start), ...start));
      for (let step = steps; step < 2 * steps; step++) {
        const looks = tokens.map((own, row) => this.look(own, pitch[row], step, kind));
        this.predict(looks).forEach((relative, row) => {
          this.spread(relative, tokens[row], pitch[row], step, kind, logits);
          favour(logits, favoured[step - steps], price, this.onsetShare);
          const token = pick(logits, chances[row][step - steps]);
          tokens[row][step] = token;
          pitch[row][step] = token >= FIRST_PITCH ? token : pitch[row][step - 1];
        });
      }
      return tokens.map((melody) => melody.slice(steps));
    }
  }

  /** Weighs a token by its price, and all onsets together by a share of it at least, where there is one. */
  function favour(logits, token, price, share) {
    if (token < FIRST_PITCH) {
      logits[token] += price;
      return;
    }
    const onsets = logits.subarray(FIRST_PITCH), before = logSumExp(onsets);
    logits[token] += price;
    const lacking = Math.max(0, share * price - (logSumExp(onsets) - before));
    for (let i = 0; i < onsets.length; i++) onsets[i] += lacking;
  }

  function logSumExp(logits) {
    const most = logits.reduce((one, other) => Math.max(one, other));
    let sum = 0;
    for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - most);
    return most + Math.log(sum);
  }

  /** The first token with which the probability of it and all before it exceeds a chance. */
  function pick(logits, chance) {
    const whole = logSumExp(logits);
    let sum = 0;
    for (let token = 0; token < logits.length; token++) {
      sum += Math.exp(logits[token] - whole);
      if (sum > chance) return token;
    }
    return logits.length - 1;
  }

  // ---- the whole (cf_core/heard.py, cf_core/bundle.py) -----------------------------------------

  /** Which share of G's step the left and the right half take. */
  const shareStep = (lead) => [Math.min(1, 2 * lead), Math.min(1, 2 * (1 - lead))];

  class Model {
    constructor(packed, tensors) {
      this.form = packed.form;
      this.meters = packed.form.meters;
      this.heard = packed.heard;
      this.lead = this.heard && this.heard.lead;
      this.core = new Core(packed, tensors);
      this.maps = packed.maps;
      this.generators = this.maps.map((map, place) => new Generator(packed, map, tensors, `maps.${place}`));
      this.choose(0);
      if (this.heard) {
        this.forwards = new Continuation(packed, tensors, "forwards");
        this.backwards = new Continuation(packed, tensors, "backwards");
      }
      this.latents = new Memory(); // of tokens
      this.sounds = new Memory(); // tokens that those latents are decoded to
      this.fits = new Memory(); // of two halves
      this.drafts = new Memory(); // of two halves, at two prices
    }

    /** Fuses with another of `maps` from now on, whose styles, λ and count are its own. */
    choose(place) {
      const {styleDim, lambda, lambdaRange, iterations, price} = this.maps[place];
      Object.assign(this, {styleDim, lambda, lambdaRange, iterations, price, generator: this.generators[place]});
    }

    /** Index into `form.kinds` of the kind of a segment's bars, which its last mark says. */
    kindOf(tokens) {
      return this.form.kinds.length === 1 ? 0 : -1 - tokens[tokens.length - 1];
    }

    /**
     * Transforms two segments' tokens so that they join, as `Bundle.fuse` does.
     *
     * `lambda`, `iterations` and `lead` default to the model's own. `edits` counts the grid steps
     * that changed in each half; `zDistance` is equation 7. Throws an Error for what the model can't
     * take.
     */
    fuse({left, right, style, lambda = null, iterations = this.iterations, lead = null}) {
      const begun = performance.now();
      this.check(left, right, style, lambda, iterations, lead);
      const kind = this.kindOf(left), steps = this.form.lengths[kind];
      const inputs = [left, right].map((half) => Int16Array.from(half).slice(0, steps));
      const before = this.encode(inputs, kind);
      const how = {style, lambda: lambda ?? this.lambda ?? 1, iterations, shares: [1, 1]};
      if (this.heard) how.shares = shareStep(lead ?? this.lead);
      const unmoved = this.core.decode(before, kind);
      const after = this.heard ? this.fuseHeard(before, unmoved, kind, how) : this.fusePlain(before, kind, how);
      // Not every segment comes back from the core as it went in. What stays, stays as it was.
      const stays = after.tokens.map((half, which) => half.every((token, step) => token === unmoved[which][step]));
      const notes = after.tokens.map((half, which) => (stays[which] ? inputs[which] : half));
      const outputs = notes.map((half) => this.putMarks(half, kind));
      return {
        left: outputs[0],
        right: outputs[1],
        edits: inputs.map((half, which) => editDistance(half, notes[which])),
        zDistance: this.measure(before, after.z),
        milliseconds: performance.now() - begun,
      };
    }

    check(left, right, style, lambda, iterations, lead) {
      const {kinds, steps, vocabulary} = this.form, range = this.lambdaRange;
      for (const half of [left, right]) {
        const kind = half.length === steps ? this.kindOf(half) : -1;
        const known = kind in kinds && half.every((token, step) => (
          step < this.form.lengths[kind] ? token >= REST && token < vocabulary : token === -1 - kind));
        if (!known) throw new Error("a segment is not one of this model's: choose another");
      }
      if (this.kindOf(left) !== this.kindOf(right)) {
        const named = [left, right].map((half) => kinds[this.kindOf(half)]);
        throw new Error(`the left segment is in ${named[0]}, the right one in ${named[1]}; give two of one meter`);
      }
      const within = (value, low, high) => value >= low && value <= high; // false for what is no number
      if (style.length !== this.styleDim || !Array.from(style).every((value) => within(value, 0, 1))) {
        throw new Error(`style: give ${this.styleDim} numbers in 0…1`);
      }
      if (!Number.isInteger(iterations) || iterations < 1) throw new Error("iterations: give 1 or more");
      if (lambda !== null && !range) throw new Error("λ: this model has one λ, fixed in training; give none");
      if (lambda !== null && !within(lambda, ...range)) throw new Error(`λ: give one of ${range[0]} to ${range[1]}`);
      if (lead !== null && !this.heard) throw new Error("lead: in this model both halves change; give none");
      if (lead !== null && !within(lead, 0, 1)) throw new Error("lead: give a number in 0…1");
    }

    fusePlain(pair, kind, {style, lambda, iterations, shares}) {
      let z = pair;
      for (let i = 0; i < iterations; i++) z = this.generator.apply(z, style, lambda, kind, shares);
      return {z, tokens: this.core.decode(z, kind)};
    }

    /** Keeps applications unless the score falls, then the best of the notes as decoded and the drafts. */
    fuseHeard(pair, inputs, kind, {style, lambda, iterations, shares}) {
      const listen = ({z, tokens}) => {
        const [left, right] = tokens.map((half, which) => editDistance(inputs[which], half));
        const uneven = Math.abs(shares[1] * left - shares[0] * right);
        return {z, tokens, score: this.rate(tokens, kind) - this.heard.imbalance * uneven};
      };
      let now = listen({z: pair, tokens: inputs});
      for (let i = 0; i < iterations; i++) {
        const z = this.generator.apply(now.z, style, lambda, kind, shares);
        const heard = listen({z, tokens: this.core.decode(z, kind)});
        if (heard.score < now.score) break;
        now = heard;
      }
      const {free, near} = this.heard;
      const rise = lambda > 1 ? near : -this.price / Math.log10(free);
      const price = Math.max(0, this.price + rise * Math.log10(lambda));
      const prices = shares.map((share) => (share > 0 ? price / share : UNPAYABLE));
      const key = `${kind}:${now.tokens.join("|")}:${prices}`;
      const drafts = this.settle(this.drafts.get(key, () => this.rewrite(now.tokens, kind, prices)), now, kind);
      return drafts.map(listen).reduce((best, draft) => (draft.score > best.score ? draft : best), now);
    }

    /** Drafts of a pair: the right half after the left one, then the left before the new right. */
    rewrite(pair, kind, prices) {
      const {chance} = this.heard;
      const spread = (half) => chance.map(() => half);
      const rights = this.drawAll(this.forwards, spread(pair[0]), pair[1], prices[1], 1, kind);
      const lefts = this.drawAll(this.backwards, rights.map(reverse), reverse(pair[0]), prices[0], 0, kind);
      return lefts.map((left, draft) => [reverse(left), rights[draft]]);
    }

    drawAll(notes, starts, favoured, price, which, kind) {
      if (price >= UNPAYABLE) return starts.map(() => favoured);
      const chances = this.heard.chance.map((halves) => halves[which]);
      return notes.draw(starts, favoured, price, chances, kind);
    }

    /** Drafts as they are heard: a half that changed is encoded and decoded, another stays. */
    settle(drafts, now, kind) {
      const heard = drafts.map(() => ({z: [...now.z], tokens: [...now.tokens]}));
      const places = [], halves = [];
      drafts.forEach((draft, number) => draft.forEach((half, which) => {
        if (equal(half, now.tokens[which])) return;
        places.push([number, which]);
        halves.push(half);
      }));
      const latents = this.encode(halves, kind), keys = halves.map((half) => `${kind}:${half}`);
      const tokens = this.sounds.getAll(keys, latents, (some) => this.core.decode(some, kind));
      places.forEach(([number, which], i) => {
        heard[number].z[which] = latents[i];
        heard[number].tokens[which] = tokens[i];
      });
      return heard;
    }

    encode(halves, kind) {
      const keys = halves.map((half) => `${kind}:${half}`);
      return this.latents.getAll(keys, halves, (some) => this.core.encode(some, kind));
    }

    /** How much two halves tell of each other, log p(right | left) - log p(right), in nats. */
    rate([left, right], kind) {
      return this.fits.get(`${kind}:${left}|${right}`, () => (
        this.forwards.rate(Int16Array.of(...left, ...right), kind) - this.forwards.rate(right, kind)));
    }

    putMarks(tokens, kind) {
      const marked = new Int16Array(this.form.steps).fill(-1 - kind);
      marked.set(tokens);
      return marked;
    }

    /** Equation 7, as `cf_core.losses.distance`. */
    measure(before, after) {
      const {sigmaBar} = this.core;
      let sum = 0;
      before.forEach((z, which) => z.forEach((old, i) => {
        sum += Math.log1p((after[which][i] - old) ** 2) / sigmaBar[i] ** 2;
      }));
      return sum / sigmaBar.length;
    }
  }

  return {load, toNotes};
})();
if (typeof module === "object") module.exports = globalThis.CFEngine;
