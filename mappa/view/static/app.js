// The page of one run. What models wrote is put on it as text nodes alone, never as markup, and with every character
// that a terminal or a text layout would obey made visible.
"use strict";

const $ = (id) => document.getElementById(id);
const recorded = $("answers") && JSON.parse($("answers").textContent); // a report carries its answers
const POLL = 2000;
const state = { run: null, changes: -1, shown: 0, rows: [], at: 0, offset: 0, filters: { order: "newest", phase: "train" } };

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

const FORMS = {
  share: (x) => `${(100 * x).toFixed(0)} %`,
  number: (x) => (Math.abs(x) >= 100 || Number.isInteger(x) ? x.toFixed(0) : x.toPrecision(3)),
  dollars: (x) => `$${x.toFixed(2)}`,
  seconds: (x) => `${x.toPrecision(3)} s`,
};
const signed = (x, digits = 2) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;
const orDash = (x, form) => (x === null || x === undefined ? "–" : form(x));
const link = (view, query = {}) => `#${view}?${new URLSearchParams(query)}`;

// ---- charts -----------------------------------------------------------------------------------------------------

// Lines over the steps, each with the band of its intervals. `lines`: {label, points: [step, value, low, high][], colour}.
function chart(title, lines, form = FORMS.number, bounds = null) {
  const [W, H, L, R, T, B] = [360, 170, 44, 6, 6, 18];
  const points = lines.flatMap((line) => line.points);
  const ends = points.flatMap((p) => [p[1], p[2] ?? p[1], p[3] ?? p[1]]);
  let [low, high] = bounds || [Math.min(0, ...ends), Math.max(...ends)];
  if (high <= low) high = low + 1;
  const steps = points.map((p) => p[0]);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const x = (step) => L + (last > first ? (step - first) / (last - first) : 0.5) * (W - L - R);
  const y = (value) => T + (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low)) * (H - T - B);
  const marks = [low, (low + high) / 2, high].map((value) => [
    g("line", { class: "axis", x1: L, x2: W - R, y1: y(value), y2: y(value) }),
    g("text", { x: L - 4, y: y(value) + 3, "text-anchor": "end" }, form(value)),
  ]);
  const drawn = lines.map((line) => {
    const banded = line.points.filter((p) => p[2] !== null);
    const edge = [...banded.map((p) => `${x(p[0])},${y(p[3])}`), ...banded.toReversed().map((p) => `${x(p[0])},${y(p[2])}`)];
    const path = line.points.map((p) => `${x(p[0])},${y(p[1])}`).join(" ");
    const dots = line.points.length > 60 ? [] : line.points.map((p) => g("circle", { class: `c${line.colour}`, cx: x(p[0]), cy: y(p[1]), r: 2.5 },
      g("title", {}, `${line.label}, step ${p[0]}: ${form(p[1])}${p[2] === null ? "" : ` [${form(p[2])}, ${form(p[3])}]`}`)));
    return [
      banded.length ? g("polygon", { class: `band c${line.colour}`, points: edge.join(" ") }) : null,
      g("polyline", { class: `curve c${line.colour}${line.dashed ? " dashed" : ""}`, points: path }), dots,
    ];
  });
  const feet = [[L, first, "start"], [W - R, last, "end"]].map(([at, step, anchor]) => g("text", { x: at, y: H - 4, "text-anchor": anchor }, `step ${step}`));
  return h("figure", {},
    h("figcaption", {}, h("strong", {}, title), lines.map((line) => h("span", { class: `c${line.colour}` }, line.dashed ? `┄ ${line.label}` : `― ${line.label}`))),
    g("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title }, marks, drawn, feet));
}

// ---- curves -----------------------------------------------------------------------------------------------------

const PANELS = [
  ["kl", "KL to the base, nats per token"], ["entropy", "entropy, nats per token"], ["distinct", "distinct actions", "share"],
  ["tokens", "length, tokens"], ["truncated", "truncated", "share"], ["tool_errors", "tool errors", "share"],
  ["missing", "scores missing", "share"], ["clip_fraction", "clipped tokens", "share"], ["ratio", "learner's over sampler's probability"],
  ["grad_norm", "gradient norm"],
];
const COACH = [
  ["coach_seconds", "coach: seconds a score takes, median and 95 %", "seconds"], ["coach_calls", "coach: replies bought"],
  ["coach_tokens", "coach: tokens bought"], ["coach_dollars", "coach: dollars", "dollars"], ["coach_hits", "coach: scores without a purchase", "share"],
  ["seconds", "seconds a step takes", "seconds"],
];

async function showCurves(query) {
  const curves = await ask("curves");
  const kind = query.kind || "";
  const find = (measure, role, of = kind) => curves.find((c) => c.measure === measure && c.role === role && c.kind === of);
  const roles = state.run.roles;
  const line = (curve, label, colour, dashed) => (curve ? { label, points: curve.points, colour: colour % 6, dashed } : null);
  const panel = (title, lines, form, bounds) => { const have = lines.filter(Boolean); return have.length ? chart(title, have, form, bounds) : null; };
  const choose = h("select", { id: "kind", onchange: (event) => go("curves", { kind: event.target.value }) },
    ["", ...state.run.kinds].map((name) => h("option", { value: name, selected: name === kind }, name || "all kinds")));
  fill($("filters"), h("label", { for: "kind" }, "tasks of"), choose);
  return [
    state.run.comparisons.map(comparison),
    curves.length ? null : h("p", { class: "faint" }, "No step has ended yet."),
    h("h2", {}, "What was scored beside what was measured"),
    h("div", { class: "panels" },
      panel("team success", [line(find("success", "", ""), "team", 0)], FORMS.share, [0, 1]),
      roles.map((role) => panel(role, [line(find("score", role), "coach's score / 10", 0), line(find("success", role), "measured success", 1, true)], FORMS.share, [0, 1]))),
    h("h2", {}, "The policies"),
    h("div", { class: "panels" }, PANELS.map(([measure, title, form]) =>
      panel(title, roles.map((role, place) => line(find(measure, role) || find(measure, role, ""), role, place)), FORMS[form], form === "share" ? [0, 1] : null))),
    h("h2", {}, "The coach and the clock"),
    h("div", { class: "panels" }, COACH.map(([measure, title, form]) => panel(title, [line(find(measure, "", ""), "", 0)], FORMS[form], form === "share" ? [0, 1] : null))),
  ];
}

const comparison = (one) => h("section", {}, h("h2", {}, one.title),
  h("table", { class: "comparison" }, h("tr", {}, one.heads.map((head, place) => h("th", { class: place ? "number" : null }, head))),
    one.rows.map((row) => h("tr", {}, row.map((cell, place) => h("td", { class: place ? "number" : null }, cell))))),
  h("p", { class: "faint" }, one.change));

// ---- actions ----------------------------------------------------------------------------------------------------

const COLUMNS = ["step", "task", "role", "version", "score", "measured", "success", "tokens", "suspected because it"];

async function showActions(query) {
  const before = JSON.stringify(state.filters);
  state.filters = { order: "newest", phase: "train", ...query };
  state.offset = +query.offset || 0;
  drawFilters();
  const rows = await ask("actions", state.filters);
  const kept = before === JSON.stringify(state.filters) ? rows.findIndex((row) => same(row, state.rows[state.at])) : 0;
  [state.rows, state.at] = [rows, Math.max(0, kept)];
  const body = rows.map((row, place) => h("tr", { "aria-selected": String(place === state.at), onclick: () => open(place) },
    h("td", {}, row.step), h("td", { title: row.task }, row.task), h("td", {}, row.role), h("td", {}, row.adapter.split("@").pop()),
    h("td", { class: "number" }, orDash(row.score, (x) => x.toFixed(1))), h("td", { class: "number" }, orDash(row.quality, (x) => x.toFixed(2))),
    h("td", { class: row.success ? "good" : "bad" }, row.success === null ? "–" : row.success ? "yes" : "no"),
    h("td", { class: "number" }, row.tokens), h("td", { title: row.suspect }, row.suspect || "")));
  const page = (offset, text) => h("button", { onclick: () => go("actions", { ...state.filters, offset }) }, text);
  return [
    h("table", { class: "list", id: "list" }, h("colgroup", {}, COLUMNS.map((name) => h("col", { class: name.split(" ")[0] }))), h("tr", {}, COLUMNS.map((name) => h("th", { class: ["score", "measured", "tokens"].includes(name) && "number" }, name))), body),
    rows.length ? null : h("p", { class: "faint" }, "No action is like that."),
    h("p", {}, state.offset ? page(Math.max(0, state.offset - 100), "before") : null, " ", rows.length === 100 ? page(state.offset + 100, "more") : null),
  ];
}

const same = (a, b) => b !== undefined && a.episode === b.episode && a.ordinal === b.ordinal;

function drawFilters() {
  const filters = state.filters;
  if ($("text") && document.activeElement === $("text")) return; // somebody is typing
  const change = () => go("actions", Object.fromEntries([...new FormData($("filters"))].filter(([, value]) => value)));
  const choice = (name, options, all) => h("select", { name, id: name, "aria-label": name, onchange: change },
    (all ? ["", ...options] : options).map((option) => h("option", { value: option, selected: option === (filters[name] || "") }, option || all)));
  fill($("filters"),
    choice("order", state.run.orders), choice("phase", state.run.phases), choice("role", state.run.roles, "every role"),
    choice("kind", state.run.kinds, "every kind"), choice("task", state.run.tasks, "every task"), choice("adapter", state.run.adapters, "every version"),
    h("input", { type: "search", name: "text", id: "text", placeholder: "words written, printed or said ( / )", "aria-label": "search", value: filters.text || "" }));
  $("filters").onsubmit = (event) => { event.preventDefault(); change(); $("text").blur(); };
}

function select(place) {
  const rows = $("list")?.querySelectorAll("tr[aria-selected]") || [];
  if (!rows.length) return;
  state.at = Math.max(0, Math.min(rows.length - 1, place));
  rows.forEach((row, index) => row.setAttribute("aria-selected", index === state.at));
  rows[state.at].scrollIntoView({ block: "nearest" });
}
const open = (place) => { state.at = place; go("episode", { id: state.rows[place].episode, at: state.rows[place].ordinal }); };

// ---- an episode -------------------------------------------------------------------------------------------------

async function showEpisode(query) {
  const ids = [query.id, query.beside].filter(Boolean);
  const episodes = await Promise.all(ids.map((id) => ask("episode", { id })));
  const name = (one) => `${one.phase === "train" ? `step ${one.step}` : one.phase} · ${one.success === null ? "no outcome" : one.success ? "success" : "failure"} · ${one.id}`;
  fill($("filters"), h("a", { href: link("actions", state.filters) }, "← the list"),
    h("label", { for: "beside" }, "beside"),
    h("select", { id: "beside", onchange: (event) => go("episode", { id: query.id, ...(event.target.value && { beside: event.target.value }) }) },
      h("option", { value: "" }, "no other episode of this task"),
      episodes[0].siblings.filter((one) => one.id !== query.id).map((one) => h("option", { value: one.id, selected: one.id === query.beside }, name(one)))));
  return h("div", { class: "beside" }, episodes.map((episode) => h("section", {}, episodeHead(episode), graph(episode), episode.actions.map((action) => actionPage(episode, action)))));
}

const episodeHead = (episode) => [
  h("h2", { class: "said" }, episode.id),
  h("p", {}, `${episode.task} (${episode.kind}), ${episode.phase === "train" ? `step ${episode.step}` : episode.phase}, seed ${episode.seed}, ${episode.state}: `,
    episode.outcome ? h("strong", { class: episode.outcome.success ? "good" : "bad" }, episode.outcome.success ? "success" : "failure") : "no outcome",
    episode.outcome && Object.entries(episode.outcome.metrics).map(([key, value]) => ` · ${key} ${FORMS.number(value)}`)),
  episode.error ? h("pre", { class: "bad" }, episode.error) : null,
];

// Actions in a row, the files below them: a full line to what an action made, a dashed one from what it used.
function graph(episode) {
  const files = [...new Set(episode.actions.flatMap((action) => [...action.used, ...action.made]))].slice(0, 12);
  if (!files.length) return null;
  const W = 640, wide = (n) => W / Math.max(1, n), short = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);
  const at = (place, n) => wide(n) * (place + 0.5);
  const actions = episode.actions.slice(0, 12);
  const lines = actions.flatMap((action, place) => ["used", "made"].flatMap((how) => action[how].filter((file) => files.includes(file)).map((file) =>
    g("line", { class: how, x1: at(place, actions.length), y1: 34, x2: at(files.indexOf(file), files.length), y2: 96 }))));
  const boxes = (names, y) => names.map((text, place) => [
    g("rect", { class: "box", x: at(place, names.length) - wide(names.length) / 2 + 4, y, width: wide(names.length) - 8, height: 24, rx: 4 }),
    g("text", { x: at(place, names.length), y: y + 16, "text-anchor": "middle" }, short(text, Math.floor(wide(names.length) / 7)), g("title", {}, text))]);
  return g("svg", { class: "graph", viewBox: `0 0 ${W} 130`, role: "img", "aria-label": "files made and used" },
    lines, boxes(actions.map((action) => action.role), 10), boxes(files, 96));
}

