// Conversations, and where they are kept: local storage, one key each, so that two tabs do not overwrite each other.
//
// A conversation is a tree of messages, because an edited or retried message stands beside the old one:
//   { id, title, created, changed, leaf, settings, nodes: [{ id, parent, role, content, ... }] }
// What is read is the path from the root to `leaf`. A node of the assistant may also have: finish, error,
// model (one that the reader chose), usage {prompt, cached, completion}, times {first, rate}, trace (trace.js).

import { Trace } from "./trace.js";

const PREFIX = "pymixtral.conversation.";
const FORMAT = "pymixtral-conversations";
const LARGEST_FILE = 64 * 1024 * 1024; // characters

export const SETTINGS = Object.freeze({
  model: "", // the server's own; else the name of one of its adapters
  system: "",
  temperature: 0.7,
  top_p: 0.95,
  seed: "",
  max_tokens: "1024",
  format: "text",
  schema: "",
});

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A conversation without messages, with the settings of another. */
export function newConversation(settings = SETTINGS) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, changed: now, leaf: null, settings: { ...settings }, nodes: [] };
}

const find = (conversation, id) => conversation.nodes.find((node) => node.id === id);

/** The messages from the first to the one that `leaf` names. */
export function path(conversation) {
  const found = [];
  for (let node = find(conversation, conversation.leaf); node; node = find(conversation, node.parent))
    found.unshift(node);
  return found;
}

/** Adds a message after `parent` (an id; null: the first) and makes it the last of the path. */
export function append(conversation, parent, role, content) {
  const node = { id: newId(), parent, role, content };
  conversation.nodes.push(node);
  conversation.leaf = node.id;
  return node;
}

/** The messages that stand at the place of `node`: the versions of it. */
export const versions = (conversation, node) => conversation.nodes.filter((other) => other.parent === node.parent);

/** Reads on with `node`, and with the newest of what follows it. */
export function choose(conversation, node) {
  for (let next = node; next; next = conversation.nodes.findLast((other) => other.parent === next.id))
    conversation.leaf = next.id;
}

/** Takes away a message that nothing follows. */
export function discard(conversation, node) {
  conversation.nodes.splice(conversation.nodes.indexOf(node), 1);
  conversation.leaf = node.parent;
}

class ImportError extends Error {}

function text(value, what, most = 8 * 1024 * 1024) {
  if (typeof value !== "string" || value.length > most)
    throw new ImportError(`${what} is no text of a possible length`);
  return value;
}

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0);

/** A conversation that is like ours in every part, out of any JSON value; throws ImportError. */
function checked(value) {
  if (value === null || typeof value !== "object") throw new ImportError("a conversation is no object");
  const settings = { ...SETTINGS };
  for (const name of Object.keys(SETTINGS)) {
    const given = value.settings?.[name];
    if (typeof given === typeof SETTINGS[name]) settings[name] = given;
  }
  const conversation = { ...newConversation(settings), id: text(value.id, "the id of a conversation", 64) };
  if (!/^[0-9a-z-]+$/i.test(conversation.id))
    throw new ImportError("the id of a conversation has other characters than letters and digits");
  conversation.title = text(value.title, "the title of a conversation", 200);
  conversation.created = number(value.created);
  conversation.changed = number(value.changed);
  if (!Array.isArray(value.nodes)) throw new ImportError("a conversation has no list of messages");
  const known = new Set();
  for (const given of value.nodes) {
    if (given === null || typeof given !== "object") throw new ImportError("a message is no object");
    const node = { id: text(given.id, "the id of a message", 64), parent: given.parent ?? null, role: given.role };
    if (!["user", "assistant"].includes(node.role))
      throw new ImportError("a message is neither the user's nor the assistant's");
    if (known.has(node.id)) throw new ImportError("two messages have the same id");
    if (node.parent !== null && !known.has(node.parent))
      throw new ImportError("a message follows one that does not stand before it");
    known.add(node.id);
    node.content = text(given.content, "a message");
    for (const name of ["finish", "error", "model"])
      if (given[name] !== undefined) node[name] = text(given[name], "the end of a message", 10_000);
    for (const name of ["usage", "times"]) {
      if (given[name])
        node[name] = Object.fromEntries(
          Object.entries(given[name])
            .slice(0, 8)
            .map(([part, figure]) => [part, number(figure)]),
        );
    }
    if (given.trace) {
      try {
        node.trace = Trace.from(given.trace);
      } catch {
        throw new ImportError("the experts of a message do not fit its tokens");
      }
    }
    conversation.nodes.push(node);
  }
  conversation.leaf = known.has(value.leaf) ? value.leaf : (conversation.nodes.at(-1)?.id ?? null);
  return conversation;
}

