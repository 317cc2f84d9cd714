// The parts of the page that need no browser: node modules.mjs TRACE, a file of test_browser.py.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const page = "../../../pymixtral/server/page/";

class Storage {
  getItem(name) {
    return Object.hasOwn(this, name) ? this[name] : null;
  }
  setItem(name, value) {
    this[name] = value;
  }
  removeItem(name) {
    delete this[name];
  }
}
globalThis.localStorage = new Storage();

const { EventParser } = await import(`${page}server.js`);
const { Trace } = await import(`${page}trace.js`);
const { Conversations, append, choose, newConversation, path, versions } = await import(`${page}conversations.js`);

/** Numbers below `n` that are the same in every run. */
let state = 1;
function random(n) {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
}

// A stream gives the same events however it is cut, with whatever ends of lines.
for (const end of ["\n", "\r\n", "\r"]) {
  const lines = [
    ": ping",
    "",
    'data: {"a": 1}',
    "",
    "event: x",
    "data: one",
    "data:two",
    "id: 3",
    "",
    "data: ä€😀",
    "",
    "data: [DONE]",
    "",
    "",
  ];
  const text = lines.join(end) + "data: never complete";
  for (let round = 0; round < 500; round++) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < text.length;) {
      const size = 1 + random(round % 7 === 0 ? text.length : 5);
      events.push(...parser.feed(text.slice(at, at + size)));
      at += size;
    }
    assert.deepEqual(events, ['{"a": 1}', "one\ntwo", "ä€😀", "[DONE]"], `${JSON.stringify(end)}, ${round}`);
  }
}
assert.throws(() => new EventParser().feed("x".repeat(17 * 1024 * 1024)), /too long/);

// A trace has NumPy's numbers, piece by piece or at once, and after it was kept.
const { whole, pieces, experts, weights, shares } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const grown = new Trace();
for (const piece of pieces) grown.add(piece);
for (const trace of [Trace.from(whole), grown, Trace.from(JSON.parse(JSON.stringify(grown)))]) {
  assert.equal(trace.length, experts.length);
  experts.forEach((layers, token) =>
    layers.forEach((chosen, layer) => {
      assert.equal(trace.first(token, layer), chosen[0]);
      assert.deepEqual(
        trace.chosen(token, layer),
        chosen.map((expert, i) => ({ expert, weight: weights[token][layer][i] })),
      );
    }),
  );
  shares.forEach((row, layer) =>
    row.forEach((share, expert) => assert.ok(Math.abs(trace.share(layer, expert) - share) < 1e-9)),
  );
}
const wrong = [
  ["n_layers", 0],
  ["n_layers", 2000],
  ["n_layers", whole.n_layers + 1],
  ["n_layers", "2"],
  ["k", 0],
  ["k", 9],
  ["n_experts", 1],
  ["n_experts", 300],
  ["tokens", null],
  ["tokens", [...whole.tokens, 1]],
  ["tokens", whole.tokens.map(String)],
  ["texts", []],
  ["texts", whole.texts.map(() => 1)],
  ["experts", whole.experts.slice(4)],
  ["weights", whole.weights.slice(4)],
  ["experts", btoa("\xff".repeat(atob(whole.experts).length))],
];
for (const [name, value] of wrong)
  assert.throws(() => Trace.from({ ...whole, [name]: value }), RangeError, `${name} ${value}`);
assert.throws(() => Trace.from({ ...whole, experts: "no base64!" }));
assert.throws(() => grown.add({ ...whole, n_experts: whole.n_experts + 1 }), /other sizes/);

// Versions and branches.
const tree = newConversation();
const first = append(tree, null, "user", "a");
const answer = append(tree, first.id, "assistant", "b");
append(tree, answer.id, "user", "c");
const edited = append(tree, null, "user", "d");
assert.deepEqual(
  path(tree).map((node) => node.content),
  ["d"],
);
assert.deepEqual(versions(tree, edited), [first, edited]);
choose(tree, first);
assert.deepEqual(
  path(tree).map((node) => node.content),
  ["a", "b", "c"],
);

// A file that is taken in comes out again; one that was damaged is refused with a sentence, or harmless.
answer.trace = Trace.from(whole);
Object.assign(answer, {
  usage: { prompt: 3, completion: 4, cached: 0 },
  times: { first: 0.5, rate: 9 },
  finish: "stop",
});
tree.title = "A title";
const store = new Conversations(assert.fail);
store.save(tree);
const file = store.exported();
const other = (text) => {
  globalThis.localStorage = new Storage();
  const store = new Conversations(assert.fail);
  store.imported(text);
  return store;
};
assert.deepEqual(JSON.parse(other(file).exported()), JSON.parse(file));
const again = other(file);
again.imported(file); // a second time it is another conversation
assert.equal(again.list().length, 2);

let refused = 0;
const values = [null, -1, 1e300, "", "x", [], {}, [null], { id: 1 }, true, "__proto__", "<img src=x>"];
for (let round = 0; round < 3000; round++) {
  const damaged = JSON.parse(file);
  let place = damaged;
  for (let depth = random(6); ; depth--) {
    const names = Object.keys(place);
    const name = names[random(names.length)];
    if (depth > 0 && typeof place[name] === "object" && place[name] !== null && Object.keys(place[name]).length)
      place = place[name];
    else {
      if (random(4)) place[name] = values[random(values.length)];
      else delete place[name];
      break;
    }
  }
  let taken;
  try {
    taken = other(JSON.stringify(damaged));
  } catch (error) {
    assert.match(error.message, /^The file .*\.$/, error.stack);
    refused += 1;
    continue;
  }
  for (const conversation of taken.list()) {
    assert.ok(
      [conversation.title, conversation.id, ...Object.values(conversation.settings)].every((value) =>
        ["string", "number"].includes(typeof value),
      ),
    );
    for (const node of path(conversation)) {
      assert.equal(typeof node.content, "string");
      assert.ok(node.trace === undefined || node.trace instanceof Trace);
      for (const part of ["usage", "times"])
        for (const value of Object.values(node[part] ?? {})) assert.ok(Number.isFinite(value));
    }
  }
}
assert.ok(refused > 500 && refused < 2900, `${refused}`);
