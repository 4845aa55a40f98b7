// Going about: which view is shown, what the keys do, and keeping up with a run that goes on.

const VIEWS = { curves: ["Run", showCurves], actions: ["Episodes", showActions], bias: ["Bias", showBias], timeline: ["Timeline", showTimeline], episode: [null, showEpisode] };
const place = () => { const [view, query] = location.hash.slice(1).split("?"); return [VIEWS[view] ? view : "curves", Object.fromEntries(new URLSearchParams(query))]; };
const go = (view, query = {}) => { location.hash = link(view, query); };

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
    fill($("state"), `step ${run.step}/${run.steps} · ${plain(run.actions)} actions${run.left ? `, ${plain(run.left)} still being read` : ""}${lost}`);
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
