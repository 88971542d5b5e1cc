"use strict";

// A click on the head of a column sorts its table; a second one turns the order. What has no number stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent;
    const number = cell.querySelector("data");
    return number ? Number(number.value) : null;
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const known = rows.filter((row) => value(row, column) !== null);
      known.sort((a, b) => sign * compare(value(a, column), value(b, column)));
      table.tBodies[0].append(...known, ...rows.filter((row) => value(row, column) === null));
    });
  });
}

// Pictures of a window two by two, at about their own size.
for (const figure of document.querySelectorAll(".window")) {
  const pictures = figure.querySelector(".pictures");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "larger";
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `larger pictures of ${figure.querySelector("figcaption").textContent}`);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(pictures.classList.toggle("large")));
  });
  figure.querySelector("figcaption").prepend(button);
}
