// A blind test: which of two pairs of halves belong together? Answers stay here until they are saved.
"use strict";

const CFBlind = (() => {
  const { el, find, number, announce } = CFDom;
  const TRIALS = 24;
  const COLUMNS = ["study", "fingerprint", "seed", "listener", "trial", "source", "axis", "distance", "pair", "a", "a_point", "b", "b_point", "chosen"];

  // Numbers in 0…1 that a seed determines (mulberry32).
  function makeRandom(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  }

  function shuffle(items, random) {
    const mixed = [...items];
    for (let last = mixed.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [mixed[last], mixed[other]] = [mixed[other], mixed[last]];
    }
    return mixed;
  }

  const sound = (pair) => JSON.stringify(pair.halves);

  // Every two rows meet as often as any others do, as far as their notes differ. The seed decides
  // the order of trials, the pairs and the sides.
  function draw(study, { source, axis, distance, seed }) {
    const random = makeRandom(seed);
    const meetings = new Map();
    study.pairs[source].forEach((_, pair) => {
      const rows = CFCompare.list(study, { source, axis, at: distance, pair })
        .filter((row) => row.pair && (!row.method || row.method.kind !== "trick"));
      rows.forEach((a, i) => rows.slice(i + 1).forEach((b) => {
        if (sound(a.pair) === sound(b.pair)) return;
        const key = `${a.name} ${b.name}`;
        meetings.set(key, [...(meetings.get(key) || []), { pair, rows: [a, b] }]);
      }));
    });
    const order = shuffle([...meetings.keys()].sort(), random);
    const queues = order.map((key) => shuffle(meetings.get(key), random));
    const drawn = [];
    for (let round = 0; drawn.length < TRIALS && queues.some((queue) => queue.length > round); round += 1) {
      drawn.push(...queues.filter((queue) => queue.length > round).map((queue) => queue[round]));
    }
    return shuffle(drawn.slice(0, TRIALS), random).map(({ pair, rows }) => {
      const [a, b] = random() < 0.5 ? rows : [rows[1], rows[0]];
      return { pair, a, b };
    });
  }

  // ---- the answers as a file -------------------------------------------------------------------

  const quote = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value));

  function write(study, { settings, trials, answers }) {
    const { seed, source, axis, distance, listener } = settings;
    const point = (row) => (row.point ? row.point.id : "");
    const rows = answers.map((chosen, i) => {
      const { pair, a, b } = trials[i];
      const number_ = study.pairs[source][pair].pair;
      return [study.name, study.fingerprint, seed, listener, i + 1, source, axis, distance, number_, a.name, point(a), b.name, point(b), chosen];
    });
    return `${[COLUMNS, ...rows].map((row) => row.map(quote).join(",")).join("\r\n")}\r\n`;
  }

  // All trials of a test without its answers. A page that is written again may draw others.
  const describe = (study, { settings, trials }) => write(study, { settings, trials, answers: trials.map(() => "") });

  // ---- the page --------------------------------------------------------------------------------

  // A page from a disk may have no storage.
  function remember(key, value) {
    try {
      if (value === undefined) return JSON.parse(localStorage.getItem(key));
      localStorage.setItem(key, JSON.stringify(value));
    } catch (error) {
      return null;
    }
    return value;
  }

  class Blind {
    constructor(study, state) {
      Object.assign(this, { study, state, body: find("blind-body"), key: `cf-blind-${study.fingerprint}` });
      this.invite();
    }

    invite() {
      const listener = el("input", { id: "listener", type: "text", maxlength: 40, autocomplete: "off", placeholder: "a name or a number" });
      const seed = el("input", { id: "seed", type: "number", min: 0, max: 4294967295, value: crypto.getRandomValues(new Uint32Array(1))[0] });
      const begin = el("button", { type: "button", id: "begin", onclick: () => {
        const { source, axis, at } = this.state();
        this.begin({ seed: Number(seed.value) >>> 0, listener: clean(listener.value), source, axis, distance: at }, []);
      } }, "Begin");
      const saved = remember(this.key);
      const resume = saved && saved.answers.length && saved.answers.length < TRIALS && this.isSame(saved)
        ? el("button", { type: "button", id: "resume", onclick: () => this.begin(saved.settings, saved.answers) }, `Go on after ${saved.answers.length} answers`)
        : null;
      this.body.replaceChildren(
        el("p", { class: "about" }, `${TRIALS} times you hear two pairs of melodies and say which two belong together. One may be real neighbours of a song, ` +
          "the inputs as they were, or what a method made of them at the distance of the line above. Nothing says which until the end."),
        el("p", { class: "about" }, "Answers stay in this page until you save them as a CSV file. ", el("code", {}, "cf-study listening FILES"), " counts the files of all listeners."),
        el("div", { class: "choices" }, el("label", {}, "Listener ", listener), el("label", {}, "Seed ", seed), begin, resume),
      );
    }

    // Answers belong to trials by their order, so these must be the ones that were heard.
    isSame({ settings, trials }) {
      return trials && trials === describe(this.study, { settings, trials: draw(this.study, settings) });
    }

    begin(settings, answers) {
      this.test = { settings, answers: [...answers], trials: draw(this.study, settings) };
      if (!this.test.trials.length) {
        CFDom.complain("This study has no two kinds of pairs with notes to compare at this distance.");
        return;
      }
      this.ask();
    }

    ask() {
      const { answers, trials } = this.test;
      if (answers.length >= trials.length) return this.finish();
      const { a, b } = trials[answers.length];
      const heard = new Set();
      const choices = [["a", a], ["b", b]].map(([side, row]) => this.choice(side, row, heard));
      this.body.replaceChildren(
        el("p", { class: "trial-number" }, `Trial ${answers.length + 1} of ${trials.length}`),
        el("p", { class: "question", id: "question" }, "Which two belong together?"),
        el("div", { class: "trial", role: "group", "aria-labelledby": "question" }, ...choices),
        el("p", { class: "hint" }, "Hear both to the end as often as you like, then choose."),
      );
      announce(`Trial ${answers.length + 1} of ${trials.length}. Which two belong together?`);
      return this.body.querySelector("button").focus();
    }

    choice(side, row, heard) {
      const name = side.toUpperCase();
      const pick = el("button", { type: "button", id: `choose-${side}`, class: "choose", disabled: true, onclick: () => this.answer(side) }, `${name} belongs together`);
      const play = el("button", { type: "button", id: `hear-${side}`, class: "hear", onclick: async () => {
        heard.add(side);
        if (heard.size === 2) this.body.querySelectorAll(".choose").forEach((button) => { button.disabled = false; });
        await CFSound.play([{ pair: row.pair, name: `pair ${name}`, mark: play }]);
      } }, `Play ${name}`);
      return el("div", { class: "side" }, play, pick);
    }

    answer(side) {
      CFSound.stop();
      this.test.answers.push(side);
      const { settings, answers } = this.test;
      remember(this.key, { settings, answers, trials: describe(this.study, this.test) });
      this.ask();
    }

    finish() {
      const text = write(this.study, this.test);
      const { seed, listener } = this.test.settings;
      const rows = tally(this.test).map(([name, { chosen, times }]) =>
        el("tr", {}, el("th", { scope: "row" }, this.label(name)), el("td", {}, `${chosen} of ${times}`)));
      this.body.replaceChildren(
        el("p", { class: "question", tabindex: -1 }, "Thank you."),
        el("table", { class: "values" }, el("caption", {}, "How often you chose each"), el("tbody", {}, ...rows)),
        el("p", { class: "about" }, "One listener is no result: save the answers, and count them with those of others."),
        el("textarea", { id: "answers", readonly: true, rows: 6, "aria-label": "Answers as CSV" }, text),
        el("div", { class: "choices" },
          el("button", { type: "button", id: "save-answers", onclick: () => CFDom.download(`listening-${listener || "anonymous"}-${seed}.csv`, text, "text/csv") }, "Save as CSV"),
          el("button", { type: "button", onclick: () => this.invite() }, "Another listener")),
      );
      announce("The test is over. Your answers are below.");
      this.body.querySelector(".question").focus();
    }

    label(name) {
      if (name === "real") return "real neighbours";
      const method = this.study.methods.get(name === "inputs" ? "identity" : name);
      return method ? method.label : name;
    }
  }

  // Names of listeners become parts of file names and of tables.
  const clean = (name) => name.normalize("NFKC").replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "anonymous";

  function tally({ trials, answers }) {
    const counts = new Map();
    answers.forEach((chosen, i) => {
      for (const side of ["a", "b"]) {
        const { name } = trials[i][side];
        const own = counts.get(name) || { chosen: 0, times: 0 };
        counts.set(name, { chosen: own.chosen + (chosen === side ? 1 : 0), times: own.times + 1 });
      }
    });
    return [...counts].sort();
  }

  return { Blind, draw, write };
})();
