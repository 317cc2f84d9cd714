// The page: what is shown of the conversations, and what the reader does.

import { Conversations, append, choose, discard, newConversation, path, versions } from "./conversations.js";
import { ENDS, MessageView, Speaker, button, make, notice, sends } from "./messages.js";
import { MixtureView } from "./mixture.js";
import { onSettings, request, settingsAreRight, showFault, showSettings } from "./settings.js";
import { Watch, fill, key } from "./server.js";

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 52rem)");

// --- State.

const store = new Conversations((text) => notice(text));
const runs = new Map(); // conversation id -> { controller, node }
let current = store.list()[0] ?? newConversation();
let views = new Map(); // node id -> MessageView, of the messages that are shown
let shown = null; // the node whose experts the panel shows
let editing = null; // the node that is being edited

const panel = () => (!$("mixture").hidden ? "mixture" : !$("settings").hidden ? "settings" : "");
const mixture = new MixtureView((layer) => views.forEach((view) => view.tokens?.at(layer)));

// --- Messages.

/** What messages need to know, and what can be done with them. */
const doings = {
  get conversation() {
    return current;
  },
  get coloured() {
    return panel() === "mixture";
  },
  get layer() {
    return mixture.layer;
  },
  writes: (node) => runs.get(current.id)?.node === node,
  copy: (text) => navigator.clipboard.writeText(text).catch(() => notice("The browser does not let this page copy.")),
  goOn: (node) => settingsAreRight() && run(node),
  turn,
  retry,
  edit,
  follow,
  tip: (...token) => mixture.tip(...token),
};

function drawMessages() {
  editing = null;
  views = new Map();
  mixture.tip(null);
  const messages = path(current);
  const elements = messages.map((node) => {
    const view = new MessageView(node, doings);
    views.set(node.id, view);
    return view.element;
  });
  $("log").replaceChildren(...elements);
  $("welcome").hidden = messages.length > 0;
  follow(messages.findLast((node) => node.trace) ?? null);
  toEnd();
}

const toEnd = () => ($("messages").scrollTop = $("messages").scrollHeight);
const atEnd = () => $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;

function drawList() {
  $("list").replaceChildren(
    ...store.list().map((conversation) => {
      const title = conversation.title || "Untitled";
      const open = make("button", { type: "button", className: "open", textContent: title, title });
      open.addEventListener("click", () => select(conversation));
      if (conversation.id === current.id) open.ariaCurrent = "true";
      const running = runs.has(conversation.id);
      if (running) open.append(make("span", { className: "hidden", textContent: " (an answer is being written)" }));
      const away = button("✕", () => remove(conversation), `Delete “${title}”`);
      return make("li", { className: running ? "writing" : "" }, open, away);
    }),
  );
  const title = current.title || "New conversation";
  if (document.activeElement !== $("title")) $("title").value = title;
  document.title = `${title} · pymixtral`;
}

function drawComposer() {
  const running = runs.has(current.id);
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("send").disabled = !server.model;
  $("log").classList.toggle("busy", running);
  if (!running) $("rate").textContent = "";
}

/** Offers the models of the server, where there are several, and the one that the conversation has. */
function drawModels() {
  const chosen = current.settings.model;
  const names = chosen && !server.models.includes(chosen) ? [...server.models, chosen] : server.models;
  $("model").hidden = names.length < 2;
  const options = [...$("model").options].map(({ value }) => value);
  if (JSON.stringify(options) !== JSON.stringify(names)) // else the list may be open
    $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  for (const option of $("model").options)
    option.text = server.models.includes(option.value) ? option.value : `${option.value} (not loaded)`;
  $("model").value = chosen || (names[0] ?? "");
}

function draw() {
  drawModels();
  drawList();
  drawMessages();
  drawComposer();
  showSettings(current.settings);
}

function save(conversation = current) {
  conversation.changed = Date.now();
  store.save(conversation);
  drawList();
}

function select(conversation) {
  current = conversation;
  draw();
  if (narrow.matches) openPanel("");
  $("entry").focus();
}

