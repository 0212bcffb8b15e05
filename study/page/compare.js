// One row for each method at one distance, to be played one after another.
"use strict";

const CFCompare = (() => {
  const { el, find, number, interval } = CFDom;

  // What can be heard at a distance: [{name, method, point, pair, note}].
  function list(study, state) {
    const rows = [{ name: "inputs", method: study.methods.get("identity"), point: study.byId.get("identity~identity~~0"), pair: study.inputs(state.source, state.pair) }];
    for (const [name, points] of study.groups()) {
      const method = study.method(points[0]);
      if (method.kind === "inputs") continue;
      const point = method.kind === "trick" ? points[0] : study.candidate(points, state.axis, state.at);
      const pair = point && study.outputs(state.source, point, state.pair);
      rows.push({ name, method, point, pair });
    }
    rows.push({ name: "real", method: null, point: null, pair: study.neighbours(state.pair) });
    return rows;
  }

  function draw(study, state, choose) {
    const metric = study.metrics.get(state.metric);
    find("compare-about").textContent =
      `Each method at ${study.metrics.get(state.axis).label} of at most ${number(state.at)}: the point that is likest to real pairs on ` +
      "validation songs, and its values on the inputs chosen above. Methods with more points have more to choose from; the study's " +
      "verdicts correct for this. Real neighbours are of other songs.";
    const rows = list(study, state).filter(({ method }) => !state.skipTricks || !method || method.kind !== "trick");
    const before = rows[0].pair;
    const span = CFRoll.range(rows.map(({ pair }) => pair));
    const drawn = rows.map((row) => {
      const colour = row.method ? CFChart.paint(row.method) : "var(--ink)";
      const own = row.name === "inputs" || row.name === "real" ? null : before;
      const roll = row.pair && CFRoll.draw(row.pair, { label: label(study, row), span, before: own, colour });
      return { ...row, roll };
    });
    const head = ["", "method", "point", "distance", metric.label, "notes"];
    find("rows").replaceChildren(
      el("table", { class: "compared" },
        el("caption", { class: "visually-hidden" }, "Methods at one distance"),
        el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...drawn.map((row) => line(study, state, row, choose)))),
    );
    const clips = drawn.filter(({ pair }) => pair).map((row) => clip(study, row));
    find("play-all").onclick = () => CFSound.play(clips);
    find("play-all").disabled = !clips.length;
  }

  function label(study, { name, method }) {
    return name === "real" ? "real neighbours" : name === "inputs" ? "inputs" : method.label;
  }

  function clip(study, row) {
    return { pair: row.pair, name: label(study, row), rolls: [row.roll], mark: row.line };
  }

  function line(study, state, row, choose) {
    const { method, point, pair, roll } = row;
    const name = label(study, row);
    const [distance, value] = point
      ? [study.value(state.source, state.axis, point), study.value(state.source, state.metric, point)]
      : [{ value: null }, row.name === "real" ? study.level(state.source, state.metric, "ceiling") || { value: null } : { value: null }];
    const play = () => CFSound.play([clip(study, row)]);
    const button = pair && el("button", { type: "button", class: "play", "aria-label": `Play ${name}`, onclick: play }, "play");
    const told = point && row.name !== "inputs"
      ? el("button", { type: "button", class: "link", onclick: () => choose(point) }, method.kind === "trick" ? "see it" : study.say(point).replace(`${method.label}, `, ""))
      : row.name === "real" ? realName(study, state) : row.name === "inputs" ? "as they are" : "no point this near";
    const beyond = point && method.kind === "trick" && distance.value > state.at;
    row.line = el(
      "tr", { class: row.name === "inputs" || row.name === "real" ? "reference" : null },
      el("td", {}, button),
      el("th", { scope: "row" }, method ? CFChart.sample(method) : null, name),
      el("td", {}, told),
      el("td", { class: "figure" }, number(distance.value), beyond ? el("small", {}, " farther") : null),
      el("td", { class: "figure" }, number(value.value), el("small", {}, interval(value.low, value.high))),
      el("td", { class: "roll-cell" }, roll || missing(row)),
    );
    return row.line;
  }

  function realName(study, state) {
    const told = study.real && study.real.pairs[state.pair];
    return told ? CFDom.tidy(told.left, 32) : "";
  }

  function missing({ name, point }) {
    if (name !== "real" && !point) return "";
    return el("span", { class: "small-print" }, "notes were not kept");
  }

  return { draw, list };
})();
