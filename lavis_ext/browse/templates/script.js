// What a page does beyond being read: filter and order samples, enlarge pictures, sort tables, hide runs, stay up to date.
// Own code, under the licence of lavis_ext (BSD-3-Clause); it loads nothing, and without it everything can still be read.
(() => {
  "use strict";
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const make = (tag, attributes = {}, text = "") => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };

  // Samples of a page without a server: the form is shown, and hides what does not fit.
  function filterable(form) {
    const shots = all("[data-split] .shot");
    const order = new Map(shots.map((shot, number) => [shot, number]));
    const texts = new Map(shots.map((shot) => [shot, shot.querySelector("figcaption").textContent.toLowerCase()]));
    const said = new Map(shots.map((shot) => [shot, shot.querySelector(".said")?.textContent ?? ""]));
    const count = form.querySelector("output");
    const orders = {
      "": (a, b) => order.get(a) - order.get(b),
      text: (a, b) => said.get(a).localeCompare(said.get(b)),
      shortest: (a, b) => a.dataset.words - b.dataset.words,
      longest: (a, b) => b.dataset.words - a.dataset.words,
    };
    let sorted = "";
    function apply() {
      const of = (name) => form.elements[name]?.value.trim() ?? "";
      const words = (of("q").toLowerCase().match(/"[^"]+"|\S+/g) ?? []).map((word) => word.replaceAll('"', ""));
      const least = Number(of("least")) || 0, most = Number(of("most")) || Infinity;
      let shown = 0;
      for (const shot of shots) {
        const split = shot.closest("[data-split]").dataset.split;
        const fits = (!of("split") || of("split") === split)
          && words.every((word) => texts.get(shot).includes(word))
          && (!of("answer") || shot.dataset.answers.split("\n").includes(of("answer")))
          && shot.dataset.words >= least && shot.dataset.words <= most
          && (!of("state") || shot.dataset.marks.split(" ").includes(of("state")));
        shot.hidden = !fits;
        shown += fits;
      }
      for (const part of all("[data-split]")) part.hidden = !part.querySelector(".shot:not([hidden])") && shown > 0;
      if (of("sort") !== sorted) {
        sorted = of("sort");
        for (const grid of all("[data-split] .shots")) grid.append(...[...grid.children].sort(orders[sorted]));
      }
      count.textContent = shown === shots.length ? `${shown} samples on this page` : `${shown} of ${shots.length} samples on this page`;
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }

  // Pictures in a dialog: arrows go to the next one, Escape closes it.
  let light, opened;
  const shown = () => all(".open").filter((one) => !one.closest("[hidden]"));
  function enlarge(place) {
    opened = place;
    if (!light) {
      light = make("dialog", { class: "light", "aria-label": "Enlarged picture" });
      const bar = make("p", { class: "keys" });
      const buttons = [["←", "Previous picture", -1], ["→", "Next picture", 1]].map(([text, label, by]) => {
        const button = make("button", { type: "button", "aria-label": label }, text);
        button.addEventListener("click", () => go(by));
        return button;
      });
      const close = make("button", { type: "button", "aria-label": "Close" }, "✕");
      close.addEventListener("click", () => light.close());
      bar.append(...buttons, make("span", { class: "where", "aria-live": "polite" }), close);
      light.append(bar, make("div", { class: "view" }), make("div", { class: "text" }));
      light.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (by) { event.preventDefault(); go(by); }
      });
      light.addEventListener("click", (event) => event.target === light && light.close());
      light.addEventListener("close", () => opened?.focus());
      document.body.append(light);
    }
    const places = shown();
    const pictures = all("img", place).map((img) => make("img", { alt: img.alt, src: img.src }));
    const large = place.getAttribute("href");
    if (large && pictures.length === 1) {  // the small one until the large one is here
      const whole = make("img", { alt: pictures[0].alt, src: large });
      whole.addEventListener("load", () => pictures[0].replaceWith(whole));
    }
    light.querySelector(".view").replaceChildren(...pictures);
    light.querySelector(".where").textContent = `${places.indexOf(place) + 1} of ${places.length}`;
    light.querySelector(".text").replaceChildren(...[...place.closest("figure").querySelector("figcaption").childNodes].map((one) => one.cloneNode(true)));
    if (!light.open) light.showModal();
  }
  function go(by) {
    const places = shown(), at = places.indexOf(opened) + by;
    const page = document.querySelector(by < 0 ? 'a[rel="prev"]' : 'a[rel="next"]');
    if (places[at]) enlarge(places[at]);
    else if (page) location.href = `${page.getAttribute("href")}#${by < 0 ? "last" : "first"}`;
    else enlarge(places[(at + places.length) % places.length]);
  }
  function enlargeable(where) {
    for (const place of all(".open", where)) {
      if (place.tagName !== "A") { place.setAttribute("role", "button"); place.tabIndex = 0; }
      place.setAttribute("aria-label", `Enlarge: ${place.querySelector("img")?.alt ?? ""}`);
      place.setAttribute("aria-haspopup", "dialog");
      place.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        enlarge(place);
      });
      place.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(place); }
      });
    }
  }

  // A picture of a served page that cannot be read: its place says why.
  async function explained(img) {
    const answer = await fetch(img.getAttribute("src")).catch(() => null);
    const lost = make("div", { class: "lost" });
    lost.append(make("span", {}, answer && answer.status === 404 ? await answer.text() : "the picture did not come"));
    (img.closest(".open") ?? img).replaceWith(lost);
  }
  function watched(img) {
    if (img.complete && !img.naturalWidth) explained(img);
    else img.addEventListener("error", () => explained(img), { once: true });
  }

  // Tables: a click on a head orders the rows by it, by number where the cells are numbers.
  const remembered = new Map();
  function sortable(table, number) {
    const body = table.tBodies[0];
    const key = (row, column) => {
      const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent.trim();
      const value = Number(text.replaceAll(",", "").replace(/^.* (?=-?[\d.]+$)/, ""));
      return text !== "" && Number.isFinite(value) ? value : text;
    };
    function order(column, down) {
      const sign = down ? -1 : 1;
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : typeof a === "number" ? -sign : typeof b === "number" ? sign : a.localeCompare(b));
      const rows = all("tr:not(.more)", body), below = new Map(all("tr.more", body).map((row) => [row.previousElementSibling, row]));
      rows.sort((a, b) => sign * compare(key(a, column), key(b, column)));
      body.append(...rows.flatMap((row) => (below.has(row) ? [row, below.get(row)] : [row])));
      all("th", table.tHead).forEach((head, at) => head.setAttribute("aria-sort", at === column ? (down ? "descending" : "ascending") : "none"));
      remembered.set(number, [column, down]);
    }
    all("th", table.tHead).forEach((head, column) => {
      const button = make("button", { type: "button" }, head.textContent);
      button.addEventListener("click", () => order(column, head.getAttribute("aria-sort") === "ascending"));
      head.replaceChildren(button);
    });
    if (remembered.has(number)) order(...remembered.get(number));
  }

  // Runs on one page: a box before each name shows or hides its lines.
  const hidden = new Set();
  function choosable(row) {
    const head = row.cells[0], run = row.dataset.run;
    const box = make("input", { type: "checkbox", "aria-label": `Show ${(head.querySelector(".key") ?? head).textContent.trim()} in the charts` });
    const apply = () => all(`svg [data-run="${run}"]`).forEach((line) => line.toggleAttribute("hidden", hidden.has(run)));
    box.checked = !hidden.has(run);
    box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](run); apply(); });
    head.prepend(box);
    apply();
  }

  function begin(where) {
    all("form[data-filter]", where).forEach(filterable);
    all("form.bar:not([data-filter]) select, form.bar:not([data-filter]) [type=checkbox]", where).forEach((one) => one.addEventListener("change", () => one.form.requestSubmit()));
    enlargeable(where);
    all('.shot img[src^="picture/"]', where).forEach(watched);
    all("table.sorted", where).forEach(sortable);
    all("tr[data-run]", where).forEach(choosable);
  }
  begin(document);
  const end = { "#first": 0, "#last": -1 }[location.hash];
  if (end !== undefined && shown().length) { history.replaceState(null, "", location.pathname + location.search); enlarge(shown().at(end)); }

  // A run that goes on: asked every two seconds whether anything is new; then only what is between <main> is exchanged.
  const live = document.body.dataset.live;
  async function look(mark) {
    let now = mark;
    try {
      const answer = await fetch(`./state${location.search}`, { cache: "no-store" });
      now = answer.ok ? await answer.text() : mark;
      if (now !== mark && !light?.open) {
        const page = await (await fetch(location.pathname + location.search, { cache: "no-store" })).text();
        const fresh = new DOMParser().parseFromString(page, "text/html");
        const open = all("details").map((one) => one.open);
        document.querySelector("main").replaceWith(fresh.querySelector("main"));
        all("details").forEach((one, number) => { one.open = open[number] ?? one.open; });
        document.title = fresh.title;
        begin(document.querySelector("main"));
      } else if (light?.open) now = mark;
      document.body.classList.remove("lost-server");
    } catch { document.body.classList.add("lost-server"); }
    setTimeout(look, 2000, now);
  }
  if (live) setTimeout(look, 1000, live);
})();
