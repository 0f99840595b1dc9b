// What the page does: keys, marks, decisions. Nothing is saved here; the server answers once it is on disk.

const $ = id => document.getElementById(id);
const form = $("decision"), text = $("text"), status = $("status"), problem = $("problem");
const loaded = performance.now();

function announce(words) {
  status.textContent = "";
  setTimeout(() => { status.textContent = words; }, 50);
}

function showProblem(message) {
  const p = document.createElement("p");
  p.textContent = message;
  problem.replaceChildren(p);
}

async function send(path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", body: body === null ? undefined : JSON.stringify(body), cache: "no-store",
      headers: { ...(body === null ? {} : { "Content-Type": "application/json" }), ...headers },
    });
  } catch {
    throw new Error("The server does not answer, so nothing was saved. Start it again, then repeat; your changes are still here.");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error?.message ?? `The server answered with status ${answer.status}.`);
  return found;
}

let busy = false;
async function act(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  problem.replaceChildren();
  try {
    await work();
  } catch (error) {
    showProblem(error.message);
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function next() {
  location.assign(location.pathname === "/" ? "/" + location.search : "/");
}

// --- evidence: code points [start, end) of the text ---------------------------------------------------------------

let spans = text ? JSON.parse(text.dataset.spans) : [];
const content = text ? text.textContent : "";
const points = [...content];
const before = JSON.stringify(spans);

function draw() {
  const pieces = [];
  let at = 0;
  for (const [start, end] of spans) {
    const mark = document.createElement("mark");
    mark.textContent = points.slice(start, end).join("");
    pieces.push(points.slice(at, start).join(""), mark);
    at = end;
  }
  text.replaceChildren(...pieces.filter(piece => piece !== ""), points.slice(at).join(""));
  const count = spans.length;
  $("evidence-count").textContent = count ? `${count} passage${count > 1 ? "s" : ""} marked` : "No evidence marked";
}

function offset(node, at) {  // in UTF-16 units
  const range = document.createRange();
  range.setStart(text, 0);
  range.setEnd(node, at);
  return range.toString().length;
}

function selected() {  // in code points; null where nothing in the text is selected
  const selection = getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!range.intersectsNode(text)) return null;
  const from = text.contains(range.startContainer) ? offset(range.startContainer, range.startOffset) : 0;
  const to = text.contains(range.endContainer) ? offset(range.endContainer, range.endOffset) : content.length;
  let start = [...content.slice(0, from)].length, end = [...content.slice(0, to)].length;
  while (start < end && !points[start].trim()) start += 1;
  while (end > start && !points[end - 1].trim()) end -= 1;
  return start < end ? [start, end] : null;
}

// On a touch screen the selection is gone when the button is tapped: it counts a moment longer.
let recent = null;
document.addEventListener("selectionchange", () => {
  const span = text && selected();
  if (span) recent = { span, until: Infinity };
  else if (recent?.until === Infinity) recent.until = performance.now() + 1500;
});
const chosen = () => selected() ?? (recent && performance.now() < recent.until ? recent.span : null);

function select([start, end]) {
  const range = document.createRange();
  const place = wanted => {
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    let left = points.slice(0, wanted).join("").length;
    let node = walker.nextNode(), last = node;
    while (node && left > node.data.length) {
      left -= node.data.length;
      last = node;
      node = walker.nextNode();
    }
    return node ? [node, left] : [last, last.data.length];
  };
  range.setStart(...place(start));
  range.setEnd(...place(end));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

function mark() {
  const span = chosen();
  if (!span) return announce("Select words of the text first.");
  const joined = [...spans, span].sort((a, b) => a[0] - b[0]);
  spans = [];
  for (const [start, end] of joined) {
    const last = spans.at(-1);
    if (last && start <= last[1]) last[1] = Math.max(last[1], end);
    else spans.push([start, end]);
  }
  draw();
  select(span);
  changed();
  announce(`Marked: ${points.slice(...span).join("")}`);
}

function unmark() {
  const span = chosen();
  if (!span) return announce("Select a marked passage first.");
  spans = spans.flatMap(([start, end]) =>
    [[start, Math.min(end, span[0])], [Math.max(start, span[1]), end]].filter(([from, to]) => from < to));
  draw();
  select(span);
  changed();
  announce("Mark removed.");
}

// By keyboard: words, chosen with arrows.
const words = [];
if (text) {
  for (const match of content.matchAll(/\S+/gu)) {
    const start = [...content.slice(0, match.index)].length;
    words.push([start, start + [...match[0]].length]);
  }
}
let anchor = -1, head = -1;

function moveWord(by, extend) {
  if (!words.length) return;
  head = head < 0 ? 0 : Math.min(words.length - 1, Math.max(0, head + by));
  if (!extend || anchor < 0) anchor = head;
  const [first, last] = [Math.min(anchor, head), Math.max(anchor, head)];
  select([words[first][0], words[last][1]]);
  announce(points.slice(words[first][0], words[last][1]).join(""));
}

function textKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) moveWord(step, event.shiftKey);
  else if (event.key === "Enter") mark();
  else if (event.key === "Delete" || event.key === "Backspace") unmark();
  else if (event.key === "Escape") { getSelection().removeAllRanges(); anchor = head = -1; text.blur(); }
  else return;
  event.preventDefault();
  event.stopPropagation();
}

