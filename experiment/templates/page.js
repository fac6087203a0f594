"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const N = D.label.length, PAGE = 200, NS = "http://www.w3.org/2000/svg";
  const start = [], end = [];
  D.d.forEach((d, i) => { if (start[d] === undefined) start[d] = i; end[d] = i + 1; });
  const lower = D.text.map((t) => t.toLowerCase());
  const wrong = (i) => D.label[i] !== D.predicted[i];
  const percent = (x) => x === null ? "–" : (x / 10).toFixed(x < 995 ? 1 : 0) + " %";
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "±") + (Math.abs(x) / 10).toFixed(1);
  let shown = [], from = 0, current = null, lit = null;

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function drawn(name, attributes) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  function swatch(k) {
    const svg = drawn("svg", {class: "swatch", viewBox: "-5 -5 10 10", "aria-hidden": "true"});
    svg.append(drawn("use", {href: "#m-" + D.markers[k], fill: D.colours[k]}));
    return svg;
  }
  const named = (k) => element("span", {}, swatch(k), " " + D.classes[k]);
  const isolated = (text) => element("bdi", {}, text);

  // Filters ----------------------------------------------------------------------------------------------------------
  const option = (value, text) => element("option", {value}, text);
  D.dialogues.forEach((name, d) => {
    let misses = 0;
    for (let i = start[d]; i < end[d]; i++) misses += wrong(i);
    $("dialogue").append(option(d, `${name}: ${end[d] - start[d]} turns, ${misses} wrong`));
  });
  const classes = D.classes.map((name, k) => k);
  for (const k of classes) { $("true").append(option(k, D.classes[k])); $("said").append(option(k, D.classes[k])); }
  D.people.forEach((name, s) => $("speaker").append(option(s, name)));

  const chosen = (id) => $(id).value === "" ? null : Number($(id).value);
  function wanted() {
    const t = chosen("true"), p = chosen("said"), s = chosen("speaker"), show = $("show").value;
    const low = 10 * ($("low").value === "" ? 0 : Number($("low").value));
    const high = 10 * ($("high").value === "" ? 100 : Number($("high").value));
    const words = $("words").value.toLowerCase();
    return (i) => (t === null || D.label[i] === t) && (p === null || D.predicted[i] === p)
      && (s === null || D.speaker[i] === s) && (show === "all" || (show === "wrong") === wrong(i))
      && D.confidence[i] >= low && D.confidence[i] <= high && (!words || lower[i].includes(words));
  }
  function update(keep) {
    const d = Number($("dialogue").value), every = $("scope").value === "all", fits = wanted();
    shown = [];
    for (let i = every ? 0 : start[d]; i < (every ? N : end[d]); i++) if (fits(i)) shown.push(i);
    if (!keep) { from = 0; current = shown.length ? shown[0] : null; lit = null; }
    const misses = shown.filter(wrong).length;
    $("count").textContent = `${shown.length} utterance${shown.length === 1 ? "" : "s"} `
      + `${every ? "in all dialogues" : "in this dialogue"}, ${misses} wrong`;
    $("before").disabled = d === 0; $("after").disabled = d === D.dialogues.length - 1;
    for (const cell of document.querySelectorAll(".matrix button"))
      cell.setAttribute("aria-pressed", String(every && cell.dataset.true === $("true").value && cell.dataset.said === $("said").value));
    strip(d); chat();
  }

  // The dialogue as a strip --------------------------------------------------------------------------------------------
  let view = null;
  function strip(d) {
    const n = end[d] - start[d];
    let heads = D.classes.map((name, k) => k);  // a row a class; of many, of those that occur; of too many, two by colour
    if (heads.length > 10) {
      const there = new Set([...D.label.slice(start[d], end[d]), ...D.predicted.slice(start[d], end[d])]);
      heads = heads.filter((k) => there.has(k));
    }
    const rows = heads.length <= 24, lines = rows ? heads.length : 2, row = new Map(heads.map((k, place) => [k, place]));
    const left = rows ? 82 : 70, high = rows ? 15 : 20, box = $("strip");
    const room = Math.max(120, box.clientWidth - 12 - left);
    const step = Math.max(7, Math.min(26, room / n)), width = left + n * step + 2, height = lines * high + 16;
    const svg = drawn("svg", {width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"});
    (rows ? heads.map((k) => D.classes[k]) : ["true", "predicted"]).forEach((name, k) => {
      const text = drawn("text", {x: 0, y: k * high + high - 4});
      text.textContent = name.length > 12 ? name.slice(0, 11) + "…" : name;
      svg.append(text);
    });
    const miss = drawn("text", {x: 0, y: height - 4}); miss.textContent = "wrong"; svg.append(miss);
    const truth = new Map(), said = new Map();
    let crosses = "";
    for (let t = 0; t < n; t++) {
      const i = start[d] + t, x = left + t * step, a = rows ? row.get(D.label[i]) : 0, b = rows ? row.get(D.predicted[i]) : 1;
      const add = (map, k, path) => map.set(k, (map.get(k) || "") + path);
      add(truth, D.label[i], `M${x.toFixed(1)} ${a * high + 1}h${(step - 1).toFixed(1)}v${high - 2}h${(1 - step).toFixed(1)}z`);
      const m = Math.max(0, (step - 1) * .25), w = step - 1 - 2 * m;
      add(said, D.predicted[i], rows
        ? `M${(x + m).toFixed(1)} ${b * high + 4}h${w.toFixed(1)}v${high - 8}h${(-w).toFixed(1)}z`
        : `M${x.toFixed(1)} ${b * high + 1}h${(step - 1).toFixed(1)}v${high - 2}h${(1 - step).toFixed(1)}z`);
      if (wrong(i)) { const c = x + step / 2 - .5, y = height - 8; crosses += `M${c - 2.5} ${y - 2.5}l5 5m0-5l-5 5`; }
    }
    for (const [k, path] of truth) svg.append(drawn("path", {class: "true", fill: D.colours[k], d: path}));
    for (const [k, path] of said) svg.append(drawn("path", {class: "answer", fill: D.colours[k], d: path}));
    svg.append(drawn("path", {class: "miss", d: crosses || "M0 0"}));
    const here = drawn("rect", {class: "here", y: 0, height: height - 1, width: step, x: -99});
    svg.append(here);
    box.replaceChildren(svg);
    view = {d, n, step, left, here};
    box.setAttribute("aria-valuemax", n);
    point();
  }
  const speech = (i) => `turn ${i - start[D.d[i]] + 1}, ${D.people[D.speaker[i]]}: true ${D.classes[D.label[i]]}, `
    + `predicted ${D.classes[D.predicted[i]]}, ${wrong(i) ? "wrong" : "right"}`;
  function point() {
    if (!view) return;
    const inside = current !== null && D.d[current] === view.d, t = inside ? current - start[view.d] : 0;
    view.here.setAttribute("x", inside ? view.left + t * view.step - .5 : -99);
    $("strip").setAttribute("aria-valuenow", t + 1);
    $("strip").setAttribute("aria-valuetext", speech(start[view.d] + t));
    const x = view.left + t * view.step, box = $("strip");
    if (inside && (x < box.scrollLeft + view.left || x > box.scrollLeft + box.clientWidth - 20))
      box.scrollLeft = Math.max(0, x - box.clientWidth / 2);
  }
  $("strip").addEventListener("click", (event) => {
    const x = event.clientX - $("strip").firstChild.getBoundingClientRect().left;
    const t = Math.floor((x - view.left) / view.step);
    if (t >= 0 && t < view.n) go(start[view.d] + t);
  });
  $("strip").addEventListener("keydown", (event) => {
    const t = current !== null && D.d[current] === view.d ? current - start[view.d] : 0;
    const to = {ArrowRight: t + 1, ArrowLeft: t - 1, ArrowUp: t + 1, ArrowDown: t - 1, Home: 0, End: view.n - 1,
      PageUp: t + 10, PageDown: t - 10, Enter: t}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(start[view.d] + Math.min(view.n - 1, Math.max(0, to)), event.key === "Enter");
  });

  // The chat -----------------------------------------------------------------------------------------------------------
  function side(i) {
    const order = [];
    for (let j = start[D.d[i]]; j < end[D.d[i]] && order.length < 64; j++)
      if (!order.includes(D.speaker[j])) { order.push(D.speaker[j]); if (D.speaker[j] === D.speaker[i]) break; }
    return order.indexOf(D.speaker[i]) % 2 ? "right" : "left";
  }
  function bar(x, k) {
    const fill = element("i", {style: `width:${x / 10}%;--c:${D.colours[k]}`});
    return element("span", {class: "bar", "aria-hidden": "true"}, fill);
  }
  function change(x, most) {  // to the left of the middle where it is less, to the right where it is more
    const wide = 50 * Math.abs(x) / most;
    const fill = element("i", {style: `left:${x < 0 ? 50 - wide : 50}%;width:${wide}%`});
    return element("span", {class: "bar mid", "aria-hidden": "true"}, fill);
  }
  function table(caption, rows) {
    const body = element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((c) => element("td", {}, c)))));
    return element("table", {}, element("caption", {class: "dim"}, caption), body);
  }
  function inside(i) {
    const parts = [], p = D.p[i];
    let each = D.every ? p.map((x, k) => [k, x]) : [];
    if (!D.every) for (let j = 0; j < p.length; j += 2) each.push([p[j], p[j + 1]]);
    each.sort((a, b) => b[1] - a[1]);
    parts.push(table("Probabilities" + (D.every ? "" : ", the likeliest"), each.map(([k, x]) => [named(k), bar(x, k), percent(x)])));
    const answer = D.classes[D.predicted[i]];
    const modalities = Object.entries(D.modalities).filter(([, values]) => values[i] !== null);
    const near = D.neighbours[i] || [];
    const most = Math.max(50, ...modalities.map(([m, values]) => Math.abs(values[i])), ...near.map(([o, x]) => Math.abs(x)));
    if (modalities.length)
      parts.push(table(`Change of the probability of ${answer}, in percentage points, were the dialogue recorded without`,
        modalities.map(([m, values]) => [m, change(values[i], most), signed(values[i])])));
    if (near.length)
      parts.push(table(`Change of the probability of ${answer} without the edge from`, near.map(([offset, x]) => {
        const j = i + offset, turn = j - start[D.d[j]] + 1;
        return [element("button", {type: "button", on: {click: () => go(j, true)}}, `turn ${turn}, ${D.people[D.speaker[j]]}`),
          D.text[j].length > 60 ? D.text[j].slice(0, 59) + "…" : D.text[j], change(x, most), signed(x)];
      })));
    const scroll = element("div", {class: "scroll"}, ...parts);
    return scroll;
  }
  function turn(i) {
    const open = element("details", {}, element("summary", {}, "Probabilities and what decided"));
    open.addEventListener("toggle", () => { if (open.open && open.children.length === 1) open.append(inside(i)); });
    const verdict = element("p", {class: "verdict"},
      element("span", {}, "true: ", named(D.label[i])), element("span", {}, "predicted: ", named(D.predicted[i])),
      element("span", {class: wrong(i) ? "no" : "ok"}, wrong(i) ? "✗ wrong" : "✓ right"),
      element("span", {}, "confidence " + percent(D.confidence[i])));
    const item = element("li", {class: `turn ${side(i)} ${wrong(i) ? "wrong" : ""} ${lit === i ? "lit" : ""}`, id: "u" + i,
      tabindex: current === i ? "0" : "-1", "aria-label": speech(i)},
      element("div", {class: "who"}, isolated(D.people[D.speaker[i]]), ` · turn ${i - start[D.d[i]] + 1} · `, isolated(D.name[i])),
      element("p", {class: "text", dir: "auto"}, D.text[i] || "(no transcript)"), verdict, open);
    item.addEventListener("focusin", () => { if (current !== i) { current = i; roving(); point(); } });
    return item;
  }
  function roving() {
    for (const item of $("chat").querySelectorAll("li.turn")) item.tabIndex = item.id === "u" + current ? 0 : -1;
  }
  function chat() {
    const list = $("chat"), every = $("scope").value === "all", items = [];
    let last = null;
    for (const i of shown.slice(from, from + PAGE)) {
      if (every && D.d[i] !== last) {
        last = D.d[i];
        const d = last;
        items.push(element("li", {}, element("h3", {}, isolated(D.dialogues[d]),
          element("button", {type: "button", on: {click: () => { $("dialogue").value = d; reset(); $("chat").scrollIntoView(); }}},
            "show the whole dialogue"))));
      }
      items.push(turn(i));
    }
    list.replaceChildren(...items);
    $("earlier").hidden = from === 0;
    $("later").hidden = from + PAGE >= shown.length;
    if (!list.querySelector("li.turn[tabindex='0']")) { const first = list.querySelector("li.turn"); if (first) first.tabIndex = 0; }
  }
  function reset() {
    for (const id of ["true", "said", "speaker", "low", "high", "words"]) $(id).value = "";
    $("show").value = "all"; $("scope").value = "one";
    update();
  }
  function go(i, focus) {
    const d = D.d[i];
    if (Number($("dialogue").value) !== d) { $("dialogue").value = d; if ($("scope").value === "one") update(true); else strip(d); }
    let place = shown.indexOf(i);
    if (place < 0) { $("dialogue").value = d; reset(); place = shown.indexOf(i); }
    lit = current = i;
    if (place < from || place >= from + PAGE) from = Math.max(0, place - PAGE / 2);
    chat(); point();
    const item = $("u" + i);
    if (!item) return;
    if (focus) item.focus({preventScroll: true});
    item.scrollIntoView({block: focus ? "center" : "nearest"});
  }
  $("chat").addEventListener("keydown", (event) => {
    const item = event.target.closest("li.turn");
    if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = shown.indexOf(Number(item.id.slice(1)));
    if (event.target === item && (event.key === "Enter" || event.key === " ")) {
      const open = item.querySelector("details"); open.open = !open.open; event.preventDefault(); return;
    }
    const to = {ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: shown.length - 1}[event.key];
    if (to === undefined || to < 0 || to >= shown.length) return;
    event.preventDefault();
    if (to < from || to >= from + PAGE) { from = Math.max(0, to - PAGE / 2); chat(); }
    $("u" + shown[to]).focus();
  });
  $("earlier").addEventListener("click", () => { from = Math.max(0, from - PAGE); chat(); });
  $("later").addEventListener("click", () => { from += PAGE; chat(); $("chat").scrollIntoView(); });
  for (const id of ["dialogue", "scope", "show", "true", "said", "speaker"]) $(id).addEventListener("change", () => update());
  for (const id of ["low", "high", "words"]) $(id).addEventListener("input", () => update());
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", reset);
  $("before").addEventListener("click", () => { $("dialogue").value = Number($("dialogue").value) - 1; update(); });
  $("after").addEventListener("click", () => { $("dialogue").value = Number($("dialogue").value) + 1; update(); });
  for (const cell of document.querySelectorAll("[data-true]")) cell.addEventListener("click", () => {
    reset(); $("scope").value = "all"; $("true").value = cell.dataset.true; $("said").value = cell.dataset.said;
    update(); $("count").focus({preventScroll: true}); $("conversations").scrollIntoView();
  });
  addEventListener("resize", () => { if (view) strip(view.d); });
  update();
})();