function actionPage(episode, action) {
  const verdict = action.verdict, execution = action.execution, evidence = action.evidence;
  const sign = action.advantage === null ? "" : action.advantage > 0 ? "above" : "below";
  return h("article", { class: sign, id: `action-${action.ordinal}` },
    h("header", {}, h("h3", {}, `${action.role} · turn ${action.turn + 1} · ${action.adapter}`),
      h("span", {}, "score ", h("strong", {}, orDash(verdict && verdict.score, (x) => x.toFixed(1)))),
      h("span", {}, "measured ", h("strong", { class: evidence && (evidence.success ? "good" : "bad") }, orDash(action.quality, (x) => x.toFixed(2)))),
      action.advantage === null ? null : h("span", { class: "faint" }, `advantage of the score ${signed(action.advantage)} σ`),
      action.finish === "stop" ? null : h("span", { class: "bad" }, `ended by ${action.finish}`),
      action.repaired ? h("span", { class: "faint" }, "worked from reference files") : null,
      action.suspect ? h("span", { class: "bad said" }, `suspected: it ${action.suspect}`) : null),
    tokens(episode.id, action),
    h("pre", { class: "wrote" }, action.text),
    execution ? ran(execution) : h("p", { class: "faint" }, "No code was run."),
    evidence ? h("details", { open: !evidence.success }, h("summary", {}, evidence.success ? "measured: did its part" : "measured: did not do its part"),
      evidence.fault ? h("p", { class: "bad said" }, evidence.fault) : null, facts(evidence.facts)) : null,
    verdict ? h("details", { open: true }, h("summary", {}, "verdict of ", h("span", { class: "said" }, verdict.coach)),
      h("p", { class: "said" }, verdict.missing ? `no score (${verdict.missing}): ` : "", verdict.reason), facts(verdict.evidence)) : null);
}

