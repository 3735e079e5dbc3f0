"use strict";
// What the other parts share: the data, elements, and how a number is shown.

const data = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children); // strings become text, never markup
  return node;
}

const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const percent = (score) => score.toFixed(1); // scores and differences are in percent, rounded as in the tables
const signed = (score) => (score > 0 ? "+" : "") + percent(score);
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe & Ito: for every eye
const runColor = (run) => COLORS[run] ?? `hsl(${(137.5 * run) % 360} 45% 50%)`; // neighbors far apart
const chip = (run) => element("span", { class: "chip", style: `background:${runColor(run)}` });
const scoreColor = (score) => `hsl(${1.1 * score} 60% 45%)`;

const labeled = (text, control) => element("label", {}, text, control);
const choice = (options, onchange) =>
  element("select", { onchange }, ...options.map(([value, text]) => element("option", { value }, text)));
