// What a reader does with the page, in Chromium, on a server that runs: node browser.mjs SCENARIO URL [KEY or PID].
//
// test_browser.py starts it. PYMIXTRAL_BROWSER is the folder where playwright-core and axe-core are installed.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.env.PYMIXTRAL_BROWSER}/`)("playwright-core");
const [scenario, url, extra] = process.argv.slice(2);
const LIMIT = Number(process.env.LIMIT ?? 120_000); // ms for anything that is waited for: a machine may be busy
const ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><svg onload=window.hacked=1>';

const ENDLESS = JSON.stringify({ type: "array", items: { type: "string", minLength: 40 }, minItems: 1000 });

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

const readers = [];

/** The page in a browser of its own, and the faults that happen in it: none may be left in the end. */
async function open({ prepare, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(LIMIT);
  const page = await context.newPage();
  const faults = [];
  readers.push({ page, faults });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on(
    "console",
    (message) => message.type() === "error" && faults.push(`${message.text()} ${message.location().url}`),
  );
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url()))
      faults.push(`asked for ${request.url()}`);
  });
  await page.exposeFunction("violated", (what) => faults.push(`content policy: ${what}`));
  await page.addInitScript(() =>
    document.addEventListener("securitypolicyviolation", (event) =>
      window.violated(`${event.violatedDirective} ${event.sample}`),
    ),
  );
  if (prepare) await page.addInitScript(prepare);
  await page.goto(url);
  return { page, faults };
}

/** Lets what the server sends come slowly, as from a larger model. */
async function slowly(page, bytesPerSecond) {
  const session = await page.context().newCDPSession(page);
  const conditions = { offline: false, latency: 0, downloadThroughput: bytesPerSecond, uploadThroughput: -1 };
  await session.send("Network.emulateNetworkConditions", conditions);
}

const ready = (page) => page.waitForSelector("#send:enabled");
const last = (page) => page.locator(".message.assistant").last();
const written = (page) =>
  page.waitForFunction(
    () => document.querySelector(".message.assistant:last-child .actions") && !document.querySelector(".writing"),
  );
const answer = (page) => last(page).locator(".body").innerText();

/** Sets fields of the settings, by their names. With a seed, an answer is the same on every machine. */
async function set(page, settings) {
  if (!(await page.isVisible("#settings"))) await page.click("#show-settings");
  for (const [name, value] of Object.entries({ seed: 1, ...settings })) {
    if (name === "format") await page.selectOption("#format", value);
    else await page.fill(`#${name}`, String(value));
  }
  await page.click("#settings [data-close]");
}

async function ask(page, text) {
  await ready(page);
  await page.fill("#entry", text);
  await page.press("#entry", "Enter");
  await page.waitForSelector(".message.assistant");
}

async function asked(page, text) {
  await ask(page, text);
  await written(page);
}

/** Has axe look for what readers with other eyes and hands would miss. */
async function accessible(page, what) {
  if (!(await page.evaluate(() => "axe" in window))) {
    const path = createRequire(`${process.env.PYMIXTRAL_BROWSER}/`).resolve("axe-core/axe.min.js");
    await page.evaluate(readFileSync(path, "utf8"));
  }
  const { violations } = await page.evaluate(() =>
    window.axe.run(document, { rules: { "page-has-heading-one": { enabled: true } } }),
  );
  assert.deepEqual(
    violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html.slice(0, 200))]),
    [],
    what,
  );
}

