// Lines over the steps, drawn as SVG.

// Round numbers that enclose [low, high], some four of them.
function ticks(low, high) {
  const least = (high - low) / 4, power = 10 ** Math.floor(Math.log10(least));
  const size = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= least * 0.999) * power;
  const [first, last] = [Math.floor(low / size + 1e-6), Math.ceil(high / size - 1e-6)];
  return { size, marks: Array.from({ length: last - first + 1 }, (_, place) => (first + place) * size) };
}

// What is drawn of `lines`: just `bounds`; or all, at least `least`, from 0 on unless that is `loose`.
function extent(lines, { bounds = null, least = null, loose = false }) {
  if (bounds) return ticks(...bounds);
  const ends = lines.flatMap((line) => line.points).flatMap((p) => [p[1], p[2] ?? p[1], p[3] ?? p[1]]);
  const [low, high] = [Math.min(...ends, ...(least || []), ...(loose ? [] : [0])), Math.max(...ends, ...(least || []))];
  return ticks(low, high > low ? high : low + 1);
}

// One panel, each line with the band of its intervals. `lines`: {label, points: [step, value, low, high][], colour}.
// The legend tells the last values; where the pointer is, those of that step.
function chart(title, lines, form = FORMS.number, how = {}) {
  const [W, H, R, T, B] = [360, 176, 8, 8, 20];
  const { size, marks } = extent(lines, how);
  const [low, high] = [marks[0], marks.at(-1)];
  const L = 14 + 6 * Math.max(...marks.map((mark) => form(mark, size).length));
  const steps = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const [first, last] = [steps[0], steps.at(-1)];
  const x = (step) => L + (last > first ? (step - first) / (last - first) : 0.5) * (W - L - R);
  const y = (value) => T + (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low)) * (H - T - B);
  const rule = g("line", { class: "rule", y1: T, y2: H - B, visibility: "hidden" });
  const values = lines.map((line) => h("b"));
  const foot = h("span", { class: "faint" });
  const tell = (step) => {
    lines.forEach((line, place) => fill(values[place], orDash(line.points.find((p) => p[0] === step), (p) => form(p[1]))));
    fill(foot, `step ${step}`);
    rule.setAttribute("x1", x(step)); rule.setAttribute("x2", x(step));
  };
  const nearest = (event) => {
    const at = (event.offsetX / event.currentTarget.clientWidth) * W;
    return steps.reduce((best, step) => (Math.abs(x(step) - at) < Math.abs(x(best) - at) ? step : best));
  };
  tell(last);
  return h("figure", { class: "panel" },
    h("figcaption", {}, h("strong", {}, title), foot),
    h("p", { class: "legend" }, lines.map((line, place) => h("span", {}, g("svg", { class: "swatch", viewBox: "0 0 16 8" }, g("line", { class: stroke(line), x1: 0, x2: 16, y1: 4, y2: 4 })), line.label, values[place]))),
    g("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title,
      onpointermove: (event) => { rule.setAttribute("visibility", "visible"); tell(nearest(event)); },
      onpointerleave: () => { rule.setAttribute("visibility", "hidden"); tell(last); } },
      marks.map((mark) => [g("line", { class: Math.abs(mark) < size / 9 ? "axis zero" : "axis", x1: L, x2: W - R, y1: y(mark), y2: y(mark) }), g("text", { x: L - 6, y: y(mark) + 3.5, "text-anchor": "end" }, form(mark, size))]),
      feet(steps).map((step) => g("text", { x: x(step), y: H - 4, "text-anchor": step === last && last > first ? "end" : step === first && last > first ? "start" : "middle" }, step === first ? `step ${step}` : step)),
      rule, lines.map((line) => drawn(line, x, y, form))));
}

const stroke = (line) => `curve c${line.colour}${line.dashed ? " dashed" : ""}`;

function drawn(line, x, y, form) {
  const banded = line.points.filter((p) => p[2] !== null && p[2] !== undefined);
  const edge = [...banded.map((p) => `${x(p[0])},${y(p[3])}`), ...banded.toReversed().map((p) => `${x(p[0])},${y(p[2])}`)];
  const dots = line.points.length > 60 ? [] : line.points.map((p) => g("circle", { class: `c${line.colour}`, cx: x(p[0]), cy: y(p[1]), r: 2.2 },
    g("title", {}, `${line.label}, step ${p[0]}: ${form(p[1])}${p[2] === null || p[2] === undefined ? "" : ` [${form(p[2])}, ${form(p[3])}]`}`)));
  return [
    banded.length ? g("polygon", { class: `band c${line.colour}`, points: edge.join(" ") }) : null,
    g("polyline", { class: stroke(line), points: line.points.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }), dots,
  ];
}

// The first step, the last, and some between, far enough apart to be read.
function feet(steps) {
  const every = Math.max(1, Math.ceil(steps.length / 6));
  return steps.filter((step, place) => place === 0 || place === steps.length - 1 || (place % every === 0 && place < steps.length - every));
}
