// What the page does: keys, marks, decisions. Nothing is saved here; the server answers once it is on disk.

import { Marks } from "./marks.js";

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

// --- the decision -------------------------------------------------------------------------------------------------

const typed = form ? [...form.querySelectorAll(".mend")] : [];
const marks = text && new Marks(text, () => changed(), announce);
const classLines = form ? [...form.querySelectorAll(".class")] : [];  // of a row of several labels
const answerOf = line => line.querySelector("input:checked");
const answersOf = () => Object.fromEntries(classLines.map(line => {
  const value = answerOf(line)?.value;
  return [line.dataset.class, value ? Number(value) : null];
}));
const labelOf = () => (form.elements.label ? new FormData(form).get("label") || null : null);
const classesOf = () => (classLines.length ? JSON.stringify(answersOf()) : labelOf());
const classesBefore = form ? classesOf() : null;

function changed() {
  const label = classesOf() !== classesBefore, mended = typed.some(area => area.value !== area.defaultValue);
  $("save-word").textContent =
    label ? "Save new label" : mended ? "Save mended" : marks.areChanged ? "Accept with evidence" : "Accept";
  $("label-before")?.toggleAttribute("hidden", !label);
  $("rest-no")?.toggleAttribute("hidden", !classLines.some(line => answerOf(line)?.value === ""));
}

function answer(rejected) {
  // Where the page began with a decision, and not with the row, all of it is sent.
  const complete = form.dataset.complete !== undefined;
  const explanations = typed.map(area => (complete || area.value !== area.defaultValue ? area.value : null));
  while (complete && explanations.length < Number(form.dataset.explanations)) explanations.push("");
  return {
    row: Number(form.dataset.row), key: form.dataset.key, rejected, label: labelOf(), explanations,
    answers: classLines.length && (complete || classesOf() !== classesBefore) ? answersOf() : null,
    ...(complete || marks.areChanged ? marks.spans : {}), seconds: (performance.now() - loaded) / 1000,
  };
}

function answerClass(line, value) {
  line.querySelector(`input[value="${value}"]`).checked = true;
}

function restNo() {
  for (const line of classLines) if (answerOf(line)?.value === "") answerClass(line, "0.0");
  changed();
  announce("No to all that were unknown.");
}

// 1 to 9: of several labels, yes and no to one of them in turn.
function chooseLabel(number) {
  if ($("labels").disabled) return;
  if (classLines.length) {
    const line = classLines[number - 1];
    if (!line) return;
    answerClass(line, answerOf(line)?.value === "1.0" ? "0.0" : "1.0");
    announce(`${line.querySelector("bdi").textContent}: ${answerOf(line).parentElement.textContent.trim()}`);
  } else {
    const choice = document.querySelectorAll('#labels input[type=radio]:not([value=""])')[number - 1];
    if (!choice) return;
    choice.checked = true;
    announce(`Label: ${choice.parentElement.querySelector("bdi").textContent}`);
  }
  changed();
}

function keyZero() {
  if ($("labels").disabled) return;
  if (classLines.length) return restNo();
  if (!$("votes")) return;
  $("votes").checked = true;
  changed();
  announce("The votes stay.");
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
  changed();
  form.addEventListener("submit", event => { event.preventDefault(); decide(false); });
  form.addEventListener("input", changed);
  $("reject").addEventListener("click", () => decide(true));
  $("skip").addEventListener("click", skip);
  $("rest-no")?.addEventListener("click", restNo);
  const buttons = {
    "mark": () => marks.mark("evidence"), "mark-against": () => marks.mark("counter_evidence"), "unmark": () => marks.unmark(),
  };
  for (const [id, work] of Object.entries(buttons)) {
    $(id).addEventListener("mousedown", event => event.preventDefault());  // the selection stays
    $(id).addEventListener("click", work);
  }
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
  m: () => { text?.focus(); marks?.moveWord(0, false); },
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
  if (form && /^[1-9]$/.test(event.key)) chooseLabel(Number(event.key));
  else if (form && event.key === "0") keyZero();
  else if (keys[event.key.toLowerCase()]) keys[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
});