// --- the decision -------------------------------------------------------------------------------------------------

const typed = form ? [...form.querySelectorAll(".mend")] : [];
const labelOf = () => (form.elements.label ? new FormData(form).get("label") || null : null);
const labelBefore = form ? labelOf() : null;

function changed() {
  const label = labelOf() !== labelBefore, mended = typed.some(area => area.value !== area.defaultValue);
  const marked = JSON.stringify(spans) !== before;
  $("save-word").textContent = label ? "Save new label" : mended ? "Save mended" : marked ? "Accept with evidence" : "Accept";
  $("label-before")?.toggleAttribute("hidden", !label);
  return label || mended || marked;
}

function answer(rejected) {
  const own = form.dataset.own !== undefined;
  const explanations = typed.map(area => (own || area.value !== area.defaultValue ? area.value : null));
  while (own && explanations.length < Number(form.dataset.explanations)) explanations.push("");
  return {
    row: Number(form.dataset.row), key: form.dataset.key, rejected, label: labelOf(), explanations,
    evidence: own || JSON.stringify(spans) !== before ? spans : null, seconds: (performance.now() - loaded) / 1000,
  };
}

let kept = false;  // the row's decision is on its way or on disk: leaving the page loses nothing
const decide = rejected => act(async () => {
  await saveNote();
  await send("/decide", answer(rejected));
  kept = true;
  next();
});
const skip = () => act(async () => {
  await saveNote();
  await send("/skip", { row: Number(form.dataset.row) });
  kept = true;
  next();
});
const undo = () => act(async () => {
  const { row } = await send("/undo", {});
  kept = true;
  location.assign(`/row/${row}`);
});

const note = $("note");
let noteSaved = note?.value;
async function saveNote() {
  if (!note || note.value === noteSaved) return;
  const value = note.value;
  await send("/note", { row: Number(form.dataset.row), text: value });
  noteSaved = value;
  $("note-hint").textContent = "Note saved.";
}

if (form) {
  draw();
  changed();
  form.addEventListener("submit", event => { event.preventDefault(); decide(false); });
  form.addEventListener("input", changed);
  $("reject").addEventListener("click", () => decide(true));
  $("skip").addEventListener("click", skip);
  $("mark").addEventListener("mousedown", event => event.preventDefault());  // the selection stays
  $("unmark").addEventListener("mousedown", event => event.preventDefault());
  $("mark").addEventListener("click", mark);
  $("unmark").addEventListener("click", unmark);
  text.addEventListener("keydown", textKey);
  note.addEventListener("change", () => saveNote().catch(error => showProblem(error.message)));
  addEventListener("beforeunload", event => { if (!kept && typed.some(a => a.value !== a.defaultValue)) event.preventDefault(); });
}
$("undo")?.addEventListener("click", undo);

// --- dialogs, names, tokens ---------------------------------------------------------------------------------------

$("change-name")?.addEventListener("click", () => $("name-dialog").showModal());
$("help-button")?.addEventListener("click", () => $("help").showModal());
for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const one of document.querySelectorAll(".name-form")) {
  one.addEventListener("submit", event => {
    event.preventDefault();
    act(async () => {
      await send("/reviewer", { name: one.elements.name.value });
      kept = true;
      location.assign("/");
    });
  });
}
$("sign-in")?.addEventListener("submit", event => {
  event.preventDefault();
  act(async () => {
    await send("/login", null, { Authorization: `Bearer ${$("token").value}` });
    location.reload();
  });
});

// --- keys ---------------------------------------------------------------------------------------------------------

const switchBox = $("single-keys");
if (switchBox) {
  switchBox.checked = localStorage.getItem("keys") !== "off";
  switchBox.addEventListener("change", () => localStorage.setItem("keys", switchBox.checked ? "on" : "off"));
}
const usable = id => $(id) && !$(id).disabled;
const keys = {
  a: () => usable("save") && decide(false),
  r: () => usable("reject") && decide(true),
  s: () => usable("skip") && skip(),
  u: () => usable("undo") && undo(),
  e: () => { typed[0]?.focus(); typed[0]?.setSelectionRange(typed[0].value.length, typed[0].value.length); },
  n: () => note?.focus(),
  m: () => { text?.focus(); moveWord(0, false); },
  "?": () => $("help")?.showModal(),
};

addEventListener("keydown", event => {
  const isTyping = event.target.closest("textarea, select, input:not([type=radio]):not([type=checkbox])");
  if (document.querySelector("dialog[open]")) return;
  if (event.target.closest("#decision") && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    keys.a();
    return;
  }
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !switchBox?.checked) return;
  const digit = /^[1-9]$/.test(event.key) ? document.querySelectorAll("#labels input[type=radio]")[event.key - 1] : null;
  if (digit && !digit.matches(":disabled")) {
    digit.checked = true;
    changed();
    announce(`Label: ${digit.closest("label").textContent.trim().replace(/^\d\s*/, "")}`);
  } else if (keys[event.key.toLowerCase()]) keys[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
});
