// The page of one run. What models wrote is put on it as text nodes alone, never as markup, and with every character
// that a terminal or a text layout would obey made visible.
"use strict";

const $ = (id) => document.getElementById(id);
const recorded = $("answers") && JSON.parse($("answers").textContent); // a report carries its answers
const POLL = 2000;
const state = { run: null, changes: -1, shown: 0, rows: [], at: 0, offset: 0, paint: "advantage", filters: { order: "newest", phase: "train" } };

// ---- asking -----------------------------------------------------------------------------------------------------

async function ask(name, query = {}) {
  const path = new URLSearchParams(query).toString();
  if (!recorded) {
    const reply = await fetch(`api/${name}?${path}`);
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error);
    return answer;
  }
  if (name === "actions") return filtered(recorded.actions, query);
  const plain = Object.entries(query).map(([key, value]) => `${key}=${value}`).join("&");
  const answer = recorded[plain ? `${name}?${plain}` : name];
  if (answer === undefined) throw new Error("This is not in the report; mappa view RUN shows it.");
  return answer;
}

// What the server does with its indices, over the actions that a report carries.
function filtered(rows, query) {
  const has = { newest: () => true, suspected: (row) => row.suspect, disagreement: (row) => gap(row) !== null };
  const sort = { worst: (a, b) => a.score - b.score, best: (a, b) => b.score - a.score, disagreement: (a, b) => gap(b) - gap(a) };
  const text = (query.text || "").toLowerCase();
  const found = rows.filter((row) =>
    (has[query.order] || ((one) => one.score !== null))(row) &&
    ["phase", "role", "kind", "task", "adapter"].every((name) => !query[name] || row[name] === query[name]) &&
    (!text || JSON.stringify(recorded[`episode?id=${row.episode}`]?.actions[row.ordinal] ?? "").toLowerCase().includes(text)));
  if (sort[query.order]) found.sort(sort[query.order]);
  return found.slice(+query.offset || 0, (+query.offset || 0) + 100);
}

const gap = (row) => (row.score === null || row.quality === null ? null : Math.abs(row.score / 10 - row.quality));

// ---- elements ---------------------------------------------------------------------------------------------------

// Control characters as their pictures, characters that turn the direction of text by their names.
const TURNS = { "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI",
  "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM" };
const visible = (text) => String(text)
  .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/[\u007f-\u009f]/g, "\u2421")
  .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g, (c) => `⟪${TURNS[c]}⟫`);

function make(space, tag, attributes, children) {
  const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : visible(child));
  }
  return element;
}
const h = (tag, attributes, ...children) => make(null, tag, attributes, children);
const g = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);
const fill = (element, ...children) => element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== undefined));

// ---- numbers ----------------------------------------------------------------------------------------------------

// The digits that the distance between an axis's marks needs.
function digits(size) {
  let places = 0;
  while (places < 8 && Math.abs(size * 10 ** places - Math.round(size * 10 ** places)) > 1e-6 * size * 10 ** places) places++;
  return places;
}
const plain = (x) => (Number.isInteger(x) || Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en-US") : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) < 1e-4 ? x.toExponential(1) : `${Number(x.toPrecision(3))}`).replace(/^-/, "−");
const signed = (x, places = 2) => `${Number(x.toFixed(places)) === 0 ? "" : x < 0 ? "−" : "+"}${Math.abs(x).toFixed(places)}`;
// `size` is the distance between an axis's marks, where the number is one of them.
const FORMS = {
  share: (x, size) => `${(100 * x).toFixed(size ? digits(100 * size) : 0)} %`,
  number: (x, size) => (size ? x.toLocaleString("en-US", { minimumFractionDigits: digits(size), maximumFractionDigits: digits(size) }).replace("-", "−") : plain(x)),
  dollars: (x, size) => `$${x.toFixed(Math.max(2, digits(size || 1)))}`,
  seconds: (x, size) => (size ? `${x.toFixed(digits(size))} s` : x < 0.1 ? `${plain(1000 * x)} ms` : x < 120 ? `${x.toPrecision(3)} s` : `${Math.floor(x / 60)} min ${Math.round(x % 60)} s`),
  points: (x, size) => signed(x, size ? digits(size) : 2),
};
const orDash = (x, form) => (x === null || x === undefined ? "–" : form(x));
const link = (view, query = {}) => `#${view}?${new URLSearchParams(query)}`;
