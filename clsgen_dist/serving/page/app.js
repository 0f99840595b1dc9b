// The page: a text goes in, the decision and its explanation are drawn as they arrive.
// Everything lives in this module's memory: texts, answers and the token are gone with the tab.

import { AskError, explain, readInfo } from "./stream.js";
import { article, bars, element, fillArticle, historyItem, marked } from "./view.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const EMPTY = "The decision appears here first, then the explanation.";
const ANOTHER_TEMPERATURE = 0.7;

/**
 * An entry is a text with what was answered: `{text, decision, explanations}`.
 * An explanation is `{text, state, answer, decoding, note}`; its state is running, done, stopped or failed, and
 * `answer` the complete answer of the server once it is done.
 */
let entries = []; // Those with a decision, oldest first.
let shown = null; // The entry on the page.
let evidenceOf = null; // The explanation whose evidence is marked.
let running = null; // {entry, explanation, abort} of the request in progress.
let info = null; // Of /v1/info.

const token = () => $("token").value.trim();

// --- asking

async function loadInfo(signal) {
  info ??= await readInfo(token(), signal);
  $("model").textContent = document.title = info.model;
  $("question").textContent = info.question ?? "";
  $("question").hidden = !info.question;
  if (info.auth) $("access").hidden = false;
  drawCount();
}

function submit() {
  if (running) return;
  const text = $("text").value;
  const most = info?.max_characters ?? Infinity;
  const length = characters(text);
  if (!text.trim()) return refuseText("Enter a text first.");
  if (length > most) {
    const over = words.count(length - most, "character");
    return refuseText(`The text is too long by ${over}. Shorten it to ${words.count(most, "character")} at most.`);
  }
  $("text").removeAttribute("aria-invalid");
  ask({ text, decision: null, explanations: [] });
}

function refuseText(sentence) {
  $("text").setAttribute("aria-invalid", "true");
  $("text").focus();
  showProblem(sentence);
}

/** The first explanation is the model's most probable one; each further one is drawn with a seed of its own. */
function decoding(entry) {
  const length = new FormData($("form")).get("length");
  if (!entry.explanations.length) return { length };
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  return { length, temperature: ANOTHER_TEMPERATURE, seed: seed >>> 1 };
}

async function ask(entry, how = decoding(entry)) {
  if (running) return;
  const explanation = { text: "", state: "running", answer: null, decoding: how, note: "" };
  entry.explanations.push(explanation);
  running = { entry, explanation, abort: new AbortController() };
  const { signal } = running.abort;
  showProblem("");
  show(entry);
  bringAnswerIntoView();
  try {
    await loadInfo(signal);
    const body = { text: entry.text, stream: true, decoding: how };
    for await (const event of explain(body, token(), signal)) {
      signal.throwIfAborted();
      take(entry, explanation, event);
    }
  } catch (error) {
    explanation.state = signal.aborted ? "stopped" : "failed";
    if (!explanation.text) entry.explanations.splice(entry.explanations.indexOf(explanation), 1);
    if (!signal.aborted) failed(error, () => again(entry, explanation));
  }
  const stopHadFocus = document.activeElement === $("stop");
  running = null;
  if (entry === shown) show(entry);
  else drawProgress();
  if (stopHadFocus) $("decide").focus();
  announceEnd(entry, explanation);
}

function again(entry, explanation) {
  entry.explanations = entry.explanations.filter((other) => other !== explanation);
  ask(entry, explanation.decoding);
}

function take(entry, explanation, { name, data }) {
  if (name === "decision") {
    decided(entry, data);
  } else if (name === "text") {
    explanation.text += data.text;
    explanation.note = "";
  } else if (name === "redraw") {
    explanation.text = "";
    explanation.note = words.redraw(data.reason);
  } else if (name === "done") {
    Object.assign(explanation, { state: "done", answer: data, text: data.explanation ?? explanation.text });
    decided(entry, data);
    if (entry === shown) evidenceOf = explanation;
  }
  if (entry === shown && name !== "decision") drawProse(entry, explanation);
}

