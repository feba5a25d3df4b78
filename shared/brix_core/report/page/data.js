// What the log says, and how it is written out.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const data = read("columns");
const col = data.columns;
const texts = data.texts;
const byId = (id) => document.getElementById(id);

/** An element; what comes from a log goes in as text only. */
function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An element of a drawing. */
function g(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A name from the log: whichever way it is written, it leaves the text around it alone. */
const name = (text, none = "none") =>
  text ? h("bdi", { class: "name", title: text.length > 24 ? clip(text, 400) : null }, clip(text, 200)) : h("i", { class: "muted" }, none);
const apart = (text, length = 60) => `\u2068${clip(text, length)}\u2069`;
function clip(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

const english = new Intl.NumberFormat("en-US");
const whole = (value) => (value === null || value === undefined ? "–" : english.format(value));
const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(part && part < all / 100 ? 2 : part === all ? 0 : 1)} %` : "0 %");

function short(value) {
  if (value < 1e4) return english.format(value);
  const [size, unit] = value < 1e6 ? [1e3, "k"] : value < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

/** Nano-dollars as dollars: cents from one dollar on, else three digits that mean something. */
function money(nano) {
  if (nano === null || nano === undefined) return "–";
  const usd = nano / 1e9;
  if (usd === 0) return "$0";
  if (usd >= 1) return `$${usd.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  return `$${usd.toFixed(Math.min(9, 2 - Math.floor(Math.log10(usd)))).replace(/0+$/, "")}`;
}
const exactly = (nano) => `$${(nano / 1e9).toFixed(9)}`;

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  for (const [size, unit] of [[3_600_000, "h"], [60_000, "min"], [1_000, "s"]]) {
    if (ms >= size) return ms / size >= 999.5 ? `${whole(Math.round(ms / size))} ${unit}` : `${(ms / size).toPrecision(3)} ${unit}`;
  }
  if (ms >= 100) return `${Math.round(ms)} ms`;
  return `${ms >= 0.1 ? ms.toPrecision(2) : Number(ms.toFixed(3))} ms`;
}

/** The steps of a timeline in words, as in "each 5 minutes". */
function steps(ms) {
  const [size, unit] = [[86_400_000, "day"], [3_600_000, "hour"], [60_000, "minute"], [1_000, "second"]].find(([one]) => ms % one === 0);
  return ms === size ? unit : plural(ms / size, unit);
}

const iso = (ms) => new Date(ms).toISOString();
const utc = (ms) => (ms === null ? "–" : `${iso(ms).slice(0, 10)} ${iso(ms).slice(11, 23)}`);
const seconds = (ms) => `${iso(ms).slice(0, 10)} ${iso(ms).slice(11, 19)} UTC`;
/** A stretch of time; its day once, where it is one. */
function fromTo(from, to) {
  const [begin, end] = [seconds(from).slice(0, 19), seconds(to)];
  return `${begin} to ${begin.slice(0, 10) === end.slice(0, 10) ? end.slice(11) : end}`;
}
const reader = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
const local = (ms) => (ms === null ? "" : `${reader.format(ms)} (your time)`);
const time = (ms) => h("time", { datetime: iso(ms), title: local(ms) }, seconds(ms));
const said = (outcome) => outcome.replaceAll("_", " ") || "unknown";

/** A colour for each way to end; the word stands beside it, always. */
const tone = (outcome) =>
  ({ ok: "good", refused: "warn", failed: "bad", timed_out: "bad" })[outcome] || "plain";
const outcomeTag = (outcome) => h("span", { class: `tag ${tone(outcome)}` }, clip(said(outcome), 24));