/** All conversations, in memory and in local storage. */
export class Conversations {
  #all = new Map();

  /** `tell` gets a sentence when something cannot be kept. */
  constructor(tell) {
    this.tell = tell;
    for (const name of this.#names()) this.reread(this.idOf(name));
  }

  #names() {
    try {
      return Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
    } catch {
      this.tell("This browser keeps nothing for this page: conversations last until the page is closed.");
      return [];
    }
  }

  /** The id of the conversation that is kept under a key of the storage; null: none is. */
  idOf(name) {
    return name?.startsWith(PREFIX) ? name.slice(PREFIX.length) : null;
  }

  /** Reads a conversation again, because another tab wrote it. */
  reread(id) {
    const stored = localStorage.getItem(PREFIX + id);
    if (stored === null) this.#all.delete(id);
    else {
      try {
        this.#all.set(id, { ...checked(JSON.parse(stored)), id });
      } catch {
        this.tell("A stored conversation cannot be read, and is left alone.");
      }
    }
  }

  get(id) {
    return this.#all.get(id);
  }

  /** The conversations, the last changed first. */
  list() {
    return [...this.#all.values()].sort((a, b) => b.changed - a.changed);
  }

  /** Keeps a conversation. Where storage is full, the experts of the oldest answers are forgotten first. */
  save(conversation) {
    this.#all.set(conversation.id, conversation);
    const write = () => localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    const others = this.list()
      .reverse()
      .filter((other) => other !== conversation);
    for (const candidate of [...others, conversation, null]) {
      try {
        write();
        return;
      } catch (error) {
        if (candidate === null || error.name !== "QuotaExceededError") {
          this.tell(
            "The browser’s storage is full: this conversation lasts until the page is closed. Export it, or delete others.",
          );
          return;
        }
        const traced = candidate.nodes.filter((node) => node.trace);
        for (const node of traced) delete node.trace;
        if (traced.length && candidate !== conversation)
          localStorage.setItem(PREFIX + candidate.id, JSON.stringify(candidate));
      }
    }
  }

  remove(id) {
    this.#all.delete(id);
    try {
      localStorage.removeItem(PREFIX + id);
    } catch {
      // Nothing was kept.
    }
  }

  /** All conversations as the text of a file. */
  exported() {
    return JSON.stringify({ format: FORMAT, version: 1, conversations: this.list() }, null, 1);
  }

  /** Takes the conversations of an exported file; returns how many. Throws an Error with a sentence, and takes none. */
  imported(file) {
    if (file.length > LARGEST_FILE) throw new Error("The file is too large.");
    let value;
    try {
      value = JSON.parse(file);
    } catch {
      throw new Error("The file is not JSON: expected one that this page exported.");
    }
    if (value?.format !== FORMAT || value.version !== 1 || !Array.isArray(value.conversations)) {
      throw new Error("The file holds no conversations: expected one that this page exported.");
    }
    let found;
    try {
      found = value.conversations.map(checked);
    } catch (error) {
      throw new Error(`The file cannot be taken: ${error.message}.`);
    }
    for (const conversation of found) {
      if (this.#all.has(conversation.id)) conversation.id = newId(); // what is here stays as it is
      this.save(conversation);
    }
    return found.length;
  }
}
