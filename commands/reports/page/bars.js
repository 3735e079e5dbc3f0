// A small chart a question type: a bar a run, on a scale from 0 to 100 %.

{
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
          element("div", { class: "fill", style: `width:${100 * scores[run]}%;background:${runColour(run)}` }),
        ),
        element("span", { class: "value" }, percent(scores[run])),
      ),
    );
    charts.append(element("figure", {}, element("figcaption", {}, column), ...bars));
  }
  document.getElementById("bars").append(charts);
}
