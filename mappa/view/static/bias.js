// Whether the coach is fair between kinds, and whether it stays the same coach.

async function showBias() {
  const { last, roles, kinds } = state.run, width = last > 20 ? Math.max(10, Math.ceil(last / 12)) : 1;
  const ends = []; // as bias_windows in report.py
  for (let end = last; end > 0 && ends.length < 12; end -= width) ends.unshift(end);
  fill($("filters"), h("span", { class: "faint" }, "Points by which a kind is scored above the others on actions of equal measured outcome; 95 % intervals; ▲ an alarm"));
  const [drift, ...windows] = await Promise.all([ask("drift"), ...ends.map((end) => ask("bias", { last: end }).catch(() => null))]);
  const boards = windows.filter(Boolean);
  return [heats(boards.at(-1), roles, kinds), gaps(boards, roles, kinds), anchors(drift), alarms(drift)];
}

const cellOf = (board, role, kind) => board.cells.find((one) => one.role === role && one.kind === kind);

function heats(now, roles, kinds) {
  if (!now || !now.cells.length) return h("p", { class: "faint" }, "Too few actions match between kinds.");
  const heat = (one) => (one
    ? h("td", { class: tone(one.size) }, h("strong", {}, `${one.alarm ? "▲ " : ""}${signed(one.size)}`), h("span", {}, `${signed(one.low)} to ${signed(one.high)}`), h("span", { class: "faint" }, `${plain(one.matched)} actions`))
    : h("td", { class: "faint" }, "too few"));
  return [
    h("h2", {}, `Gaps between kinds, steps ${now.first} to ${now.last}`),
    h("div", { class: "wide" }, h("table", { class: "heat" }, h("tr", {}, h("th"), kinds.map((kind) => h("th", {}, kind))),
      roles.map((role) => h("tr", {}, h("th", {}, role), kinds.map((kind) => heat(cellOf(now, role, kind))))))),
  ];
}

const tone = (size) => `${size > 0 ? "p" : "n"}${Math.abs(size) < 0.25 ? 0 : Math.abs(size) < 0.75 ? 1 : Math.abs(size) < 1.5 ? 2 : 3}`;
const AROUND = { least: [-0.5, 0.5] };

function gaps(boards, roles, kinds) {
  const over = (role) => kinds.map((kind, place) => ({ label: kind, colour: place % 6, points: boards.map((board) => [board, cellOf(board, role, kind)]).filter(([, one]) => one).map(([board, one]) => [board.last, one.size, one.low, one.high]) })).filter((line) => line.points.length);
  const charts = roles.map((role) => [role, over(role)]).filter(([, lines]) => lines.length).map(([role, lines]) => chart(role, lines, FORMS.points, AROUND));
  return charts.length ? [h("h2", {}, "Gaps over the steps"), h("div", { class: "panels" }, charts)] : null;
}

const anchors = (drift) => [
  h("h2", {}, "Anchors' drift"),
  drift.changes.length
    ? h("div", { class: "panels" }, chart(`${drift.anchors} anchors against their first reading, points`, [{ label: "coach", colour: 3, points: drift.changes }], FORMS.points, AROUND))
    : h("p", { class: "faint" }, drift.anchors ? `${drift.anchors} anchors were read once; they are compared from their second reading on.` : "No anchor has been read yet: coach.anchor_every says how often they are."),
];

const alarms = (drift) => [
  h("h2", {}, "Alarms of the run's own watch"),
  drift.alarms.length
    ? h("table", {}, drift.alarms.toReversed().flatMap((one) => one.texts.map((text, place) => h("tr", {}, h("th", { class: "number" }, place ? "" : `step ${one.step}`), h("td", { class: "said" }, text)))).slice(0, 200))
    : h("p", { class: "faint" }, "None."),
];
