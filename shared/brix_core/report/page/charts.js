// Drawings over time: stacked steps, and rows of counts. Both are stepped through with the arrow keys.

const EDGE = { right: 8, top: 10, bottom: 24 };

function niceTicks(top, whole = false) {
  if (!(top > 0)) return [0];
  const raw = top / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].find((size) => size * power >= raw) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let value = 0; value < top + step * 0.999; value += step) ticks.push(value);
  return ticks;
}

/** Which steps bear a label, and what it says: the day where it changes, else the time. */
function timeLabels(span, width) {
  const room = Math.max(2, Math.floor(width / 112));
  const every = Math.ceil(span.steps / room);
  const found = [];
  let day = "";
  for (let step = 0; step < span.steps; step += every) {
    const text = iso(span.start + step * span.width);
    const date = text.slice(0, 10);
    const clock = span.width < 60_000 ? text.slice(11, 19) : text.slice(11, 16);
    found.push([step, span.width >= 86_400_000 ? date : date === day ? clock : `${date.slice(5)} ${clock}`]);
    day = date;
  }
  return found;
}

function timeAxis(svg, span, x0, width, y) {
  const size = width / span.steps;
  for (const [step, label] of timeLabels(span, width)) {
    const x = x0 + step * size;
    svg.append(g("line", { class: "tick", x1: x, x2: x, y1: y, y2: y + 4 }));
    if (step === 0 || x + 7 * label.length < x0 + width) svg.append(g("text", { class: "axis", x, y: y + 17 }, label));
  }
}

const between = (span, step) => {
  const from = span.start + step * span.width;
  return [from, from + span.width];
};

