// The table of calls: searched, filtered and sorted by numbers, and only the rows in sight exist.

const COLUMNS = [
  { key: "time", label: "Time, UTC", cell: (row) => utc(col.time[row]) },
  { key: "session", label: "Session", cell: (row) => texts.session[col.session[row]], text: true },
  { key: "model", label: "Model", cell: (row) => texts.model[col.model[row]], text: true },
  { key: "outcome", label: "Outcome", text: true },
  { key: "tokens", label: "Tokens in / out", end: true, cell: (row) => `${whole(col.prompt_tokens[row])} / ${whole(col.completion_tokens[row])}` },
  { key: "nano", label: "Cost", end: true, cell: (row) => money(col.nano[row]) },
  { key: "latency_ms", label: "Latency", end: true, cell: (row) => duration(col.latency_ms[row]) },
  { key: "attempts", label: "Tries", end: true, cell: (row) => whole(col.attempts[row]) },
  { key: "decisions", label: "Decisions", cell: (row) => texts.decisions[col.decisions[row]], text: true },
];
const MAX_HEIGHT = 8e6; // what browsers can scroll; beyond it, a pixel is more than one
const state = { search: "", outcome: null, session: null, model: null, decision: null, range: null, sort: "time", down: true };
let shown = new Int32Array(0);
let active = 0;

const sums = (row) => (col.prompt_tokens[row] === null && col.completion_tokens[row] === null ? null : (col.prompt_tokens[row] || 0) + (col.completion_tokens[row] || 0));

/** For each text of a column, whether it is wanted. */
const wanted = (key, test) => texts[key].map(test);

function matching() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const keys = ["session", "model", "outcome", "error", "message", "stopped_by", "decisions"];
  const found = words.map((word) => [word, keys.map((key) => wanted(key, (text) => text.toLowerCase().includes(word)))]);
  const equal = ["outcome", "session", "model"].filter((key) => state[key] !== null).map((key) => [col[key], texts[key].indexOf(state[key])]);
  const decided = state.decision === null ? null : wanted("decisions", (text) => `, ${text}, `.includes(`, ${state.decision}, `) || `, ${text}`.includes(`, ${state.decision} ×`));
  const rows = [];
  for (let row = 0; row < data.count; row += 1) {
    if (state.range && !(col.time[row] !== null && col.time[row] >= state.range[0] && col.time[row] < state.range[1])) continue;
    if (decided && !decided[col.decisions[row]]) continue;
    if (!equal.every(([column, number]) => column[row] === number)) continue;
    if (found.every(([word, masks]) => masks.some((mask, index) => mask[col[keys[index]][row]]) || col.run_id[row].toLowerCase().includes(word))) rows.push(row);
  }
  return rows;
}

/** The order of a column: unknown values come last, and equal ones stay in the order of the log. */
function ordered(rows) {
  const { sort, down } = state;
  const column = COLUMNS.find((one) => one.key === sort);
  let value = (row) => col[sort][row];
  if (sort === "tokens") value = sums;
  if (column.text) {
    const rank = new Int32Array(texts[sort].length);
    [...texts[sort].keys()].sort((a, b) => (texts[sort][a] < texts[sort][b] ? -1 : 1)).forEach((number, place) => { rank[number] = place; });
    value = (row) => rank[col[sort][row]];
  }
  const sign = down ? -1 : 1;
  return Int32Array.from(rows).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return x === y ? sign * (a - b) : x === null ? 1 : -1;
    return sign * (x - y || a - b);
  });
}

const table = h("div", { class: "table", role: "grid", tabindex: "0", "aria-colcount": COLUMNS.length,
  "aria-label": "Calls; arrow keys move, Enter shows the details" });
const header = h("div", { class: "tr head", role: "row", "aria-rowindex": "1" });
const scroller = h("div", { class: "scroller", tabindex: "-1", role: "rowgroup" });
const filler = h("div", { class: "filler", role: "presentation" });
const body = h("div", { class: "rows-in-sight", role: "presentation" });

function rowHeight() {
  return window.innerWidth < 760 ? 76 : 34;
}

