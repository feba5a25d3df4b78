// Tiles, drawings and small tables; all figures come from the log's reader, none is reckoned here.

const nothing = (text) => h("p", { class: "empty" }, text);

function tile(key, label, value, hint, title) {
  return h("div", { class: "tile" },
    h("div", { class: "label" }, label),
    h("div", { class: "value", "data-figure": key, title }, value),
    h("div", { class: "hint" }, hint));
}

function showTiles() {
  const { totals, latency } = figures;
  const ended = Object.fromEntries(figures.outcomes.map((row) => [row.name, row.calls]));
  const failed = totals.calls - (ended.ok || 0) - (ended.refused || 0);
  const { first, retry, failover, follow_up: followUp } = figures.attempts;
  const all = latency.all;
  byId("tiles").replaceChildren(
    tile("calls", "Calls", whole(totals.calls), `${plural(figures.session_count, "session")}, ${percent(ended.ok || 0, totals.calls)} ended ok`),
    tile("spend", "Spend", money(totals.nano),
      totals.unpriced ? `and ${plural(totals.unpriced, "call")} without a price` : totals.attempts ? "US dollars; every call has a price" : "nothing was sent", exactly(totals.nano)),
    tile("tokens", "Tokens", short(totals.prompt_tokens + totals.completion_tokens),
      `${whole(totals.prompt_tokens)} in, ${whole(totals.completion_tokens)} out`, whole(totals.prompt_tokens + totals.completion_tokens)),
    tile("latency", "Latency, median", duration(all.p50),
      all.calls ? `p90 ${duration(all.p90)}, p99 ${duration(all.p99)}` : "no call ended ok", all.p50 === null ? null : `${all.p50} ms`),
    tile("refused", "Refused", whole(ended.refused || 0), `${percent(ended.refused || 0, totals.calls)} of calls; nothing was sent`),
    tile("failed", "Failed or stopped", whole(failed), "failed, timed out, cancelled or abandoned"),
    tile("attempts", "Attempts", whole(totals.attempts),
      first ? `${plural(retry, "retry", "retries")}, ${plural(failover, "failover")}, ${plural(followUp, "follow-up")}` : "no provider was asked"),
    tile("loops", "Loops", whole(totals.looped), totals.looped === 1 ? "call in which one was found" : "calls in which one was found"));
}

function showChain() {
  const { chain, reading } = figures;
  const notes = [...chain.notes];
  if (reading.unreadable) notes.push(`${plural(reading.unreadable, "line")} could not be read; the calls in them are not in this report`);
  if (reading.torn_bytes) notes.push(`the last line is not whole (${plural(reading.torn_bytes, "byte")}): it was being written, or its process was killed`);
  if (figures.totals.untimed) notes.push(`${plural(figures.totals.untimed, "call")} without a time that can be read: not in the charts over time`);
  const state = chain.closed ? "closed in good order" : "open: it is being written, or its process was killed";
  const extent = `${plural(chain.lines, "line")} in ${plural(chain.files, "file")}, ${state}`;
  const title = chain.ok ? "Chain intact" : "Chain broken";
  const seal = chain.sealed_by ? ` Sealed by the key ${chain.sealed_by}.` : "";
  const place = byId("chain");
  place.classList.add(chain.ok ? "good" : "bad");
  place.append(h("p", {},
    h("strong", { "data-figure": "chain" }, title), " ",
    chain.ok ? `The log is as it was written: ${extent}.${seal}` : `The log is not as it was written: ${plural(chain.problem_count, "problem")}. ${extent}.`));
  if (!chain.ok) place.append(h("p", {}, "First: ", h("bdi", { class: "code" }, chain.problems[0])));
  const more = [...chain.problems.slice(1), ...notes];
  if (!more.length) return;
  place.append(h("details", {}, h("summary", {}, plural(more.length, chain.ok ? "note" : "more problem or note", chain.ok ? "notes" : "more problems and notes")),
    h("ul", {}, ...more.map((text) => h("li", {}, h("bdi", {}, text))))));
}

