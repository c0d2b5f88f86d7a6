// node drive.js CHROMIUM SCRIPT URL…: opens pages at two widths and in two themes, and prints what was found as JSON.
const path = require("path");
const fs = require("fs");
const modules = process.env.LAVIS_EXT_NODE_MODULES || path.join(__dirname, "node_modules");
const { chromium } = require(path.join(modules, "playwright-core"));
const axe = fs.readFileSync(path.join(modules, "axe-core", "axe.min.js"), "utf8");

const acts = {
  // Nothing but opening it, in each form, then axe-core.
  async look(context, url) {
    const { page, said } = await opened(context, url);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.evaluate(axe);
    const broken = await page.evaluate(async () => (await axe.run()).violations.map((one) => `${one.id}: ${one.nodes[0].html}`));
    return { said, wide, dark, broken, unnamed: await page.evaluate(() => [...document.images].filter((one) => !one.alt).length) };
  },
  async plain(context, url) {
    const { page, said } = await opened(context, url);
    return { said, shots: await page.locator(".shot").count(), form: await page.locator("form[data-filter]").isVisible() };
  },
  // A page without a server: filter, order, enlarge by keys alone.
  async filter(context, url) {
    const { page, said } = await opened(context, url);
    const shown = () => page.locator("[data-split] .shot:visible .said").allTextContents();
    const found = { said, all: await shown() };
    await page.getByLabel("Search").fill("RED 0.jpg");
    found.red = await shown();
    await page.getByLabel("Search").fill('"');
    found.quote = (await shown()).length;
    await page.getByLabel("Search").fill("");
    await page.getByLabel("Show").selectOption("missing");
    found.missing = await shown();
    await page.getByLabel("Show").selectOption("");
    await page.getByLabel("Order").selectOption("longest");
    found.longest = (await shown())[0];
    await page.getByLabel("Order").selectOption("");
    found.again = await shown();
    await page.locator(".open").first().focus();
    await page.keyboard.press("Enter");
    const large = () => page.locator("dialog .said").textContent();
    found.opened = await large();
    await page.keyboard.press("ArrowRight");
    found.next = await large();
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("ArrowLeft");
    found.around = await large();
    await page.keyboard.press("Escape");
    found.closed = !(await page.locator("dialog").isVisible());
    found.focused = await page.evaluate(() => document.activeElement.classList.contains("open"));
    return found;
  },
  // A served data set: the token's address, a search, the second page by the arrow after the last picture.
  async explore(context, url) {
    const { page, said } = await opened(context, url);
    const found = { said, address: page.url(), first: await page.locator(".said").first().textContent() };
    await page.waitForFunction(() => document.querySelector(".shot img")?.naturalWidth > 0);
    await page.getByLabel("Search").fill("text 07");
    await page.keyboard.press("Enter");
    await page.waitForURL("**q=text**");
    found.searched = await page.locator(".shot").count();
    await page.getByRole("link", { name: "Clear" }).click();
    await page.waitForURL((now) => !now.search.includes("q="));
    await page.waitForSelector('a[rel="next"]');
    await page.locator(".open").last().click();
    await page.keyboard.press("ArrowRight");
    await page.waitForURL("**page=2**");
    await page.waitForSelector("dialog[open]");
    found.over = await page.locator("dialog .said").textContent();
    await page.waitForSelector(".lost");
    found.lost = await page.evaluate(async () => { await new Promise((done) => setTimeout(done, 300)); return document.querySelectorAll(".lost").length; });
    return found;
  },
  // A run that goes on: the page changes by itself; then tables are ordered and a run is hidden.
  async live(context, url) {
    const { page, said } = await opened(context, url);
    const found = { said, before: await page.locator("h1").textContent() };
    process.stdout.write("ready\n");
    await page.waitForFunction(() => document.querySelector("h1").textContent === "3 runs", null, { timeout: 30000 });
    found.after = await page.locator("h1").textContent();
    const names = () => page.locator("tbody tr th a").allTextContents();
    await page.getByRole("button", { name: "best" }).click();
    found.up = await names();
    await page.getByRole("button", { name: "best" }).click();
    found.down = await names();
    await page.getByLabel("Show a in the charts").uncheck();
    found.hidden = await page.evaluate(() => [...document.querySelectorAll('svg [data-run="0"]')].every((one) => one.hasAttribute("hidden")));
    return found;
  },
};

async function opened(context, url) {
  const page = await context.newPage(), said = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("request", (request) => {
    const asked = request.url();
    if (!asked.startsWith("data:") && new URL(asked).origin !== new URL(url).origin) said.push(`asked ${asked}`);
  });
  await page.goto(url);
  return { page, said };
}

(async () => {
  const [, , executablePath, act, ...urls] = process.argv;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const forms = act === "look" ? [[360, "light"], [1920, "dark"]] : [[1280, "light"]];
  const found = [];
  for (const url of urls) for (const [width, colorScheme] of forms) {
    const context = await browser.newContext({
      viewport: { width, height: 900 }, colorScheme, javaScriptEnabled: act !== "plain", bypassCSP: false,
    });
    if (act === "look") await context.addCookies(JSON.parse(process.env.LAVIS_EXT_COOKIES || "[]"));
    found.push({ url, width, ...(await acts[act](context, url)) });
    await context.close();
  }
  await browser.close();
  process.stdout.write(`${JSON.stringify(found)}\n`);
})().catch((error) => { process.stderr.write(`${error.stack}\n`); process.exit(1); });
