// Makes the pictures of docs/page.md: node pictures.mjs URL FOLDER, with PYMIXTRAL_BROWSER as browser.mjs has it.
//
// The server's model is the frankenMoE of tests/real, as q8_0: of_type("q8_0") in tests/real/conftest.py.

import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.env.PYMIXTRAL_BROWSER}/`)("playwright-core");
const [url, folder] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu"];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args });

async function open(options, settings) {
  const page = await (await browser.newContext(options)).newPage();
  page.setDefaultTimeout(120_000);
  await page.goto(url);
  await page.waitForSelector("#send:enabled");
  await page.click("#show-settings");
  for (const [name, value] of Object.entries(settings)) await page.fill(`#${name}`, value);
  await page.click("#settings [data-close]");
  return page;
}

async function ask(page, text) {
  await page.fill("#entry", text);
  await page.press("#entry", "Enter");
  await page.waitForFunction(() => document.querySelector(".figures") && !document.querySelector(".writing"));
}

const wide = await open(
  { viewport: { width: 1180, height: 850 } },
  { seed: "4", temperature: "0.2", max_tokens: "260" },
);
await ask(wide, "Which planets have rings?");
await wide.click("#new");
await ask(wide, "Explain how to reverse a list in Python, with an example.");
await wide.screenshot({ path: `${folder}/page.png` });

await wide.click("#new");
await wide.click("#show-mixture");
await ask(wide, "Tell me a short tale of a king and a fox.");
await wide.fill("#layer", "17");
await wide.locator(".token").nth(44).hover();
await wide.waitForSelector("#tip:visible");
await wide.screenshot({ path: `${folder}/page-mixture.png` });

const phone = { viewport: { width: 390, height: 780 }, colorScheme: "dark", isMobile: true, hasTouch: true };
const small = await open(phone, { seed: "4", temperature: "0.2", max_tokens: "80" });
await small.tap("#show-mixture");
await ask(small, "Tell me a tale of a princess and a frog.");
await small.fill("#layer", "12");
await small.waitForSelector("#heat tr.now[data-layer='12']");
await small.screenshot({ path: `${folder}/page-phone.png` });
await browser.close();
