// The page as a whole.

const THEMES = ["auto", "light", "dark"];

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  byId("theme").dataset.now = theme;
}

function beginTheme() {
  let theme = "auto";
  try { theme = localStorage.getItem("brix-theme") || theme; } catch { /* a page of a file may not keep anything */ }
  showTheme(THEMES.includes(theme) ? theme : "auto");
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(byId("theme").dataset.now) + 1) % THEMES.length];
    showTheme(next);
    try { localStorage.setItem("brix-theme", next); } catch { /* as above */ }
  });
}

function showSource() {
  const { span } = figures;
  byId("source").append(h("bdi", { class: "code" }, clip(figures.path, 200)), h("br"));
  if (span) byId("source").append(time(span.first), " to ", time(span.last), " · ");
  byId("source").append("made ", time(figures.made));
}

function showMeaning() {
  const { totals } = figures;
  const meanings = [
    ["Calls", "Entries of the log, one for each call of the application, however many attempts it took. Calls refused by a guard are among them."],
    ["Spend", `The sum of cost_usd over all calls, in US dollars, to the nano-dollar. A call that reached a provider and has no cost is counted as “without a price” (${whole(totals.unpriced)}), never as zero.`],
    ["Tokens", `Input and output tokens of all attempts of a call, as providers reported them; ${plural(totals.estimated, "call")} with estimates among them.`],
    ["Latency", "From the call to its end, waits and retries included. Percentiles by the nearest rank: the smallest latency that at least so many percent of the calls do not exceed."],
    ["Refused", "A guard refused the call, and nothing was sent. A call given up on the way, such as one that timed out, is not among them."],
    ["Loops", "Calls in which the loop guard found a closed loop: it nudged the model, cut the answer or stopped the call."],
    ["Chain", "Each line of a log holds the hash of the line before it. The state is that of brix verify at the time this page was made; check the log itself before relying on it."],
  ];
  byId("meaning").append(...meanings.map(([label, text]) => h("div", {}, h("dt", {}, label), h("dd", {}, text))));
}

beginTheme();
showSource();
showChain();
showTiles();
for (const [key, measure] of Object.entries(MEASURES)) {
  byId("measures").append(h("button", { type: "button", "data-measure": key, "aria-pressed": "false", onclick: () => showSeries(key) }, measure.label));
}
const zero = !figures.totals.nano;
showTable();
showSeries(zero ? (figures.totals.prompt_tokens + figures.totals.completion_tokens ? "tokens" : "calls") : "nano");
showDecisions();
showLatency();
showSessions();
showCounts();
showMeaning();
requestAnimationFrame(() => { document.documentElement.dataset.ready = String(Math.round(performance.now())); });
