// An episode: its roles in order, beside another of the same task.

async function showEpisode(query) {
  const ids = [query.id, query.beside].filter(Boolean);
  const episodes = await Promise.all(ids.map((id) => ask("episode", { id })));
  const others = episodes[0].siblings.filter((one) => one.id !== query.id);
  const show = (beside) => go("episode", { id: query.id, ...(beside && { beside }) });
  const first = (phase) => others.find((one) => one.phase === phase);
  fill($("filters"), h("a", { href: link("actions", state.filters) }, "← the list"),
    h("label", {}, "Beside it ", h("select", { id: "beside", onchange: (event) => show(event.target.value) },
      h("option", { value: "" }, "no other episode of this task"),
      others.map((one) => h("option", { value: one.id, selected: one.id === query.beside }, `${when(one)} · ${ended(one.success)} · ${one.id}`)))),
    ["base", "trained"].filter(first).map((phase) => h("button", { type: "button", "aria-pressed": String(first(phase).id === query.beside), onclick: () => show(first(phase).id) }, CHOICES[phase])),
    h("label", {}, "Paint ", h("select", { id: "paint", onchange: (event) => { state.paint = event.target.value; draw(); } }, Object.entries(PAINTS).map(([name, [label]]) => h("option", { value: name, selected: name === state.paint }, label)))),
    legend());
  const found = h("div", { class: "beside" }, episodes.map((episode) => h("section", {}, episodeHead(episode), graph(episode), episode.actions.map((action) => actionPage(episode, action)))));
  if (query.at !== undefined && state.read !== query.id) setTimeout(() => query.at > 0 && $(`action-${query.at}`)?.scrollIntoView(), 0);
  state.read = query.id;
  return found;
}

const when = (one) => (one.phase === "train" ? `step ${one.step}` : CHOICES[one.phase] || one.phase);
const ended = (success) => (success === null ? "no outcome" : success ? "success" : "failure");