const facts = (found) => h("table", { class: "facts" }, Object.entries(found).map(([name, value]) => h("tr", {}, h("th", { class: "said" }, name), h("td", { class: "said" }, value === null ? "–" : value))));

const ran = (execution) => h("details", { open: true },
  h("summary", {}, `tool: ${execution.outcome}, exit ${orDash(execution.exit_code, String)}, ${execution.wall_seconds.toFixed(2)} s`),
  execution.exception ? h("pre", { class: "bad" }, execution.exception) : null,
  execution.stdout ? h("pre", {}, execution.stdout) : null,
  execution.stderr ? h("pre", { class: "bad" }, execution.stderr) : null);

// What it saw, and its tokens by how likely they were: fetched when opened.
function tokens(id, action) {
  const place = h("div", {}, h("p", { class: "faint" }, "…"));
  const load = async () => {
    const found = await ask("tokens", { id, ordinal: action.ordinal }).catch((error) => error);
    if (found instanceof Error) return fill(place, h("p", { class: "error" }, found.message));
    const degree = (logprob) => (logprob === null ? 0 : [0.1, 0.7, 2, 4].filter((edge) => -logprob > edge).length);
    fill(place, h("pre", { class: "saw" }, found.prompt || "nothing"),
      h("p", { class: "faint" }, "what it wrote, the less likely the stronger"),
      h("pre", {}, found.pieces.map(([text, logprob]) => h("span", { class: `t${degree(logprob)}`, title: orDash(logprob, (x) => `log-prob ${x.toFixed(3)}`) }, text))));
  };
  return h("details", { ontoggle: (event) => event.target.open && load() }, h("summary", {}, `saw ${action.context} tokens, wrote ${action.tokens}`), place);
}