function remove(conversation) {
  runs.get(conversation.id)?.controller.abort("stopped");
  store.remove(conversation.id);
  if (conversation === current) current = store.list()[0] ?? newConversation(current.settings);
  draw();
  notice(`“${conversation.title || "Untitled"}” is deleted.`, {
    text: "Undo",
    run() {
      store.save(conversation);
      select(conversation);
    },
  });
}

function turn(node) {
  choose(current, node);
  save();
  drawMessages();
  views.get(node.id).foot.querySelector("button:enabled")?.focus();
}

// --- Asking.

function send(text) {
  if (!text.trim() || runs.has(current.id) || !settingsAreRight()) return false;
  const node = append(current, path(current).at(-1)?.id ?? null, "user", text);
  current.title ||= text
    .trim()
    .split("\n")[0]
    .replace(/(?<=^.{60}).+/s, "…");
  answer(node);
  return true;
}

/** Begins an answer to a message of the user. */
function answer(node) {
  const reply = append(current, node.id, "assistant", "");
  save();
  drawMessages();
  run(reply);
}

function retry(node) {
  if (runs.has(current.id) || !settingsAreRight()) return;
  const asked = current.nodes.find((other) => other.id === node.parent);
  if (!asked) return notice("There is no message before this answer: edit it, or write a new one.");
  if (!node.content && !current.nodes.some((other) => other.parent === node.id)) discard(current, node);
  answer(asked);
}

function edit(view) {
  if (runs.has(current.id) || editing) return;
  const { node } = view;
  editing = node;
  view.edit((text) => {
    if (text?.trim() && text !== node.content) {
      if (node.role === "user" && !settingsAreRight()) return;
      const version = append(current, node.parent, node.role, text);
      if (node.role === "user") return answer(version);
      version.finish = "edited";
      save();
      return drawMessages();
    }
    editing = null;
    view.draw();
    view.foot.querySelector("button")?.focus();
  });
}

/** Streams an answer into `node`, after what it has already. */
async function run(node) {
  const conversation = current;
  if (runs.has(conversation.id)) return;
  const body = request(conversation, node, server.model, panel() === "mixture");
  const controller = new AbortController();
  const speaker = new Speaker($("spoken"));
  runs.set(conversation.id, { controller, node });
  if (conversation.settings.model) node.model = conversation.settings.model;
  else delete node.model;
  if (!body.return_routing) delete node.trace; // that of the text so far
  notice("");
  drawList();
  drawComposer();
  views.get(node.id)?.draw();
  if (views.has(node.id)) shown = node;

  let frame = 0;
  let saved = performance.now();
  let tokens = 0;
  const redraw = () => {
    frame = 0;
    if (conversation !== current) return;
    const stay = atEnd();
    views.get(node.id).draw();
    if (shown === node) follow(node);
    if (stay) toEnd();
    $("rate").textContent = `${tokens} tokens${node.times?.rate ? `, ${node.times.rate.toFixed(1)} tokens/s` : ""}`;
  };
  const changed = (text, count) => {
    tokens = count;
    speaker.push(text);
    frame ||= requestAnimationFrame(redraw);
    if (performance.now() - saved < 1000 || !store.get(conversation.id)) return;
    store.save(conversation);
    saved = performance.now();
  };
  const untraced = (reason) => notice(`The experts of this answer cannot be shown: ${reason}.`);
  const status = await fill(node, body, controller.signal, changed, untraced);

  cancelAnimationFrame(frame);
  runs.delete(conversation.id);
  if (store.get(conversation.id)) save(conversation); // else it was deleted meanwhile
  redraw();
  drawComposer();
  speaker.end(node.error ?? `${ENDS[node.finish] ?? "The answer is complete."} ${tokens} tokens.`);
  if (status === 401) needKey();
  if (node.error) server.look();
}

function stop() {
  runs.get(current.id)?.controller.abort("stopped");
}

// --- The mixture.

/** Shows the experts of an answer in the panel. */
function follow(node) {
  shown = node;
  if (panel() !== "mixture") return;
  const several = [...views.values()].filter((view) => view.tokens).length > 1;
  for (const view of views.values()) view.element.classList.toggle("followed", several && view.node === node);
  const reason = path(current).length
    ? "These answers came without their experts. Ask on, or retry one."
    : "Ask something: the experts appear while the answer is written.";
  mixture.show(node?.trace?.length ? node.trace : null, reason);
}