/** A table of figures under a drawing, for readers who see none. */
function asTable(caption, heads, rows) {
  return h("details", { class: "as-table" }, h("summary", {}, "Show as a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, h("bdi", {}, text))))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((text, index) => h(index ? "td" : "th", index ? {} : { scope: "row" }, h("bdi", {}, text)))))))));
}

function showSeries(key) {
  const place = byId("spend");
  const lines = figures.series;
  const measure = MEASURES[key];
  for (const button of byId("measures").children) button.setAttribute("aria-pressed", String(button.dataset.measure === key));
  if (!lines.length) return place.replaceChildren(nothing("No call has a time."));
  const totals = lines.map((line) => line[key].reduce((sum, value) => sum + value, 0));
  byId("spend-caption").textContent = `${measure.label} of the calls begun in each ${steps(figures.span.width)}, in ${measure.unit}; times are in UTC. ` +
    "Sessions that spent most have a colour of their own. Choose a step to see its calls.";
  if (!totals.some(Boolean)) return place.replaceChildren(nothing(key === "nano" ? "Nothing was spent in these calls." : "Nothing was counted in these calls."));
  const chart = h("div", {});
  const tell = (step) => [...when(step), ...lines.map((line, index) => [line, index]).filter(([line]) => line[key][step]).reverse().map(([line, index]) =>
    h("div", { class: "tip-row" }, h("span", { class: `key ${line.name === null ? "other" : `s${index}`}` }), h("bdi", { class: "name" }, clip(seriesName(line), 40)), h("b", {}, measure.write(line[key][step])))),
  h("div", { class: "tip-row" }, h("span", {}), h("span", {}, "All"), h("b", {}, measure.write(lines.reduce((sum, line) => sum + line[key][step], 0))))];
  const legend = h("ul", { class: "legend" }, ...lines.map((line, index) => h("li", {},
    h("button", { type: "button", class: "quiet", disabled: line.name === null, title: line.name === null ? null : "Show the calls of this session",
      onclick: () => filterBy({ session: line.name }) },
    h("span", { class: `key ${line.name === null ? "other" : `s${index}`}` }), h("bdi", { class: "name" }, clip(seriesName(line), 60)), h("b", {}, measure.write(totals[index]))))));
  place.replaceChildren(chart, legend, asTable(`${measure.label} over time`, ["From, UTC", ...lines.map((line) => clip(seriesName(line), 40))],
    Array.from({ length: figures.span.steps }, (_, step) => [iso(between(figures.span, step)[0]).slice(0, 19).replace("T", " "), ...lines.map((line) => measure.write(line[key][step]))])));
  new Drawing(chart, `${measure.label} over time, by session. Left and right move, Enter shows the calls.`, drawSeries(key, lines), tell,
    (step) => filterBy({ range: between(figures.span, step) }));
}

function showDecisions() {
  const rows = figures.decisions;
  const place = byId("decisions");
  if (!rows.length) return place.replaceChildren(nothing("No guard had anything to decide: every call went through as it was."));
  byId("decisions-caption").textContent = `Decisions in calls begun in each ${steps(figures.span.width)}: the stronger the colour, the more, each row by itself; ` +
    "the number is the row's sum. Orange rows are calls that a guard refused or gave up.";
  const chart = h("div", {});
  place.replaceChildren(chart, asTable("Decisions", ["Guard", "Decision", "Count"], rows.map((row) => [clip(row.guard, 60), clip(row.decision, 60), whole(row.total)])));
  new Drawing(chart, "Decisions of guards over time. Arrow keys move, Enter shows the calls.", drawRows(rows),
    (step, row) => [...when(step), h("div", { class: "tip-row" }, h("span", {}), h("bdi", { class: "name" }, `${clip(rows[row].guard, 30)} · ${clip(rows[row].decision, 30)}`), h("b", {}, whole(rows[row].counts[step])))],
    (step, row) => filterBy({ range: between(figures.span, step), decision: isStop(rows[row]) ? `stopped by ${rows[row].guard}` : `${rows[row].guard} ${rows[row].decision}` }));
}

function showLatency() {
  const { all, models, model_count: count, first_chunk: chunk } = figures.latency;
  const place = byId("latency");
  byId("latency-caption").textContent = "Of calls that ended ok and asked a provider, retries and waits included. Percentiles by the nearest rank. The bar spans p50 to p99, from zero.";
  if (!all.calls) return place.replaceChildren(nothing("No call ended ok."));
  const rows = models.length > 1 ? [{ ...all, all: true }, ...models] : models;
  const top = Math.max(...rows.map((row) => row.p99)) || 1;
  const plot = (row) => {
    const at = (value) => `${(100 * value) / top}%`;
    const svg = g("svg", { class: "range", height: 14, width: "100%", "aria-hidden": "true" });
    svg.append(g("line", { class: "lane-line", x1: 0, x2: "100%", y1: 7, y2: 7 }), g("line", { class: "range-line", x1: at(row.p50), x2: at(row.p99), y1: 7, y2: 7 }));
    for (const [key, radius] of [["p99", 3], ["p90", 3.5], ["p50", 4.5]]) svg.append(g("circle", { class: key, cx: at(row[key]), cy: 7, r: radius }));
    return h("div", { class: "plot" }, svg);
  };
  const cells = (row) => ["p50", "p90", "p99"].map((key) => h("td", { title: `${row[key]} ms`, "data-label": key }, duration(row[key])));
  place.replaceChildren(h("table", { class: "latency" },
    h("thead", {}, h("tr", {}, ...["Model", "Calls", "p50", "p90", "p99"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.all ? "All models" : name(row.name, "no model"), plot(row)), h("td", { "data-label": "calls" }, whole(row.calls)), ...cells(row))))));
  const notes = [];
  if (chunk.calls) notes.push(`First chunk of ${plural(chunk.calls, "stream")}: p50 ${duration(chunk.p50)}, p90 ${duration(chunk.p90)}, p99 ${duration(chunk.p99)}.`);
  if (count > models.length) notes.push(`${plural(count - models.length, "model")} with fewer calls are not listed.`);
  if (figures.totals.unasked) notes.push(`${plural(figures.totals.unasked, "call")} answered without a provider (from a cache or a recording) left out.`);
  if (notes.length) place.append(h("p", { class: "caption" }, notes.join(" ")));
}

/** Bars of counts; the longest is the largest. */
function bars(id, rows, none) {
  if (!rows.length) return byId(id).replaceChildren(nothing(none));
  const most = Math.max(...rows.map((row) => row.count));
  byId(id).replaceChildren(h("ul", { class: "bars" }, ...rows.slice(0, 12).map((row) => {
    const bar = h("span", { class: `bar ${row.count ? row.tone || "plain" : "zero"}` });
    bar.style.width = `${most ? (100 * row.count) / most : 0}%`;
    const label = row.filter ? h("button", { type: "button", class: "link", onclick: () => filterBy(row.filter) }, row.label) : row.label;
    return h("li", {}, h("span", { class: "bar-label" }, label), h("span", { class: "bar-count" }, whole(row.count)), h("span", { class: "bar-lane", "aria-hidden": "true" }, bar));
  }), rows.length > 12 ? h("li", { class: "muted" }, `and ${whole(rows.length - 12)} more`) : null));
}

function showCounts() {
  const guards = new Map();
  for (const row of figures.stops) guards.set(row.guard, [...(guards.get(row.guard) || []), row]);
  bars("outcomes", figures.outcomes.map((row) => ({ label: said(row.name), count: row.calls, tone: tone(row.name), filter: { outcome: row.name } })), "No call.");
  bars("stops", figures.stops.map((row) => ({ label: h("span", {}, name(row.guard), ` · ${row.what}`), count: row.count, tone: "warn",
    filter: texts.stopped_by.includes(row.guard) ? { decision: `stopped by ${row.guard}` } : { search: row.guard } })), "No guard refused a call or gave one up.");
  const roles = { first: "first attempts", retry: "retries", failover: "failovers", follow_up: "follow-ups" };
  bars("attempts", figures.totals.attempts ? Object.entries(roles).map(([role, label]) => ({ label, count: figures.attempts[role] })) : [], "No provider was asked.");
  bars("failures", figures.failures.map((row) => ({ label: h("span", {}, name(row.error), row.status ? ` · HTTP ${row.status}` : ""), count: row.count, tone: "bad" })), "No attempt failed.");
  bars("loops", figures.loops.map((row) => ({ label: h("span", {}, name(row.decision), row.kind ? " · " : "", row.kind ? name(row.kind) : ""), count: row.count, filter: { decision: `loop ${row.decision}` } })), "No loop was found.");
}

function showSessions() {
  const rows = figures.sessions;
  byId("sessions-caption").textContent = figures.session_count > rows.length
    ? `The ${rows.length} that spent most, of ${whole(figures.session_count)}; where nothing was spent, that used most tokens.` : "Those that spent most come first. Choose one to see its calls.";
  if (!rows.length) return byId("sessions").replaceChildren(nothing("No session."));
  byId("sessions").replaceChildren(h("div", { class: "rows" }, h("table", { class: "sessions" },
    h("thead", {}, h("tr", {}, ...["Session", "Calls", "Refused", "Tokens", "Spend"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {},
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => filterBy({ session: row.name }) }, name(row.name))),
      h("td", {}, whole(row.calls)), h("td", {}, whole(row.refused)), h("td", { title: whole(row.tokens) }, short(row.tokens)),
      h("td", { title: exactly(row.nano) }, row.unpriced && !row.nano ? "no price" : money(row.nano), row.unpriced && row.nano ? "+" : "")))))));
}