// ---- bias -------------------------------------------------------------------------------------------------------

async function showBias() {
  const { last, roles, kinds } = state.run, width = last > 20 ? Math.max(10, Math.ceil(last / 12)) : 1;
  const ends = []; // as bias_windows in report.py
  for (let end = last; end > 0 && ends.length < 12; end -= width) ends.unshift(end);
  fill($("filters"), h("span", { class: "faint" }, "Points by which a kind is scored above the others on actions of equal measured outcome; 95 % intervals; ▲ an alarm"));
  const boards = (await Promise.all(ends.map((end) => ask("bias", { last: end }).catch(() => null)))).filter(Boolean);
  const now = boards.at(-1);
  if (!now || !now.cells.length) return h("p", { class: "faint" }, "Too few actions match between kinds.");
  const cell = (board, role, kind) => board.cells.find((one) => one.role === role && one.kind === kind);
  const heat = (one) => (one ? h("td", { class: tone(one.size) }, h("strong", {}, `${one.alarm ? "▲ " : ""}${signed(one.size)}`), ` [${signed(one.low)}, ${signed(one.high)}]`, h("br"), h("span", { class: "faint" }, `${one.matched} actions`)) : h("td", { class: "faint" }, "too few"));
  const over = (role) => kinds.map((kind, place) => ({ label: kind, colour: place % 6, points: boards.map((board) => [board, cell(board, role, kind)]).filter(([, one]) => one).map(([board, one]) => [board.last, one.size, one.low, one.high]) })).filter((line) => line.points.length);
  return [
    h("h2", {}, `Steps ${now.first} to ${now.last}`),
    h("table", { class: "heat" }, h("tr", {}, h("th"), kinds.map((kind) => h("th", {}, kind))), roles.map((role) => h("tr", {}, h("th", {}, role), kinds.map((kind) => heat(cell(now, role, kind)))))),
    h("h2", {}, "Over the steps"),
    h("div", { class: "panels" }, roles.map((role) => [role, over(role)]).filter(([, lines]) => lines.length).map(([role, lines]) => chart(role, lines, signed))),
  ];
}
const tone = (size) => `${size > 0 ? "p" : "n"}${Math.abs(size) < 0.25 ? 0 : Math.abs(size) < 0.75 ? 1 : Math.abs(size) < 1.5 ? 2 : 3}`;

