// Elements, numbers and words. Text from a study reaches the page only as text nodes.
"use strict";

const CFDom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  // What stays of an attribute: properties that begin with "on" are listeners.
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const find = (id) => document.getElementById(id);

  function number(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 5e-4) return "0.000";
    if (size >= 1e5) return value.toExponential(1);
    const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.max(size, 0.1))));
    return value.toFixed(Math.min(places, 3)).replace("-", "−");
  }

  const interval = (low, high) =>
    low === null || low === undefined ? "" : `${number(low)} to ${number(high)}`;

  // Steps of a scale at 1, 2 or 5 times a power of ten.
  function ticks(low, high, most) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
  }

  // A name of any origin, on one line: no control or direction characters.
  function tidy(name, longest = 60) {
    const line = String(name).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\uFFFD");
    const letters = Array.from(line);
    return letters.length > longest ? `${letters.slice(0, longest - 1).join("")}…` : line;
  }

  function announce(text) {
    find("live-region").textContent = text;
  }

  function complain(text) {
    const problem = find("problem");
    problem.textContent = text;
    problem.hidden = !text;
  }

  function download(name, content, type) {
    const address = URL.createObjectURL(new Blob([content], { type }));
    const link = el("a", { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, label]) => el("option", { value }, label)));
    select.value = chosen;
  }

  return { el, svg, find, number, interval, ticks, tidy, announce, complain, download, options };
})();
