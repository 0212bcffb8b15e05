// One point: its settings, its values with intervals, and what it does to several pairs.
"use strict";

const CFDetail = (() => {
  const { el, find, number, interval, tidy } = CFDom;
  const SETTINGS = { style_dim: "style dimensions", step_size: "step size η" };
  const GROUPS = [["likeness", "Likeness to real pairs"], ["distance", "Distance from the inputs"], ["coherency", "Coherency"], ["other", "All other measures"]];

  function draw(study, state) {
    const { point } = state;
    drawAside(study, state, point);
    drawPairs(study, state, point);
  }

  function drawAside(study, state, point) {
    const method = study.method(point);
    find("detail").replaceChildren(
      el("h3", { id: "detail-title" }, CFChart.sample(method), study.say(point)),
      ...(method.about ? [el("p", { class: "about" }, method.about)] : []),
      settings(study, point),
      el("p", { class: "about" }, `95 % intervals are for other songs${point.seeds > 1 ? " and seeds" : ""}.`),
      ...GROUPS.map(([group, title]) => values(study, state, point, group, title)),
    );
  }

  function settings(study, point) {
    const method = study.method(point);
    const rows = [["configuration", tidy(point.configuration)]];
    if (point.lambda !== null) rows.push(["λ", number(point.lambda)]);
    if (point.iteration) rows.push([method.counts, String(point.iteration)]);
    for (const [name, value] of Object.entries(point.settings)) {
      rows.push([SETTINGS[name] || name.replace(/_/g, " "), typeof value === "number" ? String(value) : tidy(value)]);
    }
    if (method.kind === "ours") rows.push(["training seeds", String(point.seeds)]);
    return el("dl", { class: "settings" }, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  function values(study, state, point, group, title) {
    const rows = [...study.metrics.values()]
      .filter((metric) => metric.group === group)
      .map((metric) => [metric, study.value(state.source, metric.name, point)])
      .filter(([, { value }]) => value !== null);
    if (!rows.length) return null;
    const table = el(
      "table", { class: "values" },
      el("caption", { class: "visually-hidden" }, title),
      el("thead", {}, el("tr", {}, ...["measure", "value", "95 % interval", "real"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows.map(([metric, found]) => row(study, state, metric, found))),
    );
    const open = group === "likeness" || group === "distance";
    return el("details", { open }, el("summary", {}, title), table);
  }

  function row(study, state, metric, { value, low, high }) {
    const real = study.level(state.source, metric.name, "ceiling");
    return el(
      "tr", { class: metric.name === state.metric || metric.name === state.axis ? "current" : null },
      el("th", { scope: "row", title: metric.about }, metric.label),
      el("td", {}, number(value)),
      el("td", {}, interval(low, high)),
      el("td", {}, real ? number(real.value) : "–"),
    );
  }

  // ---- pairs -----------------------------------------------------------------------------------

  function drawPairs(study, state, point) {
    const cards = study.pairs[state.source].map((_, number_) => card(study, state, point, number_));
    const none = el("p", { class: "about" }, "The latents of this study were not kept, so there are no notes.");
    find("pairs").replaceChildren(...(cards.length ? cards : [none]));
  }

  function card(study, state, point, number_) {
    const before = study.inputs(state.source, number_);
    const after = study.outputs(state.source, point, number_);
    const span = CFRoll.range([before, after]);
    const title = study.describePair(state.source, number_);
    const upper = CFRoll.draw(before, { label: "Inputs", span });
    const content = [el("h4", {}, title), line("inputs", before, upper, title)];
    if (after) {
      const method = study.method(point);
      const lower = CFRoll.draw(after, { label: "Outputs", span, before, colour: CFChart.paint(method) });
      const [left, right] = CFRoll.countEdits(before, after);
      content.push(
        line("outputs", after, lower, title),
        el("p", { class: "small-print" }, `${left} + ${right} grid steps changed`),
      );
    } else {
      content.push(el("p", { class: "small-print" }, "The notes of this point were not kept."));
    }
    return el("article", { class: "card" }, ...content);
  }

  function line(name, pair, roll, title) {
    const play = () => CFSound.play([{ pair, name: `${name} of ${title}`, rolls: [roll], mark: button }]);
    const button = el("button", { type: "button", class: "play", "aria-label": `Play the ${name} of pair ${title}`, onclick: play }, name);
    return el("div", { class: "line" }, button, roll);
  }

  // The outputs of a point for one pair, or a word on why there are none.
  function play(study, state) {
    const pair = study.outputs(state.source, state.point, state.pair);
    if (!pair) return CFDom.announce("The notes of this point were not kept.");
    return CFSound.play([{ pair, name: `${study.say(state.point)}, pair ${state.pair + 1}` }]);
  }

  return { draw, play };
})();