// ---- timeline ---------------------------------------------------------------------------------------------------

const DOES = { queue: "waits", generate: "serving", outside: "outside", tool: "tools", coach: "coach", learn: "learner", publish: "publishes" };

async function showTimeline(query) {
  const step = Math.min(state.run.last, Math.max(1, +query.step || state.run.last));
  state.shown = step;
  fill($("filters"), h("label", { for: "step" }, "step"),
    h("input", { id: "step", type: "number", min: 1, max: state.run.last, value: step, onchange: (event) => go("timeline", { step: event.target.value }) }),
    recorded ? null : h("a", { href: "trace.json", download: "trace.json" }, "trace for ui.perfetto.dev"));
  const found = await ask("lanes", { step });
  const seconds = found.ended - found.began;
  if (!found.lanes.length) return h("p", { class: "faint" }, "Nothing is known of when this step was done.");
  return [h("h2", {}, `Step ${step}: ${FORMS.seconds(seconds)}`), found.lanes.map((lane) => h("div", { class: "lane" },
    h("span", {}, DOES[lane.kind]), h("span", { class: "faint" }, `${FORMS.share(lane.busy)} busy, up to ${lane.most.toFixed(0)}`), strip(lane, seconds))),
    h("div", { class: "lane faint" }, h("span"), h("span"), h("span", { class: "clock" }, [0, 0.25, 0.5, 0.75, 1].map((part) => h("span", {}, FORMS.seconds(part * seconds)))))];
}

