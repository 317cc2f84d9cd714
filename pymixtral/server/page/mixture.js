// The views of a trace: an answer in the colours of its experts, and the panel beside it.

const COLOURS = 8; // classes of style.css; expert 8 has the colour of expert 0 and a dotted line

const percent = (share) => `${Math.round(100 * share)} %`;

const element = (tag, className, text = "") => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
};

const colour = (expert) => `e${expert % COLOURS}${expert >= COLOURS ? " again" : ""}`;

/** An answer as its tokens, each in the colour of its first expert. One stop of the keyboard; arrows go from token to token. */
export class TokenView {
  #spans = [];
  #at = 0;
  #length = 0; // of the text of all tokens
  #rest = document.createTextNode(""); // the newest token has no experts before it is read itself

  /** `tip(span, trace, token)` shows what is known of a token, `tip(null)` hides it. */
  constructor(trace, layer, tip) {
    this.trace = trace;
    this.layer = layer;
    this.tip = tip;
    this.element = element("div", "tokens");
    Object.assign(this.element, {
      role: "listbox",
      tabIndex: 0,
      ariaLabel: "Tokens of the answer and their experts",
      ariaOrientation: "horizontal",
    });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("focus", () => this.#spans.length && this.#go(this.#at));
    this.element.addEventListener("blur", () => this.#leave());
    this.element.addEventListener(
      "pointerover",
      (event) => event.target.dataset?.token && this.#show(Number(event.target.dataset.token)),
    );
    this.element.addEventListener("pointerout", () => this.tip(null));
    this.element.append(this.#rest);
  }

  /** Shows the tokens that were added to the trace, and what `content` has after them. */
  grow(content) {
    const added = document.createDocumentFragment();
    for (let token = this.#spans.length; token < this.trace.length; token++) {
      const [, space, text, end] = /^( *)([\s\S]*?)(\n*)$/.exec(this.trace.texts[token]);
      const span = element("span", "", text + "↵".repeat(end.length) || "␣".repeat(space.length) || "∅");
      span.role = "option";
      span.dataset.token = token;
      this.#spans.push(span);
      this.#length += this.trace.texts[token].length;
      this.#paint(token);
      added.append(text || end ? space : "", span, end); // space between words has no colour
    }
    this.#rest.before(added);
    const unsaid = this.trace.texts[0]?.startsWith(" ") && !content.startsWith(" "); // the space before a text is none of it
    this.#rest.data = content.slice(this.#length - (unsaid ? 1 : 0));
  }

  /** Paints by another layer. */
  at(layer) {
    if (layer === this.layer) return;
    this.layer = layer;
    for (let token = 0; token < this.#spans.length; token++) this.#paint(token);
  }

  #paint(token) {
    const span = this.#spans[token];
    const [{ expert, weight }] = this.trace.chosen(token, this.layer);
    span.className = `token ${colour(expert)}`;
    span.dataset.expert = expert;
    span.style.setProperty("--weight", weight.toFixed(3));
  }

  #key(event) {
    const to = { ArrowRight: this.#at + 1, ArrowLeft: this.#at - 1, Home: 0, End: this.#spans.length - 1 }[event.key];
    if (to === undefined || !this.#spans.length) return;
    event.preventDefault();
    this.#go(Math.min(Math.max(to, 0), this.#spans.length - 1));
  }

  #go(token) {
    this.#leave();
    this.#at = token;
    const span = this.#spans[token];
    span.id = "token-now";
    span.ariaSelected = "true";
    span.ariaLabel = `${this.trace.texts[token]}, ${sentence(this.trace, token, this.layer)}`;
    this.element.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    this.#show(token);
  }

  #leave() {
    const span = this.#spans[this.#at];
    span?.removeAttribute("id");
    span?.removeAttribute("aria-selected");
    span?.removeAttribute("aria-label");
    this.tip(null);
  }

  #show(token) {
    this.tip(this.#spans[token], this.trace, token);
  }
}

/** The experts of a token in a layer, as words. */
const sentence = (trace, token, layer) =>
  `layer ${layer}: ${trace
    .chosen(token, layer)
    .map(({ expert, weight }) => `expert ${expert} ${percent(weight)}`)
    .join(", ")}`;

/** What is known of a token, as an element: its text, its number, and its experts with bars. */
function tokenCard(trace, token, layer) {
  const card = document.createDocumentFragment();
  card.append(
    element("p", "card-text", JSON.stringify(trace.texts[token]).slice(1, -1).replaceAll(" ", "␣") || "no text"),
    element("p", "note", `token ${trace.tokens[token]}, layer ${layer}`),
  );
  for (const { expert, weight } of trace.chosen(token, layer)) card.append(bar("p", expert, weight));
  return card;
}

function bar(tag, expert, share) {
  const row = element(tag, `bar ${colour(expert)}`);
  row.append(element("span", "swatch", expert), element("span", "track"), element("span", "figure", percent(share)));
  row.style.setProperty("--share", share.toFixed(4));
  return row;
}

/** The panel: a slider over layers, a legend with the shares of that layer, the whole trace as a picture, and the heat map. */
export class MixtureView {
  #trace = null;
  #cells = [];
  #frame = 0;
  #tipped = null; // the token that the card is about

  /** `changed(layer)` is called when another layer is chosen. */
  constructor(changed) {
    for (const name of ["note", "body"]) this[name] = document.getElementById(`mixture-${name}`);
    for (const name of ["legend", "heat", "strip"]) this[name] = document.getElementById(name);
    this.slider = document.getElementById("layer");
    this.card = document.getElementById("tip");
    this.changed = changed;
    this.slider.addEventListener("input", () => this.choose(this.layer));
    this.heat.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-layer]");
      if (row) this.choose(Number(row.dataset.layer));
    });
    this.strip.addEventListener("click", (event) => {
      if (this.#trace)
        this.choose(
          Math.min(Math.floor((event.offsetY / this.strip.clientHeight) * this.#trace.layers), this.#trace.layers - 1),
        );
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh());
  }

  get layer() {
    return Number(this.slider.value);
  }

  choose(layer) {
    this.slider.value = layer;
    this.refresh();
    this.changed(this.layer);
  }

  /** Shows a trace; null: says why there is none. */
  show(trace, reason = "") {
    const sizes = trace && `${trace.layers}×${trace.count}`;
    if (trace && sizes !== this.sizes) this.#build(trace);
    this.sizes = sizes;
    this.#trace = trace;
    this.body.hidden = !trace;
    this.note.textContent = trace
      ? `In each of ${trace.layers} layers, a token goes through ${trace.k} of ${trace.count} experts. Here are the ones of an answer.`
      : reason;
    this.refresh();
  }

  /** Shows what is known of a token beside it; null: hides that. */
  tip(span, trace, token) {
    this.#tipped = span;
    this.card.hidden = !span;
    if (!span) return;
    this.card.replaceChildren(tokenCard(trace, token, this.layer));
    this.placeTip();
  }

  /** Moves what is known of a token to where the token is now. */
  placeTip() {
    if (!this.#tipped) return;
    const { left, top, bottom } = this.#tipped.getClientRects()[0];
    const above = top - this.card.offsetHeight - 8;
    const right = innerWidth - this.card.offsetWidth - 8;
    this.card.style.setProperty("left", `${Math.max(8, Math.min(left, right))}px`);
    this.card.style.setProperty("top", `${above > 8 ? above : bottom + 8}px`);
  }

  #build(trace) {
    this.slider.max = trace.layers - 1;
    this.legend.replaceChildren(...Array.from({ length: trace.count }, (_, expert) => bar("li", expert, 0)));
    const head = document.createElement("thead");
    const row = head.insertRow();
    row.append(Object.assign(element("th", "", "Layer"), { scope: "col" }));
    for (let expert = 0; expert < trace.count; expert++) {
      const cell = Object.assign(element("th", colour(expert)), { scope: "col", ariaLabel: `Expert ${expert}` });
      cell.append(element("span", "swatch", expert));
      row.append(cell);
    }
    const body = document.createElement("tbody");
    this.#cells = Array.from({ length: trace.layers }, (_, layer) => {
      const line = body.insertRow();
      line.dataset.layer = layer;
      line.append(Object.assign(element("th", "", layer), { scope: "row" }));
      return Array.from({ length: trace.count }, () => line.insertCell());
    });
    this.heat.replaceChildren(head, body);
  }

  /** Draws what changed, at most once a frame. */
  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#trace && this.body.offsetParent) this.#draw(this.#trace, this.layer);
    });
  }

  #draw(trace, layer) {
    document.getElementById("layer-text").textContent = `${layer} (of 0 to ${trace.layers - 1})`;
    this.slider.ariaValueText = `layer ${layer}`;
    [...this.legend.children].forEach((row, expert) => {
      const share = trace.share(layer, expert);
      row.style.setProperty("--share", share.toFixed(4));
      row.lastChild.textContent = percent(share);
    });
    this.#cells.forEach((row, at) => {
      row[0].parentElement.classList.toggle("now", at === layer);
      row.forEach((cell, expert) => {
        const share = trace.share(at, expert);
        const text = String(Math.round(100 * share));
        if (cell.textContent === text) return;
        cell.textContent = text;
        cell.classList.toggle("strong", share > 0.32);
        cell.style.setProperty("--share", Math.min(share / 0.5, 1).toFixed(3));
      });
    });
    this.#paint(trace, layer);
  }

  /** One column a token, one row a layer, the colour of the first expert; the newest tokens if there is no room for all. */
  #paint(trace, layer) {
    const scale = devicePixelRatio;
    const width = Math.round(this.strip.clientWidth * scale);
    const rowHeight = Math.max(2, Math.min(14, Math.floor(160 / trace.layers))) * scale;
    const height = Math.round(trace.layers * rowHeight);
    Object.assign(this.strip, {
      width,
      height,
      ariaLabel: `The first experts of ${trace.length} tokens in ${trace.layers} layers, as colours`,
    });
    this.strip.style.setProperty("height", `${height / scale}px`);
    const styles = [...this.legend.children].map((row) => getComputedStyle(row).getPropertyValue("--colour"));
    const column = Math.max(2 * scale, Math.min(10 * scale, width / trace.length));
    const begin = Math.max(0, trace.length - Math.floor(width / column));
    const context = this.strip.getContext("2d");
    for (let token = begin; token < trace.length; token++) {
      for (let row = 0; row < trace.layers; row++) {
        context.globalAlpha = row === layer ? 1 : 0.45;
        context.fillStyle = styles[trace.first(token, row)];
        context.fillRect((token - begin) * column, row * rowHeight, column, rowHeight);
      }
    }
  }
}
