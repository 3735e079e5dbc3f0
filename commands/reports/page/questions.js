// The list of questions: filtered, sorted, and a page of rows at a time, whatever their number.

const PAGE = 50;
const SCORES = {
  any: () => true,
  wrong: (score) => score === 0,
  partly: (score) => score > 0 && score < 100,
  right: (score) => score === 100,
};

const questions = data.questions.map(([id, scene, type, question, truth], place) => ({
  place,
  id,
  scene: data.texts[scene],
  type: data.types[type],
  question: data.texts[question],
  truth: data.texts[truth],
}));
const answeredRuns = data.runs.map((_, run) => run).filter((run) => data.answers[run]);
const scoreOf = (question, run) => data.answers[run].score[question.place];
const answerOf = (question, run) => data.texts[data.answers[run].prediction[question.place]];
const wasAsked = (question, run) => data.answers[run].prediction[question.place] >= 0;

{
  const section = document.getElementById("questions");
  const state = { shown: questions, start: 0, open: null, by: null };
  const asked = new Set(questions.map((question) => question.type));
  const update = () => ((state.start = 0), show());
  const types = [["", "all"], ...data.types.filter((type) => asked.has(type)).map((type) => [type, type])];
  const controls = {
    type: choice(types, update),
    run: choice([["", "any"], ...answeredRuns.map((run) => [run, data.runs[run]])], update),
    score: choice([...Object.keys(SCORES), "runs differ"].map((name) => [name, name]), update),
    scene: element("input", { type: "search", list: "scenes", oninput: update }),
    text: element("input", { type: "search", oninput: update }),
  };
  const labels = { type: "Type", run: "Run", score: "Score", scene: "Scene", text: "Text of question, truth or answer" };
  const scenes = [...new Set(questions.map((question) => question.scene))];
  const count = element("span", { id: "count" });
  const turnPage = (pages) => () => ((state.start += pages * PAGE), show());
  const back = element("button", { type: "button", onclick: turnPage(-1) }, "Back");
  const on = element("button", { type: "button", onclick: turnPage(1) }, "On");

  const columns = [
    { title: "Id", value: (question) => question.id },
    { title: "Scene", value: (question) => question.scene },
    { title: "Type", value: (question) => question.type },
    { title: "Question", value: (question) => question.question },
    { title: "Truth", value: (question) => question.truth },
    ...answeredRuns.map((run) => ({
      title: data.runs[run],
      numbers: true,
      value: (question) => (wasAsked(question, run) ? scoreOf(question, run) : null),
    })),
  ];
  const headings = columns.map((column) => element("th", {}, column.title));
  headings.forEach((heading, place) =>
    sortable(heading, (before) => {
      const direction = nextDirection(before, columns[place].numbers);
      state.by = { value: columns[place].value, direction };
      update();
      return direction;
    }),
  );
  const body = element("tbody");
  const table = element("table", { id: "list" }, element("thead", {}, element("tr", {}, ...headings)), body);

  function keeps(question) {
    const { type, run, score, scene, text } = controls;
    const runs = (run.value === "" ? answeredRuns : [Number(run.value)]).filter((each) => wasAsked(question, each));
    if (!runs.length || (type.value && question.type !== type.value)) return false;
    if (!question.scene.includes(scene.value)) return false;
    const scores = runs.map((each) => scoreOf(question, each));
    if (score.value === "runs differ") {
      const every = answeredRuns.filter((each) => wasAsked(question, each)).map((each) => scoreOf(question, each));
      if (every.every((each) => each === every[0])) return false;
    } else if (!scores.some(SCORES[score.value])) return false;
    const wanted = text.value.toLowerCase();
    const read = () => [question.id, question.question, question.truth, ...runs.map((each) => answerOf(question, each))];
    return !wanted || read().some((each) => each.toLowerCase().includes(wanted));
  }

  function show() {
    state.shown = questions.filter(keeps);
    if (state.by) {
      const { value, direction } = state.by;
      state.shown.sort((a, b) => compareValues(value(a), value(b), direction));
    }
    const page = state.shown.slice(state.start, state.start + PAGE);
    body.replaceChildren(...page.map(listed));
    const total = state.shown.length;
    const range = total ? `${state.start + 1} to ${state.start + page.length} of ${total}` : "none";
    count.replaceChildren(`${range}${total === questions.length ? "" : ` (${questions.length} in all)`}`);
    back.disabled = state.start === 0;
    on.disabled = state.start + PAGE >= total;
  }

  function listed(question) {
    const open = element("button", { type: "button", class: "open", onclick: () => toggle(row, question) }, question.id);
    const texts = [question.scene, question.type, question.question, question.truth];
    const row = element(
      "tr",
      {},
      element("td", {}, open),
      ...texts.map((text) => element("td", { class: "text", title: text }, text)),
      ...answeredRuns.map((run) => answerCell(question, run)),
    );
    return row;
  }

  function answerCell(question, run) {
    if (!wasAsked(question, run)) return element("td", { class: "answer" }, "-");
    const score = scoreOf(question, run);
    const failed = data.answers[run].error[question.place] >= 0;
    const answer = failed ? "failed" : answerOf(question, run).trim().slice(0, 200) || "(empty)";
    const dot = element("span", { class: "score", style: `background:${scoreColor(score)}` });
    const shown = [dot, answer, element("small", {}, percent(score).replace(".0", ""))];
    return element("td", { class: "answer", title: answer }, ...shown);
  }

  function toggle(row, question) {
    const opened = row.nextElementSibling?.classList.contains("detail");
    for (const former of body.querySelectorAll("tr.detail")) former.remove();
    if (!opened) row.after(element("tr", { class: "detail" }, element("td", { colspan: columns.length }, detail(question))));
  }

  if (questions.length) {
    section.append(
      element("div", { class: "controls" }, ...Object.keys(controls).map((name) => labeled(labels[name], controls[name]))),
      element("datalist", { id: "scenes" }, ...scenes.map((value) => element("option", { value }))),
      element("div", { class: "controls" }, back, on, count),
      element("div", { class: "wide" }, table),
    );
    for (const [name, control] of Object.entries(controls)) control.id = `by-${name}`;
    show();
  } else section.append(element("p", { class: "hint" }, "No run has answers to show."));
}