const scenarios = {
  async stream() {
    const { page } = await open();
    await ready(page);
    await set(page, { max_tokens: 120 });
    await slowly(page, 20_000);
    await page.fill("#entry", "Tell me");
    await page.press("#entry", "Shift+Enter");
    await page.type("#entry", "a long tale.");
    assert.equal(await page.inputValue("#entry"), "Tell me\na long tale.");
    await page.evaluate(() => {
      window.lengths = new Set();
      new MutationObserver(() =>
        window.lengths.add(document.querySelector(".message.assistant .body")?.textContent.length),
      ).observe(document.getElementById("log"), { childList: true, subtree: true });
    });
    await page.press("#entry", "Enter");
    await page.waitForSelector("#stop:visible");
    await written(page);
    assert.ok((await page.evaluate(() => window.lengths.size)) > 3, "the text did not grow");
    assert.equal(await page.inputValue("#entry"), "");
    assert.ok(await page.isHidden("#stop"));
    assert.match(
      await last(page).locator(".figures").innerText(),
      /^\d+ tokens · [\d.]+ tokens\/s · first after [\d.]+ s · \d+ tokens read/,
    );
    assert.ok((await answer(page)).length > 20);

    // Screen readers get whole sentences, and in the end what became of the answer.
    const spoken = await page.locator("#spoken p").allInnerTexts();
    assert.equal(spoken.slice(0, -1).join(" ").replace(/\s+/g, ""), (await answer(page)).replace(/\s+/g, ""));
    for (const sentence of spoken.slice(0, -2)) assert.match(sentence, /[.!?:;…]["'”’)]*$/);
    assert.match(spoken.at(-1), /\d+ tokens\.$/);
  },

  async reload() {
    const { page } = await open();
    await ready(page);
    await set(page, { max_tokens: 30, system: "Answer like a fox." });
    await asked(page, "Who are you?");
    const before = await page.locator(".message .body").allInnerTexts();
    await page.reload();
    await ready(page);
    assert.deepEqual(await page.locator(".message .body").allInnerTexts(), before);
    assert.equal(await page.inputValue("#system"), "Answer like a fox.");

    // In the middle of an answer, too.
    await slowly(page, 5_000);
    await set(page, { max_tokens: 1000, format: "json_schema", schema: ENDLESS });
    await ask(page, "And then?");
    await page.waitForFunction(
      () => document.querySelector(".message.assistant:last-child .body").textContent.length > 20,
    );
    await page.reload();
    await ready(page);
    assert.match(await last(page).innerText(), /Interrupted/);
    assert.ok((await answer(page)).length > 10);
  },

  async stop() {
    const { page } = await open();
    await ready(page);
    await slowly(page, 5_000);
    await set(page, { max_tokens: 1500, seed: 5 });
    await ask(page, "Tell me everything.");
    await page.waitForFunction(() => document.querySelector(".message.assistant .body").textContent.length > 20);
    await page.keyboard.press("Escape");
    await written(page);
    assert.match(await last(page).innerText(), /Stopped\./);
    const before = await answer(page);

    await set(page, { max_tokens: 10 });
    await last(page).getByRole("button", { name: "Go on" }).click();
    await written(page);
    const after = await answer(page);
    assert.ok(after.startsWith(before.trimEnd()) && after.length > before.length, `${before} | ${after}`);
  },

  async versions() {
    const { page } = await open();
    await ready(page);
    await set(page, { max_tokens: 12, temperature: 1.5, seed: "" });
    await asked(page, "First question");
    const first = await answer(page);
    await last(page).getByRole("button", { name: "Retry" }).click();
    await page.waitForSelector("text=2 of 2");
    const second = await answer(page);
    await last(page).getByRole("button", { name: "Version before" }).click();
    assert.equal(await answer(page), first);
    await last(page).getByRole("button", { name: "Next version" }).click();
    assert.equal(await answer(page), second);

    // An edited question begins a branch; the old one is still there.
    await asked(page, "Second question");
    await page.locator(".message.user").first().getByRole("button", { name: "Edit" }).click();
    await page.locator(".message textarea").fill("Another question");
    await page.locator(".message textarea").press("Enter");
    await page.waitForFunction(() => document.querySelectorAll(".message").length === 2);
    await written(page);
    assert.equal(await page.locator(".message.user .body").innerText(), "Another question");
    await page.locator(".message.user").getByRole("button", { name: "Version before" }).click();
    assert.deepEqual(await page.locator(".message.user .body").allInnerTexts(), ["First question", "Second question"]);
    assert.equal(await page.locator(".message.assistant .body").first().innerText(), second);

    // An edited answer is kept as it was written.
    await last(page).getByRole("button", { name: "Edit" }).click();
    await page.locator(".message textarea").fill("**Mine**");
    await page.getByRole("button", { name: "Keep" }).click();
    assert.equal(await last(page).locator("strong").innerText(), "Mine");
    await page.reload();
    assert.equal(await last(page).locator("strong").innerText(), "Mine");
  },

  async attacks() {
    const { page, faults } = await open();
    await ready(page);

    // The policy is what the tests below trust: text cannot become markup.
    assert.match(
      await page.evaluate(() => {
        try {
          document.body.insertAdjacentHTML("beforeend", "<b>x</b>");
          return "";
        } catch (error) {
          return error.name;
        }
      }),
      /TypeError/,
    );
    await page.waitForFunction(() => true);
    assert.ok(
      faults.splice(0).some((fault) => fault.includes("trusted-types") || fault.includes("TrustedHTML")),
      "a violation was not told",
    );

    // The model writes it, because the schema leaves nothing else to it.
    await set(page, {
      max_tokens: 200,
      format: "json_schema",
      schema: JSON.stringify({ const: ATTACK }),
      system: ATTACK,
    });
    await asked(page, ATTACK);
    assert.equal(JSON.parse(await answer(page)), ATTACK);
    await page.click("#show-mixture");
    await last(page).getByRole("button", { name: "Retry" }).click();
    await written(page);
    assert.equal(await page.locator("#list .open").innerText(), `${ATTACK.slice(0, 60)}…`);
    await page.waitForSelector(".token");
    await page.fill("#title", ATTACK);
    await page.press("#title", "Enter");
    assert.equal(await page.title(), `${ATTACK.slice(0, 200)} · pymixtral`);

    // A file brings it in every text that a file can have.
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const file = JSON.parse(readFileSync(await download.path(), "utf8"));
    const [conversation] = file.conversations;
    conversation.settings.system = conversation.settings.schema = conversation.title = ATTACK;
    for (const node of conversation.nodes) {
      Object.assign(node, {
        content: `${ATTACK}\n\`\`\`${ATTACK}\n${ATTACK}\n\`\`\`\n**${ATTACK}**`,
        error: ATTACK,
        finish: ATTACK,
      });
      if (node.trace) node.trace.texts = node.trace.texts.map(() => ATTACK);
    }
    await page.setInputFiles("#file", {
      name: "attack.json",
      mimeType: "application/json",
      buffer: Buffer.from(JSON.stringify(file)),
    });
    await page.waitForFunction(() => document.querySelectorAll("#list li").length === 2);
    for (const item of await page.locator("#list .open").all()) {
      await item.click();
      await page.locator(".token").first().hover();
      await page.waitForSelector("#tip:visible");
    }
    await page.locator("#mixture [data-close]").click();
    await page.reload();
    await ready(page);
    assert.equal(
      await page.locator("main img, main script, main svg, nav script, nav svg, aside img, #tip img").count(),
      0,
    );
    assert.equal(await page.evaluate(() => window.hacked), undefined);
  },

  async key() {
    const { page, faults } = await open();
    await page.waitForSelector('#state[data-state="locked"]');
    assert.ok(await page.isDisabled("#send"));
    await page.click("#show-settings");
    await page.fill("#key", "wrong");
    await page.press("#key", "Enter");
    await page.waitForSelector('#state[data-state="locked"]');
    await page.fill("#key", extra);
    await page.press("#key", "Enter");
    await set(page, { max_tokens: 10 });
    await asked(page, "Hello");
    assert.ok((await answer(page)).length > 0);
    assert.ok(
      !(await page.evaluate(() => JSON.stringify(localStorage))).includes(extra),
      "the key is in local storage",
    );
    await page.reload();
    await ready(page); // this tab still has it

    // A key that is refused later is told where the answer would be.
    await page.click("#show-settings");
    await page.evaluate(() => sessionStorage.clear());
    await page.evaluate(() => {
      document.getElementById("key").value = "";
    });
    await page.route("**/v1/chat/completions", (route) =>
      route.continue({ headers: { ...route.request().headers(), authorization: "Bearer wrong" } }),
    );
    await ask(page, "Hello again");
    await page.waitForSelector(".message.assistant .error");
    assert.ok(await page.evaluate(() => document.activeElement.id === "key"));
    assert.ok(faults.splice(0).every((fault) => fault.includes("401"))); // Chromium logs refusals
  },

  async mixture() {
    const { page } = await open();
    await ready(page);
    await slowly(page, 20_000);
    await set(page, { max_tokens: 60, seed: 3 });
    await page.click("#show-mixture");
    await page.evaluate(() => {
      window.columns = new Set();
      new MutationObserver(() => window.columns.add(document.querySelectorAll(".token").length)).observe(
        document.getElementById("log"),
        { childList: true, subtree: true },
      );
    });
    await asked(page, "Who lives in the forest?");
    assert.ok((await page.evaluate(() => window.columns.size)) > 3, "the tokens did not come one after the other");
    const text = (
      await page
        .locator(".tokens")
        .evaluate((element) => [...element.childNodes].map((node) => node.textContent).join(""))
    ).replace(/[↵∅]/g, "");
    const count = await page.locator(".token").count();
    const told = Number(/^\d+/.exec(await last(page).locator(".figures").innerText())[0]);
    assert.ok(count > 20 && Math.abs(count - told) <= 1, `${count} tokens are shown, ${told} were told`);

    // Each token has the number and the colour of its first expert.
    const layers = await page.locator("#heat tbody tr").count();
    assert.equal(Number(await page.getAttribute("#layer", "max")), layers - 1);
    const look = () =>
      page
        .locator(".token")
        .evaluateAll((tokens) =>
          tokens.map((token) => ({ expert: token.dataset.expert, colour: getComputedStyle(token).borderBottomColor })),
        );
    const seen = await look();
    const colours = new Map(seen.map(({ expert, colour }) => [expert, colour]));
    assert.ok(colours.size > 1 && new Set(colours.values()).size === colours.size);
    assert.ok(seen.every(({ expert, colour }) => colours.get(expert) === colour));

    // The slider shows another layer.
    await page.focus("#layer");
    await page.press("#layer", "ArrowRight");
    await page.waitForSelector("#heat tr.now[data-layer='1']");
    assert.notDeepEqual(
      (await look()).map(({ expert }) => expert),
      seen.map(({ expert }) => expert),
    );
    assert.match(await page.innerText("#layer-text"), /^1 /);
    await page.locator("#heat tbody tr").first().click();
    await page.waitForSelector("#heat tr.now[data-layer='0']");
    assert.deepEqual(await look(), seen);

    // Shares of a layer are its whole, in the legend and in the heat map.
    const sum = (texts) => texts.reduce((all, share) => all + parseInt(share, 10), 0);
    assert.ok(Math.abs(sum(await page.locator("#legend .figure").allInnerTexts()) - 100) <= 4);
    for (const row of await page.locator("#heat tbody tr").all())
      assert.ok(Math.abs(sum(await row.locator("td").allInnerTexts()) - 100) <= 4);
    const painted = await page.evaluate(() => {
      const canvas = document.getElementById("strip");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    });
    assert.ok(painted > 2, "the picture is empty");

    // The weights of a token, by the mouse and by keys.
    await page.locator(".token").nth(5).hover();
    await page.waitForSelector("#tip:visible");
    const card = await page.innerText("#tip");
    assert.ok(
      card.includes("layer 0") && Math.abs(sum(await page.locator("#tip .figure").allInnerTexts()) - 100) <= 1,
      card,
    );
    await page.mouse.move(2, 2);
    await page.waitForSelector("#tip", { state: "hidden" });
    await page.focus(".tokens");
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    assert.match(await page.getAttribute("#token-now", "aria-label"), /layer 0: expert \d+ \d+ %, expert \d+ \d+ %$/);
    assert.equal(await page.getAttribute(".tokens", "aria-activedescendant"), "token-now");
    assert.ok(await page.isVisible("#tip"));

    // It is kept, and plain text comes back when the panel is closed.
    await page.reload();
    await page.click("#show-mixture");
    assert.deepEqual(await look(), seen);
    await page.click("#mixture [data-close]");
    assert.equal(await page.locator(".token").count(), 0);
    assert.equal((await answer(page)).replace(/\s+/g, ""), text.replace(/\s+/g, ""));

    // It is asked for only while the panel is open.
    await last(page).getByRole("button", { name: "Retry" }).click();
    await page.waitForSelector("text=2 of 2");
    await page.click("#show-mixture");
    assert.equal(await page.locator(".token").count(), 0);
    assert.match(await page.innerText("#mixture-note"), /without their experts/);
    await last(page).getByRole("button", { name: "Version before" }).click();
    assert.deepEqual(await look(), seen);
  },

  async narrow() {
    const { page } = await open({ viewport: { width: 360, height: 640 }, isMobile: true, hasTouch: true });
    await ready(page);
    const fits = async (what) => {
      const { inner, wide } = await page.evaluate(() => ({
        inner: document.documentElement.clientWidth,
        wide: [...document.querySelectorAll("html, body, main, #messages, aside, nav")]
          .filter((element) => element.scrollWidth > element.clientWidth + 1)
          .map((element) => element.id || element.tagName),
      }));
      assert.equal(inner, 360, what);
      assert.deepEqual(wide, [], what);
    };
    await fits("welcome");
    await set(page, { max_tokens: 40 });
    await asked(page, `${"Donaudampfschifffahrtsgesellschaft".repeat(4)}\n\`\`\`\n${"x = 1; ".repeat(40)}\n\`\`\``);
    await fits("conversation");
    await last(page).getByRole("button", { name: "Edit" }).click();
    await page.locator(".message textarea").fill(`\`\`\`python\n${"x = 1; ".repeat(40)}\n\`\`\`\n${"a".repeat(200)}`);
    await page.getByRole("button", { name: "Keep" }).click();
    await fits("code");
    await page.tap("#show-mixture");
    await asked(page, "More");
    await page.waitForSelector(".token");
    await fits("mixture");
    assert.ok(await page.isVisible("#entry"));
    await page.tap("#show-settings");
    await page.selectOption("#format", "json_schema");
    await fits("settings");
    await page.tap("#settings [data-close]");
    await page.tap("#menu");
    await fits("conversations");
    await page.tap("#new");
    await fits("a new conversation");
    assert.ok(await page.isVisible("#entry"));
  },

  async dark() {
    const looks = {};
    for (const colorScheme of ["light", "dark"]) {
      const { page } = await open({ colorScheme });
      await ready(page);
      await set(page, { max_tokens: 10 });
      await asked(page, "Hello");
      looks[colorScheme] = await page.evaluate(() => {
        const luminance = (colour) => {
          const [r, g, b] = colour
            .match(/[\d.]+/g)
            .map(Number)
            .map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        const paper = luminance(style("body").backgroundColor);
        return {
          paper,
          contrasts: ["body", ".note", ".quiet", "#keys"].map((selector) => {
            const ink = luminance(style(selector).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
          }),
        };
      });
    }
    assert.ok(looks.light.paper > 0.8 && looks.dark.paper < 0.05);
    for (const { contrasts } of Object.values(looks))
      for (const contrast of contrasts) assert.ok(contrast >= 4.5, `contrast ${contrast}`);
  },

  async settings() {
    const { page, faults } = await open();
    await ready(page);
    const bodies = [];
    page.on("request", (request) => request.method() === "POST" && bodies.push(request.postDataJSON()));
    await set(page, { system: "Be brief.", temperature: 0.3, top_p: 0.9, seed: 7, max_tokens: 15 });
    await asked(page, "Hello");
    assert.deepEqual(bodies[0].messages, [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hello" },
    ]);
    const { temperature, top_p, seed, max_tokens } = bodies[0];
    assert.deepEqual([temperature, top_p, seed, max_tokens], [0.3, 0.9, 7, 15]);
    const first = await answer(page);
    await last(page).getByRole("button", { name: "Retry" }).click();
    await page.waitForSelector("text=2 of 2");
    assert.equal(await answer(page), first); // the same seed

    // A schema that is none is told before anything is sent.
    await set(page, { format: "json_schema", schema: "{" });
    await page.fill("#entry", "As JSON");
    await page.press("#entry", "Enter");
    assert.match(await page.innerText("#schema-error"), /not JSON/);
    assert.equal(bodies.length, 2);
    await set(page, {
      schema:
        '{"type": "object", "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["age"], "additionalProperties": false}',
      max_tokens: 60,
    });
    await page.press("#entry", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".message").length === 4);
    await written(page);
    const { age } = JSON.parse(await answer(page));
    assert.ok(Number.isInteger(age) && age >= 1 && age <= 99);

    // What the server refuses is told as text.
    await set(page, { format: "json_schema", schema: '{"type": "no such type"}' });
    await asked(page, "Again");
    assert.ok((await last(page).locator(".error").innerText()).length > 10);
    assert.ok(faults.splice(0).every((fault) => fault.includes("400"))); // Chromium logs refusals

    // The conversation goes on after it.
    await set(page, { format: "text", max_tokens: 10 });
    await asked(page, "And now?");
    assert.ok((await answer(page)).length > 0);
  },

  async files() {
    const { page } = await open();
    await ready(page);
    await set(page, { max_tokens: 10 });
    await asked(page, "One");
    await page.click("#new");
    await asked(page, "Two");
    const titles = await page.locator("#list .open").allInnerTexts();
    assert.deepEqual(titles, ["Two", "One"]);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const path = await download.path();

    const other = (await open()).page;
    await ready(other);
    for (const [content, message] of [
      ["{", /not JSON/],
      ["{}", /no conversations/],
      [JSON.stringify({ format: "pymixtral-conversations", version: 1, conversations: [{}] }), /cannot be taken/],
    ]) {
      await other.setInputFiles("#file", {
        name: "x.json",
        mimeType: "application/json",
        buffer: Buffer.from(content),
      });
      await other.waitForFunction(
        (pattern) => new RegExp(pattern).test(document.getElementById("notice-text").textContent),
        message.source,
      );
    }
    assert.equal(await other.locator("#list li").count(), 0);
    await other.setInputFiles("#file", { name: "all.json", mimeType: "application/json", buffer: readFileSync(path) });
    await other.waitForFunction(() => document.querySelectorAll("#list li").length === 2);
    assert.deepEqual(await other.locator("#list .open").allInnerTexts(), titles);

    // Deleted, and taken back.
    await other.getByRole("button", { name: "Delete “One”" }).click();
    assert.deepEqual(await other.locator("#list .open").allInnerTexts(), ["Two"]);
    await other.getByRole("button", { name: "Undo" }).click();
    assert.equal(await other.locator("#list li").count(), 2);
    assert.equal(await other.locator(".message.user .body").innerText(), "One");
  },

  async storage() {
    // A browser whose storage is full.
    const { page } = await open({
      prepare: () => {
        Storage.prototype.setItem = () => {
          throw new DOMException("full", "QuotaExceededError");
        };
      },
    });
    await ready(page);
    await set(page, { max_tokens: 10 });
    await asked(page, "Hello");
    assert.match(await page.innerText("#notice-text"), /storage is full/);
    assert.ok((await answer(page)).length > 0);

    // Where there is room for texts only, the experts of old answers go first.
    const small = (
      await open({
        prepare: () => {
          const set = Storage.prototype.setItem;
          Storage.prototype.setItem = function (name, value) {
            if (
              value.includes('"trace"') &&
              Object.keys(this).some((other) => other !== name && this.getItem(other).includes('"trace"'))
            )
              throw new DOMException("full", "QuotaExceededError");
            set.call(this, name, value);
          };
        },
      })
    ).page;
    await ready(small);
    await set(small, { max_tokens: 10 });
    await small.click("#show-mixture");
    await asked(small, "One");
    await small.click("#new");
    await asked(small, "Two");
    const traced = await small.evaluate(() =>
      Object.values({ ...localStorage })
        .map((text) => JSON.parse(text))
        .map(({ title, nodes }) => [title, nodes.some((node) => node.trace)]),
    );
    assert.deepEqual(Object.fromEntries(traced), { One: false, Two: true });
  },

  async adapters() {
    const { page } = await open();
    await ready(page);
    await set(page, { max_tokens: 12 });
    const models = [];
    page.on("request", (request) => {
      if (request.method() === "POST") models.push(request.postDataJSON().model);
    });
    const select = page.getByLabel("Model that answers");
    const [base, ...adapters] = await select.locator("option").allInnerTexts();
    assert.deepEqual(adapters, ["tales", "polite"]);
    assert.equal(await select.inputValue(), base);
    assert.ok(await page.isHidden("#state-text"), "the model's name is there twice");
    await asked(page, "Hello");
    const alone = await answer(page);

    // By keys, and it holds for this conversation, whenever it is opened.
    await page.focus("#title");
    await page.keyboard.press("Tab");
    await page.keyboard.press("t");
    assert.equal(await select.inputValue(), "tales");
    await last(page).getByRole("button", { name: "Retry" }).click();
    await page.waitForSelector("text=2 of 2");
    await written(page);
    assert.match(await last(page).locator(".figures").innerText(), /^tales · 12 tokens/);
    assert.notEqual(await answer(page), alone);
    await accessible(page, "a choice of models");
    await page.click("#new");
    await page.selectOption("#model", base);
    await asked(page, "Hello");
    assert.equal(await answer(page), alone);
    assert.match(await last(page).locator(".figures").innerText(), /^12 tokens/);
    await page.reload();
    await ready(page);
    assert.equal(await select.inputValue(), base);
    await page.click("#list li:last-child .open");
    assert.equal(await select.inputValue(), "tales");
    assert.match(await last(page).locator(".figures").innerText(), /^tales/);
    assert.deepEqual(models, [base, "tales", base]);

    // On a phone it has a line of its own.
    await page.setViewportSize({ width: 390, height: 780 });
    const [box, title] = [await select.boundingBox(), await page.locator("#title").boundingBox()];
    assert.ok(box.width > 350 && box.y >= title.y + title.height, JSON.stringify([box, title]));

    // An adapter that is gone is said to be: the model alone is another one.
    await page.route("**/v1/models", async (route) => {
      const response = await route.fetch();
      const { data } = await response.json();
      await route.fulfill({ response, json: { data: data.slice(0, 1) } });
    });
    await page.setViewportSize({ width: 1280, height: 800 });
    await page.reload();
    await ready(page);
    assert.ok(await select.isHidden());
    await page.click("#list li:last-child .open");
    assert.deepEqual(await select.locator("option").allInnerTexts(), [base, "tales (not loaded)"]);
    assert.equal(await select.inputValue(), "tales");
    await select.selectOption(base);
    assert.ok(await select.isHidden());
  },

  async accessible() {
    const { page } = await open();
    await ready(page);
    assert.ok(await page.isHidden("#model"));
    const check = (what) => accessible(page, what);
    await check("welcome");
    await set(page, { max_tokens: 40 });
    await asked(page, "Hello");
    await check("conversation");
    await page.click("#show-settings");
    await page.selectOption("#format", "json_schema");
    await check("settings");
    await page.selectOption("#format", "text");
    await page.click("#show-mixture");
    await asked(page, "And then?");
    await page.waitForSelector("#heat td");
    await check("mixture");

    // By keys alone: everything is reached, and the focus is seen wherever it is.
    const stops = new Set();
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press("Tab");
      const stop = await page.evaluate(() => {
        const element = document.activeElement;
        const style = getComputedStyle(element);
        return {
          name: element.id || element.textContent.slice(0, 20),
          seen: element === document.body || style.outlineStyle !== "none",
        };
      });
      assert.ok(stop.seen, `the focus on ${stop.name} is not seen`);
      stops.add(stop.name);
    }
    for (const name of ["new", "export", "title", "show-mixture", "entry", "send", "layer", "Retry"]) {
      assert.ok(stops.has(name), `${name} is not reached: ${[...stops]}`);
    }
    assert.ok([...stops].length > 12);
  },

  async server() {
    // States that pass too quickly here are told to the page instead of it.
    const { page, faults } = await open();
    await ready(page);
    for (const [code, text] of [
      ["loading", "Loading the model"],
      ["draining", "Shutting down"],
    ]) {
      await page.route("**/health", (route) =>
        route.fulfill({
          status: 503,
          contentType: "application/json",
          body: JSON.stringify({ error: { message: "not now", code } }),
        }),
      );
      await page.reload();
      await page.waitForFunction((wanted) => document.getElementById("state-text").textContent === wanted, text);
      assert.ok(await page.isDisabled("#send"));
      await page.unroute("**/health");
    }
    await ready(page); // it asks again by itself

    // A server that goes away in the middle of an answer.
    await set(page, { max_tokens: 1900, format: "json_schema", schema: ENDLESS });
    await ask(page, "Tell me everything.");
    await page.waitForFunction(() => document.querySelector(".message.assistant .body").textContent.length > 20);
    process.kill(Number(extra), "SIGKILL");
    await page.waitForSelector(".message.assistant .error");
    assert.match(await last(page).innerText(), /broke off|too early/);
    assert.ok((await answer(page)).length > 20);
    await page.waitForSelector('#state[data-state="away"]');
    faults.length = 0; // Chromium logs each failed request
  },
};

try {
  await scenarios[scenario]();
  for (const { page, faults } of readers) {
    assert.deepEqual(faults, []);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
  }
} finally {
  await browser.close();
}