function rowOf(place) {
  const row = shown[place];
  const cells = COLUMNS.map((column) => {
    const cell = h("div", { class: `td c-${column.key}${column.end ? " end" : ""}`, role: "gridcell" });
    if (column.key === "outcome") cell.append(outcomeTag(texts.outcome[col.outcome[row]]));
    else if (column.text) { const text = column.cell(row); cell.append(h("bdi", {}, clip(text, 120))); if (text.length > 14) cell.title = clip(text, 400); }
    else cell.textContent = column.cell(row);
    return cell;
  });
  if (col.time[row] !== null) cells[0].title = local(col.time[row]);
  if (col.nano[row] !== null) cells[5].title = exactly(col.nano[row]);
  return h("div", { class: `tr${place === active ? " active" : ""}`, role: "row", id: `row-${place}`, "aria-rowindex": place + 2,
    "aria-selected": place === active ? "true" : "false", onclick: () => { active = place; draw(); open(place); } }, ...cells);
}

function draw() {
  const height = rowHeight();
  const all = shown.length * height;
  const high = Math.min(all, MAX_HEIGHT);
  const view = scroller.clientHeight || 540;
  const top = all > high ? (scroller.scrollTop / Math.max(1, high - view)) * (all - view) : scroller.scrollTop;
  const first = Math.max(0, Math.floor(top / height) - 4);
  const last = Math.min(shown.length, Math.ceil((top + view) / height) + 4);
  filler.style.height = `${high}px`;
  body.style.top = `${scroller.scrollTop - (top - first * height)}px`;
  const made = [];
  for (let place = first; place < last; place += 1) made.push(rowOf(place));
  body.replaceChildren(...made);
  if (byId(`row-${active}`)) table.setAttribute("aria-activedescendant", `row-${active}`);
  else table.removeAttribute("aria-activedescendant");
}

/** Bring a row into sight. */
function reveal(place) {
  const height = rowHeight();
  const [all, view] = [shown.length * height, scroller.clientHeight];
  const scale = all > MAX_HEIGHT ? (MAX_HEIGHT - view) / (all - view) : 1;
  const top = scroller.scrollTop / scale;
  if (place * height < top) scroller.scrollTop = place * height * scale;
  else if ((place + 1) * height > top + view) scroller.scrollTop = ((place + 1) * height - view) * scale;
}

function go(place) {
  if (!shown.length) return;
  active = Math.min(Math.max(place, 0), shown.length - 1);
  reveal(active);
  draw();
}

function open(place) {
  if (place < 0 || place >= shown.length) return;
  showDetails(shown[place], (step) => { go(active + step); open(active); });
}

function update() {
  shown = ordered(matching());
  active = 0;
  scroller.scrollTop = 0;
  let [nano, tokens, unpriced] = [0, 0, 0];
  for (const row of shown) {
    nano += col.nano[row] || 0;
    tokens += sums(row) || 0;
    if (col.nano[row] === null && col.attempts[row]) unpriced += 1;
  }
  const count = shown.length === data.count ? plural(data.count, "call") : `${whole(shown.length)} of ${plural(data.count, "call")}`;
  byId("shown").replaceChildren(h("span", { "data-figure": "shown" }, count), " · ",
    h("span", { "data-figure": "shown-spend", title: exactly(nano) }, money(nano)), unpriced ? ` and ${whole(unpriced)} without a price` : "", " · ",
    h("span", { "data-figure": "shown-tokens" }, plural(tokens, "token")));
  table.setAttribute("aria-rowcount", shown.length + 1);
  table.classList.toggle("none", !shown.length);
  for (const cell of header.children) {
    const on = cell.dataset.key === state.sort;
    cell.setAttribute("aria-sort", on ? (state.down ? "descending" : "ascending") : "none");
  }
  byId("sort").value = state.sort;
  byId("direction").textContent = state.down ? "↓ descending" : "↑ ascending";
  scroller.style.height = `${Math.max(rowHeight() * 2, Math.min(shown.length * rowHeight(), 560))}px`;
  showChips();
  draw();
}

function sortBy(key) {
  state.down = state.sort === key ? !state.down : ["nano", "tokens", "latency_ms", "attempts", "time"].includes(key);
  state.sort = key;
  update();
}