/** A drawing that is made anew for its width, with a box that says what is under the pointer. */
class Drawing {
  constructor(place, label, draw, tell, choose) {
    Object.assign(this, { draw, tell, choose, at: null });
    this.tip = h("div", { class: "tip", hidden: true });
    this.live = h("span", { class: "unseen", "aria-live": "polite" });
    this.box = h("div", { class: "drawing", tabindex: "0", role: "group", "aria-roledescription": "chart", "aria-label": label });
    this.box.append(h("div", { class: "svg" }), this.tip, this.live);
    place.replaceChildren(this.box);
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.show(null));
    this.box.addEventListener("blur", () => this.show(null));
    this.box.addEventListener("click", (event) => { this.point(event); if (this.at) this.choose(...this.at); });
    this.box.addEventListener("keydown", (event) => this.key(event));
    let width = 0;
    new ResizeObserver(() => {
      if (this.box.clientWidth !== width) { width = this.box.clientWidth; this.redraw(); }
    }).observe(this.box);
    this.redraw();
  }

  redraw() {
    if (this.box.clientWidth) this.plot = this.draw(this.box.firstChild, this.box.clientWidth);
  }

  point(event) {
    const bounds = this.box.getBoundingClientRect();
    this.show(this.plot.find(event.clientX - bounds.left, event.clientY - bounds.top), true);
  }

  key(event) {
    const [step, row] = this.at || [-1, 0];
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") return this.show(null);
    if (event.key === "Enter" && this.at) return this.choose(...this.at);
    if (!(event.key in moves)) return;
    if (moves[event.key][1] && this.plot.rows === 1) return;
    event.preventDefault();
    const limit = (value, size) => Math.min(Math.max(value, 0), size - 1);
    const [dx, dy] = moves[event.key];
    this.show([limit(step + dx, figures.span.steps), limit(row + dy, this.plot.rows)]);
    this.live.textContent = this.tip.innerText.replaceAll("\n", ", ");
  }

  show(at) {
    this.at = at;
    this.tip.hidden = !at;
    const mark = this.box.querySelector(".mark");
    if (mark) mark.toggleAttribute("hidden", !at);
    if (!at) return;
    const [x, y, width, height] = this.plot.place(...at);
    if (mark) for (const [key, value] of Object.entries({ x, y, width, height })) mark.setAttribute(key, value);
    this.tip.replaceChildren(...this.tell(...at));
    const room = this.box.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(x + width + 8 > room ? x - this.tip.offsetWidth - 8 : x + width + 8, room))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y, this.box.clientHeight - this.tip.offsetHeight))}px`;
  }
}

const when = (step) => {
  const [from, to] = between(figures.span, step);
  return [h("b", {}, fromTo(from, to)), h("small", { class: "muted" }, local(from))];
};

const MEASURES = {
  nano: { label: "Spend", unit: "US dollars", write: money, tick: money },
  tokens: { label: "Tokens", unit: "tokens, in and out", write: whole, tick: short },
  calls: { label: "Calls", unit: "calls", write: whole, tick: short },
};
const seriesName = (line) => (line.name === null ? plural(line.sessions, "other session") : line.name || "no session");

/** Stacked steps: one measure, by session. */
function drawSeries(key, lines) {
  const { span } = figures;
  const totals = Array.from({ length: span.steps }, (_, step) => lines.reduce((sum, line) => sum + line[key][step], 0));
  return (place, width) => {
    const ticks = niceTicks(Math.max(...totals), key !== "nano");
    const top = ticks[ticks.length - 1] || 1;
    const height = width < 560 ? 210 : 260;
    const left = Math.max(...ticks.map((tick) => 7 * MEASURES[key].tick(tick).length)) + 12;
    const inner = { width: width - left - EDGE.right, height: height - EDGE.top - EDGE.bottom };
    const svg = g("svg", { width, height, "aria-hidden": "true" });
    const y = (value) => EDGE.top + inner.height * (1 - value / top);
    for (const tick of ticks) {
      svg.append(g("line", { class: "grid", x1: left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) }));
      svg.append(g("text", { class: "axis", x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, MEASURES[key].tick(tick)));
    }
    const size = inner.width / span.steps;
    const thick = Math.min(Math.max(size - Math.min(size * 0.2, 6), 1), 72);
    svg.append(g("rect", { class: "mark", hidden: "" }));
    for (let step = 0; step < span.steps; step += 1) {
      let below = 0;
      lines.forEach((line, index) => {
        const value = line[key][step];
        if (!value) return;
        const bottom = y(below);
        below += value;
        const bar = { x: left + step * size + (size - thick) / 2, y: y(below), width: thick, height: bottom - y(below) };
        svg.append(g("rect", { class: line.name === null ? "other" : `s${index}`, ...bar }));
      });
    }
    timeAxis(svg, span, left, inner.width, height - EDGE.bottom);
    place.replaceChildren(svg);
    return {
      rows: 1,
      find: (x) => {
        const step = Math.floor((x - left) / size);
        return step >= 0 && step < span.steps ? [step, 0] : null;
      },
      place: (step) => [left + step * size, EDGE.top, size, inner.height],
    };
  };
}

/** Rows of counts: the darker, the more. */
function drawRows(rows) {
  const { span } = figures;
  return (place, width) => {
    const narrow = width < 620;
    const left = narrow ? 0 : 232;
    const right = 64;
    const row = narrow ? 40 : 26;
    const inner = width - left - right;
    const size = inner / span.steps;
    const height = rows.length * row + EDGE.bottom + 6;
    const svg = g("svg", { width, height, "aria-hidden": "true" });
    rows.forEach((line, index) => {
      const y = index * row + (narrow ? 18 : 2);
      const label = `${apart(line.guard || "?", 18)} · ${apart(line.decision || "?", 18)}`;
      const box = { x: 0, y: narrow ? y - 18 : y, width: narrow ? width - right : left - 8, height: 20 }; // cuts it off
      svg.append(g("svg", box, g("text", { class: "row-label", x: 0, y: 14.5 }, label)));
      svg.append(g("rect", { class: "lane", x: left, y, width: inner, height: 20 }));
      const most = Math.max(...line.counts);
      line.counts.forEach((count, step) => {
        if (!count) return;
        const cell = { x: left + step * size, y, width: Math.max(size - 1, 1.5), height: 20 };
        svg.append(g("rect", { class: isStop(line) ? "stop" : "cell", ...cell, "fill-opacity": 0.3 + 0.7 * Math.sqrt(count / most) }));
      });
      svg.append(g("text", { class: "row-total", x: width, y: y + 15, "text-anchor": "end" }, whole(line.total)));
    });
    svg.append(g("rect", { class: "mark outline", hidden: "" }));
    timeAxis(svg, span, left, inner, rows.length * row + 2);
    place.replaceChildren(svg);
    const lane = (index) => index * row + (narrow ? 18 : 2);
    return {
      rows: rows.length,
      find: (x, y) => {
        const [step, index] = [Math.floor((x - left) / size), Math.floor(y / row)];
        return step >= 0 && step < span.steps && index >= 0 && index < rows.length ? [step, index] : null;
      },
      place: (step, index) => [left + step * size, lane(index), Math.max(size, 2), 20],
    };
  };
}
const isStop = (line) => line.decision === "refused the call" || line.decision === "gave the call up";
