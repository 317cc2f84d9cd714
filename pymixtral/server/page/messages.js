// A message as the reader sees it: its text, what became of it, and what can be done with it.

import { versions } from "./conversations.js";
import { TokenView } from "./mixture.js";

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(text, action, label) {
  const made = make("button", { type: "button", className: "quiet", textContent: text });
  if (label) made.ariaLabel = label;
  made.addEventListener("click", action);
  return made;
}

/** Tells the reader a sentence, perhaps with something to do about it: { text, run }. */
export function notice(text, action) {
  const [box, words, act] = ["notice", "notice-text", "notice-action"].map((id) => document.getElementById(id));
  box.hidden = !text;
  words.textContent = text;
  act.hidden = !action;
  act.textContent = action?.text ?? "";
  act.onclick = () => {
    notice("");
    action.run();
  };
}

const FENCE = /^ {0,3}```([^`]*)$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*/gs;

function paragraph(text) {
  const made = make("p");
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    const [all, ticks, code, strong] = match;
    made.append(
      text.slice(from, match.index),
      ticks ? make("code", { textContent: code }) : make("strong", { textContent: strong }),
    );
    from = match.index + all.length;
  }
  made.append(text.slice(from));
  return made;
}

/**
 * A small part of Markdown as elements: blocks of code, code in a line, bold. Everything else stays text.
 * A block of code that is not closed goes to the end, so that a text can be shown while it grows.
 */
export function marked(text) {
  const made = document.createDocumentFragment();
  let lines = [];
  let language = null; // of the block of code that is open
  const end = () => {
    const content = lines.join("\n");
    lines = [];
    if (language !== null) {
      const block = make("pre", { tabIndex: 0 }, make("code", { textContent: content })); // it scrolls, by keys too
      if (language) block.dataset.language = language;
      made.append(block);
    } else {
      for (const part of content.split(/\n{2,}/))
        if (part.trim()) made.append(paragraph(part.replace(/^\n+|\n+$/g, "")));
    }
  };
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (fence && (language === null || !fence[1].trim())) {
      end();
      language = language === null ? fence[1].trim() : null;
    } else lines.push(line);
  }
  if (language !== null || lines.length) end();
  return made;
}

/** How an answer ended, as a sentence; nothing if it came to its end. */
export const ENDS = {
  length: "The answer has as many tokens as it may.",
  context: "The context is full.",
  stopped: "Stopped.",
  interrupted: "Interrupted.",
};

const finish = (node) => (node.role === "assistant" ? (node.finish ?? "interrupted") : "");

function figures({ model, usage, times }) {
  const parts = [`${usage.completion} tokens`];
  if (model) parts.unshift(model);
  if (times?.rate) parts.push(`${times.rate.toFixed(1)} tokens/s`);
  if (times?.first) parts.push(`first after ${times.first.toFixed(2)} s`);
  parts.push(`${usage.prompt} tokens read${usage.cached ? `, ${usage.cached} of them from the cache` : ""}`);
  return parts.join(" · ");
}

/**
 * A message. `page` has the conversation, whether tokens are `coloured` and by which `layer`, `writes(node)`, and what
 * the reader may do: turn(node), retry(node), goOn(node), edit(view), copy(text), follow(node), tip(span, trace, token).
 */
export class MessageView {
  tokens = null; // the TokenView, where tokens are coloured

  constructor(node, page) {
    this.node = node;
    this.page = page;
    this.body = make("div", { className: "body" });
    this.foot = make("div", { className: "foot" });
    this.element = make(
      "article",
      { className: `message ${node.role}`, ariaLabel: node.role === "user" ? "You" : "Answer" },
      this.body,
      this.foot,
    );
    for (const event of ["pointerdown", "focusin"])
      this.element.addEventListener(event, () => node.trace && page.follow(node));
    this.draw();
  }

  /** Draws the message as it is now: once a frame while it grows. */
  draw() {
    const { node, page } = this;
    if (page.coloured && node.trace?.length) {
      if (this.tokens?.trace !== node.trace) {
        this.tokens = new TokenView(node.trace, page.layer, page.tip);
        this.body.replaceChildren(this.tokens.element);
      }
      this.tokens.grow(node.content);
    } else {
      this.tokens = null;
      this.body.replaceChildren(node.role === "user" ? make("p", { textContent: node.content }) : marked(node.content));
    }
    const writes = page.writes(node);
    this.element.classList.toggle("writing", writes);
    this.foot.replaceChildren(...(writes ? [] : this.#end()));
  }

  /** A field in the place of the text; `done(text)` gets what was written, or null. */
  edit(done) {
    const { node } = this;
    const field = make("textarea", {
      value: node.content,
      ariaLabel: "Edited text",
      rows: Math.min(12, node.content.split("\n").length + 1),
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" && !sends(event)) return;
      event.preventDefault();
      event.stopPropagation();
      done(event.key === "Escape" ? null : field.value);
    });
    this.tokens = null;
    this.body.replaceChildren(field);
    const actions = [
      button(node.role === "user" ? "Send" : "Keep", () => done(field.value)),
      button("Cancel", () => done(null)),
    ];
    this.foot.replaceChildren(make("div", { className: "actions" }, ...actions));
    field.focus();
  }

  #end() {
    const { node, page } = this;
    const parts = [];
    if (node.error) parts.push(make("p", { className: "error", textContent: node.error }));
    else if (ENDS[finish(node)]) parts.push(make("p", { className: "note", textContent: ENDS[finish(node)] }));
    const actions = make("div", { className: "actions" });
    const all = versions(page.conversation, node);
    if (all.length > 1) {
      const at = all.indexOf(node);
      const step = (to, text, label) =>
        Object.assign(
          button(text, () => page.turn(all[to]), label),
          { disabled: !all[to] },
        );
      actions.append(
        step(at - 1, "‹", "Version before"),
        make("span", { className: "note", textContent: `${at + 1} of ${all.length}` }),
        step(at + 1, "›", "Next version"),
      );
    }
    if (node.role === "assistant") actions.append(button("Retry", () => page.retry(node)));
    if (
      ["length", "stopped", "interrupted"].includes(finish(node)) &&
      node.content &&
      page.conversation.settings.format === "text"
    )
      actions.append(button("Go on", () => page.goOn(node)));
    actions.append(button("Edit", () => page.edit(this)));
    if (navigator.clipboard && node.content) actions.append(button("Copy", () => page.copy(node.content))); // not over http from elsewhere
    parts.push(actions);
    if (node.usage) parts.push(make("p", { className: "note figures", textContent: figures(node) }));
    return parts;
  }
}

/** Whether a key sends what is written: Enter, but not where it ends a composition, such as of Japanese. */
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Says a growing text sentence by sentence in a region that screen readers read. */
export class Speaker {
  #rest = "";

  constructor(region) {
    this.region = region;
  }

  push(text) {
    this.#rest += text;
    const whole = /^[\s\S]*(?:[.!?:;…]["'”’)]*(?=\s)|\n)/.exec(this.#rest)?.[0];
    if (!whole) return;
    this.#say(whole);
    this.#rest = this.#rest.slice(whole.length);
  }

  /** Says what is left, and a last sentence. */
  end(sentence) {
    this.#say(this.#rest);
    this.#say(sentence);
  }

  #say(text) {
    if (!text.trim()) return;
    this.region.append(make("p", { textContent: text.trim() }));
    while (this.region.childElementCount > 20) this.region.firstChild.remove();
  }
}