/** The decision that came first stays: a further explanation is one of the same decision. */
function decided(entry, decision) {
  if (entry.decision) return;
  entry.decision = decision;
  entries.push(entry);
  if (entry === shown) {
    show(entry);
    bringAnswerIntoView();
  } else {
    drawHistory();
  }
  announce(`Decision: ${words.summary(decision)}.`);
}

/** On a phone the answer is below the form. */
function bringAnswerIntoView() {
  if ($("answer").getBoundingClientRect().top > 0.6 * innerHeight) $("answer").scrollIntoView();
}

// --- drawing

function show(entry) {
  if (entry !== shown || !evidenceOf) evidenceOf = entry?.explanations.findLast((e) => e.answer) ?? null;
  shown = entry;
  drawProgress();
  drawDecision();
  drawExplanations();
  drawSource();
  drawHistory();
}

function drawProgress() {
  $("stop").hidden = !running;
  $("top").classList.toggle("busy", running !== null);
  $("progress").textContent = running ? words.progress(running.entry, shown) : "";
  for (const id of ["decide", "another", "copy"]) $(id).setAttribute("aria-disabled", String(running !== null));
}

function drawDecision() {
  const decision = shown?.decision;
  $("placeholder").hidden = Boolean(decision);
  $("placeholder").textContent = !shown ? EMPTY : running?.entry === shown ? "" : "No decision on this text.";
  $("decision").hidden = !decision;
  $("hand-over").hidden = !decision?.hand_over;
  $("set").hidden = !decision?.set;
  // What is forgotten leaves nothing behind, not even hidden.
  $("verdict").textContent = decision ? words.verdict(decision, "\n") : "";
  $("bars").replaceChildren(...(decision ? bars(decision, info) : []));
  $("set").textContent = words.notRuledOut(decision?.set);
  const notes = decision ? words.decisionNotes(decision, info) : [];
  $("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
}

function drawExplanations() {
  const explanations = shown?.explanations ?? [];
  $("explanation-section").hidden = !shown?.decision;
  $("explanation-actions").hidden = !shown?.decision;
  const heading = (i) => (explanations.length > 1 ? `Explanation ${i + 1}` : null);
  $("explanations").replaceChildren(...explanations.map((e, i) => article(heading(i), () => markEvidence(e))));
  $("another").textContent = explanations.length ? "Another explanation" : "Explain";
  $("copied").textContent = "";
  explanations.forEach((explanation) => drawProse(shown, explanation));
  drawEvidenceChoice();
}

/** The one part that is drawn again for every piece of text. */
function drawProse(entry, explanation) {
  fillArticle($("explanations").children[entry.explanations.indexOf(explanation)], entry, explanation);
  if (explanation.text) $("explanation-section").hidden = false;
}

function markEvidence(explanation) {
  evidenceOf = explanation;
  drawEvidenceChoice();
  drawSource();
}

function drawEvidenceChoice() {
  const buttons = $("explanations").querySelectorAll("button");
  buttons.forEach((button, i) => {
    button.hidden = !shown.explanations[i].answer?.evidence;
    button.setAttribute("aria-pressed", String(shown.explanations[i] === evidenceOf));
  });
}

function drawSource() {
  $("source-section").hidden = !shown?.decision;
  if (!shown?.decision) return $("source").replaceChildren();
  const evidence = evidenceOf?.answer?.evidence;
  $("source").replaceChildren(...marked(shown.text, evidence ?? []));
  const marks = $("source").querySelectorAll("mark").length;
  $("evidence-count").textContent = evidence ? evidenceWords(marks) : "";
  $("next-passage").hidden = marks < 2 || $("source").scrollHeight <= $("source").clientHeight;
  passage = -1;
  if (marks) nextPassage();
}

function evidenceWords(marks) {
  const which =
    shown.explanations.length > 1 ? `Explanation ${shown.explanations.indexOf(evidenceOf) + 1}` : "The explanation";
  return `${which} names ${marks ? words.count(marks, "passage") : "no passage"} of the text.`;
}

let passage = -1;

/** Scrolls the box, not the page. */
function nextPassage() {
  const marks = $("source").querySelectorAll("mark");
  passage = (passage + 1) % marks.length;
  const top = marks[passage].offsetTop - $("source").clientHeight / 3;
  $("source").scrollTop = Math.max(top, 0);
  marks.forEach((mark, i) => mark.classList.toggle("current", !$("next-passage").hidden && i === passage));
}

function drawHistory() {
  $("history-section").hidden = !entries.length;
  const items = [...entries].reverse().map((entry) => historyItem(entry, entry === shown, () => recall(entry)));
  // The list grows at its beginning, so places are counted from its end.
  const focused = [...$("history").children].findLastIndex((item) => item.contains(document.activeElement));
  const place = focused - $("history").children.length;
  $("history").replaceChildren(...items);
  if (focused >= 0) items.at(place).firstChild.focus();
}

/** Shows an earlier answer; its text takes the place of one that was asked about, not of a draft. */
function recall(entry) {
  const draft = $("text").value;
  if (!draft.trim() || entries.some((other) => other.text === draft)) $("text").value = entry.text;
  drawCount();
  showProblem("");
  show(entry);
  announce(`Shown again: ${words.summary(entry.decision)}.`);
}

function forget() {
  running?.abort.abort();
  [entries, shown, evidenceOf] = [[], null, null];
  $("form").reset();
  showProblem("");
  show(null);
  drawCount();
  $("text").focus();
  announce("All texts and answers are forgotten.");
}

function drawCount() {
  const most = info?.max_characters;
  const length = characters($("text").value);
  $("count").textContent = most
    ? `${length.toLocaleString("en")} of ${words.count(most, "character")}`
    : words.count(length, "character");
}

/** Unicode code points, as the server counts. */
function characters(text) {
  let n = 0;
  for (const _ of text) n += 1;
  return n;
}

// --- telling

function failed(error, retry) {
  const known = error instanceof AskError ? error : Object.assign(error, { kind: "page" });
  const { text, retry: mayRetry } = words.problem(known, info, token() !== "");
  showProblem(text, mayRetry ? retry : null);
  if (known.status === 401) {
    $("access").hidden = false;
    $("token").focus();
  }
}

function showProblem(text, retry = null) {
  const parts = text ? [element("p", {}, text)] : [];
  if (retry) {
    const button = element("button", { type: "button" }, "Try again");
    button.addEventListener("click", () => {
      $("decide").focus(); // The button goes away.
      retry();
    });
    parts.push(button);
  }
  $("problem").replaceChildren(...parts);
  if (text) $("problem").scrollIntoView({ block: "nearest" });
}

function announce(text) {
  $("status").textContent = text;
}

/** The whole explanation at once: read token by token it would be noise. */
function announceEnd(entry, { state, answer, text }) {
  if (entry !== shown || state === "failed") return; // What failed is an alert.
  if (state === "stopped") return announce("Stopped.");
  const warning = answer.contradicts ? words.CONTRADICTS : "";
  announce(["Explanation finished.", warning, text, words.ending({ state, answer })].filter(Boolean).join(" "));
}

async function copy() {
  if (running) return;
  const answers = shown.explanations.map((e) => e.answer).filter(Boolean);
  const value = answers.length > 1 ? answers : (answers[0] ?? shown.decision);
  const json = JSON.stringify(value, null, 2);
  $("copied").textContent = (await toClipboard(json)) ? "Copied." : "The browser does not allow copying.";
  announce($("copied").textContent);
}

/** Whether the browser copied it. */
async function toClipboard(text) {
  if (!navigator.clipboard) return copyBySelection(text); // It needs HTTPS or localhost.
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function copyBySelection(text) {
  const field = element("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  $("copy").focus();
  return copied;
}

// --- controls

function stop() {
  running?.abort.abort();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("text").addEventListener("input", drawCount);
$("stop").addEventListener("click", stop);
$("another").addEventListener("click", () => ask(shown));
$("copy").addEventListener("click", copy);
$("next-passage").addEventListener("click", nextPassage);
$("forget").addEventListener("click", forget);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  }
  if (event.key === "Escape") stop();
});

async function start() {
  try {
    await loadInfo();
  } catch (error) {
    failed(error, start);
  }
}

show(null);
start();
