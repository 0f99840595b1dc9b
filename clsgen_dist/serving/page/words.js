// Sentences for people, made from the server's codes and numbers.

const SPACE = "\u00a0"; // No line break between a number and its sign.
const number = new Intl.NumberFormat("en");

export const count = (n, one, many = `${one}s`) => `${number.format(n)} ${n === 1 ? one : many}`;

/** A probability. No number that rounds to certainty. */
export function percent(p) {
  if (p < 0.01) return `under 1${SPACE}%`;
  if (p > 0.99) return `over 99${SPACE}%`;
  return `${Math.round(100 * p)}${SPACE}%`;
}

/** A threshold is a setting: exact to a tenth. */
export function thresholdPercent(t) {
  return `${Number((100 * t).toFixed(t < 0.01 ? 3 : 1))}${SPACE}%`;
}

/** The decision: "malignant, 78 %"; multi-label: each class of it. */
export function verdict({ label, probabilities }, separator = "; ") {
  const labels = [label].flat();
  if (!labels.length) return "none of the classes";
  return labels.map((name) => `${name}, ${percent(probabilities[name])}`).join(separator);
}

/** The decision in one line, with the advice to ask a person. */
export const summary = (decision) => `${verdict(decision)}${decision.hand_over ? " (ask a person)" : ""}`;

/** The conformal set; empty if the model has none. */
export function notRuledOut(set) {
  if (!set) return "";
  if (Array.isArray(set)) {
    return set.length
      ? `Not ruled out: ${set.join(", ")}.`
      : "Every class is ruled out: the text is unlike those the model was checked on.";
  }
  const may = set.may_apply;
  const doubt = may.filter((name) => set.need_not_apply.includes(name));
  const sentences = [`Not ruled out: ${may.join(", ") || "none of the classes"}.`];
  if (doubt.length) sentences.push(`In doubt: ${doubt.join(", ")}.`);
  return sentences.join(" ");
}

/** What to know about a decision besides its numbers. */
export function decisionNotes(decision, info) {
  const notes = [];
  if (decision.truncated) notes.push("The text is longer than the model can read: its middle was left out.");
  if (info.label_space === "ordinal") notes.push("Classes are in order, from low to high.");
  if (info.calibrated === false)
    notes.push("Probabilities of this model are not calibrated: do not take them at face value.");
  return notes;
}

/** What the server is doing. */
export function progress(asked, shown) {
  if (asked !== shown) return "Another text is being answered …";
  return asked.decision ? "Writing the explanation …" : "Reading the text …";
}

const REDRAWS = { contradicts: "The first attempt stated another class than the decision. Writing another …" };
export const redraw = (reason) => REDRAWS[reason] ?? "Writing the explanation again …";

export const CONTRADICTS = "The explanation states another class than the decision. Do not rely on it.";

/** How an explanation ended, if not as it should have. */
export function ending({ state, answer }) {
  if (state === "stopped") return "Stopped before the end.";
  if (state === "failed") return "Incomplete: the answer broke off here.";
  if (answer?.explanation_cut) return "Cut off: the explanation reached its greatest length.";
  return "";
}

const KEPT = "Your text is kept.";
const sentence = (message) =>
  message ? `${message[0].toUpperCase()}${message.slice(1)}`.replace(/[^.!?]$/, "$&.") : "";
const lines = (...parts) => parts.filter(Boolean).join(" ");

/** What went wrong and what to do: `{text, retry}`; `retry` if the same request may work. */
export function problem(error, info, hasToken) {
  if (error.kind === "http") return httpProblem(error, info, hasToken);
  const text = {
    unreachable: "The server cannot be reached. Your text is kept: check the connection, then try again.",
    cut: "The connection was lost before the answer was complete. Your text is kept: try again.",
    event: lines("The server could not finish the answer.", sentence(error.message), "Your text is kept: try again."),
  }[error.kind];
  return { text: text ?? `The page failed: ${sentence(error.message)} Reload it.`, retry: text !== undefined };
}

function httpProblem({ status, message, retryAfter }, info, hasToken) {
  const said = sentence(message);
  const wait = retryAfter === null ? "in a moment" : `in ${count(retryAfter, "second")}`;
  switch (status) {
    case 401:
      return {
        text: hasToken
          ? "The server did not accept the access token. Your text is kept: check the token, then ask again."
          : "The server needs an access token. Your text is kept: enter the token, then ask again.",
        retry: false,
      };
    case 413: {
      const most = info?.max_characters ? ` to ${count(info.max_characters, "character")} at most` : "";
      return {
        text: lines("The text is too long for this server.", said, `${KEPT} Shorten it${most}, then ask again.`),
        retry: false,
      };
    }
    case 400:
    case 422:
      return {
        text: lines("The server did not accept the request.", said, `${KEPT} Change it, then ask again.`),
        retry: false,
      };
    case 429:
      return {
        text: lines("The server is busy with other requests.", `Your text is kept: try again ${wait}.`),
        retry: true,
      };
    case 503:
      return { text: lines("The server is not ready.", said, `Your text is kept: try again ${wait}.`), retry: true };
    default:
      return {
        text: lines(
          `The server failed with status ${status}.`,
          said,
          `${KEPT} Try again; if it fails again, tell whoever runs the server.`,
        ),
        retry: true,
      };
  }
}
