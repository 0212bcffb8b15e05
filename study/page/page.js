// What is selected, kept in the address, and all parts drawn after it.
"use strict";

const CFPage = (() => {
  const { el, find, number, options, announce, complain } = CFDom;
  const SOURCES = { test: "test songs", prior: "samples of the prior" };
  let study = null;
  let chart = null;
  let state = null;
  let detailed = null;

  // ---- the address -----------------------------------------------------------------------------

  function first() {
    const axis = Object.keys(study.axes)[0];
    const groups = study.groups();
    const measured = (metric) => study.points.some((point) => study.value("test", metric, point).value !== null);
    const metric = measured(study.chosen_by) ? study.chosen_by : [...study.metrics.keys()].find(measured);
    const at = middle(axis);
    const ours = groups.get("ours");
    return {
      source: "test", metric, axis, at, whole: false, pair: 0, skipTricks: true, hidden: new Set(),
      point: study.candidate(ours, axis, at) || ours[0],
    };
  }

  // The sixth of the ten distances at which methods are compared.
  function middle(axis) {
    const bounds = study.axes[axis];
    if (!bounds) return 1;
    return Number((bounds[0] + ((bounds[1] - bounds[0]) * 5) / 9).toPrecision(3));
  }

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const from = first();
    const known = (name, values) => (values.includes(given.get(name)) ? given.get(name) : from[name]);
    const source = known("source", Object.keys(SOURCES));
    const metric = known("metric", [...study.metrics.keys()]);
    const axis = known("axis", Object.keys(study.axes));
    const at = Number(given.get("at"));
    const pair = Number(given.get("pair"));
    return {
      ...from, source, metric, axis,
      at: Number.isFinite(at) && at > 0 ? at : middle(axis),
      pair: Number.isInteger(pair) && pair > 0 && pair <= study.pairs[source].length ? pair - 1 : 0,
      whole: given.get("whole") === "1",
      hidden: new Set((given.get("hidden") || "").split(" ").filter(Boolean)),
      point: study.byId.get(given.get("point")) || from.point,
    };
  }

  function write() {
    const told = new URLSearchParams({
      source: state.source, metric: state.metric, axis: state.axis, at: state.at, point: state.point.id, pair: state.pair + 1,
    });
    if (state.whole) told.set("whole", "1");
    if (state.hidden.size) told.set("hidden", [...state.hidden].join(" "));
    const address = `#${told}`;
    try {
      history.replaceState(null, "", address);
    } catch (error) {
      location.hash = address; // some browsers guard the history of files
    }
  }

  // ---- changes ---------------------------------------------------------------------------------

  function change(changes) {
    if (changes.axis && changes.axis !== state.axis) changes = { at: middle(changes.axis), whole: false, ...changes };
    Object.assign(state, changes);
    state.at = Number(state.at.toPrecision(4)); // as the address has it
    write();
    draw();
  }

  function choose(point) {
    change({ point });
    const { value } = study.value(state.source, state.metric, point);
    announce(`${study.say(point)}: ${study.metrics.get(state.metric).label} ${number(value)}`);
  }

  // ---- drawing ---------------------------------------------------------------------------------

  function draw() {
    const { source, axis, at } = state;
    state.candidates = [...study.groups()]
      .filter(([, points]) => study.method(points[0]).kind !== "trick")
      .map(([, points]) => study.candidate(points, axis, at))
      .filter(Boolean);
    chart.draw(state);
    drawControls();
    // Moving the line changes nothing of the point, whose rolls may be followed by ear.
    const shown = [source, state.metric, axis, state.point.id].join(" ");
    if (shown !== detailed) CFDetail.draw(study, state);
    detailed = shown;
    CFCompare.draw(study, state, (point) => { choose(point); find("frontier").scrollIntoView(); });
  }

  function drawControls() {
    const metric = study.metrics.get(state.metric);
    find("source").value = state.source;
    find("metric").value = state.metric;
    find("axis").value = state.axis;
    find("whole").checked = state.whole;
    find("about-metric").textContent = `${metric.about} Better: ${metric.better}. Real neighbours: ${metric.real}.`;
    const line = find("line");
    Object.assign(line, { min: 0, max: chart.end, step: chart.end / 400, value: Math.min(state.at, chart.end) });
    line.setAttribute("aria-valuetext", number(state.at));
    find("line-value").textContent = number(state.at);
    const entries = study.pairs[state.source].map((_, i) => [i, study.describePair(state.source, i)]);
    options(find("pair"), entries, state.pair);
    for (const button of find("legend").children) {
      button.setAttribute("aria-pressed", String(!state.hidden.has(button.dataset.toggle)));
    }
  }

  function makeLegend() {
    const tricks = [...study.methods.values()].filter(({ kind }) => kind === "trick");
    const entries = new Map();
    for (const method of study.methods.values()) {
      if (method.kind === "trick") continue;
      const key = method.kind === "ours" ? "ours" : method.name;
      entries.set(key, [...(entries.get(key) || []), method]);
    }
    const buttons = [...entries].map(([key, methods]) => toggle(key, methods.map(CFChart.sample), methods[0].kind === "ours" ? methods.map(({ label }) => label).join(" · ") : methods[0].label));
    if (tricks.length) buttons.push(toggle("tricks", [], `tricks: ${tricks.map(({ marker, label }) => `${marker} ${label}`).join(", ")}`));
    find("legend").replaceChildren(...buttons);
  }

  function toggle(key, samples, label) {
    const flip = () => {
      const hidden = new Set(state.hidden);
      if (!hidden.delete(key)) hidden.add(key);
      change({ hidden });
    };
    const button = el("button", { type: "button", "data-toggle": key, "aria-pressed": "true", onclick: flip }, ...samples, label);
    return button;
  }

  function makeControls() {
    const groups = [["likeness", "Likeness"], ["coherency", "Coherency"], ["distance", "Distances"], ["other", "Other"]];
    find("metric").replaceChildren(...groups.map(([group, label]) => el("optgroup", { label },
      ...[...study.metrics.values()].filter((one) => one.group === group).map(({ name, label: told }) => el("option", { value: name }, told)))));
    options(find("source"), Object.entries(SOURCES), "test");
    options(find("axis"), Object.keys(study.axes).map((name) => [name, study.metrics.get(name).label]), "");
    for (const name of ["source", "metric", "axis"]) find(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
    find("whole").addEventListener("change", (event) => change({ whole: event.target.checked }));
    find("line").addEventListener("input", (event) => change({ at: Number(event.target.value) }));
    find("pair").addEventListener("change", (event) => change({ pair: Number(event.target.value) }));
    find("skip-tricks").addEventListener("change", (event) => change({ skipTricks: event.target.checked }));
    const tempo = find("tempo");
    const show = () => { find("tempo-value").textContent = tempo.value; };
    tempo.value = study.tempo;
    tempo.addEventListener("input", show);
    show();
    // The address holds the selection, so these links scroll without changing it.
    for (const link of document.querySelectorAll("a[data-to]")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const title = find(`${link.dataset.to}-title`);
        title.tabIndex = -1;
        title.focus();
        title.scrollIntoView();
      });
    }
  }

  async function start() {
    try {
      study = await CFData.load();
    } catch (error) {
      complain(`This page can't be read here (${error.message}). A browser of 2023 or later opens it.`);
      return;
    }
    find("name").textContent = CFDom.tidy(study.name);
    document.title = `${CFDom.tidy(study.name)} · Connective Fusion study`;
    find("identity").textContent = `Study ${study.fingerprint.slice(0, 12)}.`;
    chart = new CFChart.Chart(find("chart"), study, {
      choose, play: () => CFDetail.play(study, state), move: (at) => change({ at }),
    });
    makeLegend();
    makeControls();
    CFSound.start();
    state = read();
    draw();
    window.addEventListener("hashchange", () => { state = read(); draw(); });
    new CFBlind.Blind(study, () => state);
    await CFLive.start(study);
    document.documentElement.dataset.ready = "true";
  }

  start();
  return { get study() { return study; }, get state() { return state; } };
})();
