"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id), NS = "http://www.w3.org/2000/svg", PAGE = 200;
  let most = PAGE;
  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function named(k) {
    const svg = document.createElementNS(NS, "svg"), use = document.createElementNS(NS, "use");
    svg.setAttribute("class", "swatch"); svg.setAttribute("viewBox", "-5 -5 10 10"); svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", "#m-" + D.markers[k]); use.setAttribute("fill", D.colours[k]);
    svg.append(use);
    return element("span", {}, svg, " " + D.classes[k]);
  }
  D.classes.forEach((name, k) => $("true").append(element("option", {value: k}, name)));
  function update() {
    const which = $("which").value, t = $("true").value, words = $("words").value.toLowerCase(), kept = [];
    for (let i = 0; i < D.label.length; i++) {
      const right = D.said.map((each) => each[i] === D.label[i]), others = right.slice(1);
      if (which === "better" && (right[0] || !others.includes(true))) continue;
      if (which === "worse" && (!right[0] || !others.includes(false))) continue;
      if (t !== "" && D.label[i] !== Number(t)) continue;
      if (words && !D.text[i].toLowerCase().includes(words)) continue;
      kept.push(i);
    }
    $("count").textContent = `${kept.length} utterances`;
    $("later").hidden = kept.length <= most;
    $("chat").replaceChildren(...kept.slice(0, most).map((i) => element("li", {class: "turn left"},
      element("div", {class: "who"}, element("bdi", {}, D.speaker[i]), " · ", element("bdi", {}, D.name[i])),
      element("p", {class: "text", dir: "auto"}, D.text[i] || "(no transcript)"),
      element("p", {class: "verdict"}, element("span", {}, "true: ", named(D.label[i])),
        ...D.said.map((each, r) => {
          const ok = each[i] === D.label[i];
          return element("span", {}, element("bdi", {}, D.runs[r]), ": ", named(each[i]), " ", element("span", {class: ok ? "ok" : "no"}, ok ? "✓ right" : "✗ wrong"));
        })))));
  }
  for (const id of ["which", "true"]) $(id).addEventListener("change", () => { most = PAGE; update(); });
  $("words").addEventListener("input", () => { most = PAGE; update(); });
  $("later").addEventListener("click", () => { most += PAGE; update(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  update();
})();
