// A small chart per question type: a bar per run, on a scale from 0 to 100 %; and the colors of the runs in the tables.

// A line at the best blind baseline of a run's test, if it has one.
function blindLine(score) {
  if (score === null) return [];
  return [element("div", { class: "blind", style: `left:${score}%`, title: `best blind baseline ${percent(score)}` })];
}

{
  for (const row of document.querySelectorAll("#runs tbody tr")) {
    const run = data.runs.indexOf(row.cells[0].textContent.trim());
    if (run >= 0) row.cells[0].prepend(chip(run));
  }
  const charts = element("div", { class: "charts" });
  for (const [column, scores] of Object.entries(data.bars)) {
    const scored = data.runs.map((_, run) => run).filter((run) => scores[run] !== null);
    if (!scored.length) continue;
    const bars = scored.map((run) =>
      element(
        "div",
        { class: "bar", title: data.runs[run] },
        element("span", { class: "name" }, data.runs[run]),
        element(
          "span",
          { class: "track" },
          element("div", { class: "fill", style: `width:${scores[run]}%;background:${runColor(run)}` }),
          ...blindLine(data.blind[column][run]),
        ),
        element("span", { class: "value" }, percent(scores[run])),
      ),
    );
    const ends = ["0", "50", "100"].map((end) => element("span", {}, end));
    const axis = element("div", { class: "bar axis" }, element("span"), element("span", { class: "ends" }, ...ends));
    charts.append(element("figure", {}, element("figcaption", {}, column), ...bars, axis));
  }
  document.getElementById("bars").append(charts);
}
