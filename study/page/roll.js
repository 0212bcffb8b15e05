// Piano rolls: both halves of a pair side by side, with the seam between them.
"use strict";

const CFRoll = (() => {
  const { svg } = CFDom;
  const WIDTH = 360;
  const HEIGHT = 84;
  const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];

  const name = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;

  // Lowest and highest pitch of several pairs, with room around.
  function range(pairs) {
    const pitches = pairs.filter(Boolean).flatMap((pair) => CFData.join(pair).map((note) => note.pitch));
    if (!pitches.length) return [58, 74];
    const [low, high] = [Math.min(...pitches), Math.max(...pitches)];
    const room = Math.max(2, (11 - (high - low)) / 2);
    return [low - room, high + room];
  }

  function describe(pair) {
    const [left, right] = pair.halves.map((notes) => notes.map((note) => name(note.pitch)).join(" ") || "silent");
    return `left half ${left}; right half ${right}`;
  }

  // Notes of `before` that are still there are told from those that changed.
  function draw(pair, { label, span, before = null, colour = "" }) {
    const [low, high] = span || range([pair]);
    const x = (at) => (at / (2 * pair.length)) * WIDTH;
    const y = (pitch) => ((high - pitch) / (high - low + 1)) * HEIGHT;
    const tall = HEIGHT / (high - low + 1);
    const roll = svg("svg", {
      class: "roll", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none",
      "aria-label": `${label}: ${describe(pair)}`,
    });
    for (let bar = 1; bar < 2 * pair.bars; bar += 1) {
      const at = (bar / (2 * pair.bars)) * WIDTH;
      const kind = bar === pair.bars ? "seam" : "bar";
      roll.append(svg("line", { class: kind, x1: at, x2: at, y1: 0, y2: HEIGHT }));
    }
    pair.halves.forEach((notes, side) => {
      const known = new Set(before ? before.halves[side].map(key) : []);
      for (const note of notes) {
        const kept = !before || known.has(key(note));
        const from = x(note.onset + side * pair.length);
        const box = svg("rect", {
          class: kept ? "note" : "note changed", x: from + 0.6, y: y(note.pitch),
          width: Math.max(1.5, x(note.duration) - 1.2), height: Math.max(2, tall * 0.86), rx: 1.2,
        });
        roll.append(box);
      }
    });
    if (colour) roll.style.setProperty("--method", colour);
    const head = svg("line", { class: "playhead", x1: -9, x2: -9, y1: 0, y2: HEIGHT });
    roll.append(head);
    roll.follow = (at) => {
      const place = at === null ? -9 : x(at);
      head.setAttribute("x1", place);
      head.setAttribute("x2", place);
    };
    return roll;
  }

  const key = (note) => `${note.onset.toFixed(4)} ${note.duration.toFixed(4)} ${note.pitch}`;

  // How many grid steps of each half differ.
  function countEdits(before, after) {
    return before.tokens.map((tokens, side) =>
      tokens.reduce((sum, token, step) => sum + (token !== after.tokens[side][step] ? 1 : 0), 0),
    );
  }

  return { draw, range, countEdits, name };
})();
