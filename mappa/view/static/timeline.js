// Who was at work during a step.

const DOES = { queue: "waits", generate: "serving", outside: "outside", tool: "tools", coach: "coach", learn: "learner", publish: "publishes" };

async function showTimeline(query) {
  const step = Math.min(state.run.last, Math.max(1, +query.step || state.run.last));
  state.shown = step;
  const to = (text, by) => h("button", { type: "button", disabled: step + by < 1 || step + by > state.run.last, "aria-label": by < 0 ? "the step before" : "the next step", onclick: () => go("timeline", { step: step + by }) }, text);
  fill($("filters"), h("label", { for: "step" }, "Step"), to("←", -1),
    h("input", { id: "step", type: "number", min: 1, max: state.run.last, value: step, onchange: (event) => go("timeline", { step: event.target.value }) }), to("→", 1),
    recorded ? h("span", { class: "faint" }, "mappa view has the trace for ui.perfetto.dev") : h("a", { href: "trace.json", download: "trace.json" }, "trace for ui.perfetto.dev"));
  const found = await ask("lanes", { step });
  const seconds = found.ended - found.began;
  if (!found.lanes.length) return h("p", { class: "faint" }, "Nothing is known of when this step was done.");
  return [h("h2", {}, `Step ${step}: ${FORMS.seconds(seconds)}`),
    h("div", { class: "lanes panel" }, found.lanes.map((lane) => h("div", { class: "lane" },
      h("strong", {}, DOES[lane.kind]), h("span", { class: "faint" }, `${FORMS.share(lane.busy)} busy, up to ${Math.ceil(lane.most - 0.05)} at once`), strip(lane, seconds))),
    h("div", { class: "lane faint" }, h("span"), h("span"), h("span", { class: "clock" }, [0, 0.25, 0.5, 0.75, 1].map((part) => h("span", {}, `${Math.round(part * seconds)} s`)))))];
}

// A bar where the lane was at work, as high as the number of those at work there.
const strip = (lane, seconds) => g("svg", { viewBox: `0 0 ${lane.load.length} 24`, preserveAspectRatio: "none", height: 40, role: "img", "aria-label": lane.kind },
  g("line", { class: "axis", x1: 0, x2: lane.load.length, y1: 23.5, y2: 23.5 }),
  lane.load.map((load, place) => (load > 0 ? g("rect", { class: `c${Object.keys(DOES).indexOf(lane.kind) % 6}`, x: place, width: 1.02, y: 23 - 22 * (load / lane.most), height: Math.max(0.7, 22 * (load / lane.most)) },
    g("title", {}, `${(place * seconds / lane.load.length).toFixed(1)} s: ${load.toFixed(1)}`)) : null)));
