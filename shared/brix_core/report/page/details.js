// One call: its entry in full. The details of a part of the log are read when one of them is asked for.

const parts = new Map();
const DETAIL = ["place", "timestamp", "provider", "stream", "estimated", "first", "finish", "sequence", "prompt", "response", "chain", "partial", "guards", "attempts", "decisions"];
const ATTEMPT = ["endpoint", "model", "after", "took", "outcome", "error", "status", "input", "output", "nano", "role"];
const named = (keys, values) => Object.fromEntries(keys.map((key, index) => [key, values[index]]));

function detailsOf(row) {
  const part = Math.floor(row / data.part);
  if (!parts.has(part)) parts.set(part, read(`part-${part}`));
  return named(DETAIL, parts.get(part)[row % data.part]);
}

const value = (text) => h("bdi", { class: "value-text" }, text);
const hash = (text) => (text ? h("code", {}, text) : h("i", { class: "muted" }, "none"));

function definition(...pairs) {
  const list = h("dl", { class: "facts" });
  for (const [label, shown] of pairs) {
    if (shown === null || shown === "") continue;
    list.append(h("div", {}, h("dt", {}, label), h("dd", {}, typeof shown === "string" ? value(shown) : shown)));
  }
  return list;
}

function attemptCard(one, index, total) {
  const bar = h("span", { class: `bar ${tone(data.names[one.outcome])}` });
  bar.style.marginInlineStart = `${(100 * (one.after || 0)) / total}%`;
  bar.style.width = `${Math.max(0.5, (100 * (one.took || 0)) / total)}%`;
  const tokens = one.input === null && one.output === null ? "no usage" : `${whole(one.input)} tokens in, ${whole(one.output)} out`;
  return h("li", { class: "attempt" },
    h("div", { class: "attempt-head" }, h("b", {}, `${index + 1}. ${data.names[one.role].replace("_", "-")}`), outcomeTag(data.names[one.outcome]),
      h("span", {}, `${duration(one.took)}, after ${duration(one.after)}`), h("span", {}, tokens), h("span", {}, one.nano === null ? "no price" : money(one.nano))),
    h("div", { class: "bar-lane", "aria-hidden": "true" }, bar),
    h("div", { class: "muted" }, value(data.names[one.endpoint]), data.names[one.model] ? h("span", {}, " · ", value(data.names[one.model])) : null),
    one.error && data.names[one.error] ? h("div", { class: "wrong" }, value(data.names[one.error]), one.status ? ` (HTTP ${one.status})` : "") : null);
}

function decisionCard(one) {
  let rest = [];
  try { rest = Object.entries(JSON.parse(one[2] || "{}")); } catch { rest = [["details", one[2]]]; }
  return h("li", {}, h("b", {}, value(data.names[one[0]])), " ", value(data.names[one[1]]),
    ...rest.map(([key, said]) => h("span", { class: "pair-text" }, value(key), "=", value(typeof said === "string" ? said : JSON.stringify(said)))));
}

/** Show a call; `move` goes to the one before or after in the table, where there is one. */
function showDetails(row, move) {
  const found = detailsOf(row);
  const dialog = byId("details");
  const attempts = found.attempts.map((one) => named(ATTEMPT, one));
  const total = Math.max(col.latency_ms[row] || 0, ...attempts.map((one) => (one.after || 0) + (one.took || 0))) || 1;
  const at = col.time[row];
  const tokens = sums(row) === null ? "no usage" : `${whole(col.prompt_tokens[row])} in, ${whole(col.completion_tokens[row])} out${found.estimated ? " (estimated)" : ""}`;
  const error = texts.error[col.error[row]];
  const heading = (text, count) => h("h3", {}, `${text} (${count})`);
  dialog.replaceChildren(
    h("div", { class: "dialog-head" }, h("h2", { id: "details-title", tabindex: "-1" }, "Call ", h("bdi", { class: "code" }, col.run_id[row] || "without a run id")),
      h("div", { class: "dialog-buttons" },
        h("button", { type: "button", class: "quiet", "aria-label": "Call above in the table", onclick: () => move(-1) }, "↑"),
        h("button", { type: "button", class: "quiet", "aria-label": "Call below in the table", onclick: () => move(1) }, "↓"),
        h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "✕"))),
    definition(
      ["Outcome", outcomeTag(texts.outcome[col.outcome[row]])],
      ["Begun", at === null ? found.timestamp || "no time" : h("span", {}, `${utc(at)} UTC`, h("br"), h("small", { class: "muted" }, local(at)))],
      ["Session", texts.session[col.session[row]] || "none"],
      ["Model", texts.model[col.model[row]] || "none"],
      ["Provider", data.names[found.provider]],
      ["Tokens", tokens],
      ["Cost", col.nano[row] === null ? "no price" : `${money(col.nano[row])} (${exactly(col.nano[row])})`],
      ["Latency", `${duration(col.latency_ms[row])}${found.first === null ? "" : `, first chunk after ${duration(found.first)}`}`],
      ["Streamed", found.stream ? "yes" : "no"],
      ["Finish reason", found.finish],
      ["Stopped by", texts.stopped_by[col.stopped_by[row]]]),
    error ? h("div", { class: "wrong box" }, h("b", {}, value(error)), h("div", {}, value(texts.message[col.message[row]]))) : "",
    heading("Attempts", attempts.length),
    attempts.length ? h("ol", { class: "attempts" }, ...attempts.map((one, index) => attemptCard(one, index, total))) : nothing("No provider was asked."),
    heading("Decisions", found.decisions.length),
    found.decisions.length ? h("ul", { class: "decided" }, ...found.decisions.map(decisionCard)) : nothing("No guard had anything to decide."),
    h("h3", {}, "Entry"),
    definition(
      ["Place", found.place],
      ["In its session", found.sequence === null ? "" : `number ${found.sequence}`],
      ["Prompt hash", hash(found.prompt)],
      ["Response hash", hash(found.response)],
      ["Chain hash", hash(found.chain)],
      ["Guards active", data.guards[found.guards]]),
    found.partial ? h("details", {}, h("summary", {}, "Text until it was cut"), h("pre", { dir: "auto" }, found.partial)) : "");
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  byId("details-title").focus({ preventScroll: true });
  dialog.onkeydown = (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && event.altKey) { event.preventDefault(); move(step); }
  };
}
