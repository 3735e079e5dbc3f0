// One question: its prompt, what each run answered and from which frames, and the camera's path.

function promptOf(question, run) {
  const { before, after } = data.answers[run];
  const start = data.texts[before[question.place]];
  const end = after[question.place];
  return end < 0 ? start : start + question.question + data.texts[end];
}

function detail(question) {
  const runs = answeredRuns.filter((run) => wasAsked(question, run));
  const rows = runs.map((run) => {
    const answers = data.answers[run];
    const error = answers.error[question.place];
    const answer = error < 0 ? answerOf(question, run).trim() || "(empty)" : `failed: ${data.texts[error]}`;
    const frames = data.frames[answers.frames[question.place]];
    return element(
      "tr",
      {},
      element("td", {}, chip(run), data.runs[run]),
      element("td", {}, element("div", {}, answer)),
      element("td", {}, question.truth),
      element("td", { class: "number" }, percent(scoreOf(question, run))),
      element("td", {}, element("div", {}, frames.join(" "))),
    );
  });
  const headings = ["Run", "Answer", "Truth", "Score (%)", "Frames"].map((text) => element("th", {}, text));
  const prompts = groupBy(runs, (run) => promptOf(question, run));
  const paths = runs.map((run) => data.paths[data.dataset[run]]?.[question.scene]).find((path) => path);
  const choices = paths ? groupBy(runs, (run) => data.answers[run].frames[question.place]) : new Map();
  const said = [
    element("table", {}, element("thead", {}, element("tr", {}, ...headings)), element("tbody", {}, ...rows)),
    ...[...prompts].map(([prompt, same]) =>
      element("div", {}, `Prompt${prompts.size > 1 ? ` of ${names(same)}` : ""}`, element("pre", {}, prompt || "(not kept)")),
    ),
  ];
  const seen = [...choices].map(([frames, same]) =>
    element(
      "figure",
      {},
      element("div", {}, "Camera from above; frames used, blue to orange", ...(choices.size > 1 ? [`, of ${names(same)}`] : [])),
      cameraPath(paths, data.frames[frames]),
    ),
  );
  return element("div", { class: "sides" }, element("div", {}, ...said), element("div", { class: "paths" }, ...seen));
}

const names = (runs) => runs.map((run) => data.runs[run]).join(", ");

function groupBy(values, key) {
  const groups = new Map();
  for (const value of values) groups.set(key(value), [...(groups.get(key(value)) ?? []), value]);
  return groups;
}

function cameraPath(path, frames) {
  const places = new Map(path.frames.map((frame, place) => [frame, path.xy[place]]));
  const used = [...new Set(frames)].filter((frame) => places.has(frame));
  const marks = used.flatMap((frame, order) => {
    const [cx, cy] = places.get(frame);
    const color = `hsl(${220 - (200 * order) / Math.max(1, used.length - 1)} 65% 50%)`; // blue first, orange last
    return [svg("circle", { cx, cy, r: 14, fill: color }), svg("text", { x: cx + 18, y: cy - 14 }, String(frame))];
  });
  const line = svg("polyline", { points: path.xy.map((point) => point.join(",")).join(" ") });
  const scale = svg("text", { x: -90, y: 1085 }, `width of the path: ${path.meters} m, if the poses are metric`);
  return svg("svg", { class: "path", width: 310, height: 310, viewBox: "-110 -110 1220 1220" }, line, ...marks, scale);
}
