// What is drawn: probability bars, and a text with its evidence marked. Texts go in as text nodes, never as HTML.

import { CONTRADICTS, count, ending, percent, summary, thresholdPercent, verdict } from "./words.js";

const MOST_BARS = 8;

/** `element("p", {className: "hint"}, "text", child)` */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** One bar for each class, the positive class alone if there are two; beyond eight, the rest is folded away. */
export function bars(answer, info) {
  const drawn = shownClasses(answer, info).map((name) => bar(name, answer, info.thresholds ?? {}));
  if (drawn.length <= MOST_BARS || info.label_space === "ordinal") return drawn;
  const rest = drawn.splice(MOST_BARS);
  return [
    ...drawn,
    element("details", {}, element("summary", {}, count(rest.length, "more class", "more classes")), ...rest),
  ];
}

/** Ordinal: from low to high. Else the decided classes, then the others, the most probable first. */
function shownClasses({ label, probabilities }, info) {
  if (info.label_space !== "multilabel" && info.labels.length === 2) return [info.positive_label ?? info.labels[1]];
  if (info.label_space === "ordinal") return info.labels;
  const decided = new Set([label].flat());
  return [...info.labels].sort((a, b) => decided.has(b) - decided.has(a) || probabilities[b] - probabilities[a]);
}

function bar(name, { label, probabilities, interval }, thresholds) {
  const p = probabilities[name];
  const track = element("div", { className: "track" }, placed("fill", 0, p));
  const details = [];
  if (interval?.[name]) {
    const [low, high] = interval[name];
    track.append(placed("whisker", low, high));
    details.push(["whisker-key", `interval ${percent(low)} to ${percent(high)}`]);
  }
  if (thresholds[name] !== undefined) {
    track.append(placed("tick", thresholds[name], thresholds[name]));
    details.push(["tick-key", `threshold ${thresholdPercent(thresholds[name])}`]);
  }
  const meter = { "aria-label": `Probability of ${name}`, "aria-valuemin": 0, "aria-valuemax": 100 };
  const words = [percent(p), ...details.map(([, text]) => text)].join(", ");
  const attributes = { role: "meter", ...meter, "aria-valuenow": (100 * p).toFixed(1), "aria-valuetext": words };
  for (const [key, value] of Object.entries(attributes)) track.setAttribute(key, value);
  const row = element(
    "div",
    { className: "bar" },
    element("span", { className: "class", dir: "auto" }, name),
    track,
    element("span", { className: "percent" }, percent(p)),
  );
  row.classList.toggle("decided", [label].flat().includes(name));
  if (details.length) {
    const keys = details.map(([className, text]) => element("span", { className }, text));
    row.append(element("span", { className: "keys" }, ...keys));
  }
  return row;
}

function placed(className, from, to) {
  const made = element("div", { className });
  made.style.setProperty("--from", `${100 * Math.max(from, 0)}%`);
  made.style.setProperty("--to", `${100 * Math.min(to, 1)}%`);
  return made;
}

/** Nodes of `text` with `spans` marked: `[start, end]` in Unicode code points, where JavaScript counts UTF-16 units. */
export function marked(text, spans) {
  const characters = Array.from(text);
  const nodes = [];
  let at = 0;
  const piece = (start, end) => characters.slice(start, end).join("");
  for (const [start, end] of merged(spans, characters.length)) {
    if (start > at) nodes.push(piece(at, start));
    nodes.push(element("mark", {}, piece(start, end)));
    at = end;
  }
  if (at < characters.length) nodes.push(piece(at, characters.length));
  return nodes;
}

/** Sorted, within the text, without empty or overlapping ones. */
function merged(spans, length) {
  const kept = [];
  for (const [start, end] of [...spans].sort((a, b) => a[0] - b[0])) {
    const span = [Math.max(start, 0), Math.min(end, length)];
    const last = kept.at(-1);
    if (last && span[0] <= last[1]) last[1] = Math.max(last[1], span[1]);
    else if (span[0] < span[1]) kept.push(span);
  }
  return kept;
}

/** One explanation; with several on the page each has a heading and a button that marks its evidence. */
export function article(heading, mark) {
  const made = element(
    "article",
    { className: "explanation" },
    element("p", { className: "notice", hidden: true }, CONTRADICTS),
    element("p", { className: "prose", dir: "auto" }),
    element("p", { className: "hint", hidden: true }),
  );
  if (!heading) return made;
  made.prepend(element("h3", {}, heading));
  const button = element("button", { type: "button", className: "plain" }, "Mark its evidence in the text");
  button.addEventListener("click", mark);
  made.append(button);
  return made;
}

/** Fills an article with what has arrived. */
export function fillArticle(made, entry, explanation) {
  const [warning, prose, hint] = made.querySelectorAll("p");
  warning.hidden = !explanation.answer?.contradicts;
  prose.textContent = explanation.text;
  prose.setAttribute("aria-busy", String(explanation.state === "running"));
  const notes = [explanation.note, ending(explanation), otherDecision(entry, explanation)].filter(Boolean);
  hint.textContent = notes.join(" ");
  hint.hidden = !notes.length;
}

/** Of a model that decides after it has explained. */
function otherDecision(entry, { answer }) {
  if (!answer || String(answer.label) === String(entry.decision.label)) return "";
  return `With this explanation the decision is: ${verdict(answer)}.`;
}

/** A button with the decision and the beginning of the text. */
export function historyItem(entry, current, recall) {
  const beginning = Array.from(entry.text.trim().slice(0, 200).replace(/\s+/g, " ")).slice(0, 80).join("");
  const button = element(
    "button",
    { type: "button", className: "plain" },
    element("strong", { dir: "auto" }, summary(entry.decision)),
    element("span", { dir: "auto" }, beginning),
  );
  if (current) button.setAttribute("aria-current", "true");
  button.addEventListener("click", recall);
  return element("li", {}, button);
}
