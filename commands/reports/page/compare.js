// The difference of two runs in each measure, with its intervals.

{
  const section = document.getElementById("compare");
  const result = element("div", { class: "wide", id: "differences" });
  const options = data.runs.map((name, run) => [run, name]);
  const [first, second] = [0, 1].map(() => choice(options, () => show()));

  function show() {
    const [a, b] = [Number(first.value), Number(second.value)];
    if (a === b) return result.replaceChildren("Choose two runs.");
    const pair = `${Math.min(a, b)} ${Math.max(a, b)}`;
    const found = data.comparisons.pairs[pair];
    if (typeof found === "string") return result.replaceChildren(`Not compared: ${found}`);
    const turn = a < b ? (d) => d : (d) => (Array.isArray(d) ? [-d[1], -d[0]] : -d);
    const rows = found.map(([measure, difference, byQuestion, byScene]) => ({
      measure: data.comparisons.measures[measure],
      difference: turn(difference),
      reason: data.comparisons.trainings.includes(pair) ? "one seed of each" : null,
      byQuestion: byQuestion && turn(byQuestion),
      byScene: byScene && turn(byScene),
    }));
    const reach = Math.max(1, ...rows.flatMap((row) => [...(row.byQuestion ?? []), ...(row.byScene ?? [])]).map(Math.abs));
    const isSame = rows.every((row) => String(row.byQuestion) === String(row.byScene)); // scenes with one question each
    const byQuestion = isSame ? [] : ["95 % by question"];
    const headings = ["Measure", "Difference", ...byQuestion, "95 % by scene", axis(reach)];
    result.replaceChildren(
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...headings.map((text) => element("th", {}, text)))),
        element("tbody", {}, ...rows.map((row) => tableRow(row, reach, isSame))),
      ),
    );
  }

  function tableRow(row, reach, isSame) {
    const interval = (ends, single) => (ends ? `[${ends.map(signed).join(", ")}]` : single);
    const byQuestion = isSame ? [] : [interval(row.byQuestion, row.reason ?? "one question")];
    const cells = [signed(row.difference), ...byQuestion, interval(row.byScene, row.reason ?? "one scene")];
    return element(
      "tr",
      {},
      element("td", {}, row.measure),
      ...cells.map((text) => element("td", { class: "number" }, text)),
      element("td", {}, picture(row, reach)),
    );
  }

  function axis(reach) {
    const ends = [-reach, 0, reach].map((end) => element("span", {}, signed(end)));
    return element("span", { class: "ends" }, ...ends);
  }

  function picture(row, reach) {
    const x = (difference) => 130 + (120 * difference) / reach;
    const bar = (kind, ends) => svg("line", { class: kind, x1: x(ends[0]), x2: x(ends[1]), y1: 10, y2: 10 });
    return svg(
      "svg",
      { class: "intervals", width: 260, height: 20 },
      svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 20 }),
      ...(row.byQuestion ? [bar("question", row.byQuestion)] : []),
      ...(row.byScene ? [bar("scene", row.byScene)] : []),
      svg("circle", { cx: x(row.difference), cy: 10, r: 3.5 }),
    );
  }

  const compared = Object.entries(data.comparisons.pairs).find(([, found]) => Array.isArray(found));
  [first.value, second.value] = compared ? compared[0].split(" ") : [0, Math.min(1, data.runs.length - 1)];
  const { resamples, seed } = data.bootstrap;
  section.append(
    element(
      "p",
      { class: "hint" },
      `How much better the second run is than the first, in points, with 95 % intervals of a paired bootstrap ` +
        `(${resamples.toLocaleString("en")} resamples, seed ${seed}). Thick: of questions, as for others about these scenes. ` +
        `Thin: of scenes with all their questions, as for other scenes.`,
    ),
    element("div", { class: "controls" }, labeled("First run", first), labeled("Second run", second)),
    result,
  );
  show();
}
