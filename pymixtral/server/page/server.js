// What the page asks of the server: its state, the names of its models, and answers as streams.

import { Trace } from "./trace.js";

const KEY = "pymixtral.key";
const SPAN = 20; // ms between the first piece and the last, from which a rate says something: pieces come in bunches
const LONGEST_EVENT = 16 * 1024 * 1024; // characters: more than any event, less than the memory of a phone

/** What the server refused or failed to do, as a sentence. */
export class ServerError extends Error {
  constructor(message, status = 0, code = "") {
    super(message.charAt(0).toUpperCase() + message.slice(1));
    this.status = status;
    this.code = code;
  }
}

/** The key of this tab; sessionStorage may be forbidden, then it lives as long as the page. */
export const key = {
  value: undefined,
  get() {
    if (this.value === undefined) {
      try {
        this.value = sessionStorage.getItem(KEY) ?? "";
      } catch {
        this.value = "";
      }
    }
    return this.value;
  },
  set(value) {
    this.value = value;
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Kept in memory.
    }
  },
};

function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  return fetch(new URL(path, document.baseURI), { cache: "no-store", ...options, headers });
}

async function failure(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  let code = "";
  try {
    const { error, status } = JSON.parse(text);
    message = String(error.message);
    code = String(status ?? error.code); // the state of the server has a word of its own
  } catch {
    message = text.trim().slice(0, 300) || `The server answered with status ${response.status}.`;
  }
  const wait = response.headers.get("retry-after");
  if (response.status === 429 && wait) message += ` (in ${wait} s)`;
  return new ServerError(message, response.status, code);
}

/**
 * The state of the server: { name, text }. Its name is "loading", "draining", "away", "locked" (it wants a key), "busy"
 * (something else is wrong), or "ready": then the text is the name of the model, and `models` has it and then those of
 * its adapters.
 */
async function serverState() {
  try {
    const health = await ask("health");
    if (!health.ok) throw await failure(health);
    const models = await ask("v1/models");
    if (!models.ok) throw await failure(models);
    const names = (await models.json()).data.map(({ id }) => String(id));
    return { name: "ready", text: names[0], models: names };
  } catch (error) {
    if (!(error instanceof ServerError)) return { name: "away", text: "The server does not answer" };
    if (error.status === 401) return { name: "locked", text: "The server wants a key" };
    if (error.code === "loading") return { name: "loading", text: "Loading the model" };
    if (error.code === "draining") return { name: "draining", text: "Shutting down" };
    return { name: "busy", text: error.message };
  }
}

/** Looks at the server again and again, while somebody can see the page: often until it is ready. */
export class Watch {
  #timer = 0;
  #looks = 0;

  /** `changed(state)` is called each time. */
  constructor(changed) {
    this.changed = changed;
    this.model = ""; // its name while the server is ready
    this.models = []; // its name and those of its adapters, as they were last seen
    document.addEventListener("visibilitychange", () => !document.hidden && this.look());
  }

  async look() {
    const look = ++this.#looks;
    const state = await serverState();
    if (look !== this.#looks) return; // a newer look tells more
    const ready = state.name === "ready";
    this.model = ready ? state.text : "";
    this.models = state.models ?? this.models;
    this.changed(state);
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.look(), ready ? 15_000 : 2_000);
  }
}

/** Splits a stream of text into the data of its server-sent events. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Takes more text; returns the data of the events that it completes. */
  feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // a "\r" at the end may be half of "\r\n"
    this.#rest = lines.pop();
    if (this.#rest.length > LONGEST_EVENT) throw new ServerError("An event of the server is too long.");
    const complete = [];
    for (const line of lines) {
      if (line === "" && this.#data.length) {
        complete.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
      } // other lines are comments, such as pings, and fields that this server does not use
    }
    return complete;
  }
}

/**
 * The chunks of a chat completion, as objects.
 *
 * Throws ServerError when the server refuses, breaks off, or sends an error in the middle; the reason of
 * `signal` when that is aborted.
 */
async function* chunks(body, signal) {
  let response;
  try {
    response = await ask("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ServerError("The server does not answer.");
  }
  if (!response.ok) throw await failure(response);
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ServerError("The connection to the server broke off.");
      }
      if (part.done) throw new ServerError("The server ended the stream too early.");
      for (const data of parser.feed(part.value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ServerError(String(chunk.error.message), 500, String(chunk.error.code));
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Asks for a chat completion and adds it to `node` while it comes: content, finish, usage, times, trace.
 *
 * `changed(text, count)` is called after each chunk, with the text that it brought and the tokens so far. What goes
 * wrong is node.error; a trace that cannot be read is given up, and `untraced(reason)` called. Returns the status of
 * a refusal, or 0.
 */
export async function fill(node, body, signal, changed, untraced) {
  const begin = performance.now();
  let first = 0;
  let last = 0;
  let count = 0;
  let status = 0;
  let traced = body.return_routing;
  const rate = () => (last - first >= SPAN && count > 1 ? (1000 * (count - 1)) / (last - first) : 0);
  for (const name of ["error", "finish", "usage"]) delete node[name];
  try {
    for await (const chunk of chunks(body, signal)) {
      if (chunk.usage) {
        const { prompt_tokens: prompt, completion_tokens: completion, prompt_tokens_details: details } = chunk.usage;
        node.usage = { prompt, completion, cached: details?.cached_tokens ?? 0 };
        count = completion;
      }
      const choice = chunk.choices?.[0];
      const piece = choice?.delta?.content ?? "";
      if (piece) {
        last = performance.now();
        first ||= last;
        node.content += piece;
        count += choice.routing ? 0 : 1;
      }
      if (choice?.finish_reason) node.finish = choice.finish_reason;
      if (choice?.routing && traced) {
        try {
          count += choice.routing.tokens.length;
          if (node.trace) node.trace.add(choice.routing);
          else node.trace = Trace.from(choice.routing);
        } catch (error) {
          delete node.trace;
          traced = false;
          untraced(error.message);
        }
      }
      node.times = { first: first && (first - begin) / 1000, rate: rate() };
      changed(piece, count);
    }
  } catch (error) {
    if (signal.aborted)
      node.finish = signal.reason; // "stopped" or "interrupted"
    else {
      node.error = error instanceof ServerError ? error.message : `The answer cannot be read: ${error.message}`;
      status = error.status ?? 0;
    }
  }
  return status;
}
