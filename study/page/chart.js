// The chart: a measure over a distance, with the front of each method, and a line to compare at.
"use strict";

const CFChart = (() => {
  const { el, svg, number, ticks } = CFDom;
  const MARGIN = { left: 52, right: 14, top: 30, bottom: 44 };
  const REACH = 16; // pixels within which a click takes a point
  const BEYOND = 2; // the axis ends at so many times the largest matched distance

  const short = (value) => String(+value.toPrecision(6)).replace("-", "−");

  // Outlines of markers around 0, of about 8 pixels; the letters of matplotlib.
  const SHAPES = {
    o: "M4,0A4,4 0 1 1 -4,0A4,4 0 1 1 4,0Z",
    s: "M-3.6,-3.6H3.6V3.6H-3.6Z",
    D: "M0,-4.8L4.8,0L0,4.8L-4.8,0Z",
    "^": "M0,-4.8L4.6,3.6H-4.6Z",
    v: "M0,4.8L4.6,-3.6H-4.6Z",
    p: "M0,-4.8L4.6,-1.5L2.8,3.9H-2.8L-4.6,-1.5Z",
    h: "M0,-4.8L4.2,-2.4V2.4L0,4.8L-4.2,2.4V-2.4Z",
    P: "M-1.6,-4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
    X: "M-4.4,-2.2L-2.2,-4.4L0,-2.2L2.2,-4.4L4.4,-2.2L2.2,0L4.4,2.2L2.2,4.4L0,2.2L-2.2,4.4L-4.4,2.2L-2.2,0Z",
    "*": "M0,-6L1.5,-2L5.7,-1.9L2.4,0.8L3.5,4.9L0,2.5L-3.5,4.9L-2.4,0.8L-5.7,-1.9L-1.5,-2Z",
  };
  const STROKES = {
    x: "M-3.6,-3.6L3.6,3.6M-3.6,3.6L3.6,-3.6",
    "+": "M-4.6,0H4.6M0,-4.6V4.6",
  };

  const paint = (method) => (/^(black|#000000)$/.test(method.colour) ? "var(--ink)" : method.colour);

  // A method's mark. Tricks have a letter, and unknown markers are dots.
  function marker(method) {
    const mark = method.kind === "trick"
      ? svg("text", { class: "letter", "text-anchor": "middle", dy: "0.35em" }, method.marker)
      : STROKES[method.marker]
        ? svg("path", { class: "stroke", d: STROKES[method.marker] })
        : svg("path", { class: "solid", d: SHAPES[method.marker] || SHAPES.o });
    mark.style.setProperty("--method", paint(method));
    return mark;
  }

  const sample = (method) =>
    svg("svg", { class: "sample", viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, marker(method));

  // The points that no other is better than, from near to far.
  function front(points, better) {
    if (better !== "higher" && better !== "lower") return [];
    const sign = better === "higher" ? 1 : -1;
    const sorted = [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y));
    let best = -Infinity;
    return sorted.filter(({ y }) => {
      const ahead = sign * y > best;
      if (ahead) best = sign * y;
      return ahead;
    });
  }

  function farthest(study, state, points) {
    const bounds = study.axes[state.axis];
    const most = Math.max(...points.map((point) => point.x), 1e-9);
    return state.whole || !bounds ? most * 1.04 : Math.min(most * 1.04, BEYOND * bounds[1]);
  }

  // Where the shown points are: [{point, x, y, low, high}].
  function place(study, state) {
    return study.points
      .map((point) => {
        const { value, low, high } = study.value(state.source, state.metric, point);
        return { point, x: study.value(state.source, state.axis, point).value, y: value, low, high };
      })
      .filter(({ x, y }) => x !== null && y !== null);
  }

  class Chart {
    constructor(host, study, { choose, play, move }) {
      Object.assign(this, { host, study, choose, play, move });
      this.note = el("p", { class: "small-print" });
      this.box = el("div", { class: "plot" });
      host.append(this.box, this.note);
      new ResizeObserver(() => this.state && this.draw(this.state)).observe(this.box);
    }

    draw(state) {
      this.state = state;
      const { study } = this;
      const had = this.svg && this.svg.contains(document.activeElement);
      const all = place(study, state);
      this.end = farthest(study, state, all);
      const visible = all.filter(({ point }) => !state.hidden.has(this.toggle(point)));
      this.shown = visible.filter(({ x }) => x <= this.end);
      this.size();
      this.svg = svg("svg", {
        class: "frame", viewBox: `0 0 ${this.width} ${this.height}`, width: this.width, height: this.height,
        tabindex: 0, role: "listbox", "aria-label": `${this.name(state.metric)} by ${this.name(state.axis)}, ${this.shown.length} points`,
        onkeydown: (event) => this.key(event), onpointerdown: (event) => this.press(event),
      });
      this.drawAxes();
      this.drawLevels();
      this.drawFronts();
      this.drawLine();
      this.drawPoints();
      this.box.replaceChildren(this.svg);
      if (had) this.svg.focus();
      const beyond = visible.length - this.shown.length;
      this.note.textContent = beyond ? `${beyond} of ${visible.length} points are farther than ${number(this.end)}.` : "";
    }

    name(metric) {
      return this.study.metrics.get(metric).label;
    }

    toggle(point) {
      const { kind, name } = this.study.method(point);
      return kind === "trick" ? "tricks" : kind === "ours" ? "ours" : name;
    }

    size() {
      this.width = Math.max(280, Math.round(this.box.clientWidth || 640));
      this.height = Math.round(Math.min(460, Math.max(300, this.width * 0.62)));
      const levels = ["floor", "ceiling"].map((name) => this.study.level(this.state.source, this.state.metric, name));
      const values = [...this.shown.map(({ y }) => y), ...levels.filter(Boolean).map(({ value }) => value)];
      const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
      const room = (most - least || 1) * 0.07;
      [this.low, this.high] = [least - room, most + room];
      this.x = (value) => MARGIN.left + (value / this.end) * (this.width - MARGIN.left - MARGIN.right);
      this.y = (value) =>
        this.height - MARGIN.bottom - ((value - this.low) / (this.high - this.low)) * (this.height - MARGIN.top - MARGIN.bottom);
    }

    drawAxes() {
      const bottom = this.height - MARGIN.bottom;
      const right = this.width - MARGIN.right;
      for (const value of ticks(0, this.end, this.width / 90)) {
        const x = this.x(value);
        this.svg.append(
          svg("line", { class: "tick", x1: x, x2: x, y1: bottom, y2: bottom + 5 }),
          svg("text", { class: "tick-label", x, y: bottom + 18, "text-anchor": "middle" }, short(value)),
        );
      }
      for (const value of ticks(this.low, this.high, 6)) {
        const y = this.y(value);
        this.svg.append(
          svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }),
          svg("text", { class: "tick-label", x: MARGIN.left - 8, y, dy: "0.33em", "text-anchor": "end" }, short(value)),
        );
      }
      const { better } = this.study.metrics.get(this.state.metric);
      const hint = better === "higher" ? " ↑ better" : better === "lower" ? " ↓ better" : "";
      this.svg.append(
        svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
        svg("text", { class: "axis-label", x: right, y: this.height - 6, "text-anchor": "end" }, `${this.name(this.state.axis)} →`),
        svg("text", { class: "axis-label", x: 2, y: 14 }, `${this.name(this.state.metric)}${hint}`),
      );
    }

    drawLevels() {
      const right = this.width - MARGIN.right;
      for (const [name, label] of [["ceiling", "real neighbours"], ["floor", "inputs of other pairs"]]) {
        const level = this.study.level(this.state.source, this.state.metric, name);
        if (!level || level.value === null) continue;
        const y = this.y(level.value);
        if (level.low !== null) {
          const [top, bottom] = [Math.max(this.y(level.high), MARGIN.top - 14), Math.min(this.y(level.low), this.height - MARGIN.bottom)];
          this.svg.append(svg("rect", { class: "band", x: MARGIN.left, y: top, width: right - MARGIN.left, height: Math.max(0, bottom - top) }));
        }
        this.svg.append(
          svg("line", { class: `level ${name}`, x1: MARGIN.left, x2: right, y1: y, y2: y }),
          svg("text", { class: "level-label", x: right, y: y - 4, "text-anchor": "end" }, label),
        );
      }
    }

    drawFronts() {
      const { better } = this.study.metrics.get(this.state.metric);
      const groups = new Map();
      for (const one of this.shown) {
        const key = this.study.group(one.point);
        groups.set(key, [...(groups.get(key) || []), one]);
      }
      this.best = new Set();
      for (const own of groups.values()) {
        const method = this.study.method(own[0].point);
        const line = front(own, better);
        line.forEach(({ point }) => this.best.add(point));
        if (method.kind === "trick" || line.length < 2) continue;
        const path = svg("path", {
          class: method.kind === "ours" ? "front ours" : "front",
          d: line.map(({ x, y }, i) => `${i ? "L" : "M"}${this.x(x)},${this.y(y)}`).join(""),
        });
        path.style.setProperty("--method", paint(method));
        this.svg.append(path);
      }
    }

    drawLine() {
      const x = this.x(Math.min(this.state.at, this.end));
      this.svg.append(
        svg("line", { class: "cut", x1: x, x2: x, y1: MARGIN.top - 8, y2: this.height - MARGIN.bottom }),
        svg("path", { class: "cut-handle", d: `M${x - 6},${this.height - MARGIN.bottom}h12l-6,-8Z` }),
      );
    }

    drawPoints() {
      const chosen = new Set(this.state.candidates);
      // Ours last, on top of all others.
      const order = [...this.shown].sort((a, b) => this.rank(a.point) - this.rank(b.point));
      for (const one of order) {
        const { point, x, y } = one;
        const selected = point === this.state.point;
        const mark = svg("g", {
          id: `point-${point.index}`, role: "option", transform: `translate(${this.x(x)},${this.y(y)})`,
          class: ["point", this.best.has(point) ? "" : "behind", selected ? "selected" : ""].join(" "),
          "aria-selected": selected ? "true" : "false", "aria-label": this.describe(one),
        });
        if (selected) mark.append(...this.whisker(one), svg("circle", { class: "halo", r: 9 }));
        else if (chosen.has(point)) mark.append(svg("circle", { class: "candidate", r: 7.5 }));
        mark.append(marker(this.study.method(point)), svg("title", {}, this.describe(one)));
        this.svg.append(mark);
      }
      if (this.state.point) this.svg.setAttribute("aria-activedescendant", `point-${this.state.point.index}`);
    }

    whisker({ y, low, high }) {
      if (low === null || high === null) return [];
      const [top, bottom] = [this.y(high) - this.y(y), this.y(low) - this.y(y)];
      return [svg("line", { class: "whisker", x1: 0, x2: 0, y1: top, y2: bottom })];
    }

    rank(point) {
      return { trick: 0, rival: 1, inputs: 2, ours: 3 }[this.study.method(point).kind] + (point === this.state.point ? 9 : 0);
    }

    describe({ point, x, y }) {
      return `${this.study.say(point)}: ${this.name(this.state.metric)} ${number(y)}, distance ${number(x)}`;
    }

    // ---- pointer and keys ----------------------------------------------------------------------

    press(event) {
      const frame = this.svg.getBoundingClientRect();
      const at = { x: event.clientX - frame.left, y: event.clientY - frame.top };
      const away = ({ x, y }) => Math.hypot(this.x(x) - at.x, this.y(y) - at.y);
      const near = this.shown.reduce((best, one) => (best && away(best) <= away(one) ? best : one), null);
      const onLine = Math.abs(this.x(this.state.at) - at.x) < 6;
      if (near && away(near) < REACH && !(onLine && away(near) > 7)) this.choose(near.point);
      else this.drag(event);
      event.preventDefault();
      this.svg.focus();
    }

    drag(event) {
      const moved = ({ clientX }) => {
        const left = this.svg.getBoundingClientRect().left;
        const share = (clientX - left - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
        this.move(Math.min(1, Math.max(0, share)) * this.end);
      };
      const end = () => {
        document.removeEventListener("pointermove", moved);
        document.removeEventListener("pointerup", end);
      };
      document.addEventListener("pointermove", moved);
      document.addEventListener("pointerup", end);
      moved(event);
    }

    key(event) {
      const next = this.neighbour(event.key);
      if (event.key === "Enter" || event.key === " ") this.play();
      else if (next) this.choose(next.point);
      else return;
      event.preventDefault();
    }

    neighbour(key) {
      const current = this.shown.find(({ point }) => point === this.state.point);
      if (!current) return key.startsWith("Arrow") ? this.shown[0] : null;
      const groups = [...new Set(this.shown.map(({ point }) => this.study.group(point)))];
      const own = this.along(this.study.group(current.point));
      const place = own.indexOf(current);
      const last = own.length - 1;
      if (key === "ArrowRight" || key === "ArrowLeft") return own[place + (key === "ArrowRight" ? 1 : -1)] || current;
      if (key === "Home" || key === "End") return own[key === "Home" ? 0 : last];
      if (key !== "ArrowUp" && key !== "ArrowDown") return null;
      const step = key === "ArrowDown" ? 1 : groups.length - 1;
      const other = groups[(groups.indexOf(this.study.group(current.point)) + step) % groups.length];
      return this.along(other).reduce((best, one) => (Math.abs(one.x - current.x) < Math.abs(best.x - current.x) ? one : best));
    }

    along(group) {
      return this.shown.filter(({ point }) => this.study.group(point) === group).sort((a, b) => a.x - b.x || a.y - b.y);
    }
  }

  return { Chart, sample, paint, front };
})();
