"use strict";
// The page is whole without this: it only lets a reader pick one step and group, and read numbers off a token.
(() => {
  const view = document.getElementById("inspector");
  if (!view) return;
  const steps = [...view.querySelectorAll(".step")];
  const picker = document.getElementById("picker");
  const make = (title, names) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    names.forEach((name, i) => select.add(new Option(name, i)));
    label.append(title + " ", select);
    picker.append(label);
    return select;
  };
  const step = make("Step", steps.map((s) => s.querySelector("summary").textContent));
  const group = make("Problem", []);
  const groupsOf = () => [...steps[step.value].querySelectorAll(".group")];
  const show = () => {
    steps.forEach((s, i) => { s.hidden = i != step.value; s.open = i == step.value; });
    groupsOf().forEach((g, i) => { g.hidden = group.value != "-1" && i != group.value; });
  };
  const fill = () => {
    group.length = 0;
    groupsOf().forEach((g, i) => group.add(new Option(g.querySelector("h3").textContent, i)));
    group.add(new Option("all", -1));
    show();
  };
  step.value = steps.length - 1;
  step.onchange = fill;
  group.onchange = show;
  picker.hidden = false;
  fill();

  const read = (token) => {
    const figure = token.closest("figure");
    const index = [...figure.querySelectorAll(".tokens i")].indexOf(token);
    const table = figure.querySelector("table");
    const titles = [...table.tHead.rows[0].cells].map((c) => c.textContent);
    const cells = [...table.tBodies[0].rows[index].cells].map((c) => c.textContent);
    const parts = cells.slice(2).map((c, i) => c && titles[i + 2] + " " + c).filter(Boolean);
    figure.querySelector(".readout").textContent = cells[0] + ": “" + cells[1] + "”  " + parts.join(", ");
    view.querySelectorAll("i.at").forEach((t) => t.classList.remove("at"));
    token.classList.add("at");
  };
  view.addEventListener("mouseover", (event) => {
    if (event.target.matches(".tokens i")) read(event.target);
  });
  view.addEventListener("click", (event) => {
    if (event.target.matches(".tokens i")) read(event.target);
  });
  view.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !event.target.matches(".tokens")) return;
    const all = [...event.target.children];
    const at = all.findIndex((t) => t.classList.contains("at"));
    const next = all[Math.min(all.length - 1, Math.max(0, at < 0 ? 0 : at + move))];
    if (next) { read(next); next.scrollIntoView({ block: "nearest" }); event.preventDefault(); }
  });
  view.addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens") && event.target.firstElementChild && !event.target.querySelector(".at")) read(event.target.firstElementChild);
  });
})();
