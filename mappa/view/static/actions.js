// The list of actions, and what it is filtered by.

const COLUMNS = ["step", "task", "role", "version", "score", "measured", "success", "tokens", "suspected because it"];
const COUNTED = ["step", "version", "score", "measured", "tokens"];
const CHOICES = {
  newest: "newest first", worst: "worst scores", best: "best scores", disagreement: "coach and outcome apart", suspected: "suspected injection",
  train: "training", base: "before training", trained: "after training",
};

async function showActions(query) {
  const before = JSON.stringify(state.filters);
  state.filters = { order: "newest", phase: "train", ...query };
  state.offset = +query.offset || 0;
  drawFilters();
  const rows = await ask("actions", state.filters);
  const kept = before === JSON.stringify(state.filters) ? rows.findIndex((row) => same(row, state.rows[state.at])) : 0;
  [state.rows, state.at] = [rows, Math.max(0, kept)];
  const page = (offset, text) => h("button", { type: "button", onclick: () => go("actions", { ...state.filters, offset }) }, text);
  return [
    h("table", { class: "list", id: "list" }, h("tr", {}, COLUMNS.map((name) => h("th", { class: column(name) }, name))), rows.map(listed)),
    rows.length ? null : h("p", { class: "faint" }, "No action is like that."),
    h("p", { class: "pages" }, state.offset ? page(Math.max(0, state.offset - 100), "← before") : null, rows.length === 100 ? page(state.offset + 100, "more →") : null),
  ];
}

const column = (name) => `${name.split(" ")[0]}${COUNTED.includes(name) ? " number" : ""}`;

function listed(row, place) {
  const cell = (name, value, more = "", title = null) => h("td", { class: `${column(name)} ${more}`, title }, value);
  return h("tr", { "aria-selected": String(place === state.at), onclick: () => open(place) },
    cell("step", row.step), cell("task", row.task, "", row.task), cell("role", row.role), cell("version", row.adapter.split("@").pop()),
    cell("score", orDash(row.score, (x) => x.toFixed(1)), row.score === null ? "" : `s${Math.min(4, Math.floor(row.score / 2))}`),
    cell("measured", orDash(row.quality, (x) => x.toFixed(2))),
    cell("success", row.success === null ? "–" : row.success ? "yes" : "no", row.success ? "good" : "bad"),
    cell("tokens", row.tokens), cell("suspected", row.suspect || "", "", row.suspect));
}

const same = (a, b) => b !== undefined && a.episode === b.episode && a.ordinal === b.ordinal;

function drawFilters() {
  const filters = state.filters;
  if ($("text") && document.activeElement === $("text")) return; // somebody is typing
  const change = () => go("actions", Object.fromEntries([...new FormData($("filters"))].filter(([, value]) => value)));
  const choice = (name, options, all) => h("select", { name, id: name, "aria-label": name, onchange: change },
    (all ? ["", ...options] : options).map((option) => h("option", { value: option, selected: option === (filters[name] || "") }, CHOICES[option] || option || all)));
  fill($("filters"),
    choice("order", state.run.orders), choice("phase", state.run.phases), choice("role", state.run.roles, "every role"),
    choice("kind", state.run.kinds, "every kind"), choice("task", state.run.tasks, "every task"), choice("adapter", state.run.adapters, "every version"),
    h("input", { type: "search", name: "text", id: "text", placeholder: "written, printed or said  /", "aria-label": "search", value: filters.text || "" }));
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
