// Answers requests on the page's scripts, one line of JSON for each: see tests/test_page_engine.py.
"use strict";
const path = require("path");
const readline = require("readline");

const page = process.argv[2];
const CFEngine = require(path.join(page, "engine.js"));
const CFMidi = require(path.join(page, "midi.js"));

const models = {};
const toBuffer = (base64) => Uint8Array.from(Buffer.from(base64, "base64")).buffer;
const toTokens = (list) => Int16Array.from(list);
const toLatent = (list) => Float32Array.from(list);

const answers = {
  async load({name, packed}) {
    models[name] = await CFEngine.load(packed);
    return answers.choose({name, place: 0});
  },
  choose({name, place}) {
    models[name].choose(place);
    const {meters, styleDim, lambda, lambdaRange, iterations, lead} = models[name];
    return {meters, styleDim, lambda, lambdaRange, iterations, lead};
  },
  fuse({name, ...given}) {
    const fused = models[name].fuse({...given, left: toTokens(given.left), right: toTokens(given.right)});
    return {...fused, left: Array.from(fused.left), right: Array.from(fused.right)};
  },
  encode({name, tokens}) {
    const model = models[name], kind = model.kindOf(tokens);
    const [z] = model.core.encode([toTokens(tokens).slice(0, model.form.lengths[kind])], kind);
    return Array.from(z);
  },
  apply({name, pair, style, lambda, kind}) {
    const moved = models[name].generator.apply(pair.map(toLatent), style, lambda, kind, [1, 1]);
    return moved.map((z) => Array.from(z));
  },
  decode({name, latent, kind}) {
    const model = models[name];
    const [tokens] = model.core.decode([toLatent(latent)], kind);
    return Array.from(model.putMarks(tokens, kind));
  },
  notes({name, tokens}) {
    const model = models[name], kind = model.kindOf(tokens);
    return {notes: CFEngine.toNotes(toTokens(tokens), kind, model.form), kind};
  },
  read({bytes}) {
    return CFMidi.read(toBuffer(bytes));
  },
  write({notes, how}) {
    return Buffer.from(CFMidi.write(notes, how)).toString("base64");
  },
  segment({name, bytes, which}) {
    return Array.from(CFMidi.segment(CFMidi.read(toBuffer(bytes)), models[name].form, which));
  },
};

(async () => {
  for await (const line of readline.createInterface({input: process.stdin})) {
    const {ask, ...request} = JSON.parse(line);
    let answer;
    try {
      answer = {value: await answers[ask](request)};
    } catch (error) {
      // What a user may see is an Error that was thrown on purpose, never one of the language.
      answer = {error: error.message, meant: error.constructor === Error};
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
})();
