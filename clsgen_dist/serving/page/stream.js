// The server's protocol: what it is, and the answer to a text as a stream of events.
// EventSource cannot POST, so the events are read from the body of a fetch. Addresses are relative to the page,
// so that the server may stand behind a proxy under a path of its own.

/** What went wrong, as a code; words.js has the sentences. */
export class AskError extends Error {
  /** @param {"http" | "event" | "unreachable" | "cut"} kind */
  constructor(kind, { status = 0, message = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, retryAfter });
  }
}

/** GET /v1/info. */
export async function readInfo(token, signal) {
  const response = await request("v1/info", { signal, headers: headers(token) });
  return response.json();
}

/**
 * POST /v1/explain: yields `{name, data}` for each event up to `done`.
 * Throws AskError: an HTTP error, an `error` event, or a connection that ends before `done`.
 */
export async function* explain(body, token, signal) {
  const response = await request("v1/explain", {
    method: "POST",
    headers: { ...headers(token), "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const event of events(response.body, signal)) {
    if (event.name === "error") throw new AskError("event", event.data.error);
    yield event;
    if (event.name === "done") return;
  }
  throw new AskError("cut");
}

function headers(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, { ...options, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new AskError("unreachable");
  }
  if (response.ok) return response;
  // A proxy's error page is not JSON.
  const { error } = await response.json().catch(() => ({}));
  throw new AskError("http", {
    status: response.status,
    message: error?.message,
    retryAfter: seconds(response.headers.get("Retry-After")),
  });
}

/** Retry-After is a number of seconds or a date. */
function seconds(header) {
  if (!header) return null;
  const wait = /^\d+$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - Date.now()) / 1000);
  return Number.isFinite(wait) ? Math.max(wait, 1) : null;
}

/** Server-sent events of a body of bytes; a network failure ends them early. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (buffer + value).split(/\r?\n\r?\n/);
      buffer = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error instanceof TypeError && !signal?.aborted) throw new AskError("cut");
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // Tells the server to stop decoding; a failed stream has nobody to tell.
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null; // A comment keeps the connection open.
}
