"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { n_experts: nExperts, n_used: nUsed, n_layers: nLayers, domains, chance } = data;
  const COLOURS = 8;
  const PENS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f"];
  const DASHES = ["", "8 4", "2 3", "10 3 2 3"];
  const MARKS = ["M-4-4H4V4H-4Z", "M0-5L5 4H-5Z", "M0-6L5 0L0 6L-5 0Z", "M0-5A5 5 0 1 1-.01-5Z"];

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  for (const domain of domains) {
    domain.experts = bytes(domain.experts);
    domain.weights = bytes(domain.weights);
  }
  const at = (token, layer) => (token * nLayers + layer) * nUsed;
  const percent = (x, digits = 1) => (x === null ? "–" : (100 * x).toFixed(digits) + "%");
  const ordinal = (i) => ["first", "second", "third"][i] ?? `${i + 1}th`;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function shape(name, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function paint(node, expert) {
    node.dataset.expert = expert;
    node.dataset.colour = expert % COLOURS;
    const round = Math.floor(expert / COLOURS);
    if (round) node.dataset.round = round;
    else delete node.dataset.round;
  }

  const slider = document.getElementById("layer");
  const choice = document.getElementById("choice");
  const tip = document.getElementById("tip");
  let layer = nLayers - 1;
  slider.max = nLayers - 1;
  slider.value = layer;
  document.getElementById("about").textContent = data.about;
  for (let i = 0; i < nUsed; i++) choice.append(element("option", { value: i }, `the ${ordinal(i)} expert`));

  // --- The legend and the texts -----------------------------------------------------------------

  const legend = document.getElementById("legend");
  for (let expert = 0; expert < nExperts; expert++) {
    const item = element("li", {}, `expert ${expert}`);
    paint(item, expert);
    legend.append(item);
  }

  const spans = domains.map((domain, d) => {
    const text = element("div", { class: domain.code ? "text code" : "text", tabindex: 0, role: "group" });
    text.setAttribute("aria-label", `${domain.name}; the arrow keys go from token to token`);
    const begins = new Set(domain.begins);
    const made = domain.tokens.map((token, t) => {
      const span = element("span", begins.has(t) ? { class: "begins" } : {}, token);
      span.dataset.token = t;
      return span;
    });
    text.append(...made);
    const left = domain.usage.n_tokens - made.length;
    const more = left > 0 ? [element("p", { class: "more" }, `${left} more tokens are counted below and not shown here.`)] : [];
    document.getElementById("texts").append(element("h3", {}, domain.name), text, ...more);
    let current = -1;
    const show = (t) => {
      if (current >= 0) made[current].classList.remove("at");
      current = t;
      if (t < 0) return void (tip.hidden = true);
      made[t].classList.add("at");
      tell(d, t, made[t]);
    };
    const under = (event) => {
      const span = event.target.closest("[data-token]");
      if (span) show(Number(span.dataset.token));
    };
    text.addEventListener("pointerover", under);
    text.addEventListener("pointerdown", under);
    text.addEventListener("pointerleave", () => show(-1));
    text.addEventListener("blur", () => show(-1));
    text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(Math.min(Math.max(current + step, 0), made.length - 1));
      made[current].scrollIntoView({ block: "nearest" });
    });
    return made;
  });

  function tell(d, t, span) {
    const domain = domains[d];
    const rows = [];
    for (let i = 0, first = at(t, layer); i < nUsed; i++) {
      const weight = domain.weights[first + i] / 255;
      const number = element("td", {}, `expert ${domain.experts[first + i]}`);
      paint(number, domain.experts[first + i]);
      const bar = element("i");
      bar.style.width = `${6 * weight}rem`;
      rows.push(element("tr", {}, number, element("td", {}, percent(weight, 0)), element("td", {}, bar)));
    }
    const name = element("b", {}, domain.tokens[t].trim() || JSON.stringify(domain.tokens[t]));
    tip.replaceChildren(name, ` token ${t}, id ${domain.ids[t]}, layer ${layer}`, element("table", {}, ...rows));
    tip.hidden = false;
    const box = span.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
    const below = box.bottom + 8 + tip.offsetHeight < window.innerHeight;
    tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8)}px`;
  }

  // --- Heat maps: an even share is the ground, more is orange, less is blue ---------------------

  function heat(cell, ratio, highest) {
    const strength = ratio < 1 ? 1 - ratio : (ratio - 1) / (highest - 1);
    const [r, g, b] = ratio < 1 ? [33, 102, 172] : [179, 88, 6];
    const mix = (x) => Math.round(255 + (x - 255) * strength);
    cell.style.backgroundColor = `rgb(${mix(r)} ${mix(g)} ${mix(b)})`;
    cell.style.color = strength > 0.55 ? "#fff" : "#000";
  }

  const highest = Math.max(2, ...domains.flatMap((d) => d.usage.either.flat()).map((share) => share * nExperts));
  const maps = element("div", { class: "maps" });
  const rowsOfLayers = Array.from({ length: nLayers }, () => []);
  for (const domain of domains) {
    const head = element("tr", {}, element("th", { scope: "col" }, "layer"));
    for (let e = 0; e < nExperts; e++) head.append(element("th", { scope: "col" }, String(e)));
    const table = element("table", {}, element("caption", {}, domain.name), element("thead", {}, head));
    domain.usage.either.forEach((shares, i) => {
      const row = element("tr", {}, element("th", { scope: "row" }, String(i)));
      shares.forEach((share, e) => {
        const cell = element("td", { title: `layer ${i}, expert ${e}: ${percent(share)} of all uses` });
        cell.append((share * nExperts).toFixed(1));
        heat(cell, share * nExperts, highest);
        row.append(cell);
      });
      rowsOfLayers[i].push(row);
      table.append(row);
    });
    maps.append(element("div", { class: "scroll" }, table));
  }
  document.getElementById("shares").append(maps);

  // --- Repetition ------------------------------------------------------------------------------

  const penOf = (d) => ({
    stroke: PENS[d % PENS.length],
    "stroke-dasharray": DASHES[Math.floor(d / PENS.length) % DASHES.length],
  });
  const markOf = (d) => ({ d: MARKS[d % MARKS.length], fill: PENS[d % PENS.length] });
  const markers = [];
  function chart(title, name) {
    const [width, height, left, bottom, top] = [490, 300, 46, 34, 28];
    const most = Math.min(1, Math.max(chance[name], ...domains.flatMap((d) => d.usage[name]).filter((y) => y !== null)) * 1.1);
    const x = (i) => left + ((width - left - 14) * (i + 0.5)) / nLayers;
    const y = (value) => height - bottom - ((height - bottom - top) * value) / most;
    const label = `${title}: ${domains.map((d) => d.name + " " + d.usage[name].map((v) => percent(v, 0)).join(" ")).join("; ")}`;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": label });
    svg.append(shape("text", { x: left, y: 16 }, title));
    const step = most > 0.5 ? 0.2 : most > 0.25 ? 0.1 : 0.05;
    for (let value = 0; value <= most; value += step) {
      svg.append(shape("line", { class: "grid", x1: left, x2: width - 14, y1: y(value), y2: y(value) }));
      svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, percent(value, 0)));
    }
    for (let i = 0; i < nLayers; i += Math.ceil(nLayers / 16))
      svg.append(shape("text", { x: x(i), y: height - bottom + 16, "text-anchor": "middle" }, String(i)));
    svg.append(shape("text", { x: width / 2, y: height - 2, "text-anchor": "middle" }, "layer"));
    const marker = shape("line", { class: "axis", y1: top, y2: height - bottom });
    markers.push((i) => (marker.setAttribute("x1", x(i)), marker.setAttribute("x2", x(i))));
    svg.append(marker);
    svg.append(shape("line", { class: "chance", x1: left, x2: width - 14, y1: y(chance[name]), y2: y(chance[name]) }));
    domains.forEach((domain, d) => {
      const points = domain.usage[name].map((v, i) => [i, v]).filter(([, v]) => v !== null);
      const line = points.map(([i, v]) => `${x(i)},${y(v)}`).join(" ");
      svg.append(shape("polyline", { class: "curve", points: line, ...penOf(d) }));
      for (const [i, v] of points) {
        const told = shape("title", {}, `${domain.name}, layer ${i}: ${percent(v)}`);
        svg.append(shape("path", { transform: `translate(${x(i)} ${y(v)})`, ...markOf(d) }, told));
      }
    });
    return svg;
  }
  const charts = element("div", { class: "charts" }, chart("The same first expert", "repeats_first"));
  if (nUsed > 1) charts.append(chart("An expert of the token before", "repeats_any"));
  const key = element("ul", { class: "key" });
  domains.forEach((domain, d) => {
    const sample = shape("svg", { viewBox: "-16 -8 32 16", width: 32, height: 16, "aria-hidden": "true" });
    sample.append(shape("line", { class: "curve", x1: -16, x2: 16, y1: 0, y2: 0, ...penOf(d) }), shape("path", markOf(d)));
    key.append(element("li", {}, sample, " ", domain.name));
  });
  document.getElementById("repeats").append(key, charts);

  // --- The numbers of one layer ----------------------------------------------------------------

  const place = document.getElementById("numbers-of-layer").appendChild(element("div", { class: "scroll" }));
  const kept = Array.from({ length: Math.max(nExperts - nUsed, 0) }, (_, i) => nUsed + i).slice(0, 6);
  function numbers() {
    const heads = ["", "tokens", "same first", "any the same", "entropy, bits", "first weight", "never used"];
    const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)));
    for (const n of kept) head.append(element("th", { scope: "col" }, `hits of a cache of ${n}`));
    const row = (name, cells) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
    const rows = domains.map(({ name, usage }) =>
      row(name, [
        String(usage.n_tokens),
        percent(usage.repeats_first[layer]),
        percent(usage.repeats_any[layer]),
        usage.entropy[layer].toFixed(2),
        usage.first_weight[layer].toFixed(2),
        usage.dead[layer].join(" ") || "none",
        ...kept.map((n) => percent(usage.hits[layer][n], 0)),
      ]),
    );
    const even = [percent(chance.repeats_first), percent(chance.repeats_any), chance.entropy.toFixed(2), "", ""];
    rows.push(row("chance", ["", ...even, ...kept.map((n) => percent(chance.hits[n], 0))]));
    place.replaceChildren(element("table", {}, element("thead", {}, head), ...rows));
  }

  // --- What the reader chooses -----------------------------------------------------------------

  function draw() {
    layer = Number(slider.value);
    const slot = Number(choice.value);
    document.getElementById("layer-name").textContent = String(layer);
    spans.forEach((made, d) => {
      const { experts } = domains[d];
      made.forEach((span, t) => paint(span, experts[at(t, layer) + slot]));
    });
    rowsOfLayers.forEach((rows, i) => rows.forEach((row) => row.classList.toggle("now", i === layer)));
    markers.forEach((move) => move(layer));
    tip.hidden = true;
    numbers();
  }
  slider.addEventListener("input", draw);
  choice.addEventListener("change", draw);
  document.getElementById("numbers").addEventListener("change", (event) => {
    document.getElementById("texts").classList.toggle("numbers", event.target.checked);
  });
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  draw();
})();