/** Show the calls that something else on the page speaks of. */
function filterBy(wish) {
  Object.assign(state, { search: "", outcome: null, session: null, model: null, decision: null, range: null }, wish);
  byId("search").value = state.search;
  for (const [key, select] of selects) {
    if (![...select.options].some((option) => option.value === `=${state[key]}`)) select.value = "";
    else select.value = `=${state[key]}`;
  }
  update();
  byId("calls").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

const selects = new Map();
const MANY = 300;

function choice(key, label, values, write) {
  const select = h("select", { id: `by-${key}`, onchange: () => { state[key] = select.value ? select.value.slice(1) : null; update(); } },
    h("option", { value: "" }, "all"), ...values.map((text) => h("option", { value: `=${text}` }, write(text))));
  selects.set(key, select);
  return h("div", { class: "field" }, h("label", { for: `by-${key}` }, label), select);
}

function showChips() {
  const chips = [];
  const chip = (label, undo) => chips.push(h("button", { type: "button", class: "chip", onclick: () => { undo(); update(); } }, h("bdi", {}, label), h("span", { "aria-label": "remove" }, " ✕")));
  if (state.range) chip(fromTo(...state.range), () => { state.range = null; });
  for (const [key, select] of selects) {
    if (state[key] !== null) chip(`${key}: ${clip(state[key] || "none", 40)}`, () => { state[key] = null; select.value = ""; });
  }
  byId("chips").replaceChildren(...chips);
}

function decisionKinds() {
  const kinds = new Set();
  for (const text of texts.decisions) for (const one of text.split(", ")) if (one) kinds.add(one.replace(/ ×\d+$/, ""));
  return [...kinds].sort();
}

function showTable() {
  for (const column of COLUMNS) {
    header.append(h("div", { class: `td${column.end ? " end" : ""}`, role: "columnheader", "data-key": column.key },
      h("button", { type: "button", class: "sort", onclick: () => sortBy(column.key) }, column.label)));
  }
  filler.append(body);
  scroller.append(filler);
  table.append(h("div", { role: "rowgroup", class: "head-group" }, header), scroller);
  const filters = byId("filters");
  const bySession = (a, b) => (a < b ? -1 : 1);
  for (const [key, label, values, write] of [
    ["outcome", "Outcome", [...texts.outcome].sort(), said],
    ["session", "Session", [...texts.session].sort(bySession).slice(0, MANY), (text) => apart(text || "none", 40)],
    ["model", "Model", [...texts.model].sort(bySession).slice(0, MANY), (text) => apart(text || "none", 40)],
    ["decision", "Decision", decisionKinds().slice(0, MANY), (text) => apart(text, 40)],
  ]) filters.append(choice(key, label, values, write));
  filters.append(h("div", { class: "field sorting" }, h("label", { for: "sort" }, "Sort by"), h("select", { id: "sort", onchange: (event) => { state.down = !COLUMNS.find((one) => one.key === event.target.value).text; state.sort = event.target.value; update(); } },
    ...COLUMNS.map((column) => h("option", { value: column.key }, column.label)))),
  h("button", { type: "button", id: "direction", class: "quiet sorting", onclick: () => { state.down = !state.down; update(); } }));
  byId("table").append(table, h("p", { class: "empty if-none" }, data.count ? "No call is like that: take a filter away." : "The log holds no call yet."));
  let timer = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.search = event.target.value; update(); }, 120);
  });
  let asked = false;
  const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); } };
  scroller.addEventListener("scroll", soon);
  let tall = rowHeight();
  window.addEventListener("resize", () => { if (tall !== rowHeight()) { tall = rowHeight(); update(); } });
  table.addEventListener("keydown", (event) => {
    if (event.target !== table && event.target !== scroller) return; // a heading has been chosen
    const page = Math.max(1, Math.floor(scroller.clientHeight / rowHeight()) - 1);
    const places = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: shown.length - 1 };
    if (event.key in places) { event.preventDefault(); go(places[event.key]); }
    if (event.key === "Enter") { event.preventDefault(); open(active); }
  });
  update();
}