// A bar where the lane was at work, as high as the number of those at work there.
const strip = (lane, seconds) => g("svg", { viewBox: `0 0 ${lane.load.length} 24`, preserveAspectRatio: "none", height: 40, role: "img", "aria-label": lane.kind },
  g("line", { class: "axis", x1: 0, x2: lane.load.length, y1: 23.5, y2: 23.5 }),
  lane.load.map((load, place) => (load > 0 ? g("rect", { class: `c${Object.keys(DOES).indexOf(lane.kind) % 6}`, x: place, width: 1.02, y: 23 - 22 * (load / lane.most), height: Math.max(0.7, 22 * (load / lane.most)) },
    g("title", {}, `${(place * seconds / lane.load.length).toFixed(1)} s: ${load.toFixed(1)}`)) : null)));

// ---- going about ------------------------------------------------------------------------------------------------

const VIEWS = { curves: ["Curves", showCurves], actions: ["Episodes", showActions], bias: ["Bias", showBias], timeline: ["Timeline", showTimeline], episode: [null, showEpisode] };
const place = () => { const [view, query] = location.hash.slice(1).split("?"); return [VIEWS[view] ? view : "curves", Object.fromEntries(new URLSearchParams(query))]; };
const go = (view, query = {}) => { location.hash = link(view, query); };
const fill = (element, ...children) => element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== undefined));

let drawing = 0;
async function draw() {
  const turn = ++drawing, [view, query] = place();
  const fresh = await (async () => { state.run = await ask("run"); return VIEWS[view][1](query); })().catch((error) => h("p", { class: "error" }, error.message));
  if (turn !== drawing) return; // somebody has gone on meanwhile
  const run = state.run;
  if (run) {
    document.title = `${run.name} · mappa`;
    fill($("name"), run.name);
    const lost = run.episodes.lost ? `, ${run.episodes.lost} lost` : "";
    fill($("state"), `step ${run.step}/${run.steps} · ${run.actions} actions${run.left ? `, ${run.left} still being read` : ""}${lost}`);
  }
  fill($("tabs"), Object.entries(VIEWS).filter(([, [name]]) => name).map(([key, [name]]) => h("a", { href: link(key), "aria-current": key === view || (view === "episode" && key === "actions") ? "page" : null }, name)));
  const main = $("main");
  fill(main, fresh);
  main.dataset.drawn = `${view} ${turn}`;
}

// Only what grows is drawn again: not an episode that somebody reads.
async function watch() {
  const pulse = await ask("pulse").catch(() => null);
  $("state").classList.toggle("bad", pulse === null);
  if (pulse !== null && pulse.changes !== state.changes) {
    const first = state.changes < 0;
    state.changes = pulse.changes;
    if (!first && place()[0] !== "episode") await draw();
  }
  setTimeout(watch, pulse !== null && pulse.left ? POLL / 4 : POLL);
}

const KEYS = {
  j: () => move(1), k: () => move(-1),
  ArrowRight: () => next(1), ArrowLeft: () => next(-1),
  Enter: () => place()[0] === "actions" && state.rows.length && open(state.at),
  Escape: () => (place()[0] === "episode" ? go("actions", state.filters) : document.activeElement.blur()),
  "/": () => { if (place()[0] !== "actions") go("actions", state.filters); setTimeout(() => $("text")?.focus(), 150); },
  1: () => go("curves"), 2: () => go("actions", state.filters), 3: () => go("bias"), 4: () => go("timeline"),
};

function move(by) {
  if (place()[0] === "actions") return select(state.at + by);
  const all = [...document.querySelectorAll("article")];
  const at = all.findIndex((one) => one.getBoundingClientRect().top > 5);
  all[Math.max(0, Math.min(all.length - 1, by > 0 ? (at < 0 ? all.length - 1 : at) : (at < 0 ? all.length : at) - 1))]?.scrollIntoView();
}
function next(by) {
  if (place()[0] === "timeline") return go("timeline", { step: state.shown + by });
  if (place()[0] === "episode" && state.rows[state.at + by]) return open(state.at + by);
  if (place()[0] === "actions") return select(state.at + by);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape") || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
window.addEventListener("hashchange", draw);
draw().then(() => recorded || watch());
