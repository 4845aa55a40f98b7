// How the run goes: its figures, before and after, and the curves.

const FULL = { bounds: [0, 1] }, SOME = { least: [0, 0.2] };
const PANELS = [
  ["kl", "KL to the base, nats per token"], ["entropy", "Entropy, nats per token"], ["distinct", "Distinct actions", "share", FULL],
  ["tokens", "Length, tokens"], ["truncated", "Truncated", "share", SOME], ["tool_errors", "Tool errors", "share", SOME],
  ["missing", "Scores missing", "share", SOME], ["clip_fraction", "Clipped tokens", "share", SOME],
  ["ratio", "Learner's over sampler's probability", "number", { least: [0.98, 1.02], loose: true }], ["grad_norm", "Gradient norm"],
];
const COACH = [
  ["coach_seconds", "Wait for a score: median, fastest to 95th percentile", "seconds"], ["coach_calls", "Replies bought"],
  ["coach_tokens", "Tokens bought"], ["coach_dollars", "Cost of a step", "dollars"], ["coach_hits", "Scores without a purchase", "share", FULL],
  ["seconds", "Time of a step", "seconds"],
];

async function showCurves(query) {
  const [curves, drift] = await Promise.all([ask("curves"), ask("drift")]);
  const kind = query.kind || "", roles = state.run.roles;
  const find = (measure, role, of = kind) => curves.find((c) => c.measure === measure && c.role === role && c.kind === of);
  const line = (curve, label, colour, dashed) => (curve ? { label, points: curve.points, colour: colour % 6, dashed } : null);
  const panel = (title, lines, form, how) => { const have = lines.filter(Boolean); return have.length ? chart(title, have, form, how) : null; };
  fill($("filters"), h("label", { for: "kind" }, "Tasks of"), h("select", { id: "kind", onchange: (event) => go("curves", { kind: event.target.value }) },
    ["", ...state.run.kinds].map((name) => h("option", { value: name, selected: name === kind }, name || "every kind"))),
    h("span", { class: "faint" }, "Bands are 95 % intervals over tasks."));
  return [
    tiles(find, drift),
    h("div", { class: "comparisons" }, state.run.comparisons.map(comparison)),
    curves.length ? null : h("p", { class: "faint" }, "No step has ended yet."),
    h("h2", {}, "What was scored beside what was measured"),
    h("div", { class: "panels" },
      panel("The team", [line(find("success", "", ""), "measured success", 1, true)], FORMS.share, FULL),
      roles.map((role) => panel(role, [line(find("score", role), "coach's score / 10", 0), line(find("success", role), "measured success", 1, true)], FORMS.share, FULL))),
    h("h2", {}, "The policies"),
    h("div", { class: "panels" }, PANELS.map(([measure, title, form = "number", how = {}]) =>
      panel(title, roles.map((role, place) => line(find(measure, role) || find(measure, role, ""), role, place)), FORMS[form], how))),
    h("h2", {}, "The coach and the clock"),
    h("div", { class: "panels" }, COACH.map(([measure, title, form = "number", how = {}]) => panel(title, [line(find(measure, "", ""), "", 0)], FORMS[form], how))),
  ];
}

// The run at a glance.
function tiles(find, drift) {
  const run = state.run, sum = (measure) => (find(measure, "", "")?.points || []).reduce((total, p) => total + p[1], 0);
  const team = find("success", "", "")?.points || [], now = team.at(-1), seconds = find("seconds", "", "")?.points.at(-1);
  const held = run.comparisons[0], cell = (place) => held.rows[0][place].split("[")[0].trim();
  const alarms = drift.alarms.find((one) => one.step === run.step)?.texts.length || 0, milder = drift.changes.at(-1);
  const left = Math.max(0, run.steps - run.step);
  const tile = (title, value, note, tone) => h("div", { class: "tile" }, h("span", {}, title), h("strong", { class: tone || null }, value), h("span", {}, note));
  return h("section", { class: "tiles", "aria-label": "the run at a glance" },
    tile("Step", `${run.step} of ${run.steps}`, left ? (seconds ? `about ${FORMS.seconds(left * seconds[1])} left` : "under way") : "done"),
    tile("Success in training", now ? FORMS.share(now[1]) : "–", now ? `step 1: ${FORMS.share(team[0][1])}` : "no step has ended"),
    held ? tile(`Held-out tasks`, held.heads.length > 2 ? `${cell(1)} → ${cell(2)}` : cell(1), held.heads.length > 2 ? `${held.rows[0][3]}, ${held.mode}` : `before training, ${held.mode}`) : null,
    tile("Coach's alarms", `${alarms}`, milder ? `anchors ${signed(milder[1])} points` : "anchors not read again yet", alarms ? "bad" : "good"),
    tile("Coach's cost", FORMS.dollars(sum("coach_dollars")), sum("coach_calls") ? `${plain(sum("coach_calls"))} replies, ${plain(sum("coach_tokens"))} tokens` : "nothing was bought"),
    tile("Episodes", plain(Object.values(run.episodes).reduce((a, b) => a + b, 0)), `${run.episodes.lost || 0} lost, ${run.episodes.cut || 0} cut short`, run.episodes.lost ? "bad" : null));
}

const comparison = (one) => h("section", { class: "panel" }, h("h3", {}, one.title),
  h("div", { class: "wide" }, h("table", { class: "comparison" }, h("thead", {}, h("tr", {}, one.heads.map((head, place) => h("th", { class: place ? "number" : null }, head)))),
    h("tbody", {}, one.rows.map((row) => h("tr", {}, one.heads.map((_, place) => h("td", { class: place ? "number" : null }, row[place] ?? "")))))),
  h("p", { class: "faint" }, one.change)));