const episodeHead = (episode) => [
  h("h2", { class: "said" }, episode.task, " ", episode.outcome ? h("strong", { class: `pill ${episode.outcome.success ? "good" : "bad"}` }, ended(episode.outcome.success)) : h("strong", { class: "pill" }, episode.state)),
  h("p", { class: "faint said" }, `${episode.kind} · ${when(episode)} · ${episode.id} · seed ${episode.seed}`,
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
  return h("div", { class: "wide" }, g("svg", { class: "graph", viewBox: `0 0 ${W} 130`, role: "img", "aria-label": "files made (full lines) and used (dashed)" },
    lines, boxes(actions.map((action) => action.role), 10), boxes(files, 96)));
}

function actionPage(episode, action) {
  const { verdict, execution, evidence } = action;
  const sign = action.advantage === null ? "" : action.advantage > 0 ? "above" : "below";
  const number = (label, value, tone, title) => h("div", { title }, h("dt", {}, label), h("dd", { class: tone || null }, value));
  return h("article", { class: sign, id: `action-${action.ordinal}` },
    h("header", {}, h("h3", {}, action.role), h("span", { class: "faint" }, `turn ${action.turn + 1} · ${action.adapter}`),
      action.finish === "stop" ? null : h("span", { class: "pill bad" }, `ended by ${action.finish}`),
      action.repaired ? h("span", { class: "pill" }, "worked from reference files") : null,
      action.suspect ? h("span", { class: "pill bad said" }, `suspected: it ${action.suspect}`) : null),
    h("div", { class: "action" },
      h("div", {}, written(episode, action), execution ? ran(execution) : h("p", { class: "faint" }, "No code was run.")),
      h("aside", {},
        h("dl", { class: "numbers" },
          number("score", orDash(verdict && verdict.score, (x) => x.toFixed(1))),
          number("measured", orDash(action.quality, (x) => x.toFixed(2)), evidence && (evidence.success ? "good" : "bad")),
          number("advantage", orDash(action.advantage, signed), action.advantage === null ? null : action.advantage > 0 ? "good" : "bad", "mean over its tokens, as the learner had it"),
          number("KL", orDash(action.kl, FORMS.number), null, "to the base, nats per token"),
          number("entropy", orDash(action.entropy, FORMS.number), null, "nats per token")),
        verdict ? h("section", {}, h("h4", {}, "Verdict ", h("span", { class: "faint said" }, verdict.coach)),
          h("p", { class: "said" }, verdict.missing ? `no score (${verdict.missing}): ` : "", verdict.reason), facts(verdict.evidence)) : null,
        evidence ? h("details", { open: !evidence.success }, h("summary", {}, evidence.success ? "Measured: did its part" : "Measured: did not do its part"),
          evidence.fault ? h("p", { class: "bad said" }, evidence.fault) : null, facts(evidence.facts)) : null)));
}

const facts = (found) => h("table", { class: "facts" }, Object.entries(found).map(([name, value]) => h("tr", {}, h("th", { class: "said" }, name), fact(value))));
function fact(value) {
  if (typeof value === "boolean") return h("td", { class: value ? "good" : "bad" }, value ? "yes" : "no");
  return h("td", { class: "said" }, typeof value === "number" ? plain(value) : value ?? "–");
}

const ran = (execution) => h("details", { open: true },
  h("summary", {}, `Tool: ${execution.outcome}, exit ${orDash(execution.exit_code, String)}, ${execution.wall_seconds.toFixed(2)} s`),
  execution.exception ? h("pre", { class: "bad" }, execution.exception) : null,
  execution.stdout ? h("pre", {}, execution.stdout) : null,
  execution.stderr ? h("pre", { class: "bad" }, execution.stderr) : null,
  execution.exception || execution.stdout || execution.stderr ? null : h("p", { class: "faint" }, "It printed nothing."));

// ---- tokens -----------------------------------------------------------------------------------------------------

// What a token is painted by: a label, and the class of a piece [text, log-prob, advantage].
const PAINTS = {
  advantage: ["advantages", ([, , advantage]) => (advantage === null ? "" : `${advantage > 0 ? "up" : "down"}${level(Math.abs(advantage), [0.05, 0.25, 0.75, 1.5])}`)],
  likelihood: ["unlikely tokens", ([, logprob]) => (logprob === null ? "" : `t${level(-logprob, [0.1, 0.7, 2, 4])}`)],
  none: ["nothing", () => ""],
};
const level = (value, edges) => edges.filter((edge) => value > edge).length;
const LEGENDS = {
  advantage: [["down4", "−1.5"], ["down3", ""], ["down2", ""], ["down1", "0"], ["up1", ""], ["up2", ""], ["up3", ""], ["up4", "+1.5"]],
  likelihood: [["t1", "90 %"], ["t2", "50 %"], ["t3", "14 %"], ["t4", "2 %"]],
  none: [],
};
const legend = () => h("span", { class: "scale faint", "aria-hidden": "true" }, LEGENDS[state.paint].map(([tone, text]) => h("span", { class: tone }, text)));

// What it wrote, painted where its tokens are at hand; what it saw, fetched when opened.
function written(episode, action) {
  const text = h("pre", { class: "wrote" }, action.text), saw = h("pre", { class: "saw" }, "…");
  const load = () => ask("tokens", { id: episode.id, ordinal: action.ordinal });
  const paint = PAINTS[state.paint][1];
  if (state.paint !== "none" && state.run.tokens && (state.paint === "likelihood" || action.advantage !== null)) {
    load().then((found) => fill(text, found.pieces.map((piece) => h("span", { class: paint(piece), title: told(piece) }, piece[0])))).catch(() => text.setAttribute("title", "its tokens are not in the report"));
  }
  const open = (event) => event.target.open && load().then((found) => fill(saw, found.prompt || "nothing")).catch((error) => fill(saw, error.message));
  return [h("details", { ontoggle: open }, h("summary", {}, `Saw ${plain(action.context)} tokens`), saw), h("p", { class: "faint label" }, `Wrote ${plain(action.tokens)} tokens`), text];
}

const told = ([, logprob, advantage]) => [orDash(logprob, (x) => `log-prob ${x.toFixed(3)}`), advantage === null ? null : `advantage ${signed(advantage, 3)}`].filter(Boolean).join(", ");
