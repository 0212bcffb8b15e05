// What the page knows of the study: points with their values, and notes of pairs.
"use strict";

const CFData = (() => {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // Bytes of the page's own text: seven bits in each letter, the highest first.
  function unpack(id) {
    const text = document.getElementById(id).textContent;
    const content = new Uint8Array(Math.floor((text.length * 7) / 8));
    let [kept, count, at] = [0, 0, 0];
    for (let i = 0; i < text.length; i += 1) {
      kept = ((kept << 7) | (text.charCodeAt(i) & 127)) & 0x3fff;
      count += 7;
      if (count < 8) continue;
      count -= 8;
      content[at] = kept >> count;
      at += 1;
    }
    return content;
  }

  // As base64, which the model's own reader takes.
  function repack(content) {
    const parts = [];
    for (let at = 0; at < content.length; at += 0x8000) parts.push(String.fromCharCode(...content.subarray(at, at + 0x8000)));
    return btoa(parts.join(""));
  }

  function readModel() {
    const model = JSON.parse(document.getElementById("model-data").textContent);
    return model.problem ? model : { ...model, weights: repack(unpack("weights")) };
  }

  async function load() {
    const stream = new Blob([unpack("study-data")]).stream().pipeThrough(new DecompressionStream("gzip"));
    const study = JSON.parse(await new Response(stream).text());
    study.methods = new Map(study.methods.map((one) => [one.name, one]));
    study.metrics = new Map(study.metrics.map((one) => [one.name, one]));
    study.points.forEach((point, index) => {
      point.index = index;
      point.id = [point.method, point.configuration, point.lambda ?? "", point.iteration].join("~");
    });
    return new Study(study);
  }

  class Study {
    constructor(content) {
      Object.assign(this, content);
      this.byId = new Map(this.points.map((point) => [point.id, point]));
    }

    value(source, metric, point) {
      const { value, low, high } = this.values[source][metric];
      return { value: value[point.index], low: low[point.index], high: high[point.index] };
    }

    level(source, metric, name) {
      const found = (this.levels[source][metric] || {})[name];
      return found ? { value: found[0], low: found[1], high: found[2] } : null;
    }

    method(point) {
      return this.methods.get(point.method);
    }

    // The name of a point: method, λ and count.
    say(point) {
      const told = [this.method(point).label];
      const strength = point.settings.step_size;
      if (point.lambda !== null) told.push(`λ ${CFDom.number(point.lambda)}`);
      if (strength !== undefined) told.push(`step size ${CFDom.number(strength)}`);
      if (point.iteration) told.push(`${point.iteration} ${point.iteration === 1 ? "iteration" : this.method(point).counts}`);
      return told.join(", ");
    }

    // One way to fuse pairs: ours are one, however λ reaches the model.
    group(point) {
      const { kind, name } = this.method(point);
      return kind === "ours" ? "ours" : name;
    }

    groups() {
      const found = new Map();
      for (const name of this.methods.keys()) {
        const own = this.points.filter((point) => point.method === name);
        const key = this.group(own[0]);
        found.set(key, [...(found.get(key) || []), ...own]);
      }
      return found;
    }

    // The point that a study would take: the likest to real pairs within a distance, both as
    // measured on validation songs; of equal ones the nearest.
    candidate(points, axis, distance) {
      const { [axis]: far, [this.chosen_by]: likeness } = this.chosen;
      const near = points.filter(
        ({ index }) => far[index] !== null && far[index] <= distance && likeness[index] !== null,
      );
      const order = (one, other) => likeness[other.index] - likeness[one.index] || far[one.index] - far[other.index];
      return near.sort(order)[0] || null;
    }

    // A pair of a point as notes; null where they were not kept.
    outputs(source, point, number) {
      return this._pair(this.notes[source][point.index], this.pairs[source][number], number);
    }

    inputs(source, number) {
      return this._pair(this.given[source], this.pairs[source][number], number);
    }

    neighbours(number) {
      return this.real && this._pair(this.real.notes, this.real.pairs[number], number);
    }

    _pair(packed, told, number) {
      if (!packed || !told) return null;
      const { steps, kinds } = this.form;
      const raw = bytes(packed);
      const all = new Int16Array(raw.buffer);
      const half = (side) => all.slice((2 * number + side) * steps, (2 * number + side + 1) * steps);
      return this.pair(half(0), half(1), kinds.indexOf(told.meter), told);
    }

    pair(left, right, kind, told = {}) {
      const { barsPerSegment: bars, barLengths, kinds } = this.form;
      const length = bars * barLengths[kind];
      const halves = [left, right].map((tokens) => CFEngine.toNotes(tokens, kind, this.form));
      return { tokens: [left, right], halves, kind, length, bars, meter: kinds[kind], told };
    }

    describePair(source, number) {
      const told = this.pairs[source][number];
      if (!told) return "no pair";
      const names = told.left === null ? "two samples of the prior" : `${CFDom.tidy(told.left, 32)} → ${CFDom.tidy(told.right, 32)}`;
      return `${number + 1}. ${names}, ${told.meter}`;
    }
  }

  // Both halves after each other: what is played and written.
  function join(pair) {
    const later = pair.halves[1].map((note) => ({ ...note, onset: note.onset + pair.length }));
    return [...pair.halves[0], ...later];
  }

  return { load, readModel, join };
})();