// --- Panels.

function openPanel(name, focus = true) {
  const before = panel();
  document.body.dataset.panel = name;
  for (const which of ["settings", "mixture"]) {
    $(which).hidden = which !== name;
    $(`show-${which}`).ariaExpanded = String(which === name);
  }
  $("menu").ariaExpanded = String(name === "conversations");
  document.querySelector("main").inert = narrow.matches && ["settings", "conversations"].includes(name);
  if ((before === "mixture") !== (name === "mixture")) {
    mixture.tip(null);
    const stay = atEnd();
    const followed = shown;
    views.forEach((view) => view.node !== editing && view.draw());
    follow(followed?.trace ? followed : (path(current).findLast((node) => node.trace) ?? null));
    if (stay) toEnd();
  }
  if (!focus) return;
  if (name && name !== "mixture") $(name).querySelector("button, textarea, input").focus();
  else if (!name && before) $({ settings: "show-settings", mixture: "show-mixture" }[before] ?? "menu").focus();
}

for (const name of ["settings", "mixture"]) {
  $(`show-${name}`).addEventListener("click", () => openPanel(panel() === name ? "" : name));
}
$("menu").addEventListener("click", () => openPanel("conversations"));
for (const close of document.querySelectorAll("[data-close]")) {
  close.addEventListener("click", () => {
    openPanel("");
    if (narrow.matches && close.closest("nav")) $("menu").focus();
  });
}

// --- Settings.

onSettings((name, value) => {
  current.settings[name] = value;
  if (store.get(current.id)) store.save(current);
});

$("model").addEventListener("change", () => {
  const { value } = $("model");
  current.settings.model = value === server.models[0] ? "" : value;
  drawModels();
  if (store.get(current.id)) store.save(current);
});

function needKey() {
  if (panel() !== "settings") openPanel("settings", false);
  $("key").focus();
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  server.look();
});

// --- The server.

const server = new Watch((state) => {
  $("state").dataset.state = state.name;
  $("state-text").textContent = state.text;
  drawModels();
  drawComposer();
});

// --- Keys, and the rest of the page.

$("entry").addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!server.model) return;
  if (send($("entry").value)) $("entry").value = "";
  else if (!settingsAreRight()) {
    openPanel("settings", false);
    showFault();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (runs.has(current.id)) stop();
  else if (!$("tip").hidden) mixture.tip(null);
  else if (document.body.dataset.panel) openPanel("");
});

$("stop").addEventListener("click", () => {
  stop();
  $("entry").focus();
});
$("new").addEventListener("click", () => select(newConversation(current.settings)));
$("notice-close").addEventListener("click", () => notice(""));
$("title").addEventListener("change", () => {
  current.title = $("title").value.trim();
  if (store.get(current.id)) save();
  else drawList();
});
$("examples").addEventListener("click", ({ target }) => {
  if (target.closest("button") && server.model) send(target.textContent);
});
$("messages").addEventListener("scroll", () => mixture.placeTip());

$("export").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([store.exported()], { type: "application/json" }));
  make("a", { href: url, download: `conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
});
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (!file) return;
  notice("");
  try {
    const count = store.imported(await file.text());
    if ($("notice").hidden) notice(`${count} ${count === 1 ? "conversation is" : "conversations are"} taken in.`);
    if (!path(current).length) current = store.list()[0] ?? current;
    draw();
  } catch (error) {
    notice(error.message);
  }
  $("file").value = "";
});

addEventListener("storage", (event) => {
  const id = store.idOf(event.key);
  if (!id || runs.has(id) || (editing && id === current.id)) return;
  store.reread(id);
  if (id === current.id) {
    current = store.get(id) ?? newConversation(current.settings);
    draw();
  } else drawList();
});
addEventListener("pagehide", () => {
  for (const [id, { controller, node }] of runs) {
    node.finish = "interrupted"; // kept at once: nothing that waits runs any more
    if (store.get(id)) store.save(store.get(id));
    controller.abort("interrupted");
  }
});
narrow.addEventListener("change", () => openPanel(panel(), false));

$("key").value = key.get();
openPanel("", false);
draw();
server.look();
$("entry").focus();
