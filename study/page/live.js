// The model itself: any pair, any style, λ and count, fused while they are moved.
"use strict";

const CFLive = (() => {
  const { el, find, number, announce } = CFDom;

  async function start(study) {
    const body = find("live-body");
    const packed = CFData.readModel();
    if (packed.problem) {
      body.replaceChildren(el("p", { class: "about" }, packed.problem));
      return;
    }
    body.replaceChildren(el("p", { class: "about" }, "The model is being unpacked…"));
    try {
      new Live(study, await CFEngine.load(packed), body);
    } catch (error) {
      body.replaceChildren(el("p", { class: "problem" }, `The model can't be used here: ${error.message}`));
    }
  }

  class Live {
    constructor(study, model, body) {
      Object.assign(this, { study, model });
      this.own = { left: null, right: null };
      this.lead = model.lead ?? null;
      this.controls = el("div", { class: "live-controls" });
      this.rolls = el("div", { class: "live-rolls", id: "live-rolls" });
      this.choose(0);
      this.take(0);
      body.replaceChildren(this.build());
    }

    // The selected model, or the one beside it: with its own λ and count, and the style as it was.
    take(place) {
      const { model } = this;
      model.choose(place);
      this.style = Array.from({ length: model.styleDim }, (_, i) => this.style?.[i] ?? 0.5);
      this.lambda = model.lambda;
      this.iterations = model.iterations;
      this.refreshers = [];
      const sliders = el("div", { class: "sliders" }, ...this.list().map((slider) => this.slider(slider)));
      const fixed = model.lambdaRange ? null : el("p", { class: "about", id: "live-fixed" }, "λ is fixed in this model.");
      this.controls.replaceChildren(...[model.styleDim > 1 ? this.pad() : null, sliders, fixed].filter(Boolean));
      this.schedule();
    }

    // ---- inputs --------------------------------------------------------------------------------

    choose(number_) {
      const pair = this.study.inputs("test", number_) || this.study.inputs("prior", number_);
      this.inputs = pair;
      this.own = { left: null, right: null };
    }

    async read(side, file) {
      try {
        const midi = CFMidi.read(await file.arrayBuffer());
        const tokens = CFMidi.segment(midi, this.model.form, side === "left" ? "last" : "first");
        this.own[side] = tokens;
        this.message(`${CFDom.tidy(file.name)} is the ${side} melody.`);
        const { left, right } = this.own;
        if (left && right) this.join(left, right);
        else this.replace(side, tokens);
      } catch (error) {
        this.message(`${CFDom.tidy(file.name)}: ${error.message}`);
      }
    }

    // One file takes the place of one half, if the other is in its meter.
    replace(side, tokens) {
      const [left, right] = this.inputs ? this.inputs.tokens : [null, null];
      const both = side === "left" ? [tokens, right] : [left, tokens];
      if (both[0] && both[1] && this.model.kindOf(both[0]) === this.model.kindOf(both[1])) this.join(...both);
      else this.message(`The ${side} melody is in another meter than the pair; drop the other melody too.`);
    }

    join(left, right) {
      const kind = this.model.kindOf(left);
      if (kind !== this.model.kindOf(right)) {
        this.message("The two melodies are in different meters; fusing takes two of one kind.");
        return;
      }
      this.inputs = this.study.pair(Int16Array.from(left), Int16Array.from(right), kind);
      this.schedule();
    }

    message(text) {
      this.told.textContent = text;
      announce(text);
    }

    // ---- controls ------------------------------------------------------------------------------

    build() {
      const { study } = this;
      this.told = el("p", { class: "about", id: "live-told" });
      this.account = el("p", { class: "account", id: "live-account" });
      const pair = el("select", { id: "live-pair", onchange: () => { this.choose(Number(pair.value)); this.schedule(); } });
      CFDom.options(pair, study.pairs.test.map((_, i) => [i, study.describePair("test", i)]), 0);
      const drop = el("div", { class: "drop" },
        el("p", {}, "Or your own melodies, as MIDI files: drop them here, the left one first, or choose"),
        this.picker("left"), this.picker("right"));
      drop.addEventListener("dragover", (event) => event.preventDefault());
      drop.addEventListener("drop", (event) => this.dropped(event));
      return el("div", { class: "live" },
        el("div", { class: "live-inputs" }, this.maps(), el("label", {}, "Pair ", pair), drop, this.told),
        this.controls,
        el("div", { class: "live-outputs" }, this.rolls, this.account, this.buttons()));
    }

    // Which model, where there are two.
    maps() {
      const { maps } = this.model;
      if (maps.length < 2) return null;
      const told = maps.map(({ trial, lambdaRange }, place) =>
        [place, `${CFDom.tidy(trial, 40)}, ${place ? "" : "selected, "}${lambdaRange ? "any λ" : "one λ"}`]);
      const select = el("select", { id: "live-map", onchange: () => this.take(Number(select.value)) });
      CFDom.options(select, told, 0);
      return el("label", {}, "Model ", select);
    }

    picker(side) {
      const input = el("input", { type: "file", accept: ".mid,.midi,audio/midi", id: `file-${side}`,
        onchange: () => input.files.length && this.read(side, input.files[0]) });
      return el("label", { class: "file" }, `the ${side} one `, input);
    }

    async dropped(event) {
      event.preventDefault();
      const files = [...event.dataTransfer.files].slice(0, 2);
      if (files.length === 2) this.own = { left: null, right: null };
      for (const file of files) {
        const side = files.length === 2 ? (file === files[0] ? "left" : "right") : this.own.left && !this.own.right ? "right" : "left";
        await this.read(side, file);
      }
    }

    // All that can be moved: λ on a logarithmic scale.
    list() {
      const { model } = this;
      const sliders = [];
      if (model.lambdaRange) {
        const [least, most] = model.lambdaRange;
        const [low, high] = [Math.log(least), Math.log(most)];
        sliders.push({ name: "lambda", label: "λ (small: far)", low, high, step: (high - low) / 200,
          get: () => Math.log(this.lambda), set: (x) => { this.lambda = Math.min(most, Math.max(least, Math.exp(x))); }, show: () => number(this.lambda) });
      }
      sliders.push({ name: "iterations", label: "iterations", low: 1, high: Math.max(16, model.iterations), step: 1,
        get: () => this.iterations, set: (x) => { this.iterations = x; }, show: () => String(this.iterations) });
      if (this.lead !== null) {
        sliders.push({ name: "lead", label: "lead, left to right", low: 0, high: 1, step: 0.05,
          get: () => this.lead, set: (x) => { this.lead = x; }, show: () => number(this.lead, 2) });
      }
      this.style.forEach((_, i) => sliders.push({ name: `style-${i + 1}`, label: `style ${i + 1}`, low: 0, high: 1, step: 0.01,
        get: () => this.style[i], set: (x) => { this.style[i] = x; }, show: () => this.style[i].toFixed(2) }));
      return sliders;
    }

    slider({ name, label, low, high, step, get, set, show }) {
      const output = el("output", {}, show());
      const input = el("input", { type: "range", id: `live-${name}`, min: low, max: high, step, value: get(), "aria-valuetext": show(),
        oninput: () => { set(Number(input.value)); this.schedule(); } });
      this.refreshers.push(() => {
        input.value = get();
        output.textContent = show();
        input.setAttribute("aria-valuetext", show());
      });
      return el("label", { class: "slider" }, el("span", {}, label), input, output);
    }

    pad() {
      const dot = el("span", { class: "dot" });
      const pad = el("div", { class: "pad", id: "pad", tabindex: 0, role: "application", "aria-roledescription": "two-dimensional slider",
        "aria-label": "Styles 1 and 2; move with the arrow keys" }, dot);
      const put = ([x, y]) => {
        this.style[0] = Math.min(1, Math.max(0, x));
        this.style[1] = Math.min(1, Math.max(0, y));
        this.schedule();
      };
      const at = (event) => {
        const box = pad.getBoundingClientRect();
        put([(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height]);
      };
      pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); at(event); });
      pad.addEventListener("pointermove", (event) => event.buttons && at(event));
      pad.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
        if (!move) return;
        event.preventDefault();
        put([this.style[0] + move[0], this.style[1] + move[1]]);
      });
      this.refreshers.push(() => {
        dot.style.left = `${this.style[0] * 100}%`;
        dot.style.bottom = `${this.style[1] * 100}%`;
      });
      return el("figure", { class: "pad-frame" }, pad, el("figcaption", {}, "style 1 → and style 2 ↑"));
    }

    buttons() {
      const play = (name, what, roll) => el("button", { type: "button", id: `live-play-${name}`,
        onclick: () => what() && CFSound.play([{ pair: what(), name, rolls: [roll()] }]) }, `Play ${name}`);
      const save = el("button", { type: "button", id: "live-save", onclick: () => this.save() }, "Download as MIDI");
      return el("div", { class: "choices" },
        play("inputs", () => this.inputs, () => this.upper), play("outputs", () => this.outputs, () => this.lower), save);
    }

    // ---- fusing --------------------------------------------------------------------------------

    // At most once for each frame that is drawn.
    schedule() {
      this.refreshers.forEach((refresh) => refresh());
      if (this.waiting) return;
      this.wait(true);
      requestAnimationFrame(() => {
        this.wait(false);
        this.fuse();
      });
    }

    // Also told to those that read the page: what is drawn is not yet what the controls say.
    wait(waiting) {
      this.waiting = waiting;
      this.rolls.setAttribute("aria-busy", String(waiting));
    }

    fuse() {
      if (!this.inputs) return;
      const [left, right] = this.inputs.tokens;
      const { style, lambda, iterations, lead } = this;
      const fused = this.model.fuse({ left, right, style, lambda, iterations, lead });
      this.outputs = this.study.pair(fused.left, fused.right, this.inputs.kind);
      const span = CFRoll.range([this.inputs, this.outputs]);
      this.upper = CFRoll.draw(this.inputs, { label: "Inputs", span });
      this.lower = CFRoll.draw(this.outputs, { label: "Outputs", span, before: this.inputs, colour: "var(--accent)" });
      this.rolls.replaceChildren(el("p", {}, "inputs"), this.upper, el("p", {}, "outputs"), this.lower);
      this.account.textContent =
        `${fused.edits[0]} + ${fused.edits[1]} grid steps changed, z-distance ${number(fused.zDistance)}, ${number(fused.milliseconds, 2)} ms`;
    }

    save() {
      if (!this.outputs) return;
      const content = CFMidi.write(CFData.join(this.outputs), { tempo: CFSound.tempo(), meter: this.outputs.meter });
      CFDom.download("fused.mid", content, "audio/midi");
      announce("fused.mid was saved.");
    }
  }

  return { start };
})();
