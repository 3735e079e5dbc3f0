// Sorts a table's rows by the column of a heading: numbers first from high to low, names from a to z; what is
// missing stays last.

function sortable(heading, sort) {
  const button = element("button", { type: "button", onclick: () => turn() }, heading.textContent);
  heading.replaceChildren(button);
  function turn() {
    const before = heading.getAttribute("aria-sort");
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    const direction = sort(before);
    heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  }
}

function compareValues(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
}

// 1 for ascending, -1 for descending: the other way than before, or as suits the values
const nextDirection = (before, numbers) =>
  before === null ? (numbers ? -1 : 1) : before === "ascending" ? -1 : 1;

for (const table of document.querySelectorAll("#runs table")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    return text === "-" ? null : /^[+-]?\d+(\.\d+)?( <)?$/.test(text) ? parseFloat(text) : text; // with a mark
  };
  [...table.tHead.lastElementChild.cells].forEach((heading, column) => {
    const numbers = [...body.rows].some((row) => typeof value(row, column) === "number");
    if (numbers) heading.classList.add("number");
    sortable(heading, (before) => {
      const direction = nextDirection(before, numbers);
      const rows = [...body.rows].sort((a, b) => compareValues(value(a, column), value(b, column), direction));
      body.append(...rows);
      return direction;
    });
  });
}
