// Evidence and counter-evidence: marks in a text by mouse and keyboard, as code points [start, end).

const OTHER = { evidence: "counter_evidence", counter_evidence: "evidence" };
const CLASS = { evidence: "for", counter_evidence: "against" };

export class Marks {
  // `text`: the element, with all its spans in data-spans. `changed`, `announce`: called with nothing, with words.
  constructor(text, changed, announce) {
    Object.assign(this, { text, changed, announce });
    this.spans = JSON.parse(text.dataset.spans);
    this.content = text.textContent;
    this.points = [...this.content];
    this.before = JSON.stringify(this.spans);
    this.words = [];  // chosen with arrows
    for (const match of this.content.matchAll(/\S+/gu)) {
      const start = [...this.content.slice(0, match.index)].length;
      this.words.push([start, start + [...match[0]].length]);
    }
    this.anchor = this.head = -1;
    // On a touch screen the selection is gone when the button is tapped: it counts a moment longer.
    this.recent = null;
    document.addEventListener("selectionchange", () => {
      const span = this.selected();
      if (span) this.recent = { span, until: Infinity };
      else if (this.recent?.until === Infinity) this.recent.until = performance.now() + 1500;
    });
    text.addEventListener("keydown", event => this.key(event));
    this.draw();
  }

  get areChanged() { return JSON.stringify(this.spans) !== this.before; }

  draw() {
    const { evidence, counter_evidence: against } = this.spans;
    const cuts = [...new Set([0, this.points.length, ...evidence.flat(), ...against.flat()])].sort((a, b) => a - b);
    const pieces = cuts.slice(0, -1).map((start, at) => {
      const piece = this.points.slice(start, cuts[at + 1]).join("");
      const kinds = Object.keys(CLASS).filter(kind => this.spans[kind].some(([from, to]) => from <= start && start < to));
      if (!kinds.length) return piece;
      const mark = document.createElement("mark");
      mark.className = kinds.length > 1 ? "both" : CLASS[kinds[0]];
      mark.textContent = piece;
      return mark;
    });
    this.text.replaceChildren(...pieces);
    const words = [evidence.length && `${evidence.length} for`, against.length && `${against.length} against`].filter(Boolean);
    document.getElementById("evidence-count").textContent = words.length ? `Marked: ${words.join(", ")}` : "Nothing marked";
  }

  selected() {  // null where nothing in the text is selected
    const selection = getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    if (!range.intersectsNode(this.text)) return null;
    const offset = (node, at) => {  // in UTF-16 units
      const before = document.createRange();
      before.setStart(this.text, 0);
      before.setEnd(node, at);
      return before.toString().length;
    };
    const inside = node => this.text.contains(node);
    const from = inside(range.startContainer) ? offset(range.startContainer, range.startOffset) : 0;
    const to = inside(range.endContainer) ? offset(range.endContainer, range.endOffset) : this.content.length;
    let start = [...this.content.slice(0, from)].length, end = [...this.content.slice(0, to)].length;
    while (start < end && !this.points[start].trim()) start += 1;
    while (end > start && !this.points[end - 1].trim()) end -= 1;
    return start < end ? [start, end] : null;
  }

  chosen() {
    return this.selected() ?? (this.recent && performance.now() < this.recent.until ? this.recent.span : null);
  }

  select([start, end]) {
    const range = document.createRange();
    const place = wanted => {
      const walker = document.createTreeWalker(this.text, NodeFilter.SHOW_TEXT);
      let left = this.points.slice(0, wanted).join("").length;
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

  mark(kind) {
    const span = this.chosen();
    if (!span) return this.announce("Select words of the text first.");
    const joined = [];
    for (const [start, end] of [...this.spans[kind], span].sort((a, b) => a[0] - b[0])) {
      const last = joined.at(-1);
      if (last && start <= last[1]) last[1] = Math.max(last[1], end);
      else joined.push([start, end]);
    }
    this.spans[kind] = joined;
    this.spans[OTHER[kind]] = without(this.spans[OTHER[kind]], span);
    this.redraw(span, `Marked as ${kind.replace("_", "-")}: ${this.points.slice(...span).join("")}`);
  }

  unmark() {
    const span = this.chosen();
    if (!span) return this.announce("Select a marked passage first.");
    for (const kind of Object.keys(OTHER)) this.spans[kind] = without(this.spans[kind], span);
    this.redraw(span, "Mark removed.");
  }

  redraw(span, words) {
    this.draw();
    this.select(span);
    this.changed();
    this.announce(words);
  }

  moveWord(by, extend) {
    if (!this.words.length) return;
    this.head = this.head < 0 ? 0 : Math.min(this.words.length - 1, Math.max(0, this.head + by));
    if (!extend || this.anchor < 0) this.anchor = this.head;
    const [first, last] = [Math.min(this.anchor, this.head), Math.max(this.anchor, this.head)];
    const span = [this.words[first][0], this.words[last][1]];
    this.select(span);
    this.announce(this.points.slice(...span).join(""));
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const isOff = document.getElementById("mark").disabled;
    if (step) this.moveWord(step, event.shiftKey);
    else if (event.key === "Enter") isOff || this.mark("evidence");
    else if (event.key.toLowerCase() === "c") isOff || this.mark("counter_evidence");
    else if (event.key === "Delete" || event.key === "Backspace") isOff || this.unmark();
    else if (event.key === "Escape") {
      getSelection().removeAllRanges();
      this.anchor = this.head = -1;
      this.text.blur();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function without(spans, [from, to]) {
  return spans.flatMap(([start, end]) =>
    [[start, Math.min(end, from)], [Math.max(start, to), end]].filter(([a, b]) => a < b));
}
